"""Fits a small Video-VAE to a folder of two short clips, on a CPU.

    ltx-train two_clips_vae --data.source FOLDER

16x16x8 pixels per latent of 64 channels, 8.9 M parameters, float32.
"""

from ltx_jax.config import (
    BlockConfig,
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
            BlockConfig("res_x"),
            BlockConfig("compress_all_res"),
            BlockConfig("res_x"),
            BlockConfig("compress_time_res", multiplier=1),
            BlockConfig("res_x"),
        ),
        decoder_blocks=(
            BlockConfig("res_x", inject_noise=True),
            BlockConfig("compress_all", multiplier=2, residual=True),
            BlockConfig("res_x", inject_noise=True),
            BlockConfig("compress_all", multiplier=2, residual=True),
            BlockConfig("res_x"),
            BlockConfig("compress_time"),
            BlockConfig("res_x"),
        ),
        latent_channels=64,
        encoder_base_channels=32,
        decoder_base_channels=32,
        timestep_conditioning=True,
    ),
    loss=VAELossConfig(pixel="mse"),
    data=DataConfig(source="data/two_clips", num_frames=25, height=128, width=192, batch_size=2),
    optim=OptimConfig(
        name="muon",
        peak_lr=6e-3,
        warmup_steps=20,
        decay="linear",
        decay_fraction=0.4,
        b1=0.9,
        weight_decay=0.0,
        ema_decay=0.99,
    ),
    run=RunConfig(output="runs/two_clips_vae", steps=700, log_every=20, save_every=200),
)
