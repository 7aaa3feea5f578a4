"""The VAE of animated emoji: scenes at 96x96, 25 frames, 12 fps.

    ltx-prepare emoji --output data/emoji
    ltx-train emoji_vae

16x16x8 pixels per latent of 64 channels, like the VAE of shapes, with more blocks at the low
resolutions, where they are cheap: few latents have to represent faces and limbs. Trained to a
plateau with pixel, wavelet and KL losses only, in float32, which is as fast as bfloat16 on a CPU
without matrix units.
"""

from ltx_jax.config import (
    BlockConfig,
    BucketConfig,
    DataConfig,
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
            BlockConfig("res_x", num_layers=2),
            BlockConfig("compress_all_res"),
            BlockConfig("res_x", num_layers=3),
            BlockConfig("compress_time_res", multiplier=1),
            BlockConfig("res_x", num_layers=2),
        ),
        decoder_blocks=(
            BlockConfig("res_x", inject_noise=True),
            BlockConfig("compress_all", multiplier=2, residual=True),
            BlockConfig("res_x", num_layers=2, inject_noise=True),
            BlockConfig("compress_all", multiplier=2, residual=True),
            BlockConfig("res_x", num_layers=3, inject_noise=True),
            BlockConfig("compress_time"),
            BlockConfig("res_x", num_layers=2),
        ),
        latent_channels=64,
        encoder_base_channels=32,
        decoder_base_channels=32,
        timestep_conditioning=True,
    ),
    loss=VAELossConfig(
        # Squared errors emphasise large errors: a small face in front of a large background.
        mse_weight=16.0,
        dwt_weight=0.5,
        kl_start=300,
        kl_warmup=200,
        clean_fraction=0.25,
    ),
    data=DataConfig(
        source="emoji:data/emoji",
        buckets=(
            BucketConfig(25, 96, 96, batch_size=4, weight=0.85),
            BucketConfig(1, 96, 96, batch_size=24, weight=0.15),
        ),
        frame_rates=(12.0,),
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
    run=RunConfig(
        output="runs/emoji_vae",
        steps=30_000,
        log_every=20,
        save_every=250,
        validate_every=1_000,
        validation_source="emoji:data/emoji@bases",
        validation_clips=8,
    ),
)
