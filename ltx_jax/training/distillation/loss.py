"""Trajectory regression: the student learns where its steps lead on the stored paths of a teacher.

With the target "end", this is the regression of consistency mid-training (CMT, arXiv 2509.24526):
from every time, the student predicts the end of the path. With the target "next", each step learns
the average velocity of the teacher up to the next step.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltx_jax.config import DistillationConfig
from ltx_jax.diffusion.flow import euler_step
from ltx_jax.training import losses
from ltx_jax.training.stage import LossValue

# (tokens (b, n, c), their times (b, #n)) -> velocity
Velocity = Callable[[Array, Array], Array]


class Segment(NamedTuple):
    """What one step of the student has to do, for every sample of a batch.

    Attributes:
      tokens: (b, n, c), the tokens before the step.
      times: their times, (b, #n).
      target: (b, n, c), the velocity to predict: the average one up to the target of the step.
      weight: (b, n), 1 for free tokens and 0 for those of conditions.
    """

    tokens: Any
    times: Any
    target: Any
    weight: Any


def segment(batch: Mapping[str, Any], step: Array, cfg: DistillationConfig) -> Segment:
    """The segments of the paths that steps of the student belong to.

    Args:
      batch: "states" (b, s, n, c), the tokens at the times of the student's steps and at 0;
        "own_times" (b, #n), the highest time of every token.
      step: (b,), the step of each sample, from 0.
      cfg: the times, and where a step leads.
    """
    times = jnp.asarray((*cfg.times, 0.0), jnp.float32)
    last = jnp.full_like(step, len(cfg.times))
    target_step = step + 1 if cfg.target == "next" else last

    def at(index: Array) -> Array:
        states = jnp.take_along_axis(batch["states"], index[:, None, None, None], axis=1)[:, 0]
        return states.astype(jnp.float32)

    x, own = at(step), batch["own_times"]
    span = (times[step] - times[target_step])[:, None, None]
    return Segment(
        tokens=x,
        times=jnp.minimum(times[step][:, None], own),
        target=(x - at(target_step)) / span,
        weight=jnp.broadcast_to(own == 1, x.shape[:2]).astype(jnp.float32),
    )


def trajectory_loss(
    velocity: Velocity, batch: Mapping[str, Any], key: Array, cfg: DistillationConfig
) -> LossValue:
    """Mean squared error of the student's velocity, at one step of each path that is drawn.

    Args:
      velocity: the student.
      batch: as in `segment`.
      key: random key of this step of training.
      cfg: the times, and where a step of the student leads.
    """
    count = len(cfg.times)
    step = jax.random.randint(key, batch["states"].shape[:1], 0, count)
    part = segment(batch, step, cfg)
    prediction = velocity(part.tokens, part.times)
    per_sample = losses.velocity_loss(prediction, part.target, part.weight)
    inside = jax.nn.one_hot(step, count, axis=0)
    means = jnp.sum(inside * per_sample[None], axis=1) / jnp.sum(inside, axis=1)
    metrics = {f"loss_at/{time:g}": means[i] for i, time in enumerate(cfg.times)}
    metrics["conditioned"] = 1 - jnp.mean(part.weight)
    return LossValue(jnp.mean(per_sample), metrics)


class HeldOutErrors(NamedTuple):
    """How far a student is from its teacher on paths that it was not trained on.

    Attributes:
      losses: the loss of each step, (s,).
      end: root mean square distance between the ends of student and teacher, from the same noise;
        over free tokens.
    """

    losses: Float[Array, " s"]
    end: Float[Array, ""]


def held_out_errors(
    velocity: Velocity, batch: Mapping[str, Any], cfg: DistillationConfig
) -> HeldOutErrors:
    """Measures a student on a batch of paths; arguments as in `trajectory_loss`.

    A student with the target "next" takes all its steps; one with the target "end" takes one.
    """
    rows = batch["states"].shape[:1]
    by_step = []
    for number in range(len(cfg.times)):
        part = segment(batch, jnp.full(rows, number), cfg)
        prediction = velocity(part.tokens, part.times)
        by_step.append(jnp.mean(losses.velocity_loss(prediction, part.target, part.weight)))

    first = segment(batch, jnp.zeros(rows, jnp.int32), cfg)
    x, own = first.tokens, batch["own_times"]
    times = (*cfg.times, 0.0) if cfg.target == "next" else (1.0, 0.0)
    for time, later in itertools.pairwise(times):
        here = jnp.minimum(time, own)
        # As in sampling, a condition does not move until the time has fallen to its own.
        there = jnp.where(time <= own, later, here)
        x = euler_step(x, velocity(x, here), here, there)
    square = jnp.mean((x - batch["states"][:, -1].astype(jnp.float32)) ** 2, axis=-1)
    mean = jnp.sum(square * first.weight) / jnp.maximum(jnp.sum(first.weight), 1)
    return HeldOutErrors(jnp.stack(by_step), jnp.sqrt(mean))
