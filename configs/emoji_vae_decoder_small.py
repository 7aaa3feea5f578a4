"""Trains a decoder of less than a third of the operations for the latents of the emoji VAE.

    ltx-train emoji_vae
    ltx-train emoji_vae_refined
    ltx-train emoji_vae_decoder_small
    ltx-sample --checkpoint runs/emoji_transformer --vae runs/emoji_vae_decoder_small --prompt "..."

The encoder stays as it is, so the transformer is used with it as before. Every layer is half as
wide, and starts from those channels of the large decoder that best explain the rest. The losses are
those of the refined VAE; the discriminator begins late.
"""

import dataclasses
from pathlib import Path

from ltx_jax.config import TrainDecoder, TrainVAE, load

_large = load(str(Path(__file__).with_name("emoji_vae_refined.py")), [])
assert isinstance(_large, TrainVAE)
_fields = {field.name: getattr(_large, field.name) for field in dataclasses.fields(_large)}

config = TrainDecoder(
    **_fields
    | dict(
        vae="runs/emoji_vae_refined",
        model=dataclasses.replace(
            _large.model, decoder_base_channels=_large.model.decoder_base_channels // 2
        ),
        loss=dataclasses.replace(_large.loss, kl_weight=0.0, disc_start=0.7),
        run=dataclasses.replace(
            _large.run, output="runs/emoji_vae_decoder_small", init_from=None, steps=10_000
        ),
    )
)
