"""Training steps of the transformer as they are shipped, with every kind of recomputation."""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Report
from jax.sharding import SingleDeviceSharding
from sizes import NO_TRITON_GEMM, Scale

from ltx_jax import sharding
from ltx_jax.config import MeshConfig, OptimConfig
from ltx_jax.models.transformer import Transformer
from ltx_jax.training.flops import count_flop
from ltx_jax.training.optim import make_optimizer
from ltx_jax.training.state import descend, make_step, plan

# Dense bfloat16 of the datasheets, for the model FLOP utilisation.
DATASHEET = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12}
STEPS = 4


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to train."""

    remat: Any
    batch: int
    per_token_times: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        times = ", times per token" if self.per_token_times else ""
        options = ", no Triton" if self.options else ""
        return f"remat {self.remat}, batch {self.batch}{times}{options}"


SETTINGS = (
    Setting("attention", 4, options=NO_TRITON_GEMM),
    Setting("full", 4, options=NO_TRITON_GEMM),
    Setting("none", 2, options=NO_TRITON_GEMM),
    Setting("attention", 8, options=NO_TRITON_GEMM),
    Setting("attention", 4, True, options=NO_TRITON_GEMM),
    Setting("attention", 4),
    Setting("none", 4, options=NO_TRITON_GEMM),
    Setting("full", 16, options=NO_TRITON_GEMM),
)


def train(report: Report, scale: Scale) -> None:
    """Steps of the transformer on one device: float32 parameters, moments and average."""
    for setting in SETTINGS:
        if report.out_of_time():
            report.add("train", str(setting), "skipped", message="the time was spent")
            continue
        try:
            _measure(report, scale, setting)
        except Exception as error:  # a batch that does not fit is a result here
            report.fail("train", str(setting), error)


def _measure(report: Report, scale: Scale, setting: Setting) -> None:
    cfg = dataclasses.replace(scale.transformer, param_dtype="float32", remat=setting.remat)
    model, n, b = Transformer(cfg), int(np.prod(scale.grid)), setting.batch
    mask = jnp.tile(jnp.arange(scale.caption)[None] < scale.caption_used, (b, 1))
    shapes = {
        "latents": ((b, n, cfg.in_channels), jnp.float32),
        "caption": ((b, scale.caption, cfg.caption_channels), jnp.bfloat16),
        "angles": ((1, n, cfg.width // 2), jnp.float32),
    }

    def forward(
        params: Any, x: Any, times: Any, batch: dict[str, Any], model: Transformer = model
    ) -> jax.Array:
        rope = (jnp.cos(batch["angles"]), jnp.sin(batch["angles"]))
        mask = batch["mask"].astype(jnp.int32)
        return model.apply({"params": params}, x, times, batch["caption"], mask, rope)  # pyright: ignore[reportReturnType]

    def loss(params: Any, state: Any, batch: dict[str, Any], key: jax.Array) -> Any:
        time_key, noise_key = jax.random.split(key)
        t = jax.random.uniform(time_key, (b, 1))
        noise = jax.random.normal(noise_key, batch["latents"].shape)
        x = (1 - t[..., None]) * batch["latents"] + t[..., None] * noise
        times = jnp.broadcast_to(t, (b, n)) if setting.per_token_times else t
        error = forward(params, x, times, batch) - (noise - batch["latents"])
        return jnp.mean(error**2), ({}, state.statistics)

    def init(key: jax.Array) -> Any:
        rope = (jnp.ones((1, 2, cfg.width // 2)),) * 2
        caption = jnp.zeros((1, 1, cfg.caption_channels))
        x = jnp.zeros((1, 2, cfg.in_channels))
        return model.init(key, x, jnp.ones((1, 1)), caption, None, rope)["params"]

    optim = OptimConfig()
    tx = make_optimizer(optim, 1000)
    mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
    planned = plan(init, tx, mesh, seed=0)
    update = descend(loss, tx, optim.ema_decay, planned.layout)
    step = make_step(update, planned.layout, 0, setting.options or None)
    here = SingleDeviceSharding(jax.devices()[0])
    batch: dict[str, Any] = {
        name: jax.device_put(
            np.random.default_rng(i).standard_normal(shape, np.float32).astype(dtype), here
        )
        for i, (name, (shape, dtype)) in enumerate(shapes.items())
    }
    batch["mask"] = mask
    x = jax.ShapeDtypeStruct(*shapes["latents"])
    # Counted in the plain form: products inside cuDNN's kernel are nowhere in the program.
    plain = Transformer(dataclasses.replace(cfg, attention="plain"))
    flop = 3 * count_flop(
        functools.partial(forward, model=plain),
        planned.shapes.params,
        x,
        jax.ShapeDtypeStruct((b, 1), jnp.float32),
        batch,
    )

    begin = time.perf_counter()
    compiled = step.lower(planned.shapes, batch).compile()
    compile_seconds = time.perf_counter() - begin
    state = planned.make()
    state, _ = compiled(state, batch)
    samples = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        samples.append(time.perf_counter() - begin)
    median = float(np.median(samples))
    peak = next((v for k, v in DATASHEET.items() if jax.devices()[0].device_kind.startswith(k)), 0)
    note = f"{b * n / median:.0f} tokens/s, loss {float(metrics['loss']):.3f}"
    if peak:
        note += f", MFU {flop / median / peak:.1%} of {peak / 1e12:.0f} TFLOP/s"
    report.add(
        "train",
        str(setting),
        median_s=median,
        fastest_s=min(samples),
        slowest_s=max(samples),
        samples=STEPS,
        tflop=flop / 1e12,
        tflops=flop / 1e12 / median,
        tokens_per_s=b * n / median,
        compile_s=compile_seconds,
        temp_gb=compiled.memory_analysis().temp_size_in_bytes / 1e9,
        note=note,
    )
