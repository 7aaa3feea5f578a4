"""The loss of the first stage: one pass through the Video-VAE, and the terms of its loss.

The decoder does the last denoising step (paper, section 2.2): its inputs are noised latents and
their noise level, its target is the clean pixels. Every term has a weight; terms of weight 0 are
not computed.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltx_jax.config import VAELossConfig
from ltx_jax.diffusion.flow import add_noise
from ltx_jax.metrics import psnr
from ltx_jax.models.efficientnet import feature_distance
from ltx_jax.models.lpips import lpips_of_frames
from ltx_jax.models.vae import LatentStatistics, Noise, Posterior, key_noise
from ltx_jax.pixels import from_bytes
from ltx_jax.training import losses
from ltx_jax.training.optim import ema_decay
from ltx_jax.training.stage import LossValue
from ltx_jax.training.state import TrainState
from ltx_jax.training.vae import gan

# A latent channel counts as dead if its deviation is below this fraction of the largest one.
_DEAD = 0.05


def first_statistics(channels: int) -> dict[str, Any]:
    """Running first and second moments of the latents, before any batch."""
    return {"mean": jnp.zeros(channels), "square": jnp.ones(channels)}


def update_statistics(
    running: dict[str, Any], mean: Float[Array, "b t h w c"], updates: Any, decay: float
) -> dict[str, Any]:
    """Updates the running moments with a batch of posterior means; the decay warms up like the
    parameter average's. A decay of 1 leaves them as they are."""
    if decay == 1:
        return running
    keep = ema_decay(updates, decay)
    axes = tuple(range(mean.ndim - 1))
    batch = {"mean": jnp.mean(mean, axes), "square": jnp.mean(mean * mean, axes)}
    return jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, running, batch)


def running_statistics(statistics: LatentStatistics) -> dict[str, Any]:
    """The inverse of `latent_statistics`."""
    mean, std = (jnp.asarray(x) for x in (statistics.mean, statistics.std))
    return {"mean": mean, "square": std**2 + mean**2}


def latent_statistics(running: dict[str, Any]) -> LatentStatistics:
    """Mean and standard deviation of each channel, from the running moments."""
    variance = running["square"] - running["mean"] ** 2
    return LatentStatistics(running["mean"], jnp.sqrt(jnp.maximum(variance, 1e-8)))


def decode_times(key: Array, batch: int, cfg: VAELossConfig) -> Float[Array, " b"]:
    """Draws noise levels of the latents: 0 for the clean fraction, else uniform."""
    t, choice = jax.random.uniform(key, (2, batch))
    return jnp.where(choice < cfg.clean_fraction, 0.0, t * cfg.max_decode_time)


def kl_weight(updates: Any, cfg: VAELossConfig) -> Float[Array, ""]:
    """Weight of the KL term after this many updates."""
    ramp = (updates - cfg.kl_start + 1) / max(cfg.kl_warmup, 1)
    return cfg.kl_weight * jnp.clip(ramp, 0.0, 1.0)


class DecoderInputs(NamedTuple):
    """A batch of noised latents, as the decoder receives them.

    Attributes:
      latents: unnormalised latents with noise (b, t, h, w, c).
      times: their noise levels (b,).
      map_keys: random keys of the noise maps inside the decoder, one per sample.
    """

    latents: Any
    times: Any
    map_keys: Any

    def maps(self) -> Noise:
        """The noise maps inside the decoder."""
        return key_noise(self.map_keys)


def decoder_inputs(
    posterior: Posterior, statistics: LatentStatistics, key: Array, cfg: VAELossConfig
) -> DecoderInputs:
    """Draws latents and adds noise to them, normalised, as the sampler does."""
    time_key, noise_key, map_key = jax.random.split(key, 3)
    # One draw instead of two, as each draw takes seconds to compile.
    sampling, noise = jax.random.normal(noise_key, (2, *posterior.mean.shape))
    batch = posterior.mean.shape[0]
    z = statistics.normalize(posterior.sample(sampling))
    t = decode_times(time_key, batch, cfg)
    z = statistics.denormalize(add_noise(z, noise, t))
    return DecoderInputs(z, t, jax.random.split(map_key, batch))


