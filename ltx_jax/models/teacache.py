"""TeaCache: steps in which little changes skip all layers and reuse their last update (Liu et al.
2024, arXiv 2411.19108).

The change of the layers' output is estimated from the change of the first layer's input, with a
polynomial that the authors fitted to LTX-Video (github.com/ali-vilab/TeaCache, TeaCache4LTX-Video).
The estimates of successive steps are summed. The step in which the sum reaches a threshold computes
all layers. `FastTransformer` is the reference in tests.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ltx_jax.models.transformer import Skip
from ltx_jax.models.transformer_fast import FastContext, FastTransformer

# Coefficients of the polynomial in the relative change, highest power first.
_POLYNOMIAL = (21.4700694, -12.8016453, 2.31279151, 0.792487521, 0.00969274326)


class Cache(NamedTuple):
    """The state that is carried from step to step.

    Attributes:
      first_input: the first layer's input in the previous step, (b, n, d).
      update: output minus input of all layers, when they last ran, (b, n, d).
      change: estimated change of the layers' output since then, ().
    """

    first_input: Any
    update: Any
    change: Any


def empty(network: FastTransformer, batch: int, tokens: int) -> Cache:
    """The cache before the first step, which then computes all layers."""
    # Ones, since the relative change from zeros would be NaN or infinite.
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
    references: int = 0,
) -> tuple[Float[Array, "b n c2"], Cache]:
    """Computes or approximates the velocity of `network`; also returns the next step's cache.

    Args:
      network: the fast form of the transformer.
      params: as in a call of `network`.
      x: as in a call of `network`.
      t: as in a call of `network`.
      context: as in a call of `network`.
      skip: as in a call of `network`.
      cache: the cache after the previous step.
      threshold: all layers are computed if the estimated change, of the sample of the batch that
        changes most, reaches this value. Zero computes all layers in every step.
      last: whether this is the last step, which always computes all layers.
      references: number of leading tokens that the estimate leaves out. They belong to references,
        which do not change, so that they would make every change look small.
    """
    h, times = network.embed(params, x, t, context)
    first_input = network.first_input(params, h, times)
    moving = slice(references, None)
    change = cache.change + _estimate(first_input[:, moving], cache.first_input[:, moving])

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
    """The estimated relative change of the output, in the sample of the batch that changes most."""
    new, old = new.astype(jnp.float32), old.astype(jnp.float32)
    distance = jnp.mean(jnp.abs(new - old), axis=(1, 2)) / jnp.mean(jnp.abs(old), axis=(1, 2))
    return jnp.max(jnp.polyval(jnp.array(_POLYNOMIAL), distance))
