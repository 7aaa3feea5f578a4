"""Pre-trains the 2B transformer on a pod, pictures and videos together, from stored latents.

    ltx-encode ltxv_2b --data.source data/clips --output data/ltxv
    ltx-train ltxv_2b --plan v5p:4x4x4     # estimate its cost on devices that you do not have
    ltx-train ltxv_2b                      # on every host

1.9 B parameters in float32, computed in bfloat16, sharded over all devices. Made for 64 or more
chips of TPU v5p; on 8 GPUs of 80 GB or more add `--optim.accumulate 8`. A step has 1.3 M tokens
in every bucket: 256 videos of 5100 tokens, or 1536 pictures. Up to a fifth of the tokens is
dropped, so that all buckets have the same number.

It needs a trained VAE (configs/ltx_vae.py, or a released file: `--vae FILE`), clips with
captions, some held-out clips, encoded as data/ltxv_held_out, and T5-XXL, which ltx-encode runs
once. The recipe is that of the paper where the paper gives one. This config has not been run to
its end. Expect the loss to fall fast for some thousand steps and then slowly, for as long as
samples improve. configs/ltxv_2b_finetune.py continues from there.
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

# Frames, height, width: 6000 to 6400 tokens, and 1.4 to 10.7 seconds at 24 frames per second.
VIDEOS = (
    (121, 512, 768),
    (121, 768, 512),
    (121, 640, 640),
    (97, 576, 832),
    (65, 704, 1024),
    (33, 960, 1280),
    (257, 352, 544),
)
PICTURES = ((1, 1024, 1024), (1, 768, 1344), (1, 1344, 768))  # 1000 tokens
BUCKETS = (
    *(BucketConfig(*size, batch_size=256, weight=0.8 / len(VIDEOS)) for size in VIDEOS),
    *(BucketConfig(*size, batch_size=1536, weight=0.2 / len(PICTURES)) for size in PICTURES),
)

config = TrainTransformer(
    model=TransformerConfig(causal_temporal_positioning=True),
    execution=ExecutionConfig(remat="attention", dtype="bfloat16"),
    vae="runs/ltx_vae",
    captions="cached",
    text_encoder_path="PixArt-alpha/PixArt-XL-2-1024-MS",
    max_caption_tokens=256,
    scheduler=SchedulerConfig(sampler="LinearQuadratic"),
    flow=FlowConfig(
        first_frame_probability=0.3,
        prefix_probability=0.05,
        keyframes_probability=0.1,
        clip_probability=0.05,
        token_drop=0.2,
    ),
    data=DataConfig(source="data/ltxv", buckets=BUCKETS, threads=8),
    optim=OptimConfig(peak_lr=1e-4, warmup_steps=1000, ema_decay=0.9999),
    run=RunConfig(
        output="runs/ltxv_2b",
        steps=500_000,
        save_every=1000,
        validate_every=5000,
        validation_source="data/ltxv_held_out",
        validation_clips=8,
    ),
    mesh=MeshConfig(data=1, fsdp=-1),
)
