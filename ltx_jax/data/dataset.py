"""Data sets in ArrayRecord files that TFDS reads without TensorFlow, and those of clips.

FOLDER/ltx_jax.json                    what the set holds and how it was made
FOLDER/KIND-train.array_record-*       the examples
FOLDER/features.json, dataset_info.json   by which `tfds.builder_from_directory` opens the folder
FOLDER/index.npy                       what is known of each example without reading it

The index is written last: a folder that has it is complete.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltx_jax.config import DataConfig
from ltx_jax.data import media, video

_DESCRIPTION = "ltx_jax.json"
CLIPS = "clips"
_INDEX = "index.npy"
_SPLIT = "train"


def kind_of(folder: str | os.PathLike) -> str | None:
    """What a data set of ours holds, finished or not; None where the folder is none.

    Raises:
      ValueError: if its description is damaged.
    """
    file = Path(folder) / _DESCRIPTION
    return _read(file)["kind"] if file.is_file() else None


def _read(file: Path) -> dict[str, Any]:
    try:
        description = json.loads(file.read_text())
        if "kind" in description:
            return description
    except (OSError, ValueError, TypeError):
        pass
    raise ValueError(f"{file} does not describe a data set")


class Shards:
    """A data set that is being written, by one process or by several that share the folder.

    A shard appears under its name when it is complete, and one that is there is not made again: a
    process that was killed starts anew and goes on.

    Args:
      folder: new, empty, or begun with the same description.
      kind: what the examples are.
      features: of TFDS, by name.
      index: the type of what is known of an example without reading it.
      description: for readers, JSON; whatever decides the content belongs into it.

    Attributes:
      complete: whether nothing is left to do.

    Raises:
      ValueError: if the folder holds something else.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        kind: str,
        features: dict[str, Any],
        index: np.dtype,
        description: dict[str, Any],
    ):
        import tensorflow_datasets as tfds

        self._folder, self._kind, self._index = Path(folder), kind, index
        self._features: Any = tfds.features.FeaturesDict(features)
        # As it comes back: tuples are lists in JSON.
        wanted = json.loads(json.dumps({"kind": kind, **description}))
        file = self._folder / _DESCRIPTION
        if file.exists():
            if found := _difference(_read(file), wanted):
                name, before, now = found
                raise ValueError(
                    f"{folder} was begun with {name} = {_short(before)}, and now it is "
                    f"{_short(now)}: choose another folder"
                )
        elif self._folder.is_dir() and any(self._folder.iterdir()):
            raise ValueError(f"{folder} is not empty and no data set: choose another folder")
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(file, json.dumps(wanted, indent=2).encode() + b"\n")
        self.complete = (self._folder / _INDEX).exists()

    def _part(self, number: int, ending: str) -> Path:
        return self._folder / f"part-{number:05}.{ending}"

    def has(self, number: int) -> bool:
        """Whether a shard is complete."""
        return self.complete or self._part(number, "array_record").exists()

    def write(self, number: int, rows: Iterable[tuple[dict[str, Any], tuple]]) -> None:
        """Writes a shard: examples by the names of the features, and their rows of the index."""
        from array_record.python.array_record_module import ArrayRecordWriter

        part = self._part(number, "array_record")
        temporary = part.with_name(f".{part.name}")
        writer = ArrayRecordWriter(os.fspath(temporary), "group_size:1")
        known = []
        for example, facts in rows:
            writer.write(self._features.serialize_example(example))
            known.append(facts)
        writer.close()
        with self._part(number, "npy").open("wb") as file:
            np.save(file, np.array(known, self._index))
        os.replace(temporary, part)

    def finish(self, count: int) -> None:
        """Makes one data set of `count` shards, all of them written.

        Raises:
          ValueError: if there is no example in them.
        """
        import tensorflow_datasets as tfds

        parts = [np.load(self._part(number, "npy")) for number in range(count)]
        lengths = [len(part) for part in parts if len(part)]
        if not lengths:
            raise ValueError(f"{self._folder}: there is no example to store")
        template = tfds.core.ShardedFileTemplate(
            tfds.core.Path(self._folder),
            dataset_name=self._kind,
            split=_SPLIT,
            filetype_suffix="array_record",
        )
        names = iter(template.sharded_filepaths(len(lengths)))
        for number, part in enumerate(parts):
            file = self._part(number, "array_record")
            name = next(names) if len(part) else None
            if name is None:
                file.unlink(missing_ok=True)
            elif file.exists():  # else it was renamed before the process was killed
                os.replace(file, name)
        split = tfds.core.SplitInfo(
            name=_SPLIT, shard_lengths=lengths, num_bytes=0, filename_template=template
        )
        tfds.folder_dataset.write_metadata(
            data_dir=self._folder,
            features=self._features,
            split_infos=[split],
            check_data=False,
        )
        temporary = self._folder / f".{_INDEX}"
        with temporary.open("wb") as file:
            np.save(file, np.concatenate(parts))
        os.replace(temporary, self._folder / _INDEX)
        self.complete = True
        for number in range(count):
            self._part(number, "npy").unlink()


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, file)


