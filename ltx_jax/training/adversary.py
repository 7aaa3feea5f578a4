"""The adversarial game of the first stage: what a look of the discriminator gives, and the update.

Both sides learn from the same forward pass of the autoencoder, in one step. Each gradient is taken
where the other side is a constant: the generator's flows through the reconstruction alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from ltx_jax.config import OptimConfig
from ltx_jax.training import losses
from ltx_jax.training.state import (
    GRADIENTS,
    Loss,
    TrainState,
    Update,
    advance,
    gradient_norms,
    settle,
    value_and_gradient,
)

Kind = Literal["pair", "single"]
_GAMES = {"pair": losses.pair_losses, "single": losses.hinge_losses}
# What is told of the game: no numbers before the discriminator begins.
FIGURES = ("gan", "gan_scale", "disc_loss", "disc_accuracy")


class Round(NamedTuple):
    """What one look of the discriminator gives."""

    losses: losses.GANLosses
    of_reconstruction: Any  # gradient of the generator's loss
    of_params: Any  # gradient of the discriminator's loss, by its parameters


def judge(
    apply: Callable[..., Any],
    params: Any,
    video: Float[Array, "b t h w c"],
    reconstruction: Float[Array, "b t h w c"],
    kind: Kind,
) -> tuple[Float[Array, "b t2 h2 w2"], Float[Array, "b t2 h2 w2"]]:
    """Logits of both orders of a pair, the original first and then second; or, of "single" clips,
    of the original and of the reconstruction."""
    both = (video, reconstruction)
    if kind == "pair":
        both = tuple(jnp.concatenate(pair, axis=-1) for pair in (both, both[::-1]))
    clips = jnp.stack(both, axis=1)  # the two of a sample lie side by side, on one device
    logits = apply({"params": params}, clips.reshape(-1, *clips.shape[2:]))
    first, second = jnp.unstack(logits.reshape(-1, 2, *logits.shape[1:]), axis=1)
    return first, second


def play(
    apply: Callable[..., Any],
    params: Any,
    video: Float[Array, "b t h w c"],
    reconstruction: Float[Array, "b t h w c"],
    kind: Kind,
) -> Round:
    """One look at originals and reconstructions, and what each side learns from it."""
    game = _GAMES[kind]
    logits, pull = jax.vjp(
        lambda params, y: judge(apply, params, video, y, kind), params, reconstruction
    )
    _, of_reconstruction = pull(jax.grad(lambda x: game(*x).generator)(logits))
    of_params, _ = pull(jax.grad(lambda x: game(*x).discriminator)(logits))
    return Round(game(*logits), of_reconstruction, of_params)


def play_if(
    active: Bool[Array, ""],
    apply: Callable[..., Any],
    params: Any,
    video: Float[Array, "b t h w c"],
    reconstruction: Float[Array, "b t h w c"],
    kind: Kind,
) -> Round:
    """`play`, or zeros at no cost."""

    def look() -> Round:
        return play(apply, params, video, reconstruction, kind)

    def rest() -> Round:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(look))

    return jax.lax.cond(active, look, rest)


def adaptive_scale(of_rest: Any, of_gan: Any) -> Float[Array, ""]:
    """VQGAN's weight of the adversarial term: the norm of the other terms' gradient at the
    decoder's last layer over that of its own, here at most 1 (Esser et al., arXiv 2012.09841)."""
    own = jnp.maximum(optax.tree.norm(of_gan), 1e-12)
    return jnp.minimum(optax.tree.norm(of_rest) / own, 1.0)


def compete(
    loss: Loss,
    tx: optax.GradientTransformation,
    disc_tx: optax.GradientTransformation,
    cfg: OptimConfig,
    start: int,
    layout: TrainState,
) -> Update:
    """The update of a generator and its discriminator, each by its own optimiser.

    A step is rejected as a whole where either side's loss or gradient is not finite.

    Args:
      loss: of the generator. In place of new statistics it gives a pair: those, and the
        discriminator's loss and gradient.
      tx: the generator's optimiser, made from `cfg`.
      disc_tx: the discriminator's.
      cfg: as `descend` needs it.
      start: updates before the discriminator begins to learn.
      layout: of the state.
    """

    def update(state: TrainState, batch: Any, key: Array) -> tuple[TrainState, dict[str, Any]]:
        (value, (metrics, found)), grads = value_and_gradient(
            loss, state.params, state, batch, key, cfg, layout.params
        )
        statistics, (disc_value, disc_grads) = found
        disc_grads = jax.lax.with_sharding_constraint(disc_grads, layout.adversary["params"])

        def learn(adversary: dict[str, Any]) -> dict[str, Any]:
            updates, opt_state = disc_tx.update(
                disc_grads, adversary["opt_state"], adversary["params"]
            )
            params = optax.apply_updates(adversary["params"], updates)
            return {"params": params, "opt_state": opt_state}

        active = state.updates >= start
        adversary = jax.lax.cond(active, learn, lambda adversary: adversary, state.adversary)
        norms, disc_norms = gradient_norms(grads), gradient_norms({"discriminator": disc_grads})
        finite = [value, disc_value, norms["grad_norm"], disc_norms["grad_norm"]]
        new = advance(state, grads, tx, cfg.ema_decay, statistics)
        new = dataclasses.replace(new, adversary=adversary)
        new = settle(state, new, jnp.isfinite(jnp.stack(finite)).all())
        norms["grad_norm/discriminator"] = jnp.where(active, disc_norms["grad_norm"], jnp.nan)
        norms[GRADIENTS] |= disc_norms[GRADIENTS]
        return new, {"loss": value, **metrics, **norms}

    return update
