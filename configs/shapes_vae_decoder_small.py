"""Trains a decoder of a quarter of the operations for the latents of the small model that ships.

    ltx-train shapes_vae_decoder_small
    ltx-sample --vae runs/shapes_vae_decoder_small --prompt "a small red star moves left"

The encoder stays as it is, so the transformer is used with it as before. Every layer is half as
wide, and starts from those channels of the large decoder that best explain the rest.
"""

import dataclasses
from pathlib import Path

from ltx_jax.config import TrainDecoder, TrainVAE, load

_large = load(str(Path(__file__).with_name("shapes_vae_refined.py")), [])
assert isinstance(_large, TrainVAE)
_fields = {field.name: getattr(_large, field.name) for field in dataclasses.fields(_large)}

config = TrainDecoder(
    **_fields
    | dict(
        vae="embedded:shapes",
        model=dataclasses.replace(_large.model, decoder_base_channels=16),
        loss=dataclasses.replace(_large.loss, kl_weight=0.0),
        run=dataclasses.replace(
            _large.run, output="runs/shapes_vae_decoder_small", init_from=None, steps=3_000
        ),
    )
)
