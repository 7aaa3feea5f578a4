"""Trains the paper's Video-VAE on a pod, pictures and videos together: 32x32x8 pixels per latent.

    ltx-train ltx_vae --plan v5p:4x4x4     # estimate its cost on devices that you do not have
    ltx-train ltx_vae --data.source FOLDER_OR_DATA_SET \
        --loss.vgg vgg16.safetensors --loss.lpips_heads lpips.safetensors

128 channels, 1.25 B parameters in float32, computed in bfloat16; the block lists of the releases
from 0.9.5 on, with noise injection as in 0.9.1. All losses of the paper are used: L1, LPIPS,
video DWT, KL with uniform log-variance, reconstruction GAN. Without the two files of weights
LPIPS is off, and the log says so. `--loss.gan_weight 0` (and so on) turns a loss off; `--loss.gan
single` uses an ordinary GAN.

Made for 64 chips of TPU v5p. On 8 GPUs of 80 GB or more add `--optim.accumulate 8`. On 256 chips
of TPU v6e, each of which needs a clip, use `configs/ltx_vae.py:large`, with four times the batch.
A step takes 1.7 to 1.9 PFLOP in every bucket, and a fifth more once the discriminator starts,
after 60,000 steps.

Where the paper gives no weight of a loss, it is our choice. This config has not been run to its
end. Expect val_psnr to rise fast for some thousand steps and then slowly, dead_channels to stay
0, disc_accuracy to leave 0.5 soon after the discriminator starts, and details to become sharper
from then on, at some cost of val_psnr. `--run.validation_source` names held-out clips; without it
validation uses clips of the procedural world.
"""

import dataclasses

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
            BlockConfig("compress_all_res"),
            BlockConfig("res_x", num_layers=2),
        ),
        decoder_blocks=(  # in the encoder's order: the decoder begins with the last
            BlockConfig("res_x", num_layers=5, inject_noise=True),
            UP,
            BlockConfig("res_x", num_layers=5, inject_noise=True),
            UP,
            BlockConfig("res_x", num_layers=5, inject_noise=True),
            UP,
            BlockConfig("res_x", num_layers=5),
        ),
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
        output="runs/ltx_vae",
        steps=300_000,
        save_every=1000,
        validate_every=5000,
        validation_clips=8,
    ),
    mesh=MeshConfig(data=-1, fsdp=8),
)

# A larger batch, as `--mesh.seq` cannot use so many chips: it splits rows, and the deepest layers
# have eight of them.
large = dataclasses.replace(
    config,
    data=dataclasses.replace(
        config.data,
        buckets=tuple(dataclasses.replace(x, batch_size=4 * x.batch_size) for x in BUCKETS),
    ),
    run=dataclasses.replace(config.run, output="runs/ltx_vae_large"),
)
