"""The losses that call the teacher in every step, from a batch of paths to a `LossValue`.

Only the ends of the paths are used: the data, and what shows the conditions.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ltx_jax.config import TrainStudent
from ltx_jax.diffusion.flow import add_noise
from ltx_jax.diffusion.noise import KeyNoise
from ltx_jax.training.distillation import consistency, distribution_matching
from ltx_jax.training.distillation.consistency import FlowPoint
from ltx_jax.training.stage import LossValue
from ltx_jax.training.transformer.loss import by_time, training_times

# (tokens (b, n, c), their times (b, #n)) -> velocity
Velocity = Callable[[Array, Array], Array]
# (parameters, tokens, their times) -> velocity
Network = Callable[[Any, Array, Array], Array]
# (parameters, step of the student, tokens, their times) -> velocity
FakeScore = Callable[[Any, Array, Array, Array], Array]


class _Ends(NamedTuple):
    """Both ends of paths, in float32."""

    noise: Any  # (b, n, c), with condition tokens in place
    data: Any  # (b, n, c)
    own: Any  # (b, #n), highest time of every token: 1 for free ones
    free: Any  # (b, n), 1 for free tokens, 0 for those of conditions

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> "_Ends":
        noise, data = (batch["states"][:, i].astype(jnp.float32) for i in (0, -1))
        own = batch["own_times"]
        free = jnp.broadcast_to(own == 1, noise.shape[:2]).astype(jnp.float32)
        return cls(noise, data, own, free)

    def noised(
        self, data: Float[Array, "b n c"], noise: Float[Array, "b n c"], t: Float[Array, " b"]
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b #n"]]:
        """Tokens at time t, and their times. Those of conditions are at most at their own."""
        times = jnp.minimum(t[:, None], self.own)
        share = (times / jnp.maximum(self.own, 1e-6))[..., None]
        conditions = self.data + share * (self.noise - self.data)
        return jnp.where(self.own[..., None] == 1, add_noise(data, noise, t), conditions), times


def consistency_step(
    student: Network,
    params: Any,
    teacher: Velocity,
    batch: Mapping[str, Any],
    key: Array,
    cfg: TrainStudent,
    updates: Int[Array, ""],
) -> LossValue:
    """A consistency model on data that are noised to random times (`consistency_loss`).

    Args:
      student: the student.
      params: its parameters.
      teacher: the guided teacher.
      batch: as in `trajectory_loss`.
      key: random key of this step of training.
      cfg: distribution of the times, and form of the tangent.
      updates: number of updates of the run.
    """
    ends, settings = _Ends.of(batch), cfg.distillation
    b, n, _ = ends.data.shape
    time_key, noise_key = jax.random.split(key)
    t = training_times(time_key, b, n, cfg.flow)
    noise = KeyNoise(jax.random.split(noise_key, b)).draw("initial", ends.data.shape)
    x, times = ends.noised(ends.data, noise, t)
    per_sample, size = consistency.consistency_loss(
        student,
        params,
        FlowPoint(x, times, times, teacher(x, times), ends.free),
        consistency.tangent_share(updates, settings.tangent_warmup),
        settings.tangent,
    )
    at_times = {name.replace("loss", "residual"): x for name, x in by_time(size, t).items()}
    metrics = {"residual": jnp.mean(size), "conditioned": 1 - jnp.mean(ends.free), **at_times}
    return LossValue(jnp.mean(per_sample), metrics)


def matching_step(
    student: Network,
    fake: FakeScore,
    params: Mapping[str, Any],
    teacher: Velocity,
    batch: Mapping[str, Any],
    key: Array,
    times: tuple[float, ...],
    student_learns: Bool[Array, ""] | bool,
) -> LossValue:
    """Distribution matching: the loss of the fake score, and if it learns that of the student.

    The step of the student is drawn once per batch.

    Args:
      student: the student.
      fake: the fake score.
      params: "student" and "fake", their parameters.
      teacher: the guided teacher.
      batch: as in `trajectory_loss`.
      key: random key of this step of training.
      times: the times of the student's steps.
      student_learns: whether the student takes part in this update; False leaves its loss out of
        the program.
    """
    ends = _Ends.of(batch)
    shape = ends.data.shape
    step_key, time_key, noise_key = jax.random.split(key, 3)
    step = jax.random.randint(step_key, (), 0, len(times))
    s = distribution_matching.comparison_times(time_key, shape[0])
    noises = KeyNoise(jax.random.split(noise_key, shape[0]))
    start, noise = (noises.draw(name, shape) for name in ("initial", "comparison"))
    start = jnp.where(ends.free[..., None] == 1, start, ends.noise)

    def losses(params: Any, student_learns: bool) -> tuple[Array, Array]:
        data = distribution_matching.rollout(
            student,
            params["student"],
            start,
            ends.own,
            jnp.asarray(times),
            jnp.full(shape[:1], step),
            lambda i: noises.draw("stochastic", shape, i),
        )
        x, at = ends.noised(jax.lax.stop_gradient(data), noise, s)
        velocity = fake(params["fake"], step, x, at)
        of_fake = distribution_matching.fake_loss(velocity, data, noise, ends.free)
        of_student = jnp.zeros_like(of_fake)
        if student_learns:
            of_student = distribution_matching.matching_loss(
                data, x, at, velocity, teacher(x, at), ends.free
            )
        return jnp.mean(of_student), jnp.mean(of_fake)

    def of_fake_alone() -> tuple[Array, Array]:
        constant = jax.lax.stop_gradient(params["student"])
        return losses({**params, "student": constant}, False)

    if student_learns is False:
        of_student, of_fake = of_fake_alone()
    else:
        both = functools.partial(losses, params, True)
        of_student, of_fake = jax.lax.cond(student_learns, both, of_fake_alone)
    metrics = {
        "matching": jnp.where(student_learns, of_student, jnp.nan),
        "fake_loss": of_fake,
        "conditioned": 1 - jnp.mean(ends.free),
    }
    return LossValue(of_student, metrics, others={"fake": of_fake})
