"""LTX-Video in JAX: sample videos, train both networks, exchange weights with PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltx_jax.checkpoints.checkpoint import Checkpoint
    from ltx_jax.config import MeshConfig, SamplingConfig
    from ltx_jax.diffusion.conditioning import Condition
    from ltx_jax.pipeline import LTXPipeline
    from ltx_jax.sharding import make_mesh
    from ltx_jax.text import TextEncoder

__all__ = [
    "Checkpoint",
    "Condition",
    "LTXPipeline",
    "MeshConfig",
    "SamplingConfig",
    "TextEncoder",
    "make_mesh",
]

# Imported when first asked for (PEP 562), so that the networks and the sampler do not pay for
# what reads checkpoints and videos.
_PLACES = {
    "Checkpoint": "ltx_jax.checkpoints.checkpoint",
    "Condition": "ltx_jax.diffusion.conditioning",
    "LTXPipeline": "ltx_jax.pipeline",
    "MeshConfig": "ltx_jax.config",
    "SamplingConfig": "ltx_jax.config",
    "TextEncoder": "ltx_jax.text",
    "make_mesh": "ltx_jax.sharding",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
