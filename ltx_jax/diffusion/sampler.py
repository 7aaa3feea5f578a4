"""The denoising loop: one compiled step per set of guidance branches.

In a step, a solver moves the tokens with one or more guided predictions. The denoiser, its
parameters and everything that changes from step to step (times, scales, skipped blocks) are
arguments of the compiled step, so that changing the schedule or the skipped blocks does not
recompile it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from ltx_jax.config import SamplingConfig, STGMode
from ltx_jax.diffusion import flow, guidance
from ltx_jax.diffusion.denoiser import Denoiser, call_directly
from ltx_jax.diffusion.guidance import Branches, GuidanceSchedule, Scales
from ltx_jax.diffusion.solver import Euler, Interval, Solver, solver_of
from ltx_jax.runtime.sharding import constrain

HARD = 1 - 1e-6  # tokens of at least this strength are never denoised
# Arrays with one entry per step are padded to a multiple of this, so that runs of different lengths
# have equal shapes and share compiled programs.
_BUCKET = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """The constant inputs of the loop.

    Attributes:
      start: the initial tokens (b, n, c).
      strength: strength (b, n) of each token as a condition, 0 for tokens without one; None if
        there are no conditions.
      context: the context with the captions, prepared by the denoiser.
      negative: the context with the negative captions; None if no step has a negative branch.
      times: descending times (s,), padded with zeros at the end.
      scales: guidance scales of every step, padded in the same way.
      image_noise: scale of the noise that every step adds to condition tokens of full strength
        (`HARD`); None adds none.
      noise: a `NoiseSource`.
    """

    start: Any
    strength: Any
    context: Any
    negative: Any
    times: Any
    scales: Scales
    image_noise: Any
    noise: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The state that is carried from step to step, in addition to the tokens.

    Attributes:
      denoiser: the denoiser's state, for all rows of its last prediction.
      memory: the solver's memory.
    """

    denoiser: Any
    memory: Any


@dataclasses.dataclass(frozen=True)
class Mode:
    """The static options of a compiled step, in addition to its branches."""

    stg: STGMode = "attention_values"
    cfg_star: bool = False
    solver: Solver = Euler()


@dataclasses.dataclass(frozen=True)
class Progress:
    """The argument of a callback after each step.

    Attributes:
      step: number of steps done, from 1.
      steps: number of all steps.
      time: time of the step that was just done.
      tokens: (b, n, c), condition tokens first. They are donated to the next step: copy them to
        keep them.
      memory: the solver's memory, donated likewise.
    """

    step: int
    steps: int
    time: float
    tokens: Any
    memory: Any = None


def mode_of(options: SamplingConfig) -> Mode:
    """The static part of the options."""
    return Mode(options.stg_mode, options.cfg_star_rescale, solver_of(options))


def per_step(times: Float32[np.ndarray, "s"], schedule: GuidanceSchedule) -> tuple[Array, Scales]:
    """Puts times and scales on the device, padded to a multiple of `_BUCKET` steps."""
    pad = -len(times) % _BUCKET

    def padded(x: np.ndarray) -> Array:
        return jnp.asarray(np.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)))

    return padded(times), jax.tree.map(padded, schedule.scales)


@functools.partial(
    jax.jit, static_argnames=("branches", "mode"), donate_argnames=("tokens", "state")
)
def step(
    denoiser: Denoiser,
    params: Any,
    tokens: Float[Array, "b n c"],
    inputs: Inputs,
    index: Int[Array, ""],
    state: State,
    *,
    branches: Branches,
    mode: Mode,
) -> tuple[Float[Array, "b n c"], State]:
    """Takes one compiled step; `tokens` and `state` are donated.

    Args:
      denoiser: the network.
      params: its prepared parameters.
      tokens: the tokens before the step.
      inputs: the constant inputs of the loop.
      index: index of the step.
      state: the state after the previous step, or the initial one.
      branches: branches of guidance in this step.
      mode: static options.

    Returns:
      The tokens after the step, and the next state.
    """
    x, time = _current(tokens, inputs, index)
    predict = functools.partial(
        guidance.predict,
        denoiser,
        params,
        rows=guidance.context_rows(inputs.context, inputs.negative, branches),
        branches=branches,
        scales=jax.tree.map(lambda values: values[index], inputs.scales),
        stg_mode=mode.stg,
        cfg_star=mode.cfg_star,
    )
    target, started = flow.next_time(time, inputs.times), None
    if inputs.strength is not None:
        # A condition token does not move until the time has fallen to its own noise level.
        started = inputs.times[index] - flow.TIME_EPSILON < 1 - inputs.strength
        target = jnp.where(started, target, time)
    draw = functools.partial(inputs.noise.draw, "stochastic", x.shape, index)
    interval = Interval(time, target, draw)
    stepped, carried, memory = mode.solver(predict, x, interval, state.denoiser, state.memory)
    if started is not None:
        stepped = jnp.where(started[..., None], stepped, x)
    return constrain(stepped, "batch", "token", None), State(carried, memory)


def _current(
    tokens: Float[Array, "b n c"], inputs: Inputs, index: Int[Array, ""]
) -> tuple[Float[Array, "b n c"], Float[Array, "b #n"]]:
    """The tokens as the network sees them, and their times."""
    t = inputs.times[index]
    x = tokens.astype(jnp.float32)
    time = jnp.broadcast_to(t, (tokens.shape[0], 1))
    if inputs.strength is not None:
        time = jnp.minimum(time, 1 - inputs.strength)
        if inputs.image_noise is not None:
            # Without this noise, there is little motion in a video that starts from an image.
            fresh = inputs.noise.draw("image_condition", x.shape, index)
            noised = inputs.start + inputs.image_noise * t**2 * fresh
            x = jnp.where((inputs.strength > HARD)[..., None], noised, x)
    return constrain(x, "batch", "token", None), time


def sample(
    denoiser: Denoiser,
    params: Any,
    inputs: Inputs,
    branches: Sequence[Branches],
    mode: Mode = Mode(),
    *,
    callback: Callable[[Progress], None] | None = None,
    call: Callable[..., Any] = call_directly,
) -> Float[Array, "b n c"]:
    """Runs all steps from `inputs.start`; returns the tokens, condition tokens first.

    Args:
      denoiser: the network.
      params: its prepared parameters.
      inputs: the constant inputs of the loop.
      branches: the branches of each step, from `guidance.guidance_schedule`.
      mode: static options.
      callback: called after each step; an exception from it ends the run.
      call: calls a jitted function; a caller may replace it to compile ahead of time, or to measure
        time.
    """
    # Copied, since the first step donates its input, and `inputs.start` must stay valid.
    tokens = jnp.array(inputs.start, jnp.float32, copy=True)
    times = np.asarray(inputs.times)
    before, state = None, State(None, mode.solver.init_memory(tokens))
    for i, kind in enumerate(branches):
        if kind != before:  # the denoiser's state is for the rows of the previous branches
            b, n, c = tokens.shape
            before, state = kind, State(denoiser.init_state((kind.count * b, n, c)), state.memory)
        arguments = (denoiser, params, tokens, inputs, jnp.asarray(i, jnp.int32), state)
        tokens, state = call(step, *arguments, branches=kind, mode=mode)
        if callback is not None:
            tokens = jax.block_until_ready(tokens)
            callback(Progress(i + 1, len(branches), float(times[i]), tokens, state.memory))
    return tokens
