"""Fine-tunes the released 13B transformer on clips of your own, on 8 GPUs of 80 GB.

    ltx-encode ltxv_13b_finetune --data.source data/clips --output data/own
    ltx-train ltxv_13b_finetune
    ltx-sample --checkpoint runs/ltxv_13b_finetune --text_encoder \
        PixArt-alpha/PixArt-XL-2-1024-MS --prompt "..."

The same as configs/ltxv_2b_finetune.py, with ltxv-13b-0.9.8-dev.safetensors. Differences: first
moments of the optimiser in bfloat16, all activations recomputed in the backward pass, batches of
16 clips in two halves. Each GPU holds one clip of 6144 tokens at a time, which takes 45 GB.
"""

import dataclasses
from pathlib import Path

from ltx_jax.config import BucketConfig, TransformerConfig, load

FILE = "ltxv-13b-0.9.8-dev.safetensors"
base = load(str(Path(__file__).with_name("ltxv_2b_finetune.py")))

config = dataclasses.replace(
    base,
    model=TransformerConfig(
        num_layers=48,
        attention_head_dim=128,
        causal_temporal_positioning=True,
    ),
    execution=dataclasses.replace(base.execution, remat="full"),
    vae=FILE,
    data=dataclasses.replace(
        base.data, buckets=(BucketConfig(121, 512, 768, 16), BucketConfig(121, 768, 512, 16))
    ),
    optim=dataclasses.replace(base.optim, peak_lr=1e-5, moment_dtype="bfloat16", accumulate=2),
    run=dataclasses.replace(base.run, output="runs/ltxv_13b_finetune", init_from=FILE),
)
