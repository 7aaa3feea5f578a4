"""The transformer as the sampler calls it, in each of its forms: one object per configuration."""

import functools
from typing import Any

from jaxtyping import Array

from ltx_jax.config import ExecutionConfig, TransformerConfig
from ltx_jax.diffusion import sampler
from ltx_jax.models import teacache, transformer_fast
from ltx_jax.models.transformer import Transformer


@functools.lru_cache
def network(
    cfg: TransformerConfig, execution: ExecutionConfig = ExecutionConfig()
) -> sampler.Velocity:
    """With the parameters as stored, on any mesh."""
    return functools.partial(_stored, cfg=cfg, execution=execution)


def _stored(params: Any, *inputs: Any, cfg: TransformerConfig, execution: ExecutionConfig) -> Array:
    model = Transformer(cfg, execution)
    return model.apply({"params": params}, *inputs)  # pyright: ignore[reportReturnType]


@functools.lru_cache
def fast_network(
    cfg: TransformerConfig, execution: ExecutionConfig = ExecutionConfig()
) -> sampler.Velocity:
    """With the parameters, captions and tables of `models.fused`, on one device."""
    return functools.partial(transformer_fast.velocity, cfg=cfg, execution=execution)


@functools.lru_cache
def reusing_network(
    cfg: TransformerConfig, execution: ExecutionConfig = ExecutionConfig()
) -> sampler.Reusing:
    """The same, where some steps leave the layers out."""
    velocity = functools.partial(teacache.velocity, cfg=cfg, execution=execution)
    empty = functools.partial(teacache.empty, cfg=cfg, execution=execution)
    return sampler.Reusing(velocity, empty)
