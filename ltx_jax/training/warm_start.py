"""Starts a run from the weights of a checkpoint instead of a random initialisation."""

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import RunConfig, VAEConfig
from ltx_jax.training.stage import Stage
from ltx_jax.training.state import StatePlan, TrainState

_log = logging.getLogger(__name__)

_Tensors = Mapping[str, Any]  # by path


def first_state(stage: Stage, plan: StatePlan) -> TrainState:
    """Makes the initial state of a run: at random, or with the weights of `run.init_from`.

    The checkpoint must have the same tensors, with the same shapes, as the run. Exceptions have to
    be named by `run.init_missing`, `run.init_extra` and `run.init_redraw`; each is logged.

    Args:
      stage: the stage, which selects its parts of the checkpoint.
      plan: the plan of the stage's state.

    Raises:
      ValueError: if tensors or settings differ in a way that `run.init_*` does not allow (the
        message names the first tensors, or the setting), or if a pattern matches nothing.
    """
    run = stage.cfg.run
    if stage.base is not None:  # what `run.init_from` names is frozen, and no part of the state
        return plan.make(stage.initial)
    if run.init_from is None:
        for name in ("init_missing", "init_extra", "init_redraw", "init_settings"):
            if getattr(run, name):
                raise ValueError(f"--run.{name} has no effect without --run.init_from")
        derived = stage.derived_weights()
        return plan.make(derived.params, derived.statistics)
    dtype = jax.tree.leaves(plan.shapes.params)[0].dtype.name
    weights = stage.initial_weights(load_checkpoint(run.init_from, mesh=stage.mesh, dtype=dtype))
    targets = {name: plan.shapes.params.get(name, {}) for name in weights.params}
    for name in plan.shapes.params.keys() - weights.params.keys():
        _log.info("%s: initialised at random, the checkpoint has none", name)
    tensors = matching_weights(run, weights.params, targets, weights.configs)
    return plan.make(tensors, weights.statistics)


def matching_weights(
    run: RunConfig,
    params: Mapping[str, Any],
    targets: Mapping[str, Any],
    configs: Sequence[tuple[Any, Any]],
) -> dict[str, Any]:
    """The parameters of a checkpoint that a run takes.

    Args:
      run: says by `init_*` how the checkpoint may differ from the run.
      params: the checkpoint's parameters, by part.
      targets: shapes of the run's parameters, by part.
      configs: as in `InitialWeights`.

    Raises:
      ValueError: as `first_state` does.
    """
    tensors = _select(run, dict(flat_tensors(params)), dict(flat_tensors(targets)))
    _check_settings(run, configs)
    return nested_tensors(tensors)


def _select(run: RunConfig, source: _Tensors, target: _Tensors) -> dict[str, Any]:
    """Selects the checkpoint's tensors (`source`) to start from; the run's other tensors (`target`)
    are initialised at random."""
    redraw = _matching("init_redraw", run.init_redraw, target)
    missing = _matching("init_missing", run.init_missing, [x for x in target if x not in source])
    extra = _matching("init_extra", run.init_extra, [x for x in source if x not in target])
    wrong = []
    for name in [*target, *(name for name in source if name not in target)]:
        old, new = (x[name].shape if name in x else "absent" for x in (source, target))
        shapes = f"{old} in the checkpoint, {new} in this run"
        if name in redraw | missing:
            _log.info("%s: initialised at random (%s)", name, shapes)
        elif name in extra:
            _log.info("%s: left out (%s)", name, shapes)
        elif old != new:
            wrong.append(f"{name} is {shapes}")
    if wrong:
        more = f"; and {len(wrong) - 5} more tensors" if len(wrong) > 5 else ""
        raise ValueError(
            f"{run.init_from} has another architecture: {'; '.join(wrong[:5])}"
            f"{more}. To start from it all the same, name these tensors with regular expressions: "
            "--run.init_missing for those that the checkpoint lacks, --run.init_extra for those "
            "that this run lacks, --run.init_redraw for those to initialise at random"
        )
    return {name: x for name, x in source.items() if name not in redraw | extra}


def _matching(option: str, patterns: Sequence[str], names: Any) -> set[str]:
    """The names in which any of the patterns is found (`re.search`).

    Raises:
      ValueError: if a pattern is not a regular expression, or matches no name.
    """
    matches = set()
    for pattern in patterns:
        try:
            own = {name for name in names if re.search(pattern, name)}
        except re.error as error:
            raise ValueError(
                f"--run.{option}: {pattern!r} is not a regular expression: {error}"
            ) from error
        if not own:
            kinds = {
                "init_missing": " that the checkpoint lacks",
                "init_extra": " that this run lacks",
            }
            what = "setting" if option == "init_settings" else f"tensor{kinds.get(option, '')}"
            raise ValueError(f"--run.{option}: {pattern!r} matches no {what}")
        matches |= own
    return matches


def flat_tensors(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Path and array of every tensor: "blocks/attn1/to_q/kernel"."""
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from flat_tensors(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def nested_tensors(tensors: _Tensors) -> dict[str, Any]:
    """The inverse of `flat_tensors`."""
    tree: dict[str, Any] = {}
    for path, value in tensors.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _check_settings(run: RunConfig, configs: Sequence[tuple[Any, Any]]) -> None:
    """Checks that configurations of the checkpoint and of the run agree, pair by pair: weights of
    equal shapes may still belong to different computations (number of heads, padding, scales)."""
    pairs = [(_settings(checkpoint_cfg), _settings(run_cfg)) for checkpoint_cfg, run_cfg in configs]
    names = [name for _, settings in pairs for name in settings]
    allowed = _matching("init_settings", run.init_settings, names)
    for checkpoint_settings, run_settings in pairs:
        # Configurations of two types have no settings in common.
        same_type = checkpoint_settings["type"] == run_settings["type"]
        for name in run_settings if same_type else ["type"]:
            old, new = checkpoint_settings[name], run_settings[name]
            if old == new:
                continue
            if name not in allowed:
                raise ValueError(
                    f"--run.init_from {run.init_from} was trained with {name} = {old!r}, and this "
                    f"config has {new!r}, with which its weights compute something else. "
                    f"--run.init_settings {name} allows it"
                )
            _log.info("%s = %r in the checkpoint, %r in this run", name, old, new)


def _settings(cfg: Any) -> dict[str, Any]:
    """The name of a configuration's type, and its settings."""
    explicit = cfg.explicit() if isinstance(cfg, VAEConfig) else cfg
    values = {field.name: getattr(explicit, field.name) for field in dataclasses.fields(explicit)}
    return {"type": type(cfg).__name__, **values}
