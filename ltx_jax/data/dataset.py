"""Data sets in ArrayRecord files, which TFDS reads without TensorFlow; data sets of clips.

FOLDER/ltx_jax.json                    kind of the data set, how it was made, its version
FOLDER/KIND-train.array_record-*       the examples
FOLDER/features.json, dataset_info.json   read by `tfds.builder_from_directory`
FOLDER/index.npy                       one row per example with the facts needed without reading it

The index is written last: a folder with an index is complete.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltx_jax.config import DataConfig
from ltx_jax.data import inputs, media, video
from ltx_jax.runtime import files

_DESCRIPTION = "ltx_jax.json"
VERSION = 3  # of the data sets that are written; those of a later one are not read
_TFDS_VERSION = "1.0.0"  # in dataset_info.json
CLIPS = "clips"
_INDEX = "index.npy"
_SPLIT = "train"


def kind_of(folder: str | os.PathLike) -> str | None:
    """The kind of a data set, complete or not; None if the folder is not one of our data sets.

    Raises:
      ValueError: if the description of the data set is damaged.
    """
    file = Path(folder) / _DESCRIPTION
    return _read_description(file)["kind"] if file.is_file() else None


def _read_description(file: Path) -> dict[str, Any]:
    try:
        description = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        description = None
    if not isinstance(description, dict) or not isinstance(description.get("kind"), str):
        raise ValueError(f"{file} does not describe a data set")
    version = description.get("version", VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(
            f"{file.parent} is a data set of version {version!r}, and at most {VERSION} is read "
            "here: update ltx-jax"
        )
    return description


class DatasetWriter:
    """Writes a data set, in one process or in several that share the folder.

    Shards are written atomically, and shards that exist are not written again, so a process that
    was killed can simply be restarted.

    Args:
      folder: a new or empty folder, or one begun with the same description.
      kind: kind of the examples.
      features: TFDS features by name.
      index: dtype of a row of the index.
      description: JSON for readers. It must contain everything that determines the content.

    Attributes:
      complete: whether the data set is complete.

    Raises:
      ValueError: if the folder contains something else.
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
        # The round trip turns tuples into lists, as in the file.
        content = json.loads(json.dumps({"kind": kind, **description}))
        file = self._folder / _DESCRIPTION
        if file.exists():
            if difference := _difference(_read_description(file), content):
                name, before, now = difference
                raise ValueError(
                    f"{folder} was begun with {name} = {_short(before)}, and now it is "
                    f"{_short(now)}: choose another folder"
                )
        elif self._folder.is_dir() and any(self._folder.iterdir()):
            raise ValueError(f"{folder} is neither empty nor a data set: choose another folder")
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            files.atomic_write_text(file, json.dumps(content, indent=2) + "\n")
        self.complete = (self._folder / _INDEX).exists()

    def _part(self, number: int, ending: str) -> Path:
        return self._folder / f"part-{number:05}.{ending}"

    def has(self, number: int) -> bool:
        """Whether a shard has been written."""
        return self.complete or self._part(number, "array_record").exists()

    def write(self, number: int, rows: Iterable[tuple[dict[str, Any], tuple]]) -> int:
        """Writes a shard from pairs (example by feature name, row of the index); returns how many
        there were."""
        part = self._part(number, "array_record")
        for leftover in self._folder.glob(f".{part.stem}.*"):  # of a process that was killed
            leftover.unlink()
        index: list[tuple] = []

        def serialized() -> Iterator[bytes]:
            for example, facts in rows:
                index.append(facts)
                yield self._features.serialize_example(example)

        with files.atomic_write(part) as temporary:
            write_records(temporary, serialized())
            # Written before the part itself, whose existence says that both are there.
            with files.atomic_write(self._part(number, "npy")) as table, table.open("wb") as file:
                np.save(file, np.array(index, self._index))
        return len(index)

    def write_missing(
        self,
        count: int,
        worker: tuple[int, int],
        rows: Callable[[int], Iterable[tuple[dict[str, Any], tuple]]],
        report: Callable[[str], None],
        unit: str,
    ) -> None:
        """Writes those of a worker's shards that do not exist yet.

        Worker 0 then completes the data set if all shards exist.

        Args:
          count: number of shards of all workers.
          worker: index of this worker, and how many there are.
          rows: number of a shard -> its rows, as in `write`.
          report: called with each line of the log.
          unit: what a row is called in the log.
        """
        for number in range(worker[0], count, worker[1]):
            if self.has(number):
                continue
            begin = time.monotonic()
            written = self.write(number, rows(number))
            speed = written / (time.monotonic() - begin)
            report(f"shard {number + 1}/{count}  {speed:.3g} {unit}/s")
        missing = sum(not self.has(number) for number in range(count))
        if not missing and not self.complete and worker[0] == 0:
            self.finish(count)
        if not self.complete:
            report(
                f"{missing} of {count} shards are missing: run worker 0 again when the other "
                "workers have written them"
            )

    def finish(self, count: int) -> None:
        """Completes the data set once all of its `count` shards are written.

        Raises:
          ValueError: if the shards contain no example.
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
            elif file.exists():  # if not, a process that was killed has already renamed it
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
        with files.atomic_write(self._folder / _INDEX) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate(parts))
        self.complete = True
        for number in range(count):
            self._part(number, "npy").unlink()


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Writes an ArrayRecord file.

    Raises:
      OSError: if it cannot be written, as on a full disk.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
    for record in records:
        _raising_os_error(writer.write, record)
    _raising_os_error(writer.close)


def _raising_os_error(call: Callable[..., Any], *arguments: Any) -> None:
    """Calls a method of ArrayRecord, whose errors are RuntimeErrors."""
    try:
        call(*arguments)
    except RuntimeError as error:
        raise OSError(0, str(error)) from error


def _difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first entry of two nested dicts that differs: its dotted name, and both values."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return None if before == now else (name.removeprefix("."), before, now)
    for key in now | before:
        if difference := _difference(before.get(key), now.get(key), f"{name}.{key}"):
            return difference
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class DatasetReader:
    """Reads the examples of a complete data set by number.

    Args:
      folder: path of the data set.
      index: the dtype of its index; None: any.

    Attributes:
      folder: path of the data set.
      description: the description that was written.
      index: one row per example.

    Raises:
      ValueError: if the data set is incomplete or damaged.
    """

    def __init__(self, folder: str | os.PathLike, index: np.dtype | None = None):
        import tensorflow_datasets as tfds
        from google.protobuf import json_format

        self.folder = Path(folder)
        if not (self.folder / _INDEX).exists():
            raise ValueError(f"{folder} is incomplete: run the command that makes it again")
        self.description = _read_description(self.folder / _DESCRIPTION)
        try:
            self.index = np.load(self.folder / _INDEX)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{folder} is damaged: {_INDEX} cannot be read: {error}") from error
        if self.index.dtype != (index or self.index.dtype):
            raise ValueError(f"{folder} is damaged: {_INDEX} is not the index of such a data set")
        try:
            builder: Any = tfds.builder_from_directory(self.folder)  # pyright: ignore[reportCallIssue]
            if str(builder.version) != _TFDS_VERSION:
                raise ValueError(f"dataset_info.json has the version {builder.version}")
            self._examples = builder.as_data_source(_SPLIT)
            count = _count_examples(builder.info.splits[_SPLIT])
        except (
            *(OSError, ValueError, LookupError, TypeError, AttributeError),
            *(AssertionError, RuntimeError, json_format.Error),
        ) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{folder} is damaged: {reason[:200]}") from error
        if count != len(self.index):
            raise ValueError(
                f"{folder} is damaged: it has {count} examples, and its index has {len(self.index)}"
            )

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Reads an example as a dict of its features; text is bytes.

        Raises:
          ValueError: if the example is damaged.
        """
        try:
            return self._examples[number]
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"example {number} of {self.folder} is damaged: {error}") from error


