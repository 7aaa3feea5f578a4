"""The loop's promises, with small functions in the place of the network."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_denoisers import Function, Watching

from ltx_jax.config import SamplingConfig
from ltx_jax.diffusion import guidance, sampler
from ltx_jax.diffusion.noise import seeded
from ltx_jax.diffusion.sampler import Inputs, Mode
from ltx_jax.diffusion.solver import DPMSolverPP2M, Stochastic
from ltx_jax.models.transformer import Context

LAYERS, TOKENS, CHANNELS = 4, 5, 3
TIMES = np.float32([1.0, 0.9, 0.6, 0.2])
NEGATIVE, POSITIVE = -1.0, 1.0


def inputs_for(options, times=TIMES, batch=2, strength=None, image_noise=None):
    plan = guidance.guidance_schedule(options, times, LAYERS)
    padded, scales = sampler.per_step(times, plan)
    context, negative = (
        Context(jnp.full((batch, 1, 1), value), jnp.ones((batch, 1)), None)
        for value in (POSITIVE, NEGATIVE)
    )
    rng = np.random.default_rng(0)
    inputs = Inputs(
        start=jnp.asarray(rng.standard_normal((batch, TOKENS, CHANNELS), np.float32)),
        strength=strength,
        context=context,
        negative=negative if plan.needs_negative else None,
        times=padded,
        scales=scales,
        image_noise=image_noise,
        noise=seeded(0, batch),
    )
    return inputs, plan


PLAIN = SamplingConfig(guidance_scale=1.0, stg_scale=0.0)
SCHEDULED = dataclasses.replace(
    PLAIN,
    guidance_scale=(1.0, 6.0, 3.0, 1.0),
    stg_scale=(0.0, 2.0, 0.0, 1.0),
    skip_block_list=((), (1,), (), (0, 2)),
    guidance_timesteps=(1.0, 0.9, 0.6, 0.2),
)


@Function
def network(params, x, time, context, skip):
    """Depends on every input."""
    skipped = 0.0 if skip is None else jnp.sum(1 - skip.mask, axis=0)[:, None, None]
    return jnp.sin(params * x + context.caption) + x * time[..., None] + 0.3 * skipped


def run(denoiser, inputs, plan, mode=Mode(), params=2.0, **kwargs):
    return np.asarray(sampler.sample(denoiser, params, inputs, plan.branches, mode, **kwargs))


def velocities(denoiser, inputs, plan):
    """The guided velocity of every step: what the network saw, if it returns that."""
    seen = []

    def call(function, *arguments, **static):
        tokens, state = function(*arguments, **static)
        seen.append(np.asarray(state.memory.velocity))
        return tokens, state

    run(denoiser, inputs, plan, Mode(solver=Watching()), call=call)
    return seen


@Function
def the_time(params, x, time, *rest):
    return jnp.broadcast_to(time[..., None], x.shape)


@Function
def the_tokens(params, x, *rest):
    return x


def test_the_exact_velocity_leads_to_the_data():
    """Fixes sign and time: t = 1 is noise, and the velocity points towards it."""
    data = jnp.full((2, TOKENS, CHANNELS), 0.7)

    @Function
    def exact(params, x, time, *rest):
        return (x - params) / time[..., None]

    inputs, plan = inputs_for(PLAIN)
    for mode in (Mode(), Mode(solver=Stochastic()), Mode(solver=DPMSolverPP2M())):
        np.testing.assert_allclose(run(exact, inputs, plan, mode, data), data, atol=1e-6)


def test_the_network_sees_the_times_of_the_schedule():
    for seen, t in zip(velocities(the_time, *inputs_for(PLAIN)), TIMES, strict=True):
        np.testing.assert_array_equal(seen, np.full(seen.shape, t))


def test_guidance_of_at_most_one_takes_the_prediction_for_the_text():
    """Other ports take the negative one in steps whose scale is not above 1."""

    @Function
    def caption_alone(params, x, time, context, skip):
        return jnp.broadcast_to(context.caption, x.shape)

    options = dataclasses.replace(
        PLAIN, guidance_scale=(3.0, 1.0, 0.5), guidance_timesteps=(0.9, 0.6, 0.2)
    )
    inputs, plan = inputs_for(options)
    x, after = inputs.start, []
    run(caption_alone, inputs, plan, callback=lambda p: after.append(np.asarray(p.tokens)))
    before = [np.asarray(x), *after[:-1]]
    gaps = -np.diff([*TIMES, 0.0])
    guided = NEGATIVE + 3.0 * (POSITIVE - NEGATIVE)
    for start, end, gap, velocity in zip(
        before, after, gaps, [guided, guided, POSITIVE, POSITIVE], strict=True
    ):
        np.testing.assert_allclose(end, start - gap * velocity, atol=1e-5)


def test_no_branch_is_computed_that_a_step_does_not_need():
    rows = []

    @Function
    def count(params, x, *rest):  # runs once for every program
        rows.append((x.shape[0], rest[-1] is not None))
        return x

    velocities(count, *inputs_for(SCHEDULED))
    assert rows == [(2, False), (6, True), (4, False), (4, True)]


def test_condition_tokens_get_their_own_lowered_time():
    """A token of strength s is at noise level 1 - s until the video's time gets there."""
    strength = jnp.broadcast_to(jnp.array([1.0, 0.8, 0.4, 0.0, 0.0]), (2, TOKENS))
    inputs, plan = inputs_for(PLAIN, strength=strength)
    for seen, t in zip(velocities(the_time, inputs, plan), TIMES, strict=True):
        expected = np.minimum(t, [0.0, 0.2, 0.6, 1.0, 1.0])
        np.testing.assert_allclose(seen[0, :, 0], expected, atol=1e-6)


