"""From a prompt to a video on the host, by `LTXPipeline`: text, loop, decoder and copy.

Weights are random, in the released shapes; nothing is read from disk. A step without guidance makes
one prediction, a step with guidance two (in one batch). Every kind of video is sampled once to
compile, and then they are timed in turn. The denoising loop has a line of its own.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Report, device_memory
from benchmarks.networks import decoder, named, network, sizes
from benchmarks.sizes import LINEARS, MODELS, VIDEOS, Scale, Video, initialise, pick
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import ExecutionConfig, Linears, SamplingConfig, T5Config
from ltx_jax.diffusion import sampler
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.inference.text_encoder import ByteTokenizer, TextEncoder
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.runtime.compiled import Programs

PROMPT = "A red car drives along a coast road at sunset"
RUNS = 5
PARTS = ("whole", "text", "encode", "denoise", "decode")


def text_encoder(cfg: T5Config, execution: ExecutionConfig) -> TextEncoder:
    """A T5 with random weights and bytes as tokens, since the released vocabulary needs a file."""
    ids = jnp.ones((1, 8), jnp.int32)
    params = initialise(T5Encoder(cfg, execution).init, ids, ids)
    return TextEncoder(ByteTokenizer(), cfg, params, 256, execution=execution)


def options(scale: Scale, video: Video) -> SamplingConfig:
    """Options for a video that has the scale's latent grid."""
    t, h, w = scale.grid
    side, length = scale.vae.spatial_factor, scale.vae.temporal_factor
    return SamplingConfig(
        height=h * side,
        width=w * side,
        num_frames=(t - 1) * length + 1,
        frame_rate=25.0,
        num_inference_steps=max(1, round(scale.steps * video.steps)),
        guidance_scale=video.guidance,
        stg_scale=0.0,
        rescaling_scale=1.0,
        teacache=video.teacache,
    )


class Watching(Programs):
    """Records for every step with TeaCache whether its layers were computed."""

    def __init__(self) -> None:
        super().__init__()
        self._changes: list[Any] = []

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """The same call."""
        out = super().__call__(function, *args, **kwargs)
        if function is sampler.step and out[1].denoiser is not None:
            # A copy, since the next step donates the state; reading it now would wait for the step.
            self._changes.append(jnp.copy(out[1].denoiser.change))
        return out

    def computed(self) -> list[bool]:
        """Whether each step was computed, for the steps since the last call of this."""
        changes, self._changes = self._changes, []
        return [float(change) == 0 for change in changes]


def headline(report: Report, scale: Scale) -> None:
    """All steps with and without guidance, two fifths of them without guidance, or `--only`."""
    text, (vae, vae_params, _) = text_encoder(scale.text, scale.execution), decoder(scale)
    checkpoint = Checkpoint(vae=vae.cfg, vae_params=vae_params)
    programs = Watching()  # shared, so that text encoder and decoder are compiled once
    usual = ("plain", "guided", "distilled")
    axes = ((MODELS, MODELS[:1]), (tuple(LINEARS), ("none", "float8")), (tuple(VIDEOS), usual))
    for models, forms, videos in pick(scale, *axes):
        for name, form in itertools.product(models, forms):
            if report.out_of_time():
                return
            title, linears = f"{name}{named(LINEARS[form])}", LINEARS[form]
            try:
                begin = time.perf_counter()
                flop, pipe = _pipeline(scale, checkpoint, text, name, linears)
                seconds, params = time.perf_counter() - begin, pipe.params
                size = sum(x.nbytes for x in jax.tree.leaves(params))
                note = f"transformer of {size / 1e9:.2f} GB, ready in {seconds:.1f} s"
                report.add("headline", title, dtype=pipe.execution.dtype, note=note)
                pipe.programs = programs
                _measure(report, scale, pipe, programs, title, [VIDEOS[x] for x in videos], flop)
            except Exception as error:  # the other models may still fit
                report.fail("headline", title, error)
            pipe = params = None  # frees the memory before the next one is made
    report.facts["memory after headline"] = device_memory()


def _pipeline(
    scale: Scale, vae: Checkpoint, text: TextEncoder, model: str, linears: Linears | None
) -> tuple[float, LTXPipeline]:
    """The operations of one prediction, and a pipeline with a new transformer."""
    net = network(scale, cfg=sizes(scale)[model])
    whole = dataclasses.replace(vae, transformer=net.model.cfg, transformer_params=net.params)
    dtype = scale.execution.dtype
    return net.flop, LTXPipeline(whole, text, dtype=dtype, fast=True, linears=linears)


def _measure(
    report: Report,
    scale: Scale,
    pipe: LTXPipeline,
    programs: Watching,
    model: str,
    videos: Sequence[Video],
    flop: float,
) -> None:
    runs: list[list[dict[str, float]]] = [[] for _ in videos]
    frames, computed = np.zeros(()), [0] * len(videos)
    for turn in range(min(RUNS, report.repeats) + 1):
        if turn >= 2 and report.out_of_time():
            break
        for i, video in enumerate(videos):
            begin = time.perf_counter()
            frames = pipe(PROMPT, options(scale, video), seed=turn)
            runs[i].append(pipe.timings | {"whole": time.perf_counter() - begin})
            computed[i] = sum(programs.computed())
    for video, (first, *rest), count in zip(videos, runs, computed, strict=True):
        steps, branches = options(scale, video).num_inference_steps, 2 if video.guidance > 1 else 1
        title = f"{model}, {steps} steps"
        if video.teacache:
            title += f", TeaCache {video.teacache}, {count} computed"
        times = {part: [run.get(part, 0.0) for run in rest] for part in PARTS}
        split = ", ".join(f"{part} {statistics.median(times[part]):.3f} s" for part in PARTS[1:])
        facts = {
            "dtype": scale.execution.dtype,
            "branches": branches,
            "shapes": "x".join(map(str, frames.shape)),
        }
        report.add(
            "headline",
            title,
            **facts,
            **_times(times["whole"]),
            compile_s=first["compile"],
            memory_gb=device_memory().get("peak_gb"),
            note=f"{split}; first call {first['whole']:.1f} s",
        )
        tflop = flop * branches * (count if video.teacache else steps) / 1e12
        loop = _times(times["denoise"])
        rate = tflop / loop["median_s"]
        report.add("headline", f"{title}: the loop", **facts, **loop, tflop=tflop, tflops=rate)


def _times(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "median_s": statistics.median(seconds),
        "fastest_s": min(seconds),
        "slowest_s": max(seconds),
        "samples": len(seconds),
    }
