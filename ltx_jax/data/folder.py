"""Captioned clips in files of the user; pictures are clips of one frame."""

import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ltx_jax.data import companions, inputs, listing, pictures, pixels, probing, video
from ltx_jax.data.companions import Companions

_NAMED = 100  # largest number of left-out clips that the log names; more are only counted

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A clip or picture, and its captions, of which training draws one each time.

    Attributes:
      place: its file, or its part of an archive.
      captions: at least one.
      companions: its reference and its mask, if there are any.
    """

    place: inputs.Place
    captions: tuple[str, ...]
    companions: Companions = Companions()


def list_clips(
    source: str | os.PathLike,
    columns: listing.Columns = listing.Columns(),
    *,
    allow_empty_captions: bool = False,
    needs: Collection[companions.Kind] = (),
) -> tuple[Captioned, ...]:
    """Lists the clips and pictures of a source, sorted by path.

    Those without a usable caption are left out, and the log names and counts them. The same holds
    for files of other types with a caption that belongs to no clip or picture.

    Args:
      source: a folder, a table or archives, as in `listing.list_source`; in folders hidden files
        are ignored, links to folders are followed, each folder once.
      columns: the columns of tables that are read.
      allow_empty_captions: take a missing or unusable caption for an empty one.
      needs: the companions without which a clip is left out as well.

    Raises:
      ValueError: if there is no such source, or no clip in it that can be used.
    """
    media = listing.list_source(source, columns)
    if not media:
        raise ValueError(f"{source} holds no clip or picture ({' '.join(listing.ENDINGS)})")
    clips: list[Captioned] = []
    problems: list[str] = []
    for medium in sorted(media, key=lambda medium: medium.is_medium):  # faults of tables come first
        texts = medium.captions
        if medium.is_medium and allow_empty_captions:
            texts = texts or ("",)
        problem = medium.companions.missing(medium.place, needs) if texts else medium.problem
        if problem:
            problems.append(problem)
        else:
            clips.append(Captioned(medium.place, texts, medium.companions))
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
    clips: Sequence[Captioned], needs: Collection[companions.Kind] = ()
) -> tuple[tuple[Captioned, ...], tuple[video.Facts, ...]]:
    """Probes clips; leaves out those that are damaged or empty, and names them in the log.

    Args:
      clips: the clips.
      needs: companions that are probed too. A clip is left out if one of them is damaged, or has
        another length, rate or shape than the clip. A mask may be a picture.

    Returns:
      The others, and their properties.

    Raises:
      ValueError: if none is left.
    """
    probed = probing.probe_all([clip.place for clip in clips])
    for kind in needs:
        places = [getattr(clip.companions, kind) for clip in clips]
        pairs = zip(clips, probed, probing.probe_all(places), strict=True)
        probed = [
            own if isinstance(own, ValueError) else _fitting(kind, clip, own, other)
            for clip, own, other in pairs
        ]
    report_left_out([x for x in probed if isinstance(x, ValueError)], str, len(clips))
    good = [
        (clip, found)
        for clip, found in zip(clips, probed, strict=True)
        if not isinstance(found, ValueError)
    ]
    return tuple(clip for clip, _ in good), tuple(found for _, found in good)


def _fitting(
    kind: companions.Kind, clip: Captioned, own: video.Facts, other: video.Facts | ValueError
) -> video.Facts | ValueError:
    """The properties of a clip, or why its companion, with the properties `other`, is none."""
    if isinstance(other, ValueError):
        return other
    place = getattr(clip.companions, kind)
    is_picture = kind == "mask" and other.seconds == 0
    if other.frames != own.frames and not is_picture:
        return ValueError(
            f"{place} has {other.frames} frames and its clip {own.frames}: make them equally long"
        )
    if abs(other.frame_rate - own.frame_rate) > 0.01 * own.frame_rate and not is_picture:
        return ValueError(
            f"{place} has {other.frame_rate:.4g} frames per second and its clip "
            f"{own.frame_rate:.4g}: make them equally fast"
        )
    # Equal shapes, up to a pixel of rounding.
    difference = abs(other.width * own.height - other.height * own.width)
    if difference > max(own.width, own.height, other.width, other.height):
        return ValueError(
            f"{place} is {other.width} x {other.height} and its clip {own.width} x {own.height}: "
            "make them of the same shape"
        )
    return own


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
