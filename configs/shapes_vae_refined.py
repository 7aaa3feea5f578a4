"""Continues the training of the small model's VAE with squared errors, which sharpens edges.

    ltx-train shapes_vae
    ltx-train shapes_vae_refined

Starts from the EMA weights of the first run. Unlike that run, it has no discriminator.
"""

import dataclasses
from pathlib import Path

from ltx_jax.config import TrainVAE, load

_first = load(str(Path(__file__).with_name("shapes_vae.py")), [])
assert isinstance(_first, TrainVAE)

config = dataclasses.replace(
    _first,
    loss=dataclasses.replace(
        _first.loss,
        pixel_weight=0.5,
        mse_weight=40.0,
        dwt_weight=0.25,
        gan_weight=0.0,
        kl_start=0,
        kl_warmup=0,
        clean_fraction=0.25,
    ),
    optim=dataclasses.replace(_first.optim, peak_lr=1.5e-3, decay_fraction=0.9),
    run=dataclasses.replace(
        _first.run,
        output="runs/shapes_vae_refined",
        init_from="runs/shapes_vae",
        seed=1,  # other clips
        steps=5_000,
    ),
)
