"""Multi-head attention behind one function.

`attention` is where a form is chosen. The plain one is right on every platform and for every mask;
those for one kind of accelerator stand beside it, with their conditions in `attention`.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from ltx_jax.config import AttentionForm
from ltx_jax.models.layers import transposed
from ltx_jax.runtime import sharding
from ltx_jax.runtime.platforms import platform

MASK_BIAS = -10_000.0  # as in the released model; not -inf, so a fully masked row stays finite

_SPLASH = "jax.experimental.pallas.ops.tpu.splash_attention"
_LANES = 128  # of a TPU's vector registers: blocks are multiples
_BLOCK = 512  # tokens, at most
_GRADIENT_BLOCKS = 5  # of keys at once, at most

Mask = Bool[Array, "b m"] | Int[Array, "b m"] | Float[Array, "b m"]


def attention(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b m k e"],
    v: Float[Array, "b m k e"],
    *,
    mask: Mask | None = None,
    form: AttentionForm = "plain",
    of_itself: bool = False,
) -> Float[Array, "b n k e"]:
    """Softmax attention, scaled by e**-0.5, scores and softmax in float32.

    Args:
      q: queries; on a mesh, split over its axes by batch, tokens and heads.
      k: keys; on a mesh, whole on every device that holds queries of their sample and head.
      v: values, laid out as the keys.
      mask: 1 for the keys to attend to and 0 for the rest; None attends to all.
      form: "plain" takes any mask, and lowers masked scores by 10000, exactly. "cudnn" takes
        bfloat16 or float16, and masks whose ones (at least one) all come first. "splash", for
        TPUs, takes masks with at least one 1. "auto" is "cudnn" for such types on GPUs, "splash" on
        TPUs, and "plain" elsewhere.
      of_itself: the keys are of the tokens of the queries, and split as these: while attending,
        the devices of the `seq` axis split the heads in place of the tokens (Ulysses, Jacobs et
        al., arXiv 2309.14509).

    Raises:
      ValueError: if the devices of `seq` and `tensor` cannot split the heads for that.
    """
    if form == "auto":
        half = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0
        fused: dict[str, AttentionForm] = {"gpu": "cudnn" if half else "plain", "tpu": "splash"}
        form = fused.get(platform(), "plain")
    attend = {"cudnn": _cudnn, "splash": _splash, "plain": _plain}[form]
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:  # 0 without a mesh
        return attend(q, k, v, mask)

    def layout(x: Array, tokens: str | None) -> P:
        axes = ("batch", tokens, "act_heads", None)[: x.ndim]
        return sharding.spec(sharding.fit(x.shape, axes, mesh))

    queries, keys = layout(q, "token"), layout(k, "token" if of_itself else None)
    swap = of_itself and queries[1] is not None and mesh.shape["seq"] > 1
    if swap:
        sharding.check_heads(q.shape[2], mesh)
    masks = None if mask is None else layout(mask, None)
    return jax.shard_map(
        functools.partial(_swapped, attend) if swap else attend,
        in_specs=(queries, keys, keys, masks),
        out_specs=queries,
        check_vma=form != "splash",  # a Pallas kernel does not say over what its output varies
    )(q, k, v, mask)


def _swapped(attend: Callable[..., Array], q: Array, k: Array, v: Array, mask: Any) -> Array:
    """On each device of `seq`: its part of the heads with all tokens, for its tokens back."""
    move = functools.partial(jax.lax.all_to_all, axis_name="seq", tiled=True)
    q, k, v = (move(x, split_axis=2, concat_axis=1) for x in (q, k, v))
    return move(attend(q, k, v, mask), split_axis=1, concat_axis=2)


def _cudnn(q: Array, k: Array, v: Array, mask: Mask | None) -> Array:
    """The fused kernel, which never holds the scores; lengths take the place of a mask."""
    lengths = None if mask is None else mask.astype(jnp.int32).sum(-1)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def _splash(q: Array, k: Array, v: Array, mask: Mask | None) -> Array:
    """The TPU's fused kernel, which never holds the scores; it takes whole blocks of tokens."""
    # Here, because Pallas takes a second to import.
    splash: Any = importlib.import_module(f"{_SPLASH}.splash_attention_kernel")
    masks: Any = importlib.import_module(f"{_SPLASH}.splash_attention_mask")

    n, m = q.shape[1], k.shape[1]
    of_q, of_k = (min(_BLOCK, count + -count % _LANES) for count in (n, m))
    ids = None
    if mask is not None or n % of_q or m % of_k:
        keys = jnp.ones(k.shape[:2], jnp.int32) if mask is None else mask.astype(jnp.int32)
        queries = jnp.ones(q.shape[:2], jnp.int32)
        ids = splash.SegmentIds(_whole_blocks(queries, of_q), _whole_blocks(keys, of_k))
    q = _whole_blocks(q * q.shape[-1] ** -0.5, of_q)
    k, v = (_whole_blocks(x, of_k) for x in (k, v))
    # One kernel computes all gradients, five products in place of seven. That of the queries comes
    # in parts, one for so many blocks of keys as a core has room for.
    blocks = k.shape[1] // of_k
    together = max(n for n in range(1, _GRADIENT_BLOCKS + 1) if blocks % n == 0)
    sizes = splash.BlockSizes(
        block_q=of_q,
        block_kv=of_k,
        block_q_dkv=of_q,
        block_kv_dkv=of_k * together,
        block_kv_dkv_compute=of_k,
        use_fused_bwd_kernel=True,
    )
    every = masks.MultiHeadMask([masks.FullMask((q.shape[1], k.shape[1]))] * q.shape[2])
    kernel = splash.make_splash_mha_single_device(every, block_sizes=sizes)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    return jax.vmap(kernel)(q, k, v, ids).transpose(0, 2, 1, 3)[:, :n]


def _whole_blocks(x: Array, block: int) -> Array:
    """Adds zeros along the second axis, up to a multiple of `block`."""
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, -x.shape[1] % block)
    return jnp.pad(x, widths)


def _plain(q: Array, k: Array, v: Array, mask: Mask | None) -> Array:
    bias = None if mask is None else (1 - mask.astype(jnp.float32)) * MASK_BIAS
    # Heads first: XLA's CPU matmuls are several times slower with heads between the other two.
    q, k, v = (transposed(x, (2, 0, 1, 3)) for x in (q, k, v))
    # On CPU, one head at a time takes half the time and holds the scores of one head alone.
    large = q.shape[2] * k.shape[2] >= 128 * 128
    if platform() == "cpu" and large:
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
