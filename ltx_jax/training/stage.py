"""What the loop needs of a stage, and how batches reach the mesh."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ltx_jax import sharding
from ltx_jax.checkpoints.contents import Checkpoint
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


@dataclasses.dataclass(frozen=True)
class Stage:
    """One kind of training, ready to run.

    Attributes:
      plan: of the state.
      step: the compiled update. It takes batches of any bucket, each compiled once.
      batches: (first, last) -> the batches of those steps, on the mesh, made ahead of their use.
      work: batch -> what its step has to do.
      validate: state -> figures and videos; the same clips every time.
      statistics: state -> the latent statistics to save with it ({} for none).
      vae: the frozen VAE to keep with the run, if any.
    """

    plan: Plan
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]
    batches: Callable[[int, int], Iterator[Any]]
    work: Callable[[Any], Work]
    validate: Callable[[TrainState], Validation]
    statistics: Callable[[TrainState], dict[str, Any]]
    vae: Checkpoint | None = None


def ahead(make: Callable[[int], Any], first: int, last: int) -> Iterator[Any]:
    """`make(step)` for the steps of [first, last), each made while the one before is used."""
    with ThreadPoolExecutor(1) as worker:
        pending = [worker.submit(make, step) for step in range(first, min(first + 1, last))]
        for step in range(first, last):
            made = pending.pop().result()
            if step + 1 < last:
                pending.append(worker.submit(make, step + 1))
            yield made


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Refuses a batch that cannot be split evenly.

    Raises:
      ValueError: naming the axes.
    """
    shards = math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))
    if batch_size % shards:
        raise ValueError(
            f"data.batch_size = {batch_size} is no multiple of the {shards} devices of the mesh "
            f"axes data and fsdp: take {-(-batch_size // shards) * shards}, or set --mesh.data"
        )


def split(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays on the mesh, their first axis split over the devices that share a batch."""
    return jax.device_put(tree, NamedSharding(mesh, sharding.spec(("batch",))))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays on every device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))
