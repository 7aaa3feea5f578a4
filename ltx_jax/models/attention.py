"""Multi-head attention behind one function.

`attention` is where a form is chosen. The plain one is right on every platform and for every mask;
those for one kind of accelerator stand beside it, with their conditions in `attention`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ltx_jax.config import AttentionForm

MASK_BIAS = -10_000.0  # as in the released model; not -inf, so a fully masked row stays finite

Mask = Bool[Array, "b m"] | Int[Array, "b m"] | Float[Array, "b m"]


def attention(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b m k e"],
    v: Float[Array, "b m k e"],
    *,
    mask: Mask | None = None,
    form: AttentionForm = "plain",
) -> Float[Array, "b n k e"]:
    """Softmax attention, scaled by e**-0.5, scores and softmax in float32.

    Args:
      mask: 1 for the keys to attend to and 0 for the rest; None attends to all.
      form: "plain" takes any mask, and lowers masked scores by 10000, exactly. "cudnn" takes
        bfloat16 or float16, and masks whose ones (at least one) all come first. "auto" is "cudnn"
        for such types on NVIDIA GPUs and "plain" elsewhere.
    """
    if form == "auto":
        fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0
        form = "cudnn" if fits and jax.default_backend() == "gpu" else "plain"
    return _cudnn(q, k, v, mask) if form == "cudnn" else _plain(q, k, v, mask)


def _cudnn(q: Array, k: Array, v: Array, mask: Mask | None) -> Array:
    """The fused kernel, which never holds the scores; lengths take the place of a mask."""
    lengths = None if mask is None else mask.astype(jnp.int32).sum(-1)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def _plain(q: Array, k: Array, v: Array, mask: Mask | None) -> Array:
    bias = None if mask is None else (1 - mask.astype(jnp.float32)) * MASK_BIAS
    # Heads first: XLA's CPU matmuls are several times slower with heads between the other two.
    q, k, v = (x.transpose(2, 0, 1, 3) for x in (q, k, v))
    # On CPU, one head at a time takes half the time and holds the scores of one head alone. Not on
    # a mesh: the loop would undo a split over heads.
    one_device = jax.sharding.get_abstract_mesh().size <= 1  # 0 without a mesh
    large = q.shape[2] * k.shape[2] >= 128 * 128
    if jax.default_backend() == "cpu" and one_device and large:
        out = jax.lax.map(lambda head: _attend(*head, bias), (q, k, v))
    else:
        out = jax.vmap(_attend, (0, 0, 0, None))(q, k, v, bias)
    return out.transpose(1, 2, 0, 3)


@jax.checkpoint  # the gradient keeps q, k and v, not the scores
def _attend(
    q: Float[Array, "b n e"],
    k: Float[Array, "b m e"],
    v: Float[Array, "b m e"],
    bias: Float[Array, "b m"] | None,
) -> Float[Array, "b n e"]:
    """One head, the scores held in full."""
    scores = jnp.einsum("bne,bme->bnm", q, k, preferred_element_type=jnp.float32)
    scores *= q.shape[-1] ** -0.5
    if bias is not None:
        scores += bias[:, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bnm,bme->bne", weights, v, preferred_element_type=jnp.float32)
    return out.astype(q.dtype)
