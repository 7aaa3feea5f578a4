"""The interface of sources of training examples, and the procedural world as a source."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int32, UInt8

from ltx_jax.config import BucketConfig, DataConfig
from ltx_jax.world import render, scenes

EMOJI = "emoji:"  # prefix of the sources of `ltx_jax.data.emoji`
CACHE_BYTES = 2 * 2**30  # memory for the examples that a source caches


@dataclasses.dataclass(frozen=True)
class StoredLatents:
    """Posteriors of the VAE as `ltx_jax.encode` stores them, with unnormalised means.

    Besides the clip itself, there are condition items: single frames and short clips that were cut
    out of the clip and encoded by themselves, as the sampler does with its conditions. Their
    channels are those of the mean and then the log-variance. All clips of a bucket have the same
    number of items.
    """

    mean: Float16[np.ndarray, "*b t h w c"]
    logvar: Float16[np.ndarray, "*b t h w 1"]
    keyframes: Float16[np.ndarray, "*b k h w _"]  # single frames
    keyframe_numbers: Int32[np.ndarray, "*b k"]  # pixel frame of each in the clip
    clips: Float16[np.ndarray, "*b m 2 h w _"]  # short clips of two latent frames
    clip_numbers: Int32[np.ndarray, "*b m"]  # pixel frame at which each begins
    # The reference's posterior, with the channels of mean and log-variance; None without one.
    reference: Float16[np.ndarray, "*b t2 h2 w2 _"] | None = None


@dataclasses.dataclass(frozen=True)
class Example:
    """A training example: a caption, and either pixels or stored latents."""

    caption: str
    frame_rate: float  # frames per second
    frames: UInt8[np.ndarray, "t h w 3"] | None = None
    latents: StoredLatents | None = None
    embedding: Float16[np.ndarray, "m c"] | None = None  # embedding of the caption
    # Further inputs of a network by name, as in `TransformerConfig.context_shapes`.
    context: Mapping[str, Float32[np.ndarray, "..."]] = dataclasses.field(default_factory=dict)
    reference: UInt8[np.ndarray, "t h2 w2 3"] | None = None  # pixels of the clip to follow
    # True where something is meant: for every pixel, or for every latent of stored latents.
    mask: Bool[np.ndarray, "t2 h3 w3"] | None = None


def select_context(
    entries: Mapping[str, Float32[np.ndarray, "..."]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Float32[np.ndarray, "..."]]:
    """The further inputs that a network takes, out of those of an example or a batch.

    Args:
      entries: arrays by name, with or without a batch axis.
      shapes: `TransformerConfig.context_shapes`.

    Raises:
      ValueError: if an input is missing or has another shape.
    """
    for name, shape in shapes.items():
        if name not in entries:
            raise ValueError(
                f"the network takes the input {name!r} and not all of the data have it: take data "
                f"that do (encode latents with this config), or a network without it"
            )
        actual = entries[name].shape
        if actual[len(actual) - len(shape) :] != shape:
            raise ValueError(
                f"the network takes the input {name!r} with the shape {shape} for each clip, and "
                f"that of the data is {actual}"
            )
    return {name: entries[name] for name in shapes}


@dataclasses.dataclass(frozen=True)
class Encoding:
    """The networks that made the latents and embeddings of a data set, as in its description."""

    buckets: tuple[tuple[int, int, int], ...]  # frames, height and width in pixels
    vae: str  # name of the VAE's checkpoint
    vae_hash: str  # hash of the VAE's weights (`ltx_jax.encode.vae_hash`)
    # Mean and deviation of the VAE's latents per channel; None: latents are not normalised.
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    text_encoder: str | None  # name of the text encoder; None: no embeddings are stored
    text_encoder_id: str | None  # TextEncoder.identity
    tokenizer_id: str | None  # identity of its tokenizer
    empty_embedding: tuple[tuple[float, ...], ...] | None  # (m, c), of the empty caption

    @classmethod
    def read(cls, description: dict[str, Any]) -> "Encoding":
        """Reads a data set's description, a dict from JSON, in which tuples are lists."""

        def tuples(value: Any) -> Any:
            return tuple(map(tuples, value)) if isinstance(value, list) else value

        return cls(
            **{field.name: tuples(description[field.name]) for field in dataclasses.fields(cls)}
        )

    @property
    def empty(self) -> Float16[np.ndarray, "m c"] | None:
        """The embedding of the empty caption."""
        embedding = self.empty_embedding
        return None if embedding is None else np.array(embedding, np.float16)


@runtime_checkable
class Source(Protocol):
    """A source of training examples, which are addressed by number."""

    @property
    def encoding(self) -> Encoding | None:
        """The networks that made its latents; None if examples contain pixels."""
        ...

    def count(self, bucket: BucketConfig) -> int | None:
        """Number of examples that fit one of the config's buckets; None if endless."""
        ...

    def example(self, bucket: BucketConfig, index: int, rng: np.random.Generator) -> Example:
        """Reads an example.

        Args:
          bucket: one of the config's buckets.
          index: number among the examples that fit the bucket.
          rng: the only source of randomness, such as the choice of a crop.

        Raises:
          ValueError: if the example cannot be read.
        """
        ...


class World:
    """The procedural world as a source: an endless stream of clips, divided among the buckets.

    Args:
      path: "shapes", or "shapes:rotate,orbit" for these motions only.
      cfg: buckets and frame rates.
      seed: seed of the world.

    Raises:
      ValueError: if the path names an unknown motion.
    """

    encoding = None

    def __init__(self, path: str, cfg: DataConfig, seed: int):
        _, colon, motions = path.partition(":")
        self._motions = tuple(motions.split(",")) if colon else scenes.MOTIONS
        scenes.check_motions(self._motions)
        self._cfg, self._seed = cfg, seed

    @staticmethod
    def has(path: str) -> bool:
        """Whether a source's name denotes the procedural world."""
        return path.partition(":")[0] == "shapes"

    def count(self, bucket: BucketConfig) -> None:
        """None: the world is endless at any size."""

    def example(self, bucket: BucketConfig, index: int, rng: np.random.Generator) -> Example:
        """Renders a clip at one of the config's frame rates."""
        sizes = self._cfg.sizes
        frame_rate = float(rng.choice(self._cfg.frame_rates))
        clip = render.clip(
            index * len(sizes) + sizes.index(bucket),
            seed=self._seed,
            num_frames=bucket.num_frames,
            height=bucket.height,
            width=bucket.width,
            fps=frame_rate,
            motions=self._motions,
        )
        return world_example(clip, frame_rate)


def world_example(clip: render.WorldClip, frame_rate: float) -> Example:
    """A clip of the procedural world as an example."""
    return Example(clip.caption, frame_rate, clip.frames)


def is_endless(path: str) -> bool:
    """Whether a source's name denotes an endless one, which renders its examples."""
    return World.has(path) or path.startswith(EMOJI)
