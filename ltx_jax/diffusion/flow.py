"""Rectified flow: the path, its velocity, the times of a run and the steps between them.

In this project, t = 1 is noise and t = 0 is data, a noised sample is x_t = (1 - t) data + t noise,
and its velocity is dx/dt = noise - data. So data = x_t - t velocity, and a step from t down to s is
x_s = x_t - (t - s) velocity.

Schedules are computed with numpy in float32, in the same order of operations as the released
scheduler on a CPU. Guidance that changes "at time 0.985" compares these floats, so that an error of
one unit in the last place can move the change by a step.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from ltx_jax.config import SchedulerConfig

Schedule = Float32[np.ndarray, "s"]

TIME_EPSILON = 1e-6  # times that differ by less than this count as equal
_ONE = np.float32(1)


def add_noise(
    data: Float[Array, "b *n c"], noise: Float[Array, "b *n c"], t: Float[Array, "b *_"]
) -> Float[Array, "b *n c"]:
    """The noised sample at time t. The axes of `t` are leading axes: (b,), (b, 1), (b, n), ..."""
    t = _spread(t, data)
    return (1 - t) * data + t * noise


def velocity_of(
    data: Float[Array, "b *n c"], noise: Float[Array, "b *n c"]
) -> Float[Array, "b *n c"]:
    """The velocity that the network is trained to predict."""
    return noise - data


def data_of(
    x: Float[Array, "b *n c"], velocity: Float[Array, "b *n c"], t: Float[Array, "b *_"]
) -> Float[Array, "b *n c"]:
    """The data that a sample at time t and its predicted velocity imply."""
    return x - _spread(t, x) * velocity


def _spread(t: Array, x: Array) -> Array:
    """Appends axes of size one, so that `t` broadcasts against `x`."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def next_time(t: Float[Array, "b n"], times: Float[Array, "s"]) -> Float[Array, "b n"]:
    """For each t, the largest of `times` below t; 0 if there is none.

    `t` need not be in `times`: condition tokens have times of their own.
    """
    times = times.reshape(-1, 1, 1)
    below = times < (t - TIME_EPSILON)[None]
    return jnp.max(jnp.where(below, times, 0.0), axis=0)


def euler_step(
    x: Float[Array, "b n c"],
    velocity: Float[Array, "b n c"],
    t: Float[Array, "b n2"],
    target: Float[Array, "b n2"],
) -> Float[Array, "b n c"]:
    """Moves along the velocity from time t to `target`; times are per token, or shared (n2 = 1)."""
    return x - _spread(t - target, x) * velocity


def stochastic_step(
    x: Float[Array, "b n c"],
    velocity: Float[Array, "b n c"],
    t: Float[Array, "b n2"],
    target: Float[Array, "b n2"],
    noise: Float[Array, "b n c"],
) -> Float[Array, "b n c"]:
    """Goes to the predicted data, then adds new noise to go back to time `target`."""
    return add_noise(data_of(x, velocity, t), noise, target)


def inference_times(
    cfg: SchedulerConfig,
    tokens: int,
    *,
    num_inference_steps: int = 40,
    timesteps: Sequence[float] | None = None,
    skip_initial: int = 0,
    skip_final: int = 0,
    allowed: Sequence[float] | None = None,
) -> Schedule:
    """The descending times at which the network is called; the last step goes to 0.

    Args:
      cfg: the checkpoint's scheduler.
      tokens: number of latent tokens, on which the shifts depend.
      num_inference_steps: length of the schedule, before anything is skipped.
      timesteps: explicit times that replace the schedule; they are neither shifted nor skipped.
      skip_initial: number of leading times to drop (to start from a noised video).
      skip_final: number of trailing times to drop; the last remaining step goes to 0.
      allowed: the times, to 4 decimals, that a distilled checkpoint was trained for.

    Raises:
      ValueError: for invalid times or skips, or times that are not in `allowed`.
    """
    if timesteps is not None:
        times = np.asarray(timesteps, np.float32)
        _check_explicit(times)
    else:
        times = schedule(cfg, num_inference_steps, tokens)
        if min(skip_initial, skip_final) < 0 or skip_initial + skip_final >= len(times):
            raise ValueError(
                f"skip_initial_inference_steps = {skip_initial} and skip_final_inference_steps = "
                f"{skip_final} must not be negative and must leave at least one of {len(times)} "
                f"steps"
            )
        times = times[skip_initial : len(times) - skip_final]
    if allowed is not None:
        unknown = [t for t in times.tolist() if round(t, 4) not in allowed]
        if unknown:
            raise ValueError(
                f"this checkpoint was distilled for the times {list(allowed)} and cannot sample "
                f"at {[round(t, 4) for t in unknown]}; set timesteps to some of the former, or "
                f"num_inference_steps to {len(allowed)}"
            )
    return times


def _check_explicit(times: Schedule) -> None:
    inside = np.all((times > 0) & (times <= 1))
    if not len(times) or not inside or np.any(np.diff(times) >= 0):
        raise ValueError(
            f"timesteps must decrease, and lie above 0 and at most at 1, got {times.tolist()}"
        )


