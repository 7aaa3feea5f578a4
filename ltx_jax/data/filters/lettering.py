"""A cheap detector of lettering: how much of the picture subtitles, logos and watermarks cover.

A line of text is a band of many strokes side by side, all of them of one brightness on a ground of
another. It sees lines of usual sizes, drawn with some contrast; a model may be put in its place.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import UInt8

# Pixels of a picture that is 360 high.
_HEIGHT = 360
_LOWEST, _HIGHEST = 7, 70  # lines
_GAP = 13  # between letters of a word, at most
_EDGE = 50  # the least step of brightness, of 255
_CONTRAST = 70.0  # between strokes and ground
_SPREAD = 0.45  # deviation within strokes and ground, of their contrast, at most
_STROKES = 0.7  # on a row, for every height of the line along it, at least


def share(frames: UInt8[np.ndarray, "t h w 3"]) -> float:
    """The share of the picture that lines of text cover, on average over the frames."""
    return float(np.mean([_share(frame) for frame in frames]))


def _share(frame: np.ndarray) -> float:
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
    """Boxes where edges lie side by side: top, left, height, width."""
    gradient = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    edges = (gradient >= _EDGE).astype(np.uint8)
    joined = cv2.morphologyEx(edges, cv2.MORPH_CLOSE, np.ones((1, _GAP), np.uint8))
    joined = cv2.morphologyEx(joined, cv2.MORPH_OPEN, np.ones((3, _GAP), np.uint8))
    count, _, boxes, _ = cv2.connectedComponentsWithStats(joined)
    for left, top, width, height, area in boxes[1:count]:
        if _LOWEST <= height <= _HIGHEST and width >= 1.5 * height and area >= 0.5 * width * height:
            yield int(top), int(left), int(height), int(width)


def _is_text(band: np.ndarray) -> bool:
    """Whether a band is strokes on a ground."""
    _, strokes = cv2.threshold(band, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    bright = strokes.astype(bool)
    if bright.all() or not bright.any():
        return False
    high, low = float(band[bright].mean()), float(band[~bright].mean())
    spread = np.sqrt(np.mean((band - np.where(bright, high, low)) ** 2))
    begins = (np.diff(strokes.astype(np.int8), axis=1) == 1).sum(axis=1)
    middle = begins[len(begins) // 4 : len(begins) - len(begins) // 4]
    wanted = max(_STROKES * band.shape[1] / band.shape[0], 3)
    return (
        high - low >= _CONTRAST
        and spread <= _SPREAD * (high - low)
        and float(np.median(middle)) >= wanted
    )
