"""The training state: what a step changes, how it lies on the mesh, and how runs store it."""

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
    """Everything that a step changes. Arrays only: networks and optimisers are closed over.

    The same tree also carries shapes and shardings, so fields are not typed as arrays.
    """

    step: Any  # steps taken; the data and the keys of the next one follow from it
    updates: Any  # steps not rejected
    rejected: Any  # steps rejected in a row, up to now
    params: Any  # of all networks that train, by their parts
    ema: Any  # the average of those parts that have one
    opt_state: Any  # of each optimiser, by its name
    statistics: Any  # running statistics of the stage, {} where it has none


def by_optimizer(params: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Divides parameters among optimisers: the part that each is named after, the rest to `MAIN`.

    Args:
      params: parameters, or a tree like them, by part.
      names: of the optimisers.
    """
    apart = [name for name in names if name != MAIN]
    rest = {name: part for name, part in params.items() if name not in apart}
    return {MAIN: rest, **{name: params[name] for name in apart}}


def joined(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by part, of which `by_optimizer` gives the groups; groups may be absent."""
    apart = {name: part for name, part in groups.items() if name != MAIN}
    return {**groups.get(MAIN, {}), **apart}


class StatePlan(NamedTuple):
    """How the first state is made, and the shapes (with shardings) and layout of all of them.

    Attributes:
      make: (initial weights, statistics) -> state. The weights, a part of the tree of parameters,
        replace what would be drawn, and are used up; `statistics` replaces the first running
        statistics.
      shapes: of a state.
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
    """Lays out the training state; nothing is allocated until `make` is called.

    Args:
      init: key -> parameters that carry their axis names. The average lies as the parameters do,
        and so does what an optimiser keeps of them.
      optimizers: by name.
      mesh: what to lay the state out on; `make` creates every array on its shard.
      seed: of the parameters.
      statistics: first value of the running statistics.
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
        # As in sharding.init_sharded: a high level costs seconds for every random draw.
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
    """Lays out the leaves of an optimiser's state whose path ends like a parameter's as it is.

    Muon sees wide kernels in groups of columns, one axis more: each group is split then.
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


# Runs have always stored parameters with an optimiser of their own under "state": the
# discriminator's as "adversary", which is {} where there is none.
_STORED_NAMES = {"discriminator": "adversary"}
_COUNTS = ("step", "updates", "rejected", "statistics")


def to_stored(state: TrainState) -> dict[str, Any]:
    """The state as a run stores it: "params" and "ema" of the main optimiser, and the "state"."""
    groups = by_optimizer(state.params, state.opt_state)
    rest: dict[str, Any] = {name: getattr(state, name) for name in _COUNTS}
    rest |= {"opt_state": state.opt_state[MAIN], "adversary": {}}
    for name in groups.keys() - {MAIN}:
        stored = {"params": groups[name], "opt_state": state.opt_state[name]}
        rest[_STORED_NAMES.get(name, name)] = stored
    return {"params": groups[MAIN], "ema": state.ema, "state": rest}


def from_stored(parts: Mapping[str, Any]) -> TrainState:
    """The state of what `to_stored` gave."""
    rest: dict[str, Any] = dict(parts["state"])
    counts = {name: rest.pop(name) for name in _COUNTS}
    groups, opt_state = {MAIN: parts["params"]}, {MAIN: rest.pop("opt_state")}
    names = {stored: name for name, stored in _STORED_NAMES.items()}
    for stored_name, group in rest.items():
        if group:
            name = names.get(stored_name, stored_name)
            groups[name], opt_state[name] = group["params"], group["opt_state"]
    return TrainState(params=joined(groups), ema=parts["ema"], opt_state=opt_state, **counts)
