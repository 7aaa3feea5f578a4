"""The training state: its content, its layout on the mesh, and its form in checkpoints."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from ltx_jax.runtime import sharding
from ltx_jax.training.optim import MAIN, Optimizer


@struct.dataclass
class TrainState:
    """Everything that a step changes. Networks and optimisers are constants of the compiled step.

    Fields are not typed as arrays, since the same class also holds shapes or shardings.
    """

    step: Any  # number of steps taken; determines the data and the key of the next step
    updates: Any  # number of steps that were not rejected
    rejected: Any  # number of consecutive rejected steps up to now
    params: Any  # parameters of all trained networks, by part
    ema: Any  # exponential average of the parameters, for the parts that have one
    opt_state: Any  # state of each optimiser, by name
    statistics: Any  # running statistics of the stage; {} if it has none


def by_optimizer(params: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Divides parameters among optimisers: each gets the part it is named after, `MAIN` the rest.

    Args:
      params: parameters by part, or a tree of the same structure.
      names: names of the optimisers.
    """
    apart = [name for name in names if name != MAIN]
    rest = {name: part for name, part in params.items() if name not in apart}
    return {MAIN: rest, **{name: params[name] for name in apart}}


def joined(groups: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `by_optimizer`: parameters by part, from all groups or some of them."""
    apart = {name: part for name, part in groups.items() if name != MAIN}
    return {**groups.get(MAIN, {}), **apart}


class StatePlan(NamedTuple):
    """The function that makes the initial state, and the shapes and shardings of a state.

    Attributes:
      make: (initial weights, statistics) -> state. The weights, a subtree of the parameters,
        replace the random initialisation, and their buffers are donated. `statistics` replaces the
        initial running statistics.
      shapes: shapes, dtypes and shardings of a state.
      layout: shardings of a state.
    """

    make: Callable[..., TrainState]
    shapes: TrainState
    layout: TrainState


def plan_state(
    init: Callable[[Array], Any],
    optimizers: Mapping[str, Optimizer],
    mesh: Mesh,
    seed: int,
    statistics: Any = None,
) -> StatePlan:
    """Plans the layout of the training state; nothing is allocated until `make` is called.

    Args:
      init: key -> parameters that carry their axis names. Their average and the optimisers'
        moments are sharded like the parameters.
      optimizers: the optimisers by name.
      mesh: the devices to lay the state out on; `make` creates every array sharded.
      seed: seed of the random initialisation.
      statistics: initial running statistics.
    """
    key = jax.random.key(seed)
    everywhere = NamedSharding(mesh, P())

    def averaged(params: Mapping[str, Any]) -> dict[str, Any]:
        groups = by_optimizer(params, optimizers)
        return joined(
            {name: groups[name] for name, x in optimizers.items() if x.ema_decay is not None}
        )

    def first(key: Array, initial: Mapping[str, Any], running: Any) -> TrainState:
        params = _replaced(sharding.unbox(init(key)), initial)
        average = jax.tree.map(jnp.copy, averaged(params))
        zero = jnp.zeros((), jnp.int32)
        groups = by_optimizer(params, optimizers)
        opt_state = {name: x.tx.init(groups[name]) for name, x in optimizers.items()}
        return TrainState(zero, zero, zero, params, average, opt_state, running)

    boxed = jax.eval_shape(init, key)
    params_layout = sharding.shardings(boxed, mesh)
    shapes = jax.eval_shape(first, key, {}, statistics or {})
    groups, layouts = (by_optimizer(x, optimizers) for x in (shapes.params, params_layout))
    layout = TrainState(
        step=everywhere,
        updates=everywhere,
        rejected=everywhere,
        params=params_layout,
        ema=averaged(params_layout),
        opt_state={
            name: _layout_like(shapes.opt_state[name], groups[name], layouts[name], everywhere)
            for name in optimizers
        },
        statistics=jax.tree.map(lambda _: everywhere, shapes.statistics),
    )

    def make(initial: Mapping[str, Any] | None = None, running: Any = None) -> TrainState:
        # As in sharding.init_sharded: at the highest level, every random draw compiles for seconds.
        quick = {"xla_backend_optimization_level": 1}
        program = jax.jit(first, donate_argnums=1, out_shardings=layout, compiler_options=quick)
        with sharding.use_mesh(mesh):
            return program(key, initial or {}, running or statistics or {})

    placed = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, layout
    )
    return StatePlan(make, placed, layout)


def _replaced(params: Mapping[str, Any], initial: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with the leaves of `initial`, a part of the same tree, in place of their own."""
    result = dict(params)
    for name, new in initial.items():
        old = params[name]
        result[name] = _replaced(old, new) if isinstance(new, Mapping) else new.astype(old.dtype)
    return result


def _layout_like(tree: Any, params: Any, layout: Any, default: NamedSharding) -> Any:
    """Shards each leaf of an optimiser's state like the parameter whose path ends the leaf's path.

    Muon divides the output channels of wide kernels into groups, so its leaves have one more axis;
    they are sharded within each group. Moments in eight bits have one maximum for every block of
    the last axis.
    """
    flat = jax.tree.leaves_with_path(params)
    parameters = {
        tuple(entry.key for entry in path): (x.shape, where)
        for (path, x), where in zip(flat, jax.tree.leaves(layout), strict=True)
    }

    def leaf(path: Any, x: Any) -> NamedSharding:
        names = tuple(getattr(entry, "key", None) for entry in path)
        for start in range(len(names)):
            shape, where = parameters.get(names[start:], ((), default))
            if shape == x.shape:
                return where
            if shape[:-1] == x.shape[:-1] and len(shape) == x.ndim:
                return _if_it_divides(x.shape, where, default)
            grouped = (*x.shape[:-2], x.shape[-2] * x.shape[-1]) if x.ndim > 1 else ()
            if shape and shape == grouped:
                *others, columns = (*where.spec, *(None,) * (len(shape) - len(where.spec)))
                spec = P(*others, None, columns)
                return _if_it_divides(x.shape, NamedSharding(where.mesh, spec), default)
        return default

    return jax.tree.map_with_path(leaf, tree)


def _if_it_divides(
    shape: tuple[int, ...], where: NamedSharding, default: NamedSharding
) -> NamedSharding:
    try:
        where.shard_shape(shape)
    except ValueError:
        return default
    return where


# The format of stored runs: parameters with an optimiser of their own are under "state". The
# discriminator's are named "adversary" there, which is {} if there is no discriminator.
_STORED_NAMES = {"discriminator": "adversary"}
_COUNTS = ("step", "updates", "rejected", "statistics")


def to_stored(state: TrainState) -> dict[str, Any]:
    """Converts a state to its stored form: "params" and "ema" of the main optimiser, and "state"
    with everything else."""
    groups = by_optimizer(state.params, state.opt_state)
    rest: dict[str, Any] = {name: getattr(state, name) for name in _COUNTS}
    rest |= {"opt_state": state.opt_state[MAIN], "adversary": {}}
    for name in groups.keys() - {MAIN}:
        stored = {"params": groups[name], "opt_state": state.opt_state[name]}
        rest[_STORED_NAMES.get(name, name)] = stored
    return {"params": groups[MAIN], "ema": state.ema, "state": rest}


def from_stored(parts: Mapping[str, Any]) -> TrainState:
    """The inverse of `to_stored`."""
    rest: dict[str, Any] = dict(parts["state"])
    counts = {name: rest.pop(name) for name in _COUNTS}
    groups, opt_state = {MAIN: parts["params"]}, {MAIN: rest.pop("opt_state")}
    names = {stored: name for name, stored in _STORED_NAMES.items()}
    for stored_name, group in rest.items():
        if group:
            name = names.get(stored_name, stored_name)
            groups[name], opt_state[name] = group["params"], group["opt_state"]
    return TrainState(params=joined(groups), ema=parts["ema"], opt_state=opt_state, **counts)
