"""The training state: what a step changes, how it is laid out over the mesh, and the update."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool

from ltx_jax.config import OptimConfig
from ltx_jax.runtime import sharding
from ltx_jax.training.optim import ema_decay, frozen


@struct.dataclass
class TrainState:
    """Everything that a step changes. Arrays only: networks and optimiser are closed over.

    The same tree also carries shapes and shardings, so fields are not typed as arrays.
    """

    step: Any  # steps taken; the data and the keys of the next one follow from it
    updates: Any  # steps not rejected
    rejected: Any  # steps rejected in a row, up to now
    params: Any
    ema: Any
    opt_state: Any
    statistics: Any  # running statistics of the stage, {} where it has none
    adversary: Any  # the discriminator's "params" and "opt_state", {} where there is none


@struct.dataclass
class Shared:
    """Marks a part of a batch that its examples share: its arrays have no batch axis."""

    value: Any


class Plan(NamedTuple):
    """How the first state is made, and the shapes (with shardings) and layout of all of them.

    Attributes:
      make: (given, statistics) -> state. `given` replaces drawn parameters by name, at the top
        level, and is used up; `statistics` replaces the first running statistics.
    """

    make: Callable[..., TrainState]
    shapes: TrainState
    layout: TrainState


def plan(
    init: Callable[[Array], Any],
    tx: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    statistics: Any = None,
    adversary: tuple[Callable[[Array], Any], optax.GradientTransformation] | None = None,
) -> Plan:
    """Lays out the training state; nothing is allocated until `make` is called.

    Args:
      init: key -> parameters that carry their axis names. The average lies as the parameters do,
        and so does what the optimiser keeps of them.
      tx: the optimiser.
      mesh: what to lay the state out on; `make` gives birth to every array on its shard.
      seed: of the parameters.
      statistics: first value of the running statistics.
      adversary: `init` and `tx` of a discriminator.
    """
    key = jax.random.key(seed)
    everywhere = NamedSharding(mesh, P())

    def lay_out(init: Callable[[Array], Any], opt_state: Any) -> tuple[Any, Any]:
        boxed = jax.eval_shape(init, key)
        where = sharding.shardings(boxed, mesh)
        return where, _layout_like(opt_state, sharding.unbox(boxed), where, everywhere)

    def first_adversary(key: Array) -> dict[str, Any]:
        if adversary is None:
            return {}
        params = sharding.unbox(adversary[0](jax.random.fold_in(key, 1)))
        return {"params": params, "opt_state": adversary[1].init(params)}

    def first(key: Array, given: Mapping[str, Any], running: Any) -> TrainState:
        params = sharding.unbox(init(key))
        known = {name: params[name] for name in given}
        params |= jax.tree.map(lambda x, like: x.astype(like.dtype), dict(given), known)
        average = jax.tree.map(jnp.copy, params)
        zero = jnp.zeros((), jnp.int32)
        opt_state, other = tx.init(params), first_adversary(key)
        return TrainState(zero, zero, zero, params, average, opt_state, running, other)

    shapes = jax.eval_shape(first, key, {}, statistics or {})
    params_layout, opt_layout = lay_out(init, shapes.opt_state)
    adversary_layout = {}
    if adversary is not None:
        found = lay_out(adversary[0], shapes.adversary["opt_state"])
        adversary_layout = dict(zip(("params", "opt_state"), found, strict=True))
    layout = TrainState(
        step=everywhere,
        updates=everywhere,
        rejected=everywhere,
        params=params_layout,
        ema=params_layout,
        opt_state=opt_layout,
        statistics=jax.tree.map(lambda _: everywhere, shapes.statistics),
        adversary=adversary_layout,
    )

    def make(given: Mapping[str, Any] | None = None, running: Any = None) -> TrainState:
        # As in sharding.init_sharded: a high level costs seconds for every random draw.
        quick = {"xla_backend_optimization_level": 1}
        program = jax.jit(first, donate_argnums=1, out_shardings=layout, compiler_options=quick)
        with sharding.use_mesh(mesh):
            return program(key, given or {}, running or statistics or {})

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


# (params, state, batch, key) -> loss, (metrics, new statistics)
Loss = Callable[[Any, TrainState, Any, Array], tuple[Array, tuple[dict[str, Array], Any]]]
# (state, batch, key) -> new state, metrics: scalars, and under `GRADIENTS` a tree of them
GRADIENTS = "gradients"
Update = Callable[[TrainState, Any, Array], tuple[TrainState, dict[str, Any]]]


def value_and_gradient(
    loss: Loss,
    params: Any,
    state: TrainState,
    batch: Any,
    key: Array,
    cfg: OptimConfig,
    layout: Any,
) -> tuple[tuple[Array, tuple[dict[str, Array], Any]], Any]:
    """What `loss` gives, and its gradient, in `cfg.accumulate` micro-batches one after the other.

    The loss must be a mean over the batch. Value, gradient and statistics are then means over the
    micro-batches, and so are metrics, over those where they are a number: a metric is NaN where it
    has nothing to say. Each micro-batch has a key of its own.

    Args:
      batch: arrays whose first axis is the batch, but for those in a `Shared`.
      cfg: says what is frozen too: its gradient is zero, and costs nothing.
      layout: of the parameters; the gradient is pinned to it.
    """
    fixed = frozen(params, cfg.freeze)

    def of_trained(params: Any, *rest: Any) -> Any:
        held = jax.tree.map(lambda x, no: jax.lax.stop_gradient(x) if no else x, params, fixed)
        return loss(held, *rest)

    def pinned(grads: Any) -> Any:
        return jax.lax.with_sharding_constraint(grads, layout)

    gradient = jax.value_and_grad(of_trained, has_aux=True)
    if cfg.accumulate == 1:
        result, grads = gradient(params, state, batch, key)
        return result, pinned(grads)

    parts = _cut(batch, cfg.accumulate)

    def one(i: Any) -> Any:
        part = jax.tree.map(lambda x: x if _is_shared(x) else x[i], parts, is_leaf=_is_shared)
        (value, (metrics, statistics)), grads = gradient(
            params, state, part, jax.random.fold_in(key, i)
        )
        return (pinned(grads), value, statistics), metrics

    def add(total: Any, i: Array) -> Any:
        found, metrics = one(i)
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, found), metrics

    shapes, _ = jax.eval_shape(one, 0)
    grads, *others = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    total, metrics = jax.lax.scan(add, (pinned(grads), *others), jnp.arange(cfg.accumulate))
    grads, value, statistics = jax.tree.map(
        lambda x, like: (x / cfg.accumulate).astype(like.dtype), total, shapes
    )
    metrics = jax.tree.map(lambda x: jnp.nanmean(x, axis=0), metrics)
    return (value, (metrics, statistics)), grads


def _is_shared(x: Any) -> bool:
    return isinstance(x, Shared)


def _cut(batch: Any, parts: int) -> Any:
    """Gives the arrays of a batch a first axis over its micro-batches.

    Micro-batch i is every `parts`-th example from i on, so that no example changes its device.
    """

    def cut(x: Any) -> Any:
        if _is_shared(x):
            return x
        x = jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
        return sharding.constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    return jax.tree.map(cut, batch, is_leaf=_is_shared)


def advance(
    state: TrainState, grads: Any, tx: optax.GradientTransformation, decay: float, statistics: Any
) -> TrainState:
    """Takes an optimiser step, of parameters and their average; `settle` says whether it counts."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    keep = ema_decay(state.updates, decay)
    average = jax.tree.map(
        lambda old, new: old + (1 - keep).astype(old.dtype) * (new - old), state.ema, params
    )
    return dataclasses.replace(
        state, params=params, ema=average, opt_state=opt_state, statistics=statistics
    )


