"""A folder of captioned clips: `clip.mp4` beside `clip.txt`; pictures are clips of one frame."""

import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ltx_jax.data import inputs, pictures, pixels, video

CLIPS = (
    *(".mp4", ".mkv", ".webm", ".mov", ".m4v", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".mts"),
    *(".m2ts", ".wmv", ".flv", ".3gp", ".ogv"),
)
ENDINGS = (
    *CLIPS,
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".avif"),
    *(".heic", ".heif"),
)
_NAMED = 100  # largest number of left-out clips that the log names; more are only counted

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A media file and its caption."""

    path: Path
    caption: str


def list_clips(
    folder: str | os.PathLike, *, allow_empty_captions: bool = False
) -> tuple[Captioned, ...]:
    """Finds the clips and pictures in a folder and its subfolders, sorted by path.

    Those without a usable caption are left out, and the log names and counts them. The same holds
    for files of other types with a caption that belongs to no clip or picture.

    Args:
      folder: the folder; hidden files are ignored, links to folders are followed, each folder once.
      allow_empty_captions: take a missing or blank caption file as an empty caption.

    Raises:
      ValueError: if there is no such folder, or no clip in it that can be used.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    paths = sorted(inputs.walk(folder))
    media = [path for path in paths if path.suffix.lower() in ENDINGS]
    others = _captioned_others(paths, {path.with_suffix("") for path in media})
    if not media and not others:
        raise ValueError(f"{folder} holds no clip or picture ({' '.join(ENDINGS)})")
    clips: list[Captioned] = []
    problems = [
        f"{path} has none of the endings of clips and pictures ({' '.join(ENDINGS)})"
        for path in others
    ]
    for path in media:
        try:
            caption = inputs.read_caption(path, allow_empty=allow_empty_captions)
            clips.append(Captioned(path, caption))
        except ValueError as error:
            problems.append(str(error))
    report_left_out(problems, str, len(media) + len(others))
    return tuple(clips)


def _captioned_others(paths: Sequence[Path], stems: Collection[Path]) -> list[Path]:
    """Files that have a caption beside them but not the ending of a clip or picture."""
    captioned = {path.with_suffix("") for path in paths if inputs.is_caption(path)} - set(stems)
    return [
        path
        for path in paths
        if path.with_suffix("") in captioned and not inputs.is_caption(path) and not path.is_dir()
    ]


def load_clip(
    path: inputs.File,
    num_frames: int,
    height: int,
    width: int,
    *,
    start: float | int = 0.0,
    frame_rate: float | int | None = None,
    place: tuple[float, float] = (0.5, 0.5),
) -> tuple[UInt8[np.ndarray, "{num_frames} {height} {width} 3"], float]:
    """Reads one training example, scaled to cover height x width and cut to it.

    Args:
      path: a clip, or a picture if `num_frames` is 1.
      num_frames: exact number of frames.
      height: height in pixels.
      width: width in pixels.
      start: seconds into the clip.
      frame_rate: resample by time; None takes the stored frames.
      place: position of the part that is kept, as in `pixels.resize_crop`.

    Returns:
      The frames and their rate; the rate of a picture is `frame_rate`, or 1.

    Raises:
      ValueError: if the file is damaged (see `read_video`), or too short.
    """
    if num_frames <= 0:
        raise ValueError(f"num_frames must be positive, got {num_frames}")
    if pictures.is_image(path):
        if num_frames > 1:
            raise ValueError(f"{path} is a still image; a clip of {num_frames} frames is expected")
        picture = pictures.read_image(path)[None]
        return pixels.resize_crop(picture, height, width, place=place), float(frame_rate or 1)
    frames, fps = video.read_video(path, num_frames=num_frames, start=start, frame_rate=frame_rate)
    if len(frames) < num_frames:
        raise ValueError(
            f"{path} is too short: {len(frames)} frames at {fps:g} per second from {start:g} s on, "
            f"and {num_frames} are needed"
        )
    return pixels.resize_crop(frames, height, width, place=place), fps


def check_clips(
    clips: Sequence[Captioned],
) -> tuple[tuple[Captioned, ...], tuple[video.Facts, ...]]:
    """Probes clips; leaves out those that are damaged or empty, and names them in the log.

    Returns:
      The others, and their properties.

    Raises:
      ValueError: if none is left.
    """
    with ThreadPoolExecutor() as pool:
        probed = list(pool.map(_probe, clips))
    report_left_out([x for x in probed if isinstance(x, ValueError)], str, len(clips))
    good = [
        (clip, found)
        for clip, found in zip(clips, probed, strict=True)
        if not isinstance(found, ValueError)
    ]
    return tuple(clip for clip, _ in good), tuple(found for _, found in good)


def _probe(clip: Captioned) -> video.Facts | ValueError:
    try:
        return video.probe(clip.path)
    except ValueError as error:
        return error


def report_left_out(bad: Sequence[Any], reason: Callable[[Any], str], count: int) -> None:
    """Names and counts in the log which of `count` clips cannot be used, and why.

    Raises:
      ValueError: if none is left.
    """
    if len(bad) == count:
        raise ValueError(f"none of {count} clips can be used; the first: {reason(bad[0])}")
    for clip in bad[:_NAMED]:
        _log.warning("left out: %s", reason(clip))
    if bad:
        _log.warning("%d of %d clips are left out", len(bad), count)
