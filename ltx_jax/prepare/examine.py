"""One pass through a source: its shots, clips, bars, motion and hashes. Pixels stay here."""

import bisect
import dataclasses
import itertools
import math
import os
from collections.abc import Sequence

import cv2
import numpy as np

from ltx_jax.config.preparation import PrepareConfig
from ltx_jax.data import video
from ltx_jax.data.filters import bars, hashes, motion
from ltx_jax.data.filters.shots import Shot, ShotFinder
from ltx_jax.data.frames import Shown
from ltx_jax.prepare.records import Clip, Reason

_SMALL = 256  # pixels of the longest side that shots, motion and hashes are measured at
_SMALL_RATE = 10.0  # pictures per second for them
_LARGE = 1920  # and for bars
_LARGE_RATE = 2.0


@dataclasses.dataclass(frozen=True)
class _Sample:
    """What is kept of a frame until its clip is known."""

    begin: float
    small: np.ndarray  # luma, (h, w)
    large: np.ndarray | None  # luma, of some frames


class _Samples:
    """Frames at steady times, of the shot that goes on."""

    def __init__(self):
        self._kept: list[_Sample] = []
        self._next_small = self._next_large = 0.0

    def add(self, frame: Shown, picture: np.ndarray) -> None:
        if frame.end <= self._next_small:
            return
        self._next_small = _following(frame.end, _SMALL_RATE)
        large = None
        if frame.end > self._next_large:
            self._next_large = _following(frame.end, _LARGE_RATE)
            large = frame.luma(_LARGE)
        grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
        self._kept.append(_Sample(frame.begin, grey, large))

    def take(self, start: float, end: float) -> list[_Sample]:
        """The samples of a part, which are forgotten with all that came before."""
        count = bisect.bisect_left(self._kept, end - video.TICK, key=lambda kept: kept.begin)
        taken = [kept for kept in self._kept[:count] if kept.begin >= start - video.TICK]
        del self._kept[:count]
        return taken


def _following(time: float, rate: float) -> float:
    """The next of `rate` times a second that is not before `time`."""
    return math.ceil(time * rate - 1e-6) / rate


def examine(path: str | os.PathLike, cfg: PrepareConfig) -> list[Clip]:
    """The clips of a source, in order, some of them dropped.

    A source that cannot be used gives one dropped clip, which says why.
    """
    try:
        facts = video.probe(path)
        known = Clip(
            height=facts.height,
            width=facts.width,
            seconds=facts.seconds,
            source_rate=facts.frame_rate,
            steady=facts.steady,
        )
        refused = _refuse(known, facts, cfg)
        return [refused] if refused else _clips(path, known, cfg)
    except ValueError as error:
        message = str(error).replace(os.fspath(path), "the file")
        return [Clip().drop(Reason.FILE, message)]


def _refuse(known: Clip, facts: video.Facts, cfg: PrepareConfig) -> Clip | None:
    """The source as a dropped clip, if its facts alone rule it out."""
    store = cfg.store
    if facts.seconds == 0:
        return known.drop(Reason.FILE, "it is a still image")
    if facts.frame_rate < store.min_frame_rate:
        return known.drop(
            Reason.RATE, f"{facts.frame_rate:.3g} frames per second, under {store.min_frame_rate:g}"
        )
    if min(facts.height, facts.width) < store.min_side:
        return known.drop(Reason.SMALL, f"{facts.width} x {facts.height}")
    if facts.seconds < cfg.shots.min_seconds:
        return known.drop(Reason.SHORT, f"{facts.seconds:.2f} s")
    return None


def _clips(path: str | os.PathLike, known: Clip, cfg: PrepareConfig) -> list[Clip]:
    finder, samples = ShotFinder(cfg.shots, known.source_rate), _Samples()
    longest = cfg.shots.max_seconds
    clips: list[Clip] = []
    shot = 0

    def measure(part: Shot) -> None:
        for start, end in _split(part, longest):
            clip = dataclasses.replace(
                known, number=len(clips), shot=shot, start=start, seconds=end - start
            )
            clips.append(_measured(clip, samples.take(start, end), cfg))

    for frame in video.decode_video(path):
        if frame.oddity:
            return [known.drop(Reason.PICTURES, frame.oddity)]
        picture = frame.bgr(_SMALL)
        for found in finder.add(frame.begin, frame.end, picture):
            measure(found)
            shot += 1
        if finder.start is None:
            samples.take(0.0, frame.begin)  # of black, however long
        samples.add(frame, picture)
        # Of a shot without end a part is taken at a time, so that memory does not grow with it.
        start = finder.start
        if start is not None and frame.end - start > 2 * longest + 1:
            measure(Shot(start, start + longest))
            finder.start = start + longest
    for found in finder.finish():
        measure(found)
    return clips or [known.drop(Reason.STILL, "all of it is black")]


def _split(shot: Shot, longest: float) -> list[tuple[float, float]]:
    """Equal parts, none longer than `longest`."""
    count = max(math.ceil((shot.end - shot.start) / longest - 1e-3), 1)
    ends = np.linspace(shot.start, shot.end, count + 1).tolist()
    return list(itertools.pairwise(ends))


def _measured(clip: Clip, samples: Sequence[_Sample], cfg: PrepareConfig) -> Clip:
    clip = dataclasses.replace(clip, crop=(0, 0, clip.height, clip.width))
    lumas = [sample.large for sample in samples if sample.large is not None]
    if cfg.crop_bars and lumas:
        clip = dataclasses.replace(clip, crop=_scaled(bars.find_picture(lumas), lumas[0], clip))
    rate = clip.source_rate / math.ceil(clip.source_rate / cfg.store.max_frame_rate)
    clip = dataclasses.replace(clip, frame_rate=rate)
    height, width = clip.crop[2:]
    if clip.seconds < cfg.shots.min_seconds - video.TICK or not samples:
        return clip.drop(Reason.SHORT, f"{clip.seconds:.2f} s")
    if min(height, width) < cfg.store.min_side:
        return clip.drop(Reason.SMALL, f"{width} x {height} between its bars")
    smalls = [_cropped(sample.small, clip) for sample in samples]
    moves = motion.score([sample.begin for sample in samples], smalls)
    clip = dataclasses.replace(clip, motion=round(moves, 4), hashes=hashes.hash_clip(smalls))
    if cfg.min_motion is not None and moves < cfg.min_motion:
        return clip.drop(Reason.STILL, f"{moves:.2f} under {cfg.min_motion:g}")
    return clip


def _scaled(
    box: tuple[int, int, int, int], picture: np.ndarray, clip: Clip
) -> tuple[int, int, int, int]:
    """A box of a picture that may be reduced, in the source's pixels; rounded inwards."""
    down, across = clip.height / picture.shape[0], clip.width / picture.shape[1]
    top, left = math.ceil(box[0] * down), math.ceil(box[1] * across)
    bottom = math.floor((box[0] + box[2]) * down + 1e-6)
    right = math.floor((box[1] + box[3]) * across + 1e-6)
    return top, left, bottom - top, right - left


def _cropped(small: np.ndarray, clip: Clip) -> np.ndarray:
    down, across = small.shape[0] / clip.height, small.shape[1] / clip.width
    top, left, height, width = clip.crop
    rows = slice(math.ceil(top * down), max(math.floor((top + height) * down), 1))
    columns = slice(math.ceil(left * across), max(math.floor((left + width) * across), 1))
    return np.ascontiguousarray(small[rows, columns])
