"""Operations on the denoised latents before they are decoded."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def decoder_noise(
    latents: Float[Array, "b t h w c"], noise: Float[Array, "b t h w c"], level: Float[Array, "b"]
) -> Float[Array, "b t h w c"]:
    """Adds noise to normalised latents, for a decoder that does the last denoising step."""
    level = level.reshape(-1, 1, 1, 1, 1)
    return latents * (1 - level) + noise * level


def tone_map(
    latents: Float[Array, "b t h w c"], ratio: float | Float[Array, ""]
) -> Float[Array, "b t h w c"]:
    """Compresses large values of normalised latents; a ratio of 0 has no effect, 1 the largest."""
    strength = 0.75 * ratio
    compressed = jax.nn.sigmoid(4 * strength * (jnp.abs(latents) - 1))
    return latents * (1 - 0.8 * strength * compressed)


def adain(
    latents: Float[Array, "b t h w c"],
    reference: Float[Array, "b t2 h2 w2 c"],
    factor: float = 1.0,
) -> Float[Array, "b t h w c"]:
    """Shifts and scales each channel of each sample to the mean and deviation of the reference.

    `factor` interpolates between the input (0) and the result (1).
    """
    axes = (1, 2, 3)

    def moments(x: Array) -> tuple[Array, Array]:
        deviation = jnp.std(x, axes, ddof=1, keepdims=True)
        return jnp.mean(x, axes, keepdims=True), deviation

    mean, deviation = moments(latents)
    target_mean, target_deviation = moments(reference)
    changed = (latents - mean) / deviation * target_deviation + target_mean
    return latents + factor * (changed - latents)
