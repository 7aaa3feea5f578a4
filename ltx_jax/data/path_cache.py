"""Data sets of a teacher's paths from noise to data, which a student is trained on."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Int32

from ltx_jax.config import BucketConfig
from ltx_jax.data.dataset import DatasetReader
from ltx_jax.data.order import WeightedChoices, shuffled
from ltx_jax.data.read_ahead import in_background
from ltx_jax.data.sources import Encoding

KIND = "paths"
# The position of the path's bucket in the config, its number of tokens, and how many times of their
# own these have.
INDEX = np.dtype([("bucket", np.int32), ("tokens", np.int32), ("times", np.int32)])


@dataclasses.dataclass(frozen=True)
class Path:
    """One path of the teacher, and what the teacher was conditioned on."""

    caption: str
    frame_rate: float  # frames per second
    # Tokens at the times of the student's steps and at time 0, those of conditions first.
    states: Float16[np.ndarray, "s n c"]
    # The highest time of each token: 1 but for conditions; a single one on paths without any.
    own_times: Float32[np.ndarray, " #n"]
    coords: Int32[np.ndarray, "n 3"]  # pixel coordinates of the tokens: frame, row, column
    embedding: Float16[np.ndarray, "m c"] | None = None  # of the caption, if the data store it
    # Further inputs of a network by name, as in `TransformerConfig.context_shapes`.
    context: Mapping[str, Float32[np.ndarray, "..."]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PathBatch:
    """Paths of one bucket with the same number of tokens, stacked."""

    bucket: BucketConfig
    captions: tuple[str, ...]
    frame_rate: Float32[np.ndarray, " b"]
    states: Float16[np.ndarray, "b s n c"]
    own_times: Float32[np.ndarray, "b #n"]
    coords: Int32[np.ndarray, "b n 3"]
    embeddings: tuple[Float16[np.ndarray, "_ c"], ...] | None
    context: Mapping[str, Float32[np.ndarray, "b ..."]]


def path_features(
    embedding_width: int | None,
    context_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> dict[str, Any]:
    """TFDS features of a data set of paths.

    Args:
      embedding_width: width of the caption embeddings; None if none are stored.
      context_shapes: shapes of the entries of `Path.context`.
    """
    import tensorflow_datasets as tfds

    def tensor(*shape: int | None, dtype: Any) -> Any:
        encoding = "none" if dtype is np.float32 else "bytes"
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=encoding)

    further = {}
    if embedding_width is not None:
        further["embedding"] = tensor(None, embedding_width, dtype=np.float16)
    if context_shapes:
        further["context"] = {
            name: tensor(*shape, dtype=np.float32) for name, shape in context_shapes.items()
        }
    return {
        "states": tensor(None, None, None, dtype=np.float16),
        "own_times": tensor(None, dtype=np.float32),
        "coords": tensor(None, 3, dtype=np.int32),
        "caption": tfds.features.Text(),
        "frame_rate": tfds.features.Scalar(np.float32),
        **further,
    }


def to_row(path: Path, bucket: int) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """Converts a path to a row for `dataset.DatasetWriter.write`; `bucket` as in `INDEX`."""
    row = {field.name: getattr(path, field.name) for field in dataclasses.fields(Path)}
    row = {name: value for name, value in row.items() if value is not None}
    row["context"] = dict(path.context)
    if not path.context:
        del row["context"]
    return row, (bucket, path.states.shape[1], len(path.own_times))


def from_row(row: Mapping[str, Any]) -> Path:
    """The inverse of `to_row`, from a row that TFDS read."""
    return Path(**{**row, "caption": row["caption"].decode()})


class PathLoader:
    """Reads the batches of one process, each a pure function of its step.

    A step takes its paths from one group: those of one bucket, with the same number of tokens, and
    all with conditions or all without. The groups take turns in proportion to their paths, and each
    is read epoch by epoch in a new order.

    Args:
      folder: the data set.
      sizes: the buckets of the config, whose batch sizes are used.
      seed: seed of the order.
      held_out: number of paths that are set aside, out of the largest group.
      process_index: index of this process.
      process_count: number of processes; each reads an equal part of every batch.

    Attributes:
      encoding: how the clips were encoded that the conditions came from.
      description: how the paths were made.

    Raises:
      ValueError: if the data set cannot be read, or has too few paths to hold some out.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        sizes: Sequence[BucketConfig],
        seed: int,
        held_out: int,
        *,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._records = DatasetReader(folder, INDEX)
        self.description = self._records.description
        self.encoding: Encoding | None = None
        if "encoding" in self.description:
            self.encoding = Encoding.read(self.description["encoding"])
        self._sizes, self._seed, self._process = sizes, seed, (process_index, process_count)
        index = self._records.index
        kinds = np.unique(index)
        groups = [np.flatnonzero(index == kind) for kind in kinds]
        largest = max(range(len(groups)), key=lambda i: len(groups[i]))
        if len(groups[largest]) <= held_out:
            raise ValueError(
                f"{folder} has {len(groups[largest])} paths of one kind, and held_out is "
                f"{held_out}: make more paths (ltx-encode --examples), or hold out fewer"
            )
        self._held_out = groups[largest][:held_out]
        groups[largest] = groups[largest][held_out:]
        self._groups = groups
        self._buckets = [sizes[bucket] for bucket in kinds["bucket"].tolist()]
        batches = [
            len(group) / bucket.batch_size
            for group, bucket in zip(groups, self._buckets, strict=True)
        ]
        self._group = WeightedChoices(batches, (seed, 0))

    def batch(self, step: int) -> PathBatch:
        """Reads this process's part of the batch of a step."""
        [number], [rank] = (array.tolist() for array in self._group.choose(step, 1))
        bucket, group = self._buckets[number], self._groups[number]
        rows = bucket.batch_size // self._process[1]
        first = rank * bucket.batch_size + self._process[0] * rows
        places = (shuffled(first + i, len(group), (self._seed, 3, number)) for i in range(rows))
        return self._stack(bucket, [int(group[place]) for place in places])

    def batches(self, first: int, last: int) -> Iterator[PathBatch]:
        """Yields the batches of the steps [first, last), reading ahead."""
        return in_background((self.batch(step) for step in range(first, last)), ahead=2)

    def held_out(self) -> Iterator[PathBatch]:
        """The paths that are never trained on, in whole batches and in every process."""
        if not len(self._held_out):
            return
        bucket = self._sizes[int(self._records.index["bucket"][self._held_out[0]])]
        size = bucket.batch_size
        for first in range(0, len(self._held_out) - size + 1, size):
            yield self._stack(bucket, self._held_out[first : first + size].tolist())

    def _stack(self, bucket: BucketConfig, numbers: Sequence[int]) -> PathBatch:
        paths = [from_row(self._records[number]) for number in numbers]
        first = paths[0]
        embeddings = [path.embedding for path in paths if path.embedding is not None]
        return PathBatch(
            bucket,
            tuple(path.caption for path in paths),
            np.array([path.frame_rate for path in paths], np.float32),
            np.stack([path.states for path in paths]),
            np.stack([path.own_times for path in paths]),
            np.stack([path.coords for path in paths]),
            tuple(embeddings) or None,
            {name: np.stack([path.context[name] for path in paths]) for name in first.context},
        )
