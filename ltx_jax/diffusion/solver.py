"""Solvers of the flow: they move tokens from their times to the next ones.

A solver knows neither network nor guidance: it calls `predict`, once or several times in a step.
Times are those of the tokens, since condition tokens have times of their own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, get_args, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ltx_jax.config import SamplingConfig, SolverName
from ltx_jax.diffusion import flow
from ltx_jax.runtime.sharding import constrain

# (tokens (b, n, c), their times (b, #n), state of the denoiser) -> guided velocity, next state
Predict = Callable[[Array, Array, Any], tuple[Array, Any]]


class Interval(NamedTuple):
    """What a step spans.

    Attributes:
      time: of the tokens before it, (b, #n).
      target: their times after it, (b, #n); a token that does not move has target = time.
      draw: makes standard normal numbers (b, n, c), the same in every call.
    """

    time: Any
    target: Any
    draw: Callable[[], Array]


@runtime_checkable
class Solver(Protocol):
    """One way to take a step. It is compiled into the program: a frozen dataclass, compared by
    value."""

    def init_memory(self, x: Float[Array, "b n c"]) -> Any:
        """What the solver carries from step to step, before the first one; None if nothing."""
        ...

    def __call__(
        self,
        predict: Predict,
        x: Float[Array, "b n c"],
        interval: Interval,
        state: Any,
        memory: Any,
    ) -> tuple[Float[Array, "b n c"], Any, Any]:
        """The tokens at `interval.target`, the next state and the next memory.

        Args:
          predict: the velocity under guidance.
          x: the tokens at `interval.time`.
          interval: see there.
          state: of the denoiser; every call of `predict` takes the last one's.
          memory: from `init_memory` or the step before.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Euler:
    """Along the velocity: first order, the released pipeline's own."""

    def init_memory(self, x: Float[Array, "b n c"]) -> None:
        """No memory."""

    def __call__(
        self,
        predict: Predict,
        x: Float[Array, "b n c"],
        interval: Interval,
        state: Any,
        memory: None,
    ) -> tuple[Float[Array, "b n c"], Any, None]:
        """As in `Solver`."""
        velocity, state = predict(x, interval.time, state)
        return flow.euler_step(x, velocity, interval.time, interval.target), state, None


@dataclasses.dataclass(frozen=True)
class Stochastic:
    """To the predicted data, and back up to the target with new noise: for distilled models."""

    def init_memory(self, x: Float[Array, "b n c"]) -> None:
        """No memory."""

    def __call__(
        self,
        predict: Predict,
        x: Float[Array, "b n c"],
        interval: Interval,
        state: Any,
        memory: None,
    ) -> tuple[Float[Array, "b n c"], Any, None]:
        """As in `Solver`."""
        noise = interval.draw()
        velocity, state = predict(x, interval.time, state)
        return flow.stochastic_step(x, velocity, interval.time, interval.target, noise), state, None


class Prediction(NamedTuple):
    """The memory of `DPMSolverPP2M`.

    Attributes:
      data: (b, n, c), predicted in the step before, and
      time: (b, n), at these times; 0 before the first step.
    """

    data: Any
    time: Any


@dataclasses.dataclass(frozen=True)
class DPMSolverPP2M:
    """DPM-Solver++(2M): second order with one prediction a step (Lu et al. 2022, arXiv 2211.01095,
    algorithm 2), for the path x_t = (1 - t) data + t noise.

    An Euler step towards data extrapolated from this prediction and the last one, linearly in the
    half log signal-to-noise ratio l(t) = log((1 - t) / t). A token takes a step of first order
    where there is nothing to extrapolate from or to: in its first step, and in the one to time 0.
    """

    def init_memory(self, x: Float[Array, "b n c"]) -> Prediction:
        """No prediction yet."""
        return Prediction(jnp.zeros_like(x), jnp.zeros_like(x[..., 0]))

    def __call__(
        self,
        predict: Predict,
        x: Float[Array, "b n c"],
        interval: Interval,
        state: Any,
        memory: Prediction,
    ) -> tuple[Float[Array, "b n c"], Any, Prediction]:
        """As in `Solver`."""
        time, target = (jnp.broadcast_to(t, x.shape[:2]) for t in interval[:2])
        velocity, state = predict(x, interval.time, state)
        data = flow.data_of(x, velocity, time)
        extrapolates = (memory.time > time + flow.TIME_EPSILON) & (target > 0)
        ahead = _half_log_snr(target) - _half_log_snr(time)
        behind = _half_log_snr(time) - _half_log_snr(memory.time)
        weight = jnp.where(extrapolates, (1 - target / time) * ahead / (2 * behind), 0.0)
        x = flow.euler_step(x, velocity, time, target) + weight[..., None] * (data - memory.data)
        # Laid out as it came, or the second step would be a program of its own.
        data, time = constrain(data, "batch", "token", None), constrain(time, "batch", "token")
        return x, state, Prediction(data, time)


def _half_log_snr(t: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Infinite at the ends: infinity at 0, minus infinity at 1."""
    return jnp.log1p(-t) - jnp.log(t)


def solver_of(options: SamplingConfig) -> Solver:
    """The solver that the options name.

    Raises:
      ValueError: for an unknown name.
    """
    match options.solver:
        case "euler":
            return Stochastic() if options.stochastic_sampling else Euler()
        case "dpmpp_2m":
            return DPMSolverPP2M()
    raise ValueError(f"solver is {options.solver!r}; known: {get_args(SolverName)}")
