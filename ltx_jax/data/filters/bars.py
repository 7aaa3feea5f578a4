"""Black bars: where the picture lies in its frame, steady over a clip.

A bar is a flat dark band along an edge of the frame that ends in a straight line. Lettering or a
logo may lie in it: only parts of its rows are bright then. What is dark in the picture itself,
a night sky say, is not flat, or does not end in a straight line across the frame.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

# Grey levels, of 255.
_DARKEST_BAR = 40  # a bar is nowhere brighter at its outermost rows
# Above the bar's level by so much is not the bar; the second shows bars of very dark pictures.
_ABOVE = (8, 3)
_UNEVEN = 0.6  # deviation of blocks of a bar
# Shares.
_EDGE = 0.35  # of the columns that end in the same line, of those that end at all
_CLEAR = 0.25  # of a row that no lettering covers
_MEAN_CLEAR = 0.7  # the same, over all rows of the bar
_DEEPEST = 0.45  # of the frame's side
# Pixels.
_SMALLEST = 3  # a line or two are codecs' doing
_BLOCK = 12
_RIPPLE = 6
_DEEP = 24


def find_picture(lumas: Sequence[UInt8[np.ndarray, "h w"]]) -> tuple[int, int, int, int]:
    """Top, left, height and width of the picture within its frame.

    Args:
      lumas: frames spread over a clip; black is 0.
    """
    brightest = np.maximum.reduce(list(lumas)).astype(np.int16)
    depths = [0, 0, 0, 0]
    for _ in range(2):  # bars on two sides hide those on the others at first
        sides = _sides(_inner(brightest, depths))
        # Lettering may have ended a bar too soon. A dark edge of the picture behind it is no bar.
        depths = [
            known + _depth(side, _ABOVE[:1] if known else _ABOVE)
            for known, side in zip(depths, sides, strict=True)
        ]
    top, _, left, _ = depths
    return top, left, *_inner(brightest, depths).shape


def _inner(picture: np.ndarray, depths: Sequence[int]) -> np.ndarray:
    """The picture without its bars at the top, bottom, left and right."""
    (height, width), (top, bottom, left, right) = picture.shape, depths
    return picture[top : height - bottom, left : width - right]


def _sides(picture: np.ndarray) -> list[np.ndarray]:
    """The picture with its top, bottom, left and right edge uppermost."""
    return [picture, picture[::-1], picture.T, picture.T[::-1]]


def _depth(high: np.ndarray, margins: Sequence[int]) -> int:
    """Rows of a bar at the top, by the first margin above its level that shows one; 0 without."""
    if int(len(high) * _DEEPEST) <= _SMALLEST:
        return 0
    level = float(np.median(high[:2]))
    if level > _DARKEST_BAR:
        return 0
    return next((depth for above in margins if (depth := _dark_depth(high, level + above))), 0)


def _dark_depth(high: np.ndarray, darkest: float) -> int:
    """Rows of a bar at the top, nowhere brighter than `darkest`; 0 without one."""
    dark = high[: int(len(high) * _DEEPEST) + 3] <= darkest
    clear = dark.mean(axis=1)
    # Rows y with dark pixels above and bright ones below: two rows apart, for edges are soft.
    above, below = dark[1:-2], ~(dark[2:-1] & dark[3:])
    ends = (above & below & dark[:-3]).sum(axis=1)
    picture = (~dark).any(axis=0).sum()  # columns that are not dark all the way
    if not picture:
        return 0
    edge = ends / picture + 1e-6 * np.arange(
        len(ends)
    )  # of equal ones the last, the next is bright
    mean_clear = np.cumsum(clear) / np.arange(1, len(clear) + 1)
    rows = np.arange(2, len(edge) + 2)
    least_clear = np.minimum.accumulate(clear)
    good = (
        (edge >= _EDGE)
        & (mean_clear[rows - 1] >= _MEAN_CLEAR)
        & (least_clear[rows - 1] >= _CLEAR)
        & (rows >= _SMALLEST)
    )
    for index in np.argsort(-np.where(good, edge, -1.0), kind="stable")[: int(good.sum())]:
        depth = int(rows[index])
        # Beside the edge codecs leave ripples.
        if _is_flat(high[: max(depth - _RIPPLE, depth // 2)], darkest):
            return depth
    return 0


def _is_flat(band: np.ndarray, darkest: float) -> bool:
    """Whether what is dark in a band is as even as a bar, averaged over blocks against noise."""
    rows = -(-len(band) // max(round(len(band) / _BLOCK), 1))
    means = []
    for top in range(0, len(band), rows):
        for left in range(0, band.shape[1], _BLOCK):
            block = band[top : top + rows, left : left + _BLOCK]
            dark = block[block <= darkest]
            if dark.size >= block.size / 2:
                means.append(dark.mean())
    # Thin bars are all ripples, deep ones hardly feel them.
    limit = _UNEVEN * (2.0 if len(band) < _RIPPLE else 1.0 if len(band) < _DEEP else 0.6)
    return len(means) > 1 and float(np.std(means)) <= limit
