"""Validation of the first stage: reconstructions of held-out clips."""

import contextlib
import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from ltx_jax import metrics
from ltx_jax.config import TrainVAE
from ltx_jax.data.loader import Batch
from ltx_jax.diffusion.flow import add_noise
from ltx_jax.inference.encode_decode import all_finite
from ltx_jax.models import convolution
from ltx_jax.models.efficientnet import feature_distance
from ltx_jax.models.lpips import lpips_of_frames
from ltx_jax.models.vae import VideoVAE, key_noise
from ltx_jax.pixels import from_bytes, to_nearest_bytes
from ltx_jax.runtime import sharding
from ltx_jax.training import losses
from ltx_jax.training.batches import replicate_over
from ltx_jax.training.stage import LoggedVideo, Validation
from ltx_jax.training.vae.loss import latent_statistics
from ltx_jax.training.validation_clips import read_validation_clips, require_pixels

# Noise levels of the latents to decode. Metrics without a level in their name belong to the first.
TIMES = (0.0, 0.05, 0.1, 0.2)

_log = logging.getLogger(__name__)


class VAEValidator:
    """Reconstructs held-out clips with the averaged parameters and the same noise every time.

    The metrics are measured on latents without noise: the pixel term of the loss, PSNR (which is
    also measured at each noise level of `TIMES`), SSIM, and the perceptual distances that the loss
    has. There are two videos of every clip: the original beside its reconstruction, and the
    reconstructions at all noise levels side by side. Histograms show the distribution of the
    latents' running means and deviations over the channels.

    Args:
      cfg: the configuration of the run.
      mesh: the devices to run on.
      frozen: weights of the frozen networks, as in `vae_loss`.
    """

    def __init__(self, cfg: TrainVAE, mesh: Mesh, frozen: Mapping[str, Any]):
        self._cfg, self._mesh, self._model = cfg, mesh, VideoVAE(cfg.model, cfg.execution)
        self._frozen = replicate_over(mesh, dict(frozen))
        self._times = TIMES if cfg.model.timestep_conditioning else TIMES[:1]
        self._program = jax.jit(
            self._reconstruct,
            out_shardings=NamedSharding(mesh, P()),
            compiler_options=convolution.compiler_options(),
        )

    @functools.cached_property
    def _clips(self) -> Batch:
        return read_validation_clips(self._cfg.run, self._cfg.data)

    def prepare(self) -> None:
        """Reads the clips; raises a ValueError if they cannot be used."""
        require_pixels(self._clips)

    def __call__(self, params: Mapping[str, Any], running: Mapping[str, Any]) -> Validation:
        """Metrics, videos and histograms of a VAE's parameters and running statistics."""
        rows: list[dict[str, Any]] = []
        videos: dict[str, LoggedVideo] = {}
        for i, frames in enumerate(require_pixels(self._clips)):
            rate = float(self._clips.frame_rate[i])
            clip = replicate_over(self._mesh, frames[None])  # replicated: clips are few and small
            with sharding.use_mesh(self._mesh):
                decoded, is_finite, metrics = self._program(
                    params, running, self._frozen, clip, jax.random.key(i)
                )
            rows.append(jax.device_get(metrics))
            if not is_finite:  # not a reason to end a run
                _log.warning("reconstruction %d: the pixels hold NaN or infinity", i)
                continue
            strips = [frames, *np.asarray(decoded)]
            videos[f"reconstruction {i}"] = _side_by_side(strips[:2], rate)
            if len(self._times) > 1:
                videos[f"decode times {i}"] = _side_by_side(strips[1:], rate)
        scalars = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        per_channel = latent_statistics(jax.device_get(dict(running)))
        histograms = {"latent_mean": per_channel.mean, "latent_std": per_channel.std}
        return Validation(scalars, videos, histograms)

    def _reconstruct(
        self, params: Any, running: Any, frozen: dict[str, Any], frames: Array, key: Array
    ) -> tuple[Array, Array, dict[str, Array]]:
        """Decodes at every noise level; returns the frames (uint8) of each, whether all of them
        are finite, and the metrics."""
        video, weights = from_bytes(frames), {"params": params}
        statistics = latent_statistics(running)
        posterior: Any = self._model.apply(weights, video, method="encode")
        z = statistics.normalize(posterior.mode())
        noise_key, map_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, z.shape)

        def decode(t: Array) -> Any:
            noised = statistics.denormalize(add_noise(z, noise, t[None]))
            return self._model.apply(weights, noised, t[None], key_noise(map_key), method="decode")

        decoded = jax.lax.map(decode, jnp.asarray(self._times))[:, 0]
        clipped = jnp.clip(decoded, -1, 1)
        ratios = metrics.psnr(clipped, jnp.broadcast_to(video, clipped.shape))
        values = {"val_pixel": losses.pixel_loss(decoded[:1], video, self._cfg.loss.pixel)}
        values |= {
            f"val_psnr_at/{t:g}" if t else "val_psnr": x
            for t, x in zip(self._times, ratios, strict=True)
        }
        with contextlib.suppress(ValueError):  # frames smaller than its window have no SSIM
            values["val_ssim"] = metrics.ssim(clipped[:1], video)[0]
        if "efficientnet" in frozen:
            values["val_efficientnet"] = feature_distance(
                frozen["efficientnet"], clipped[:1], video
            )
        if "lpips" in frozen:
            values["val_lpips"] = lpips_of_frames(frozen["lpips"], clipped[:1], video)
        return to_nearest_bytes(decoded), all_finite(decoded), values


def _side_by_side(clips: list[np.ndarray], frame_rate: float) -> LoggedVideo:
    return LoggedVideo(np.concatenate(clips, axis=2), frame_rate)
