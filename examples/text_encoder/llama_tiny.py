"""The tiny transformer of the procedural world, with a small Llama over bytes."""

import dataclasses

from ltx_jax import config
from ltx_jax.config.networks import LlamaConfig

config = dataclasses.replace(
    config.load("shapes_tiny_transformer"),
    text_encoder=LlamaConfig(
        vocab_size=384,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    ),
)
