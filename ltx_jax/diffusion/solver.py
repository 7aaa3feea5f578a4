"""Solvers of the flow's differential equation: they move tokens from their times to the next ones.

A solver does not depend on network or guidance: it calls `predict`, once or more in each step.
Times are per token, since condition tokens have times of their own.
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
    """The times before and after a step.

    Attributes:
      time: times of the tokens before the step, (b, #n).
      target: times of the tokens after the step, (b, #n); equal to `time` for tokens that do not
        move.
      draw: returns standard normal numbers (b, n, c), the same in every call.
    """

    time: Any
    target: Any
    draw: Callable[[], Array]


@runtime_checkable
class Solver(Protocol):
    """A method of taking a step. Implementations are frozen dataclasses, which are compared by
    value, since a solver is a static argument of the compiled step."""

    def init_memory(self, x: Float[Array, "b n c"]) -> Any:
        """What the solver carries from step to step, before the first step; None if nothing."""
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
          predict: predicts the velocity under guidance.
          x: the tokens at `interval.time`.
          interval: the times before and after the step.
          state: the denoiser's state; each call of `predict` takes the state that the previous call
            returned.
          memory: from `init_memory`, or from the previous step.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Euler:
    """The Euler method, of first order, as in the released pipeline."""

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
    """Goes to the predicted data, then adds new noise to go back to the target time. Distilled
    models are sampled this way."""

    def init_memory(self, x: Float[Array, "b n c"]) -> "Prediction":
        """No prediction yet."""
        return Prediction(jnp.zeros_like(x), jnp.zeros_like(x[..., 0]))

    def __call__(
        self,
        predict: Predict,
        x: Float[Array, "b n c"],
        interval: Interval,
        state: Any,
        memory: "Prediction",
    ) -> tuple[Float[Array, "b n c"], Any, "Prediction"]:
        """As in `Solver`. The memory is for previews: the new noise hides the prediction."""
        noise = interval.draw()
        velocity, state = predict(x, interval.time, state)
        made = Prediction.of(x, velocity, interval.time)
        x = flow.stochastic_step(x, velocity, interval.time, interval.target, noise)
        return x, state, made


class Prediction(NamedTuple):
    """The memory of solvers that remember what the previous step predicted.

    Attributes:
      data: (b, n, c), the data that the previous step predicted.
      time: (b, n), the times of that prediction; 0 before the first step.
    """

    data: Any
    time: Any

    @classmethod
    def of(
        cls, x: Float[Array, "b n c"], velocity: Float[Array, "b n c"], time: Float[Array, "b #n"]
    ) -> "Prediction":
        """What a velocity at these times predicts."""
        time = jnp.broadcast_to(time, x.shape[:2])
        # Sharded like the inputs; otherwise the second step would compile another program.
        data = constrain(flow.data_of(x, velocity, time), "batch", "token", None)
        return cls(data, constrain(time, "batch", "token"))


def predicted_data(
    before: Float[Any, "b n c"],
    after: Float[Any, "b n c"],
    time: float,
    target: float,
    memory: Any,
) -> Float[Any, "b n c"]:
    """The data that a step predicted, for pictures of a video that is being denoised.

    Args:
      before: tokens before the step.
      after: tokens after the step.
      time: the time before the step.
      target: the time after the step, which is lower.
      memory: the solver's memory after the step. If it is no `Prediction`, the tokens moved along a
        straight line, which is continued to time 0.
    """
    if isinstance(memory, Prediction):
        return memory.data
    return after + (after - before) * (target / (time - target))


@dataclasses.dataclass(frozen=True)
class DPMSolverPP2M:
    """DPM-Solver++(2M): second order with one prediction per step (Lu et al. 2022, arXiv
    2211.01095, algorithm 2), for the path x_t = (1 - t) data + t noise.

    It is an Euler step towards data that is extrapolated from this prediction and the previous one,
    linearly in half the log signal-to-noise ratio, l(t) = log((1 - t) / t). In a token's first step
    and in its step to time 0, where extrapolation is not possible, the step is of first order.
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
        made = Prediction.of(x, velocity, time)
        extrapolates = (memory.time > time + flow.TIME_EPSILON) & (target > 0)
        ahead = _half_log_snr(target) - _half_log_snr(time)
        behind = _half_log_snr(time) - _half_log_snr(memory.time)
        weight = jnp.where(extrapolates, (1 - target / time) * ahead / (2 * behind), 0.0)
        x = flow.euler_step(x, velocity, time, target) + weight[..., None] * (
            made.data - memory.data
        )
        return x, state, made


def _half_log_snr(t: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Half the log signal-to-noise ratio: infinity at t = 0, minus infinity at t = 1."""
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
