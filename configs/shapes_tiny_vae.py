"""Smoke test of the first stage on the procedural world: runs every code path, learns nothing.

    ltx-train shapes_tiny_vae

4x4x2 pixels per latent of 4 channels. Takes seconds on a CPU, most of them to compile.
"""

from ltx_jax.config import (
    BlockConfig,
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainVAE,
    VAEConfig,
)

config = TrainVAE(
    model=VAEConfig(
        encoder_blocks=(BlockConfig("compress_all_res"), BlockConfig("res_x")),
        decoder_blocks=(
            BlockConfig("compress_all", multiplier=2, residual=True),
            BlockConfig("res_x", inject_noise=True),
        ),
        latent_channels=4,
        patch_size=2,
        encoder_base_channels=8,
        decoder_base_channels=8,
        timestep_conditioning=True,
    ),
    data=DataConfig(num_frames=5, height=16, width=16, batch_size=8),
    optim=OptimConfig(name="muon", peak_lr=6e-3, warmup_steps=5, b1=0.9, ema_decay=0.99),
    run=RunConfig(output="runs/shapes_tiny_vae", steps=20, log_every=5, save_every=10),
)
