"""Finds the emoji and the background in a video of one emoji, whoever made the video.

Scenes keep their emoji inside the picture, so the edge of the picture is background. All kinds of
backgrounds but textures change linearly along each row: a row of the background is interpolated
between its two ends, and what differs from it is the emoji.
"""

import dataclasses

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float32, UInt8

from ltx_jax.emoji.scenes import COLOURS, GRADIENTS, Backdrop

_PLAIN, _TEXTURED = 14.0, 32.0  # grey levels by which an emoji differs from its background
_EDGE = 5  # pixels along the edge whose median replaces each of them
_SMALL = 0.12  # parts smaller than this fraction of the largest are noise
_STRIP = 3  # pixels at an edge whose median is a colour of the background
_NAMES = tuple(COLOURS)
_PALETTE = np.array([COLOURS[name] for name in _NAMES], np.float32)

Frames = UInt8[np.ndarray, "t h w 3"]
Masks = Bool[np.ndarray, "t h w"]


def masks(frames: Frames, backdrop: Backdrop) -> Masks:
    """The pixels of the emoji in each frame.

    Args:
      frames: a video of one emoji.
      backdrop: the background that the video should have; textures need a higher threshold.
    """
    x = frames.astype(np.float32)
    by_row = np.abs(x - _interpolated(x, axis=2)).max(axis=-1)
    by_column = np.abs(x - _interpolated(x, axis=1)).max(axis=-1)
    # A floor changes along columns, but not linearly. Elsewhere, both have to differ.
    difference = by_row if backdrop.kind == "floor" else np.minimum(by_row, by_column)
    threshold = _PLAIN if backdrop.kind in ("plain", "gradient", "floor") else _TEXTURED
    return np.stack([_cleaned(one) for one in difference > threshold])


def _interpolated(
    video: Float32[np.ndarray, "t h w 3"], axis: int
) -> Float32[np.ndarray, "t h w 3"]:
    """Interpolates from one edge of the picture to the opposite one, without the noise there."""
    window, shape = [1, 1, 1, 1], [1, 1, 1, 1]
    window[3 - axis], shape[axis] = _EDGE, video.shape[axis]
    first, last = (
        scipy.ndimage.median_filter(np.take(video, [i], axis), window, mode="nearest")
        for i in (0, -1)
    )
    share = np.linspace(0, 1, shape[axis], dtype=np.float32).reshape(shape)
    return first + share * (last - first)


def _cleaned(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Without specks and holes."""
    filled = np.asarray(scipy.ndimage.binary_fill_holes(scipy.ndimage.binary_opening(mask)), bool)
    labels = np.zeros(mask.shape, np.int32)
    scipy.ndimage.label(filled, np.ones((3, 3)), output=labels)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    return (areas >= max(_SMALL * areas.max(), 1))[labels]


def grown(found: Masks, pixels: int) -> Masks:
    """The masks and what is near them."""
    return np.asarray(scipy.ndimage.binary_dilation(found, np.ones((1, 3, 3)), pixels), bool)


@dataclasses.dataclass(frozen=True)
class Box:
    """The square around an emoji, in pixels."""

    row: float  # of its centre
    column: float
    side: float


def box(mask: Bool[np.ndarray, "h w"]) -> Box | None:
    """The square around a mask; None if it is empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    return Box((rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2, float(side))


def cut_out(
    frame: Float32[np.ndarray, "h w 3"], alpha: Float32[np.ndarray, "h w"], size: int
) -> Float32[np.ndarray, "{size} {size} 3"] | None:
    """The emoji alone on grey, scaled so that its box fills a square; None if there is none.

    Args:
      frame: pixels in [0, 255].
      alpha: the share of the emoji in each pixel, in [0, 1].
      size: side of the square in pixels.
    """
    found = box(alpha > 0.3)
    if found is None:
        return None
    grey = np.float32(128)
    layer = grey + (frame - grey) * alpha[..., None]
    step = found.side * 1.06 / size
    steps = (np.arange(size) + 0.5 - size / 2) * step - 0.5
    places = np.meshgrid(found.row + steps, found.column + steps, indexing="ij")
    if step > 1:
        layer = scipy.ndimage.gaussian_filter(layer, (0.4 * step, 0.4 * step, 0))
    channels = [
        scipy.ndimage.map_coordinates(layer[..., c], places, order=1, cval=128.0) for c in range(3)
    ]
    return np.stack(channels, axis=-1).astype(np.float32)


def emoji_of(
    frame: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], size: int
) -> Float32[np.ndarray, "{size} {size} 3"] | None:
    """`cut_out` of a frame in which a mask shows the emoji."""
    alpha = scipy.ndimage.gaussian_filter(mask.astype(np.float32), 0.5)
    return cut_out(frame.astype(np.float32), alpha, size)


def background_is_right(frames: Frames, found: Masks, backdrop: Backdrop) -> bool:
    """Whether the named colours of a background are where they should be.

    The colour of an area is the median of its pixels that no emoji covers in any frame, and is
    called by the nearest of `scenes.COLOURS`. A gradient may lie in any direction that captions
    know, since few captions name its direction.
    """
    if len(backdrop.colours) == 1:
        free = frames[np.logical_not(grown(found, 2))]
        return len(free) > 0 and _name(np.median(free, axis=0)) == backdrop.colours[0]
    top, bottom = frames[:, :_STRIP], frames[:, -_STRIP:]
    left, right = frames[:, :, :_STRIP], frames[:, :, -_STRIP:]
    ends = {
        "left to right": (left, right),
        "top to bottom": (top, bottom),
        "corner to corner": (top[:, :, :_STRIP], bottom[:, :, -_STRIP:]),
    }
    directions = ("top to bottom",) if backdrop.kind == "floor" else tuple(GRADIENTS)
    return any(
        tuple(_name(np.median(end.reshape(-1, 3), axis=0)) for end in ends[direction])
        == backdrop.colours
        for direction in directions
    )


def _name(colour: np.ndarray) -> str:
    return _NAMES[int(np.argmin(((_PALETTE - colour) ** 2).sum(axis=1)))]
