"""The adversarial term of the Video-VAE's loss: one pass of the discriminator, two gradients.

Autoencoder and discriminator learn from the same reconstruction in the same step. In the gradient
of each, the other is a constant; the autoencoder's gradient flows through the reconstruction only.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from ltx_jax.training import losses

GANKind = Literal["pair", "single"]
_LOSSES = {"pair": losses.pair_losses, "single": losses.hinge_losses}
# Metrics of the term; NaN before the discriminator begins.
METRICS = ("gan", "gan_scale", "disc_loss", "disc_accuracy")


class GANGradients(NamedTuple):
    """The losses of both sides for one batch, and their gradients."""

    losses: losses.GANLosses
    of_reconstruction: Any  # of the generator's loss, with respect to the reconstruction
    of_params: Any  # of the discriminator's loss, with respect to its parameters


def discriminate(
    apply: Callable[..., Any],
    params: Any,
    video: Float[Array, "b t h w c"],
    reconstruction: Float[Array, "b t h w c"],
    kind: GANKind,
) -> tuple[Float[Array, "b t2 h2 w2"], Float[Array, "b t2 h2 w2"]]:
    """Applies the discriminator. With "pair", returns the logits of pairs with the original first,
    and of pairs with it second; with "single", those of originals and of reconstructions."""
    both = (video, reconstruction)
    if kind == "pair":
        both = tuple(jnp.concatenate(pair, axis=-1) for pair in (both, both[::-1]))
    # Interleaved, so that both inputs of a sample stay on its device.
    clips = jnp.stack(both, axis=1)
    logits = apply({"params": params}, clips.reshape(-1, *clips.shape[2:]))
    first, second = jnp.unstack(logits.reshape(-1, 2, *logits.shape[1:]), axis=1)
    return first, second


def gan_gradients(
    apply: Callable[..., Any],
    params: Any,
    video: Float[Array, "b t h w c"],
    reconstruction: Float[Array, "b t h w c"],
    kind: GANKind,
) -> GANGradients:
    """One pass of the discriminator over originals and reconstructions, with two gradients."""
    both_losses = _LOSSES[kind]
    logits, pull = jax.vjp(
        lambda params, y: discriminate(apply, params, video, y, kind), params, reconstruction
    )
    _, of_reconstruction = pull(jax.grad(lambda x: both_losses(*x).generator)(logits))
    of_params, _ = pull(jax.grad(lambda x: both_losses(*x).discriminator)(logits))
    return GANGradients(both_losses(*logits), of_reconstruction, of_params)


def gan_gradients_if(
    active: Bool[Array, ""],
    apply: Callable[..., Any],
    params: Any,
    video: Float[Array, "b t h w c"],
    reconstruction: Float[Array, "b t h w c"],
    kind: GANKind,
) -> GANGradients:
    """Computes `gan_gradients` if `active`; otherwise returns zeros without computing anything."""

    def compute() -> GANGradients:
        return gan_gradients(apply, params, video, reconstruction, kind)

    def rest() -> GANGradients:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute))

    return jax.lax.cond(active, compute, rest)


def adaptive_scale(of_rest: Any, of_gan: Any) -> Float[Array, ""]:
    """VQGAN's weight of the adversarial term, but at most 1: the gradient norm of the other terms
    at the decoder's last layer, divided by the adversarial term's (Esser et al., arXiv 2012.09841).
    """
    own = jnp.maximum(optax.tree.norm(of_gan), 1e-12)
    return jnp.minimum(optax.tree.norm(of_rest) / own, 1.0)
