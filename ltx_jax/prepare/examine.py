"""Decodes a source once and finds its shots, clips, black bars, motion and hashes."""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from ltx_jax.config.preparation import PrepareConfig
from ltx_jax.data import inputs, video
from ltx_jax.data.filters import bars, hashes, motion
from ltx_jax.data.filters.shots import Shot, ShotFinder
from ltx_jax.data.frames import DecodedFrame
from ltx_jax.prepare.records import ClipRecord, Reason

_SMALL_SIDE = 256  # longest side in pixels of the frames for shots, motion and hashes
_SMALL_RATE = 10.0  # frames per second for motion and hashes
_LARGE_SIDE = 1920  # longest side and frames per second for black bars
_LARGE_RATE = 2.0


@dataclasses.dataclass(frozen=True)
class _Sample:
    """What is stored of a frame until the end of its clip is known."""

    begin: float  # seconds
    small: np.ndarray  # luma, (h, w)
    large: np.ndarray | None  # luma of some frames, for black bars


class _Samples:
    """Frames of the current shot, sampled at a constant rate."""

    def __init__(self):
        self._samples: list[_Sample] = []
        self._next_small = self._next_large = 0.0

    def add(self, frame: DecodedFrame, picture: np.ndarray) -> None:
        if frame.end <= self._next_small:
            return
        self._next_small = _next_time(frame.end, _SMALL_RATE)
        large = None
        if frame.end > self._next_large:
            self._next_large = _next_time(frame.end, _LARGE_RATE)
            large = frame.luma(_LARGE_SIDE)
        grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
        self._samples.append(_Sample(frame.begin, grey, large))

    def take(self, start: float, end: float) -> list[_Sample]:
        """Removes and returns the samples in [start, end), and discards all earlier ones."""
        count = bisect.bisect_left(self._samples, end - video.TICK, key=lambda sample: sample.begin)
        samples = [x for x in self._samples[:count] if x.begin >= start - video.TICK]
        del self._samples[:count]
        return samples


def _next_time(time: float, rate: float) -> float:
    """The first multiple of 1 / rate that is not before `time`."""
    return math.ceil(time * rate - 1e-6) / rate


def examine(path: inputs.File, cfg: PrepareConfig) -> list[ClipRecord]:
    """Finds the clips of a source, in order; some of them are already dropped.

    A source that cannot be used gives one dropped clip that states the reason.
    """
    try:
        facts = video.probe(path, any_picture=True)
        source = ClipRecord(
            height=facts.height,
            width=facts.width,
            seconds=facts.seconds,
            source_rate=facts.frame_rate,
            steady=facts.steady,
        )
        dropped = _filter_source(source, facts, cfg)
        return [dropped] if dropped else _find_clips(path, source, cfg)
    except ValueError as error:
        message = str(error).replace(str(path), "the file")
        return [ClipRecord().drop(Reason.FILE, message)]


def _filter_source(source: ClipRecord, facts: video.Facts, cfg: PrepareConfig) -> ClipRecord | None:
    """Returns the source as a dropped clip if its metadata rules it out, else None."""
    store = cfg.store
    if facts.seconds == 0:
        return source.drop(Reason.FILE, "it is a still image")
    if facts.frame_rate < store.min_frame_rate:
        return source.drop(
            Reason.RATE, f"{facts.frame_rate:.3g} frames per second, under {store.min_frame_rate:g}"
        )
    if min(facts.height, facts.width) < store.min_side:
        return source.drop(Reason.SMALL, f"{facts.width} x {facts.height}")
    if facts.seconds < cfg.shots.min_seconds:
        return source.drop(Reason.SHORT, f"{facts.seconds:.2f} s")
    return None


