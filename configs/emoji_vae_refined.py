"""Continues the training of the VAE of animated emoji with losses that sharpen details.

    ltx-train emoji_vae
    pip install '.[networks]'
    ltx-prepare networks --output data/networks
    ltx-train emoji_vae_refined

Starts from the EMA weights of the first run. Adds the reconstruction GAN and a perceptual loss on
features of EfficientNet-lite0. The weights of both losses are a choice, not the result of a
comparison; `--loss.gan_weight 0` and `--loss.efficientnet_weight 0` turn one off.
"""

import dataclasses
from pathlib import Path

from ltx_jax.config import DiscriminatorConfig, OptimConfig, TrainVAE, load

_first = load(str(Path(__file__).with_name("emoji_vae.py")), [])
assert isinstance(_first, TrainVAE)

config = dataclasses.replace(
    _first,
    loss=dataclasses.replace(
        _first.loss,
        efficientnet_weight=0.2,
        gan_weight=0.05,
        disc_start=0.05,  # the reconstructions are good from the first step on
        kl_start=0,
        kl_warmup=0,
    ),
    discriminator=DiscriminatorConfig(base_channels=32, max_channels=128, levels=3),
    optim=dataclasses.replace(_first.optim, peak_lr=1e-3, decay_fraction=0.9),
    disc_optim=OptimConfig(peak_lr=4e-4, warmup_steps=20, b1=0.5, b2=0.9, weight_decay=0.0),
    run=dataclasses.replace(
        _first.run,
        output="runs/emoji_vae_refined",
        init_from="runs/emoji_vae",
        seed=1,  # other clips
        steps=6_000,
    ),
)
