"""What inputs the transformer's linears get: sampled once, so that eight bits can span them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ltx_jax.config import SamplingConfig, TransformerConfig
from ltx_jax.diffusion import sampler
from ltx_jax.diffusion.guidance import Branches
from ltx_jax.models import fused

# Small videos of few steps: what is looked for depends little on the size.
OPTIONS = SamplingConfig(
    height=256,
    width=384,
    num_frames=33,
    num_inference_steps=8,
    guidance_scale=1.0,
    stg_scale=0.0,
    seed=0,
)
# Unlike each other, and what guidance steers away from.
PROMPTS = (
    "A woman with long brown hair smiles at the camera; her face is lit by the evening sun.",
    "Waves crash against black rocks under a grey sky, seen from a drone that flies forward.",
    "A red square moves to the right on a white background.",
    OPTIONS.negative_prompt,
)


def largest_inputs(
    velocity: sampler.Velocity,
    params: Any,
    inputs: sampler.Inputs,
    branches: Sequence[Branches],
    cfg: TransformerConfig,
    call: Callable[..., Any],
) -> fused.Largest:
    """`fused.calibrate` at every step of a run without guidance; arguments as of `sampler.sample`,
    params and inputs in the form of `models.fused`."""
    passed = [np.asarray(inputs.start)]
    sampler.sample(
        velocity,
        params,
        inputs,
        branches,
        callback=lambda step: passed.append(np.array(step.tokens)),
        call=call,
    )
    caption, rows = inputs.caption, len(passed[0])
    calls = (
        (
            jnp.asarray(x),
            jnp.full((rows, 1), t),
            caption.embeddings,
            caption.mask,
            inputs.rope,
            None,
        )
        for x, t in zip(passed[:-1], np.asarray(inputs.times), strict=False)
    )
    return fused.calibrate(params, calls, cfg)
