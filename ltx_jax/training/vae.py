"""The first stage: the Video-VAE on pixels and KL, with the denoising decoder.

The decoder does the last denoising step (paper, section 2.2): the latents are noised to a level it
is told, and it must give the clean pixels.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from ltx_jax.config import TrainVAE, VAELossConfig
from ltx_jax.data.loader import Loader
from ltx_jax.diffusion.flow import add_noise
from ltx_jax.models import convolution
from ltx_jax.models.vae import LatentStatistics, VideoVAE, check_video_shape, key_noise
from ltx_jax.training import losses
from ltx_jax.training.optim import ema_decay, make_optimizer
from ltx_jax.training.stage import Stage, Validation, Work, ahead, split
from ltx_jax.training.state import TrainState, descend, make_step, plan

# A channel whose deviation is less than this part of the largest has died.
_DEAD = 0.05


def to_float(frames: UInt8[Array, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
    """Pixels in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1


def first_statistics(channels: int) -> dict[str, Any]:
    """Running first and second moments of the latents, before any batch."""
    return {"mean": jnp.zeros(channels), "square": jnp.ones(channels)}


def update_statistics(
    running: dict[str, Any], mean: Float[Array, "b t h w c"], updates: Any, decay: float
) -> dict[str, Any]:
    """Takes a batch of posterior means into the exponential averages, which warm up as the EMA."""
    keep = ema_decay(updates, decay)
    axes = tuple(range(mean.ndim - 1))
    batch = {"mean": jnp.mean(mean, axes), "square": jnp.mean(mean * mean, axes)}
    return jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, running, batch)


def latent_statistics(running: dict[str, Any]) -> LatentStatistics:
    """Mean and deviation per channel."""
    variance = running["square"] - running["mean"] ** 2
    return LatentStatistics(running["mean"], jnp.sqrt(jnp.maximum(variance, 1e-8)))


def decode_times(key: Array, batch: int, cfg: VAELossConfig) -> Float[Array, " b"]:
    """Noise levels of the latents: uniform up to the maximum, and 0 for the clean fraction."""
    t, choice = jax.random.uniform(key, (2, batch))
    return jnp.where(choice < cfg.clean_fraction, 0.0, t * cfg.max_decode_time)


def vae_loss(
    apply: Callable[..., Any],
    params: Any,
    running: dict[str, Any],
    updates: Any,
    video: Float[Array, "b t h w c"],
    key: Array,
    cfg: VAELossConfig,
) -> tuple[Float[Array, ""], tuple[dict[str, Array], dict[str, Any]]]:
    """Encodes, noises in normalised space, decodes: loss, then metrics and new statistics."""
    time_key, noise_key, map_key = jax.random.split(key, 3)
    posterior = apply({"params": params}, video, method="encode")
    seen = jax.lax.stop_gradient(posterior.mean)
    running = update_statistics(running, seen, updates, cfg.statistics_decay)
    statistics = latent_statistics(running)

    # One draw: each would cost seconds of compilation.
    sampling, noise = jax.random.normal(noise_key, (2, *seen.shape))
    z = statistics.normalize(posterior.sample(sampling))
    t = decode_times(time_key, video.shape[0], cfg)
    z = statistics.denormalize(add_noise(z, noise, t))
    maps = key_noise(jax.random.split(map_key, video.shape[0]))
    reconstruction = apply({"params": params}, z, t, maps, method="decode")

    pixel = losses.pixel_loss(reconstruction, video, cfg.pixel)
    kl = losses.kl_loss(posterior.mean, posterior.logvar)
    metrics = {
        "pixel": pixel,
        "kl": kl,
        "psnr": losses.psnr(losses.pixel_loss(reconstruction, video, "mse")),
        "dead_channels": jnp.sum(statistics.std < _DEAD * jnp.max(statistics.std)),
    }
    return cfg.pixel_weight * pixel + cfg.kl_weight * kl, (metrics, running)


def build(cfg: TrainVAE, mesh: Mesh) -> Stage:
    """Opens the data and plans the state.

    Raises:
      ValueError: if the data cannot be used, or its size does not fit the compression.
    """
    data = cfg.data
    shape = (data.batch_size, data.num_frames, data.height, data.width, cfg.model.in_channels)
    check_video_shape(cfg.model, shape)
    loader = Loader(data, (("none", 1.0),), cfg.run.seed)
    model = VideoVAE(cfg.model)
    loss_cfg = cfg.loss
    if not cfg.model.timestep_conditioning:  # a decoder that is told no time gets clean latents
        loss_cfg = dataclasses.replace(loss_cfg, max_decode_time=0.0)

    def init(key: Array) -> Any:
        return model.init(key, jnp.zeros((1, *shape[1:])))["params"]

    def loss(params: Any, state: TrainState, batch: Array, key: Array) -> Any:
        video = to_float(batch)
        return vae_loss(model.apply, params, state.statistics, state.updates, video, key, loss_cfg)

    def batches(first: int, last: int) -> Iterator[Array]:
        loaded = loader.batches(first, last)
        return ahead(lambda _: split(next(loaded).frames, mesh), first, last)

    def statistics(state: TrainState) -> dict[str, Any]:
        value = latent_statistics(state.statistics)
        return {"mean": value.mean, "std": value.std}

    tx = make_optimizer(cfg.optim, cfg.run.steps)
    planned = plan(init, tx, mesh, cfg.run.seed, first_statistics(cfg.model.latent_channels))
    options = convolution.compiler_options()
    update = descend(loss, tx, cfg.optim, planned.layout)
    step = make_step(update, planned.layout, cfg.run.seed, options)
    return Stage(
        planned,
        step,
        batches=batches,
        work=lambda batch: Work(0, 0.0),
        validate=lambda state: Validation(),
        statistics=statistics,
    )
