"""Trains a Video-VAE that compresses less than the paper's: 16x16x4 pixels per latent.

    ltx-train ltx_vae_f16 --plan v5p:4x4x4     # estimate its cost on devices that you do not have
    ltx-train ltx_vae_f16 --data.source FOLDER_OR_DATA_SET \
        --loss.vgg vgg16.safetensors --loss.lpips_heads lpips.safetensors

A latent has 64 channels and covers an eighth of the pixels that one of configs/ltx_vae.py does
(compression 1:48 rather than 1:192). Reconstructions are sharper, and become so earlier; a
transformer has eight times as many tokens. 365 M parameters in float32, computed in bfloat16.
Losses and files are those of configs/ltx_vae.py.

Made for 64 chips of TPU v5p. On 8 GPUs of 80 GB or more add `--optim.accumulate 8`. A step takes
1.4 to 1.8 PFLOP in every bucket, and a fifth more once the discriminator starts, after 30,000
steps.

This config has not been run to its end. Expect what configs/ltx_vae.py says, at a higher
val_psnr.
"""

from ltx_jax.config import (
    BlockConfig,
    BucketConfig,
    DataConfig,
    ExecutionConfig,
    MeshConfig,
    OptimConfig,
    RunConfig,
    TrainVAE,
    VAEConfig,
    VAELossConfig,
)

UP = BlockConfig("compress_all", multiplier=2, residual=True)

# Frames, height, width. A picture costs as much as two frames of a video.
BUCKETS = (
    BucketConfig(1, 256, 256, batch_size=1024, weight=0.15),
    BucketConfig(1, 512, 512, batch_size=256, weight=0.15),
    BucketConfig(17, 256, 256, batch_size=128, weight=0.3),
    BucketConfig(33, 256, 256, batch_size=64, weight=0.2),
    BucketConfig(17, 256, 448, batch_size=64, weight=0.1),
    BucketConfig(17, 448, 256, batch_size=64, weight=0.1),
)

config = TrainVAE(
    model=VAEConfig(
        encoder_blocks=(
            BlockConfig("res_x", num_layers=4),
            BlockConfig("compress_space_res"),
            BlockConfig("res_x", num_layers=6),
            BlockConfig("compress_time_res"),
            BlockConfig("res_x", num_layers=6),
            BlockConfig("compress_all_res"),
            BlockConfig("res_x", num_layers=2),
        ),
        decoder_blocks=(  # in the encoder's order: the decoder begins with the last
            BlockConfig("res_x", num_layers=5, inject_noise=True),
            UP,
            BlockConfig("res_x", num_layers=5, inject_noise=True),
            UP,
            BlockConfig("res_x", num_layers=5),
        ),
        latent_channels=64,
        timestep_conditioning=True,
    ),
    execution=ExecutionConfig(remat="full", dtype="bfloat16"),
    loss=VAELossConfig(dwt_weight=0.5, lpips_weight=0.5, gan_weight=0.1),
    disc_execution=ExecutionConfig(dtype="bfloat16"),
    data=DataConfig(
        source="data/clips", buckets=BUCKETS, random_start=True, random_crop=True, threads=16
    ),
    optim=OptimConfig(peak_lr=1e-4, warmup_steps=1000, decay="cosine", ema_decay=0.999),
    disc_optim=OptimConfig(
        peak_lr=1e-4, warmup_steps=1000, decay="cosine", b1=0.5, b2=0.9, weight_decay=0.0
    ),
    run=RunConfig(
        output="runs/ltx_vae_f16",
        steps=150_000,
        save_every=1000,
        validate_every=5000,
        validation_clips=8,
    ),
    mesh=MeshConfig(data=-1, fsdp=8),
)
