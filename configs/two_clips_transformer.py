"""Fits a small transformer, with its own byte-level T5, to two clips, encoded by a trained VAE.

    ltx-train two_clips_transformer

384 tokens per clip, 4.1 M parameters, float32. `ltx-sample --checkpoint` then takes the run.
"""

from ltx_jax.config import (
    DataConfig,
    FlowConfig,
    OptimConfig,
    RunConfig,
    T5Config,
    TrainTransformer,
    TransformerConfig,
)

config = TrainTransformer(
    model=TransformerConfig(
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=48,
        in_channels=64,
        out_channels=64,
        caption_channels=64,
        # With a theta of 10,000, few frequencies would distinguish 12 columns.
        positional_embedding_theta=100.0,
        causal_temporal_positioning=True,
    ),
    vae="runs/two_clips_vae",
    text_encoder=T5Config(vocab_size=384, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4),
    max_caption_tokens=96,
    flow=FlowConfig(caption_dropout=0.2, first_frame_probability=0.4),
    data=DataConfig(source="data/two_clips", num_frames=25, height=128, width=192, batch_size=8),
    optim=OptimConfig(
        name="muon",
        peak_lr=3e-3,
        warmup_steps=20,
        decay="linear",
        decay_fraction=0.5,
        b1=0.9,
        weight_decay=0.0,
        ema_decay=0.99,
    ),
    run=RunConfig(output="runs/two_clips_transformer", steps=1000, log_every=20, save_every=250),
)
