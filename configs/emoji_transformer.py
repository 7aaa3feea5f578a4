"""The transformer of animated emoji, with its text encoder over bytes.

    ltx-train emoji_transformer

Needs the run of configs/emoji_vae_refined.py (or another: `--vae runs/emoji_vae`). 64 tokens for
25 frames of 64x64. A third of the batches is conditioned: on the first frame, the beginning, single
frames or short clips; a tenth of the captions is left out, for classifier-free guidance. Scenes are
rendered and encoded during training. These commands render and encode them once instead; then they
are repeated:

    ltx-encode emoji_transformer --output data/emoji_latents --examples 40000
    ltx-train emoji_transformer --data.source data/emoji_latents
"""

from ltx_jax.config import (
    BucketConfig,
    DataConfig,
    ExecutionConfig,
    FlowConfig,
    OptimConfig,
    RunConfig,
    SchedulerConfig,
    T5Config,
    TrainTransformer,
    TransformerConfig,
)

config = TrainTransformer(
    model=TransformerConfig(
        num_layers=10,
        num_attention_heads=8,
        attention_head_dim=32,
        in_channels=128,
        out_channels=128,
        caption_channels=128,
        # The frequencies of the released models would not distinguish four columns.
        positional_embedding_max_pos=(4.0, 256.0, 256.0),
        positional_embedding_theta=16.0,
        causal_temporal_positioning=True,
    ),
    execution=ExecutionConfig(dtype="bfloat16"),
    vae="runs/emoji_vae_refined",
    # 734 names have to be told apart by their letters.
    text_encoder=T5Config(
        vocab_size=384, d_model=128, d_kv=32, d_ff=256, num_layers=3, num_heads=4
    ),
    max_caption_tokens=192,  # captions have 190 bytes at most
    flow=FlowConfig(
        # Simple scenes are decided near t = 1, as in configs/shapes_transformer.py.
        min_shift=2.05,
        max_shift=2.05,
        first_frame_probability=0.15,
        prefix_probability=0.08,
        keyframes_probability=0.1,
        clip_probability=0.03,
    ),
    scheduler=SchedulerConfig(sampler="Constant", shift=1.8),
    data=DataConfig(
        source="emoji:data/emoji",
        buckets=(
            BucketConfig(25, 64, 64, batch_size=64, weight=0.75),
            # A picture has a quarter of the tokens of a clip.
            BucketConfig(1, 64, 64, batch_size=256, weight=0.25),
        ),
        frame_rates=(12.0,),
    ),
    optim=OptimConfig(
        name="muon",
        peak_lr=2e-3,
        warmup_steps=100,
        decay="linear",
        decay_fraction=0.8,
        b1=0.95,
        weight_decay=0.0,
        ema_decay=0.999,
    ),
    run=RunConfig(
        output="runs/emoji_transformer",
        steps=20_000,
        log_every=50,
        save_every=500,
        validate_every=1_000,
        validation_source="emoji:data/emoji@combinations",
        validation_clips=8,
    ),
)
