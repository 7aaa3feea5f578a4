"""The denoising loop: one compiled step per set of guidance branches.

A step is a guided prediction and a solver's use of it. The denoiser, its parameters and all that
changes from step to step (times, scales, skipped blocks) are arguments of the compiled step, so
that another schedule or another list of blocks compiles nothing.
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

HARD = 1 - 1e-6  # a token of at least this strength is never denoised
_BUCKET = 64  # per-step data is padded to a multiple, so that the step count is no static shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """All that the loop reads and never changes.

    Attributes:
      start: the tokens (b, n, c) that the loop starts from.
      strength: (b, n) of each token as a condition, 0 for free ones; None without conditions.
      context: of the captions, prepared by the denoiser.
      negative: of the negative captions, or None if no step has a negative branch.
      times: (s,) falling times, padded with zeros at the end.
      scales: guidance of every step, padded likewise.
      image_noise: scale of the fresh noise on hard condition tokens, or None for none.
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
    """What goes from step to step beside the tokens.

    Attributes:
      denoiser: the denoiser's state, of all rows of its last prediction.
      memory: the solver's, of the tokens.
    """

    denoiser: Any
    memory: Any


@dataclasses.dataclass(frozen=True)
class Mode:
    """What is compiled into a step beside its branches."""

    stg: STGMode = "attention_values"
    cfg_star: bool = False
    solver: Solver = Euler()


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback sees after each step.

    Attributes:
      step: how many steps are done, from 1.
      steps: how many there are.
      time: the time of the step just done.
      tokens: (b, n, c), condition tokens first. The next step reuses their memory: copy what you
        keep.
    """

    step: int
    steps: int
    time: float
    tokens: Any


def mode_of(options: SamplingConfig) -> Mode:
    """The compiled-in part of the options."""
    return Mode(options.stg_mode, options.cfg_star_rescale, solver_of(options))


def per_step(times: Float32[np.ndarray, "s"], schedule: GuidanceSchedule) -> tuple[Array, Scales]:
    """Times and scales on the device, padded so that runs of similar length share a program."""
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
    """One step, compiled: the tokens after it and the next state. The memory of both is reused.

    Args:
      denoiser: the network.
      params: its prepared parameters.
      tokens: before the step.
      inputs: of the loop.
      index: of the step.
      state: of the step before, or the first one.
      branches: of guidance.
      mode: see there.
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
        # A token waits until the video's time has come down to its own noise level.
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
            # Helps motion along: a first frame without noise makes the rest stand still.
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
      inputs: see there.
      branches: the branches of each step, from `guidance.guidance_schedule`.
      mode: see there.
      callback: called after each step; what it raises ends the run.
      call: calls a jitted function; for those who compile or time apart.
    """
    # The first step gives its input's memory away, and `inputs.start` has to live on.
    tokens = jnp.array(inputs.start, jnp.float32, copy=True)
    times = np.asarray(inputs.times)
    before, state = None, State(None, mode.solver.init_memory(tokens))
    for i, kind in enumerate(branches):
        if kind != before:  # the rows of a denoiser's state are those of other branches
            b, n, c = tokens.shape
            before, state = kind, State(denoiser.init_state((kind.count * b, n, c)), state.memory)
        arguments = (denoiser, params, tokens, inputs, jnp.asarray(i, jnp.int32), state)
        tokens, state = call(step, *arguments, branches=kind, mode=mode)
        if callback is not None:
            tokens = jax.block_until_ready(tokens)
            callback(Progress(i + 1, len(branches), float(times[i]), tokens))
    return tokens
