"""What inputs the transformer's linears get: sampled once, so that eight bits can span them."""

import itertools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ltx_jax.config import ExecutionConfig, SamplingConfig, TransformerConfig
from ltx_jax.diffusion import flow, sampler
from ltx_jax.models import transformer_fast

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
    params: Any,
    inputs: sampler.Inputs,
    steps: int,
    cfg: TransformerConfig,
    execution: ExecutionConfig,
    call: Callable[..., Any],
) -> transformer_fast.Largest:
    """Of every large linear, in a run of `steps` without guidance.

    Args:
      params: of `fused.derive`.
      inputs: of a loop, in the form of `models.fused`.
      steps: how many of its times there are.
      cfg: of the transformer, and
      execution: how it is computed.
      call: calls a jitted function, as of `sampler.sample`.
    """
    caption, x, observed = inputs.caption, inputs.start, []
    times = [*np.asarray(inputs.times)[:steps], 0.0]
    for t, target in itertools.pairwise(times):
        time = jnp.full((len(x), 1), t)
        given = (x, time, caption.embeddings, caption.mask, inputs.rope, None)
        velocity, seen = call(
            transformer_fast.observe, params, *given, cfg=cfg, execution=execution
        )
        observed.append(seen)
        x = flow.euler_step(x, velocity, time, jnp.full_like(time, target))
    return transformer_fast.largest_of(observed)
