"""Measures a Video-VAE: its reconstructions, and the grid that it leaves in flat colours."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from ltx_jax import metrics, pixels
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import ExecutionConfig, VAEConfig
from ltx_jax.diffusion.flow import add_noise
from ltx_jax.evaluate.clip_reader import ClipFormat, EvaluationClip
from ltx_jax.evaluate.metric_table import MetricRow, mean
from ltx_jax.inference.encode_decode import NotFiniteError, all_finite
from ltx_jax.models import convolution, i3d
from ltx_jax.models.lpips import lpips_of_frames
from ltx_jax.models.vae import LatentStatistics, VideoVAE, key_noise
from ltx_jax.runtime.compiled import Programs

Frames = UInt8[np.ndarray, "b t h w 3"]
Reconstruct = Callable[[Frames], Frames]

# Eight colours at the corners of a cube inside the RGB cube, so that errors are not clipped.
_FLAT = tuple(itertools.product((64, 192), repeat=3))


@functools.partial(jax.jit, static_argnames=("cfg", "execution"))
def _reconstruct(
    params: Any,
    statistics: LatentStatistics,
    frames: UInt8[Array, "b t h w 3"],
    time: Float[Array, ""],
    key: Array,
    *,
    cfg: VAEConfig,
    execution: ExecutionConfig,
) -> tuple[UInt8[Array, "b t h w 3"], Bool[Array, ""]]:
    model, weights = VideoVAE(cfg, execution), {"params": params}
    posterior: Any = model.apply(weights, pixels.from_bytes(frames), method="encode")
    z = statistics.normalize(posterior.mode())
    noise_key, map_key = jax.random.split(key)
    times = jnp.broadcast_to(time, len(frames))
    z = statistics.denormalize(add_noise(z, jax.random.normal(noise_key, z.shape), times))
    decoded: Any = model.apply(weights, z, times, key_noise(map_key), method="decode")
    return pixels.to_nearest_bytes(decoded), all_finite(decoded)


def reconstructor(
    checkpoint: Checkpoint,
    cfg: VAEConfig,
    execution: ExecutionConfig,
    *,
    time: float = 0.0,
    seed: int = 0,
) -> Reconstruct:
    """Returns the function that encodes frames to the mode of the posterior and decodes that.

    Args:
      checkpoint: contains the VAE's parameters.
      cfg: the VAE's settings.
      execution: how it is computed.
      time: noise level of the latents, which is also the decoder's timestep. Ignored for decoders
        without timestep conditioning.
      seed: seed of that noise.
    """
    statistics = checkpoint.statistics or LatentStatistics.identity(cfg.latent_channels)
    programs = Programs(convolution.compiler_options())
    level = jnp.float32(time if cfg.timestep_conditioning else 0.0)

    def reconstruct(frames: Frames) -> Frames:
        arguments = (checkpoint.vae_params, statistics, jnp.asarray(frames), level)
        static = {"cfg": cfg, "execution": execution}
        decoded, is_finite = programs(_reconstruct, *arguments, jax.random.key(seed), **static)
        if not is_finite:
            raise NotFiniteError("the reconstructed pixels")
        return np.asarray(decoded)

    return reconstruct


def reconstruction_metrics(
    clips: Iterable[EvaluationClip],
    reconstruct: Reconstruct,
    *,
    batch_size: int = 1,
    lpips: Any = None,
    features: Any = None,
) -> list[MetricRow]:
    """Measures PSNR, SSIM, LPIPS and rFVD, separately for videos and images.

    Args:
      clips: any number of clips of any lengths.
      reconstruct: the VAE, from `reconstructor`.
      batch_size: number of clips of the same length that are reconstructed together.
      lpips: parameters of LPIPS (`checkpoints.perceptual.read_lpips`); None leaves it out.
      features: parameters of I3D (`checkpoints.perceptual.read_i3d`); None leaves rFVD out. Clips
        that are too short for I3D are left out of rFVD too.
    """
    lpips_distance = jax.jit(lpips_of_frames)
    i3d_features = jax.jit(i3d.features, compiler_options=convolution.compiler_options())
    samples: dict[tuple[str, str], list[Any]] = {}
    for batch in _batches(clips, batch_size):
        decoded = reconstruct(np.stack([clip.frames for clip in batch]))
        for clip, one in zip(batch, decoded, strict=True):
            pair = one[None], clip.frames[None]
            values: dict[str, Any] = {
                "PSNR": float(metrics.psnr(*pair)[0]),
                "SSIM": float(metrics.ssim(*pair)[0]),
            }
            floats = [pixels.from_bytes(jnp.asarray(x)) for x in pair]
            if lpips is not None:
                values["LPIPS"] = float(lpips_distance(lpips, *floats))
            if features is not None and len(one) >= i3d.MIN_FRAMES:
                values["rFVD"] = [np.asarray(i3d_features(features, x)[0]) for x in floats]
            for name, value in values.items():
                samples.setdefault((clip.kind, name), []).append(value)
    return [row for key, values in samples.items() for row in _summary(*key, values)]


def _summary(kind: str, name: str, values: list[Any]) -> list[MetricRow]:
    if name != "rFVD":
        return [mean(kind, name, values, "dB" if name == "PSNR" else "")]
    decoded, originals = (np.stack(features) for features in zip(*values, strict=True))
    # Two halves of the originals give the smallest distance that can be expected.
    halves = originals[::2], originals[1::2]
    return [
        *frechet_rows(kind, name, decoded, originals),
        *frechet_rows(kind, "FVD of two halves of the originals", *halves),
    ]


def frechet_rows(
    subject: str, name: str, features: np.ndarray, originals: np.ndarray
) -> list[MetricRow]:
    """The Frechet distance of two sets of clips, and the one extrapolated to infinitely many."""
    count = min(len(features), len(originals))
    rows = []
    if count >= 2:
        rows.append(MetricRow(subject, name, metrics.frechet_distance(features, originals), count))
    if count >= 8:
        value = metrics.extrapolated_frechet_distance(features, originals)
        rows.append(MetricRow(subject, f"{name}, extrapolated", value, count))
    return rows


def _batches(clips: Iterable[EvaluationClip], size: int) -> Iterator[list[EvaluationClip]]:
    """Batches of up to `size` consecutive clips of the same shape."""
    for _, group in itertools.groupby(clips, key=lambda clip: clip.frames.shape):
        while batch := list(itertools.islice(group, size)):
            yield batch


def flat_colour_metrics(reconstruct: Reconstruct, clip_format: ClipFormat) -> list[MetricRow]:
    """Fraction of the energy outside the mean (DC) of each frame, in reconstructed flat colours."""
    rows = []
    for length in sorted({clip_format.length(clip_format.num_frames), 1}, reverse=True):
        kind = "videos" if length > 1 else "images"
        frames = np.empty((1, length, clip_format.height, clip_format.width, 3), np.uint8)
        fractions = []
        for colour in _FLAT:
            frames[:] = colour
            fractions.append(metrics.flat_energy(reconstruct(frames)[0]))
        rows.append(mean(f"flat {kind}", "energy outside the mean", fractions))
        rows.append(MetricRow(f"flat {kind}", "largest of these", max(fractions), len(fractions)))
    return rows
