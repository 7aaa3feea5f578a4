"""Where training examples come from, one by one: what a source is, and the procedural world."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float16, Int32, UInt8

from ltx_jax.config import BucketConfig, DataConfig
from ltx_jax.world import render, scenes

CACHE_BYTES = 2 * 2**30  # of examples that a source keeps in memory


@dataclasses.dataclass(frozen=True)
class StoredLatents:
    """Posteriors as `ltx_jax.encode` stores them: means that are not normalised, and log-variances.

    Beside the clip itself there are condition items: images and clips cut out of it and encoded by
    themselves, as the sampler does. Their channels are the mean's and then the one log-variance.
    Every clip of a bucket has as many.
    """

    mean: Float16[np.ndarray, "*b t h w c"]
    logvar: Float16[np.ndarray, "*b t h w 1"]
    keyframes: Float16[np.ndarray, "*b k h w _"]  # single frames, and
    keyframe_numbers: Int32[np.ndarray, "*b k"]  # where each lies in the clip, in pixel frames
    clips: Float16[np.ndarray, "*b m 2 h w _"]  # of two latent frames, and
    clip_numbers: Int32[np.ndarray, "*b m"]  # where each begins


@dataclasses.dataclass(frozen=True)
class Example:
    """A caption with pixels, or with what `ltx_jax.encode` made of them."""

    caption: str
    frame_rate: float  # frames per second
    frames: UInt8[np.ndarray, "t h w 3"] | None = None
    latents: StoredLatents | None = None
    embedding: Float16[np.ndarray, "m c"] | None = None  # of the caption


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What made the latents and embeddings of a data set, as its description has it."""

    buckets: tuple[tuple[int, int, int], ...]  # frames, height, width in pixels
    vae: str  # the checkpoint's name, and
    vae_hash: str  # what `ltx_jax.encode.vae_hash` makes of its weights
    # Of the VAE's latents, per channel; None: they are not to be normalised.
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    text_encoder: str | None  # its name; None: captions are text alone
    text_encoder_id: str | None  # TextEncoder.identity, and
    tokenizer_id: str | None  # that of its tokenizer
    empty_embedding: tuple[tuple[float, ...], ...] | None  # of the empty caption, (m, c)

    @classmethod
    def read(cls, description: dict[str, Any]) -> "Encoding":
        """From JSON, where tuples are lists."""

        def tuples(value: Any) -> Any:
            return tuple(map(tuples, value)) if isinstance(value, list) else value

        return cls(
            **{field.name: tuples(description[field.name]) for field in dataclasses.fields(cls)}
        )

    @property
    def empty(self) -> Float16[np.ndarray, "m c"] | None:
        """The embedding of the empty caption."""
        stored = self.empty_embedding
        return None if stored is None else np.array(stored, np.float16)


@runtime_checkable
class Source(Protocol):
    """Examples by number."""

    @property
    def encoding(self) -> Encoding | None:
        """What made its latents; None where examples are pixels."""
        ...

    def count(self, bucket: BucketConfig) -> int | None:
        """How many examples fit one of the config's buckets; None if there is no end of them."""
        ...

    def example(self, bucket: BucketConfig, index: int, rng: np.random.Generator) -> Example:
        """Number `index` of those that fit; `rng` draws all that is left to chance.

        Raises:
          ValueError: if it cannot be read.
        """
        ...


class World:
    """The procedural world: an endless stream of clips, dealt out to the buckets.

    Args:
      path: "shapes", or "shapes:rotate,orbit" for these motions alone.
      cfg: the data.
      seed: of the world.

    Raises:
      ValueError: if the path names another motion.
    """

    encoding = None

    def __init__(self, path: str, cfg: DataConfig, seed: int):
        _, named, motions = path.partition(":")
        self._motions = tuple(motions.split(",")) if named else scenes.MOTIONS
        scenes.check_motions(self._motions)
        self._cfg, self._seed = cfg, seed

    @staticmethod
    def has(path: str) -> bool:
        """Whether a source's name is that of a world."""
        return path.partition(":")[0] == "shapes"

    def count(self, bucket: BucketConfig) -> None:
        """There is no end of clips of any size."""

    def example(self, bucket: BucketConfig, index: int, rng: np.random.Generator) -> Example:
        """Draws a clip."""
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
        return Example(clip.caption, frame_rate, clip.frames)
