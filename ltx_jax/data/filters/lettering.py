"""A cheap text detector: the fraction of a picture that subtitles, logos and watermarks cover.

A line of text is a band with many strokes side by side, all of one brightness on a background of
another. Lines of usual sizes and contrasts are detected. The setting `text.detector` replaces the
detector, for example by a model.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import UInt8

_HEIGHT = 360  # pixels, to which pictures are scaled; other lengths refer to it
_MIN_LINE, _MAX_LINE = 7, 70  # height of a line of text
_GAP = 13  # largest gap between letters of a word
# Grey levels, in [0, 255].
_EDGE = 50  # least gradient at the edge of a stroke
_CONTRAST = 70.0  # least difference between strokes and background
_SPREAD = 0.45  # largest deviation within strokes and background, relative to their difference
_STROKES = 0.7  # least number of strokes in a row of pixels, per length of one line height


def text_fraction(frames: UInt8[np.ndarray, "t h w 3"]) -> float:
    """The fraction of the picture, in [0, 1], that text covers, on average over the frames."""
    return float(np.mean([_fraction_of_frame(frame) for frame in frames]))


share = text_fraction  # the name in the setting `text.detector`, which data sets store


def _fraction_of_frame(frame: np.ndarray) -> float:
    scale = _HEIGHT / frame.shape[0]
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=interpolation)
    covered = np.zeros(grey.shape, np.bool_)
    for top, left, height, width in _bands(grey):
        if _is_text(grey[top : top + height, left : left + width]):
            covered[top : top + height, left : left + width] = True
    return float(covered.mean())


def _bands(grey: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (top, left, height, width) of regions with many neighbouring edges."""
    gradient = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    edges = (gradient >= _EDGE).astype(np.uint8)
    joined = cv2.morphologyEx(edges, cv2.MORPH_CLOSE, np.ones((1, _GAP), np.uint8))
    joined = cv2.morphologyEx(joined, cv2.MORPH_OPEN, np.ones((3, _GAP), np.uint8))
    count, _, boxes, _ = cv2.connectedComponentsWithStats(joined)
    for left, top, width, height, area in boxes[1:count]:
        if (
            _MIN_LINE <= height <= _MAX_LINE
            and width >= 1.5 * height
            and area >= 0.5 * width * height
        ):
            yield int(top), int(left), int(height), int(width)


def _is_text(band: np.ndarray) -> bool:
    """Whether a band consists of strokes on a background."""
    _, strokes = cv2.threshold(band, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    bright = strokes.astype(bool)
    if bright.all() or not bright.any():
        return False
    high, low = float(band[bright].mean()), float(band[~bright].mean())
    spread = np.sqrt(np.mean((band - np.where(bright, high, low)) ** 2))
    stroke_counts = (np.diff(strokes.astype(np.int8), axis=1) == 1).sum(axis=1)
    middle = stroke_counts[len(stroke_counts) // 4 : len(stroke_counts) - len(stroke_counts) // 4]
    min_strokes = max(_STROKES * band.shape[1] / band.shape[0], 3)
    return (
        high - low >= _CONTRAST
        and spread <= _SPREAD * (high - low)
        and float(np.median(middle)) >= min_strokes
    )
