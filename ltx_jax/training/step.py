"""The training step, compiled as one program: loss, gradients, optimisers, and the rejection of
steps that are not finite."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from ltx_jax.runtime import sharding
from ltx_jax.training import batches, flops
from ltx_jax.training.optim import MAIN, Optimizer, ema_decay, frozen_parameters
from ltx_jax.training.stage import LossValue, Stage
from ltx_jax.training.state import TrainState, by_optimizer, joined, plan_state

Loss = Callable[[Any, TrainState, Any, Any, Array], LossValue]  # arguments as in `Stage.loss`
GRADIENTS = "gradients"  # metrics entry that is a tree: the gradient norm of every tensor


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a step, over all devices."""

    tokens: int  # latent voxels that the networks process, without dropped ones
    flop: float  # operations of matmuls and convolutions, from `flops.count_flop`


class Trainer:
    """A stage with the layout of its state and its compiled step.

    Nothing is compiled or allocated before its first use.

    Args:
      stage: the stage to train.
      optimizers: optimisers that replace `stage.optimizers()`.
      compiler_options: XLA options that replace the stage's.

    Attributes:
      stage: the argument.
      mesh: the stage's mesh.
      optimizers: the optimisers by name.
      plan: how to make the state, and its layout on the mesh.

    Raises:
      ValueError: if a pattern of frozen parameters matches no parameter.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        optimizers: Mapping[str, Optimizer] | None = None,
        compiler_options: dict[str, Any] | None = None,
    ):
        cfg = stage.cfg
        self.stage, self.mesh = stage, stage.mesh
        self.optimizers = stage.optimizers() if optimizers is None else dict(optimizers)
        self.plan = plan_state(
            stage.init, self.optimizers, self.mesh, cfg.run.seed, stage.first_statistics()
        )
        if compiler_options is None:
            with sharding.use_mesh(self.mesh):
                compiler_options = stage.compiler_options()
        self._step = jax.jit(
            self._take_step,
            donate_argnums=0,
            # Fixed, as XLA might otherwise choose another sharding for the new state.
            out_shardings=(self.plan.layout, None),
            compiler_options=compiler_options,
        )
        self._flop = functools.cache(self._count_flop)

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        """Takes a step; the old state is donated.

        Returns:
          The new state, and the metrics: scalars, and under `GRADIENTS` a tree of scalars.
        """
        return self._step(state, batch, self.frozen)

    def trace(self, batch: Any) -> Any:
        """The traced step (`jax.stages.Traced`) for the shapes of a batch."""
        frozen = batches.frozen_shapes(self.mesh, dict(self.stage.frozen))
        return self._step.trace(self.plan.shapes, batch, frozen)

    @functools.cached_property
    def frozen(self) -> dict[str, Any]:
        """The stage's frozen weights, on the devices."""
        return batches.place_frozen(self.mesh, dict(self.stage.frozen))

    def _take_step(
        self, state: TrainState, batch: Any, frozen: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        cfg = self.stage.cfg
        key = jax.random.fold_in(jax.random.key(cfg.run.seed), state.step)
        value, grads = gradients(
            self.stage.loss,
            self.optimizers,
            *(state.params, state, batch, frozen, key),
            micro_batches=cfg.optim.accumulate,
            layout=self.plan.layout.params,
        )
        norms, finite = _gradient_norms(grads, self.optimizers, state.updates)
        finite &= jnp.isfinite(jnp.stack([value.loss, *value.others.values()])).all()
        new = advance(state, grads, self.optimizers, value.statistics)
        new = keep_if_finite(state, new, finite)
        counts = {"rejected": new.step - new.updates, "rejected_in_a_row": new.rejected}
        return new, {"loss": value.loss, **value.metrics, **norms, **counts}

    def pending_metrics(self, state: TrainState) -> set[str]:
        """Names of the metrics that are NaN on purpose, as their optimiser takes no part now."""
        pending = (x for x in self.optimizers.values() if not x.learns(int(state.updates)))
        return {name for optimizer in pending for name in optimizer.metrics}

    def work(self, batch: Any, step: int) -> Work:
        """The work of a step (counted from 1) for a batch (arrays or shapes).

        Encoders that run before the step are not counted.
        """
        leaves, tree = jax.tree.flatten(batch)
        shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
        return Work(self.stage.tokens(batch), self._flop(self.stage.flop_stage(step), tree, shapes))

    def _count_flop(self, stage: Stage, tree: Any, leaves: tuple[Any, ...]) -> float:
        key, state = jax.eval_shape(jax.random.key, 0), self.plan.shapes
        rest = state, jax.tree.unflatten(tree, leaves), dict(stage.frozen), key
        return flops.count_flop(stage.loss, state.params, *rest, gradient=0)


def gradients(
    loss: Loss,
    optimizers: Mapping[str, Optimizer],
    params: Any,
    state: TrainState,
    batch: Any,
    frozen: Any,
    key: Array,
    *,
    micro_batches: int,
    layout: Any,
) -> tuple[LossValue, Any]:
    """The value of `loss`, and one tree with the gradient of every optimiser's loss.

    Micro-batches are processed one after the other, each with its own key. The loss must be a mean
    over the batch. Loss, gradients, statistics and metrics are averaged over the micro-batches; the
    mean of a metric leaves out NaNs.

    Args:
      loss: a function like `Stage.loss`.
      optimizers: the optimisers by name; parameters that they freeze get a gradient of zero, which
        is not computed.
      params: the parameters to differentiate with respect to.
      state: passed to the loss.
      batch: arrays whose first axis is the batch.
      frozen: passed to the loss.
      key: random key of this step.
      micro_batches: number of micro-batches.
      layout: shardings of the parameters, which the gradients are constrained to.
    """
    groups = by_optimizer(params, optimizers)
    fixed = joined({n: frozen_parameters(groups[n], x.freeze) for n, x in optimizers.items()})

    def total(params: Any, batch: Any, key: Array) -> tuple[Array, LossValue]:
        params = jax.tree.map(lambda x, f: jax.lax.stop_gradient(x) if f else x, params, fixed)
        value = loss(params, state, batch, frozen, key)
        whole: Any = sum(value.others.values(), start=value.loss)
        return whole, value

    def pinned(grads: Any) -> Any:
        return jax.lax.with_sharding_constraint(grads, layout)

    differentiate = jax.value_and_grad(total, has_aux=True)
    if micro_batches == 1:
        (_, value), grads = differentiate(params, batch, key)
        return value, pinned(grads)

    parts = _cut(batch, micro_batches)

    def one(i: Any) -> Any:
        part = jax.tree.map(lambda x: x[i], parts)
        (_, value), grads = differentiate(params, part, jax.random.fold_in(key, i))
        return (pinned(grads), dataclasses.replace(value, metrics={})), value.metrics

    def add(sums: Any, i: Array) -> Any:
        terms, metrics = one(i)
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), sums, terms), metrics

    shapes, _ = jax.eval_shape(one, 0)
    grads, value = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    sums, metrics = jax.lax.scan(add, (pinned(grads), value), jnp.arange(micro_batches))
    grads, value = jax.tree.map(
        lambda x, like: (x / micro_batches).astype(like.dtype), sums, shapes
    )
    metrics = jax.tree.map(lambda x: jnp.nanmean(x, axis=0), metrics)
    return dataclasses.replace(value, metrics=metrics), grads


