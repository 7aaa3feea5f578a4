"""Fine-tunes the released 2B transformer on clips of your own, on 8 GPUs of 80 GB.

    ltx-encode ltxv_2b_finetune --data.source data/clips --output data/own
    ltx-train ltxv_2b_finetune
    ltx-sample --checkpoint runs/ltxv_2b_finetune --text_encoder \
        PixArt-alpha/PixArt-XL-2-1024-MS --prompt "..."

Download ltxv-2b-0.9.6-dev-04-25.safetensors from the Hugging Face repository Lightricks/LTX-Video
into this folder, or set `--vae` and `--run.init_from` to its path; its weights have their own
licence. To continue from a run of configs/ltxv_2b.py, set `--run.init_from runs/ltxv_2b` and
`--vae` to the same.

A few hundred clips of 5 seconds are enough for a style. Keep about 8 more clips apart, and encode
them as data/own_held_out. 4 clips of 6144 tokens at a time take 44 GB of each GPU. This config
has not been run to its end. Expect the validation loss to fall and finally to rise: the
checkpoint with the lowest one is kept beside the latest, as runs/ltxv_2b_finetune/steps/N.
"""

from ltx_jax.config import (
    BucketConfig,
    DataConfig,
    ExecutionConfig,
    FlowConfig,
    MeshConfig,
    OptimConfig,
    RunConfig,
    SchedulerConfig,
    TrainTransformer,
    TransformerConfig,
)

config = TrainTransformer(
    model=TransformerConfig(causal_temporal_positioning=True),
    execution=ExecutionConfig(remat="attention", dtype="bfloat16"),
    vae="ltxv-2b-0.9.6-dev-04-25.safetensors",
    captions="cached",
    text_encoder_path="PixArt-alpha/PixArt-XL-2-1024-MS",
    max_caption_tokens=256,
    scheduler=SchedulerConfig(sampler="LinearQuadratic"),
    flow=FlowConfig(first_frame_probability=0.3, keyframes_probability=0.1),
    data=DataConfig(
        source="data/own",
        buckets=(BucketConfig(121, 512, 768, 32), BucketConfig(121, 768, 512, 32)),
        threads=8,
    ),
    optim=OptimConfig(
        peak_lr=2e-5, warmup_steps=100, decay="cosine", weight_decay=0.0, ema_decay=0.999
    ),
    run=RunConfig(
        output="runs/ltxv_2b_finetune",
        init_from="ltxv-2b-0.9.6-dev-04-25.safetensors",
        steps=3000,
        save_every=500,
        keep_best=1,
        validate_every=250,
        validation_source="data/own_held_out",
        validation_clips=8,
    ),
    mesh=MeshConfig(data=1, fsdp=-1),
)
