"""Continuous-time consistency and MeanFlow: large steps learned from the teacher's velocity alone.

Let X(x, t -> r) be the point at time r of the teacher's flow dx/dt = v(x, t) that passes through x
at time t. The student is the *average velocity* on the way,

    u(x, t) = (x - X(x, t -> r)) / (t - r),

so that a single Euler step from t to r lands on the flow. For a fixed r, it satisfies

    u = v - (t - r) du/dt,    du/dt = (d_x u) v + d_t u

(Geng et al., MeanFlow, arXiv 2505.13447, section 4.1). The loss regresses u on the right-hand side.
The case r = 0 is a consistency model, whose data are x - t u (Lu and Song, sCM, arXiv 2410.11081):
it has the inputs of a velocity network.

du/dt is the derivative along the flow. There are three ways to compute it:

- "exact": a Jacobian-vector product in tokens and times.
- "semi_continuous": a Jacobian-vector product in the tokens, a difference in the times (Zheng et
  al., rCM, arXiv 2510.08431). Networks that embed 1000 t by sinusoids have ripples of period 0.006
  in t, about 1 % of their value but most of their derivative; a difference steps over them.
- "difference": one difference along the flow. It is the only way through fused attention kernels,
  which have no forward mode.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ltx_jax.config import Tangent
from ltx_jax.training import losses

# (parameters, tokens (b, n, c), their times (b, #n)) -> average velocity (b, n, c), for a fixed r
AverageVelocity = Callable[[Any, Array, Array], Array]
SHORTEST, LONGEST = 1e-3, 0.03  # the step of a difference is t - r, but within these
_SMALLEST_RMS = 0.1  # added to the root mean square of the residual, which is divided by the sum


class FlowPoint(NamedTuple):
    """Points of the teacher's flow.

    Attributes:
      x: tokens (b, n, c), those of conditions included.
      times: time of each token, (b, n); or (b, 1), if all tokens of the batch are free.
      span: t - r of each token, like `times`.
      velocity: the teacher's velocity (b, n, c), guided.
      free: (b, n), 1 for tokens that follow the flow, 0 for those of conditions, which stay as they
        are, at their own times.
    """

    x: Any
    times: Any
    span: Any
    velocity: Any
    free: Any


def along_flow(
    student: AverageVelocity, params: Any, point: FlowPoint, tangent: Tangent
) -> tuple[Float[Array, "b n c"], Float[Array, "b n c"]]:
    """The student's average velocity u, and its derivative du/dt along the flow.

    Condition tokens do not move: their tangents are zero, in value and in time.

    Args:
      student: the average velocity, for a fixed r.
      params: its parameters. The gradient through the derivative is not complete: a loss has to
        stop it.
      point: where.
      tangent: how the derivative is computed, see the top.
    """
    x, times = point.x, point.times
    by_x, by_time = point.velocity * point.free[..., None], point.free[:, : times.shape[1]]
    if tangent == "exact":
        return jax.jvp(lambda x, t: student(params, x, t), (x, times), (by_x, by_time))
    step = jnp.clip(point.span, SHORTEST, LONGEST)
    constant, before = jax.lax.stop_gradient(params), times - step * by_time
    if tangent == "difference":
        value = student(params, x, times)
        earlier = student(constant, x - step[..., None] * by_x, before)
        return value, (value - earlier) / step[..., None]
    value, by_x = jax.jvp(lambda x: student(params, x, times), (x,), (by_x,))
    return value, by_x + (value - student(constant, x, before)) / step[..., None]


def residual(
    value: Float[Array, "b n c"],
    derivative: Float[Array, "b n c"],
    point: FlowPoint,
    share: Float[Array, ""] | float = 1.0,
) -> Float[Array, "b n c"]:
    """v - u - share (t - r) du/dt, which is zero for the exact average velocity if `share` is 1.

    Args:
      value: the student's average velocity u.
      derivative: its derivative du/dt along the flow.
      point: where they were computed.
      share: share of the term with the derivative. Without it, the residual is that of a student
        of the guided velocity, which takes as many steps as the teacher.
    """
    return point.velocity - value - share * point.span[..., None] * derivative


def tangent_share(updates: Int[Array, ""], warmup: int) -> Float[Array, ""]:
    """The share of the derivative after `updates` updates: it rises linearly to 1 in `warmup`."""
    return jnp.minimum((updates + 1) / (warmup + 1), 1.0)


def consistency_loss(
    student: AverageVelocity,
    params: Any,
    point: FlowPoint,
    share: Float[Array, ""] | float = 1.0,
    tangent: Tangent = "semi_continuous",
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Squared error of the average velocity against the right-hand side of its equation.

        L = mean (u - sg(u + g / (rms(g) + 0.1)))^2,    g = `residual`

    sg stops gradients; means are over the free tokens of a sample. As the residual is normalised
    (sCM, section 4.2), the loss stays near 1: the root mean square of the residual says how
    training goes.

    Args:
      student: the average velocity, for a fixed r.
      params: its parameters, which the loss is differentiated with respect to.
      point: points of the teacher's flow.
      share: share of the derivative (`tangent_share`).
      tangent: how the derivative is computed.

    Returns:
      Loss and root mean square of the residual of each sample.
    """
    value, derivative = along_flow(student, params, point, tangent)
    gap = jax.lax.stop_gradient(residual(value, derivative, point, share))
    size = jnp.sqrt(losses.velocity_loss(gap, jnp.zeros_like(gap), point.free))
    target = jax.lax.stop_gradient(value) + gap / (size + _SMALLEST_RMS)[:, None, None]
    return losses.velocity_loss(value, target, point.free), size