def schedule(cfg: SchedulerConfig, steps: int, tokens: int) -> Schedule:
    """The shifted schedule of `steps` times for a video of `tokens` latent tokens."""
    if steps < 1:
        raise ValueError(f"num_inference_steps must be positive, got {steps}")
    steps = min(steps, cfg.num_train_timesteps)
    if cfg.sampler == "LinearQuadratic":
        times = linear_quadratic(steps)
    elif cfg.sampler == "Constant":
        times = _time_shift(uniform(steps), cfg.shift or 0.0)  # the config always has one here
    else:
        times = uniform(steps)
    if cfg.shifting == "SD3":
        return sd3_shift(times, tokens, cfg.target_shift_terminal)
    if cfg.shifting == "SimpleDiffusion":
        return simple_diffusion_shift(times, tokens, cfg.base_resolution)
    return times


def uniform(steps: int) -> Schedule:
    """Times that are evenly spaced from 1 to 1 / steps."""
    last = np.float32(1 / steps)
    if steps == 1:
        return np.array([last])
    # As in the reference, each half is computed from its own end, with fused multiply-adds (one
    # rounding): float64 holds the product of two float32 numbers exactly.
    index = np.arange(steps)
    stride = np.float64((last - _ONE) / np.float32(steps - 1))
    from_first = 1.0 + stride * index
    from_last = np.float64(last) - stride * (steps - 1 - index)
    return np.where(index < steps // 2, from_first, from_last).astype(np.float32)


def linear_quadratic(steps: int, threshold: float = 0.025) -> Schedule:
    """Times that fall linearly to 1 - threshold in half of the steps, then on a parabola (Movie
    Gen)."""
    if steps == 1:
        return np.ones(1, np.float32)
    linear = steps // 2
    curved = steps - linear
    excess = linear - threshold * steps
    a = excess / (linear * curved**2)
    b = threshold / linear - 2 * excess / curved**2
    c = a * linear**2
    noise_free = [i * threshold / linear for i in range(linear)]
    noise_free += [a * i**2 + b * i + c for i in range(linear, steps)]
    return np.array([1.0 - s for s in noise_free], np.float32)


def sd3_shift(times: Schedule, tokens: int, terminal: float | None = None) -> Schedule:
    """Shifts times towards noise, further for more tokens; the last becomes `terminal`, if set."""
    slope = (2.05 - 0.95) / (4096 - 1024)
    shifted = _time_shift(times, slope * tokens + (0.95 - slope * 1024))
    covered = _ONE - shifted
    if terminal is None or covered[-1] == 0:  # a single step starts and ends at 1
        return shifted
    return _ONE - covered / (covered[-1] / np.float32(1 - terminal))


def simple_diffusion_shift(times: Schedule, tokens: int, base_resolution: int) -> Schedule:
    """Adds 2 log(tokens / base_resolution) to the log noise-to-signal ratio; time 1 stays 1."""
    with np.errstate(divide="ignore"):
        ratio = np.square(times / (_ONE - times))
        logs = np.log(ratio.astype(np.float64)).astype(np.float32)
    shift = np.float32(2 * math.log(tokens / base_resolution))
    return _sigmoid(np.float32(0.5) * (logs + shift))


def _time_shift(times: Schedule, mu: float) -> Schedule:
    # The reference divides a scalar by an array as scalar * (1 / array), which rounds differently.
    scale = np.float32(math.exp(mu))
    return scale * (_ONE / (scale + (_ONE / times - _ONE)))


def _sigmoid(x: Schedule) -> Schedule:
    """Float32 sigmoid, bit-identical to the reference on a CPU with vectors of 16 floats.

    The reference evaluates a polynomial on pairs of vectors, and the remaining elements one by one.
    """
    vectored = len(x) - len(x) % 32
    exact = np.exp(-x.astype(np.float64)).astype(np.float32)
    exp = np.concatenate([_polynomial_exp(-x[:vectored]), exact[vectored:]])
    return _ONE / (_ONE + exp)


def _polynomial_exp(x: Schedule) -> Schedule:
    """SLEEF's single-precision exp, with fused multiply-adds (one rounding each)."""

    def multiply_add(a: np.ndarray, b: np.ndarray | float, c: np.ndarray | float) -> np.ndarray:
        b, c = np.asarray(b, np.float32), np.asarray(c, np.float32)
        return (a.astype(np.float64) * b.astype(np.float64) + c).astype(np.float32)

    x = np.clip(x, np.float32(-87), np.float32(88))
    doublings = np.rint(x * np.float32(math.log2(math.e)))
    rest = multiply_add(doublings, -0.693145751953125, x)
    rest = multiply_add(doublings, -1.428606765330187e-06, rest)
    tail = np.full_like(rest, 1.9852762e-4)
    for coefficient in (1.3930436e-3, 8.3333608e-3, 4.1666485e-2, 1.6666667e-1, 0.5):
        tail = multiply_add(tail, rest, coefficient)
    tail = multiply_add(rest * rest, tail, rest)
    return np.ldexp(_ONE + tail, doublings.astype(np.int32))
