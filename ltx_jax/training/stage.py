"""What the loop needs of a stage, and how batches reach the mesh."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ltx_jax import sharding
from ltx_jax.checkpoints.contents import Checkpoint
from ltx_jax.training.state import Plan, TrainState


@dataclasses.dataclass(frozen=True)
class Stage:
    """One kind of training, ready to run.

    Attributes:
      plan: of the state.
      step: the compiled update.
      batch: step -> batch on the mesh, a pure function.
      statistics: state -> the latent statistics to save with it ({} for none).
      vae: the frozen VAE to keep with the run, if any.
    """

    plan: Plan
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]
    batch: Callable[[int], Any]
    statistics: Callable[[TrainState], dict[str, Any]]
    vae: Checkpoint | None = None


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
