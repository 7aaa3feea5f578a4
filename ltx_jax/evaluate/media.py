"""The clips and pictures that a model is measured on: a folder's, or the procedural world's."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ltx_jax.world import render

WORLD = "shapes"
_WORLD_COUNT = 100


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip as it is measured; a picture is a clip of one frame."""

    name: str
    frames: UInt8[np.ndarray, "t h w 3"]
    caption: str
    frame_rate: float

    @property
    def kind(self) -> str:
        """What it counts among."""
        return "videos" if len(self.frames) > 1 else "images"


@dataclasses.dataclass(frozen=True)
class Cut:
    """How clips are cut: scaled to cover the size, the centre kept, from the first frame on.

    `num_frames` is the most; a shorter clip is cut to the largest legal length that it has.
    """

    num_frames: int
    height: int
    width: int
    temporal_factor: int

    def length(self, available: int) -> int:
        """Frames that are kept of so many: 8k+1, for a factor of 8.

        Raises:
          ValueError: if there is not even one latent frame beside the first.
        """
        factor = self.temporal_factor
        if self.num_frames > 1 and available <= factor:
            raise ValueError(f"it is too short: {available} frames, and {factor + 1} are needed")
        return (min(available, self.num_frames) - 1) // factor * factor + 1


def read(
    source: str,
    cut: Cut,
    *,
    limit: int | None = None,
    frame_folders: bool = False,
    captioned: bool = False,
    skipped: list[str],
) -> Iterator[Clip]:
    """Reads clips, then pictures.

    Args:
      source: a folder of clips and pictures, or "shapes": held-out clips of the procedural world,
        and first frames of others.
      cut: to this size.
      limit: at most so many clips and as many pictures, spread evenly over the sorted files.
      frame_folders: the pictures of each folder are the frames of one clip, in the order of their
        names (DAVIS).
      captioned: refuse files without a caption beside them.
      skipped: is told which files cannot be used, and why.

    Raises:
      ValueError: if there is no such folder, or nothing in it can be used.
    """
    if source == WORLD:
        yield from _world(cut, _WORLD_COUNT if limit is None else limit)
        return
    found = 0
    for files, caption in _files(source, limit, frame_folders, captioned):
        name = str(files[0].parent if len(files) > 1 else files[0])
        try:
            frames, frame_rate = _read(files, cut)
        except ValueError as error:
            skipped.append(str(error) if name in str(error) else f"{name}: {error}")
            continue
        found += 1
        yield Clip(name, frames, caption, frame_rate)
    if not found:
        raise ValueError(f"none of the clips of {source} can be used; the first: {skipped[0]}")


def _world(cut: Cut, count: int) -> Iterator[Clip]:
    for length in sorted({cut.length(cut.num_frames), 1}, reverse=True):
        for i in range(count):
            # Pictures of other scenes than those of the clips.
            index = i if length > 1 else count + i
            made = render.clip(
                index, split="held_out", num_frames=length, height=cut.height, width=cut.width
            )
            yield Clip(f"{length} frames, number {index}", made.frames, made.caption, 24.0)


def _files(
    source: str, limit: int | None, frame_folders: bool, captioned: bool
) -> list[tuple[Sequence[Path], str]]:
    """The files of each clip, then of each picture, and their captions."""
    from ltx_jax.data import folder  # brings in PyAV, which the world does without

    clips: dict[Path, tuple[list[Path], str]] = {}
    pictures: dict[Path, tuple[list[Path], str]] = {}
    for found in folder.list_clips(source, allow_empty_captions=not captioned):
        path = found.path
        if path.suffix.lower() in folder.CLIPS:
            clips[path] = ([path], found.caption)
        elif frame_folders:
            clips.setdefault(path.parent, ([], ""))[0].append(path)
        else:
            pictures[path] = ([path], found.caption)
    return [*_spread(list(clips.values()), limit), *_spread(list(pictures.values()), limit)]


def _spread(found: list, limit: int | None) -> list:
    if limit is None or limit >= len(found):
        return found
    return [found[i * len(found) // limit] for i in range(limit)]


def _read(files: Sequence[Path], cut: Cut) -> tuple[np.ndarray, float]:
    from ltx_jax.data import video

    if len(files) > 1:
        length = cut.length(len(files))
        pictures = [video.read_image(path) for path in files[:length]]
        if len({picture.shape for picture in pictures}) > 1:
            raise ValueError("its frames differ in size")
        frames, frame_rate = np.stack(pictures), 24.0
    elif video.is_image(files[0]):
        frames, frame_rate = video.read_image(files[0])[None], 1.0
    else:
        frames, frame_rate = video.read_video(files[0], num_frames=cut.num_frames)
        frames = frames[: cut.length(len(frames))]
    return video.resize_crop(frames, cut.height, cut.width), frame_rate
