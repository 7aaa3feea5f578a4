"""What perceptual distances share: features of unit length, and means over frames."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Pictures = Float[Array, "b h w 3"]


def unit_length(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Scales each vector of channels to unit length; zero stays zero, with a zero gradient."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / (jnp.sqrt(jnp.maximum(square, 1e-20)) + 1e-10)


def mean_over_frames(
    distances: Callable[[Pictures, Pictures], Float[Array, " b"]],
    reconstruction: Float[Array, "b t h w 3"],
    video: Float[Array, "b t h w 3"],
) -> Float[Array, ""]:
    """The mean over samples and frames of a distance between pictures.

    Frames are processed one after the other, and recomputed for the gradient: their stored features
    would need more memory than the autoencoder.
    """

    @jax.checkpoint
    def frame_distance(pair: tuple[Array, Array]) -> Array:
        return jnp.mean(distances(*pair))

    frames = (jnp.swapaxes(reconstruction, 0, 1), jnp.swapaxes(video, 0, 1))
    return jnp.mean(jax.lax.map(frame_distance, frames))
