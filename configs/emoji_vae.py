"""The VAE of animated emoji: scenes at 64x64, 25 frames, 12 fps.

    ltx-prepare emoji --output data/emoji
    ltx-train emoji_vae

Has 128 latent channels: faces and limbs need them. The best linear code of 16x16x8 pixels gives
24.5 dB with 64 channels and 26.1 dB with 128; 16x16x4 pixels with 64 channels give 25.5 dB and cost
twice the tokens. The encoder widens early, because a downsampling block computes an eighth of its
output channels at each position. With 128 of them, 8x8 pixels of two frames would become 16
numbers, for which the best linear code gives 25.6 dB; with 384 they become 48 (29.7 dB). Trained
with pixel, wavelet and KL losses only, in float32, which is as fast as bfloat16 on a CPU without
matrix units.
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
            BlockConfig("res_x"),
            BlockConfig("compress_all_res", multiplier=8),
            BlockConfig("compress_all_res"),
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
        latent_channels=128,
        encoder_base_channels=24,
        decoder_base_channels=48,
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
            BucketConfig(25, 64, 64, batch_size=4, weight=0.85),
            BucketConfig(1, 64, 64, batch_size=24, weight=0.15),
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
        steps=12_000,
        log_every=20,
        save_every=250,
        validate_every=1_000,
        validation_source="emoji:data/emoji@bases",
        validation_clips=8,
    ),
)
