"""The loss of the first stage: one pass through the Video-VAE, and all that is asked of it.

The decoder does the last denoising step (paper, section 2.2): the latents are noised to a level it
is told, and it must give the clean pixels. Every term has a weight, and one whose weight is 0 is no
part of the program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ltx_jax import metrics
from ltx_jax.config import VAELossConfig
from ltx_jax.diffusion.flow import add_noise
from ltx_jax.models.lpips import lpips_of_frames
from ltx_jax.models.vae import LatentStatistics, Posterior, key_noise
from ltx_jax.training import adversary, losses
from ltx_jax.training.optim import ema_decay
from ltx_jax.training.state import TrainState

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


def kl_weight(updates: Any, cfg: VAELossConfig) -> Float[Array, ""]:
    """Weight of the KL term after `updates` earlier ones."""
    ramp = (updates - cfg.kl_start + 1) / max(cfg.kl_warmup, 1)
    return cfg.kl_weight * jnp.clip(ramp, 0.0, 1.0)


class Pass(NamedTuple):
    """One way through encoder and decoder.

    Attributes:
      reconstruction: the decoder's answer to noised latents.
      pull: gradient of the reconstruction -> gradient of the decoder's last layer.
      posterior: of the latents.
      running: new statistics.
    """

    reconstruction: Float[Array, "b t h w 3"]
    pull: Callable[[Array], Any]
    posterior: Posterior
    running: dict[str, Any]


def autoencode(
    apply: Callable[..., Any],
    params: Any,
    running: dict[str, Any],
    updates: Any,
    video: Float[Array, "b t h w 3"],
    key: Array,
    cfg: VAELossConfig,
) -> Pass:
    """Encodes, noises in normalised space as the sampler does, and decodes."""
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

    def decode(last: Any) -> Array:
        weights = {**params, "decoder": {**params["decoder"], "conv_out": last}}
        return apply({"params": weights}, z, t, maps, method="decode")

    reconstruction, pull = jax.vjp(decode, params["decoder"]["conv_out"])
    return Pass(reconstruction, lambda gradient: pull(gradient)[0], posterior, running)


def reconstruction_loss(
    reconstruction: Float[Array, "b t h w 3"],
    video: Float[Array, "b t h w 3"],
    lpips: Any,
    cfg: VAELossConfig,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Weighted sum of the terms that compare pixels, and each of them; `lpips`: its weights."""
    terms: dict[str, tuple[float, Callable[[], Array]]] = {
        "pixel": (cfg.pixel_weight, lambda: losses.pixel_loss(reconstruction, video, cfg.pixel)),
        "mse": (cfg.mse_weight, lambda: losses.pixel_loss(reconstruction, video, "mse")),
        "dwt": (cfg.dwt_weight, lambda: losses.dwt_loss(reconstruction, video, cfg.dwt_levels)),
        "lpips": (
            cfg.lpips_weight if lpips is not None else 0.0,
            lambda: lpips_of_frames(lpips, reconstruction, video),
        ),
    }
    values = {name: term() for name, (weight, term) in terms.items() if weight}
    total = sum((terms[name][0] * x for name, x in values.items()), start=jnp.zeros(()))
    return total, values


@jax.custom_vjp
def _with_gradient(value: Array, gradient: Array, at: Array) -> Array:
    """`value`, whose gradient with respect to `at` is known."""
    return value


_with_gradient.defvjp(
    lambda value, gradient, at: (value, gradient),
    lambda gradient, scale: (jnp.zeros(()), jnp.zeros_like(gradient), scale * gradient),
)


class Networks(NamedTuple):
    """`apply` of the autoencoder, and of the discriminator if the loss has one."""

    vae: Callable[..., Any]
    discriminator: Callable[..., Any] | None = None


def vae_loss(
    networks: Networks,
    params: Any,
    state: TrainState,
    batch: dict[str, Any],
    key: Array,
    cfg: VAELossConfig,
    disc_start: int = 0,
) -> tuple[Float[Array, ""], tuple[dict[str, Array], Any]]:
    """The loss of a batch, then metrics and new statistics.

    With a discriminator the statistics come with its loss and gradient, as
    `adversary.compete` wants them.

    Args:
      networks: what to run.
      params: of the autoencoder.
      state: the rest of what the loss depends on.
      batch: `frames`, and `lpips`: shared weights, where they are given.
      key: of this step.
      cfg: weights of the terms.
      disc_start: updates before the discriminator begins.
    """
    video = to_float(batch["frames"])
    done = autoencode(networks.vae, params, state.statistics, state.updates, video, key, cfg)
    reconstruction = jax.lax.stop_gradient(done.reconstruction)
    lpips = batch["lpips"].value if "lpips" in batch else None
    compare = jax.value_and_grad(reconstruction_loss, has_aux=True)
    (value, shown), of_rest = compare(reconstruction, video, lpips, cfg)
    total = _with_gradient(value, of_rest, done.reconstruction)
    if cfg.kl_weight:
        shown["kl"] = losses.kl_loss(done.posterior.mean, done.posterior.logvar)
        total += kl_weight(state.updates, cfg) * shown["kl"]
    std = latent_statistics(done.running).std
    shown |= {
        "psnr": jnp.mean(metrics.psnr(reconstruction, video)),
        "latent_std_min": jnp.min(std),
        "latent_std_max": jnp.max(std),
        "dead_channels": jnp.sum(std < _DEAD * jnp.max(std)),
    }
    if networks.discriminator is None:
        return total, (shown, done.running)

    active = state.updates >= disc_start
    weights = jax.lax.stop_gradient(state.adversary["params"])
    look = adversary.play_if(
        active, networks.discriminator, weights, video, reconstruction, cfg.gan
    )
    scale = jnp.ones(())
    if cfg.gan_adaptive:
        pulled = (done.pull(x) for x in (of_rest, look.of_reconstruction))
        scale = jax.lax.stop_gradient(adversary.adaptive_scale(*pulled))
    term = _with_gradient(look.losses.generator, look.of_reconstruction, done.reconstruction)
    total += cfg.gan_weight * scale * term
    game = (look.losses.generator, scale, look.losses.discriminator, look.losses.accuracy)
    told = zip(adversary.FIGURES, game, strict=True)
    shown |= {name: jnp.where(active, x, jnp.nan) for name, x in told}
    return total, (shown, (done.running, (look.losses.discriminator, look.of_params)))
