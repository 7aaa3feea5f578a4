"""Encodes the clips and captions that a config trains on, in advance, as a data set of latents.

The config's VAE encodes every example, once for each bucket that it fits into. The config's text
encoder encodes the captions, unless it is trained. The command is `ltx-encode`.
"""

import dataclasses
import functools
import hashlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float16, Int, UInt8

from ltx_jax import pixels
from ltx_jax.checkpoints import lock
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import (
    BucketConfig,
    DataConfig,
    ExecutionConfig,
    TrainTransformer,
    VAEConfig,
)
from ltx_jax.data import masks
from ltx_jax.data.loader import open_source
from ltx_jax.data.read_ahead import read_ahead
from ltx_jax.data.sources import Encoding, Example, Source, StoredLatents, select_context
from ltx_jax.inference.text_encoder import TextEncoder
from ltx_jax.models import convolution
from ltx_jax.models.vae import VideoVAE, check_video_shape
from ltx_jax.runtime import sharding

# The fields of a VAE's configuration that its latents depend on.
_ENCODER_SETTINGS = (
    *("encoder_blocks", "in_channels", "latent_channels", "patch_size", "encoder_base_channels"),
    *("norm_layer", "latent_log_var", "spatial_padding_mode", "use_quant_conv"),
)
# The fields of the data's configuration that do not affect the encoded data.
_LOADER_SETTINGS = ("threads", "processes", "prefetch")
# Fields that are left out if they have their defaults, as in the description of older data sets.
_LATER_SETTINGS = (
    *("reference", "reference_column", "reference_downscale_factor", "masks", "mask_column"),
)

_log = logging.getLogger(__name__)


def vae_hash(loaded: Checkpoint) -> str:
    """A hash that differs for VAEs with different latents; file format and dtype do not matter.

    It covers the encoder's weights and configuration, but not the decoder's.

    Raises:
      ValueError: if the checkpoint holds no VAE.
    """
    if loaded.vae is None:
        raise ValueError("this checkpoint holds no VAE")
    settings = [(name, getattr(loaded.vae, name)) for name in _ENCODER_SETTINGS]
    digest = hashlib.sha256(repr(settings).encode())
    for path, leaf in jax.tree.leaves_with_path(loaded.vae_params):
        name = jax.tree_util.keystr(path)
        if "decoder" in name:
            continue
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            mesh = leaf.sharding.mesh  # pyright: ignore[reportAttributeAccessIssue]
            leaf = jax.device_put(leaf, NamedSharding(mesh, P()))  # whole on every process
        digest.update(name.encode())
        digest.update(np.asarray(leaf, np.float32).tobytes())
    return digest.hexdigest()[:16]


def check_vae(encoding: Encoding, loaded: Checkpoint, name: str) -> None:
    """Checks that stored latents were encoded by the VAE of a run.

    Args:
      encoding: how the data were encoded.
      loaded: checkpoint with the VAE of the run.
      name: name of that VAE, for the error message.

    Raises:
      ValueError: if another VAE encoded them; the message names both.
    """
    own_hash = vae_hash(loaded)
    if own_hash != encoding.vae_hash:
        raise ValueError(
            f"the data were encoded by the VAE {encoding.vae} ({encoding.vae_hash}), and this run "
            f"uses the VAE {name} ({own_hash}): set --vae to the former, or encode the data again"
        )


class _Shard(NamedTuple):
    """Examples [first, last) of a source, in one bucket."""

    bucket: int
    source: int
    first: int
    last: int


