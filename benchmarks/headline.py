"""From a prompt to a video on the host, by `LTXPipeline`: text, loop, decoder and copy.

  python benchmarks/headline.py                     # 121 frames of 512 x 768, on one GPU
  python benchmarks/headline.py --scale tiny        # the same path in seconds, on a CPU

Weights are random, of the released shapes, in bfloat16; nothing is read from disk. "no guidance" is
one prediction a step, "guidance" two (one batch of two rows). Every video is sampled once to
compile and then timed. Results are written to benchmarks/results/.
"""

import argparse
import dataclasses
import pathlib
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import first_gpu  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from harness import Report, device_memory  # noqa: E402
from networks import decoder, network  # noqa: E402
from sizes import TINY, Scale  # noqa: E402

from ltx_jax import sharding  # noqa: E402
from ltx_jax.checkpoints.contents import Checkpoint  # noqa: E402
from ltx_jax.config import SamplingConfig, T5Config, TransformerConfig  # noqa: E402
from ltx_jax.models import fused  # noqa: E402
from ltx_jax.models.t5 import T5Encoder  # noqa: E402
from ltx_jax.models.transformer import compiler_options  # noqa: E402
from ltx_jax.pipeline import LTXPipeline  # noqa: E402
from ltx_jax.text import ByteTokenizer, TextEncoder  # noqa: E402
from ltx_jax.training.flops import count_flop  # noqa: E402

PROMPT = "A red car drives along a coast road at sunset"
LARGE = {"num_layers": 48, "attention_head_dim": 128}  # the released 13B


def text_encoder(cfg: T5Config) -> TextEncoder:
    """A T5 with random weights, over bytes: the released vocabulary needs a file."""
    ids = jnp.ones((1, 8), jnp.int32)
    init = jax.jit(lambda key: sharding.unbox(T5Encoder(cfg).init(key, ids, ids))["params"])
    return TextEncoder(ByteTokenizer(), cfg, init(jax.random.key(7)), 256)


def pipeline(scale: Scale, text: TextEncoder) -> LTXPipeline:
    """A whole model with random weights."""
    vae, vae_params, _ = decoder(scale)
    net = network(scale)
    checkpoint = Checkpoint(
        transformer=net.model.cfg, transformer_params=net.params, vae=vae.cfg, vae_params=vae_params
    )
    checkpoint.transformer = dataclasses.replace(net.model.cfg, attention="auto")
    return LTXPipeline(checkpoint, text, dtype="bfloat16")


def options(scale: Scale, steps: int, guidance: float) -> SamplingConfig:
    """The size that the scale's latent grid has."""
    t, h, w = scale.grid
    side, length = scale.vae.spatial_factor, scale.vae.temporal_factor
    return SamplingConfig(
        height=h * side,
        width=w * side,
        num_frames=(t - 1) * length + 1,
        frame_rate=25.0,
        num_inference_steps=steps,
        guidance_scale=guidance,
        stg_scale=0.0,
        rescaling_scale=1.0,
    )


def measure(report: Report, pipe: LTXPipeline, name: str, how: SamplingConfig, runs: int) -> None:
    """Samples `runs` videos after one that compiles."""
    begin = time.perf_counter()
    pipe(PROMPT, how)
    first = time.perf_counter() - begin
    whole, parts = [], []
    for seed in range(runs):
        begin = time.perf_counter()
        video = pipe(PROMPT, how, seed=seed)
        whole.append(time.perf_counter() - begin)
        parts.append(dict(pipe.timings))
    note = ", ".join(
        f"{part} {np.median([p.get(part, 0.0) for p in parts]):.3f} s"
        for part in ("text", "encode", "denoise", "decode")
    )
    report.add(
        "headline",
        f"{name}, {'x'.join(map(str, video.shape[1:4]))}",
        median_s=float(np.median(whole)),
        fastest_s=min(whole),
        slowest_s=max(whole),
        samples=runs,
        note=f"{note}; first call {first:.1f} s",
    )


