"""Decodes clips from their sources: a few frames for scoring, or all of them to store."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ltx_jax.config.preparation import StoreConfig
from ltx_jax.data import dataset, inputs, video, writing
from ltx_jax.prepare.records import ClipRecord


def sample_frames(
    clip: ClipRecord, count: int, *, bars: bool = False
) -> UInt8[np.ndarray, "t h w 3"]:
    """Decodes `count` frames at equal distances in a clip, without its black bars unless `bars`."""
    step = clip.seconds / count
    stream = video.stream_video(clip.load(), start=clip.start + step / 2, frame_rate=1 / step)
    with contextlib.closing(stream):
        frames = list(itertools.islice(stream, count))
    return np.stack(frames if bars else [_cropped(frame, clip) for frame in frames])


def write_clips(path: Path, clips: Sequence[ClipRecord], store: StoreConfig) -> None:
    """Encodes clips as H.264 and writes them into one ArrayRecord file, in their order."""
    scratch = path.with_name(f"{path.name}.mp4")

    def encoded() -> Iterator[bytes]:
        for clip in clips:
            frames = _stored_frames(clip, store)
            writing.write_video(scratch, frames, clip.frame_rate, crf=store.crf, repeatable=True)
            yield scratch.read_bytes()
            scratch.unlink()

    dataset.write_records(path, encoded())


def read_clip(clip: ClipRecord) -> inputs.Stored:
    """Reads an encoded clip that `write_clips` wrote."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(clip.file)
    content = reader.read([clip.place])[0]
    reader.close()
    return inputs.Stored(clip.name, content)


def _stored_frames(clip: ClipRecord, store: StoreConfig) -> Iterator[np.ndarray]:
    """The clip's frames at the rate, crop and size in which they are stored."""
    keep_rate = clip.steady and clip.frame_rate == clip.source_rate
    count = max(round(clip.seconds * clip.frame_rate), 1)
    rate = None if keep_rate else clip.frame_rate
    height, width = clip.crop[2:]
    scale = min(store.max_side / max(height, width), 1.0)
    # H.264 with 4:2:0 chroma needs even sides.
    height, width = (max(round(side * scale) // 2 * 2, 2) for side in (height, width))
    stream = video.stream_video(clip.load(), start=clip.start, frame_rate=rate)
    with contextlib.closing(stream):
        for frame in itertools.islice(stream, count):
            cropped = _cropped(frame, clip)
            if scale < 1:
                resized = Image.fromarray(cropped).resize((width, height), Image.Resampling.BICUBIC)
                cropped = np.asarray(resized)
            yield cropped[:height, :width]


def _cropped(picture: np.ndarray, clip: ClipRecord) -> np.ndarray:
    top, left, height, width = clip.crop
    return picture[top : top + height, left : left + width]
