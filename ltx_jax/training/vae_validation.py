"""A look at what the VAE makes of clips that it is not trained on."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, UInt8

from ltx_jax import metrics
from ltx_jax.config import TrainVAE
from ltx_jax.data.loader import Batch
from ltx_jax.diffusion.flow import add_noise
from ltx_jax.models import convolution
from ltx_jax.models.lpips import lpips_of_frames
from ltx_jax.models.vae import VideoVAE, key_noise
from ltx_jax.runtime import sharding
from ltx_jax.training import losses
from ltx_jax.training.held_out import held_out
from ltx_jax.training.stage import Footage, Validation, replicate
from ltx_jax.training.state import TrainState
from ltx_jax.training.vae_loss import latent_statistics, to_float

# Noise levels that the decoder is shown; the first is what the figures are of.
TIMES = (0.0, 0.05, 0.1, 0.2)


def pixels(batch: Batch) -> UInt8[np.ndarray, "b t h w 3"]:
    """The frames of a batch.

    Raises:
      ValueError: if it holds latents in their place.
    """
    if batch.frames is None:
        raise ValueError("a VAE is trained on pixels, and this data holds latents alone")
    return batch.frames


def validator(
    cfg: TrainVAE, mesh: Mesh, shared: dict[str, Any]
) -> Callable[[TrainState], Validation]:
    """What a stage validates with: the averaged parameters, held-out clips, the same noise.

    The figures are of latents without noise: the pixel term of the loss, PSNR (also at each level
    of `TIMES`), SSIM, and LPIPS if its weights are at hand. Of every clip there are two videos: the
    original beside its reconstruction, and the decoder's answers from level to level. Histograms
    show the latents' running mean and deviation over their channels.

    Args:
      cfg: of the run.
      mesh: to run on.
      shared: `lpips`: its weights, where they are given.
    """
    model = VideoVAE(cfg.model, cfg.execution)
    times = TIMES if cfg.model.timestep_conditioning else TIMES[:1]
    clips = functools.cache(functools.partial(held_out, cfg.run, cfg.data))

    def look(
        params: Any, running: Any, shared: dict[str, Any], frames: Array, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Decoded frames per level (uint8), and the figures."""
        video, weights = to_float(frames), {"params": params}
        statistics = latent_statistics(running)
        posterior: Any = model.apply(weights, video, method="encode")
        z = statistics.normalize(posterior.mode())
        noise_key, map_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, z.shape)

        def decode(t: Array) -> Any:
            noised = statistics.denormalize(add_noise(z, noise, t[None]))
            return model.apply(weights, noised, t[None], key_noise(map_key), method="decode")

        decoded = jax.lax.map(decode, jnp.asarray(times))[:, 0]
        seen = jnp.clip(decoded, -1, 1)
        ratios = metrics.psnr(seen, jnp.broadcast_to(video, seen.shape))
        figures = {"val_pixel": losses.pixel_loss(decoded[:1], video, cfg.loss.pixel)}
        figures |= {
            f"val_psnr_at/{t:g}" if t else "val_psnr": x for t, x in zip(times, ratios, strict=True)
        }
        with contextlib.suppress(ValueError):  # frames smaller than its window have no SSIM
            figures["val_ssim"] = metrics.ssim(seen[:1], video)[0]
        if "lpips" in shared:
            figures["val_lpips"] = lpips_of_frames(shared["lpips"].value, seen[:1], video)
        return jnp.round((seen + 1) * 127.5).astype(jnp.uint8), figures

    program = jax.jit(
        look,
        out_shardings=NamedSharding(mesh, P()),
        compiler_options=convolution.compiler_options(),
    )

    def validate(state: TrainState) -> Validation:
        batch = clips()
        rows: list[dict[str, Any]] = []
        videos: dict[str, Footage] = {}
        for i, frames in enumerate(pixels(batch)):
            rate = float(batch.frame_rate[i])
            shown = replicate(frames[None], mesh)  # on all devices: few clips, seldom
            with sharding.use_mesh(mesh):
                decoded, figures = program(
                    state.ema, state.statistics, shared, shown, jax.random.key(i)
                )
            rows.append(jax.device_get(figures))
            strips = [frames, *np.asarray(decoded)]
            videos[f"reconstruction {i}"] = _side_by_side(strips[:2], rate)
            if len(times) > 1:
                videos[f"decode times {i}"] = _side_by_side(strips[1:], rate)
        scalars = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        per_channel = latent_statistics(jax.device_get(state.statistics))
        return Validation(
            scalars,
            videos,
            {"latent_mean": per_channel.mean, "latent_std": per_channel.std},
        )

    if cfg.run.validate_every:
        pixels(clips())  # so that what is wrong with them shows before the first step
    return validate


def _side_by_side(clips: list[np.ndarray], frame_rate: float) -> Footage:
    return Footage(np.concatenate(clips, axis=2), frame_rate)