def _difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first entry of two nested dicts that differs: its dotted name, and both values."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return None if before == now else (name.removeprefix("."), before, now)
    for key in now | before:
        if found := _difference(before.get(key), now.get(key), f"{name}.{key}"):
            return found
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Records:
    """A finished data set: examples by number.

    Attributes:
      folder: where it lies.
      description: as it was written.
      index: what is known of each example without reading it.

    Raises:
      ValueError: if it is not finished, or damaged.
    """

    def __init__(self, folder: str | os.PathLike):
        import tensorflow_datasets as tfds

        self.folder = Path(folder)
        if not (self.folder / _INDEX).exists():
            raise ValueError(f"{folder} is not finished: run the command that makes it again")
        try:
            self.description = _read(self.folder / _DESCRIPTION)
            self.index = np.load(self.folder / _INDEX)
            builder: Any = tfds.builder_from_directory(self.folder)  # pyright: ignore[reportCallIssue]
            self._examples = builder.as_data_source(_SPLIT)
        except (OSError, ValueError, AssertionError) as error:
            raise ValueError(f"{folder} is damaged: {error}") from error
        if len(self._examples) != len(self.index):
            raise ValueError(
                f"{folder} is damaged: {len(self._examples)} examples, {len(self.index)} in its "
                "index"
            )

    def __getitem__(self, number: int) -> dict[str, Any]:
        """An example by the names of its features; text as bytes.

        Raises:
          ValueError: if it is damaged.
        """
        try:
            return self._examples[number]
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"example {number} of {self.folder} is damaged: {error}") from error


def clip_features() -> dict[str, Any]:
    """Features of a data set of the kind `CLIPS`; its index is `media.FACTS`."""
    import tensorflow_datasets as tfds

    number = tfds.features.Scalar(np.int32)
    return {
        "media": tfds.features.Tensor(shape=(), dtype=np.object_),  # the bytes of the file
        "captions": tfds.features.Sequence(tfds.features.Text()),
        "provenance": tfds.features.Text(),  # JSON
        **{name: number for name in ("frames", "height", "width")},
        "frame_rate": tfds.features.Scalar(np.float32),
    }


def clip_row(
    medium: video.Stored, captions: Sequence[str], provenance: dict[str, Any]
) -> tuple[dict[str, Any], tuple]:
    """A clip or a picture as `Shards.write` takes it.

    Args:
      medium: the file, as any that `video` reads.
      captions: at least one; training draws one each time.
      provenance: where it comes from and what was done to it: source, shot, crop, scores, ...

    Raises:
      ValueError: if it cannot be read, or has no caption.
    """
    if not captions:
        raise ValueError(f"{medium} has no caption")
    facts = video.probe(medium)
    example = {
        "media": medium.content,
        "captions": list(captions),
        "provenance": json.dumps({"name": medium.name, **provenance}),
        **{name: getattr(facts, name) for name in ("frames", "height", "width", "frame_rate")},
    }
    return example, facts


def open_clips(folder: str | os.PathLike, cfg: DataConfig) -> media.Media:
    """The clips of a data set, as the buckets of a config cut them.

    Raises:
      ValueError: if the data set cannot be used, or none of its clips.
    """
    records = Records(folder)

    def name(number: int) -> str:
        return f"example {number} of {folder}"

    def load(number: int) -> tuple[video.Stored, list[str]]:
        example = records[number]
        captions = [caption.decode() for caption in example["captions"]]
        return video.Stored(name(number), example["media"]), captions

    return media.Media(records.index, name, load, cfg)
