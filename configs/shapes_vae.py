"""Trains the VAE of the small model that ships: the procedural world at 96x96, 25 frames, 24 fps.

    ltx-train shapes_vae

16x16x8 pixels per latent of 64 channels. Meant for a CPU with few cores (Python 3.12 and jax
0.11, whose convolutions are several times as fast).
"""

from ltx_jax.config import (
    BlockConfig,
    BucketConfig,
    DataConfig,
    DiscriminatorConfig,
    ExecutionConfig,
    OptimConfig,
    RunConfig,
    TrainVAE,
    VAEConfig,
    VAELossConfig,
)

config = TrainVAE(
    model=VAEConfig(
        encoder_blocks=(
            BlockConfig("compress_all_res"),
            BlockConfig("res_x"),
            BlockConfig("compress_all_res"),
            BlockConfig("res_x"),
            BlockConfig("compress_time_res", multiplier=1),
        ),
        decoder_blocks=(
            BlockConfig("res_x", inject_noise=True),
            BlockConfig("compress_all", multiplier=2, residual=True),
            BlockConfig("res_x", inject_noise=True),
            BlockConfig("compress_all", multiplier=2, residual=True),
            BlockConfig("res_x", inject_noise=True),
            BlockConfig("compress_time"),
            BlockConfig("res_x"),
        ),
        latent_channels=64,
        encoder_base_channels=32,
        decoder_base_channels=32,
        timestep_conditioning=True,
    ),
    execution=ExecutionConfig(dtype="bfloat16"),
    loss=VAELossConfig(
        # Squared errors emphasise large errors: a small object in front of a large background.
        mse_weight=8.0,
        dwt_weight=0.5,
        gan_weight=0.05,
        disc_start=0.7,
        kl_start=300,
        kl_warmup=200,
    ),
    discriminator=DiscriminatorConfig(base_channels=32, max_channels=128, levels=3),
    disc_execution=ExecutionConfig(dtype="bfloat16"),
    data=DataConfig(
        buckets=(
            BucketConfig(25, 96, 96, batch_size=4, weight=0.7),
            BucketConfig(17, 96, 128, batch_size=4, weight=0.15),
            BucketConfig(1, 128, 128, batch_size=16, weight=0.15),
        ),
        frame_rates=(12.0, 24.0, 30.0),
    ),
    optim=OptimConfig(
        name="muon",
        peak_lr=2e-3,
        warmup_steps=50,
        decay="linear",
        decay_fraction=0.4,
        b1=0.9,
        weight_decay=0.0,
        ema_decay=0.998,
    ),
    disc_optim=OptimConfig(peak_lr=4e-4, warmup_steps=20, b1=0.5, b2=0.9, weight_decay=0.0),
    run=RunConfig(
        output="runs/shapes_vae",
        steps=10_000,
        log_every=20,
        save_every=500,
        validate_every=500,
    ),
)
