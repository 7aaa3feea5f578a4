"""Two passes with a latent upsampler between them."""

import dataclasses

import golden_traces
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK

from ltx_jax.config import SamplingConfig, UpsamplerConfig
from ltx_jax.diffusion.conditioning import Condition
from ltx_jax.diffusion.latents import adain
from ltx_jax.inference import two_pass
from ltx_jax.inference.two_pass import Upsampler
from ltx_jax.models.upsampler import LatentUpsampler
from ltx_jax.runtime import sharding

CFG = UpsamplerConfig(in_channels=8, mid_channels=32, num_blocks_per_stage=1)
# 32 x 32 in the first pass, 64 x 64 in the second.
OPTIONS = SamplingConfig(
    height=90,
    width=96,
    num_frames=9,
    num_inference_steps=2,
    guidance_scale=1.0,
    stg_scale=0.0,
    image_cond_noise_scale=0.0,
)
SECOND = dataclasses.replace(OPTIONS, timesteps=(0.7,), tone_map_compression_ratio=0.6)
CAPTION = dict(
    prompt_embeds=np.random.default_rng(0).standard_normal((1, 3, 32), np.float32),
    prompt_mask=np.ones((1, 3), np.int32),
)


@pytest.fixture(scope="module")
def upsampler():
    def init(key):
        return sharding.unbox(LatentUpsampler(CFG).init(key, jnp.zeros((1, 2, 2, 2, 8))))["params"]

    params = jax.jit(init, compiler_options=QUICK)(jax.random.key(0))
    return Upsampler(CFG, params)


@pytest.fixture(scope="module")
def pipe():
    return golden_traces.pipeline()


@pytest.mark.thorough
def test_two_passes_are_two_calls_with_the_upsampler_between(pipe, upsampler):
    picture = np.zeros((96, 96, 3), np.float32)
    arguments = dict(embeddings=CAPTION, conditions=[Condition(picture, strength=0.5)])
    video = two_pass.sample(pipe, upsampler, None, OPTIONS, second_pass=SECOND, **arguments)
    assert (video.shape, video.dtype) == ((1, 9, 90, 96, 3), np.uint8)
    assert {"upsample", "denoise", "decode", "compile"} <= set(pipe.timings)

    low = dataclasses.replace(OPTIONS, height=32, width=32)
    small = pipe(None, low, **arguments, output="latents")
    large = two_pass.enlarge(pipe, upsampler, jnp.asarray(small))
    assert large.shape == (1, 2, 2, 2, 8)
    noise = two_pass._second_noise(OPTIONS.seed, 1, 0)
    high = dataclasses.replace(SECOND, height=64, width=64)
    by_hand = pipe(None, high, **arguments, input_latents=large, noise=noise, output="float")
    resized = np.asarray(jax.image.resize(by_hand[0], (9, 96, 96, 3), "bilinear", antialias=False))
    expected = 255 * (resized[:, 3:93] * 0.5 + 0.5)
    assert np.abs(video[0] - np.floor(expected)).max() <= 1  # rounding before the truncation


@pytest.mark.thorough
def test_enlarged_latents_keep_the_moments_of_each_channel(pipe, upsampler):
    small = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 3, 3, 8), np.float32))
    large = two_pass.enlarge(pipe, upsampler, small)
    z = LatentUpsampler(CFG).apply({"params": upsampler.params}, pipe.statistics.denormalize(small))
    np.testing.assert_allclose(large, adain(pipe.statistics.normalize(z), small), atol=1e-5)
    for moment in (np.mean, np.std):
        axes = (1, 2, 3)
        np.testing.assert_allclose(moment(large, axes), moment(small, axes), rtol=0.05, atol=1e-5)


@pytest.mark.parametrize(("size", "low"), [(1216, 800), (704, 448), (768, 480), (512, 320)])
def test_the_first_pass_has_the_released_size(size, low):
    assert two_pass._downscaled("width", size, 0.6666666, 32) == low


def test_the_noise_of_the_passes_differs():
    first = two_pass.seeded(0, 1).draw("initial", (1, 8))
    second = two_pass._second_noise(0, 1, 0).draw("initial", (1, 8))
    assert np.abs(np.asarray(first - second)).min() > 0


def test_a_size_too_small_for_two_passes_is_refused(pipe, upsampler):
    with pytest.raises(ValueError, match="width of 32 is too small"):
        two_pass.sample(
            pipe, upsampler, None, OPTIONS, second_pass=SECOND, embeddings=CAPTION, width=20
        )


def test_an_upsampler_of_time_is_refused():
    with pytest.raises(ValueError, match="only rows and columns"):
        Upsampler(dataclasses.replace(CFG, temporal_upsample=True), {})
