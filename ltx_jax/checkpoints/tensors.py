"""Safetensors files, tensor by tensor: reading, writing and fingerprints.

Reads go through the file descriptor, not through a mapping: the pages of a mapping count as
resident memory, and then a model would be held twice while it loads.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ltx_jax.config import parse_json, shown
from ltx_jax.runtime import files

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
FLOAT8 = (DTYPES["F8_E4M3"], DTYPES["F8_E5M2"])
_GGUF = b"GGUF"  # the first bytes of that format's files

# Longer headers are not read by the format's own library either.
_MAX_HEADER = 100_000_000
# The released files have 1,500 at most; those of the largest language models 100,000.
_MAX_TENSORS = 200_000
_MAX_AXES = 16
_CHUNK = 1 << 20  # values that are computed at a time
# A smaller file is fingerprinted whole, a larger one by pieces.
_HASH_WHOLE = 1 << 25
_HASH_PIECE = 1 << 10


class StoredTensor(NamedTuple):
    """A tensor whose values lie in a file as they are."""

    path: Path
    name: str
    code: str  # of the dtype, as in the file: "BF16"
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file

    @property
    def dtype(self) -> np.dtype:
        """The dtype in memory.

        Raises:
          ValueError: if numpy has none for it.
        """
        if self.code not in DTYPES:
            raise ValueError(f"{self.path}: {self.name} is stored as {self.code}, not supported")
        return DTYPES[self.code]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Reads the tensor into memory of its own."""
        buffer = np.empty(self.nbytes, np.uint8)
        view, position = memoryview(buffer.data), 0
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            while position < len(view):  # one read gives 2 GB at most
                count = file.readinto(view[position:])
                if not count:
                    raise ValueError(f"{self.path} ends within {self.name}: it changed on disk")
                position += count
        return buffer.view(self.dtype).reshape(self.shape)

    def read_as(self, dtype: np.dtype) -> np.ndarray:
        """Reads the tensor and casts it; numpy casts contiguous arrays many times faster than
        transposed ones."""
        array = self.read()
        return widened(array, dtype) if array.dtype in FLOAT8 else array.astype(dtype, copy=False)

    def map(self) -> np.ndarray:
        """A read-only view of the file, which takes no memory until it is accessed."""
        if not self.nbytes:
            return np.empty(self.shape, self.dtype)
        mapped = np.memmap(self.path, np.uint8, "r", self.offset, (self.nbytes,))
        return mapped.view(self.dtype).reshape(self.shape)


