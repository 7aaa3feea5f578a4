"""Optimisers: AdamW, or Muon on matrices and kernels with AdamW on the rest."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from ltx_jax.config import OptimConfig
from ltx_jax.training.adam_8bit import scale_by_adam_8bit

# Scales Muon's updates to the root mean square of Adam's, so that both can share one learning rate
# (Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982).
_UPDATE_RMS = 0.2

# Muon orthogonalises wide convolution kernels in groups of this many output channels: the cost
# grows with the square of their number, and 1024 output channels at once would take longer than the
# whole gradient of a small network.
_COLUMNS = 64

_DECAYED = ("kernel", "down", "up")

MAIN = "main"  # name of the optimiser for all parameters that no other optimiser trains


class Optimizer(NamedTuple):
    """The optimiser of a part of the parameters.

    Attributes:
      tx: the gradient transformation.
      freeze: regular expressions; parameters whose path matches one get no gradient.
      ema_decay: decay of the exponential average of these parameters; None keeps no average.
      start: number of updates of the run after which this optimiser begins; None means at once.
      every: n, to take part in every n-th update of the run.
      metrics: names of the metrics that are NaN in updates without this optimiser.
    """

    tx: optax.GradientTransformation
    freeze: tuple[str, ...] = ()
    ema_decay: float | None = None
    start: int | None = None
    every: int = 1
    metrics: tuple[str, ...] = ()

    @classmethod
    def of(cls, cfg: OptimConfig, steps: int) -> "Optimizer":
        """Makes the optimiser of a configuration, for a run of `steps` steps."""
        return cls(make_optimizer(cfg, steps), cfg.freeze, cfg.ema_decay)

    @property
    def learns_always(self) -> bool:
        """Whether this optimiser takes part in every update."""
        return self.start is None and self.every == 1

    def learns(self, updates: Any) -> Any:
        """Whether this optimiser takes part in the update after `updates` others, a boolean."""
        return (updates >= (self.start or 0)) & ((updates + 1) % self.every == 0)


def make_schedule(cfg: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant, or linear or cosine decay to zero.

    A linear decay covers the last `decay_fraction` of the run; a cosine decay starts right after
    the warm-up.
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
    if cfg.moment_dtype == "8bit":
        update = optax.chain(
            scale_by_adam_8bit(cfg.b1, cfg.b2),
            optax.add_decayed_weights(cfg.weight_decay, decayed),
            optax.scale_by_learning_rate(schedule),
        )
    elif cfg.name == "adamw":
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
        return jax.tree.map(lambda is_fixed: "frozen" if is_fixed else "trained", fixed)

    return optax.multi_transform({"trained": tx, "frozen": optax.set_to_zero()}, kinds)


def frozen_parameters(params: Any, patterns: Sequence[str]) -> Any:
    """A tree of booleans: True where a pattern matches the path ("blocks/attn1/to_q/kernel").

    Raises:
      ValueError: if a pattern is not a regular expression, or matches nothing.
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
        raise ValueError(
            f"optim.freeze: {error.pattern!r} is not a regular expression: {error}"
        ) from error
    idle = [pattern for pattern, matches in matched.items() if not matches]
    if idle:
        raise ValueError(f"optim.freeze: {idle[0]!r} matches no parameter")
    return fixed


def decayed(params: Any) -> Any:
    """A tree of booleans: True for the parameters with weight decay, matrices and kernels, and the
    two matrices of an adapter.

    Decided by name, not by rank: stacking the blocks gives biases and gains two dimensions too.
    """
    return jax.tree.map_with_path(lambda path, _: path[-1].key in _DECAYED, params)


def muon_axes(params: Any) -> Any:
    """Which axes of each kernel are inputs and outputs for Muon; None for parameters on AdamW.

    Each block of a stacked kernel (3 dimensions) is one matrix, and so is each group of columns of
    a convolution kernel (6 dimensions). The axes of a convolution's window count as inputs.
    """

    def axes(path: Any, x: Any) -> MuonDimensionNumbers | None:
        if path[-1].key != "kernel":
            return None
        inputs = {3: (1,), 6: (0, 1, 2, 3)}.get(x.ndim, tuple(range(x.ndim - 1)))
        return MuonDimensionNumbers(reduction_axis=inputs, output_axis=(x.ndim - 1,))

    return jax.tree.map_with_path(axes, params)


def _in_columns(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Wraps `tx` so that it gets wide convolution kernels (..., n * columns) reshaped to
    (..., n, columns)."""

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
    """Decay of the parameter average after n = `updates` updates: min(decay, (1 + n) / (10 + n)).

    Thanks to this warm-up, the average of a short run is not dominated by the initial values.
    """
    n = jnp.asarray(updates, jnp.float32)
    return jnp.minimum(decay, (1 + n) / (10 + n))
