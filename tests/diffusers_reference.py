"""The transformer as diffusers has it, an independent implementation."""

import pytest

from ltx_jax.config import TransformerConfig


def transformer(cfg: TransformerConfig, **more):
    """The network of a configuration with random weights, to evaluate; skips without diffusers.

    Args:
      more: further settings, by diffusers' names.
    """
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.LTXVideoTransformer3DModel(
        in_channels=cfg.in_channels,
        out_channels=cfg.out_channels,
        num_attention_heads=cfg.num_attention_heads,
        attention_head_dim=cfg.attention_head_dim,
        cross_attention_dim=cfg.width,
        num_layers=cfg.num_layers,
        caption_channels=cfg.caption_channels,
        **more,
    )
    return network.eval()