def test_condition_tokens_wait_for_their_time_and_hard_ones_never_move():
    strength = jnp.broadcast_to(jnp.array([1.0, 0.8, 0.35, 0.0, 0.0]), (2, TOKENS))
    inputs, plan = inputs_for(PLAIN, strength=strength)
    states = [np.asarray(inputs.start)]
    run(network, inputs, plan, callback=lambda p: states.append(np.asarray(p.tokens)))
    moved = [np.any(a != b, axis=(0, 2)).tolist() for a, b in itertools.pairwise(states)]
    assert moved == [
        [False, False, False, True, True],  # time 1
        [False, False, False, True, True],  # 0.9
        [False, False, True, True, True],  # 0.6 <= 1 - 0.35
        [False, True, True, True, True],  # 0.2 <= 1 - 0.8
    ]


def test_hard_condition_tokens_get_fresh_noise_that_fades():
    strength = jnp.broadcast_to(jnp.array([1.0, 0.8, 0.4, 0.0, 0.0]), (2, TOKENS))
    inputs, plan = inputs_for(PLAIN, strength=strength, image_noise=jnp.asarray(0.15))
    start = np.asarray(inputs.start)
    draw = jax.jit(lambda noise, i: noise.draw("image_condition", start.shape, i))
    for i, (seen, t) in enumerate(zip(velocities(the_tokens, inputs, plan), TIMES, strict=True)):
        expected = start + 0.15 * t**2 * np.asarray(draw(inputs.noise, i))
        np.testing.assert_allclose(seen[:, 0], expected[:, 0], atol=1e-6)
        if i == 0:
            np.testing.assert_array_equal(seen[:, 1:], start[:, 1:])


def test_other_times_scales_and_blocks_compile_nothing():
    inputs, plan = inputs_for(SCHEDULED)
    run(network, inputs, plan)
    compiled = sampler.step._cache_size()
    other = dataclasses.replace(
        SCHEDULED,
        guidance_scale=(1.0, 9.0, 4.0, 1.0),
        skip_block_list=((), (0, 3), (), (2,)),
        guidance_timesteps=(0.95, 0.5, 0.3, 0.1),
    )
    run(network, *inputs_for(other, np.float32([1.0, 0.7, 0.5, 0.4, 0.15, 0.1])))
    assert sampler.step._cache_size() == compiled


def test_a_callback_sees_every_step_and_may_stop_the_run():
    inputs, plan = inputs_for(PLAIN)
    seen = []

    def callback(progress):
        seen.append((progress.step, progress.steps, progress.time))
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(network, inputs, plan, callback=callback)
    assert seen == [(1, 4, 1.0), (2, 4, pytest.approx(0.9))]
    run(network, inputs, plan)  # what the run started from is still there


def test_a_sample_does_not_depend_on_its_batch():
    draw = jax.jit(lambda noise, batch: noise.draw("decode", (batch, 4, 2), 5), static_argnums=1)
    together = np.asarray(draw(seeded(7, 3), 3))
    for i in range(3):
        np.testing.assert_array_equal(draw(seeded(7, 1, first=i), 1)[0], together[i])


def test_draws_differ_by_name_index_sample_and_seed():
    @jax.jit
    def draws(noise, other):
        cases = ((noise, "initial", 0), (noise, "decode", 0), (noise, "decode", 1))
        cases += ((other, "initial", 0),)
        return [noise.draw(name, (2, 4), index) for noise, name, index in cases]

    rows = np.concatenate([np.asarray(draw) for draw in draws(seeded(0, 2), seeded(1, 2))])
    assert len({row.tobytes() for row in rows}) == len(rows) == 8
