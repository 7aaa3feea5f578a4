"""Clips and pictures as training examples: which of them fit a bucket, and how they are cut."""

import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool

from ltx_jax.config import BucketConfig, DataConfig
from ltx_jax.data import folder, video
from ltx_jax.data.sources import Example

_CACHE_BYTES = 4 * 2**30  # of clips that one source keeps in memory
_TICK = 1e-3  # seconds, as in `video`
_FACTS = np.dtype(
    [
        ("frames", np.int32),
        ("height", np.int32),
        ("width", np.int32),
        ("seconds", np.float64),
        ("frame_rate", np.float64),
        ("steady", np.bool_),
    ]
)


class Media:
    """Clips and pictures from files.

    A clip fits a bucket that it is long enough for, after resampling, and whose shape cuts off no
    more than `max_crop` of its picture; a smaller one is enlarged. A bucket of one frame takes
    pictures, or, where there is none, frames of the clips.

    Args:
      facts: of every medium.
      load: number -> the file and its caption.
      cfg: how clips are cut.
    """

    def __init__(
        self,
        facts: Sequence[video.Facts],
        load: Callable[[int], tuple[os.PathLike, str]],
        cfg: DataConfig,
    ):
        self._facts = np.array(list(facts), _FACTS)
        self._load, self._cfg = load, cfg
        self._fitting: dict[BucketConfig, np.ndarray] = {}
        self._cache: dict[tuple[BucketConfig, int], Example] = {}
        self._room = _CACHE_BYTES

    def count(self, bucket: BucketConfig) -> int:
        """How many fit."""
        if bucket not in self._fitting:
            self._fitting[bucket] = np.flatnonzero(self._fits(bucket))
        return len(self._fitting[bucket])

    def _fits(self, bucket: BucketConfig) -> Bool[np.ndarray, " n"]:
        facts, cfg = self._facts, self._cfg
        across = facts["width"] / bucket.width
        down = facts["height"] / bucket.height
        # The part of a picture that a box of the bucket's shape holds.
        kept = np.minimum(across, down) / np.maximum(across, down)
        fits = (1 - kept <= cfg.max_crop) & (self._lengths() >= bucket.num_frames)
        pictures = fits & (facts["seconds"] == 0)
        return pictures if bucket.num_frames == 1 and pictures.any() else fits

    def _lengths(self) -> np.ndarray:
        """Frames that can be had of each."""
        facts, rate = self._facts, self._cfg.resample
        if rate is None:
            return facts["frames"]
        return np.maximum(np.ceil((facts["seconds"] - _TICK) * rate), 1)

    def example(self, bucket: BucketConfig, index: int, rng: np.random.Generator) -> Example:
        """Reads a clip, or takes it from memory."""
        chance = self._cfg.random_start or self._cfg.random_crop
        example = self._cache.get((bucket, index))
        if example is None:
            example = self._read(bucket, int(self._fitting[bucket][index]), rng)
            if not chance and self._room >= example.frames.nbytes:
                self._room -= example.frames.nbytes
                self._cache[bucket, index] = example
        if self._cfg.flip and rng.random() < 0.5:
            example = dataclasses.replace(example, frames=example.frames[:, :, ::-1])
        return example

    def _read(self, bucket: BucketConfig, index: int, rng: np.random.Generator) -> Example:
        cfg, facts = self._cfg, self._facts[index]
        chance = rng.random(3)
        start = self._start(facts, bucket.num_frames, chance[0]) if cfg.random_start else 0.0
        place = (float(chance[1]), float(chance[2])) if cfg.random_crop else (0.5, 0.5)
        medium, caption = self._load(index)
        frames, frame_rate = folder.load_clip(
            medium,
            bucket.num_frames,
            bucket.height,
            bucket.width,
            start=start,
            frame_rate=cfg.resample,
            place=place,
        )
        return Example(frames, caption, frame_rate)

    def _start(self, facts: np.void, num_frames: int, chance: float) -> float:
        """A time from which on there are enough frames, in seconds."""
        rate = self._cfg.resample
        if rate is not None:
            return chance * max(float(facts["seconds"]) - num_frames / rate, 0.0)
        if not facts["steady"]:  # nobody knows how many frames follow a time
            return 0.0
        return int(chance * (int(facts["frames"]) - num_frames + 1)) / float(facts["frame_rate"])
