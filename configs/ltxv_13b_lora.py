"""Trains an adapter (LoRA) of the released 13B transformer on your own clips, on one GPU of 48 GB.

    ltx-encode ltxv_13b_lora --data.source data/clips --output data/own
    ltx-train ltxv_13b_lora
    ltx-sample --checkpoint runs/ltxv_13b_lora --text_encoder \
        PixArt-alpha/PixArt-XL-2-1024-MS --prompt "..."

The same as configs/ltxv_2b_lora.py, with ltxv-13b-0.9.8-dev.safetensors. The frozen transformer
takes 26 GB in bfloat16. `--adapter.base int8` halves that, which leaves memory for longer clips.
"""

import dataclasses
from pathlib import Path

from ltx_jax.config import TransformerConfig, load

FILE = "ltxv-13b-0.9.8-dev.safetensors"
base = load(str(Path(__file__).with_name("ltxv_2b_lora.py")))

config = dataclasses.replace(
    base,
    model=TransformerConfig(
        num_layers=48,
        attention_head_dim=128,
        causal_temporal_positioning=True,
    ),
    vae=FILE,
    optim=dataclasses.replace(base.optim, peak_lr=1e-4),
    run=dataclasses.replace(base.run, output="runs/ltxv_13b_lora", init_from=FILE),
)
