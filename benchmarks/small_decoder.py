"""Compares a small decoder with the large one on the same latents of held-out clips of shapes:

  python -m benchmarks.small_decoder embedded:shapes runs/shapes_vae_decoder_small

Prints PSNR and SSIM of both, at the noise level of sampling and without noise, PSNR of one to the
other, and the seconds of a clip, of turns that alternate in one process.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ltx_jax import metrics
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import ExecutionConfig
from ltx_jax.diffusion.noise import seeded
from ltx_jax.inference import encode_decode
from ltx_jax.models import convolution
from ltx_jax.models.vae import LatentStatistics
from ltx_jax.pixels import from_bytes
from ltx_jax.runtime.compiled import Programs
from ltx_jax.training import frozen_vae
from ltx_jax.world import render

SIZE: dict[str, Any] = dict(num_frames=25, height=96, width=96, fps=24, split="held_out")
LEVELS = (0.0, 0.025)  # of noise; the second is what samples get, with a timestep of 0.05


def main() -> None:
    """Runs the comparison of the command line's checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("large")
    parser.add_argument("small")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5, help="timed decodings of each")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    vaes = {name: load_checkpoint(getattr(options, name)) for name in ("large", "small")}
    execution = ExecutionConfig(dtype=options.dtype)
    programs = Programs(convolution.compiler_options())
    large = vaes["large"]
    channels = frozen_vae.check_holds_vae(large, options.large).latent_channels
    normal = large.statistics or LatentStatistics.identity(channels)
    pairs = []
    for i in range(options.clips):
        frames = render.clip(i, **SIZE).frames[None]
        posterior = programs(
            encode_decode.encode,
            large.vae_params,
            jnp.asarray(from_bytes(frames)),
            cfg=large.vae,
            execution=ExecutionConfig(),
        )
        pairs.append((frames, normal.normalize(posterior.mode())))

    def decode(name: str, z: jax.Array, level: float, number: int) -> np.ndarray:
        scalars = (jnp.float32(x) for x in (0.05 if level else 0.0, level, 0.0))
        own = vaes[name]
        clip, _ = programs(
            encode_decode.decode,
            own.vae_params,
            own.statistics or normal,
            z,
            seeded(0, 1, number),
            *scalars,
            cfg=own.vae,
            execution=execution,
            uint8=True,
        )
        return np.asarray(clip)

    for level in LEVELS:
        rows: dict[str, list[float]] = {}
        for i, (frames, z) in enumerate(pairs):
            clips = {name: decode(name, z, level, i) for name in vaes}
            for name, clip in clips.items():
                rows.setdefault(f"PSNR {name}", []).append(float(metrics.psnr(clip, frames)[0]))
                rows.setdefault(f"SSIM {name}", []).append(float(metrics.ssim(clip, frames)[0]))
            ratio = metrics.psnr(clips["small"], clips["large"])
            rows.setdefault("PSNR small to large", []).append(float(ratio[0]))
        shown = "  ".join(f"{name} {np.mean(x):.4g}" for name, x in rows.items())
        print(f"noise {level:g}, {options.clips} clips: {shown}", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in vaes}
    for turn in range(options.turns):
        for name, durations in seconds.items():
            begin = time.perf_counter()
            decode(name, pairs[turn % len(pairs)][1], LEVELS[1], turn)
            durations.append(time.perf_counter() - begin)
    medians = {name: statistics.median(x) for name, x in seconds.items()}
    ranges = {name: f"{min(x):.3f} to {max(x):.3f}" for name, x in seconds.items()}
    print(f"{jax.default_backend()}, jax {jax.__version__}, {options.dtype}; seconds of a clip:")
    for name, median in medians.items():
        print(f"  {name} {median:.3f} ({ranges[name]})")
    print(f"  ratio {medians['small'] / medians['large']:.3f}")


if __name__ == "__main__":
    main()