def _cut(batch: Any, parts: int) -> Any:
    """Splits the arrays of a batch into micro-batches, along a new first axis.

    Micro-batch i consists of every `parts`-th example starting at i, so that examples stay on their
    devices.
    """

    def cut(x: Any) -> Any:
        x = jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
        return sharding.constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    return jax.tree.map(cut, batch)


def _gradient_norms(
    grads: Mapping[str, Any], optimizers: Mapping[str, Optimizer], updates: Array
) -> tuple[dict[str, Any], Bool[Array, ""]]:
    """Global norms of the gradients as metrics, and whether all of them are finite.

    The metrics are the norm of the main optimiser's whole gradient, the norm of each part's
    gradient (NaN if its optimiser takes no part), and under `GRADIENTS` that of each tensor's.
    """
    groups = by_optimizer(grads, optimizers)
    squares = jax.tree.map(lambda x: jnp.sum(jnp.square(x.astype(jnp.float32))), groups)

    def norm(tree: Any) -> Array:
        return jnp.sqrt(optax.tree.sum(tree))

    totals = {name: norm(group) for name, group in squares.items()}
    metrics = {f"grad_norm/{name}": norm(part) for name, part in squares[MAIN].items()}
    for name in totals.keys() - {MAIN}:
        learns = optimizers[name].learns(updates)
        metrics[f"grad_norm/{name}"] = jnp.where(learns, totals[name], jnp.nan)
    finite = jnp.isfinite(jnp.stack([*totals.values()])).all()
    tensors = jax.tree.map(jnp.sqrt, joined(squares))
    return {"grad_norm": totals[MAIN], **metrics, GRADIENTS: tensors}, finite


