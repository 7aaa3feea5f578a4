"""Trains an adapter (LoRA) of the released 2B transformer on clips of your own, on one GPU.

    ltx-encode ltxv_2b_lora --data.source data/clips --output data/own
    ltx-train ltxv_2b_lora
    ltx-sample --checkpoint runs/ltxv_2b_lora --text_encoder \
        PixArt-alpha/PixArt-XL-2-1024-MS --prompt "..."

docs/finetuning.md goes through it step by step. The transformer is frozen and in bfloat16: it
takes 3.8 GB, and the adapter (rank 32 in all attention layers, 29 M parameters) with its optimiser
half a gigabyte. 20 to 100 clips are enough for a style, a motion or a character. On less than 16 GB
add `--adapter.base int8`. This config has not been run with released weights.
"""

from ltx_jax.config import (
    AdapterConfig,
    BucketConfig,
    DataConfig,
    ExecutionConfig,
    FlowConfig,
    OptimConfig,
    RunConfig,
    SchedulerConfig,
    TrainTransformer,
    TransformerConfig,
)

FILE = "ltxv-2b-0.9.6-dev-04-25.safetensors"

config = TrainTransformer(
    model=TransformerConfig(causal_temporal_positioning=True),
    execution=ExecutionConfig(remat="full", dtype="bfloat16"),
    vae=FILE,
    captions="cached",
    text_encoder_path="PixArt-alpha/PixArt-XL-2-1024-MS",
    max_caption_tokens=256,
    scheduler=SchedulerConfig(sampler="LinearQuadratic"),
    flow=FlowConfig(first_frame_probability=0.2),
    adapter=AdapterConfig(rank=32, targets=("attention",)),
    data=DataConfig(
        source="data/own",
        buckets=(BucketConfig(121, 512, 768, 1), BucketConfig(121, 768, 512, 1)),
    ),
    optim=OptimConfig(
        peak_lr=2e-4, warmup_steps=50, decay="linear", weight_decay=0.0, ema_decay=0.99
    ),
    run=RunConfig(
        output="runs/ltxv_2b_lora",
        init_from=FILE,
        steps=2000,
        save_every=250,
        keep_best=1,
        validate_every=250,
        validation_source="data/own_held_out",
        validation_clips=4,
    ),
)