def _count_examples(split: Any) -> int:
    """The number of examples in the shards of a split, as the files themselves state it.

    Raises:
      ValueError: if a shard is missing or cut off.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
        try:
            reader = ArrayRecordReader(os.fspath(path))
            count = reader.num_records()
            reader.close()
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path.name} is missing or cut off: {error}") from error
        if count != length:
            raise ValueError(f"{path.name} holds {count} of {length} examples")
    return sum(split.shard_lengths)


def clip_features() -> dict[str, Any]:
    """TFDS features of data sets of the kind `CLIPS`, whose index has the dtype `media.FACTS`."""
    import tensorflow_datasets as tfds

    number = tfds.features.Scalar(np.int32)
    return {
        "media": tfds.features.Tensor(
            shape=(), dtype=np.object_
        ),  # bytes of the video or image file
        "captions": tfds.features.Sequence(tfds.features.Text()),
        "provenance": tfds.features.Text(),  # JSON
        **{name: number for name in ("frames", "height", "width")},
        "frame_rate": tfds.features.Scalar(np.float32),
    }


def clip_row(
    medium: inputs.Stored, captions: Sequence[str], provenance: dict[str, Any]
) -> tuple[dict[str, Any], tuple]:
    """Makes the row of a clip or picture for `DatasetWriter.write`.

    Args:
      medium: the video or image file in memory.
      captions: one or more captions; training draws one of them each time.
      provenance: JSON about the origin of the clip: source, shot, crop, scores, ...

    Raises:
      ValueError: if the file cannot be read, or has no caption.
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
    """Opens a data set of clips as a training source.

    Raises:
      ValueError: if the data set cannot be read, or none of its clips fits a bucket.
    """
    reader = DatasetReader(folder, media.FACTS)

    def name(number: int) -> str:
        return f"example {number} of {folder}"

    if cfg.companions:
        raise ValueError(
            f"{folder} is a data set of clips, which holds no {' and no '.join(cfg.companions)}s: "
            "take a folder or a table of clips that have them"
        )

    def load(number: int) -> media.Files:
        example = reader[number]
        captions = [caption.decode() for caption in example["captions"]]
        return media.Files(inputs.Stored(name(number), example["media"]), captions)

    return media.Media(reader.index, name, load, cfg)
