"""Pre-trains the 13B transformer on a pod: configs/ltxv_2b.py with a larger network.

    ltx-encode ltxv_13b --data.source data/clips --output data/ltxv
    ltx-train ltxv_13b --plan v5p:4x4x4    # estimate its cost on devices that you do not have
    ltx-train ltxv_13b                     # on every host

13.0 B parameters. Differences: 48 layers of twice the width, first moments of the optimiser in
bfloat16, all activations recomputed in the backward pass, a lower learning rate. Made for 64 or
more chips of TPU v5p; a step takes six times as long as that of the 2B model. The latents and
caption embeddings are the same, so one encoded data set serves both.
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