def advance(
    state: TrainState, grads: Any, optimizers: Mapping[str, Optimizer], statistics: Any
) -> TrainState:
    """Updates the parameters, their average and the optimisers' states from the gradients.

    The result is provisional: `keep_if_finite` decides whether it replaces the old state.
    """
    old_groups, grad_groups = (by_optimizer(tree, optimizers) for tree in (state.params, grads))
    averages = by_optimizer(state.ema, [name for name in optimizers if name in state.ema])
    params, ema, opt_state = {}, {}, {}
    for name, optimizer in optimizers.items():
        params[name], opt_state[name] = _descend(
            optimizer, grad_groups[name], old_groups[name], state.opt_state[name], state.updates
        )
        if optimizer.ema_decay is not None:
            keep = ema_decay(state.updates // optimizer.every, optimizer.ema_decay)
            if not optimizer.learns_always:
                keep = jnp.where(optimizer.learns(state.updates), keep, 1.0)
            ema[name] = jax.tree.map(
                lambda old, new, keep=keep: old + (1 - keep).astype(old.dtype) * (new - old),
                averages[name],
                params[name],
            )
    return dataclasses.replace(
        state, params=joined(params), ema=joined(ema), opt_state=opt_state, statistics=statistics
    )


def _descend(
    optimizer: Optimizer, grads: Any, params: Any, opt_state: Any, updates: Array
) -> tuple[Any, Any]:
    """Parameters and optimiser state after the step; unchanged if the optimiser takes no part."""

    def learn(params: Any, opt_state: Any) -> tuple[Any, Any]:
        changes, opt_state = optimizer.tx.update(grads, opt_state, params)
        return optax.apply_updates(params, changes), opt_state

    if optimizer.learns_always:
        return learn(params, opt_state)
    return jax.lax.cond(optimizer.learns(updates), learn, lambda *both: both, params, opt_state)


def keep_if_finite(old: TrainState, new: TrainState, finite: Bool[Array, ""]) -> TrainState:
    """Returns the new state if losses and gradients are finite, else exactly the old state.

    The counts of steps change in either case.
    """
    state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    return dataclasses.replace(
        state,
        step=old.step + 1,
        updates=old.updates + finite,
        rejected=jnp.where(finite, 0, old.rejected + 1),
    )


def describe_nonfinite(
    metrics: Mapping[str, Any], state: TrainState, pending: Collection[str] = ()
) -> str:
    """Names the metrics, gradients and parameters that are not finite.

    Metrics with a "/" in their name ("loss_at/0.1") are left out: the gradients are listed by
    tensor instead.

    Args:
      metrics: metrics of a step.
      state: the state after that step.
      pending: names of metrics that are NaN on purpose (`Trainer.pending_metrics`).
    """
    scalars = {
        name: x
        for name, x in metrics.items()
        if name != GRADIENTS and "/" not in name and name not in pending
    }
    all_finite = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))
    kinds = {"metrics": scalars, "gradients": metrics[GRADIENTS], "parameters": state.params}
    texts = []
    for kind, tree in kinds.items():
        flags = jax.tree.leaves_with_path(jax.device_get(all_finite(dict(tree))))
        names = ["/".join(str(entry.key) for entry in path) for path, ok in flags if not ok]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        texts.append(f"{kind} ({', '.join(names[:5]) or 'none'}{more})")
    return "Not finite: " + "; ".join(texts)
