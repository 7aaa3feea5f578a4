"""First half of `make sample`: a tiny Video-VAE, fitted to one clip of 17 frames in a minute or so.

    python -m ltx_jax.quickstart data/quickstart
    python train.py configs/quickstart_vae.py

8x8x4 pixels per latent of 16 channels.
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
            BlockConfig("compress_time_res", multiplier=1),
            BlockConfig("res_x"),
        ),
        decoder_blocks=(
            BlockConfig("res_x"),
            BlockConfig("compress_all", multiplier=2, residual=True),
            BlockConfig("res_x"),
            BlockConfig("compress_time"),
            BlockConfig("res_x"),
        ),
        latent_channels=16,
        encoder_base_channels=16,
        decoder_base_channels=16,
        timestep_conditioning=True,
    ),
    loss=VAELossConfig(pixel="mse", statistics_decay=0.98),
    data=DataConfig(source="data/quickstart", num_frames=17, height=64, width=64, batch_size=2),
    optim=OptimConfig(
        name="muon",
        peak_lr=6e-3,
        warmup_steps=20,
        decay="linear",
        b1=0.9,
        weight_decay=0.0,
        ema_decay=0.98,
    ),
    run=RunConfig(output="runs/quickstart/vae", steps=120, log_every=20, save_every=1000),
)
