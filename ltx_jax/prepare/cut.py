"""Clips out of their sources: some of their pictures to judge them by, and all of them to store."""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ltx_jax.config.preparation import StoreConfig
from ltx_jax.data import video
from ltx_jax.prepare.records import Clip


def pictures(clip: Clip, count: int, *, bars: bool = False) -> UInt8[np.ndarray, "t h w 3"]:
    """So many pictures spread over a clip, without its bars unless they are asked for."""
    step = clip.seconds / count
    found = video.stream_video(clip.source, start=clip.start + step / 2, frame_rate=1 / step)
    with contextlib.closing(found):
        kept = list(itertools.islice(found, count))
    return np.stack(kept if bars else [_cropped(picture, clip) for picture in kept])


def write_clips(path: Path, clips: Sequence[Clip], store: StoreConfig) -> None:
    """Writes the files of clips into one file of records, in their order."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
    scratch = path.with_name(f"{path.name}.mp4")
    for clip in clips:
        video.write_video(
            scratch, _frames(clip, store), clip.frame_rate, crf=store.crf, repeatable=True
        )
        writer.write(scratch.read_bytes())
        scratch.unlink()
    writer.close()


def read_clip(clip: Clip) -> video.Stored:
    """The file of a clip that `write_clips` wrote."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(clip.file)
    content = reader.read([clip.place])[0]
    reader.close()
    return video.Stored(clip.name, content)


def _frames(clip: Clip, store: StoreConfig) -> Iterator[np.ndarray]:
    is_kept = clip.steady and clip.frame_rate == clip.source_rate
    count = max(round(clip.seconds * clip.frame_rate), 1)
    rate = None if is_kept else clip.frame_rate
    height, width = clip.crop[2:]
    scale = min(store.max_side / max(height, width), 1.0)
    # Even sides, as H.264 in 4:2:0 has them.
    height, width = (max(round(side * scale) // 2 * 2, 2) for side in (height, width))
    found = video.stream_video(clip.source, start=clip.start, frame_rate=rate)
    with contextlib.closing(found):
        for picture in itertools.islice(found, count):
            kept = _cropped(picture, clip)
            if scale < 1:
                resized = Image.fromarray(kept).resize((width, height), Image.Resampling.BICUBIC)
                kept = np.asarray(resized)
            yield kept[:height, :width]


def _cropped(picture: np.ndarray, clip: Clip) -> np.ndarray:
    top, left, height, width = clip.crop
    return picture[top : top + height, left : left + width]
