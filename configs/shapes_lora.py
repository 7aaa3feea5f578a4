"""Teaches the small model a colour that it does not know, by an adapter of half a megabyte.

    python benchmarks/new_colour.py clips data/lime
    ltx-train shapes_lora
    python benchmarks/new_colour.py judge runs/shapes_lora

96 clips, half of them in the new colour; the others keep what the model knows. The transformer, its
text encoder and its VAE are frozen. Results: docs/finetuning.md.
"""

import dataclasses
from pathlib import Path

from ltx_jax.config import (
    AdapterConfig,
    DataConfig,
    ExecutionConfig,
    FlowConfig,
    OptimConfig,
    RunConfig,
    TrainTransformer,
    load,
)

_first = load(str(Path(__file__).with_name("shapes_transformer.py")))
assert isinstance(_first, TrainTransformer)

config = dataclasses.replace(
    _first,
    execution=ExecutionConfig(dtype="float32"),
    vae="embedded:shapes",
    captions="frozen",
    text_encoder_path="embedded:shapes",
    flow=FlowConfig(min_shift=2.05, max_shift=2.05, first_frame_probability=0.0),
    adapter=AdapterConfig(rank=8, targets=("attention+feed-forward",), base="float32"),
    data=DataConfig(source="data/lime", num_frames=25, height=96, width=96, batch_size=8),
    optim=OptimConfig(
        peak_lr=1.5e-3, warmup_steps=10, decay="linear", decay_fraction=0.8, ema_decay=0.97
    ),
    run=RunConfig(
        output="runs/shapes_lora",
        init_from="embedded:shapes",
        steps=200,
        log_every=10,
        save_every=50,
    ),
)
