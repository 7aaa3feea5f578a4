"""TeaCache: steps that change little reuse what the layers added before (Liu et al. 2024,
arXiv 2411.19108).

How much the layers' output would change is guessed from how much the first layer's input did, by a
polynomial that its authors fitted to LTX-Video (github.com/ali-vilab/TeaCache, TeaCache4LTX-Video).
The guesses add up until they reach a threshold; that step computes all. `fused.velocity` is what
this is tested against.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ltx_jax.config import ExecutionConfig, TransformerConfig
from ltx_jax.models import transformer_fast
from ltx_jax.models.attention import Mask
from ltx_jax.models.transformer import Skip

# Of the relative change, highest power first.
_POLYNOMIAL = (21.4700694, -12.8016453, 2.31279151, 0.792487521, 0.00969274326)


class Kept(NamedTuple):
    """What goes from step to step.

    Attributes:
      seen: the first layer's input (b, n, d) in the step before.
      update: what the layers added (b, n, d) when they last ran.
      change: of their output since then, as guessed.
    """

    seen: Any
    update: Any
    change: Any


def empty(
    latents: Float[Array, "b n c"],
    cfg: TransformerConfig,
    execution: ExecutionConfig = ExecutionConfig(),
) -> Kept:
    """Before the first step, which then computes all."""
    # Ones, since the change of zeros would be no number.
    ones = jnp.ones((*latents.shape[:2], cfg.width), execution.dtype)
    return Kept(ones, jnp.zeros_like(ones), jnp.full((), jnp.inf))


def velocity(
    params: Any,
    latents: Float[Array, "b n c"],
    timestep: Float[Array, "b #n"] | transformer_fast.FewTimes,
    captions: transformer_fast.CaptionHeads,
    caption_mask: Mask | None,
    rope: transformer_fast.HalvedRope,
    skip: Skip | None,
    kept: Kept,
    threshold: Float[Array, ""],
    last: Bool[Array, ""],
    cfg: TransformerConfig,
    execution: ExecutionConfig = ExecutionConfig(),
) -> tuple[Float[Array, "b n c2"], Kept]:
    """`fused.velocity`, or about that.

    Args:
      params: of `fused.derive`, and so on: the arguments of `fused.velocity`.
      latents: see there.
      timestep: see there.
      captions: see there.
      caption_mask: see there.
      rope: see there.
      skip: see there.
      kept: of the step before.
      threshold: of the guessed change, at which all is computed; all samples of a batch follow the
        one that changes most. Zero computes every step.
      last: whether to compute all the same, as the last step should.
      cfg: of the transformer, and
      execution: how it is computed.
    """
    x, times = transformer_fast.embed(params, latents, timestep, cfg, execution)
    seen = transformer_fast.first_input(params, x, times, cfg)
    change = kept.change + _guess(seen, kept.seen)

    def compute(x: Array) -> tuple[Array, Array]:
        y = transformer_fast.attend(
            params, x, times, captions, caption_mask, rope, skip, cfg, execution
        )
        return y, y - x

    def reuse(x: Array) -> tuple[Array, Array]:
        return x + kept.update, kept.update

    due = (change >= threshold) | last
    x, update = jax.lax.cond(due, compute, reuse, x)
    return transformer_fast.project(params, x, times), Kept(
        seen, update, jnp.where(due, 0.0, change)
    )


def _guess(new: Array, old: Array) -> Array:
    """How much the output changes, relatively, in the sample where that is most."""
    new, old = new.astype(jnp.float32), old.astype(jnp.float32)
    distance = jnp.mean(jnp.abs(new - old), axis=(1, 2)) / jnp.mean(jnp.abs(old), axis=(1, 2))
    return jnp.max(jnp.polyval(jnp.array(_POLYNOMIAL), distance))