def encode(
    cfg: TrainTransformer,
    output: str | Path,
    *,
    examples: int | None = None,
    keyframes: int = 4,
    shard_size: int = 256,
    worker: tuple[int, int] = (0, 1),
    report: Callable[[str], None] = print,
) -> bool:
    """Encodes all examples of a config's data, each for all buckets that it fits into.

    Args:
      cfg: names the data, the VAE and the text encoder.
      output: a folder that is new, empty, or from an earlier call with the same settings.
      examples: number of examples to encode per bucket and source: exactly, if the source is
        endless, else at most.
      keyframes: number of single frames per clip to encode separately, as conditions; they are
        evenly spaced and include the last frame.
      shard_size: number of examples per file.
      worker: index of this process, and how many there are. Each writes a part of the files;
        process 0 also writes the index, when all files exist.
      report: called with each line of the log.

    Returns:
      Whether the data set is complete.

    Raises:
      ValueError: if data, VAE, text encoder and settings do not fit each other.
    """
    from ltx_jax.data import dataset, latent_cache  # importing TFDS takes a second

    mesh = sharding.make_mesh(cfg.mesh, jax.local_devices())  # workers do not communicate
    loaded = load_checkpoint(cfg.vae, networks=("vae",), mesh=mesh)
    if loaded.vae is None:
        raise ValueError(f"{cfg.vae} holds no VAE: --vae must name a checkpoint that does")
    if loaded.vae.latent_log_var == "per_channel":
        raise ValueError(
            f"the VAE of {cfg.vae} has a log-variance per channel, and encoded data have a single "
            "one: train on pixels with it"
        )
    sizes = [(size.num_frames, size.height, size.width) for size in cfg.data.sizes]
    for size in sizes:
        check_video_shape(loaded.vae, (1, *size, loaded.vae.in_channels))
    sources = [open_source(source.path, cfg.data, cfg.run.seed) for source in cfg.data.sources]
    text_encoder = _text_encoder(cfg, mesh)
    counts = _counts(cfg, sources, examples)
    shards = list(_shards(counts, shard_size))
    stored = [name for name, is_stored in _companions(cfg).items() if is_stored]
    embedding_width = None if text_encoder is None else text_encoder.cfg.width
    context_shapes = cfg.model.context_shapes
    writer = dataset.DatasetWriter(
        output,
        latent_cache.KIND,
        latent_cache.latent_features(
            loaded.vae.latent_channels, embedding_width, context_shapes, stored
        ),
        latent_cache.INDEX,
        {
            **dataclasses.asdict(_encoding(cfg, sizes, loaded, text_encoder)),
            "data": _described(cfg.data),
            "counts": counts,
            "seed": cfg.run.seed,
            "keyframes": keyframes,
            "shard_size": shard_size,
            # Left out if empty, so that data sets without further inputs keep their description.
            **({"context_shapes": context_shapes} if context_shapes else {}),
        },
    )
    encoder = _Encoder(cfg, loaded, loaded.vae, sources, text_encoder, keyframes, mesh)

    def rows(number: int) -> Iterator[Any]:
        shard = shards[number]
        return (latent_cache.to_row(x, shard.bucket) for x in encoder.examples(shard))

    with lock.locked(output, "--output", f"worker-{worker[0]}.lock"):
        writer.write_missing(len(shards), worker, rows, report, "examples")
    if encoder.left_out:
        report(f"{encoder.left_out} examples could not be read and are left out")
    return writer.complete


def _companions(cfg: TrainTransformer) -> dict[str, bool]:
    """What examples hold beside latents, and whether these do."""
    return {"reference": cfg.data.reference != "none", "mask": cfg.data.masks}


def _described(data: DataConfig) -> dict[str, Any]:
    """The settings of the data that affect what is encoded."""

    def is_described(name: str, value: Any) -> bool:
        is_later = name in _LATER_SETTINGS and value == getattr(DataConfig, name)
        return name not in _LOADER_SETTINGS and not is_later

    fields = dataclasses.asdict(data).items()
    return {name: value for name, value in fields if is_described(name, value)}


def _text_encoder(cfg: TrainTransformer, mesh: Mesh) -> TextEncoder | None:
    if cfg.captions == "train":
        return None
    if cfg.text_encoder_path is None:
        raise ValueError("captions to be cached need a text encoder (--text_encoder_path)")
    return TextEncoder.load(
        cfg.text_encoder_path,
        dtype=cfg.execution.dtype,
        max_tokens=cfg.max_caption_tokens,
        mesh=mesh,
    )


def _counts(
    cfg: TrainTransformer, sources: Sequence[Source], examples: int | None
) -> list[list[int]]:
    """Number of examples to encode, by bucket and source."""
    for named, source in zip(cfg.data.sources, sources, strict=True):
        if source.encoding is not None:
            raise ValueError(f"{named.path} holds latents already")
        if examples is None and any(source.count(size) is None for size in cfg.data.sizes):
            raise ValueError(f"{named.path} is endless: set the number of examples (--examples)")
    table = [[source.count(size) for source in sources] for size in cfg.data.sizes]
    return [[min(n for n in (count, examples) if n is not None) for count in row] for row in table]


def _shards(counts: Sequence[Sequence[int]], size: int) -> Iterator[_Shard]:
    for bucket, row in enumerate(counts):
        for source, count in enumerate(row):
            for first in range(0, count, size):
                yield _Shard(bucket, source, first, min(first + size, count))


