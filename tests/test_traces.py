"""Nine recorded runs of the released pipeline, reproduced with their random draws."""

import dataclasses

import golden_traces
import jax
import numpy as np
import pytest
from quick import QUICK
from small_denoisers import Watching

from ltx_jax.diffusion import sampler
from ltx_jax.diffusion.positions import unpatchify

pytestmark = pytest.mark.thorough

# Rounding through up to 6 float32 calls of a random network and as many guided steps.
TOLERANCE = dict(atol=1e-4, rtol=0)

quick_step = jax.jit(
    sampler.step.__wrapped__,
    static_argnames=("branches", "mode"),
    compiler_options=QUICK,
)


@pytest.mark.parametrize("name", golden_traces.NAMES)
def test_every_step_is_that_of_the_released_pipeline(name):
    trace = golden_traces.load(name)
    pipe, data = golden_traces.pipeline(trace.scheduler), trace.data
    start = pipe.prepare(**trace.arguments)
    np.testing.assert_array_equal(start.inputs.times[: trace.steps], data["timesteps"])
    assert len(start.branches) == trace.steps
    np.testing.assert_array_equal(start.coords, data["prep_pixel_coords"][0].T)
    np.testing.assert_allclose(start.inputs.start, data["prep_latents"], **TOLERANCE)
    if "prep_cond_mask" in data:
        np.testing.assert_allclose(start.inputs.strength, data["prep_cond_mask"], atol=1e-7)
    else:
        assert start.inputs.strength is None

    done = 0

    def compare(function, denoiser, params, tokens, inputs, index, state, *, branches, mode):
        """Takes the place of the compiled step, to look into it."""
        nonlocal done
        assert (function, int(index)) == (sampler.step, done)
        assert branches.count == data[f"call/{done}/x"].shape[0], "a row too many, or too few"
        tokens, state = quick_step(
            denoiser, params, tokens, inputs, index, state, branches=branches, mode=mode
        )
        seen = state.memory
        ours = {
            "timestep": seen.time,
            "sample": seen.sample,
            "guided_pred": seen.velocity,
            "latents_after": tokens,
        }
        for key, value in ours.items():
            expected = data[f"step/{done}/{key}"]
            if key == "timestep":  # recorded once where all tokens have the same
                expected = np.broadcast_to(expected, value.shape)
            np.testing.assert_allclose(value, expected, **TOLERANCE, err_msg=f"{key} {done}")
        done += 1
        return tokens, state

    mode = dataclasses.replace(start.mode, solver=Watching(start.mode.solver))
    tokens = sampler.sample(
        start.denoiser, pipe.params, start.inputs, start.branches, mode, call=compare
    )
    assert done == trace.steps
    output = golden_traces.channels_last(data["output"])
    if output.shape[-1] == 8:
        latents = unpatchify(tokens[:, -np.prod(start.size.grid) :], start.size.grid)
        np.testing.assert_allclose(latents, output, **TOLERANCE)


@pytest.mark.parametrize("name", ["multi_cond", "cfgstar_schedule"])
def test_latents_are_those_of_the_released_pipeline(name):
    trace = golden_traces.load(name)
    pipe = golden_traces.pipeline(trace.scheduler)
    ours = pipe(**trace.arguments, output="latents")
    np.testing.assert_allclose(ours, golden_traces.channels_last(trace.data["output"]), **TOLERANCE)


def test_decoded_video_is_that_of_the_released_pipeline():
    """With the decoder's time and noise, and tone mapping."""
    trace = golden_traces.load("plain_decode")
    ours = golden_traces.pipeline(trace.scheduler)(**trace.arguments, output="float")
    expected = golden_traces.channels_last(trace.data["output"])  # in [0, 1]
    np.testing.assert_allclose(ours * 0.5 + 0.5, expected, **TOLERANCE)


def test_there_are_nine_traces():
    assert len(golden_traces.NAMES) == 9
