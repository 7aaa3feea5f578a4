"""Captioned clips in files of the user; pictures are clips of one frame."""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ltx_jax.data import inputs, listing, pictures, pixels, probing, video

_NAMED = 100  # largest number of left-out clips that the log names; more are only counted

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A clip or picture, and its captions, of which training draws one each time.

    Attributes:
      place: its file, or its part of an archive.
      captions: at least one.
    """

    place: inputs.Place
    captions: tuple[str, ...]


def list_clips(
    source: str | os.PathLike,
    columns: listing.Columns = listing.Columns(),
    *,
    allow_empty_captions: bool = False,
) -> tuple[Captioned, ...]:
    """Lists the clips and pictures of a source, sorted by path.

    Those without a usable caption are left out, and the log names and counts them. The same holds
    for files of other types with a caption that belongs to no clip or picture.

    Args:
      source: a folder, a table or archives, as in `listing.list_source`; in folders hidden files
        are ignored, links to folders are followed, each folder once.
      columns: the columns of tables that are read.
      allow_empty_captions: take a missing or unusable caption for an empty one.

    Raises:
      ValueError: if there is no such source, or no clip in it that can be used.
    """
    media = listing.list_source(source, columns)
    if not media:
        raise ValueError(f"{source} holds no clip or picture ({' '.join(listing.ENDINGS)})")
    clips: list[Captioned] = []
    problems: list[str] = []
    for medium in sorted(media, key=lambda medium: medium.is_medium):  # faults of tables come first
        if medium.captions:
            clips.append(Captioned(medium.place, medium.captions))
        elif medium.is_medium and allow_empty_captions:
            clips.append(Captioned(medium.place, ("",)))
        else:
            problems.append(medium.problem)
    report_left_out(problems, str, len(media))
    return tuple(clips)


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
    probed = probing.probe_all([clip.place for clip in clips])
    report_left_out([x for x in probed if isinstance(x, ValueError)], str, len(clips))
    good = [
        (clip, found)
        for clip, found in zip(clips, probed, strict=True)
        if not isinstance(found, ValueError)
    ]
    return tuple(clip for clip, _ in good), tuple(found for _, found in good)


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
