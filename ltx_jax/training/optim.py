"""Optimisers: AdamW, or Muon on matrices and kernels with AdamW on the rest."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from ltx_jax.config import OptimConfig

# Makes the root mean square of a Muon update that of an Adam update, so that both share one
# learning rate (Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982).
_UPDATE_RMS = 0.2

# Output channels of a convolution that Muon takes as one matrix: orthogonalising costs their
# square, and a kernel of 1024 as a whole takes longer than the gradient of a small network.
_COLUMNS = 64

MAIN = "main"  # the optimiser of all parameters that have none of their own


class Optimizer(NamedTuple):
    """An optimiser of some of the parameters.

    Attributes:
      tx: the transformation of their gradient.
      freeze: patterns of paths; parameters that match have no gradient.
      ema_decay: of the average of these parameters; None keeps no average.
      start: updates of the run before it begins; None: it acts in every step.
      metrics: names of those that are NaN until it begins.
    """

    tx: optax.GradientTransformation
    freeze: tuple[str, ...] = ()
    ema_decay: float | None = None
    start: int | None = None
    metrics: tuple[str, ...] = ()

    @classmethod
    def of(cls, cfg: OptimConfig, steps: int) -> "Optimizer":
        """The optimiser of a configuration, for a run of so many steps."""
        return cls(make_optimizer(cfg, steps), cfg.freeze, cfg.ema_decay)


def make_schedule(cfg: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant, linear or cosine decay to zero.

    A linear decay covers the last `decay_fraction` of the run, a cosine everything after warm-up.
    """
    warmup = optax.linear_schedule(
        cfg.peak_lr / (cfg.warmup_steps + 1), cfg.peak_lr, cfg.warmup_steps
    )
    if cfg.decay == "constant":
        after = optax.constant_schedule(cfg.peak_lr)
    elif cfg.decay == "cosine":
        after = optax.cosine_decay_schedule(cfg.peak_lr, max(steps - cfg.warmup_steps, 1))
    else:
        length = max(round(steps * cfg.decay_fraction), 1)
        start = max(steps - length - cfg.warmup_steps, 0)
        after = optax.linear_schedule(cfg.peak_lr, 0.0, length, transition_begin=start)
    return optax.join_schedules([warmup, after], [cfg.warmup_steps])


def make_optimizer(cfg: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Global-norm clipping, then the optimiser of the config with its schedule.

    Frozen parameters get no update and no state.
    """
    schedule = make_schedule(cfg, steps)
    if cfg.name == "adamw":
        update = optax.adamw(
            schedule,
            cfg.b1,
            cfg.b2,
            mu_dtype=cfg.moment_dtype,
            weight_decay=cfg.weight_decay,
            mask=decayed,
        )
    else:
        update = _in_columns(
            optax.contrib.muon(
                schedule,
                beta=cfg.b1,
                weight_decay=cfg.weight_decay,
                weight_decay_mask=decayed,
                mu_dtype=cfg.moment_dtype,
                adam_b1=cfg.b1,
                adam_b2=cfg.b2,
                consistent_rms=_UPDATE_RMS,
                muon_weight_dimension_numbers=muon_axes,
            )
        )
    tx = optax.chain(optax.clip_by_global_norm(cfg.clip_norm), update)
    if not cfg.freeze:
        return tx

    def kinds(params: Any) -> Any:
        fixed = frozen_parameters(params, cfg.freeze)
        return jax.tree.map(lambda no: "frozen" if no else "trained", fixed)

    return optax.multi_transform({"trained": tx, "frozen": optax.set_to_zero()}, kinds)


def frozen_parameters(params: Any, patterns: Sequence[str]) -> Any:
    """True for the parameters whose path, as in "blocks/attn1/to_q/kernel", a pattern matches.

    Raises:
      ValueError: if a pattern is no regular expression, or matches nothing.
    """
    matched = dict.fromkeys(patterns, False)

    def leaf(path: Any, _: Any) -> bool:
        name = "/".join(entry.key for entry in path)
        matching = [pattern for pattern in patterns if re.search(pattern, name)]
        matched.update(dict.fromkeys(matching, True))
        return bool(matching)

    try:
        fixed = jax.tree.map_with_path(leaf, params)
    except re.error as error:
        raise ValueError(f"optim.freeze: {error.pattern!r} cannot be read: {error}") from error
    idle = [pattern for pattern, matches in matched.items() if not matches]
    if idle:
        raise ValueError(f"optim.freeze: {idle[0]!r} matches no parameter")
    return fixed


def decayed(params: Any) -> Any:
    """True for matrices and convolution kernels: what weight decay acts on.

    The name decides, not the rank: biases and gains of stacked blocks have two dimensions too.
    """
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def muon_axes(params: Any) -> Any:
    """How each kernel is a matrix (inputs x outputs); None for what AdamW takes.

    Stacked blocks (3 dimensions) are one matrix each, groups of columns (6) too; a convolution's
    window counts as inputs.
    """

    def axes(path: Any, x: Any) -> MuonDimensionNumbers | None:
        if path[-1].key != "kernel":
            return None
        inputs = {3: (1,), 6: (0, 1, 2, 3)}.get(x.ndim, tuple(range(x.ndim - 1)))
        return MuonDimensionNumbers(reduction_axis=inputs, output_axis=(x.ndim - 1,))

    return jax.tree.map_with_path(axes, params)


def _in_columns(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Shows `tx` wide convolution kernels (..., n * columns) as (..., n, columns)."""

    def fold(tree: Any) -> Any:
        def leaf(x: Any) -> Any:
            wide = x.ndim == 5 and x.shape[-1] > _COLUMNS and x.shape[-1] % _COLUMNS == 0
            return x.reshape(*x.shape[:-1], -1, _COLUMNS) if wide else x

        return jax.tree.map(leaf, tree)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        new, state = tx.update(fold(updates), state, fold(params))
        return jax.tree.map(lambda x, like: x.reshape(like.shape), new, updates), state

    return optax.GradientTransformation(lambda params: tx.init(fold(params)), update)


def ema_decay(updates: Any, decay: float) -> jax.Array:
    """Decay of the parameter average after `updates` earlier ones: min(decay, (1 + n) / (10 + n)).

    The warm-up keeps the average of a short run from resting on the initial values.
    """
    n = jnp.asarray(updates, jnp.float32)
    return jnp.minimum(decay, (1 + n) / (10 + n))
