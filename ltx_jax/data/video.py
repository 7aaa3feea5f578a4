"""Reads videos and pictures as a viewer shows them.

Frames are uint8 (t, h, w, 3), RGB: turned and mirrored as the file's metadata says, with square
pixels, transparency over white. Whatever is wrong with a file is a ValueError that names it.
"""

import contextlib
import itertools
import logging
import math
from collections.abc import Generator

import numpy as np
from jaxtyping import UInt8

from ltx_jax.data import decoding, inputs, pictures
from ltx_jax.data.decoding import TICK, Facts
from ltx_jax.data.frames import DecodedFrame

_log = logging.getLogger(__name__)

_SAME_RATE = 0.01  # largest relative difference of frame rates that nobody sees
_WAYS_OUT = {
    "interlaced": "deinterlace it first, as ffmpeg -vf bwdif does",
    "high dynamic range": (
        "convert it to SDR first, as ffmpeg -vf zscale=t=linear:npl=100,tonemap=hable,"
        "zscale=p=709:t=709:m=709,format=yuv420p does"
    ),
}


def read_video(
    path: inputs.File,
    *,
    num_frames: int | None = None,
    start: float | int = 0.0,
    frame_rate: float | int | None = None,
) -> tuple[UInt8[np.ndarray, "t h w 3"], float]:
    """Reads a clip, or a part of it, and its frames per second.

    Args:
      path: a video, or an animated GIF, PNG, WebP or AVIF.
      num_frames: read at most this many; None is all. A shorter clip gives fewer.
      start: seconds into the clip; the first frame is the one on the screen then.
      frame_rate: resample by time to this rate: each frame is the one on the screen at its time,
        which is right for variable frame rates too. None gives the stored frames, each once, and
        the average rate of the file.

    Raises:
      ValueError: if there is no such file, or it is empty, no video, a still picture, sound alone,
        interlaced, HDR, too large, damaged, or ends before `start`.
    """
    if num_frames is not None and num_frames <= 0:
        raise ValueError(f"num_frames must be positive, got {num_frames}")
    with decoding.open_clip(path) as clip:
        frames = _pictures(clip, start, frame_rate)
        with contextlib.closing(frames):  # closed before the container that owns their packets
            taken = list(itertools.islice(frames, num_frames))
    return np.stack(taken), float(frame_rate or clip.rate)


def stream_video(
    path: inputs.File, *, start: float | int = 0.0, frame_rate: float | int | None = None
) -> Generator[UInt8[np.ndarray, "h w 3"], None, None]:
    """The frames that `read_video` gives, one at a time."""
    with decoding.open_clip(path) as clip:
        yield from _pictures(clip, start, frame_rate)


def decode_video(path: inputs.File) -> Generator[DecodedFrame, None, None]:
    """Yields the stored frames of a clip, not converted to pixels; interlaced and HDR ones too.

    Raises:
      ValueError: as `read_video`.
    """
    with decoding.open_clip(path) as clip, contextlib.closing(clip.frames(0)) as frames:
        for frame in frames:
            _check_whole(clip, frame)
            yield frame


def _pictures(
    clip: decoding.Clip, start: float | int, frame_rate: float | int | None
) -> Generator[np.ndarray, None, None]:
    if start < 0 or (frame_rate is not None and not 0 < frame_rate < math.inf):
        raise ValueError(f"start must be >= 0 and frame_rate positive, got {start}, {frame_rate}")
    count, shape = 0, None
    with contextlib.closing(clip.frames(start)) as frames:
        for frame in frames:
            if frame_rate is None:
                copies = 1
            else:  # output frames k with begin <= start + k / frame_rate < end
                copies = max(_count_before(frame.end - start, frame_rate) - count, 0)
            if copies == 0:
                continue
            _check_whole(clip, frame)
            _check_showable(clip.name, frame)
            picture = frame.rgb()
            shape = shape or picture.shape
            if picture.shape != shape:
                raise ValueError(f"{clip.name} changes its frame size at {frame.begin:.2f} s")
            count += copies
            yield from itertools.repeat(picture, copies)
    if not count:
        after = f" after {start} s" if start else ""
        raise ValueError(f"{clip.name} has no frame that can be decoded{after}")


def _check_whole(clip: decoding.Clip, frame: DecodedFrame) -> None:
    if frame.is_broken:
        raise ValueError(f"{clip.name} is damaged: the frame at {frame.begin:.2f} s is broken")


def _check_showable(name: str, frame: DecodedFrame) -> None:
    if frame.unsupported_format:
        raise ValueError(
            f"{name} is {frame.unsupported_format}: {_WAYS_OUT[frame.unsupported_format]}"
        )


def _count_before(seconds: float | int, frame_rate: float | int) -> int:
    """Number of k >= 0 with k / frame_rate before `seconds`, times within a tick being equal."""
    return max(math.ceil((seconds - TICK) * frame_rate), 0)


def probe(path: inputs.File, *, any_picture: bool = False) -> Facts:
    """Reads the properties of a clip or a picture; decodes only one frame of a clip.

    Args:
      path: the clip or picture.
      any_picture: accept interlaced and HDR clips too, as `decode_video` does.

    Raises:
      ValueError: as `read_video` and `read_image`; damage within a clip's frames is not noticed.
    """
    if pictures.is_image(path):
        height, width, _ = pictures.read_image(path).shape
        return Facts(1, height, width, 0.0, 0.0, True)
    with decoding.open_clip(path) as clip:
        facts, first = clip.facts()
        if not any_picture:
            _check_showable(clip.name, first)
    return facts


def read_media(
    path: inputs.File, *, num_frames: int | None = None, frame_rate: float | int | None = None
) -> UInt8[np.ndarray, "t h w 3"]:
    """Reads a picture as a clip of one frame, or a clip (`read_video`).

    Args:
      path: of the file; `clip.mp4@2.5s` begins 2.5 seconds into the clip (`inputs.split_start`).
      num_frames: read at most this many.
      frame_rate: of the result; a clip whose rate differs by more than 1 % is resampled by time,
        and the log says so. None gives the stored frames.

    Raises:
      ValueError: as `read_video` and `read_image`, and for a time in a still picture.
    """
    file, start = (path, 0.0) if isinstance(path, inputs.Stored) else inputs.split_start(path)
    if pictures.is_image(file):
        if start:
            raise ValueError(f"{file} is a still image: it does not begin at {start:g} s")
        return pictures.read_image(file)[None]
    if frame_rate is not None:
        with decoding.open_clip(file) as clip:
            rate = float(clip.rate)
        if abs(rate / frame_rate - 1) <= _SAME_RATE:
            frame_rate = None
        else:
            _log.warning("%s: resampled from %.4g to %.4g frames/s", file, rate, frame_rate)
    return read_video(file, num_frames=num_frames, start=start, frame_rate=frame_rate)[0]
