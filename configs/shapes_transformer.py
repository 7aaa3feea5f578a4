"""The transformer of the small model that ships, with its text encoder over bytes.

    python train.py configs/shapes_transformer.py

Needs the run of configs/shapes_vae_refined.py. 144 tokens for 25 frames of 96x96; pictures, three
sizes and lengths and three frame rates together; the first frame, the beginning, single frames and
short clips given in half of the batches.
"""

from ltx_jax.config import (
    BucketConfig,
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
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=64,
        out_channels=64,
        caption_channels=64,
        # The released 20 s, 2048 pixels and theta of 10,000 would leave few frequencies that tell
        # six columns apart.
        positional_embedding_max_pos=(4.0, 256.0, 256.0),
        positional_embedding_theta=16.0,
        causal_temporal_positioning=True,
        dtype="bfloat16",
    ),
    vae="runs/shapes_vae_refined",
    text_encoder=T5Config(vocab_size=384, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4),
    max_caption_tokens=128,
    flow=FlowConfig(
        first_frame_probability=0.2,
        prefix_probability=0.1,
        keyframes_probability=0.15,
        clip_probability=0.05,
    ),
    data=DataConfig(
        buckets=(
            BucketConfig(25, 96, 96, batch_size=32, weight=0.8),
            BucketConfig(17, 96, 128, batch_size=32, weight=0.1),
            BucketConfig(1, 128, 128, batch_size=72, weight=0.1),
        ),
        frame_rates=(12.0, 24.0, 30.0),
    ),
    optim=OptimConfig(
        name="muon",
        peak_lr=3e-3,
        warmup_steps=100,
        decay="linear",
        decay_fraction=0.4,
        b1=0.9,
        weight_decay=0.0,
        ema_decay=0.998,
    ),
    run=RunConfig(
        output="runs/shapes_transformer",
        steps=10_000,
        log_every=50,
        save_every=500,
        validate_every=1000,
    ),
)
