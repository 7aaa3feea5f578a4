"""TeaCache: steps that change little reuse what the layers added before (Liu et al. 2024,
arXiv 2411.19108).

How much the layers' output would change is estimated from how much the first layer's input did, by
a polynomial that the authors fitted to LTX-Video (github.com/ali-vilab/TeaCache,
TeaCache4LTX-Video). The estimates add up until they reach a threshold; that step computes all
layers. `FastTransformer` is the reference that this is tested against.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ltx_jax.models.transformer import Skip
from ltx_jax.models.transformer_fast import FastContext, FastTransformer

# Of the relative change, highest power first.
_POLYNOMIAL = (21.4700694, -12.8016453, 2.31279151, 0.792487521, 0.00969274326)


class Cache(NamedTuple):
    """What is carried from step to step.

    Attributes:
      first_input: the first layer's input (b, n, d) in the step before.
      update: what the layers added (b, n, d) when they last ran.
      change: of their output since then, as estimated; ().
    """

    first_input: Any
    update: Any
    change: Any


def empty(network: FastTransformer, batch: int, tokens: int) -> Cache:
    """The cache before the first step, which then computes all layers."""
    # Ones, since the relative change of zeros would be no number.
    ones = jnp.ones((batch, tokens, network.cfg.width), network.execution.dtype)
    return Cache(ones, jnp.zeros_like(ones), jnp.full((), jnp.inf))


def velocity(
    network: FastTransformer,
    params: Any,
    x: Float[Array, "b n c"],
    t: Float[Array, "b #n"],
    context: FastContext,
    skip: Skip | None,
    cache: Cache,
    threshold: Float[Array, ""],
    last: Bool[Array, ""],
) -> tuple[Float[Array, "b n c2"], Cache]:
    """The velocity of `network`, or an approximation of it, and the next step's cache.

    Args:
      network: the fast form.
      params: its parameters; this and the next four as in its call.
      x: see there.
      t: see there.
      context: see there.
      skip: see there.
      cache: of the step before.
      threshold: of the estimated change, from which on all layers are computed; all samples of a
        batch follow the one that changes most. Zero computes every step.
      last: whether to compute all layers in any case, as the last step should.
    """
    h, times = network.embed(params, x, t, context)
    first_input = network.first_input(params, h, times)
    change = cache.change + _estimate(first_input, cache.first_input)

    def compute(h: Array) -> tuple[Array, Array]:
        y = network.layers(params, h, times, context, skip)
        return y, y - h

    def reuse(h: Array) -> tuple[Array, Array]:
        return h + cache.update, cache.update

    due = (change >= threshold) | last
    h, update = jax.lax.cond(due, compute, reuse, h)
    change = jnp.where(due, 0.0, change)
    return network.project(params, h, times), Cache(first_input, update, change)


def _estimate(new: Array, old: Array) -> Array:
    """How much the output changes, relatively, in the sample where that is most."""
    new, old = new.astype(jnp.float32), old.astype(jnp.float32)
    distance = jnp.mean(jnp.abs(new - old), axis=(1, 2)) / jnp.mean(jnp.abs(old), axis=(1, 2))
    return jnp.max(jnp.polyval(jnp.array(_POLYNOMIAL), distance))
