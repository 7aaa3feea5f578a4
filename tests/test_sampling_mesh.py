"""What several devices share when they sample: rows of pictures, and the branches of guidance."""

import dataclasses

import golden_traces
import jax
import numpy as np
import pytest
from quick import QUICK

from ltx_jax.config import MeshConfig, SamplingConfig
from ltx_jax.diffusion import sampler
from ltx_jax.inference import encode_decode
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.models import convolution
from ltx_jax.runtime import sharding
from ltx_jax.runtime.compiled import Programs

pytestmark = pytest.mark.thorough

# Sixteen rows of latents: a device of eight holds two.
OPTIONS = SamplingConfig(
    height=512,
    width=32,
    num_frames=9,
    num_inference_steps=2,
    guidance_scale=3.0,
    stg_scale=0.0,
    image_cond_noise_scale=0.0,
)


def pipeline(count=1, **axes):
    """The pipeline of the traces on so many devices."""
    mesh = sharding.make_mesh(MeshConfig(**{"data": 1} | axes), jax.devices()[:count])
    made = LTXPipeline(golden_traces.checkpoint(), dtype="float32", mesh=mesh)
    made.programs = Programs(QUICK)
    return made


def operations(pipe, function):
    """Of each device, in the one program of a function."""
    (program,) = (made for key, made in pipe.programs._compiled.items() if key[0] is function)
    return program.cost_analysis()["flops"]


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_decoding_is_shared_by_rows(random, monkeypatch):
    # The cost analysis does not see into calls of oneDNN.
    monkeypatch.setattr(convolution, "compiler_options", lambda: None)
    latents = random.standard_normal((1, 2, 16, 1, 8), np.float32)
    alone, eight = pipeline(), pipeline(8, seq=8)
    want, got = (pipe.decode(latents, OPTIONS, output="float") for pipe in (alone, eight))
    assert want.shape == (1, 9, 512, 32, 3)
    assert want.std() > 0.05
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)  # float32 rounding
    # An eighth of the work; little is done on every device.
    assert 8 * operations(eight, encode_decode.decode) < 1.1 * operations(
        alone, encode_decode.decode
    )


@pytest.mark.parametrize(
    ("solver", "axes"),
    [("euler", {"data": 2}), ("dpmpp_2m", {"data": 2}), ("dpmpp_2m", {"seq": 2})],
)
def test_the_branches_of_guidance_are_shared_as_samples_are(random, solver, axes):
    """One video, two rows of a batch: each device computes one, or half of the tokens of both. All
    steps are one program: what a solver remembers is laid out as the step leaves it."""
    options = dataclasses.replace(OPTIONS, solver=solver, num_inference_steps=4)
    embeddings = dict(
        prompt_embeds=random.standard_normal((1, 7, 32), np.float32),
        prompt_mask=np.ones((1, 7), np.int32),
        negative_embeds=random.standard_normal((1, 7, 32), np.float32),
        negative_mask=np.ones((1, 7), np.int32),
    )
    found = {}
    for count, split in ((1, {}), (2, axes)):
        pipe = pipeline(count, **split)
        x = pipe(embeddings=embeddings, options=options, output="latents")
        found[count] = x, operations(pipe, sampler.step)
    (want, whole), (got, half) = found[1], found[2]
    assert want.std() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert half < 0.6 * whole
