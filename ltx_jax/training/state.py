"""The training state: what a step changes, how it is laid out over the mesh, and the update."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool

from ltx_jax import sharding
from ltx_jax.training.optim import ema_decay


@struct.dataclass
class TrainState:
    """Everything that a step changes. Arrays only: networks and optimiser are closed over.

    The same tree also carries shapes and shardings, so fields are not typed as arrays.
    """

    step: Any  # steps taken; the data and the keys of the next one follow from it
    updates: Any  # steps not rejected
    params: Any
    ema: Any
    opt_state: Any
    statistics: Any  # running statistics of the stage, {} where it has none
    adversary: Any  # the discriminator's "params" and "opt_state", {} where there is none


class Plan(NamedTuple):
    """How the first state is made, and the shapes (with shardings) and layout of all of them."""

    make: Callable[[], TrainState]
    shapes: TrainState
    layout: TrainState


def plan(
    init: Callable[[Array], Any],
    tx: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    statistics: Any = None,
) -> Plan:
    """Lays out the training state; nothing is allocated until `make` is called.

    Args:
      init: key -> parameters that carry their axis names. The average lies as the parameters do,
        and so does what the optimiser keeps of them.
      tx: the optimiser.
      mesh: what to lay the state out on; `make` gives birth to every array on its shard.
      seed: of the parameters.
      statistics: first value of the running statistics.
    """
    key = jax.random.key(seed)
    params_layout = sharding.shardings(jax.eval_shape(init, key), mesh)

    def first(key: Array) -> TrainState:
        params = sharding.unbox(init(key))
        average = jax.tree.map(jnp.copy, params)
        count = (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
        return TrainState(*count, params, average, tx.init(params), statistics or {}, {})

    shapes = jax.eval_shape(first, key)
    everywhere = NamedSharding(mesh, P())
    layout = TrainState(
        step=everywhere,
        updates=everywhere,
        params=params_layout,
        ema=params_layout,
        opt_state=_layout_like(shapes.opt_state, shapes.params, params_layout, everywhere),
        statistics=jax.tree.map(lambda _: everywhere, shapes.statistics),
        adversary={},
    )

    def make() -> TrainState:
        # As in sharding.init_sharded: a high level costs seconds for every random draw.
        quick = {"xla_backend_optimization_level": 1}
        with sharding.use_mesh(mesh):
            return jax.jit(first, out_shardings=layout, compiler_options=quick)(key)

    placed = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, layout
    )
    return Plan(make, placed, layout)


def _layout_like(tree: Any, params: Any, layout: Any, default: NamedSharding) -> Any:
    """Lays out the leaves of an optimiser's state whose path ends like a parameter's as it is.

    Muon sees wide kernels in groups of columns, one axis more: each group is split then.
    """
    flat = jax.tree.leaves_with_path(params)
    known = {
        tuple(entry.key for entry in path): (x.shape, where)
        for (path, x), where in zip(flat, jax.tree.leaves(layout), strict=True)
    }

    def leaf(path: Any, x: Any) -> NamedSharding:
        names = tuple(getattr(entry, "key", None) for entry in path)
        for start in range(len(names)):
            shape, where = known.get(names[start:], ((), default))
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


def apply_update(
    state: TrainState,
    grads: Any,
    tx: optax.GradientTransformation,
    decay: float,
    statistics: Any,
    loss: Array,
) -> tuple[TrainState, Bool[Array, ""]]:
    """Takes an optimiser step, unless loss or gradients are not finite; says whether it did.

    A rejected step changes the step count alone: parameters, average, optimiser and statistics
    stay to the bit.
    """
    accepted = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    keep = ema_decay(state.updates, decay)
    average = jax.tree.map(
        lambda old, new: old + (1 - keep).astype(old.dtype) * (new - old), state.ema, params
    )
    new = dataclasses.replace(
        state,
        updates=state.updates + 1,
        params=params,
        ema=average,
        opt_state=opt_state,
        statistics=statistics,
    )
    kept = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, state)
    return dataclasses.replace(kept, step=state.step + 1), accepted


# (params, state, batch, key) -> loss, (metrics, new statistics)
Loss = Callable[[Any, TrainState, Any, Array], tuple[Array, tuple[dict[str, Array], Any]]]
# (state, batch, key) -> new state, metrics
Update = Callable[[TrainState, Any, Array], tuple[TrainState, dict[str, Array]]]


def descend(
    loss: Loss, tx: optax.GradientTransformation, decay: float, layout: TrainState
) -> Update:
    """The update of one network on one loss.

    Args:
      loss: what to lower.
      tx: the optimiser.
      decay: of the parameter average.
      layout: of the state; pins the gradients to that of the parameters.
    """

    def update(state: TrainState, batch: Any, key: Array) -> tuple[TrainState, dict[str, Array]]:
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, (metrics, statistics)), grads = gradient(state.params, state, batch, key)
        grads = jax.lax.with_sharding_constraint(grads, layout.params)
        new, _ = apply_update(state, grads, tx, decay, statistics, value)
        return new, {"loss": value, **metrics, "grad_norm": optax.tree.norm(grads)}

    return update


def make_step(
    update: Update,
    layout: TrainState,
    seed: int,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]:
    """Compiles the step (state, batch) -> (state, metrics); the old state's memory is reused.

    Args:
      update: counts a step, also where it rejects it.
      layout: pins the new state's sharding, or XLA may pick another.
      seed: the key of a step is that of the seed, folded with the step.
      compiler_options: of XLA.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        new, metrics = update(state, batch, key)
        return new, {**metrics, "rejected": new.step - new.updates}

    return jax.jit(
        step, donate_argnums=0, out_shardings=(layout, None), compiler_options=compiler_options
    )
