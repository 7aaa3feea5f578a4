"""Videos and pictures as files."""

import io
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.container
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Float, Shaped, UInt8, UInt16
from PIL import Image

from ltx_jax import pixels
from ltx_jax.config import MAX_FRAME_RATE
from ltx_jax.data import level_shift
from ltx_jax.runtime import files

_CONVERT = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND


class Encoding(NamedTuple):
    """How a video is encoded: FFmpeg's names of container, encoder, pixel format and options."""

    container: str
    codec: str
    pixel_format: str
    options: dict[str, str]


# The fastest sums of x264 differ from one call to the next; with this, equal frames give an equal
# file, which takes about 1 % longer.
_REPEATABLE = {"x264-params": "cpu-independent=1"}
H264 = Encoding("mp4", "libx264", "yuv420p", _REPEATABLE)
_ENCODINGS = {
    ".mp4": H264,
    ".webm": Encoding(
        *("webm", "libvpx-vp9", "yuv420p"),
        # Constant quality, with a speed at which a core encodes as fast as x264 does.
        {"crf": "16", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
    ),
    ".mov": Encoding("mov", "prores_ks", "yuv444p10le", {"profile": "4444"}),
}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
OUTPUTS = (*_ENCODINGS, ".gif", *PICTURES)
WAYS = (
    "a video is .mp4, .webm (VP9), .mov (ProRes 4444) or .gif, a single frame .png, .jpg or .webp, "
    "and name_%04d.png is a sequence of 16-bit PNGs"
)
_BT709 = 1  # FFmpeg's number
# Bytes of a video's first frames on which its shift of levels is measured; most videos are shorter.
_MEASURED = 2**28
_NUMBER = re.compile(r"%(?:0(\d+))?d")


def is_sequence(path: str | os.PathLike) -> bool:
    """Whether a path stands for numbered pictures, such as `name_%04d.png`."""
    return Path(path).suffix.lower() == ".png" and bool(_NUMBER.search(Path(path).name))


def is_deep(path: str | os.PathLike) -> bool:
    """Whether the format of a path holds more than 8 bits: `write` then takes float pixels."""
    return is_sequence(path) or Path(path).suffix.lower() == ".mov"


def write(path: str | os.PathLike, frames: Shaped[np.ndarray, "t h w 3"], fps: float | int) -> None:
    """Writes a video, a picture or a sequence of pictures, in the format of the path's ending.

    Args:
      path: its ending is one of `OUTPUTS`; in `name_%04d.png` the number is that of the frame,
        from 0. Missing folders are made.
      frames: RGB, uint8; float in [-1, 1] where `is_deep`.
      fps: frames per second.

    Raises:
      ValueError: for another ending, several frames for one picture, frames of another kind, or a
        file that cannot be written.
    """
    ending = Path(path).suffix.lower()
    if is_deep(path) and not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(
            f"{path} holds more than 8 bits and takes float pixels in [-1, 1], got {frames.dtype}: "
            "convert them, or write bytes with write_video or as another format"
        )
    if is_sequence(path):
        write_sequence(path, map(_words, frames))
    elif ending in PICTURES:
        if len(frames) > 1:
            raise ValueError(f"{path} is one picture, and there are {len(frames)} frames; {WAYS}")
        write_image(path, frames[0])
    elif ending == ".gif":
        write_gif(path, frames, fps, colours=256)
    elif is_deep(path):
        write_video(path, map(_words, frames), fps)
    else:
        write_video(path, frames, fps)


def _words(frame: Float[np.ndarray, "h w 3"]) -> UInt16[np.ndarray, "h w 3"]:
    return np.asarray(pixels.to_nearest_words(frame))


def _check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(
            f"frames must be uint8 (t, h, w, 3), none of them 0, got {frames.dtype} {frames.shape}"
        )


def _check_rate(fps: float | int) -> None:
    if not 0 < fps <= MAX_FRAME_RATE:
        raise ValueError(f"fps must lie between 0 and {MAX_FRAME_RATE:g}, got {fps}")


def write_video(
    path: str | os.PathLike,
    frames: UInt8[np.ndarray, "t h w 3"]
    | Iterable[UInt8[np.ndarray, "h w 3"]]
    | Iterable[UInt16[np.ndarray, "h w 3"]],
    fps: float | int,
    *,
    crf: int = 18,
    repeatable: bool = False,
) -> None:
    """Writes a video, BT.709: MP4 and WebM that browsers play (H.264 and VP9, 4:2:0, index first),
    or MOV for editing (ProRes 4444, 10 bits, 4:4:4).

    Widths and heights of 4:2:0 are even: an odd one is made even by repeating the last column or
    row, so that no pixel is lost. The file appears under its name only when it is complete.

    Args:
      path: ends in .mp4, .webm or .mov; missing folders are made.
      frames: RGB; an array, or an iterable of frames if they do not fit into memory together.
        Levels of 16 bits are for MOV.
      fps: frames per second, at most 1000.
      crf: quality of an MP4, from 0 (lossless but for 4:2:0) to 51; 18 looks like the original.
      repeatable: makes an MP4 the same on machines with any number of cores. It is encoded once, so
        its mean levels may differ from those of the frames by 0.1; other MP4s are encoded twice,
        which brings this below 0.02 (`level_shift`).

    Raises:
      ValueError: if the frames are not uint8 (t, h, w, 3) or the file cannot be written.
    """
    if isinstance(frames, np.ndarray):
        _check_frames(frames)
    _check_rate(fps)
    ending = Path(path).suffix.lower()
    if ending not in _ENCODINGS:
        raise ValueError(f"{path} must end in {', '.join(_ENCODINGS)} (write_gif writes a GIF)")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must lie between 0 and 51, got {crf}")
    encoding, shift = _ENCODINGS[ending], level_shift.NONE
    if encoding.codec not in av.codecs_available:
        raise ValueError(f"{path} needs FFmpeg's {encoding.codec}, which this PyAV lacks: use .mp4")
    rate = Fraction(fps).limit_denominator(1001)
    if encoding is H264:
        threads = {"threads": "1"} if repeatable else {}
        encoding = H264._replace(options={**H264.options, "crf": str(crf), **threads})
    with files.atomic_write(path) as temporary:
        if encoding.codec == "libx264" and not repeatable:
            frames, shift = _with_shift(iter(frames), rate, encoding)
        flags = {"movflags": "+faststart"} if ending in (".mp4", ".mov") else {}
        with av.open(
            os.fspath(temporary), "w", format=encoding.container, options=flags
        ) as container:
            encode(container, frames, rate, encoding, tagged=True, shift=shift)


def _with_shift(
    frames: Iterator[UInt8[np.ndarray, "h w 3"]], rate: Fraction, encoding: Encoding
) -> tuple[Iterator[UInt8[np.ndarray, "h w 3"]], level_shift.Shift]:
    """The frames, and the shift with which an encoding of them keeps their mean colour."""
    first, size = [], 0
    for frame in frames:
        first.append(frame)
        size += frame.nbytes
        if size >= _MEASURED:
            break
    if not first:
        return frames, level_shift.NONE
    encoded = io.BytesIO()
    with av.open(encoded, "w", format=encoding.container) as container:
        encode(container, first, rate, encoding, tagged=True, shift=level_shift.USUAL)
    planes = _converted(first, encoding, tagged=True)
    shift = level_shift.corrected(level_shift.USUAL, planes, encoded)
    return itertools.chain(first, frames), shift


def is_whole_mp4(path: str | os.PathLike) -> bool:
    """Whether a file is an MP4 of which nothing is cut off, by the lengths that its boxes state."""
    at, size = 0, os.path.getsize(path)
    with open(path, "rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4])
            if length == 1:  # a large box states its length after its name
                length = int.from_bytes(head[8:16])
            if length < 8:
                return False
            at += length
    return at == size > 0


def encode(
    container: av.container.OutputContainer,
    frames: Iterable[np.ndarray],
    rate: Fraction,
    encoding: Encoding,
    tagged: bool,
    shift: level_shift.Shift = level_shift.NONE,
) -> None:
    """Encodes frames into an open container: BT.709 with tags if `tagged`, else BT.601 without.

    `shift` is added to Y, Cb and Cr of 8 bits.
    """
    stream: Any = container.add_stream(encoding.codec, rate=rate, options=encoding.options)
    if tagged:
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = 1  # 16 to 235
    stream.pix_fmt = encoding.pixel_format
    for number, frame in enumerate(_converted(frames, encoding, tagged)):
        if number == 0:
            stream.height, stream.width = frame.height, frame.width
        if any(shift):
            level_shift.add(frame, shift)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _converted(
    frames: Iterable[np.ndarray], encoding: Encoding, tagged: bool
) -> Iterator[av.VideoFrame]:
    """The frames in the pixel format of the encoding; colours as in `encode`."""
    colours: dict[str, Any] = {}
    if tagged:
        colours = {"dst_colorspace": "ITU709", "dst_color_range": "MPEG", "interpolation": _CONVERT}
    halved = encoding.pixel_format == "yuv420p"
    converter = VideoReformatter()
    for picture in frames:
        picture = _even(picture) if halved else np.ascontiguousarray(picture)
        form = "rgb24"
        if picture.dtype == np.uint16:  # white is 2**16 - 1; swscale takes 255 * 2**8 for it
            form = "rgb48le"
            picture = ((picture.astype(np.uint32) * 65280 + 32767) // 65535).astype(np.uint16)
        frame = av.VideoFrame.from_ndarray(picture, format=form)
        yield converter.reformat(frame, format=encoding.pixel_format, threads=1, **colours)


def write_sequence(
    pattern: str | os.PathLike, frames: Iterable[UInt16[np.ndarray, "h w 3"]]
) -> None:
    """Writes every frame as a PNG with 16 bits per channel.

    Args:
      pattern: path with the frame's number, from 0, as in `name_%04d.png`.
      frames: RGB; levels from 0 to 65535.

    Raises:
      ValueError: if a file cannot be written.
    """
    name = Path(pattern).name
    digits = _NUMBER.search(name)
    if digits is None:
        raise ValueError(f"{pattern} needs the place of a number, as in name_%04d.png")
    before, after, width = name[: digits.start()], name[digits.end() :], int(digits[1] or 0)
    for number, frame in enumerate(frames):
        path = Path(pattern).with_name(f"{before}{number:0{width}d}{after}")
        with files.atomic_write(path) as temporary:
            temporary.write_bytes(_deep_png(np.ascontiguousarray(frame)))


def _deep_png(picture: UInt16[np.ndarray, "h w 3"]) -> bytes:
    # Pillow has no RGB of 16 bits.
    context = av.CodecContext.create("png", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width = picture.shape[:2]
    context.pix_fmt, context.time_base = "rgb48be", Fraction(1)
    context.options = {"pred": "paeth"}
    frame = av.VideoFrame.from_ndarray(picture, format="rgb48le").reformat(format="rgb48be")
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode()])


def _even(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    if height % 2 or width % 2:
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(picture)


def write_image(path: str | os.PathLike, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a picture in the format of the file's ending: PNG, WebP (lossless), JPEG, ..."""
    if Path(path).suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{path} does not end in the name of a picture format, such as .png")
    with files.atomic_write(path) as temporary:
        # The quality is that of a JPEG; WebP reads it as an effort.
        Image.fromarray(picture).save(temporary, quality=95, lossless=True)


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
    _check_frames(frames)
    _check_rate(fps)
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
