"""Steps of both training stages as `ltx-train` runs them, on random data, on one device."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Report
from benchmarks.sizes import Scale
from ltx_jax.config import (
    BucketConfig,
    DataConfig,
    DiscriminatorConfig,
    ExecutionConfig,
    FlowConfig,
    MeshConfig,
    TrainTransformer,
    TrainVAE,
    VAELossConfig,
)
from ltx_jax.config.networks import Remat
from ltx_jax.runtime import sharding
from ltx_jax.training.stage import stage_class
from ltx_jax.training.step import Trainer

# Peak rates in dense bfloat16 from data sheets, for the model FLOP utilisation (MFU).
DATASHEET = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12}
STEPS = 4
# (recomputation, samples per step), the most interesting first, since time may run out.
FLOW: tuple[tuple[Remat, int], ...] = (("attention", 4), ("full", 4), ("none", 2), ("none", 4))
FLOW += (("attention", 8), ("full", 16))
VAE: tuple[tuple[Remat, int], ...] = (("full", 2), ("none", 1))


def train(report: Report, scale: Scale) -> None:
    """Both stages, with parameters, AdamW's moments and the parameter average in float32."""
    for remat, batch in FLOW:
        name = f"transformer, remat {remat}, batch {batch}"
        _record(report, name, flow_stage(scale, remat, batch), scale.caption_used)
    for remat, batch in VAE:
        name = f"VAE and discriminator, remat {remat}, batch {batch}"
        _record(report, name, vae_stage(scale, remat, batch), scale.caption_used)


def flow_stage(scale: Scale, remat: Remat, batch: int) -> TrainTransformer:
    """The transformer on latents of the scale's grid, with the first frame as a condition and
    stored captions."""
    channels = 128  # of the released VAE, whose latents these are
    execution = dataclasses.replace(scale.execution, param_dtype="float32", remat=remat)
    t, h, w = scale.grid
    size = BucketConfig((t - 1) * 8 + 1, h * 32, w * 32, batch_size=batch)
    return TrainTransformer(
        model=dataclasses.replace(scale.transformer, in_channels=channels, out_channels=channels),
        execution=execution,
        vae="none",
        captions="cached",
        max_caption_tokens=scale.caption,
        flow=FlowConfig(first_frame_probability=1.0),
        data=DataConfig(source="none", buckets=(size,)),
    )


def vae_stage(scale: Scale, remat: Remat, batch: int) -> TrainVAE:
    """The VAE with all terms of the loss but LPIPS, which needs files of weights; the discriminator
    begins at once."""
    size = BucketConfig(*scale.vae_clip, batch_size=batch)
    return TrainVAE(
        model=scale.vae,
        execution=dataclasses.replace(scale.execution, param_dtype="float32", remat=remat),
        loss=VAELossConfig(dwt_weight=0.5, gan_weight=0.1, disc_start=0.0),
        discriminator=DiscriminatorConfig(scale.discriminator_channels),
        disc_execution=ExecutionConfig(dtype=scale.execution.dtype),
        data=DataConfig(buckets=(size,)),
    )


def random_batch(shapes: Any, caption_used: int) -> Any:
    """Random arrays of these shapes; masks are ones followed by zeros."""
    rng = np.random.default_rng(0)

    def draw(path: Any, x: Any) -> jax.Array:
        if path and getattr(path[-1], "key", None) == "mask":
            value = np.broadcast_to(np.arange(x.shape[-1]) < caption_used, x.shape)
        elif x.dtype == jnp.uint8:
            value = rng.integers(0, 256, x.shape)
        elif jnp.issubdtype(x.dtype, jnp.integer):
            value = np.zeros(x.shape)
        else:
            value = np.abs(rng.standard_normal(x.shape, np.float32)) + 1
        return jax.device_put(value.astype(x.dtype), x.sharding)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _record(report: Report, name: str, cfg: TrainTransformer | TrainVAE, caption_used: int) -> None:
    if report.out_of_time():
        report.add("training", name, "skipped", message="there was no time left")
        return
    try:
        _measure(report, name, cfg, caption_used)
    except Exception as error:  # a batch that does not fit is a result here
        report.fail("training", name, error)


def _measure(
    report: Report, name: str, cfg: TrainTransformer | TrainVAE, caption_used: int
) -> None:
    mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
    stage = stage_class(cfg).describe(cfg, mesh)
    trainer, (bucket,) = Trainer(stage), cfg.data.sizes
    shapes = stage.abstract_batch(bucket)
    with sharding.use_mesh(mesh):
        work = trainer.work(shapes, cfg.run.steps)
        begin = time.perf_counter()
        compiled = trainer.trace(shapes).lower().compile()
        compile_seconds = time.perf_counter() - begin
        state, batch = trainer.plan.make(), random_batch(shapes, caption_used)
        samples = []
        for _ in range(STEPS + 1):
            begin = time.perf_counter()
            state, metrics = compiled(state, batch, trainer.frozen)
            jax.block_until_ready(metrics)
            samples.append(time.perf_counter() - begin)
    median = float(np.median(samples[1:]))
    memory = compiled.memory_analysis()
    note = f"{work.tokens / median:.0f} tokens/s, loss {float(metrics['loss']):.3f}"
    kind = jax.devices()[0].device_kind
    if peak := next((v for k, v in DATASHEET.items() if kind.startswith(k)), 0):
        note += f", MFU {work.flop / median / peak:.1%} of {peak / 1e12:.0f} TFLOP/s"
    size = (bucket.batch_size, bucket.num_frames, bucket.height, bucket.width)
    report.add(
        "training",
        name,
        dtype=cfg.execution.dtype,
        shapes="x".join(map(str, size)),
        median_s=median,
        fastest_s=min(samples[1:]),
        slowest_s=max(samples[1:]),
        samples=STEPS,
        tflop=work.flop / 1e12,
        tflops=work.flop / 1e12 / median,
        tokens_per_s=work.tokens / median,
        compile_s=compile_seconds,
        temp_gb=memory.temp_size_in_bytes / 1e9,
        memory_gb=(memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e9,
        note=note,
    )