def loop(report: Report, scale: Scale, cfg: TransformerConfig, name: str, fp8: bool) -> None:
    """The loop alone, linears in bfloat16 or in eight bits, calibrated on its own inputs."""
    net = network(dataclasses.replace(scale, transformer=cfg))
    latents, _, caption, mask, rope = net.inputs
    flop = count_flop(net.by("plain").forward, net.params, *net.inputs)
    derived = jax.jit(lambda p: fused.derive(p, cfg))(net.params)
    heads = jax.jit(lambda p, c: fused.attend_captions(p, c, cfg))(derived, caption)
    rope = jax.jit(lambda r: fused.halve_rope(r, cfg))(rope)
    if fp8:
        calls = [(latents, jnp.full((1, 1), t), heads, mask, rope, None) for t in (0.1, 0.5, 1.0)]
        amax = fused.calibrate(derived, calls, cfg)
        exact = jax.jit(lambda p, *c: fused.velocity(p, *c, cfg=cfg))(derived, *calls[1])
        derived = jax.jit(lambda p: fused.derive(p, cfg, amax))(net.params)
    del net
    for guided in (False, True):
        rows = 2 if guided else 1
        x, k, m = latents, heads, mask
        if guided:
            k, m = jax.tree.map(lambda a: jnp.concatenate([a, a]), (heads, mask))

        def run(params: Any, x: Any, k: Any, m: Any, rope: Any, rows: int = rows) -> Any:
            times = jnp.linspace(1.0, 0.0, scale.steps + 1)

            def step(i: Any, x: Any) -> Any:
                t = jnp.full((rows, 1), times[i])
                v = fused.velocity(params, jnp.tile(x, (rows, 1, 1)), t, k, m, rope, None, cfg)
                if rows == 2:
                    v = v[:1] + 3.0 * (v[1:] - v[:1])
                return x + (times[i + 1] - times[i]) * v

            return jax.lax.fori_loop(0, scale.steps, step, x)

        begin = time.perf_counter()
        compiled = jax.jit(run).lower(derived, x, k, m, rope)
        compiled = compiled.compile(compiler_options=compiler_options())
        seconds = time.perf_counter() - begin
        jax.block_until_ready(compiled(derived, x, k, m, rope))
        samples = []
        for _ in range(3):
            begin = time.perf_counter()
            jax.block_until_ready(compiled(derived, x, k, m, rope))
            samples.append(time.perf_counter() - begin)
        median = float(np.median(samples))
        note = f"{median / scale.steps * 1e3:.2f} ms a step"
        if fp8 and not guided:
            got = jax.jit(lambda p, *c: fused.velocity(p, *c, cfg=cfg))(derived, *calls[1])
            error = jnp.sqrt(jnp.mean((got - exact) ** 2) / jnp.mean(exact**2))
            note += f", velocity differs by {float(error):.1%}"
        total = flop * scale.steps * rows
        report.add(
            "loop",
            f"{name}{', fp8 linears' if fp8 else ''}, {'guidance' if guided else 'no guidance'}",
            median_s=median,
            fastest_s=min(samples),
            slowest_s=max(samples),
            samples=3,
            tflop=total / 1e12,
            tflops=total / 1e12 / median,
            temp_gb=compiled.memory_analysis().temp_size_in_bytes / 1e9,
            compile_s=seconds,
            note=note,
        )


def main(argv: list[str] | None = None) -> int:
    """Measures the headline, then the loop in eight bits and of the 13B model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=["full", "tiny"], default="full")
    parser.add_argument("--parts", nargs="+", default=["headline", "fp8", "13b"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results")
    parser.add_argument("--name", help="of the result files; by default headline_DEVICE")
    arguments = parser.parse_args(argv)
    scale = Scale() if arguments.scale == "full" else TINY
    jax.config.update("jax_enable_compilation_cache", False)  # or compile times mean nothing
    name = arguments.name or f"headline_{jax.devices()[0].device_kind.lower().replace(' ', '_')}"
    report = Report(arguments.out, name, 3600.0, arguments.runs)
    first_gpu.versions(report)
    try:
        if "headline" in arguments.parts:
            pipe = pipeline(scale, text_encoder(scale.text))
            steps = scale.steps
            for label, count, guidance in (
                (f"{steps} steps, no guidance", steps, 1.0),
                (f"{steps} steps, guidance", steps, 3.0),
                ("8 steps, no guidance", 8, 1.0),
            ):
                measure(report, pipe, label, options(scale, count, guidance), arguments.runs)
            report.facts["memory after headline"] = device_memory()
            del pipe
        cfg = dataclasses.replace(scale.transformer, attention="auto")
        if "fp8" in arguments.parts:
            loop(report, scale, cfg, "2B", False)
            loop(report, scale, cfg, "2B", True)
        if "13b" in arguments.parts:
            large = dataclasses.replace(cfg, **(LARGE if arguments.scale == "full" else {}))
            loop(report, scale, large, "13B", False)
    except Exception as error:  # what was measured before is kept
        report.fail("headline", "stopped", error)
        raise
    finally:
        report.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
