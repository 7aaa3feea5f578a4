"""Second half of `make sample`: a tiny transformer, fitted to one clip in a minute or so.

    python train.py configs/quickstart_transformer.py

Needs the run of configs/quickstart_vae.py; 320 tokens a clip.
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
        num_layers=3,
        num_attention_heads=4,
        attention_head_dim=24,
        in_channels=16,
        out_channels=16,
        caption_channels=32,
        # Up to 10,000, few frequencies would be left that tell 8 columns apart.
        positional_embedding_theta=100.0,
        causal_temporal_positioning=True,
    ),
    vae="runs/quickstart/vae",
    text_encoder=T5Config(vocab_size=384, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2),
    max_caption_tokens=64,
    flow=FlowConfig(first_frame_probability=0.0),
    data=DataConfig(source="data/quickstart", num_frames=17, height=64, width=64, batch_size=8),
    optim=OptimConfig(
        name="muon",
        peak_lr=3e-3,
        warmup_steps=20,
        decay="linear",
        b1=0.9,
        weight_decay=0.0,
        ema_decay=0.98,
    ),
    run=RunConfig(output="runs/quickstart/transformer", steps=240, log_every=40, save_every=1000),
)
