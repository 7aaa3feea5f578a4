"""Degrades the frames of conditions as in the training of the released models."""

import io
import math
from fractions import Fraction

import av
import numpy as np
from jaxtyping import Float32, UInt8

from ltx_jax.data import pixels, writing


def prepare_condition(
    frames: UInt8[np.ndarray, "t h w 3"],
    height: int,
    width: int,
    *,
    blur: bool = True,
    crf: int = 29,
) -> Float32[np.ndarray, "t {height} {width} 3"]:
    """Degrades condition frames as in the training of the released models; returns [-1, 1].

    Each frame is cropped to the aspect ratio, resized (bicubic), slightly blurred, and encoded and
    decoded by H.264: the models produce little motion if a condition is sharper than a video
    (official `inference.py` and `crf_compressor.py`). The official script does not resize here, so
    it blurs and pads at the source's scale, and it cuts odd sizes; this function resizes first and
    keeps odd sizes.

    Args:
      frames: RGB.
      height: height of the result, in pixels.
      width: width of the result, in pixels.
      blur: apply the blur, a Gaussian of 3 x 3 pixels with sigma 1.
      crf: quality of the H.264 round trip; 0 leaves it out.
    """
    levels = pixels.resized(pixels.crop_to_aspect(frames, height, width), height, width)
    unit = levels.astype(np.float32) / 255
    if blur:
        unit = gaussian_blur(unit)
    if crf:
        # Truncated, not rounded, as the official script does: half a level darker.
        levels = np.stack([_compressed(frame, crf) for frame in (unit * 255).astype(np.uint8)])
        unit = levels.astype(np.float32) / 255
    return unit * 2 - 1


def gaussian_blur(frames: Float32[np.ndarray, "t h w c"]) -> Float32[np.ndarray, "t h w c"]:
    """Blurs by a 3 x 3 Gaussian of standard deviation 1; edges are mirrored."""
    side = math.exp(-0.5)
    for axis in (1, 2):
        if frames.shape[axis] == 1:  # nothing to mirror
            continue
        widths = [(0, 0)] * 4
        widths[axis] = (1, 1)
        padded = np.pad(frames, widths, mode="reflect")
        before, after = (np.roll(padded, shift, axis) for shift in (1, -1))
        blurred = (padded + side * (before + after)) / (1 + 2 * side)
        frames = blurred.take(np.arange(1, frames.shape[axis] + 1), axis)
    return frames


def _compressed(picture: np.ndarray, crf: int) -> np.ndarray:
    """One picture after an H.264 encoder and decoder, with the official encoder's settings."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        encoding = writing.H264._replace(
            options={**writing.H264.options, "crf": str(crf), "preset": "veryfast"}
        )
        writing.encode(container, [picture], Fraction(1), encoding, tagged=False)
    file.seek(0)
    with av.open(file, "r") as container:
        decoded = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return decoded[: picture.shape[0], : picture.shape[1]]