def settle(old: TrainState, new: TrainState, finite: Bool[Array, ""]) -> TrainState:
    """The new state where loss and gradients were finite, else the old one to the bit.

    Only the counts of steps move in either case.
    """
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    return dataclasses.replace(
        kept,
        step=old.step + 1,
        updates=old.updates + finite,
        rejected=jnp.where(finite, 0, old.rejected + 1),
    )


def gradient_norms(grads: Mapping[str, Any]) -> dict[str, Any]:
    """The global norm, that of each part of the network, and under `GRADIENTS` each tensor's."""
    squares = jax.tree.map(lambda x: jnp.sum(jnp.square(x.astype(jnp.float32))), dict(grads))
    parts = {f"grad_norm/{k}": jnp.sqrt(optax.tree.sum(part)) for k, part in squares.items()}
    total = jnp.sqrt(optax.tree.sum(squares))
    return {"grad_norm": total, **parts, GRADIENTS: jax.tree.map(jnp.sqrt, squares)}


def descend(
    loss: Loss, tx: optax.GradientTransformation, cfg: OptimConfig, layout: TrainState
) -> Update:
    """The update of one network on one loss.

    Args:
      loss: what to lower.
      tx: the optimiser, made from the same `cfg`.
      cfg: what else the update needs to know: average, micro-batches, what is frozen.
      layout: of the state.
    """

    def update(state: TrainState, batch: Any, key: Array) -> tuple[TrainState, dict[str, Any]]:
        (value, (metrics, statistics)), grads = value_and_gradient(
            loss, state.params, state, batch, key, cfg, layout.params
        )
        norms = gradient_norms(grads)
        new = advance(state, grads, tx, cfg.ema_decay, statistics)
        new = settle(state, new, jnp.isfinite(value) & jnp.isfinite(norms["grad_norm"]))
        return new, {"loss": value, **metrics, **norms}

    return update


def make_step(
    update: Update,
    layout: TrainState,
    seed: int,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
    """Compiles the step (state, batch) -> (state, metrics); the old state's memory is reused.

    Args:
      update: counts a step, also where it rejects it.
      layout: pins the new state's sharding, or XLA may pick another.
      seed: the key of a step is that of the seed, folded with the step.
      compiler_options: of XLA.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        new, metrics = update(state, batch, key)
        counts = {"rejected": new.step - new.updates, "rejected_in_a_row": new.rejected}
        return new, {**metrics, **counts}

    return jax.jit(
        step, donate_argnums=0, out_shardings=(layout, None), compiler_options=compiler_options
    )
