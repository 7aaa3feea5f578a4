"""Reads the clips and pictures on which a model is measured."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ltx_jax.config import DataConfig
from ltx_jax.data import inputs
from ltx_jax.data.sources import EMOJI
from ltx_jax.world import render

WORLD = "shapes"
_DRAWN_COUNT = 100  # number of clips, and of pictures, from an endless source
_EMOJI_SEED = 271_828  # differs from the seeds of training


@dataclasses.dataclass(frozen=True)
class EvaluationClip:
    """A clip on which a model is measured; a picture is a clip of one frame."""

    name: str
    frames: UInt8[np.ndarray, "t h w 3"]
    caption: str
    frame_rate: float

    @property
    def kind(self) -> str:
        """The group in which its metrics are averaged."""
        return "videos" if len(self.frames) > 1 else "images"


@dataclasses.dataclass(frozen=True)
class ClipFormat:
    """Size and length of the clips on which a model is measured.

    A clip is scaled to cover the size and cropped about its centre. The first `num_frames` of
    its frames are used; a shorter clip is cut to the largest number of frames that the VAE accepts.
    """

    num_frames: int
    height: int
    width: int
    temporal_factor: int

    def length(self, available: int) -> int:
        """Number of frames used of a clip that has `available` frames: 8k+1 for a factor of 8.

        Raises:
          ValueError: if a clip is too short for two latent frames.
        """
        factor = self.temporal_factor
        if self.num_frames > 1 and available <= factor:
            raise ValueError(
                f"it is too short: {available} frames; at least {factor + 1} are needed"
            )
        return (min(available, self.num_frames) - 1) // factor * factor + 1


def read_clips(
    source: str,
    clip_format: ClipFormat,
    *,
    limit: int | None = None,
    frame_folders: bool = False,
    captioned: bool = False,
    skipped: list[str],
) -> Iterator[EvaluationClip]:
    """Reads clips, then pictures.

    Args:
      source: clips and pictures (a folder, a table or archives, as in training), "shapes" for
        held-out ones of the procedural world, or "emoji:DIR@SPLIT" for those of a split of a data
        set of emoji.
      clip_format: their size and length.
      limit: the largest number of clips, and of pictures, spread evenly over the sorted files.
      frame_folders: treat the pictures of each folder as the frames of one clip, in the order of
        their names (as DAVIS stores clips).
      captioned: fail if a file has no caption beside it.
      skipped: receives one message for each file that cannot be used.

    Raises:
      ValueError: if there is no such folder, or none of its files can be used.
    """
    if source == WORLD or source.startswith(EMOJI):
        draw, frame_rate = _world(clip_format) if source == WORLD else _emoji(source, clip_format)
        yield from _drawn(draw, clip_format, _DRAWN_COUNT if limit is None else limit, frame_rate)
        return
    count = 0
    for files, caption in _files(source, limit, frame_folders, captioned):
        name = os.path.dirname(str(files[0])) if len(files) > 1 else str(files[0])
        try:
            frames, frame_rate = _read(files, clip_format)
        except ValueError as error:
            skipped.append(str(error) if name in str(error) else f"{name}: {error}")
            continue
        count += 1
        yield EvaluationClip(name, frames, caption, frame_rate)
    if not count:
        raise ValueError(
            f"none of the clips of {source} can be used; the first error: {skipped[0]}"
        )


# (number, number of frames) -> frames and caption.
_Draw = Callable[[int, int], tuple[np.ndarray, str]]


def _drawn(
    draw: _Draw, clip_format: ClipFormat, count: int, frame_rate: float
) -> Iterator[EvaluationClip]:
    for length in sorted({clip_format.length(clip_format.num_frames), 1}, reverse=True):
        for i in range(count):
            # Pictures show other scenes than the clips.
            index = i if length > 1 else count + i
            frames, caption = draw(index, length)
            yield EvaluationClip(f"{length} frames, number {index}", frames, caption, frame_rate)


def _world(clip_format: ClipFormat) -> tuple[_Draw, float]:
    height, width = clip_format.height, clip_format.width

    def draw(index: int, length: int) -> tuple[np.ndarray, str]:
        clip = render.clip(index, split="held_out", num_frames=length, height=height, width=width)
        return clip.frames, clip.caption

    return draw, 24.0


def _emoji(source: str, clip_format: ClipFormat) -> tuple[_Draw, float]:
    from ltx_jax.data import emoji  # needs TFDS, which the procedural world does not

    scenes = emoji.Emoji(source, DataConfig(), _EMOJI_SEED)
    height, width = clip_format.height, clip_format.width

    def draw(index: int, length: int) -> tuple[np.ndarray, str]:
        clip = scenes.clip(
            index, num_frames=length, height=height, width=width, fps=emoji.FRAME_RATE
        )
        return clip.frames, clip.caption

    return draw, emoji.FRAME_RATE


def _files(
    source: str, limit: int | None, frame_folders: bool, captioned: bool
) -> list[tuple[Sequence[inputs.Place], str]]:
    """The files of each clip, then of each picture, and their captions."""
    from ltx_jax.data import folder, listing  # need PyAV, which the procedural world does not

    clips: dict[Any, tuple[list[inputs.Place], str]] = {}
    pictures: dict[Any, tuple[list[inputs.Place], str]] = {}
    for clip in folder.list_clips(source, allow_empty_captions=not captioned):
        place, caption = clip.place, clip.captions[0]
        if os.path.splitext(str(place))[1].lower() in listing.CLIPS:
            clips[place] = ([place], caption)
        elif frame_folders:
            clips.setdefault(os.path.dirname(str(place)), ([], ""))[0].append(place)
        else:
            pictures[place] = ([place], caption)
    return [*_spread(list(clips.values()), limit), *_spread(list(pictures.values()), limit)]


def _spread(files: list, limit: int | None) -> list:
    """At most `limit` of the files, at equal distances."""
    if limit is None or limit >= len(files):
        return files
    return [files[i * len(files) // limit] for i in range(limit)]


def _read(places: Sequence[inputs.Place], clip_format: ClipFormat) -> tuple[np.ndarray, float]:
    from ltx_jax.data import pictures, pixels, video

    length = clip_format.length(len(places)) if len(places) > 1 else 1
    files = [inputs.loaded(place) for place in places[:length]]
    if len(places) > 1:
        images = [pictures.read_image(file) for file in files]
        if len({image.shape for image in images}) > 1:
            raise ValueError("its frames differ in size")
        frames, frame_rate = np.stack(images), 24.0
    elif pictures.is_image(files[0]):
        frames, frame_rate = pictures.read_image(files[0])[None], 1.0
    else:
        frames, frame_rate = video.read_video(files[0], num_frames=clip_format.num_frames)
        frames = frames[: clip_format.length(len(frames))]
    return pixels.resize_crop(frames, clip_format.height, clip_format.width), frame_rate