def decode_with_pull(
    decode: Callable[[Any, DecoderInputs], Any], params: Any, inputs: DecoderInputs
) -> tuple[Any, Callable[[Array], Any], Any]:
    """Decodes with `decode`, which returns the pixels and something else.

    Returns:
      The pixels; a function from a gradient with respect to them to one with respect to the kernel
      and bias of the decoder's last layer; and what `decode` returned besides.
    """

    decoder = params["decoder"]

    def of_last(last: Any) -> Any:
        conv_out = {**decoder["conv_out"], **last}
        return decode({**params, "decoder": {**decoder, "conv_out": conv_out}}, inputs)

    last = {name: x for name, x in decoder["conv_out"].items() if name != "adapter"}
    video, pull, other = jax.vjp(of_last, last, has_aux=True)
    return video, lambda gradient: pull(gradient)[0], other


class Autoencoded(NamedTuple):
    """One pass through encoder and decoder.

    Attributes:
      reconstruction: the decoder's output for noised latents.
      pull: maps a gradient with respect to the reconstruction to one with respect to the kernel and
        bias of the decoder's last layer.
      posterior: the posterior of the latents.
      running: the new running statistics.
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
) -> Autoencoded:
    """Encodes, adds noise to the normalised latents as the sampler does, and decodes."""
    posterior = apply({"params": params}, video, method="encode")
    mean = jax.lax.stop_gradient(posterior.mean)
    running = update_statistics(running, mean, updates, cfg.statistics_decay)
    inputs = decoder_inputs(posterior, latent_statistics(running), key, cfg)

    def decode(params: Any, inputs: DecoderInputs) -> tuple[Array, None]:
        arguments = inputs.latents, inputs.times, inputs.maps()
        return apply({"params": params}, *arguments, method="decode"), None

    reconstruction, pull, _ = decode_with_pull(decode, params, inputs)
    return Autoencoded(reconstruction, pull, posterior, running)


def reconstruction_loss(
    reconstruction: Float[Array, "b t h w 3"],
    video: Float[Array, "b t h w 3"],
    frozen: Mapping[str, Any],
    cfg: VAELossConfig,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The weighted sum of the terms that compare pixels, and each term as a metric.

    LPIPS is computed if its weights are in `frozen`. If the term of EfficientNet is on, its weights
    must be there.
    """
    terms: dict[str, tuple[float, Callable[[], Array]]] = {
        "pixel": (cfg.pixel_weight, lambda: losses.pixel_loss(reconstruction, video, cfg.pixel)),
        "mse": (cfg.mse_weight, lambda: losses.pixel_loss(reconstruction, video, "mse")),
        "dwt": (cfg.dwt_weight, lambda: losses.dwt_loss(reconstruction, video, cfg.dwt_levels)),
        "efficientnet": (
            cfg.efficientnet_weight,
            lambda: feature_distance(frozen["efficientnet"], reconstruction, video),
        ),
        "lpips": (
            cfg.lpips_weight if "lpips" in frozen else 0.0,
            lambda: lpips_of_frames(frozen["lpips"], reconstruction, video),
        ),
    }
    values = {name: term() for name, (weight, term) in terms.items() if weight}
    total = sum((terms[name][0] * x for name, x in values.items()), start=jnp.zeros(()))
    return total, values


class Networks(NamedTuple):
    """`apply` of the autoencoder, and of the discriminator if the loss has one."""

    vae: Callable[..., Any]
    discriminator: Callable[..., Any] | None = None


