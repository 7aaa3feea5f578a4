"""From tensors in files to arrays on devices and back, one tensor at a time."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ltx_jax.checkpoints.keys import Leaf
from ltx_jax.checkpoints.tensors import FLOAT8, Pending, Tensor
from ltx_jax.config import DType
from ltx_jax.runtime import sharding

_FLOATS = ("float32", "float16", "bfloat16")
# Tensors up to this number of values are checked for NaN and infinity: norms, biases, embeddings of
# tokens and times, but not the large matrices, where it would take as long as reading.
_CHECKED = 1 << 20
# Rows of a tensor that are transposed at a time: more of them do not fit into the CPU's cache.
_TILE = 16
# Layers that are read and transposed at a time; each holds one tensor in memory.
_THREADS = min(4, os.cpu_count() or 1)
# XLA uses a host buffer without a copy if its address is a multiple of this.
_ALIGNMENT = 64


def check(where: str, what: str, leaves: Iterable[Leaf], stored: Mapping[str, Tensor]) -> None:
    """Compares the tensors of a file with those that a network needs.

    Raises:
      ValueError: naming the missing, unexpected and wrongly shaped or typed tensors.
    """
    shapes = {name: leaf.stored_shape for leaf in leaves for name in leaf.names}
    missing = [name for name in shapes if name not in stored]
    unexpected = [stored[name].name for name in stored if name not in shapes]
    problems = []
    if missing:
        problems.append(f"missing: {first_five(missing)}")
    if unexpected:
        problems.append(f"unexpected: {first_five(unexpected)}")
    for name, shape in shapes.items():
        if name in stored and stored[name].shape != shape:
            problems.append(f"{stored[name].name} has shape {stored[name].shape}, expected {shape}")
    if problems:
        raise ValueError(f"{where} does not hold {what}: " + "; ".join(_head(problems)))
    kinds = {stored[name].name: stored[name].dtype for name in shapes}
    wrong = {n: k.name for n, k in kinds.items() if k.name not in _FLOATS and k not in FLOAT8}
    if wrong:
        raise ValueError(
            f"{where} holds {first_five(list(wrong))} as {sorted(set(wrong.values()))}, expected "
            f"one of {_FLOATS} or 8-bit floats"
        )


def first_five(names: Sequence[str]) -> str:
    """The first five names, comma-separated, and how many more there are."""
    return ", ".join(_head(names))


def _head(items: Sequence[str]) -> list[str]:
    return [*items[:5], *([f"and {len(items) - 5} more"] if len(items) > 5 else [])]


def read(
    leaves: Sequence[Leaf],
    boxed: Any,
    stored: Mapping[str, Tensor],
    mesh: Mesh | None,
    dtype: DType | None,
    in_memory: bool = True,
) -> Any:
    """Reads a network's parameters: plain nested dicts, laid out on `mesh` by their logical axes.

    Every tensor is read once. On a CPU the buffers become the arrays themselves; elsewhere the
    host holds one parameter at a time, all layers of it.

    Args:
      boxed: the parameters' shapes with their axes.
      stored: the tensors by official name, already checked.
      mesh: None puts everything on the default device.
      dtype: None keeps that of the file; a parameter whose layers differ takes the wider one.
      in_memory: False gives a `StoredParameter` in place of every array.

    Raises:
      ValueError: if a small tensor holds NaN or infinity.
    """
    layouts = sharding.shardings(boxed, mesh) if mesh is not None else None
    tree: dict[str, Any] = {}
    for leaf in leaves:
        layout: Any = layouts
        for part in leaf.path if layouts is not None else ():
            layout = layout[part]
        kind = np.dtype(dtype) if dtype is not None else parameter_dtype(leaf, stored)
        node = tree
        for part in leaf.path[:-1]:
            node = node.setdefault(part, {})
        if in_memory:
            node[leaf.path[-1]] = _read_leaf(leaf, stored, layout, kind)
        else:
            node[leaf.path[-1]] = StoredParameter(leaf, stored, kind)
    return tree


class StoredParameter:
    """A parameter whose values stay in the file until a layer, or an unstacked one, is read.

    It stands for an array in a tree that is written or compared one tensor at a time.

    Attributes:
      shape: shape of the whole, layers first if it is stacked.
      dtype: dtype of the values that are read.
    """

    def __init__(self, leaf: Leaf, stored: Mapping[str, Tensor], dtype: np.dtype):
        self._leaf, self._stored = leaf, [stored[name] for name in leaf.names]
        self.shape, self.dtype = leaf.shape, dtype

    def __getitem__(self, layer: int) -> np.ndarray:
        """Reads a layer of a stacked parameter."""
        return _layer(self._leaf, self._stored[layer], self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads the whole."""
        layers = [_layer(self._leaf, tensor, self.dtype) for tensor in self._stored]
        return np.stack(layers) if self._leaf.stacked else layers[0]


