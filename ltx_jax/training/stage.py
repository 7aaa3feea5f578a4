"""What the loop needs of a stage, and how batches reach the mesh."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import BucketConfig
from ltx_jax.runtime import sharding
from ltx_jax.training.state import Plan, TrainState


class Work(NamedTuple):
    """What a step has to do, over all devices."""

    tokens: int  # latent voxels, without those dropped
    flop: float  # of the networks' products and convolutions, by our own count


class Footage(NamedTuple):
    """Something to look at."""

    frames: Any  # uint8 (t, h, w, 3)
    frame_rate: float


@dataclasses.dataclass(frozen=True)
class Validation:
    """What a look at held-out clips gave. The first scalar is the one to lower."""

    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    videos: dict[str, Footage] = dataclasses.field(default_factory=dict)
    histograms: dict[str, Any] = dataclasses.field(default_factory=dict)  # of arrays of values


class Sketch(NamedTuple):
    """What can be said of a stage without its data and weights: enough to compile its step.

    Attributes:
      plan: of the state.
      step: the compiled update. It takes batches of any bucket, each compiled once.
      work: (batch, or its shapes; number of the step, from 1) -> what the step has to do.
      batches: shapes of a batch of each bucket, with what most is given of all that may be.
    """

    plan: Plan
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]
    work: Callable[[Any, int], Work]
    batches: tuple[tuple[BucketConfig, Any], ...]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One kind of training, ready to run.

    Attributes:
      plan: of the state.
      step: the compiled update. It takes batches of any bucket, each compiled once.
      batches: (first, last) -> the batches of those steps, on the mesh, made ahead of their use.
      work: as in `Sketch`.
      validate: state -> figures and videos; the same clips every time.
      statistics: state -> the latent statistics to save with it ({} for none).
      vae: the frozen VAE to keep with the run, if any.
    """

    plan: Plan
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]
    batches: Callable[[int, int], Iterator[Any]]
    work: Callable[[Any, int], Work]
    validate: Callable[[TrainState], Validation]
    statistics: Callable[[TrainState], dict[str, Any]]
    vae: Checkpoint | None = None


def check_batch_size(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Refuses a batch that cannot be split evenly, over the devices and then into micro-batches.

    Raises:
      ValueError: naming the axes.
    """
    shards = _shards(mesh)
    if batch_size % (shards * parts):
        times = f" times the {parts} micro-batches of optim.accumulate" if parts > 1 else ""
        raise ValueError(
            f"data.batch_size = {batch_size} is no multiple of the {shards} devices of the mesh "
            f"axes data and fsdp{times}: take {-(-batch_size // (shards * parts)) * shards * parts}"
            ", or set --mesh.data"
        )


def share(mesh: Mesh) -> tuple[int, int]:
    """Which part of every batch this process loads: its index, and how many parts there are.

    Part i of n is rows [i b/n, (i + 1) b/n) of a batch of b. Processes that only split the rest of
    the mesh between them load the same part.

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
            f"the mesh {dict(mesh.shape)} gives its processes parts of a batch that overlap: make "
            "the axes seq and tensor, together, a divisor or a multiple of a process's devices"
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def _by_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, sharding.spec(("batch",)))


def _shards(mesh: Mesh) -> int:
    """Devices that share a batch."""
    return mesh.size // _by_batch(mesh).shard_shape((mesh.size,))[0]


def split(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays on the mesh, their first axis split over the devices that share a batch.

    With several processes each gives its own part, as `share` says.
    """
    return jax.make_array_from_process_local_data(_by_batch(mesh), tree)


def described(tree: Any, mesh: Mesh, whole: bool = False) -> Any:
    """Shapes on the mesh, as `split` lays arrays out, or `replicate` (`whole`)."""
    where = NamedSharding(mesh, P()) if whole else _by_batch(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays on every device; all processes give the same."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P()), tree)
