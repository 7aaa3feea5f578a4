"""Puts the arrays of a batch on the mesh, and says which part of a batch a process loads."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ltx_jax.config import ConditionPattern, TrainConfig
from ltx_jax.data.loader import Loader
from ltx_jax.runtime import sharding


def check_batch_sizes(cfg: TrainConfig, mesh: Mesh) -> None:
    """Calls `check_batch_size` for every bucket of a run."""
    for bucket in cfg.data.sizes:
        check_batch_size(bucket.batch_size, mesh, cfg.optim.accumulate)


def check_batch_size(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
    """Checks that a batch splits evenly over the devices and then into micro-batches.

    Raises:
      ValueError: if it does not; the message names the mesh axes.
    """
    shards = _shards(mesh)
    if batch_size % (shards * micro_batches):
        times = (
            f" times the {micro_batches} micro-batches of optim.accumulate"
            if micro_batches > 1
            else ""
        )
        fitting = -(-batch_size // (shards * micro_batches)) * shards * micro_batches
        raise ValueError(
            f"data.batch_size = {batch_size} is not a multiple of the {shards} devices of the mesh "
            f"axes data and fsdp{times}: take {fitting}, or set --mesh.data"
        )


def open_loader(
    cfg: TrainConfig,
    mesh: Mesh,
    patterns: Sequence[tuple[ConditionPattern, float]] = (("none", 1.0),),
) -> Loader:
    """Opens the data of a run for this process, with the shares of the conditions' patterns.

    Raises:
      ValueError: if the data cannot be used.
    """
    index, count = process_part(mesh)
    return Loader(cfg.data, patterns, cfg.run.seed, process_index=index, process_count=count)


def process_part(mesh: Mesh) -> tuple[int, int]:
    """Which part of every batch this process loads: its index, and how many parts there are.

    Part i of n is rows [i b/n, (i + 1) b/n) of a batch of b. Processes whose devices differ only
    along mesh axes that do not split the batch load the same part.

    Raises:
      ValueError: if the processes' parts overlap.
    """
    rows: dict[int, set[int]] = {}
    shards = _shards(mesh)
    for device, (index,) in _by_batch(mesh).devices_indices_map((shards,)).items():
        rows.setdefault(device.process_index, set()).add(index.indices(shards)[0])
    parts = sorted({tuple(sorted(held)) for held in rows.values()})
    if sum(len(part) for part in parts) != shards:
        raise ValueError(
            f"with the mesh {dict(mesh.shape)}, the parts of a batch that the processes load would "
            "overlap: seq times tensor must be a divisor or a multiple of the number of devices "
            "per process"
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def _by_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, sharding.spec(("batch",)))


def _shards(mesh: Mesh) -> int:
    """How many shards the batch axis is split into."""
    return mesh.size // _by_batch(mesh).shard_shape((mesh.size,))[0]


def split_over(mesh: Mesh, tree: Any) -> Any:
    """Puts arrays on the mesh, with their first axis split over the mesh axes of the batch.

    With several processes, each passes only its own part of the batch (see `process_part`).
    """
    return jax.make_array_from_process_local_data(_by_batch(mesh), tree)


def replicate_over(mesh: Mesh, tree: Any) -> Any:
    """Puts a copy of the arrays on every device; all processes must pass the same values."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P()), tree)


def place_frozen(mesh: Mesh, tree: Any) -> Any:
    """Replicates arrays as `replicate_over` does, except those that lie on the mesh already, such
    as the parameters of a large network that is sharded over it."""
    return jax.tree.map(lambda x: x if _lies_on(mesh, x) else replicate_over(mesh, x), tree)


def frozen_shapes(mesh: Mesh, tree: Any) -> Any:
    """Shapes of arrays as `place_frozen` lays them out; shapes with a sharding keep it."""
    everywhere = NamedSharding(mesh, P())
    return jax.tree.map(
        lambda x: _placed_shapes(x, x.sharding if _lies_on(mesh, x) else everywhere), tree
    )


def _lies_on(mesh: Mesh, x: Any) -> bool:
    where = getattr(x, "sharding", None)
    return isinstance(where, NamedSharding) and where.mesh == mesh


def split_shapes(mesh: Mesh, tree: Any) -> Any:
    """Shapes of arrays as `split_over` lays them out."""
    return _placed_shapes(tree, _by_batch(mesh))


def _placed_shapes(tree: Any, where: NamedSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
