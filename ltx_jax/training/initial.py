"""Weights that a run starts from, where it does not draw them: those of another checkpoint."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import BlockConfig
from ltx_jax.training.state import Plan, TrainState


class Given(NamedTuple):
    """What a stage takes from a checkpoint.

    Attributes:
      params: by their names at the top of the stage's parameters; what is absent is drawn.
      configs: pairs of networks' configurations, in the checkpoint and in the run.
      statistics: first running statistics; None leaves those of the plan.
    """

    params: dict[str, Any]
    configs: tuple[tuple[Any, Any], ...]
    statistics: Any = None


def start_from(
    path: str | None, planned: Plan, mesh: Mesh, take: Callable[[Checkpoint], Given]
) -> Plan:
    """The same plan, its first state made of the weights of a checkpoint.

    Nothing is read before the state is made, so a run that goes on does not need it any more.

    Args:
      path: `run.init_from`, anything that `--checkpoint` of ltx-sample takes; None changes nothing.
      planned: of the stage.
      mesh: what the weights are laid out on as they are read.
      take: picks what fits the stage; raises a ValueError if there is nothing.

    `make` of the result raises a ValueError if the checkpoint is of another architecture: it names
    the first tensors that differ, or the setting.
    """
    if path is None:
        return planned

    def make() -> TrainState:
        dtype = jax.tree.leaves(planned.shapes.params)[0].dtype.name
        given = take(load_checkpoint(path, mesh=mesh, dtype=dtype))
        _check_tensors(path, given.params, planned.shapes.params)
        for there, here in given.configs:
            _check_settings(path, there, here)
        return planned.make(given.params, given.statistics)

    return planned._replace(make=make)


def _check_tensors(path: str, given: dict[str, Any], wanted: dict[str, Any]) -> None:
    there = _shapes(given)
    here = _shapes({name: wanted.get(name, {}) for name in given})
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if names:
        told = [
            f"{name} is {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
            for name in names[:5]
        ]
        more = f"; and {len(names) - 5} more tensors" if len(names) > 5 else ""
        raise ValueError(
            f"--run.init_from {path} is of another architecture: {'; '.join(told)}{more}"
        )


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    return {
        "/".join(entry.key for entry in names): x.shape
        for names, x in jax.tree.leaves_with_path(params)
    }


def _check_settings(path: str, there: Any, here: Any) -> None:
    """The tensors may agree and the arithmetic not: heads, paddings, scales."""
    for field in dataclasses.fields(here):
        old, new = (_plain(getattr(cfg, field.name)) for cfg in (there, here))
        if old != new:
            raise ValueError(
                f"--run.init_from {path} was made with {field.name} = {old!r}, and this config has "
                f"{new!r}: its weights mean something else here"
            )


def _plain(value: Any) -> Any:
    """Block lists with their defaults written out."""
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, BlockConfig):
        return dataclasses.replace(value, multiplier=value.channel_multiplier)
    return value
