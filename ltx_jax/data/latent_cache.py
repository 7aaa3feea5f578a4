"""Data sets of stored latents and caption embeddings, which `ltx_jax.encode` writes."""

import os
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from ltx_jax.config import BucketConfig, DataConfig
from ltx_jax.data.dataset import DatasetReader
from ltx_jax.data.sources import CACHE_BYTES, Encoding, Example, StoredLatents

KIND = "latents"
INDEX = np.dtype([("bucket", np.int32)])  # position of an example's bucket in `Encoding.buckets`


def latent_features(
    channels: int,
    embedding_width: int | None,
    context_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    companions: Collection[str] = (),
) -> dict[str, Any]:
    """TFDS features of a data set of latents.

    Args:
      channels: number of channels of the latents, without the log-variance.
      embedding_width: width of the caption embeddings; None if none are stored.
      context_shapes: shapes of the entries of `Example.context`.
      companions: "reference" and "mask", if examples have them.
    """
    import tensorflow_datasets as tfds

    def tensor(*shape: int | None, dtype: Any = np.float16) -> Any:
        encoding = {np.float16: "bytes", np.uint8: "zlib"}.get(dtype, "none")
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=encoding)

    further = {} if embedding_width is None else {"embedding": tensor(None, embedding_width)}
    if context_shapes:
        further["context"] = {
            name: tensor(*shape, dtype=np.float32) for name, shape in context_shapes.items()
        }
    if "reference" in companions:
        further["reference"] = tensor(None, None, None, channels + 1)
    if "mask" in companions:
        further["mask"] = tensor(None, None, None, dtype=np.uint8)
    return {
        # Concatenated latent frames: the clip's, its keyframes', its short clips'. The channels are
        # those of the mean and then the log-variance.
        "latents": tensor(None, None, None, channels + 1),
        "keyframe_numbers": tensor(None, dtype=np.int32),
        "clip_numbers": tensor(None, dtype=np.int32),
        "caption": tfds.features.Text(),
        "frame_rate": tfds.features.Scalar(np.float32),
        **further,
    }


def to_row(example: Example, bucket: int) -> tuple[dict[str, Any], tuple[int]]:
    """Converts an example to a row for `dataset.DatasetWriter.write`.

    Args:
      example: an example with latents, without pixels.
      bucket: position of its bucket in `Encoding.buckets`.
    """
    latents = example.latents
    if latents is None:
        raise ValueError("the example has no latents")
    frames = np.concatenate(
        [
            np.concatenate([latents.mean, latents.logvar], axis=-1),
            latents.keyframes,
            latents.clips.reshape(-1, *latents.clips.shape[2:]),
        ]
    )
    row = {
        "latents": frames,
        "keyframe_numbers": latents.keyframe_numbers,
        "clip_numbers": latents.clip_numbers,
        "caption": example.caption,
        "frame_rate": example.frame_rate,
    }
    if example.embedding is not None:
        row["embedding"] = example.embedding
    if example.context:
        row["context"] = dict(example.context)
    if latents.reference is not None:
        row["reference"] = latents.reference
    if example.mask is not None:
        row["mask"] = example.mask.astype(np.uint8)
    return row, (bucket,)


def from_row(row: dict[str, Any]) -> Example:
    """The inverse of `to_row`, from a row that TFDS read."""
    frames, keyframe_numbers, clip_numbers = (
        row[name] for name in ("latents", "keyframe_numbers", "clip_numbers")
    )
    first_clip = len(frames) - 2 * len(clip_numbers)
    first_keyframe = first_clip - len(keyframe_numbers)
    latents = StoredLatents(
        mean=frames[:first_keyframe, ..., :-1],
        logvar=frames[:first_keyframe, ..., -1:],
        keyframes=frames[first_keyframe:first_clip],
        keyframe_numbers=keyframe_numbers,
        clips=frames[first_clip:].reshape(-1, 2, *frames.shape[1:]),
        clip_numbers=clip_numbers,
        reference=row.get("reference"),
    )
    mask = row.get("mask")
    return Example(
        row["caption"].decode(),
        row["frame_rate"],
        latents=latents,
        embedding=row.get("embedding"),
        context=row.get("context", {}),
        mask=None if mask is None else mask.astype(np.bool_),
    )


class LatentSource:
    """A training source that reads a data set of latents. Nothing about its examples is random.

    Examples stay in memory as long as they fit into `CACHE_BYTES`.

    Raises:
      ValueError: if the data set cannot be read, or has none of the config's buckets.
    """

    def __init__(self, folder: str | os.PathLike, cfg: DataConfig):
        self._records = DatasetReader(folder, INDEX)
        self.encoding = Encoding.read(self._records.description)
        table = self.encoding.buckets
        example_buckets = self._records.index["bucket"]
        self._numbers = {
            size: np.flatnonzero(example_buckets == table.index(_shape(size)))
            if _shape(size) in table
            else np.array([], np.int64)
            for size in cfg.sizes
        }
        if not any(len(numbers) for numbers in self._numbers.values()):
            raise ValueError(
                f"{folder} contains latents of {_listed(table)}, but the buckets are "
                f"{_listed([_shape(size) for size in cfg.sizes])}"
            )
        self._without = _unused(os.fspath(folder), self._records.description.get("data", {}), cfg)
        self._cache: dict[int, Example] = {}
        self._free_bytes = CACHE_BYTES

    def count(self, bucket: BucketConfig) -> int:
        """Number of examples that were encoded at the bucket's size."""
        return len(self._numbers[bucket])

    def example(self, bucket: BucketConfig, index: int, rng: np.random.Generator) -> Example:
        """Reads an example, or returns it from memory."""
        number = int(self._numbers[bucket][index])
        if number in self._cache:
            return self._cache[number]
        row = self._records[number]
        row = {name: value for name, value in row.items() if name not in self._without}
        example = from_row(row)
        arrays = (*row.values(), *example.context.values())
        size = sum(value.nbytes for value in arrays if isinstance(value, np.ndarray))
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._cache[number] = example
        return example


def _unused(folder: str, stored: Mapping[str, Any], cfg: DataConfig) -> set[str]:
    """The companions in a data set that a run does not use.

    Args:
      folder: the data set, for messages.
      stored: the settings of the data that were encoded.
      cfg: the settings of the run.

    Raises:
      ValueError: if the data set lacks what the run uses, or has other references.
    """
    again = "encode the data again with these settings (ltx-encode)"
    if cfg.masks and not stored.get("masks", False):
        raise ValueError(f"{folder} holds no masks: {again}, or leave out data.masks")
    if cfg.reference != "none":
        for name in ("reference", "reference_downscale_factor"):
            before, now = stored.get(name, getattr(DataConfig, name)), getattr(cfg, name)
            if before != now:
                raise ValueError(
                    f"{folder} was encoded with data.{name} = {before!r}, and this run has "
                    f"{now!r}: set it to the former, or {again}"
                )
    unused = {"reference": cfg.reference == "none", "mask": not cfg.masks}
    return {name for name, is_unused in unused.items() if is_unused}


def _shape(bucket: BucketConfig) -> tuple[int, int, int]:
    return bucket.num_frames, bucket.height, bucket.width


def _listed(sizes: Any) -> str:
    return ", ".join(" x ".join(map(str, size)) for size in sizes)
