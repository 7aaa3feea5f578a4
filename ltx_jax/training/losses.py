"""Terms of the training losses, each in float32 and each reduced to a scalar."""

from typing import Any, Literal, NamedTuple

import jax
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


@jax.custom_vjp
def attach_gradient(value: Float[Array, ""], gradient: Any, at: Any) -> Float[Array, ""]:
    """Returns `value`; when it is differentiated, its gradient with respect to `at` is `gradient`.

    It makes a loss out of a value and a gradient that are computed already.

    Args:
      value: the loss.
      gradient: gradient of the loss with respect to `at`, a tree of the same structure. Like
        `value`, it is a constant in the backward pass.
      at: the arrays to differentiate with respect to.
    """
    return value


def _attach_gradient_backward(gradient: Any, scale: Array) -> tuple[Array, Any, Any]:
    zeros = jax.tree.map(jnp.zeros_like, gradient)
    return jnp.zeros(()), zeros, jax.tree.map(lambda x: scale * x, gradient)


attach_gradient.defvjp(lambda value, gradient, at: (value, gradient), _attach_gradient_backward)


def haar_bands(
    video: Float[Array, "b t h w c"], levels: int = 1
) -> list[Float[Array, "b t2 h2 w2 c"]]:
    """The orthonormal 3-D Haar transform: the detail bands of all levels, then the last low band.

    Each level halves frames, rows and columns and yields eight bands. An odd number of frames is
    made even by repeating the first, as the causal encoder does; for a single frame, only rows and
    columns are halved, which yields four bands.

    Raises:
      ValueError: if rows or columns cannot be halved that many times.
    """
    height, width = video.shape[2:4]
    if height % 2**levels or width % 2**levels:
        raise ValueError(f"{height} x {width} pixels cannot be halved {levels} times (dwt_levels)")
    details, low = [], video
    for _ in range(levels):
        frames = low.shape[1]
        if frames > 1 and frames % 2:
            low = jnp.concatenate([low[:, :1], low], axis=1)
        low, *high = _halve([low], (1, 2, 3) if frames > 1 else (2, 3))
        details += high
    return [*details, low]


def _halve(bands: list[Array], axes: tuple[int, ...]) -> list[Array]:
    """Splits every band in two along each of the axes; the lowest band comes first."""
    for axis in axes:
        pairs = [
            (jax.lax.slice_in_dim(x, 0, None, 2, axis), jax.lax.slice_in_dim(x, 1, None, 2, axis))
            for x in bands
        ]
        bands = [(a + sign * b) * 0.5**0.5 for sign in (1, -1) for a, b in pairs]
    return bands


def dwt_loss(
    reconstruction: Float[Array, "b t h w c"], video: Float[Array, "b t h w c"], levels: int
) -> Float[Array, ""]:
    """Mean absolute error over all Haar coefficients ("video DWT loss", paper, section 2.1).

    With only pixel losses, fine detail gets blurred; this loss acts on each frequency band.
    """
    error = reconstruction.astype(jnp.float32) - video.astype(jnp.float32)
    bands = haar_bands(error, levels)  # the transform is linear
    total = jnp.sum(jnp.stack([jnp.sum(jnp.abs(band)) for band in bands]))
    return total / sum(band.size for band in bands)


def kl_loss(
    mean: Float[Array, "b t h w c"], logvar: Float[Array, "b t h w #c"]
) -> Float[Array, ""]:
    """KL divergence from a standard normal: summed over channels, averaged over voxels.

    A uniform log-variance (paper, section 2.1) may have a single channel, or be repeated over all
    channels; the result is the same.
    """
    mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
    per_channel = 0.5 * (mean * mean + jnp.exp(logvar) - 1 - logvar)
    return jnp.mean(jnp.sum(per_channel, axis=-1))


class GANLosses(NamedTuple):
    """The losses of generator and discriminator, and the discriminator's accuracy."""

    generator: Float[Array, ""]
    discriminator: Float[Array, ""]
    accuracy: Float[Array, ""]  # of the discriminator; 0.5 is chance


def pair_losses(first: Float[Array, "*b"], second: Float[Array, "*b"]) -> GANLosses:
    """Losses of the reconstruction GAN, whose discriminator compares pairs (paper, section 2.1).

    A logit stands for "the first clip of the pair is the original". `first` are the logits of pairs
    with the original first, `second` those of the same pairs in reverse order.
    """
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    return GANLosses(
        jnp.mean(jax.nn.softplus(first)) + jnp.mean(jax.nn.softplus(-second)),
        jnp.mean(jax.nn.softplus(-first)) + jnp.mean(jax.nn.softplus(second)),
        _accuracy(first, second),
    )


def hinge_losses(original: Float[Array, "*b"], reconstruction: Float[Array, "*b"]) -> GANLosses:
    """Hinge losses of the usual GAN: each logit rates a single clip as original or not."""
    original, reconstruction = (x.astype(jnp.float32) for x in (original, reconstruction))
    return GANLosses(
        -jnp.mean(reconstruction),
        jnp.mean(jax.nn.relu(1 - original)) + jnp.mean(jax.nn.relu(1 + reconstruction)),
        _accuracy(original, reconstruction),
    )


def _accuracy(yes: Array, no: Array) -> Array:
    return 0.5 * (jnp.mean(yes > 0) + jnp.mean(no < 0))


def velocity_loss(
    prediction: Float[Array, "b n c"],
    velocity: Float[Array, "b n c"],
    weight: Float[Array, "b n"],
) -> Float[Array, " b"]:
    """Mean squared error of each sample over its tokens; tokens of weight 0 are left out."""
    error = prediction.astype(jnp.float32) - velocity.astype(jnp.float32)
    per_token = jnp.mean(error * error, axis=-1)
    total = jnp.maximum(jnp.sum(weight, axis=-1), 1e-6)
    return jnp.sum(per_token * weight, axis=-1) / total