def _encoding(
    cfg: TrainTransformer,
    sizes: Sequence[tuple[int, int, int]],
    loaded: Checkpoint,
    text_encoder: TextEncoder | None,
) -> Encoding:
    statistics = loaded.statistics
    empty = None
    if text_encoder is not None:
        [embedding] = _embed(text_encoder, [""])
        empty = tuple(map(tuple, embedding.astype(float).tolist()))
    return Encoding(
        buckets=tuple(sizes),
        vae=cfg.vae,
        vae_hash=vae_hash(loaded),
        mean=None if statistics is None else tuple(np.asarray(statistics.mean, float).tolist()),
        std=None if statistics is None else tuple(np.asarray(statistics.std, float).tolist()),
        text_encoder=cfg.text_encoder_path if text_encoder is not None else None,
        text_encoder_id=None if text_encoder is None else text_encoder.identity,
        tokenizer_id=None if text_encoder is None else text_encoder.tokenizer.identity,
        empty_embedding=empty,
    )


def _embed(text_encoder: TextEncoder, captions: Sequence[str]) -> list[Float16[np.ndarray, "m c"]]:
    """Embeddings without their padding."""
    embeddings, mask = jax.device_get(text_encoder.encode(captions))
    with np.errstate(over="ignore"):  # found below
        half = embeddings.astype(np.float16)
    rows = [row[:length] for row, length in zip(half, mask.sum(axis=1), strict=True)]
    for row, caption in zip(rows, captions, strict=True):
        if not np.isfinite(row).all():
            raise ValueError(
                f"the text encoder makes an embedding that float16 cannot hold (NaN, infinity, or "
                f"above 65504) of the caption {caption[:60]!r}"
            )
    return rows


class _Cut(NamedTuple):
    """An example in pixels, and the first frames of the short clips to encode separately."""

    example: Example
    clip_starts: np.ndarray


