"""The forms of the network that the pipeline samples by, and their solvers."""

# ruff: noqa: F811

import dataclasses
from typing import Any

import golden_traces
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import struct
from quick import QUICK
from test_pipeline import (  # noqa: F401
    FAST,
    PROMPTS,
    SMALL,
    embeddings,
    picture,
    pipe,
    text_encoder,
)

from ltx_jax.config import TransformerConfig
from ltx_jax.diffusion import calibration, sampler
from ltx_jax.diffusion.conditioning import Condition
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.models import transformer
from ltx_jax.models.transformer_fast_parameters import LINEARS
from ltx_jax.runtime.compiled import Programs

pytestmark = pytest.mark.thorough


def test_fast_sampling_gives_the_same_video(pipe, text_encoder, picture):
    fast = LTXPipeline(golden_traces.checkpoint(), text_encoder, dtype="float32", fast=True)
    fast.programs = Programs(QUICK)
    condition = Condition(picture, frame=8, strength=0.8)
    got, want = (
        each(PROMPTS, SMALL, conditions=[condition], cfg_star_rescale=True, output="latents")
        for each in (fast, pipe)
    )
    # Latents of order 1; three steps of three branches each, in float32.
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-4)


def test_masks_with_holes_are_taken_too(pipe, embeddings):
    """Attention kernels know lengths alone; such a mask goes to the plain form."""
    mask = np.array([[0, 1, 1, 0, 1, 0, 1], [1] * 7], np.int32)

    def attention(mask):
        start = pipe.prepare(None, FAST, embeddings=embeddings | {"prompt_mask": mask})
        return start.denoiser.execution.attention

    assert attention(embeddings["prompt_mask"]) == "auto"
    assert attention(mask) == attention(np.zeros((2, 7))) == "plain"


class Gated(transformer.Block):
    """A block whose feed-forward has one more parameter, as research adds them."""

    def setup(self):
        super().setup()
        self.gate = self.param("gate", nn.initializers.ones, (self.cfg.width,))

    def _to_end(self, x, attended, shared):
        return super()._to_end(x, attended, shared) * self.gate.reshape(1, 1, -1)


def test_a_network_that_the_fast_form_does_not_know_samples_by_the_plain_form(
    text_encoder, monkeypatch, caplog
):
    """It would leave the gate out."""
    monkeypatch.setattr(transformer, "Block", Gated)
    known = golden_traces.checkpoint()
    # Another architecture than any that is compiled with the block that was.
    cfg = dataclasses.replace(known.transformer, timestep_scale_multiplier=999.0)
    blocks = known.transformer_params["blocks"]
    gate = jnp.linspace(0.5, 1.5, cfg.num_layers * cfg.width).reshape(cfg.num_layers, -1)
    params = known.transformer_params | {"blocks": blocks | {"gate": gate}}
    changed = dataclasses.replace(known, transformer=cfg, transformer_params=params)

    def sampled(checkpoint, **options):
        pipe = LTXPipeline(checkpoint, text_encoder, dtype="float32", **options)
        pipe.programs = Programs(QUICK)
        return pipe(PROMPTS[0], FAST, output="latents")

    want, got = (sampled(changed, fast=fast) for fast in (False, True))
    assert "does not use the parameters blocks/gate" in caplog.text
    np.testing.assert_array_equal(got, want)
    neutral = params | {"blocks": blocks | {"gate": jnp.ones_like(gate)}}
    other = sampled(dataclasses.replace(changed, transformer_params=neutral), fast=False)
    assert np.abs(other - want).max() > 0.1
    with pytest.raises(ValueError, match=r"int8 linears need .* use the parameters blocks/gate"):
        sampled(changed, linears="int8")


@struct.dataclass
class Wider(transformer.Context):
    """A context with one more conditioning, as research adds them."""

    camera: Any = None


def test_a_further_conditioning_is_passed_by_its_name(pipe, text_encoder, monkeypatch):
    camera = np.ones((1, 3), np.float32)
    with pytest.raises(ValueError, match="takes no input 'camera'; besides captions it takes none"):
        pipe.prepare(PROMPTS[0], SMALL, context={"camera": camera})
    monkeypatch.setattr("ltx_jax.inference.pipeline.Context", Wider)
    monkeypatch.setattr(TransformerConfig, "context_shapes", {"camera": (3,), "lens": ()})
    inputs = pipe.prepare(PROMPTS, SMALL, context={"camera": camera}).inputs
    np.testing.assert_array_equal(inputs.context.camera, np.ones((2, 3)))
    np.testing.assert_array_equal(inputs.negative.camera, np.zeros((2, 3)))  # unknown
    with pytest.raises(ValueError, match=r"takes no input 'zoom'; .* \['camera', 'lens'\]"):
        pipe.prepare(PROMPTS[0], SMALL, context={"zoom": camera})
    with pytest.raises(ValueError, match=r"'camera' has the shape \(3, 3\), .* takes \(2, 3\)"):
        pipe.prepare(PROMPTS, SMALL, context={"camera": np.ones((3, 3))})
    fast = LTXPipeline(golden_traces.checkpoint(), text_encoder, dtype="float32", fast=True)
    with pytest.raises(ValueError, match="conditioning camera: sample with fast=False"):
        fast.prepare(PROMPTS[0], SMALL, context={"camera": camera})


