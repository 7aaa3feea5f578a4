"""Finds shots: PySceneDetect detects cuts, and runs of black frames separate faded shots."""

import collections
import dataclasses

import cv2
import numpy as np
from jaxtyping import UInt8
from scenedetect import AdaptiveDetector, FrameTimecode

from ltx_jax.config.preparation import ShotsConfig

_BLACK = 28  # largest grey level, of 255, of the pixels of a black frame,
_BLACK_PERCENT = 99.5  # except for the brightest half percent of them
_MEMORY = 6  # frames: the detector's look-ahead of two, the frame of a cut, and three before it
_MIN_DISTANCE = 0.25  # seconds between cuts


@dataclasses.dataclass(frozen=True)
class Shot:
    """A continuous take, in seconds, without black frames before and after it."""

    start: float
    end: float


class ShotFinder:
    """Finds shots in a stream of frames. A shot is returned within two frames of its end.

    Args:
      cfg: settings of the detector.
      frame_rate: average frames per second of the source.
    """

    def __init__(self, cfg: ShotsConfig, frame_rate: float):
        self._rate, self._cfg = frame_rate, cfg
        self._detector = AdaptiveDetector(
            adaptive_threshold=cfg.ratio,
            min_scene_len=max(round(_MIN_DISTANCE * frame_rate), 1),
            min_content_val=cfg.min_change,
        )
        # Index, start time and thumbnail of the latest frames.
        self._latest: collections.deque[tuple[int, float, np.ndarray]] = collections.deque(
            maxlen=_MEMORY
        )
        self._count = 0
        self.start: float | None = None  # of the current shot; None in black frames
        self._end = 0.0

    def add(self, begin: float, end: float, picture: UInt8[np.ndarray, "h w 3"]) -> list[Shot]:
        """Processes the next frame; returns the shots that have ended, in order.

        Args:
          begin: start of the frame, in seconds.
          end: end of the frame, in seconds.
          picture: the frame in a small size, in BGR.
        """
        thumbnail = cv2.resize(picture, (32, 18), interpolation=cv2.INTER_AREA)
        self._latest.append((self._count, begin, thumbnail.astype(np.float32)))
        code = FrameTimecode(self._count, fps=self._rate)
        self._count += 1
        cuts = self._detector.process_frame(code, picture) if self._cfg.detect else []
        ended = []
        for cut in cuts:
            at = self._begin(cut.frame_num)
            if self.start is not None and at > self.start and not self._is_flash(cut.frame_num):
                ended.append(Shot(self.start, at))
                self.start = at
        # The detector reports cuts two frames late; black frames are recognised at once.
        if self._cfg.detect and np.percentile(picture[::3, ::3], _BLACK_PERCENT) <= _BLACK:
            if self.start is not None and begin > self.start:
                ended.append(Shot(self.start, begin))
            self.start = None
        elif self.start is None:
            self.start = begin
        self._end = end
        return ended

    def _begin(self, number: int) -> float:
        return next(begin for index, begin, _ in self._latest if index == number)

    def _is_flash(self, number: int) -> bool:
        """Whether the latest frame looks again like those before a detected cut."""
        now = self._latest[-1][2]
        before = [picture for index, _, picture in self._latest if index < number]
        at = next(picture for index, _, picture in self._latest if index == number)
        if not before:
            return False
        change = np.abs(at - before[-1]).mean()
        return bool(min(np.abs(now - picture).mean() for picture in before) < change / 2)

    def finish(self) -> list[Shot]:
        """Ends the stream; returns the last shot unless the source ends in black."""
        return [] if self.start is None else [Shot(self.start, self._end)]
