"""LTX-Video in JAX: sample videos, train both networks, exchange weights with PyTorch."""

from typing import TYPE_CHECKING

from ltx_jax.runtime.lazy import lazy_attributes

if TYPE_CHECKING:
    from ltx_jax.checkpoints.checkpoint import Checkpoint
    from ltx_jax.config import MeshConfig, SamplingConfig
    from ltx_jax.diffusion.conditioning import Condition, Reference
    from ltx_jax.inference.pipeline import LTXPipeline
    from ltx_jax.inference.text_encoder import TextEncoder
    from ltx_jax.runtime.sharding import make_mesh

__all__ = [
    "Checkpoint",
    "Condition",
    "LTXPipeline",
    "MeshConfig",
    "Reference",
    "SamplingConfig",
    "TextEncoder",
    "make_mesh",
]

# Imported on first use (PEP 562), so that importing the networks or the sampler does not import the
# readers of checkpoints and videos.
__getattr__ = lazy_attributes(
    __name__,
    {
        "Checkpoint": "ltx_jax.checkpoints.checkpoint",
        "Condition": "ltx_jax.diffusion.conditioning",
        "LTXPipeline": "ltx_jax.inference.pipeline",
        "MeshConfig": "ltx_jax.config",
        "Reference": "ltx_jax.diffusion.conditioning",
        "SamplingConfig": "ltx_jax.config",
        "TextEncoder": "ltx_jax.inference.text_encoder",
        "make_mesh": "ltx_jax.runtime.sharding",
    },
)
