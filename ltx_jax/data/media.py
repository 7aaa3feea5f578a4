"""Clips and pictures as training examples: which of them fit a bucket, and how they are cut."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from ltx_jax.config import BucketConfig, DataConfig
from ltx_jax.data import folder, inputs, masks, pictures, pixels, video
from ltx_jax.data.sources import CACHE_BYTES, Example

FACTS = np.dtype(
    [
        ("frames", np.int32),
        ("height", np.int32),
        ("width", np.int32),
        ("seconds", np.float64),
        ("frame_rate", np.float64),
        ("steady", np.bool_),
    ]
)  # of video.Facts


class Files(NamedTuple):
    """The files of an example.

    Attributes:
      clip: the clip or picture.
      captions: one of which is drawn.
      reference: the clip to follow, as long as the clip; None without one.
      mask: a clip as long as the clip, or a picture; None without one.
    """

    clip: inputs.File
    captions: Sequence[str]
    reference: inputs.File | None = None
    mask: inputs.File | None = None


class _Cut(NamedTuple):
    """What is cut out of the files of an example."""

    frames: UInt8[np.ndarray, "t h w 3"]
    frame_rate: float
    captions: Sequence[str]
    reference: UInt8[np.ndarray, "t h2 w2 3"] | None
    mask: Bool[np.ndarray, "t h w"] | None

    @property
    def nbytes(self) -> int:
        arrays = (self.frames, self.reference, self.mask)
        return sum(array.nbytes for array in arrays if array is not None)


class Media:
    """Clips and pictures from files.

    A clip fits a bucket if it is long enough, after resampling, and if the bucket's shape cuts off
    no more than `max_crop` of its picture; a smaller one is enlarged. A bucket of one frame takes
    pictures, or, where no picture fits, frames of the clips. What fits no bucket is named in the
    log. Examples stay in memory while there is room, unless cuts are random.

    Args:
      facts: properties of every medium, with dtype `FACTS`.
      name: number of a medium -> its name in messages.
      load: number of a medium -> its files; it opens those that `cfg` needs.
      cfg: how clips are cut, for which buckets.

    Raises:
      ValueError: if nothing fits any bucket.
    """

    encoding = None

    def __init__(
        self,
        facts: np.ndarray,
        name: Callable[[int], str],
        load: Callable[[int], Files],
        cfg: DataConfig,
    ):
        self._facts, self._name, self._load, self._cfg = facts, name, load, cfg
        rate = cfg.resample
        self._lengths = facts["frames"]
        if rate is not None:
            self._lengths = np.maximum(np.ceil((facts["seconds"] - video.TICK) * rate), 1)
        self._fitting = {bucket: np.flatnonzero(self._fits(bucket)) for bucket in cfg.sizes}
        unused = np.ones(len(facts), np.bool_)
        unused[np.concatenate(list(self._fitting.values()))] = False
        folder.report_left_out(np.flatnonzero(unused).tolist(), self._reason, len(facts))
        self._cache: dict[tuple[BucketConfig, int], _Cut] = {}
        self._cache_bytes_left = CACHE_BYTES

    def _fits(self, bucket: BucketConfig) -> Bool[np.ndarray, " n"]:
        fits = (self._cut_off(bucket) <= self._cfg.max_crop) & (self._lengths >= bucket.num_frames)
        pictures = fits & (self._facts["seconds"] == 0)
        return pictures if bucket.num_frames == 1 and pictures.any() else fits

    def _cut_off(self, bucket: BucketConfig) -> np.ndarray:
        """The part of each picture that lies outside the largest box of the bucket's shape."""
        across = self._facts["width"] / bucket.width
        down = self._facts["height"] / bucket.height
        return 1 - np.minimum(across, down) / np.maximum(across, down)

    def _reason(self, number: int) -> str:
        """Why a medium fits no bucket."""
        name, length = self._name(number), int(self._lengths[number])
        shortest = min(bucket.num_frames for bucket in self._cfg.sizes)
        if length < shortest:
            return f"{name} is too short: {length} frames, and {shortest} are needed"
        if all(self._cut_off(b)[number] > self._cfg.max_crop for b in self._cfg.sizes):
            height, width = self._facts[number][["height", "width"]]
            return (
                f"{name} is {width} x {height}: every bucket cuts off more than "
                f"max_crop = {self._cfg.max_crop:g} of it"
            )
        return f"{name} fits no bucket in both length and shape, or pictures were preferred to it"

    def count(self, bucket: BucketConfig) -> int:
        """Number of media that fit the bucket."""
        return len(self._fitting[bucket])

    def example(self, bucket: BucketConfig, index: int, rng: np.random.Generator) -> Example:
        """Reads and cuts a clip, or takes it from memory."""
        *places, mirror, choice = rng.random(5)
        cut = self._cut(bucket, index, places)
        parts: list[Any] = [cut.frames, cut.reference, cut.mask]
        if self._cfg.flip and mirror < 0.5:
            parts = [None if part is None else part[:, :, ::-1] for part in parts]
        frames, reference, mask = parts
        caption = cut.captions[int(choice * len(cut.captions))]
        return Example(caption, cut.frame_rate, frames, reference=reference, mask=mask)

    def _cut(self, bucket: BucketConfig, index: int, places: Sequence[float]) -> _Cut:
        """The same part of all files; `places` in [0, 1) for time, down and across."""
        if (bucket, index) in self._cache:
            return self._cache[bucket, index]
        cfg, number = self._cfg, int(self._fitting[bucket][index])
        files = self._load(number)
        start = self._start(number, bucket.num_frames, places[0]) if cfg.random_start else 0.0

        def load(file: inputs.File, num_frames: int) -> tuple[np.ndarray, float]:
            return folder.load_clip(
                file,
                num_frames,
                bucket.height,
                bucket.width,
                start=start,
                frame_rate=cfg.resample,
                place=(places[1], places[2]) if cfg.random_crop else (0.5, 0.5),
            )

        frames, frame_rate = load(files.clip, bucket.num_frames)
        reference = mask = None
        if cfg.reference == "files" and files.reference is not None:
            reference, _ = load(files.reference, bucket.num_frames)
            reference = pixels.averaged(reference, cfg.reference_downscale_factor)
        if cfg.masks and files.mask is not None:
            count = 1 if pictures.is_image(files.mask) else bucket.num_frames
            mask = masks.of_frames(load(files.mask, count)[0])
            mask = np.broadcast_to(mask, frames.shape[:3])
        cut = _Cut(frames, frame_rate, files.captions, reference, mask)
        if not (cfg.random_start or cfg.random_crop) and cut.nbytes <= self._cache_bytes_left:
            self._cache_bytes_left -= cut.nbytes
            self._cache[bucket, index] = cut
        return cut

    def _start(self, number: int, num_frames: int, place: float) -> float:
        """A start time in seconds, after which enough frames follow."""
        facts, rate = self._facts[number], self._cfg.resample
        if rate is not None:
            return place * max(float(facts["seconds"]) - num_frames / rate, 0.0)
        if not facts["steady"] or facts["seconds"] == 0:
            # The number of frames after a time is unknown, or there is only one frame.
            return 0.0
        return math.floor(place * (facts["frames"] - num_frames + 1)) / float(facts["frame_rate"])
