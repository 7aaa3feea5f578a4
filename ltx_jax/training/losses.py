"""Terms of the training losses, each in float32 and each reduced to a scalar."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float


def pixel_loss(
    reconstruction: Float[Array, "b t h w c"],
    video: Float[Array, "b t h w c"],
    kind: Literal["l1", "mse"],
) -> Float[Array, ""]:
    """Mean absolute or mean squared error over all values."""
    error = reconstruction.astype(jnp.float32) - video.astype(jnp.float32)
    return jnp.mean(jnp.abs(error) if kind == "l1" else error * error)


def kl_loss(
    mean: Float[Array, "b t h w c"], logvar: Float[Array, "b t h w #c"]
) -> Float[Array, ""]:
    """KL divergence from a standard normal: summed over channels, averaged over voxels.

    A uniform log-variance may come with one channel or repeated on all; both mean the same, so the
    term pulls on all channels alike (paper, section 2.1).
    """
    mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
    per_channel = 0.5 * (mean * mean + jnp.exp(logvar) - 1 - logvar)
    return jnp.mean(jnp.sum(per_channel, axis=-1))


def velocity_loss(
    prediction: Float[Array, "b n c"],
    velocity: Float[Array, "b n c"],
    weight: Float[Array, "b n"],
) -> Float[Array, " b"]:
    """Mean squared error of each sample over its tokens; tokens of weight 0 do not count at all."""
    error = prediction.astype(jnp.float32) - velocity.astype(jnp.float32)
    per_token = jnp.mean(error * error, axis=-1)
    total = jnp.maximum(jnp.sum(weight, axis=-1), 1e-6)
    return jnp.sum(per_token * weight, axis=-1) / total


def psnr(mean_squared_error: Float[Array, ""]) -> Float[Array, ""]:
    """Peak signal-to-noise ratio in dB of values in [-1, 1]."""
    return 10 * jnp.log10(4.0 / jnp.maximum(mean_squared_error, 1e-12))
