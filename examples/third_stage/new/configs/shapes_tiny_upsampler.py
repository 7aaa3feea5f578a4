"""Smoke test of the third stage on the procedural world; needs the run of shapes_tiny_vae."""

from ltx_jax.config import DataConfig, OptimConfig, RunConfig, UpsamplerConfig
from ltx_jax.config.training import TrainUpsampler

config = TrainUpsampler(
    model=UpsamplerConfig(in_channels=4, mid_channels=32, num_blocks_per_stage=1),
    vae="runs/shapes_tiny_vae",
    data=DataConfig(num_frames=5, height=16, width=16, batch_size=8),
    optim=OptimConfig(peak_lr=1e-3, warmup_steps=5, ema_decay=0.99),
    run=RunConfig(output="runs/shapes_tiny_upsampler", steps=20, log_every=5, validate_every=10),
)
