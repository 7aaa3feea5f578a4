"""What is done to whole latents between denoising and decoding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def decoder_noise(
    latents: Float[Array, "b t h w c"], noise: Float[Array, "b t h w c"], level: Float[Array, "b"]
) -> Float[Array, "b t h w c"]:
    """Noises latents for a decoder that does the last denoising step; normalised latents."""
    level = level.reshape(-1, 1, 1, 1, 1)
    return latents * (1 - level) + noise * level


def tone_map(
    latents: Float[Array, "b t h w c"], ratio: float | Float[Array, ""]
) -> Float[Array, "b t h w c"]:
    """Compresses large values of normalised latents; ratio 0 is nothing and 1 the most."""
    strength = 0.75 * ratio
    compressed = jax.nn.sigmoid(4 * strength * (jnp.abs(latents) - 1))
    return latents * (1 - 0.8 * strength * compressed)


def adain(
    latents: Float[Array, "b t h w c"],
    reference: Float[Array, "b t2 h2 w2 c"],
    factor: float = 1.0,
) -> Float[Array, "b t h w c"]:
    """Gives every channel of every sample the mean and deviation it has in the reference.

    A factor between 0 and 1 mixes with what came in.
    """
    axes = (1, 2, 3)

    def moments(x: Array) -> tuple[Array, Array]:
        deviation = jnp.std(x, axes, ddof=1, keepdims=True)
        return jnp.mean(x, axes, keepdims=True), deviation

    mean, deviation = moments(latents)
    target_mean, target_deviation = moments(reference)
    changed = (latents - mean) / deviation * target_deviation + target_mean
    return latents + factor * (changed - latents)
