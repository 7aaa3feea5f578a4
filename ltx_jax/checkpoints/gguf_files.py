"""GGUF files: their header, and their tensors as blocks that are dequantised when they are read.

Format: docs/gguf.md of ggml. The header is read here, within limits, and the blocks by the package
gguf, whose own reader maps the file into memory: its pages would count in addition to the
parameters.
"""

import functools
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ltx_jax.checkpoints.tensors import ComputedTensor, StoredTensor, Tensor

_MAX_TENSORS, _MAX_ENTRIES, _MAX_ELEMENTS = 200_000, 10_000, 1_000_000
_MAX_STRING = 10_000_000
_MAX_AXES = 4
# Types of metadata values that are numbers, by their code: their form for `struct`.
_NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Types of tensors that are stored as safetensors has them; all others are blocks.
_PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}


def open_file(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Reads the header: the metadata's `config`, which few files have, and the tensors.

    Raises:
      ValueError: if the file is truncated, damaged, of an unknown version, or has tensors of a type
        that the package gguf does not know, or if that package is needed and not installed.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        reader = _Reader(file, size)
        try:
            return _open(path, reader, size)
        except (struct.error, UnicodeDecodeError, OverflowError, KeyError) as error:
            raise ValueError(f"{path} is a damaged GGUF file: {error}") from error
        except _EndError as error:
            raise ValueError(
                f"{path} is a truncated GGUF file: its {size:,} bytes end within the header or a "
                "tensor; fetch it again"
            ) from error


class _EndError(Exception):
    pass


class _Reader:
    """Reads numbers and texts in order, never past the end of the file."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.left = file, size

    def bytes(self, count: int) -> bytes:
        if count > self.left:
            raise _EndError
        self.left -= count
        return self.file.read(count)

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.bytes(struct.calcsize(f"<{form}")))[0]

    def count(self, limit: int, what: str) -> int:
        number = self.number("Q")
        if number > limit:
            raise struct.error(f"{number} {what}")
        return number

    def text(self) -> str:
        return self.bytes(self.count(_MAX_STRING, "bytes of text")).decode()

    def value(self, kind: int) -> Any:
        """A value of the metadata; arrays are passed over."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_NUMBERS[kind])
        inner, count = self.number("I"), self.count(_MAX_ELEMENTS, "elements")
        if inner in _NUMBERS:
            self.bytes(count * struct.calcsize(f"<{_NUMBERS[inner]}"))
        elif inner == _STRING:
            for _ in range(count):
                self.text()
        else:
            raise struct.error(f"an array of type {inner}")
        return None


def _open(path: Path, reader: _Reader, size: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    reader.bytes(4)
    version = reader.number("I")
    if version not in (2, 3):
        raise ValueError(f"{path} is a GGUF file of version {version}; supported: 2 and 3")
    tensor_count = reader.count(_MAX_TENSORS, "tensors")
    if not tensor_count:
        raise ValueError(f"{path} is a GGUF file without tensors: fetch it again")
    metadata: dict[str, Any] = {}
    for _ in range(reader.count(_MAX_ENTRIES, "metadata entries")):
        name = reader.text()
        metadata[name] = reader.value(reader.number("I"))
    entries = []
    for _ in range(tensor_count):
        name, axes = reader.text(), reader.number("I")
        if axes > _MAX_AXES:
            raise struct.error(f"{name} has {axes} axes")
        shape = tuple(reader.number("Q") for _ in range(axes))[::-1]
        entries.append((name, shape, reader.number("I"), reader.number("Q")))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise struct.error(f"an alignment of {alignment!r}")
    start = -(-reader.file.tell() // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for name, shape, kind, offset in entries:
        if name in tensors:
            raise struct.error(f"{name} is there twice")
        tensors[name] = tensor = _tensor(path, name, shape, kind, start + offset)
        stored = tensor.stored if isinstance(tensor, ComputedTensor) else tensor
        if stored.offset + stored.nbytes > size:
            raise _EndError
    config = metadata.get("config")
    return {"config": config} if isinstance(config, str) else {}, tensors


def _tensor(path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Tensor:
    if kind in _PLAIN:
        return StoredTensor(path, name, _PLAIN[kind], shape, offset)
    gguf = _package(path)
    names = {int(entry): entry for entry in gguf.GGMLQuantizationType}
    if kind not in names:
        raise ValueError(f"{path}: {name} is of type {kind}, which the package gguf does not know")
    block, block_bytes = gguf.GGML_QUANT_SIZES[names[kind]]
    if not shape or shape[-1] % block:
        raise struct.error(f"{name}: rows of {shape[-1:]} values are no whole blocks of {block}")
    row = shape[-1] // block * block_bytes
    stored = StoredTensor(path, name, "U8", (math.prod(shape[:-1]), row), offset)

    def values(array: np.ndarray, part: slice) -> np.ndarray:
        return gguf.quants.dequantize(array, names[kind])

    return ComputedTensor(stored, shape, values)


@functools.cache
def _gguf() -> Any:
    import gguf

    return gguf


def _package(path: Path) -> Any:
    try:
        return _gguf()
    except ImportError as error:
        raise ValueError(
            f"{path} is a GGUF file with quantised weights, which the package gguf reads: "
            "pip install 'ltx-jax[gguf]', or pip install gguf"
        ) from error