@pytest.mark.parametrize(("linears", "bound"), [("float8", 0.1), ("int8", 0.02)])
def test_linears_in_eight_bits_give_about_the_same_video(pipe, text_encoder, linears, bound):
    """Bounds of `test_transformer_fast`, of the latents' size: float8 keeps 4 bits, int8
    steps of 1/127 of the largest weight."""

    small = LTXPipeline(golden_traces.checkpoint(), text_encoder, dtype="float32", linears=linears)
    got, want = (each(PROMPTS, FAST, output="latents") for each in (small, pipe))
    error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
    assert 1e-5 < error < bound


def test_calibration_sees_every_step_of_the_loop(text_encoder):
    """The largest inputs over the tokens that the sampler passes through."""
    pipe = LTXPipeline(golden_traces.checkpoint(), text_encoder, dtype="float32", fast=True)
    start = pipe.prepare(PROMPTS, FAST)
    inputs, network = start.inputs, start.denoiser.network
    passed = [inputs.start]
    sampler.sample(
        start.denoiser,
        pipe.params,
        inputs,
        start.branches,
        callback=lambda step: passed.append(jnp.copy(step.tokens)),
    )
    times = np.asarray(inputs.times)[: FAST.num_inference_steps]

    @jax.jit
    def observe(x, t):
        maxima = []
        network(pipe.params, x, jnp.full((2, 1), t), inputs.context, maxima=maxima)
        return maxima

    observed = [observe(x, t) for x, t in zip(passed, times, strict=False)]
    got = calibration.input_maxima(
        network, pipe.params, inputs.start, inputs.context, times, Programs()
    )
    want = [{name: max(x[i][name] for x in observed) for name in LINEARS} for i in range(len(got))]
    for one, other in zip(got, want, strict=True):
        for name in LINEARS:  # another program: rounding of float32
            assert one[name] == pytest.approx(float(other[name]), rel=1e-4)


def test_float8_without_prompts_to_calibrate_with_is_refused():
    with pytest.raises(ValueError, match="text encoder, or take int8"):
        LTXPipeline(golden_traces.checkpoint(), linears="float8")


def test_eight_bits_and_teacache_are_of_fast_sampling(pipe, text_encoder):
    with pytest.raises(ValueError, match="leave out fast=False"):
        LTXPipeline(golden_traces.checkpoint(), text_encoder, fast=False, linears="int8")
    with pytest.raises(ValueError, match="fast=True"):
        pipe(PROMPTS[0], FAST, teacache=0.05)


def test_teacache_gives_the_same_video_at_zero_and_about_that_above(pipe, text_encoder):
    fast = LTXPipeline(golden_traces.checkpoint(), text_encoder, dtype="float32", fast=True)
    fast.programs = Programs(QUICK)
    how = dataclasses.replace(FAST, num_inference_steps=6)
    want, tiny, large = (
        fast(PROMPTS, how, teacache=threshold, output="latents") for threshold in (0.0, 1e-6, 0.3)
    )
    # At any threshold that nothing stays below, every step is computed as ever.
    np.testing.assert_allclose(tiny, want, rtol=0, atol=2e-4)
    error = np.sqrt(np.mean((large - want) ** 2) / np.mean(want**2))
    assert 1e-3 < error < 0.5


@pytest.mark.parametrize("teacache", [0.0, 1e-6])
def test_the_second_order_solver_takes_all_that_guides_and_conditions(
    pipe, text_encoder, picture, teacache
):
    """Branches that change from step to step, tokens that wait, and a cache: the memory of the
    solver outlives them, in both forms of the network alike."""
    fast = LTXPipeline(golden_traces.checkpoint(), text_encoder, dtype="float32", fast=True)
    fast.programs = Programs(QUICK)
    options = dataclasses.replace(
        SMALL,
        solver="dpmpp_2m",
        num_inference_steps=5,
        guidance_scale=(1.0, 3.0),
        stg_scale=(1.0, 0.0),
        rescaling_scale=(0.7, 1.0),
        skip_block_list=((1,), ()),
        guidance_timesteps=(1.0, 0.9),
    )
    condition = Condition(picture, frame=8, strength=0.8)
    call = dict(conditions=[condition], output="latents")
    want = pipe(PROMPTS, options, **call)
    got = fast(PROMPTS, options, teacache=teacache, **call)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-4)
    euler = pipe(PROMPTS, dataclasses.replace(options, solver="euler"), **call)
    assert np.abs(euler - want).max() > 1e-2
