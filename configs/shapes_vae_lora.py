"""Teaches the decoder of the small model to draw a new colour, by an adapter of its convolutions.

    python benchmarks/new_colour.py clips data/lime
    ltx-train shapes_vae_lora
    ltx-sample --checkpoint embedded:shapes --lora runs/shapes_vae_lora --prompt "..."

The encoder, the statistics of the latents and the transformer stay as they are, so that the adapter
changes how videos look and not what they show. Results: docs/finetuning.md.
"""

import dataclasses
from pathlib import Path

from ltx_jax.config import (
    AdapterConfig,
    DataConfig,
    ExecutionConfig,
    OptimConfig,
    RunConfig,
    TrainVAE,
    VAELossConfig,
    load,
)

_first = load(str(Path(__file__).with_name("shapes_vae.py")))
assert isinstance(_first, TrainVAE)

config = dataclasses.replace(
    _first,
    execution=ExecutionConfig(dtype="float32"),
    loss=VAELossConfig(mse_weight=8.0, dwt_weight=0.5),
    adapter=AdapterConfig(rank=8, targets=("all",), base="float32"),
    data=DataConfig(source="data/lime", num_frames=25, height=96, width=96, batch_size=4),
    optim=OptimConfig(
        peak_lr=1e-3, warmup_steps=10, decay="linear", decay_fraction=0.8, ema_decay=0.97
    ),
    run=RunConfig(
        output="runs/shapes_vae_lora",
        init_from="embedded:shapes",
        steps=100,
        log_every=10,
        save_every=50,
        validate_every=50,
        validation_source="data/lime_held_out",
    ),
)