def _layer(leaf: Leaf, tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    """Reads a tensor, checks it if it is small, and gives a view of it that is laid out as ours."""
    array = tensor.read_as(dtype)
    _check_finite(array, str(tensor.path), tensor.name)
    return leaf.from_stored(array)


def check_finite(tree: Any, where: str) -> None:
    """Checks arrays that are on devices already as `read` checks those that it reads.

    Raises:
      ValueError: naming `where` and the array, if a small one holds NaN or infinity.
    """
    for path, array in jax.tree.leaves_with_path(tree):
        for shard in array.addressable_shards:
            if shard.data.size <= _CHECKED:
                _check_finite(np.asarray(shard.data), where, jax.tree_util.keystr(path))


def _check_finite(array: np.ndarray, where: str, name: str) -> None:
    if array.size <= _CHECKED and not np.isfinite(array.astype(np.float32, copy=False)).all():
        raise ValueError(
            f"{where} is damaged: {name} holds NaN or infinity, and so would every video. Fetch "
            "the file again, or take an earlier step if it was trained here"
        )


def parameter_dtype(leaf: Leaf, stored: Mapping[str, Tensor]) -> np.dtype:
    """The narrowest dtype that holds all tensors of a parameter; bfloat16 for 8-bit ones."""
    kinds = [
        np.dtype(ml_dtypes.bfloat16) if stored[name].dtype in FLOAT8 else stored[name].dtype
        for name in leaf.names
    ]
    wide = kinds[0]
    for kind in kinds[1:]:
        wide = jnp.promote_types(wide, kind)
    return np.dtype(wide)


def _read_leaf(
    leaf: Leaf, stored: Mapping[str, Tensor], layout: NamedSharding | None, dtype: np.dtype
) -> jax.Array:
    whole = tuple((0, size) for size in leaf.shape)
    if layout is None:
        devices: dict[Any, Any] = {None: whole}
    else:
        devices = {
            device: tuple(
                part.indices(size)[:2] for part, size in zip(index or (), leaf.shape, strict=True)
            )
            for device, index in layout.addressable_devices_indices_map(leaf.shape).items()
        }
    # One buffer for each distinct part: devices that hold the same part share it.
    buffers = {
        part: _aligned_empty(tuple(stop - start for start, stop in part), dtype)
        for part in set(devices.values())
    }

    def fill(i: int) -> None:
        values = _layer(leaf, stored[leaf.names[i]], dtype)
        for part, buffer in buffers.items():
            if leaf.stacked:
                (start, stop), *inner = part
                if start <= i < stop:
                    _copy(buffer[i - start], values[_slices(inner)])
            else:
                _copy(buffer, values[_slices(part)])

    if len(leaf.names) == 1:  # starting threads would take longer than most of these tensors
        fill(0)
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(fill, range(len(leaf.names))))
    if layout is None:
        array = jax.device_put(buffers[whole])
    else:
        arrays = [jax.device_put(buffers[part], device) for device, part in devices.items()]
        array = jax.make_array_from_single_device_arrays(leaf.shape, layout, arrays)
    return jax.block_until_ready(array)  # else slow transfers pile up buffers on the host


def _slices(part: Iterable[tuple[int, int]]) -> tuple[Any, ...]:
    # The ellipsis keeps a tensor without dimensions an array.
    return (..., *(slice(start, stop) for start, stop in part))


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % _ALIGNMENT
    return memory[offset : offset + size].view(dtype).reshape(shape)


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    """Fills `target` with a view of the same dtype that lies in another order."""
    if source.dtype == ml_dtypes.bfloat16:
        # numpy copies its own dtypes many times faster than this one.
        source, target = source.view(np.uint16), target.view(np.uint16)
    if target.ndim < 2:
        target[...] = source
        return
    for start in range(0, target.shape[-1], _TILE):
        stop = start + _TILE
        target[..., start:stop] = source[..., start:stop]


def pending(leaf: Leaf, array: Any, dtype: np.dtype | None = None) -> list[Pending]:
    """The tensors of one parameter, to be written: one per name, in `dtype` or the array's."""
    kind = np.dtype(array.dtype) if dtype is None else dtype

    def make(i: int) -> np.ndarray:
        layer = _to_host(array, i if leaf.stacked else None)
        return leaf.to_stored(layer).astype(kind, copy=False)

    def bind(i: int) -> Pending:
        return Pending(kind, leaf.stored_shape, lambda: make(i))

    return [bind(i) for i in range(len(leaf.names))]


def _to_host(array: Any, layer: int | None) -> np.ndarray:
    """One layer, or the whole, without caching a copy in the array, as np.asarray does."""
    if not isinstance(array, jax.Array):
        return np.asarray(array if layer is None else array[layer])
    if not array.is_fully_addressable:
        raise ValueError("the parameters lie on several hosts: gather them before writing")
    if array.is_fully_replicated:
        return _shard_to_host(array.addressable_data(0), layer)
    host = np.empty(array.shape if layer is None else array.shape[1:], array.dtype)
    for shard in array.addressable_shards:
        if layer is None:
            host[shard.index] = _shard_to_host(shard.data, None)
            continue
        start, stop, _ = shard.index[0].indices(array.shape[0])
        if start <= layer < stop:
            host[shard.index[1:]] = _shard_to_host(shard.data, layer - start)
    return host


def _shard_to_host(data: jax.Array, layer: int | None) -> np.ndarray:
    on_cpu = all(device.platform == "cpu" for device in data.devices())
    if layer is not None and not on_cpu:
        return np.asarray(data[layer])
    whole = np.asarray(data)  # a view, on a CPU
    return whole if layer is None else whole[layer]
