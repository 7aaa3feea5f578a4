"""Multi-head attention behind one function.

`attention` is where a backend is chosen. The plain form below is right on every platform and for
every mask; forms for one kind of accelerator belong beside it, each with its own condition.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASK_BIAS = -10_000.0  # as in the released model; not -inf, so a fully masked row stays finite


def attention(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b m k e"],
    v: Float[Array, "b m k e"],
    *,
    mask: Bool[Array, "b m"] | Int[Array, "b m"] | Float[Array, "b m"] | None = None,
) -> Float[Array, "b n k e"]:
    """Softmax attention, scaled by e**-0.5, scores and softmax in float32.

    `mask` is 1 for the keys to attend to and 0 for the rest; None attends to all.
    """
    return _plain(q, k, v, None if mask is None else key_bias(mask))


def key_bias(
    mask: Bool[Array, "b m"] | Int[Array, "b m"] | Float[Array, "b m"],
) -> Float[Array, "b m"]:
    """What a mask adds to the scores of each key, in float32."""
    return (1.0 - mask.astype(jnp.float32)) * MASK_BIAS


def _plain(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b m k e"],
    v: Float[Array, "b m k e"],
    bias: Float[Array, "b m"] | None,
) -> Float[Array, "b n k e"]:
    # Heads first: XLA's CPU backend is several times slower when they sit between n and e.
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    scores = jnp.einsum("bkne,bkme->bknm", q, k, preferred_element_type=jnp.float32)
    scores *= q.shape[-1] ** -0.5
    if bias is not None:
        scores += bias[:, None, None, :]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bknm,bkme->bkne", weights, v, preferred_element_type=jnp.float32)
    return out.astype(q.dtype).swapaxes(1, 2)
