"""Measures the largest inputs of the transformer's linear layers, for 8-bit quantisation."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ltx_jax.config import SamplingConfig
from ltx_jax.diffusion import flow
from ltx_jax.diffusion.denoiser import call_directly
from ltx_jax.models.transformer_fast import FastContext, FastTransformer, Maxima
from ltx_jax.models.transformer_fast_parameters import InputMaxima

# Small videos and few steps suffice, as the maxima hardly depend on the size.
OPTIONS = SamplingConfig(
    height=256,
    width=384,
    num_frames=33,
    num_inference_steps=8,
    guidance_scale=1.0,
    stg_scale=0.0,
    seed=0,
)
# Prompts of different kinds; the last one is the negative prompt.
PROMPTS = (
    "A woman with long brown hair smiles at the camera; her face is lit by the evening sun.",
    "Waves crash against black rocks under a grey sky, seen from a drone that flies forward.",
    "A red square moves to the right on a white background.",
    OPTIONS.negative_prompt,
)


@functools.partial(jax.jit, static_argnames="network")
def _observe(
    params: Any,
    x: Float[Array, "b n c"],
    t: Float[Array, "b #n"],
    context: FastContext,
    *,
    network: FastTransformer,
) -> tuple[Float[Array, "b n c2"], Maxima]:
    maxima: Maxima = []
    return network(params, x, t, context, maxima=maxima), maxima


def input_maxima(
    network: FastTransformer,
    params: Any,
    start: Float[Array, "b n c"],
    context: FastContext,
    times: Float[np.ndarray, "s"],
    call: Callable[..., Any] = call_directly,
) -> InputMaxima:
    """The largest absolute input of every large linear layer, over Euler steps without guidance.

    Args:
      network: the fast form of the transformer.
      params: its parameters, before quantisation.
      start: initial tokens.
      context: from `network.context`.
      times: descending times of the steps; the last step goes to 0.
      call: calls a jitted function (see `sampler.sample`).
    """
    x, observed = start, []
    for t, target in itertools.pairwise([*times, 0.0]):
        time = jnp.full((len(x), 1), t)
        velocity, maxima = call(_observe, params, x, time, context, network=network)
        observed.append(maxima)
        x = flow.euler_step(x, velocity, time, jnp.full_like(time, target))
    return jax.tree.map(lambda *x: float(max(x)), *jax.device_get(observed))
