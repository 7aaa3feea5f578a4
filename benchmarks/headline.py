"""From a prompt to a video on the host, by `LTXPipeline`: text, loop, decoder and copy.

Weights are random, of the released shapes; nothing is read from disk. Without guidance there is one
prediction a step, with it there are two (one batch of two rows). Every kind of video is sampled
once to compile, and then they are timed in turn.
"""

import time

import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Report, device_memory
from benchmarks.networks import decoder, network
from benchmarks.sizes import Scale, initialise
from ltx_jax.checkpoints.contents import Checkpoint
from ltx_jax.config import Linears, SamplingConfig, T5Config
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.pipeline import LTXPipeline
from ltx_jax.text import ByteTokenizer, TextEncoder

PROMPT = "A red car drives along a coast road at sunset"
RUNS = 5


def text_encoder(cfg: T5Config) -> TextEncoder:
    """A T5 with random weights, over bytes: the released vocabulary needs a file."""
    ids = jnp.ones((1, 8), jnp.int32)
    return TextEncoder(ByteTokenizer(), cfg, initialise(T5Encoder(cfg).init, ids, ids), 256)


def checkpoint(scale: Scale) -> Checkpoint:
    """A whole 2B model with random weights."""
    vae, vae_params, _ = decoder(scale)
    net = network(scale)
    return Checkpoint(
        transformer=net.model.cfg, transformer_params=net.params, vae=vae.cfg, vae_params=vae_params
    )


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


def headline(report: Report, scale: Scale) -> None:
    """20 steps with and without guidance, 8 without; then with linears in eight bits."""
    text = text_encoder(scale.text)
    for linears in (None, "float8"):
        if report.out_of_time():
            return
        _measure(report, scale, text, linears)
    report.facts["memory after headline"] = device_memory()


def _measure(report: Report, scale: Scale, text: TextEncoder, linears: Linears | None) -> None:
    pipe = LTXPipeline(checkpoint(scale), text, dtype=scale.transformer.dtype, linears=linears)
    kinds = [(scale.steps, 1.0), (scale.steps, 3.0), (max(1, scale.steps * 2 // 5), 1.0)]
    first, whole = [], [[] for _ in kinds]
    parts: list[list[dict[str, float]]] = [[] for _ in kinds]
    for turn in range(RUNS + 1):
        for i, (steps, guidance) in enumerate(kinds):
            begin = time.perf_counter()
            video = pipe(PROMPT, options(scale, steps, guidance), seed=turn)
            seconds = time.perf_counter() - begin
            if turn:
                whole[i].append(seconds)
                parts[i].append(dict(pipe.timings))
            else:
                first.append((seconds, pipe.timings["compile"]))
    for i, (steps, guidance) in enumerate(kinds):
        means = {
            part: np.median([p.get(part, 0.0) for p in parts[i]])
            for part in ("text", "encode", "denoise", "decode")
        }
        split = ", ".join(f"{part} {seconds:.3f} s" for part, seconds in means.items())
        report.add(
            "headline",
            f"{steps} steps{f', {linears} linears' if linears else ''}",
            dtype=scale.transformer.dtype,
            branches=2 if guidance > 1 else 1,
            shapes="x".join(map(str, video.shape)),
            median_s=float(np.median(whole[i])),
            fastest_s=min(whole[i]),
            slowest_s=max(whole[i]),
            samples=RUNS,
            compile_s=first[i][1],
            memory_gb=device_memory().get("peak_gb"),
            note=f"{split}; first call {first[i][0]:.1f} s",
        )
