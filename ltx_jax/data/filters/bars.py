"""Finds black bars: the rectangle of the picture within its frame, the same for a whole clip.

A bar is a flat dark band along an edge of the frame that ends in a straight line. It may contain
text or a logo, which brightens only parts of its rows. Dark areas of the picture itself, such as a
night sky, are not flat or do not end in a straight line across the frame.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

# Grey levels, in [0, 255].
_MAX_BAR_LEVEL = 40  # largest median level of a bar's two outermost rows
# Pixels this much brighter than the bar do not belong to it. The second, smaller margin finds the
# bars of very dark pictures.
_MARGINS = (8, 3)
_UNEVEN = 0.6  # largest standard deviation between the means of a bar's blocks
# Fractions.
_EDGE = 0.35  # least fraction of the columns with a bar's end that have it in the same row
_CLEAR = 0.25  # least dark fraction of each row of a bar; the rest may be text
_MEAN_CLEAR = 0.7  # the same, as the mean over all rows of a bar
_MAX_DEPTH = 0.45  # largest depth of a bar, relative to the frame's side
# Pixels.
_MIN_ROWS = 3  # codecs alone can darken a row or two
_BLOCK = 12  # side of the blocks whose means are compared
_RIPPLE = 6  # width of the codec's ripples beside an edge
_DEEP = 24  # rows from which a bar is deep, so that ripples hardly matter


def find_picture(lumas: Sequence[UInt8[np.ndarray, "h w"]]) -> tuple[int, int, int, int]:
    """Finds the picture within its frame: (top, left, height, width) in pixels.

    Args:
      lumas: frames spread over a clip; black is 0.
    """
    brightest = np.maximum.reduce(list(lumas)).astype(np.int16)
    depths = [0, 0, 0, 0]
    for _ in range(2):  # bars on two sides hide those on the other two in the first pass
        sides = _turned_edges(_inner(brightest, depths))
        # The first pass may stop at text within a bar. After a bar was found, only the larger
        # margin is used, as a dark edge of the picture behind it is not a bar.
        depths = [
            depth + _depth(side, _MARGINS[:1] if depth else _MARGINS)
            for depth, side in zip(depths, sides, strict=True)
        ]
    top, _, left, _ = depths
    return top, left, *_inner(brightest, depths).shape


def _inner(picture: np.ndarray, depths: Sequence[int]) -> np.ndarray:
    """The picture without its bars at the top, bottom, left and right."""
    (height, width), (top, bottom, left, right) = picture.shape, depths
    return picture[top : height - bottom, left : width - right]


def _turned_edges(picture: np.ndarray) -> list[np.ndarray]:
    """Four views of the picture, with its top, bottom, left and right edge at the top."""
    return [picture, picture[::-1], picture.T, picture.T[::-1]]


def _depth(picture: np.ndarray, margins: Sequence[int]) -> int:
    """Rows of a bar at the top, by the first margin that finds one; 0 if there is none."""
    if int(len(picture) * _MAX_DEPTH) <= _MIN_ROWS:
        return 0
    level = float(np.median(picture[:2]))
    if level > _MAX_BAR_LEVEL:
        return 0
    return next((depth for margin in margins if (depth := _dark_depth(picture, level + margin))), 0)


def _dark_depth(picture: np.ndarray, max_level: float) -> int:
    """Rows of a bar at the top whose pixels are at most `max_level`; 0 if there is none."""
    dark = picture[: int(len(picture) * _MAX_DEPTH) + 3] <= max_level
    clear = dark.mean(axis=1)
    # Rows with dark pixels above and bright ones below: two rows apart, as edges are soft.
    above, below = dark[1:-2], ~(dark[2:-1] & dark[3:])
    ends = (above & below & dark[:-3]).sum(axis=1)
    num_columns = (dark).any(axis=0).sum()  # columns in which the bar ends
    if not num_columns:
        return 0
    # Among equal edges the last one wins, as the row after it is bright.
    edge = ends / num_columns + 1e-6 * np.arange(len(ends))
    mean_clear = np.cumsum(clear) / np.arange(1, len(clear) + 1)
    rows = np.arange(2, len(edge) + 2)
    least_clear = np.minimum.accumulate(clear)
    is_bar = (
        (edge >= _EDGE)
        & (mean_clear[rows - 1] >= _MEAN_CLEAR)
        & (least_clear[rows - 1] >= _CLEAR)
        & (rows >= _MIN_ROWS)
    )
    for index in np.argsort(-np.where(is_bar, edge, -1.0), kind="stable")[: int(is_bar.sum())]:
        depth = int(rows[index])
        # Rows beside the edge are left out: codecs leave ripples there.
        if _is_flat(picture[: max(depth - _RIPPLE, depth // 2)], max_level):
            return depth
    return 0


def _is_flat(band: np.ndarray, max_level: float) -> bool:
    """Whether the dark pixels of a band are as even as a bar. Means over blocks reduce noise."""
    rows = -(-len(band) // max(round(len(band) / _BLOCK), 1))
    means = []
    for top in range(0, len(band), rows):
        for left in range(0, band.shape[1], _BLOCK):
            block = band[top : top + rows, left : left + _BLOCK]
            dark = block[block <= max_level]
            if dark.size >= block.size / 2:
                means.append(dark.mean())
    # The limit is larger for thin bars, which consist of ripples, and smaller for deep ones.
    limit = _UNEVEN * (2.0 if len(band) < _RIPPLE else 1.0 if len(band) < _DEEP else 0.6)
    return len(means) > 1 and float(np.std(means)) <= limit
