"""A shift of levels that keeps the mean colour of a video through H.264.

H.264 rounds halves up in its predictions and transforms, and errors below about half a level are
too small for its quantiser to correct. So every encoding raises luma and chroma by 0.01 to 0.2 of a
level, which depends on the content and the quantiser (chroma most at a quantiser of 16, where the
smallest coefficients fall on halves), and red and blue change by a level in ten generations. Here
the change is measured on one encoding, and subtracted before the next.
"""

import functools
import io
from collections.abc import Iterable
from typing import Any, NamedTuple

import av
import numpy as np
from jaxtyping import Float, Int8

from ltx_jax.data.frames import Converter


class Shift(NamedTuple):
    """What is added to Y, Cb and Cr, in levels of 8 bits; fractions of a level by dithering."""

    y: float
    cb: float
    cr: float


NONE = Shift(0.0, 0.0, 0.0)
# About what encoding with x264 at crf 18 needs. The closer it is, the more exact is what
# `corrected` returns: the quantiser swallows a tenth to a third of a change.
USUAL = Shift(-0.03, -0.04, -0.04)


def add(frame: av.VideoFrame, shift: Shift) -> None:
    """Adds a shift to the planes of a YUV frame of 8 bits and limited range, in place.

    For a fraction of a level, that fraction of the pixels gets a whole level. These are the same
    pixels in every frame, since a pattern that changes would cost bits.
    """
    for plane, levels in zip(frame.planes, shift, strict=True):
        buffer: Any = plane
        rows = np.frombuffer(buffer, np.uint8).reshape(plane.height, plane.line_size)
        # Limited range leaves 16 levels on both sides, so nothing wraps around.
        rows[:, : plane.width] += _dithered(plane.height, plane.width, levels).view(np.uint8)


@functools.lru_cache(maxsize=8)
def _dithered(height: int, width: int, levels: float) -> Int8[np.ndarray, "h w"]:
    """Whole levels whose mean is `levels`, spread evenly.

    The thresholds are Roberts' low-discrepancy sequence R2, which lies as evenly in two dimensions
    as multiples of the golden ratio in one.
    """
    y, x = np.mgrid[:height, :width]
    thresholds = (0.7548776662466927 * x + 0.5698402909980532 * y) % 1
    return np.floor(thresholds + levels).astype(np.int8)


def corrected(shift: Shift, frames: Iterable[av.VideoFrame], encoded: io.BytesIO) -> Shift:
    """The shift with which encoding keeps the mean of each of red, green and blue.

    Args:
      shift: the one with which the frames were encoded.
      frames: YUV, BT.709 of limited range, before it was added.
      encoded: a video file of them.
    """
    encoded.seek(0)
    with av.open(encoded, "r") as container:
        decoded = _mean(container.decode(video=0))
    red, green, blue = decoded - _mean(frames)
    # ITU-R BT.709, section 3: luma from 16 to 235, chroma from 16 to 240.
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    change = luma * 219 / 255, (blue - luma) / 1.8556 * 224 / 255, (red - luma) / 1.5748 * 224 / 255
    return Shift(*(float(part - of) for part, of in zip(shift, change, strict=True)))


def _mean(frames: Iterable[av.VideoFrame]) -> Float[np.ndarray, "3"]:
    """Means of red, green and blue as they are read: levels outside RGB are clipped."""
    convert = Converter()
    return np.mean([convert(frame, "rgb24").mean(axis=(0, 1)) for frame in frames], axis=0)
