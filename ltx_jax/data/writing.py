"""Videos and pictures as files."""

import math
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8
from PIL import Image

from ltx_jax.runtime import files

# These flags lower chroma by 0.03 to 0.07 of a level, and encoding by x264 at crf 18 raises it as
# much. With exact rounding (ACCURATE_RND), blue would drift by a whole level in ten encodings.
_CONVERT = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INP


def _check_frames(frames: np.ndarray, fps: float | int) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(
            f"frames must be uint8 (t, h, w, 3), none of them 0, got {frames.dtype} {frames.shape}"
        )
    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be positive, got {fps}")


def write_video(
    path: str | os.PathLike,
    frames: UInt8[np.ndarray, "t h w 3"] | Iterable[UInt8[np.ndarray, "h w 3"]],
    fps: float | int,
    *,
    crf: int = 18,
    repeatable: bool = False,
) -> None:
    """Writes an MP4 that browsers play: H.264, 4:2:0, BT.709, index first.

    Widths and heights of 4:2:0 are even: an odd one is made even by repeating the last column or
    row, so that no pixel is lost. The file appears under its name only when it is complete.

    Args:
      path: ends in .mp4; missing folders are made.
      frames: RGB; an array, or an iterable of frames if they do not fit into memory together.
      fps: frames per second.
      crf: 0 (lossless but for 4:2:0) to 51; 18 looks like the original.
      repeatable: makes the file the same each time and on every machine; takes a little longer.

    Raises:
      ValueError: if the frames are not uint8 (t, h, w, 3) or the file cannot be written.
    """
    if isinstance(frames, np.ndarray):
        _check_frames(frames, fps)
    if Path(path).suffix.lower() != ".mp4":
        raise ValueError(f"{path} must end in .mp4 (write_gif writes a GIF)")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must lie between 0 and 51, got {crf}")
    with files.atomic_write(path) as temporary:
        options = {"movflags": "+faststart"}
        with av.open(os.fspath(temporary), "w", format="mp4", options=options) as container:
            rate = Fraction(fps).limit_denominator(1001)
            settings = {"crf": str(crf)}
            if repeatable:  # x264's faster sums differ from one call to the next
                settings |= {"threads": "1", "x264-params": "cpu-independent=1"}
            encode_h264(container, frames, rate, settings, tagged=True)


def encode_h264(
    container: av.container.OutputContainer,
    frames: Iterable[np.ndarray],
    rate: Fraction,
    options: dict[str, str],
    tagged: bool,
) -> None:
    """Encodes H.264 into an open container: BT.709 with tags if `tagged`, else BT.601 without."""
    stream = container.add_stream("libx264", rate=rate, options=options)
    colours: dict[str, Any] = {}
    if tagged:
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = 1  # BT.709
        context.color_range = 1  # 16 to 235
        colours = {"dst_colorspace": "ITU709", "dst_color_range": "MPEG", "interpolation": _CONVERT}
    stream.pix_fmt = "yuv420p"
    converter, begun = VideoReformatter(), False
    for picture in map(_even, frames):
        if not begun:
            begun, (stream.height, stream.width) = True, picture.shape[:2]
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        converted = converter.reformat(frame, format="yuv420p", threads=1, **colours)
        container.mux(stream.encode(converted))
    container.mux(stream.encode())


def _even(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    if height % 2 or width % 2:
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(picture)


def write_image(path: str | os.PathLike, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a picture in the format of the file's ending (PNG, JPEG, ...)."""
    if Path(path).suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{path} does not end in the name of a picture format, such as .png")
    with files.atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary)


def write_gif(
    path: str | os.PathLike,
    frames: UInt8[np.ndarray, "t h w 3"],
    fps: float | int,
    *,
    colours: int = 128,
) -> None:
    """Writes an endless GIF with one palette for all frames, so that flat areas do not flicker.

    GIFs count time in 1/100 s: delays alternate so that the whole lasts as long as it should.
    Viewers do not play delays under 0.02 s; a higher rate drops frames.
    """
    _check_frames(frames, fps)
    kept = np.arange(0, len(frames), math.ceil(fps / 50))
    begins = np.round(np.append(kept, len(frames)) * 100 / fps)
    milliseconds = [int(10 * max(step, 2)) for step in np.diff(begins)]
    # One megapixel, spread over all frames, is enough to choose the colours.
    stride = math.ceil(math.sqrt(len(kept) * frames[0, ..., 0].size / 2**20))
    sample = frames[kept, ::stride, ::stride]
    mosaic = Image.fromarray(np.ascontiguousarray(sample).reshape(-1, *sample.shape[2:]))
    palette = mosaic.quantize(colours, method=Image.Quantize.MEDIANCUT)
    images = [
        Image.fromarray(frames[i]).quantize(palette=palette, dither=Image.Dither.NONE) for i in kept
    ]
    with files.atomic_write(path) as temporary:
        images[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=milliseconds,
            loop=0,
        )
