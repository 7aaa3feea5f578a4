"""What the Video-VAE loses: figures of reconstructions, and the grid it leaves in flat colours."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ltx_jax import metrics
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import VAEConfig
from ltx_jax.diffusion.flow import add_noise
from ltx_jax.evaluate.media import Clip, Cut
from ltx_jax.evaluate.report import Figure, mean
from ltx_jax.models import convolution, i3d
from ltx_jax.models.lpips import lpips_of_frames
from ltx_jax.models.vae import LatentStatistics, VideoVAE, key_noise
from ltx_jax.runtime.compiled import Programs
from ltx_jax.training.vae_loss import to_float

Frames = UInt8[np.ndarray, "b t h w 3"]
Reconstruct = Callable[[Frames], Frames]

# Corners of the colour cube, away from black and white.
_FLAT = tuple(itertools.product((64, 192), repeat=3))


@functools.partial(jax.jit, static_argnames="cfg")
def _reconstruct(
    params: Any,
    statistics: LatentStatistics,
    frames: UInt8[Array, "b t h w 3"],
    time: Float[Array, ""],
    key: Array,
    *,
    cfg: VAEConfig,
) -> UInt8[Array, "b t h w 3"]:
    model, weights = VideoVAE(cfg), {"params": params}
    posterior: Any = model.apply(weights, to_float(frames), method="encode")
    z = statistics.normalize(posterior.mode())
    noise_key, map_key = jax.random.split(key)
    times = jnp.broadcast_to(time, len(frames))
    z = statistics.denormalize(add_noise(z, jax.random.normal(noise_key, z.shape), times))
    decoded: Any = model.apply(weights, z, times, key_noise(map_key), method="decode")
    return jnp.round((jnp.clip(decoded, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def reconstructor(
    checkpoint: Checkpoint, cfg: VAEConfig, *, time: float = 0.0, seed: int = 0
) -> Reconstruct:
    """Frames -> what encoder and decoder make of them, without a draw from the posterior.

    Args:
      checkpoint: holds the VAE.
      cfg: of the VAE, with the dtype to compute in.
      time: the noise level that the latents get and the decoder is told.
      seed: of that noise.
    """
    channels = cfg.latent_channels
    statistics = checkpoint.statistics or LatentStatistics(jnp.zeros(channels), jnp.ones(channels))
    programs = Programs(convolution.compiler_options())
    level = jnp.float32(time if cfg.timestep_conditioning else 0.0)

    def reconstruct(frames: Frames) -> Frames:
        arguments = (checkpoint.vae_params, statistics, jnp.asarray(frames), level)
        return np.asarray(programs(_reconstruct, *arguments, jax.random.key(seed), cfg=cfg))

    return reconstruct


def figures(
    clips: Iterable[Clip],
    reconstruct: Reconstruct,
    *,
    batch_size: int = 1,
    lpips: Any = None,
    features: Any = None,
) -> list[Figure]:
    """PSNR, SSIM, LPIPS and rFVD, of videos and of images.

    Args:
      clips: of any number and length.
      reconstruct: what is measured.
      batch_size: clips of one length that are reconstructed together.
      lpips: parameters (`checkpoints.perceptual`), or None.
      features: parameters of I3D (likewise), or None. Clips too short for it have no rFVD.
    """
    perceive = jax.jit(lpips_of_frames)
    describe = jax.jit(i3d.features, compiler_options=convolution.compiler_options())
    found: dict[tuple[str, str], list[Any]] = {}
    for batch in _batches(clips, batch_size):
        decoded = reconstruct(np.stack([clip.frames for clip in batch]))
        for clip, one in zip(batch, decoded, strict=True):
            pair = one[None], clip.frames[None]
            values: dict[str, Any] = {
                "PSNR": float(metrics.psnr(*pair)[0]),
                "SSIM": float(metrics.ssim(*pair)[0]),
            }
            floats = [to_float(jnp.asarray(x)) for x in pair]
            if lpips is not None:
                values["LPIPS"] = float(perceive(lpips, *floats))
            if features is not None and len(one) >= i3d.MIN_FRAMES:
                values["rFVD"] = [np.asarray(describe(features, x)[0]) for x in floats]
            for name, value in values.items():
                found.setdefault((clip.kind, name), []).append(value)
    return [figure for key, values in found.items() for figure in _summary(*key, values)]


def _summary(kind: str, name: str, values: list[Any]) -> list[Figure]:
    if name != "rFVD":
        return [mean(kind, name, values, "dB" if name == "PSNR" else "")]
    if len(values) < 2:  # one clip has no distribution
        return []
    decoded, originals = (np.stack(features) for features in zip(*values, strict=True))
    return [Figure(kind, name, metrics.frechet_distance(decoded, originals), len(values))]


def _batches(clips: Iterable[Clip], size: int) -> Iterator[list[Clip]]:
    """Neighbours of one shape, at most `size` of them."""
    for _, alike in itertools.groupby(clips, key=lambda clip: clip.frames.shape):
        while batch := list(itertools.islice(alike, size)):
            yield batch


def grid(reconstruct: Reconstruct, cut: Cut) -> list[Figure]:
    """Share of the energy of reconstructed flat colours that is not flat, of videos and images."""
    found = []
    for length in sorted({cut.length(cut.num_frames), 1}, reverse=True):
        kind = "videos" if length > 1 else "images"
        frames = np.empty((1, length, cut.height, cut.width, 3), np.uint8)
        shares = []
        for colour in _FLAT:
            frames[:] = colour
            shares.append(metrics.flat_energy(reconstruct(frames)[0]))
        found.append(mean(f"flat {kind}", "energy off DC", shares))
        found.append(Figure(f"flat {kind}", "largest of them", max(shares), len(shares)))
    return found
