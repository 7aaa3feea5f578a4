"""Video and picture files in and out. PyAV is in this file and in `frames`.

Frames are uint8 (t, h, w, 3), RGB, as a viewer shows them: rotation and mirror metadata of phones
are applied. Everything that can be wrong with a file is a ValueError that names it.
"""

import contextlib
import dataclasses
import io
import itertools
import math
import os
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.container
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from ltx_jax.data.frames import Shown
from ltx_jax.runtime import files

_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")
TICK = 1e-3  # seconds; Matroska rounds time stamps to this


@dataclasses.dataclass(frozen=True)
class Stored:
    """A media file in memory, and what to call it."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


File = str | os.PathLike | Stored


def _handle(path: File) -> str | io.BytesIO:
    """What libraries open."""
    return io.BytesIO(path.content) if isinstance(path, Stored) else os.fspath(path)


def _open_image(path: File) -> Image.Image:
    """By content, and only of the formats above: Pillow also claims some video files."""
    Image.init()
    return Image.open(
        _handle(path), formats=[name for name in _IMAGE_FORMATS if name in Image.OPEN]
    )


def is_image(path: File) -> bool:
    """Whether the file is a still image, judged by its content; animations are not."""
    try:
        with _open_image(path) as image:
            # An MPO is a photograph with a preview beside it, not an animation.
            return image.format == "MPO" or getattr(image, "n_frames", 1) == 1
    except (OSError, Image.DecompressionBombError):
        return False


def read_image(path: File) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a picture upright (EXIF orientation applied), transparency laid over white.

    Raises:
      ValueError: if there is no such file, or it is not a picture, or a damaged one.
    """
    _check_file(path)
    try:
        with _open_image(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip
                return np.repeat((np.asarray(image) // 257).astype(np.uint8)[..., None], 3, axis=2)
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, (255, 255, 255, 255))
                image = Image.alpha_composite(white, image)
            return np.array(image.convert("RGB"))
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image (PNG, JPEG, WebP, ...)") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is a damaged or unreadable image: {error}") from error


def read_video(
    path: File,
    *,
    num_frames: int | None = None,
    start: float | int = 0.0,
    frame_rate: float | int | None = None,
    square_pixels: bool = False,
) -> tuple[UInt8[np.ndarray, "t h w 3"], float]:
    """Reads a clip, or a part of it, and its frames per second.

    Args:
      path: any file that FFmpeg reads, animated GIFs too.
      num_frames: read at most this many; None is all. A shorter clip gives fewer.
      start: seconds into the clip; the first frame is the one on the screen then.
      frame_rate: resample by time to this rate: each frame is the one on the screen at its time,
        which is right for variable frame rates too. None gives the stored frames, each once, and
        the average rate of the file.
      square_pixels: widen or narrow the frames of an anamorphic clip. Off, frames are as stored,
        which is what most readers give.

    Raises:
      ValueError: if there is no such file, or it is empty, no video, a still image, sound alone,
        damaged, or over at `start`.
    """
    if num_frames is not None and num_frames <= 0:
        raise ValueError(f"num_frames must be positive, got {num_frames}")
    with _stream(path) as (container, stream, rate):
        found = _pictures(path, container, stream, rate, start, frame_rate, square_pixels)
        with contextlib.closing(found):  # before the container, which its packets belong to
            pictures = list(itertools.islice(found, num_frames))
    return np.stack(pictures), float(frame_rate or rate)


def stream_video(
    path: File, *, start: float | int = 0.0, frame_rate: float | int | None = None
) -> Generator[UInt8[np.ndarray, "h w 3"], None, None]:
    """The frames that `read_video` gives, one at a time."""
    with _stream(path) as opened:
        yield from _pictures(path, *opened, start, frame_rate, False)


def decode_video(path: File) -> Generator[Shown, None, None]:
    """The stored frames of a clip, none converted yet. Errors are those of `read_video`."""
    with (
        _stream(path) as (container, stream, rate),
        contextlib.closing(_timed(path, container, stream, 0, float(rate))) as frames,
    ):
        for frame in frames:
            _check_whole(path, frame)
            yield frame


def _check_whole(path: File, frame: Shown) -> None:
    if frame.is_broken:
        raise ValueError(f"{path} is damaged: the frame at {frame.begin:.2f} s is broken")


@contextlib.contextmanager
def _stream(path: File) -> Iterator[tuple[av.container.InputContainer, av.VideoStream, Fraction]]:
    """Opens a clip for decoding, and gives its average rate too."""
    _check_file(path)
    if is_image(path):
        raise ValueError(f"{path} is a still image; a clip is expected")
    with _open(path) as container:
        stream = container.streams.video[0]
        # Not by frames: one thread may hand out a frame before another has marked it as damaged.
        stream.thread_type = "SLICE"
        yield container, stream, Fraction(stream.average_rate or stream.guessed_rate or 25)


def _pictures(
    path: File,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    rate: Fraction,
    start: float | int,
    frame_rate: float | int | None,
    square_pixels: bool,
) -> Generator[np.ndarray, None, None]:
    if start < 0 or (frame_rate is not None and not 0 < frame_rate < math.inf):
        raise ValueError(f"start must be >= 0 and frame_rate positive, got {start}, {frame_rate}")
    aspect = float(stream.sample_aspect_ratio or 1) if square_pixels else 1.0
    made, shape = 0, None
    with contextlib.closing(_timed(path, container, stream, start, float(rate))) as frames:
        for frame in frames:
            if frame_rate is None:
                copies = 1
            else:  # output frames k with begin <= start + k / frame_rate < end
                copies = max(_count_before(frame.end - start, frame_rate) - made, 0)
            if copies == 0:
                continue
            _check_whole(path, frame)
            picture = frame.rgb(aspect)
            shape = shape or picture.shape
            if picture.shape != shape:
                raise ValueError(f"{path} changes its frame size at {frame.begin:.2f} s")
            made += copies
            yield from itertools.repeat(picture, copies)
    if not made:
        after = f" after {start} s" if start else ""
        raise ValueError(f"{path} has no frame that can be decoded{after}")


class Facts(NamedTuple):
    """What is known of a medium without decoding it."""

    frames: int  # stored; 1 for a picture
    height: int  # as shown, in pixels
    width: int
    seconds: float  # from the first frame to the end of the last; 0 for a picture
    frame_rate: float  # on average; 0 for a picture
    steady: bool  # all frames are shown for as long


def probe(path: File) -> Facts:
    """Reads through a clip or a picture and says what it is; of a clip one frame is decoded.

    Raises:
      ValueError: as `read_video` and `read_image`; damage within a frame of a clip is not seen.
    """
    _check_file(path)
    if is_image(path):
        height, width = read_image(path).shape[:2]
        return Facts(1, height, width, 0.0, 0.0, True)
    with _open(path) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        tick = float(stream.time_base or 0)
        first: Shown | None = None
        begins: list[float] = []
        last = 0.0
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise ValueError(f"{path} is truncated or damaged after {len(begins)} frames")
            if first is None:
                for frame in packet.decode()[:1]:
                    first = Shown(0.0, 0.0, frame, VideoReformatter())
            # What a trimmed clip keeps before its beginning is decoded and not shown.
            if packet.size and not packet.is_discard:
                begin = len(begins) / rate if packet.pts is None else packet.pts * tick
                begins.append(begin)
                last = max(last, begin + ((packet.duration or 0) * tick or 1 / rate))
        if first is None:
            raise ValueError(f"{path} has no frame that can be decoded")
        height, width = first.size
    gaps = np.diff(sorted(begins))
    steady = bool((np.abs(gaps - 1 / rate) <= 2 * max(tick, TICK)).all())
    return Facts(len(begins), height, width, last - min(begins), rate, steady)


def read_media(
    path: str | os.PathLike, *, num_frames: int | None = None, frame_rate: float | int | None = None
) -> UInt8[np.ndarray, "t h w 3"]:
    """Reads a picture as a clip of one frame, or a clip (`read_video`)."""
    _check_file(path)
    if is_image(path):
        return read_image(path)[None]
    return read_video(path, num_frames=num_frames, frame_rate=frame_rate)[0]


def _check_file(path: File) -> None:
    if isinstance(path, Stored):
        empty = not path.content
    else:
        path = Path(path)
        if path.is_dir():
            raise ValueError(f"{path} is a folder; a file is expected")
        if not path.exists():
            raise ValueError(f"there is no file {path}")
        try:
            with path.open("rb") as file:
                empty = not file.read(1)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if empty:
        raise ValueError(f"{path} is empty (0 bytes)")


@contextlib.contextmanager
def _open(path: File) -> Iterator[av.container.InputContainer]:
    """Opens a file that has a video stream; PyAV's errors become ValueErrors naming the file."""
    try:
        with av.open(_handle(path), "r") as container:
            if not container.streams.video:
                kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
                raise ValueError(f"{path} has no video stream, only {' and '.join(kinds)}")
            yield container
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(
            f"{path} is not a video, or is truncated or damaged (FFmpeg: {reason})"
        ) from error


def _timed(
    path: File,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    start: float | int,
    rate: float,
) -> Generator[Shown, None, None]:
    """Yields every frame that is on the screen at or after `start`."""
    origin = float((stream.start_time or 0) * (stream.time_base or 0))
    # Raw streams, as some cameras write them, have no times to go to.
    if start > 0 and stream.time_base and stream.start_time is not None:
        container.seek(round((start + origin) / stream.time_base), stream=stream)
        first = next(container.decode(stream), None)
        # Files without an index may be entered too late: then all of it is decoded.
        late = first is None or first.pts is None or first.time - origin > start
        container.seek(0 if late else round((start + origin) / stream.time_base), stream=stream)
    converter = VideoReformatter()
    previous: tuple[float, av.VideoFrame] | None = None
    index = 0
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ValueError(f"{path} is truncated or damaged after {index} frames")
        for frame in packet.decode():
            begin = index / rate if frame.pts is None else float(frame.time) - origin
            index += 1
            if previous is not None and begin > start + TICK:
                yield Shown(previous[0], begin, previous[1], converter)
            previous = begin, frame
    if previous is not None:
        begin, frame = previous
        seconds = float((frame.duration or 0) * (frame.time_base or 0)) or 1 / rate
        if begin + seconds > start + TICK:
            yield Shown(begin, begin + seconds, frame, converter)


def _count_before(seconds: float | int, frame_rate: float | int) -> int:
    """Number of times k / frame_rate, k >= 0, before `seconds`; within a tick counts as equal."""
    return max(math.ceil((seconds - TICK) * frame_rate), 0)


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
      frames: RGB; all together, or one by one where they do not fit into memory.
      fps: frames per second.
      crf: 0 (lossless but for 4:2:0) to 51; 18 looks like the original.
      repeatable: the file is the same each time, on every machine; that takes a little longer.

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
            _encode(container, frames, rate, settings, tagged=True)


def _encode(
    container: av.container.OutputContainer,
    frames: Iterable[np.ndarray],
    rate: Fraction,
    options: dict[str, str],
    tagged: bool,
) -> None:
    """H.264 into an open container. Untagged pictures are converted by BT.601, unmarked."""
    stream = container.add_stream("libx264", rate=rate, options=options)
    colours: dict[str, Any] = {}
    if tagged:
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = 1  # BT.709
        context.color_range = 1  # 16 to 235
        colours = {"dst_colorspace": "ITU709", "dst_color_range": "MPEG"}
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
    # A megapixel of all frames is enough to choose the colours by.
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


def resize_crop(
    frames: UInt8[np.ndarray, "t h w 3"],
    height: int,
    width: int,
    *,
    place: tuple[float, float] = (0.5, 0.5),
) -> UInt8[np.ndarray, "t {height} {width} 3"]:
    """Scales the frames to cover height x width, antialiased, and keeps a part of them.

    The kept part is a box with real-valued edges, so that the centre is not shifted. `place` says
    where it lies, down and across: 0 is the top or left edge, 1 the bottom or right one.
    """
    _check_size(height, width)
    stored_height, stored_width = frames.shape[1:3]
    scale = min(stored_height / height, stored_width / width)
    y = max((stored_height - height * scale) * place[0], 0.0)
    x = max((stored_width - width * scale) * place[1], 0.0)
    box = (x, y, min(x + width * scale, stored_width), min(y + height * scale, stored_height))
    return _resized(frames, height, width, box)


def crop_to_aspect(
    frames: UInt8[np.ndarray, "t h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "t _ _ 3"]:
    """Cuts the largest centred part with the aspect of height x width, in whole pixels.

    The new side is truncated and the offset is half of the rest, rounded down, as in the official
    `load_image_to_tensor_with_resize_and_crop`.
    """
    _check_size(height, width)
    stored_height, stored_width = frames.shape[1:3]
    aspect = width / height
    if stored_width / stored_height > aspect:
        kept = max(int(stored_height * aspect), 1)
        left = (stored_width - kept) // 2
        return frames[:, :, left : left + kept]
    kept = max(int(stored_width / aspect), 1)
    top = (stored_height - kept) // 2
    return frames[:, top : top + kept]


def _check_size(height: int, width: int) -> None:
    if height <= 0 or width <= 0:
        raise ValueError(f"height and width must be positive, got {height} x {width}")


def _resized(
    frames: np.ndarray,
    height: int,
    width: int,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    return np.stack(
        [
            np.asarray(
                Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box=box)
            )
            for frame in np.ascontiguousarray(frames)
        ]
    )


def prepare_condition(
    frames: UInt8[np.ndarray, "t h w 3"],
    height: int,
    width: int,
    *,
    blur: bool = True,
    crf: int = 29,
) -> Float32[np.ndarray, "t {height} {width} 3"]:
    """Turns condition frames into what the released models were trained to continue, in [-1, 1].

    Crop to the aspect, bicubic resize, a slight blur, and the loss of an H.264 file, each frame by
    itself: the models move little when the condition is sharper than a video (official
    `inference.py` and `crf_compressor.py`). The official script leaves out the resize here, so that
    it blurs and pads at the source's scale, and cuts odd sizes; this resizes first and keeps them.

    Args:
      frames: RGB.
      height: of the result, in pixels, and
      width: too.
      blur: Gaussian, 3 x 3, sigma 1.
      crf: of the H.264 round trip; 0 leaves it out.
    """
    pixels = _resized(crop_to_aspect(frames, height, width), height, width)
    unit = pixels.astype(np.float32) / 255
    if blur:
        unit = gaussian_blur(unit)
    if crf:
        # Truncated, not rounded, as the official script does: half a level darker.
        pixels = np.stack([_compressed(frame, crf) for frame in (unit * 255).astype(np.uint8)])
        unit = pixels.astype(np.float32) / 255
    return unit * 2 - 1


def gaussian_blur(frames: Float32[np.ndarray, "t h w c"]) -> Float32[np.ndarray, "t h w c"]:
    """Blurs by 3 x 3 taps of a Gaussian of deviation 1, mirrored about the outermost pixels."""
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
        options = {"crf": str(crf), "preset": "veryfast"}
        _encode(container, [picture], Fraction(1), options, tagged=False)
    file.seek(0)
    with av.open(file, "r") as container:
        decoded = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return decoded[: picture.shape[0], : picture.shape[1]]
