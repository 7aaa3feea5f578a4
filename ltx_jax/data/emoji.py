"""Data sets of animated emoji, and scenes of them as a source of training examples."""

import dataclasses
import json
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ltx_jax.config import BucketConfig, DataConfig
from ltx_jax.data.dataset import DatasetReader
from ltx_jax.data.sources import EMOJI, Example
from ltx_jax.emoji import render
from ltx_jax.emoji.catalogue import FRAME_RATE, SPLITS, Catalogue, Entry, Split

__all__ = ["FRAME_RATE", "INDEX", "KIND", "Emoji", "features", "to_row"]

KIND = "emoji"
# All fields of an `Entry`, so that scenes are sampled without reading clips.
INDEX = np.dtype(
    [
        *((name, "S96") for name in ("hexcode", "label", "thing", "base")),
        ("tags", "S640"),  # one a line
        *((name, "S32") for name in ("group", "subgroup")),
        *((name, np.int32) for name in ("tone", "frames")),
        ("box", np.float32, (4,)),
    ]
)


def features() -> dict[str, Any]:
    """TFDS features of a data set of emoji."""
    import tensorflow_datasets as tfds

    return {
        # Premultiplied RGBA.
        "clip": tfds.features.Tensor(shape=(None, None, None, 4), dtype=np.uint8, encoding="zlib"),
        **{
            name: tfds.features.Text()
            for name in ("hexcode", "label", "thing", "base", "group", "subgroup", "provenance")
        },
        "tags": tfds.features.Sequence(tfds.features.Text()),
        "tone": tfds.features.Scalar(np.int32),
        "frames": tfds.features.Scalar(np.int32),
        "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
    }


def to_row(
    entry: Entry, clip: UInt8[np.ndarray, "t n n 4"], provenance: dict[str, Any]
) -> tuple[dict[str, Any], tuple]:
    """Converts an emoji to a row for `dataset.DatasetWriter.write`.

    Args:
      entry: the emoji.
      clip: its frames, premultiplied RGBA.
      provenance: origin of the clip, as JSON.

    Raises:
      ValueError: if a text does not fit into the index.
    """
    fields = dataclasses.asdict(entry)
    row = []
    for name in INDEX.names or ():
        value = fields[name]
        if INDEX[name].kind == "S":
            value = ("\n".join(value) if name == "tags" else value).encode()
            if len(value) > INDEX[name].itemsize:
                raise ValueError(f"{name} of {entry.hexcode} does not fit into the index")
        row.append(value)
    example = {
        **fields,
        "clip": clip,
        "tags": list(entry.tags),
        "box": np.array(entry.box, np.float32),
        "provenance": json.dumps(provenance),
    }
    return example, tuple(row)


def _entry(row: np.void) -> Entry:
    """The entry in a row of the index."""
    fields: dict[str, Any] = {}
    for name in INDEX.names or ():
        value = row[name]
        fields[name] = value.decode() if isinstance(value, bytes) else value.tolist()
    fields["tags"] = tuple(fields["tags"].split("\n")) if fields["tags"] else ()
    return Entry(**{**fields, "box": tuple(fields["box"])})


class Emoji:
    """Scenes of emoji as a source: an endless stream of clips, divided among the buckets.

    Args:
      path: "emoji:FOLDER" for training, "emoji:FOLDER@SPLIT" for another of `catalogue.SPLITS`.
      cfg: buckets and frame rates.
      seed: seed of the scenes.

    Attributes:
      catalogue: the emoji of the data set.

    Raises:
      ValueError: if there is no such split, or the folder contains no data set of emoji.
    """

    encoding = None

    def __init__(self, path: str, cfg: DataConfig, seed: int):
        self._cfg, self._seed = cfg, seed
        self._split: Split
        self._reader, self.catalogue, self._split = _open(path)

    def count(self, bucket: BucketConfig) -> None:
        """None: scenes are endless at any size."""

    def example(self, bucket: BucketConfig, index: int, rng: np.random.Generator) -> Example:
        """Renders a clip at one of the config's frame rates."""
        sizes = self._cfg.sizes
        frame_rate = float(rng.choice(self._cfg.frame_rates))
        clip = self.clip(
            index * len(sizes) + sizes.index(bucket),
            num_frames=bucket.num_frames,
            height=bucket.height,
            width=bucket.width,
            fps=frame_rate,
        )
        return Example(clip.caption, frame_rate, clip.frames)

    def clip(
        self, index: int, *, num_frames: int, height: int, width: int, fps: float
    ) -> render.EmojiClip:
        """Clip number `index` of the split."""
        return render.clip(
            index,
            self.catalogue,
            self.artwork,
            seed=self._seed,
            split=self._split,
            num_frames=num_frames,
            height=height,
            width=width,
            fps=fps,
        )

    def artwork(self, number: int) -> UInt8[np.ndarray, "t n n 4"]:
        """The frames of an emoji of the catalogue, premultiplied RGBA."""
        return self._reader[number]["clip"]


def _open(path: str) -> tuple[DatasetReader, Catalogue, Split]:
    folder, _, name = path.removeprefix(EMOJI).partition("@")
    for split in SPLITS:
        if split == (name or "train"):
            break
    else:
        raise ValueError(f"{path}: there is no split {name!r}; known are {', '.join(SPLITS)}")
    reader = DatasetReader(folder)
    if reader.description["kind"] != KIND:
        raise ValueError(f"{folder} contains {reader.description['kind']}, not emoji")
    return reader, Catalogue(map(_entry, reader.index)), split