def vae_loss(
    networks: Networks,
    params: Any,
    state: TrainState,
    batch: dict[str, Any],
    frozen: Mapping[str, Any],
    key: Array,
    cfg: VAELossConfig,
    disc_start: int = 0,
) -> LossValue:
    """The loss of a batch.

    The terms are first differentiated with respect to the reconstruction, because the adaptive
    weight of the adversarial term needs these gradients; the gradients of the autoencoder are then
    computed from them.

    Args:
      networks: the networks to apply.
      params: "encoder" and "decoder", and "discriminator" if there is one. Parameters that are not
        trained are constants.
      state: the training state, for its running statistics and its count of updates.
      batch: `frames`, uint8 (b, t, h, w, 3).
      frozen: weights of the frozen networks, `efficientnet` and `lpips`, whose terms are on.
      key: random key of this step.
      cfg: weights of the terms.
      disc_start: number of updates before the discriminator begins.
    """
    video = from_bytes(batch["frames"])
    coded = autoencode(networks.vae, params, state.statistics, state.updates, video, key, cfg)
    reconstruction = jax.lax.stop_gradient(coded.reconstruction)

    # The terms that compare pixels.
    compare = jax.value_and_grad(reconstruction_loss, has_aux=True)
    (value, metrics), of_rest = compare(reconstruction, video, frozen, cfg)
    total = losses.attach_gradient(value, of_rest, coded.reconstruction)

    # The KL term, and metrics of the latents.
    if cfg.kl_weight:
        metrics["kl"] = losses.kl_loss(coded.posterior.mean, coded.posterior.logvar)
        total += kl_weight(state.updates, cfg) * metrics["kl"]
    std = latent_statistics(coded.running).std
    metrics |= {
        "psnr": jnp.mean(psnr(reconstruction, video)),
        "latent_std_min": jnp.min(std),
        "latent_std_max": jnp.max(std),
        "dead_channels": jnp.sum(std < _DEAD * jnp.max(std)),
    }
    if networks.discriminator is None:
        return LossValue(total, metrics, coded.running)

    term, values, own = adversarial_term(
        networks.discriminator,
        params["discriminator"],
        (video, coded.reconstruction),
        of_rest,
        coded.pull,
        cfg,
        state.updates >= disc_start,
    )
    return LossValue(total + term, metrics | values, coded.running, {"discriminator": own})


def adversarial_term(
    discriminator: Callable[..., Any],
    params: Any,
    pair: tuple[Float[Array, "b t h w 3"], Float[Array, "b t h w 3"]],
    of_rest: Any,
    pull: Callable[[Array], Any],
    cfg: VAELossConfig,
    active: Any,
) -> tuple[Float[Array, ""], dict[str, Array], Float[Array, ""]]:
    """The adversarial term of the decoder's loss, its metrics, and the discriminator's own loss.

    One pass gives the gradients of both autoencoder and discriminator.

    Args:
      discriminator: `apply` of the discriminator.
      params: its parameters.
      pair: the clips, and their reconstructions.
      of_rest: the gradient of all other terms with respect to the reconstructions.
      pull: as in `Autoencoded`.
      cfg: weights of the terms.
      active: whether the discriminator has begun.
    """
    video, reconstruction = pair
    weights = jax.lax.stop_gradient(params)
    still = jax.lax.stop_gradient(reconstruction)
    both = gan.gan_gradients_if(active, discriminator, weights, video, still, cfg.gan)
    scale = jnp.ones(())
    if cfg.gan_adaptive:
        at_last_layer = (pull(x) for x in (of_rest, both.of_reconstruction))
        scale = jax.lax.stop_gradient(gan.adaptive_scale(*at_last_layer))
    generator, discriminating, accuracy = both.losses
    term = losses.attach_gradient(generator, both.of_reconstruction, reconstruction)
    values = zip(gan.METRICS, (generator, scale, discriminating, accuracy), strict=True)
    metrics = {name: jnp.where(active, x, jnp.nan) for name, x in values}
    own = losses.attach_gradient(discriminating, both.of_params, params)
    return cfg.gan_weight * scale * term, metrics, own
