"""Pre-trains the 13B transformer on a pod: configs/ltxv_2b.py with a larger network.

    ltx-encode ltxv_13b --data.source data/clips --output data/ltxv
    ltx-train ltxv_13b --plan v5p:4x4x4    # what it takes, without owning it
    ltx-train ltxv_13b                       # on every host

13.0 B parameters. What differs: 48 layers twice as wide, a first moment in bfloat16, everything
recomputed in the gradient, a lower learning rate. Made for 64 chips of TPU v5p and more; a step
takes six times as long as that of the 2B model. The latents and embeddings are the same, so one
encoding serves both.
"""

import dataclasses
from pathlib import Path

from ltx_jax.config import OptimConfig, TransformerConfig, load

base = load(str(Path(__file__).with_name("ltxv_2b.py")))

config = dataclasses.replace(
    base,
    model=TransformerConfig(
        num_layers=48,
        attention_head_dim=128,
        causal_temporal_positioning=True,
    ),
    execution=dataclasses.replace(base.execution, remat="full"),
    optim=OptimConfig(peak_lr=6e-5, warmup_steps=2000, ema_decay=0.9999, moment_dtype="bfloat16"),
    run=dataclasses.replace(base.run, output="runs/ltxv_13b"),
)
