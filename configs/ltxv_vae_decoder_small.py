"""Trains a decoder of a quarter of the operations for latents of the VAE of 0.9.5 to 0.9.8.

    ltx-train ltxv_vae_decoder_small --plan h200x8     # its cost on devices that you do not have
    ltx-train ltxv_vae_decoder_small --data.source FOLDER_OR_DATA_SET \
        --loss.vgg vgg16.safetensors --loss.lpips_heads lpips.safetensors
    ltx-sample --checkpoint ltxv-2b-0.9.6-dev-04-25.safetensors \
        --vae runs/ltxv_vae_decoder_small --text_encoder PixArt-alpha/PixArt-XL-2-1024-MS \
        --prompt "A red car drives along a coast road"

The encoder stays as it is, so released transformers are used with it as before. `--vae FILE` names
another file of a release from 0.9.5 on. Every layer is half as wide, and starts from those channels
of the large decoder that best explain the rest. Losses: L1, LPIPS and wavelets against the clip, L1
and features against the large decoder. Without the two files of weights LPIPS is off.
`--loss.gan_weight 0.05` adds the reconstruction GAN after 70 % of the steps.

The noise levels that released decoders were trained with are not published; those of the loss
reach beyond the ones that they are sampled with (0.05 and 0.025). This config has not been run.
"""

from ltx_jax.config import (
    BlockConfig,
    BucketConfig,
    DataConfig,
    ExecutionConfig,
    MeshConfig,
    OptimConfig,
    RunConfig,
    TrainDecoder,
    VAEConfig,
    VAELossConfig,
)

UP = BlockConfig("compress_all", multiplier=2, residual=True)

config = TrainDecoder(
    vae="ltxv-2b-0.9.6-dev-04-25.safetensors",
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
        decoder_blocks=(
            BlockConfig("res_x", num_layers=5),
            UP,
            BlockConfig("res_x", num_layers=5),
            UP,
            BlockConfig("res_x", num_layers=5),
            UP,
            BlockConfig("res_x", num_layers=5),
        ),
        decoder_base_channels=64,
        timestep_conditioning=True,
    ),
    execution=ExecutionConfig(remat="full", dtype="bfloat16"),
    loss=VAELossConfig(
        kl_weight=0.0,
        dwt_weight=0.5,
        lpips_weight=0.5,
        disc_start=0.7,
        max_decode_time=0.1,
        clean_fraction=0.2,
    ),
    disc_execution=ExecutionConfig(dtype="bfloat16"),
    data=DataConfig(
        source="data/clips",
        buckets=(
            BucketConfig(1, 512, 512, batch_size=64, weight=0.1),
            BucketConfig(17, 256, 256, batch_size=32, weight=0.6),
            BucketConfig(33, 256, 256, batch_size=16, weight=0.3),
        ),
        random_start=True,
        random_crop=True,
        threads=16,
    ),
    optim=OptimConfig(peak_lr=2e-4, warmup_steps=500, decay="cosine", ema_decay=0.999),
    disc_optim=OptimConfig(
        peak_lr=1e-4, warmup_steps=500, decay="cosine", b1=0.5, b2=0.9, weight_decay=0.0
    ),
    run=RunConfig(
        output="runs/ltxv_vae_decoder_small",
        steps=50_000,
        save_every=1000,
        validate_every=2500,
        validation_clips=8,
    ),
    mesh=MeshConfig(data=-1),
)
