"""Smoke test of the second stage on the procedural world: runs every code path, learns nothing.

    ltx-train shapes_tiny_transformer

Needs the run of configs/shapes_tiny_vae.py. Takes seconds on a CPU, most of them to compile.
"""

from ltx_jax.config import (
    DataConfig,
    OptimConfig,
    RunConfig,
    T5Config,
    TrainTransformer,
    TransformerConfig,
)

config = TrainTransformer(
    model=TransformerConfig(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        caption_channels=16,
        causal_temporal_positioning=True,
    ),
    vae="runs/shapes_tiny_vae",
    text_encoder=T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
    max_caption_tokens=32,
    data=DataConfig(num_frames=5, height=16, width=16, batch_size=8),
    optim=OptimConfig(peak_lr=1e-3, warmup_steps=5, ema_decay=0.99),
    run=RunConfig(output="runs/shapes_tiny_transformer", steps=20, log_every=5, save_every=10),
)