class _Encoder:
    """Encodes the examples of shards; `left_out` counts examples that cannot be read."""

    def __init__(
        self,
        cfg: TrainTransformer,
        loaded: Checkpoint,
        vae: VAEConfig,
        sources: Sequence[Source],
        text_encoder: TextEncoder | None,
        keyframes: int,
        mesh: Mesh,
    ):
        self._cfg, self._sources, self._text_encoder = cfg, sources, text_encoder
        self._params, self._keyframes, self._mesh = loaded.vae_params, keyframes, mesh
        self._factor = vae.temporal_factor
        model = VideoVAE(vae, ExecutionConfig(dtype=loaded.vae_dtype))
        program = functools.partial(posteriors, model)
        options = convolution.compiler_options()
        self._program = jax.jit(program, compiler_options=options)
        self._encode_items = jax.jit(
            functools.partial(posteriors_of, model), compiler_options=options
        )
        self._factors = vae.temporal_factor, vae.spatial_factor
        self.left_out = 0

    def examples(self, shard: _Shard) -> Iterator[Example]:
        """Reads and encodes the examples of a shard."""
        data, seed = self._cfg.data, self._cfg.run.seed
        size, source = data.sizes[shard.bucket], self._sources[shard.source]
        devices = math.prod(self._mesh.shape[axis] for axis in ("data", "fsdp"))
        batch_size = -(-size.batch_size // devices) * devices

        def read(index: int) -> _Cut | ValueError:
            rng = np.random.default_rng([seed, 6, shard.bucket, shard.source, index])
            try:
                example = source.example(size, index, rng)
            except ValueError as error:
                return error
            starts = clip_starts(size.num_frames, self._factor, rng)
            return _Cut(example, starts)

        ahead = data.prefetch * batch_size
        cuts = read_ahead(read, shard.first, shard.last, threads=data.threads, ahead=ahead)
        good = filter(self._is_good, cuts)
        while batch := list(itertools.islice(good, batch_size)):
            # All batches have one shape: the last one is filled up by repeating an example.
            filled = batch + batch[-1:] * (batch_size - len(batch))
            yield from self._encode(size, filled)[: len(batch)]

    def _is_good(self, cut: _Cut | ValueError) -> bool:
        if isinstance(cut, ValueError):
            self.left_out += 1
            _log.warning("left out: %s", cut)
        return isinstance(cut, _Cut)

    def _encode(self, size: BucketConfig, batch: Sequence[_Cut]) -> list[Example]:
        numbers = keyframe_numbers(size.num_frames, self._keyframes)
        starts = np.stack([cut.clip_starts for cut in batch])
        frames = np.stack([np.asarray(cut.example.frames) for cut in batch])
        where = NamedSharding(self._mesh, sharding.spec(("batch",)))
        with sharding.use_mesh(self._mesh):
            placed = jax.device_put((frames, starts), where)
            parts = jax.device_get(self._program(self._params, *placed, numbers))
            references = self._references(batch, where)
        if not all(np.isfinite(part).all() for part in (*parts, references)):
            raise ValueError(
                f"the VAE of {self._cfg.vae} makes latents that float16 cannot hold (NaN, "
                "infinity, or above 65504)"
            )
        captions = [cut.example.caption for cut in batch]
        embeddings = _embed(self._text_encoder, captions) if self._text_encoder else None
        return [
            dataclasses.replace(
                cut.example,
                frames=None,
                latents=StoredLatents(
                    mean=latents[..., :-1],
                    logvar=latents[..., -1:],
                    keyframes=keyframes,
                    keyframe_numbers=numbers,
                    clips=clips,
                    clip_numbers=cut.clip_starts,
                    reference=None if cut.example.reference is None else references[i],
                ),
                reference=None,
                mask=None if cut.example.mask is None else self._reduced(cut.example.mask),
                embedding=None if embeddings is None else embeddings[i],
                context=select_context(cut.example.context, self._cfg.model.context_shapes),
            )
            for i, (cut, latents, keyframes, clips) in enumerate(zip(batch, *parts, strict=True))
        ]

    def _references(self, batch: Sequence[_Cut], where: NamedSharding) -> np.ndarray:
        """The posteriors of the references; empty without them."""
        every = (cut.example.reference for cut in batch)
        clips = [clip for clip in every if clip is not None]
        if not clips:
            return np.zeros(0, np.float16)
        placed = jax.device_put(np.stack(clips)[:, None], where)
        return jax.device_get(self._encode_items(self._params, placed))[:, 0]

    def _reduced(self, mask: Bool[np.ndarray, "t h w"]) -> Bool[np.ndarray, "t2 h2 w2"]:
        return masks.on_latents(np.asarray(mask), *self._factors)


def keyframe_numbers(num_frames: int, count: int) -> Int[np.ndarray, " k"]:
    """Indices of evenly spaced frames of a clip, including the last but not the first."""
    last = num_frames - 1
    return np.round(np.linspace(0, last, min(count, last) + 1)[1:]).astype(np.int32)


def clip_starts(num_frames: int, factor: int, rng: np.random.Generator) -> Int[np.ndarray, " m"]:
    """Draws the first frame of the short clip (two latent frames): a multiple of `factor`, not 0.

    The result is empty if the video is too short.
    """
    places = (num_frames - 1) // factor - 1
    return factor * rng.integers(1, places + 1, min(max(places, 0), 1), dtype=np.int32)


def posteriors_of(
    model: VideoVAE, params: Any, videos: UInt8[Array, "b i t h w 3"]
) -> Float16[Array, "b i _ _ _ c"]:
    """The posteriors of i items per sample: channels of the mean, then the single log-variance."""
    cfg = model.cfg
    b, items = videos.shape[:2]
    flat = pixels.from_bytes(videos.reshape(-1, *videos.shape[2:]))
    if not items:
        t = (videos.shape[2] - 1) // cfg.temporal_factor + 1
        h, w = (side // cfg.spatial_factor for side in videos.shape[3:5])
        return jnp.zeros((b, 0, t, h, w, cfg.latent_channels + 1), jnp.float16)
    posterior: Any = model.apply({"params": params}, flat, method="encode")
    moments = jnp.concatenate([posterior.mean, posterior.logvar[..., :1]], axis=-1)
    return moments.astype(jnp.float16).reshape(b, items, *moments.shape[1:])


def posteriors(
    model: VideoVAE,
    params: Any,
    frames: UInt8[Array, "b t h w 3"],
    starts: Int[Array, "b m"],
    numbers: Int[Array, " k"],
) -> tuple[Float16[Array, "b _ _ _ c"], Float16[Array, "b k _ _ c"], Float16[Array, "b m 2 _ _ c"]]:
    """Posteriors of videos, of some of their single frames, and of short clips out of them.

    Each is encoded separately, as conditions are in sampling.

    Args:
      model: the VAE.
      params: its parameters.
      frames: the videos.
      starts: first frames of the short clips of each video.
      numbers: indices of the single frames, the same for all videos.

    Returns:
      The three posteriors. The channels are those of the mean, then the single log-variance.
    """
    encode = functools.partial(posteriors_of, model, params)
    factor = model.cfg.temporal_factor
    times = starts[..., None] + jnp.arange(factor + 1)[None, None]
    short = jax.vmap(lambda clip, chosen: clip[chosen])(frames, times)
    return (
        encode(frames[:, None])[:, 0],
        encode(frames[:, numbers][:, :, None])[:, :, 0],
        encode(short),
    )
