"""The denoising loop: one compiled step per set of guidance branches, or one program for all.

The network is an argument (`Velocity`), its weights are arguments of the compiled functions. What
changes from step to step (times, scales, skipped blocks) is data, so that another schedule or
another list of blocks compiles nothing.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from ltx_jax.config import SamplingConfig, STGMode
from ltx_jax.diffusion import flow, guidance
from ltx_jax.diffusion.guidance import Branches, Plan, Scales
from ltx_jax.models.transformer import Skip
from ltx_jax.models.transformer_fast import FewTimes
from ltx_jax.runtime.sharding import constrain

HARD = 1 - 1e-6  # a token of at least this strength is never denoised
_BUCKET = 64  # per-step data is padded to a multiple, so that the step count is no static shape

# (params, tokens (r, n, c), time (r, 1 | n), caption, caption mask, rope, skip) -> velocity. The
# time is a `FewTimes` where the inputs have `strengths`.
Velocity = Callable[[Any, Array, Any, Any, Array | None, Any, Skip | None], Array]


class Reusing(NamedTuple):
    """A network whose steps may reuse what earlier ones computed: `models.teacache`.

    Attributes:
      velocity: takes three arguments more than a `Velocity` (what was kept from the step before,
        the threshold, and whether this is the last step), and also returns what to keep.
      empty: from tokens (r, n, c), what is kept before the first step.
    """

    velocity: Callable[..., tuple[Array, Any]]
    empty: Callable[[Array], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Caption:
    """A batch of encoded captions.

    Attributes:
      embeddings: (b, m, d), or the tree of arrays that the velocity takes in their place.
      mask: (b, m), 1 where there is text.
    """

    embeddings: Any
    mask: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """All that the loop reads and never changes.

    Attributes:
      start: the tokens (b, n, c) that the loop starts from.
      mask: strengths (b, n) of condition tokens, or None.
      rope: the tables of the tokens' positions.
      caption: the positive captions.
      negative: the negative captions, or None if no step has a negative branch.
      times: (s,) falling times, padded with zeros at the end.
      scales: guidance of every step, padded likewise.
      image_noise: scale of the fresh noise on hard condition tokens, or None for none.
      noise: a `NoiseSource`.
      threshold: of a `Reusing` network; None for any other.
      strengths: (k,) those that occur in `mask`, for a network that takes `FewTimes`, else None.
    """

    start: Any
    mask: Any
    rope: Any
    caption: Caption
    negative: Caption | None
    times: Any
    scales: Scales
    image_noise: Any
    noise: Any
    threshold: Any = None
    strengths: Any = None


@dataclasses.dataclass(frozen=True)
class Mode:
    """What is compiled into a step beside its branches."""

    stg: STGMode = "attention_values"
    cfg_star: bool = False
    stochastic: bool = False


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
    return Mode(options.stg_mode, options.cfg_star_rescale, options.stochastic_sampling)


def per_step(times: Float32[np.ndarray, "s"], plan: Plan) -> tuple[Array, Scales]:
    """Times and scales on the device, padded so that runs of similar length share a program."""
    pad = -len(times) % _BUCKET

    def padded(x: np.ndarray) -> Array:
        return jnp.asarray(np.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)))

    return padded(times), jax.tree.map(padded, plan.scales)


def denoise(
    velocity: Velocity | Reusing,
    params: Any,
    tokens: Float[Array, "b n c"],
    inputs: Inputs,
    index: Int[Array, ""],
    kept: Any = None,
    *,
    branches: Branches,
    mode: Mode,
) -> tuple[Float[Array, "b n c"], Any, dict[str, Array]]:
    """One step; returns the tokens after it, what a `Reusing` network keeps, and what it computed
    on the way for those who ask."""
    b = tokens.shape[0]
    t = inputs.times[index]
    x = tokens.astype(jnp.float32)
    time = jnp.broadcast_to(t, (b, 1))
    if inputs.mask is not None:
        time = jnp.minimum(time, 1 - inputs.mask)
        if inputs.image_noise is not None:
            # Helps motion along: a first frame without noise makes the rest stand still.
            fresh = inputs.noise.draw("image_condition", x.shape, index)
            noised = inputs.start + inputs.image_noise * t**2 * fresh
            x = jnp.where((inputs.mask > HARD)[..., None], noised, x)
    x = constrain(x, "batch", "token", None)

    scales = jax.tree.map(lambda values: values[index], inputs.scales)
    caption = _captions(inputs, branches)
    skip = None
    if branches.perturbed:
        skip = Skip(mode.stg, guidance.skip_mask(scales.keep, branches, b))
    times: Any = guidance.repeat_rows(time, branches)
    if inputs.strengths is not None:
        times = _few_times(t, inputs, branches)
    call = (
        params,
        guidance.repeat_rows(x, branches),
        times,
        caption.embeddings,
        caption.mask,
        inputs.rope,
        skip,
    )
    if isinstance(velocity, Reusing):
        following = jnp.append(inputs.times, 0.0)[index + 1]
        rows, kept = velocity.velocity(*call, kept, inputs.threshold, following <= 0)
    else:
        rows = velocity(*call)
    guided = guidance.combine(rows, branches, scales, mode.cfg_star)

    target = flow.next_time(time, inputs.times)
    if mode.stochastic:
        fresh = inputs.noise.draw("stochastic", x.shape, index)
        stepped = flow.stochastic_step(x, guided, time, target, fresh)
    else:
        stepped = flow.euler_step(x, guided, time, target)
    if inputs.mask is not None:
        # A token waits until the video's time has come down to its own noise level.
        started = t - flow.TIME_EPSILON < 1 - inputs.mask
        stepped = jnp.where(started[..., None], stepped, x)
    stepped = constrain(stepped, "batch", "token", None)
    return stepped, kept, {"time": time, "sample": x, "velocity": guided}


def _few_times(t: Float[Array, ""], inputs: Inputs, branches: Branches) -> FewTimes:
    strengths = guidance.repeat_rows(inputs.mask, branches)[..., None]
    which = jnp.argmin(jnp.abs(strengths - inputs.strengths[None, None]), axis=-1)
    return FewTimes(jnp.minimum(t, 1 - inputs.strengths)[None], which)


def _empty(velocity: Velocity | Reusing, tokens: Array, branches: Branches) -> Any:
    if not isinstance(velocity, Reusing):
        return None
    return velocity.empty(guidance.repeat_rows(tokens, branches))


def _captions(inputs: Inputs, branches: Branches) -> Caption:
    blocks = [inputs.caption] * (1 + branches.perturbed)
    if branches.negative:
        if inputs.negative is None:
            raise ValueError("classifier-free guidance needs negative captions, got none")
        blocks.insert(0, inputs.negative)
    return jax.tree.map(lambda *x: jnp.concatenate(x), *blocks)


@functools.partial(
    jax.jit, static_argnames=("velocity", "branches", "mode"), donate_argnames=("tokens", "kept")
)
def step(
    params: Any,
    tokens: Float[Array, "b n c"],
    inputs: Inputs,
    index: Int[Array, ""],
    kept: Any = None,
    *,
    velocity: Velocity | Reusing,
    branches: Branches,
    mode: Mode,
) -> tuple[Float[Array, "b n c"], Any]:
    """`denoise`, compiled; the memory of the tokens, and of what was kept, is reused."""
    return denoise(velocity, params, tokens, inputs, index, kept, branches=branches, mode=mode)[:2]


@functools.partial(
    jax.jit, static_argnames=("velocity", "branches", "mode"), donate_argnames="tokens"
)
def all_steps(
    params: Any,
    tokens: Float[Array, "b n c"],
    inputs: Inputs,
    *,
    velocity: Velocity | Reusing,
    branches: tuple[Branches, ...],
    mode: Mode,
) -> Float[Array, "b n c"]:
    """Every step in one program: a loop over each run of steps with the same branches."""
    first = 0
    for kind, run in itertools.groupby(branches):
        after = first + len(list(run))

        def body(index: Array, carry: Any, kind: Branches = kind) -> Any:
            tokens, kept = carry
            call = (velocity, params, tokens, inputs, index, kept)
            return denoise(*call, branches=kind, mode=mode)[:2]

        carry = (tokens, _empty(velocity, tokens, kind))
        tokens, _ = jax.lax.fori_loop(first, after, body, carry)
        first = after
    return tokens


def _call(function: Callable[..., Any], *args: Any, **static: Any) -> Any:
    return function(*args, **static)


def sample(
    velocity: Velocity | Reusing,
    params: Any,
    inputs: Inputs,
    branches: Sequence[Branches],
    mode: Mode = Mode(),
    *,
    fused: bool = False,
    callback: Callable[[Progress], None] | None = None,
    call: Callable[..., Any] = _call,
) -> Float[Array, "b n c"]:
    """Runs all steps from `inputs.start`; returns the tokens, condition tokens first.

    Args:
      velocity: the network; the same object for every run, or it is compiled again.
      params: its weights.
      inputs: see there.
      branches: the branches of each step, from `guidance.plan`.
      mode: see there.
      fused: one program instead of one call per step.
      callback: called after each step; what it raises ends the run.
      call: calls a jitted function; for those who compile or time apart.

    Raises:
      ValueError: for a callback in a fused loop.
    """
    # The first step gives its input's memory away, and `inputs.start` has to live on.
    tokens = jnp.array(inputs.start, jnp.float32, copy=True)
    if fused:
        if callback is not None:
            raise ValueError("a fused loop has no callback: it is one program")
        plan = tuple(branches)
        return call(all_steps, params, tokens, inputs, velocity=velocity, branches=plan, mode=mode)
    times = np.asarray(inputs.times)
    before, kept = None, None
    for i, kind in enumerate(branches):
        if kind != before:
            before, kept = kind, _empty(velocity, tokens, kind)
        state = (params, tokens, inputs, jnp.asarray(i, jnp.int32), kept)
        tokens, kept = call(step, *state, velocity=velocity, branches=kind, mode=mode)
        if callback is not None:
            tokens = jax.block_until_ready(tokens)
            callback(Progress(i + 1, len(branches), float(times[i]), tokens))
    return tokens
