"""Distribution matching distillation: a student of few steps whose videos look like the teacher's.

The student G turns noise into data in K steps. A second network, the *fake score*, learns the
velocity of the student's own outputs by flow matching; the frozen teacher knows that of the real
ones. Where the two differ, at outputs that are noised again, is where the student should move:
that is the gradient of the Kullback-Leibler divergence between both distributions of noised data
(Yin et al., DMD2, arXiv 2405.14867). No pairs of noise and data are needed, and no data.

With several steps, the fake score sees the outputs of all of them. Unless it gets the index of the
step as an input, only the mixture of all outputs is compared, and single steps may drift.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ltx_jax.diffusion.flow import data_of, stochastic_step, velocity_of
from ltx_jax.training import losses

# (parameters, tokens (b, n, c), their times (b, #n)) -> velocity (b, n, c)
Velocity = Callable[[Any, Array, Array], Array]

# Times at which outputs are compared: shifted towards noise as in rCM (arXiv 2510.08431), within
# the range of DMD2.
_SHIFT, _FIRST, _LAST = 5.0, 0.02, 0.98
_SMALLEST_DISTANCE = 1e-5  # of an output to the teacher's data, which the gradient is divided by


def comparison_times(key: Array, batch: int) -> Float[Array, " b"]:
    """Draws the times at which outputs are noised and compared, in [0.02, 0.98]."""
    q = jax.random.uniform(key, (batch,))
    return jnp.clip(_SHIFT * q / (1 + (_SHIFT - 1) * q), _FIRST, _LAST)


def rollout(
    student: Velocity,
    params: Any,
    start: Float[Array, "b n c"],
    own: Float[Array, "b #n"],
    times: Float[Array, "k"],
    last: Int[Array, " b"],
    draw: Callable[[Array], Float[Array, "b n c"]],
) -> Float[Array, "b n c"]:
    """The student's data after its steps 0 to `last`; only the last one is differentiated.

    Every step goes to the predicted data; between steps, new noise takes the free tokens to the
    next time, as in sampling.

    Args:
      student: velocity of the student.
      params: its parameters.
      start: noise, with condition tokens in place.
      own: highest time of each token, 1 for free ones; (b, 1) if all are free. The others are
        tokens of conditions, which stay as they are, at this time.
      times: descending times of the student's steps.
      last: for each sample, the index of the step whose data are returned, from 0.
      draw: step -> standard normal numbers.

    Returns:
      Data of the free tokens; condition tokens are as in `start`.
    """
    is_free = own[..., None] == 1

    def step(x: Array, i: Array) -> Array:
        at = jnp.where(own == 1, times[i], own)
        velocity = student(jax.lax.stop_gradient(params), x, at)
        target = jnp.full_like(at, times[i + 1])
        moved = stochastic_step(x, velocity, at, target, draw(i))
        return jnp.where(is_free & (i < last)[:, None, None], moved, x)

    def step_if_needed(x: Array, i: Array) -> tuple[Array, None]:
        return jax.lax.cond(jnp.any(i < last), step, lambda x, _: x, x, i), None

    x, _ = jax.lax.scan(step_if_needed, start, jnp.arange(len(times) - 1))
    at = jnp.where(own == 1, times[last][:, None], own)
    return jnp.where(is_free, data_of(x, student(params, x, at), at), x)


def matching_loss(
    data: Float[Array, "b n c"],
    noised: Float[Array, "b n c"],
    times: Float[Array, "b #n"],
    fake: Float[Array, "b n c"],
    real: Float[Array, "b n c"],
    weight: Float[Array, "b n"],
) -> Float[Array, " b"]:
    """A loss whose gradient with respect to `data` is the difference of both data predictions.

        L = 1/2 mean (x - sg(x - d))^2,    d = (x_fake - x_real) / mean |x - x_real|

    sg stops gradients. Up to a positive factor per sample, d is the difference of the scores of
    fake and real samples at the noised data (DMD2, section 3).

    Args:
      data: the student's outputs x; the loss is differentiated with respect to them.
      noised: the outputs, noised to `times`.
      times: times of all tokens.
      fake: velocity of the fake score at the noised outputs.
      real: velocity of the teacher there, guided.
      weight: weight (b, n) of each token; 0 for conditions.

    Returns:
      The loss of each sample.
    """
    difference = data_difference(noised, times, fake, real)
    distance = jnp.abs(data - data_of(noised, real, times))
    total = jnp.maximum(jnp.sum(weight, axis=-1), 1e-6)
    mean = jnp.sum(jnp.mean(distance, axis=-1) * weight, axis=-1) / total
    step = difference / jnp.maximum(mean, _SMALLEST_DISTANCE)[:, None, None]
    return 0.5 * losses.velocity_loss(data, jax.lax.stop_gradient(data - step), weight)


def data_difference(
    noised: Float[Array, "b n c"],
    times: Float[Array, "b #n"],
    fake: Float[Array, "b n c"],
    real: Float[Array, "b n c"],
) -> Float[Array, "b n c"]:
    """The data that the fake score predicts minus those that the teacher predicts."""
    return data_of(noised, fake, times) - data_of(noised, real, times)


def fake_loss(
    velocity: Float[Array, "b n c"],
    data: Float[Array, "b n c"],
    noise: Float[Array, "b n c"],
    weight: Float[Array, "b n"],
) -> Float[Array, " b"]:
    """Flow matching of the fake score on the student's outputs, which are constants in it.

    Args:
      velocity: of the fake score at the outputs, noised with `noise`.
      data: the student's outputs.
      noise: the noise.
      weight: weight (b, n) of each token; 0 for conditions.

    Returns:
      The loss of each sample.
    """
    return losses.velocity_loss(velocity, velocity_of(jax.lax.stop_gradient(data), noise), weight)
