"""The loss of a smaller decoder on the latents of a frozen encoder.

The terms of the VAE's loss compare the small decoder's pixels with the clip. Two more terms compare
it with the large decoder, on the same noised latents: their pixels, and their features in the first
blocks, those of the small one projected to the width of the large one.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltx_jax.config import DecoderMatchingConfig, VAELossConfig
from ltx_jax.metrics import psnr
from ltx_jax.models.vae_taps import Decoded
from ltx_jax.pixels import from_bytes
from ltx_jax.training import losses
from ltx_jax.training.stage import LossValue
from ltx_jax.training.state import TrainState
from ltx_jax.training.vae.loss import (
    DecoderInputs,
    adversarial_term,
    decode_with_pull,
    decoder_inputs,
    latent_statistics,
    reconstruction_loss,
)


class DecoderNetworks(NamedTuple):
    """The networks of the loss.

    Attributes:
      encode: (parameters, clip) -> posterior.
      decode: (parameters, inputs) -> pixels and features of the small decoder.
      decode_large: the same of the large one.
      discriminator: `apply` of the discriminator, if there is one.
    """

    encode: Callable[[Any, Array], Any]
    decode: Callable[[Any, DecoderInputs], Decoded]
    decode_large: Callable[[Any, DecoderInputs], Decoded]
    discriminator: Callable[..., Any] | None = None


def feature_loss(
    projections: Mapping[str, Float[Array, "k c"]],
    features: Mapping[str, Float[Array, "b t h w k"]],
    targets: Mapping[str, Float[Array, "b t h w c"]],
) -> Float[Array, ""]:
    """Mean over blocks of the squared error of projected features, relative to the mean square of
    the target."""
    errors = []
    for name, matrix in projections.items():
        target = targets[name].astype(jnp.float32)
        error = features[name].astype(jnp.float32) @ matrix - target
        errors.append(jnp.mean(error * error) / jnp.mean(target * target))
    return jnp.mean(jnp.stack(errors))


def decoder_loss(
    networks: DecoderNetworks,
    params: Any,
    state: TrainState,
    batch: dict[str, Any],
    frozen: Mapping[str, Any],
    key: Array,
    cfg: VAELossConfig,
    matching: DecoderMatchingConfig,
    disc_start: int = 0,
) -> LossValue:
    """The loss of a batch.

    Args:
      networks: the networks to apply.
      params: "encoder" and "decoder"; "projection" if features are compared; "discriminator" if
        there is one.
      state: the training state, for the statistics of the latents and its count of updates.
      batch: `frames`, uint8 (b, t, h, w, 3).
      frozen: as in `vae_loss`, and the large decoder's parameters, `large`.
      key: random key of this step.
      cfg: weights of the terms.
      matching: weights of the terms that compare with the large decoder.
      disc_start: number of updates before the discriminator begins.
    """
    video = from_bytes(batch["frames"])
    posterior = jax.lax.stop_gradient(networks.encode(params, video))
    inputs = decoder_inputs(posterior, latent_statistics(state.statistics), key, cfg)
    large = jax.lax.stop_gradient(networks.decode_large(frozen["large"], inputs))
    decoded, pull, features = decode_with_pull(networks.decode, params, inputs)
    reconstruction = jax.lax.stop_gradient(decoded)

    def compare(reconstruction: Array) -> tuple[Array, dict[str, Array]]:
        value, metrics = reconstruction_loss(reconstruction, video, frozen, cfg)
        if matching.output_weight:
            metrics["to_large"] = losses.pixel_loss(reconstruction, large.video, "l1")
            value += matching.output_weight * metrics["to_large"]
        return value, metrics

    (value, metrics), of_rest = jax.value_and_grad(compare, has_aux=True)(reconstruction)
    total = losses.attach_gradient(value, of_rest, decoded)
    others = {}
    if "projection" in params:
        still = jax.lax.stop_gradient((params["projection"], features))
        metrics["features"] = feature_loss(still[0], features, large.features)
        total += matching.feature_weight * metrics["features"]
        others["projection"] = feature_loss(params["projection"], still[1], large.features)
    metrics["psnr"] = jnp.mean(psnr(reconstruction, video))
    if networks.discriminator is not None:
        term, values, others["discriminator"] = adversarial_term(
            networks.discriminator,
            params["discriminator"],
            (video, decoded),
            of_rest,
            pull,
            cfg,
            state.updates >= disc_start,
        )
        total, metrics = total + term, metrics | values
    return LossValue(total, metrics, state.statistics, others)
