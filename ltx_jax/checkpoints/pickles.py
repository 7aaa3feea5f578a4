"""Reads arrays from pickles without running what a pickle names.

A pickle is a program that may call any function of any module. Here it can call nothing but the few
constructors in this file, which hold arrays, and an ordered dictionary; whatever else it names is
an error. Two kinds are read: nested dictionaries of numpy arrays, and dictionaries of tensors in
PyTorch's format before version 1.6 ("legacy"), without PyTorch.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of a legacy file
_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
}
_DTYPES = ("f8", "f4", "f2", "i8", "i4")
# What a damaged pickle raises, according to Python's documentation and by trial.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError),
    *(KeyError, TypeError, ValueError, OverflowError, MemoryError),
)

Arrays = Mapping[str, Any]  # names -> arrays or further mappings


def read_arrays(path: Path) -> Arrays:
    """Reads nested dictionaries of numpy arrays.

    Raises:
      ValueError: if the file is missing or damaged, or holds something else.
    """

    def read(file: BinaryIO) -> Any:
        return _Unpickler(file, _NUMPY).load()

    return _read(path, read)


def read_legacy_tensors(path: Path) -> Arrays:
    """Reads a dictionary of tensors that PyTorch before version 1.6 saved.

    Raises:
      ValueError: if the file is missing or damaged, or holds something else.
    """

    def read(file: BinaryIO) -> Any:
        for expected in (_MAGIC, _PROTOCOL):
            if _Unpickler(file, {}).load() != expected:
                raise pickle.UnpicklingError("it is not in PyTorch's legacy format")
        if _Unpickler(file, {}).load().get("little_endian") is not True:
            raise pickle.UnpicklingError("it was written on a big-endian machine")
        tensors = _Unpickler(file, _TORCH).load()
        storages: dict[Any, np.ndarray] = {}
        dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
        for key in _Unpickler(file, {}).load():
            count = int.from_bytes(file.read(8), "little")
            content = file.read(count * np.dtype(dtypes[key]).itemsize)
            storages[key] = np.frombuffer(content, dtypes[key], count)
        return {name: tensor.array(storages) for name, tensor in tensors.items()}

    return _read(path, read)


def _read(path: Path, read: Callable[[BinaryIO], Any]) -> Arrays:
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    try:
        with path.open("rb") as file:
            return _checked(read(file))
    except _DAMAGE as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _checked(content: Any) -> Arrays:
    """Nested dictionaries with arrays in place of what holds their parts."""
    if not isinstance(content, dict):
        raise pickle.UnpicklingError(f"it holds a {type(content).__name__}, not a dictionary")
    result: dict[str, Any] = {}
    for name, value in content.items():
        value = value.array() if isinstance(value, _NumpyArray) else value
        result[str(name)] = value if isinstance(value, np.ndarray) else _checked(value)
    return result


class _Unpickler(pickle.Unpickler):
    """Knows the names in a table, and no others.

    Args:
      file: the pickle; it is read to its end and no further.
      names: "module name" -> what stands for it.
    """

    def __init__(self, file: BinaryIO, names: Mapping[str, Any]):
        super().__init__(file)
        self._names = names

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What stands for a name."""
        try:
            return self._names[f"{module_name} {global_name}"]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module_name}.{global_name}, which may run code"
            ) from None

    def persistent_load(self, pid: Any, /) -> "_Storage":
        """A storage of a legacy file, whose values follow after the pickles."""
        kind, dtype, key, _, count, view = pid
        if kind != "storage" or view is not None:
            raise pickle.UnpicklingError("it holds views of storages")
        return _Storage(dtype, key, count)


class _Storage(NamedTuple):
    """Values that lie at the end of a legacy file."""

    dtype: Any
    key: Any
    count: int


class _Tensor(NamedTuple):
    """A tensor in a legacy file: a part of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in values

    def array(self, storages: Mapping[Any, np.ndarray]) -> np.ndarray:
        """The tensor's values."""
        values = storages[self.storage.key]
        last = self.offset + sum(
            (n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)
        )
        if min((*self.shape, *self.strides, self.offset, 0)) < 0 or last >= len(values):
            raise pickle.UnpicklingError("it holds a tensor beyond its storage")
        steps = [step * values.itemsize for step in self.strides]
        part = np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps)
        return np.ascontiguousarray(part).reshape(self.shape)


def _rebuilt_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


class _NumpyDtype:
    """The parts of a dtype, which a pickle gives one after the other."""

    def __init__(self, code: str, *_: Any):
        if code not in _DTYPES:
            raise pickle.UnpicklingError(f"it holds an array of dtype {code}")
        self._code, self._order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = state[1]

    def dtype(self) -> np.dtype:
        """The dtype."""
        return np.dtype(self._order + self._code)


class _NumpyArray:
    """The parts of an array, which a pickle gives one after the other."""

    def __init__(self, *_: Any):
        self._parts: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._parts = state

    def array(self) -> np.ndarray:
        """The array."""
        _, shape, dtype, is_fortran, content = self._parts
        order = "F" if is_fortran else "C"
        return np.frombuffer(content, dtype.dtype()).reshape(shape, order=order)


_NUMPY: dict[str, Any] = {
    "numpy ndarray": None,  # only an argument of `_reconstruct`
    "numpy dtype": _NumpyDtype,
    "numpy.core.multiarray _reconstruct": _NumpyArray,
    "numpy._core.multiarray _reconstruct": _NumpyArray,
}
_TORCH: dict[str, Any] = {
    "collections OrderedDict": OrderedDict,
    "torch._utils _rebuild_tensor_v2": _rebuilt_tensor,
    **{f"torch {name}": dtype for name, dtype in _STORAGES.items()},
}