def widened(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Casts 8-bit floats by a lookup table of their 256 values, faster than numpy's own cast."""
    table = np.arange(256, dtype=np.uint8).view(array.dtype).astype(dtype)
    bits = table.view(f"u{dtype.itemsize}")
    codes = array.view(np.uint8).reshape(-1)
    result = np.empty(codes.size, bits.dtype)
    for start in range(0, codes.size, _CHUNK):  # the index of each takes eight bytes
        part = slice(start, start + _CHUNK)
        np.take(bits, codes[part], out=result[part], mode="clip")
    return result.view(dtype).reshape(array.shape)


class ComputedTensor(NamedTuple):
    """A tensor whose values are computed, by rows, from what a file stores."""

    stored: StoredTensor  # a matrix with the rows of the tensor
    shape: tuple[int, ...]
    values: Callable[[np.ndarray, slice], np.ndarray]  # stored rows, and which -> float32

    @property
    def name(self) -> str:
        """Its name in the file."""
        return self.stored.name

    @property
    def path(self) -> Path:
        """Its file."""
        return self.stored.path

    @property
    def dtype(self) -> np.dtype:
        """The dtype of its values unless another is asked for: bfloat16, as in released weights."""
        return DTYPES["BF16"]

    def read_as(self, dtype: np.dtype) -> np.ndarray:
        """Computes the values in float32, some rows at a time, and rounds once to `dtype`."""
        stored = self.stored.read()
        result = np.empty((len(stored), math.prod(self.shape) // max(len(stored), 1)), dtype)
        rows = max(1, _CHUNK // max(result.shape[1], 1))
        for start in range(0, len(result), rows):
            part = slice(start, start + rows)
            result[part] = self.values(stored[part], part)
        return result.reshape(self.shape)


Tensor = StoredTensor | ComputedTensor


class TensorFile(NamedTuple):
    """The header of a safetensors file."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]


def is_gguf(path: Path) -> bool:
    """Whether a file begins as the GGUF format does, whatever its name."""
    with open(path, "rb") as file:
        return file.read(len(_GGUF)) == _GGUF


def open_file(path: Path) -> TensorFile:
    """Reads the header and checks it against the size of the file.

    Raises:
      ValueError: if the file is missing, empty, truncated or no safetensors file.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty: the download failed, fetch it again")
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= _MAX_HEADER:
                raise ValueError("its first eight bytes are no header length")
            if length > size - 8:
                raise _truncated(path, size, 8 + length)
            text = file.read(length)
        if text.count(b'"data_offsets"') > _MAX_TENSORS:
            raise ValueError(f"it lists more than {_MAX_TENSORS:,} tensors")
        return _parse(path, parse_json(text, "its header"), 8 + length, size)
    except _TruncatedError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is corrupt or no safetensors file ({error}): fetch it again, or check that "
            "it is the right one"
        ) from error


class _TruncatedError(ValueError):
    pass


def _truncated(path: Path, size: int, expected: int) -> _TruncatedError:
    return _TruncatedError(
        f"{path} is truncated: it has {size:,} bytes and its header promises {expected:,}; "
        "fetch it again"
    )


def _parse(path: Path, raw: dict[str, Any], start: int, size: int) -> TensorFile:
    metadata = raw.pop("__metadata__", {})
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is not text")
    tensors, spans = {}, []
    for name, entry in raw.items():
        begin, end = (_whole(name, offset) for offset in entry["data_offsets"])
        shape = tuple(_whole(name, size) for size in entry["shape"])
        if len(shape) > _MAX_AXES or not isinstance(entry["dtype"], str):
            raise ValueError(f"{name} has {len(shape)} axes and the dtype {shown(entry['dtype'])}")
        tensor = StoredTensor(path, name, entry["dtype"], shape, start + begin)
        has_size = tensor.code in DTYPES  # without a dtype in numpy the size is not checked
        if end < begin or (has_size and end - begin != tensor.nbytes):
            raise ValueError(f"the bytes of {name} do not fit its shape")
        tensors[name] = tensor
        spans.append((begin, end))
    expected = start + max((end for _, end in spans), default=0)
    if expected > size:
        raise _truncated(path, size, expected)
    spans.sort()
    if any(a[1] > b[0] for a, b in itertools.pairwise(spans)):
        raise ValueError("its tensors overlap")
    return TensorFile(path, metadata, tensors)


def _whole(name: str, number: Any) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"{shown(number)} in the entry of {shown(name)} is no whole number")
    return number


class Pending(NamedTuple):
    """A tensor to be written, whose values are computed when they are needed."""

    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def pending(array: np.ndarray) -> Pending:
    """An array in memory, to be written."""
    return Pending(array.dtype, array.shape, lambda: array)


def write_file(path: Path, tensors: Mapping[str, Pending], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, holding one tensor at a time.

    The file appears under its name when it is complete, replacing one that is there; if anything
    fails nothing is left behind.

    Raises:
      ValueError: if the place cannot be written, or is full.
    """
    # Wide dtypes first, as the format's own library does, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterable[Any]:
        yield len(text).to_bytes(8, "little")
        yield text
        for name in names:
            # A zero-dimensional array has no byte view, and ascontiguousarray gives it one axis.
            array = np.ascontiguousarray(tensors[name].make()).reshape(-1)
            if array.dtype != tensors[name].dtype or array.nbytes != tensors[name].nbytes:
                raise ValueError(f"{name} changed while {path} was written")
            yield array.view(np.uint8)

    with files.atomic_write(path) as temporary, temporary.open("wb") as file:
        file.writelines(chunks())


def fingerprint(paths: Iterable[Path]) -> str:
    """A SHA-256 (hex) of files, in the order given, whatever their names.

    A file up to 32 MB is hashed whole. A larger one is sampled: its size, and pieces of 1 KB. In
    safetensors these are the header and the beginning, middle and end of every tensor, so that any
    training changes the hash, however few tensors it touched; in other files they are 1024 pieces
    at even distances. 26 GB take milliseconds.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with open(path, "rb") as file:
            if size <= _HASH_WHOLE:
                digest.update(file.read())
                continue
            if path.suffix == ".safetensors" and not is_gguf(path):
                header = int.from_bytes(file.read(8), "little")
                digest.update(file.read(header))
                offsets = _offsets(open_file(path).tensors.values())
            else:
                offsets = [i * (size - _HASH_PIECE) // 1023 for i in range(1024)]
            for offset in offsets:
                file.seek(offset)
                digest.update(file.read(_HASH_PIECE))
    return digest.hexdigest()


def _offsets(stored: Iterable[StoredTensor]) -> list[int]:
    """The beginning, middle and end of every tensor; the piece of a small one extends beyond it."""
    lasts = [(t.offset, max(t.nbytes - _HASH_PIECE, 0)) for t in stored]
    return [first + part for first, last in lasts for part in sorted({0, last // 2, last})]