def _find_clips(path: inputs.File, source: ClipRecord, cfg: PrepareConfig) -> list[ClipRecord]:
    """Decodes the source and cuts it into clips."""
    finder, samples = ShotFinder(cfg.shots, source.source_rate), _Samples()
    max_seconds = cfg.shots.max_seconds
    clips: list[ClipRecord] = []
    shot = 0

    def measure(span: Shot) -> None:
        for start, end in _split(span, max_seconds):
            clip = dataclasses.replace(
                source, number=len(clips), shot=shot, start=start, seconds=end - start
            )
            clips.append(_filter_clip(clip, samples.take(start, end), cfg))

    for frame in video.decode_video(path):
        problem = frame.unsupported_format or ("transparent" if frame.is_transparent else "")
        if problem:
            return [source.drop(Reason.PICTURES, problem)]
        picture = frame.bgr(_SMALL_SIDE)
        for finished_shot in finder.add(frame.begin, frame.end, picture):
            measure(finished_shot)
            shot += 1
        if finder.start is None:
            samples.take(0.0, frame.begin)  # discards black frames, however many
        samples.add(frame, picture)
        # Long shots are cut while they are read, so that memory does not grow with their length.
        start = finder.start
        if start is not None and frame.end - start > 2 * max_seconds + 1:
            measure(Shot(start, start + max_seconds))
            finder.start = start + max_seconds
    for finished_shot in finder.finish():
        measure(finished_shot)
    return clips or [source.drop(Reason.STILL, "all of it is black")]


def _split(shot: Shot, max_seconds: float) -> list[tuple[float, float]]:
    """Cuts a shot into equal parts of at most `max_seconds`."""
    count = max(math.ceil((shot.end - shot.start) / max_seconds - 1e-3), 1)
    ends = np.linspace(shot.start, shot.end, count + 1).tolist()
    return list(itertools.pairwise(ends))


def _filter_clip(clip: ClipRecord, samples: Sequence[_Sample], cfg: PrepareConfig) -> ClipRecord:
    """Adds crop, frame rate, motion and hashes to a clip, and drops it if it fails a threshold."""
    clip = dataclasses.replace(clip, crop=(0, 0, clip.height, clip.width))
    lumas = [sample.large for sample in samples if sample.large is not None]
    if cfg.crop_bars and lumas:
        clip = dataclasses.replace(
            clip, crop=_to_source_pixels(bars.find_picture(lumas), lumas[0], clip)
        )
    rate = clip.source_rate / math.ceil(clip.source_rate / cfg.store.max_frame_rate)
    clip = dataclasses.replace(clip, frame_rate=rate)
    height, width = clip.crop[2:]
    if clip.seconds < cfg.shots.min_seconds - video.TICK or not samples:
        return clip.drop(Reason.SHORT, f"{clip.seconds:.2f} s")
    if min(height, width) < cfg.store.min_side:
        return clip.drop(Reason.SMALL, f"{width} x {height} between its bars")
    smalls = [_cropped(sample.small, clip) for sample in samples]
    motion_score = motion.score([sample.begin for sample in samples], smalls)
    clip = dataclasses.replace(clip, motion=round(motion_score, 4), hashes=hashes.hash_clip(smalls))
    if cfg.min_motion is not None and motion_score < cfg.min_motion:
        return clip.drop(Reason.STILL, f"{motion_score:.2f} under {cfg.min_motion:g}")
    return clip


def _to_source_pixels(
    box: tuple[int, int, int, int], picture: np.ndarray, clip: ClipRecord
) -> tuple[int, int, int, int]:
    """Converts a box in a scaled-down frame to source pixels, rounding inwards."""
    down, across = clip.height / picture.shape[0], clip.width / picture.shape[1]
    top, left = math.ceil(box[0] * down), math.ceil(box[1] * across)
    bottom = math.floor((box[0] + box[2]) * down + 1e-6)
    right = math.floor((box[1] + box[3]) * across + 1e-6)
    return top, left, bottom - top, right - left


def _cropped(small: np.ndarray, clip: ClipRecord) -> np.ndarray:
    """The clip's crop of a scaled-down frame."""
    down, across = small.shape[0] / clip.height, small.shape[1] / clip.width
    top, left, height, width = clip.crop
    rows = slice(math.ceil(top * down), max(math.floor((top + height) * down), 1))
    columns = slice(math.ceil(left * across), max(math.floor((left + width) * across), 1))
    return np.ascontiguousarray(small[rows, columns])
