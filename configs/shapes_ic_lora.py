"""Teaches the small model to follow the edges of a clip (IC-LoRA), by an adapter of 4 megabytes.

    ltx-encode shapes_ic_lora --data.source shapes --examples 800 --output data/edges
    ltx-train shapes_ic_lora
    python -m benchmarks.follow_references --lora runs/shapes_ic_lora

72 tokens for nine frames of 96x96, and as many for the edges. The transformer, its text encoder and
its VAE are frozen. Results: docs/finetuning.md.
"""

import dataclasses
from pathlib import Path

from ltx_jax.config import AdapterConfig, DataConfig, TrainTransformer, load

_lora = load(str(Path(__file__).with_name("shapes_lora.py")))
assert isinstance(_lora, TrainTransformer)

config = dataclasses.replace(
    _lora,
    adapter=AdapterConfig(rank=32, targets=("attention+feed-forward",), base="float32"),
    data=DataConfig(
        source="data/edges",
        reference="canny",
        num_frames=9,
        height=96,
        width=96,
        batch_size=8,
    ),
    optim=dataclasses.replace(
        _lora.optim, warmup_steps=20, decay_fraction=0.5, weight_decay=0.0, ema_decay=0.98
    ),
    run=dataclasses.replace(
        _lora.run, output="runs/shapes_ic_lora", steps=1_150, log_every=25, save_every=250
    ),
)
