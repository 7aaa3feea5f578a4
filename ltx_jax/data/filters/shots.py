"""Shots: PySceneDetect finds the cuts, and runs of black part what fades."""

import collections
import dataclasses

import cv2
import numpy as np
from jaxtyping import UInt8
from scenedetect import AdaptiveDetector, FrameTimecode

from ltx_jax.config.preparation import ShotsConfig

_BLACK = 28  # of 255: no pixel of a black picture is brighter, but for a few of them
_FEW = 99.5  # percent are not brighter
_MEMORY = 6  # frames: two that the detector looks ahead, a cut, three before it
_NEAREST = 0.25  # seconds between cuts


@dataclasses.dataclass(frozen=True)
class Shot:
    """An unbroken take, without the black before and after it; in seconds."""

    start: float
    end: float


class ShotFinder:
    """Finds shots while frames go by; a shot is known soon after it has ended.

    Args:
      cfg: the detector's.
      frame_rate: of the source, on average.
    """

    def __init__(self, cfg: ShotsConfig, frame_rate: float):
        self._rate, self._cfg = frame_rate, cfg
        self._detector = AdaptiveDetector(
            adaptive_threshold=cfg.ratio,
            min_scene_len=max(round(_NEAREST * frame_rate), 1),
            min_content_val=cfg.min_change,
        )
        # Number, begin and a thumbnail of the latest frames.
        self._latest: collections.deque[tuple[int, float, np.ndarray]] = collections.deque(
            maxlen=_MEMORY
        )
        self._count = 0
        self.start: float | None = None  # of the shot that goes on; None: it is black
        self._end = 0.0

    def add(self, begin: float, end: float, picture: UInt8[np.ndarray, "h w 3"]) -> list[Shot]:
        """Takes the next frame; gives the shots that are over, none or one.

        Args:
          begin: of the frame, in seconds, and
          end: of it.
          picture: a small one, blue first.
        """
        thumbnail = cv2.resize(picture, (32, 18), interpolation=cv2.INTER_AREA)
        self._latest.append((self._count, begin, thumbnail.astype(np.float32)))
        code = FrameTimecode(self._count, fps=self._rate)
        self._count += 1
        cuts = self._detector.process_frame(code, picture) if self._cfg.detect else []
        found = []
        for cut in cuts:
            at = self._begin(cut.frame_num)
            if self.start is not None and at > self.start and not self._is_flash(cut.frame_num):
                found.append(Shot(self.start, at))
                self.start = at
        # Cuts are known two frames late, black at once.
        if self._cfg.detect and np.percentile(picture[::3, ::3], _FEW) <= _BLACK:
            if self.start is not None and begin > self.start:
                found.append(Shot(self.start, begin))
            self.start = None
        elif self.start is None:
            self.start = begin
        self._end = end
        return found

    def _begin(self, number: int) -> float:
        return next(begin for found, begin, _ in self._latest if found == number)

    def _is_flash(self, number: int) -> bool:
        """Whether the picture is back by now to what it was before a supposed cut."""
        now = self._latest[-1][2]
        before = [picture for found, _, picture in self._latest if found < number]
        at = next(picture for found, _, picture in self._latest if found == number)
        if not before:
            return False
        change = np.abs(at - before[-1]).mean()
        return bool(min(np.abs(now - picture).mean() for picture in before) < change / 2)

    def finish(self) -> list[Shot]:
        """The last shot, if the source does not end in black."""
        return [] if self.start is None else [Shot(self.start, self._end)]
