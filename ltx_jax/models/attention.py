"""Multi-head attention behind one function.

`attention` chooses the implementation. The plain one works on every platform and with every mask;
the others are for one kind of accelerator each, under the conditions listed in `attention`.
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
_LANES = 128  # lanes of a TPU's vector registers; block sizes are multiples of it
_BLOCK = 512  # largest block, in tokens
_GRADIENT_BLOCKS = 5  # largest number of key blocks that the gradient kernel takes at once

Mask = Bool[Array, "b m"] | Int[Array, "b m"] | Float[Array, "b m"]


def attention(
    q: Float[Array, "b n k e"],
    k: Float[Array, "b m k e"],
    v: Float[Array, "b m k e"],
    *,
    mask: Mask | None = None,
    form: AttentionForm = "plain",
    is_self_attention: bool = False,
) -> Float[Array, "b n k e"]:
    """Softmax attention with scale e**-0.5; scores and softmax are float32.

    Args:
      q: queries; on a mesh, sharded over batch, tokens and heads.
      k: keys; on a mesh, every device has all tokens of its samples and heads.
      v: values, sharded like the keys.
      mask: 1 for keys to attend to and 0 for the others; None attends to all.
      form: "plain" accepts any mask and lowers masked scores by exactly 10000. "cudnn" accepts
        bfloat16 and float16, and masks whose ones (at least one) all come first. "splash", for
        TPUs, accepts masks with at least one 1. "auto" selects "cudnn" for these dtypes on GPUs,
        "splash" on TPUs, and "plain" otherwise.
      is_self_attention: whether the keys belong to the same tokens as the queries and are
        sharded like them. During attention, the devices of the `seq` axis split the heads instead
        of the tokens (Ulysses, Jacobs et al., arXiv 2309.14509).

    Raises:
      ValueError: if the number of heads is not divisible by the devices of `seq` and `tensor`.
    """
    form = chosen_form(form, q.dtype, q.shape[-1])
    attend = {"cudnn": _cudnn, "splash": _splash, "plain": _plain}[form]
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:  # 0 without a mesh
        return attend(q, k, v, mask)

    def layout(x: Array, tokens: str | None) -> P:
        axes = ("batch", tokens, "act_heads", None)[: x.ndim]
        return sharding.spec(sharding.divisible_axes(x.shape, axes, mesh))

    queries, keys = layout(q, "token"), layout(k, "token" if is_self_attention else None)
    swap = is_self_attention and queries[1] is not None and mesh.shape["seq"] > 1
    if swap:
        sharding.check_heads(q.shape[2], mesh)
    masks = None if mask is None else layout(mask, None)
    return jax.shard_map(
        functools.partial(_swapped, attend) if swap else attend,
        in_specs=(queries, keys, keys, masks),
        out_specs=queries,
        check_vma=form != "splash",  # Pallas kernels do not declare the mesh axes of their output
    )(q, k, v, mask)


def chosen_form(form: AttentionForm, dtype: Any, head_dim: int) -> AttentionForm:
    """The form that "auto" stands for on the current platform; other forms as they are.

    Args:
      form: as in `attention`.
      dtype: dtype of the queries.
      head_dim: their width per head.
    """
    if form != "auto":
        return form
    half = dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0
    fused: dict[str, AttentionForm] = {"gpu": "cudnn" if half else "plain", "tpu": "splash"}
    return fused.get(platform(), "plain")


def _swapped(attend: Callable[..., Array], q: Array, k: Array, v: Array, mask: Any) -> Array:
    """Attention between an all-to-all over `seq` from tokens to heads and its inverse."""
    move = functools.partial(jax.lax.all_to_all, axis_name="seq", tiled=True)
    q, k, v = (move(x, split_axis=2, concat_axis=1) for x in (q, k, v))
    return move(attend(q, k, v, mask), split_axis=1, concat_axis=2)


def _cudnn(q: Array, k: Array, v: Array, mask: Mask | None) -> Array:
    """cuDNN's fused kernel, which never stores all scores. It takes the mask as lengths."""
    lengths = None if mask is None else mask.astype(jnp.int32).sum(-1)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def _splash(q: Array, k: Array, v: Array, mask: Mask | None) -> Array:
    """The TPU's fused kernel, which never stores all scores. Tokens are padded to whole blocks."""
    # Imported here, as Pallas takes a second to import.
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
    # A single kernel for all gradients needs five matmuls instead of seven. The gradient of the
    # queries is a sum of parts, each over as many blocks of keys as fit into a core's memory.
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
    """Pads the second axis with zeros to a multiple of `block`."""
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, -x.shape[1] % block)
    return jnp.pad(x, widths)


def _plain(q: Array, k: Array, v: Array, mask: Mask | None) -> Array:
    bias = None if mask is None else (1 - mask.astype(jnp.float32)) * MASK_BIAS
    # Heads come first: XLA's CPU matmuls are several times slower with heads between the other
    # axes.
    q, k, v = (transposed(x, (2, 0, 1, 3)) for x in (q, k, v))
    # On CPUs, one head at a time takes half the time, and stores the scores of one head only.
    large = q.shape[2] * k.shape[2] >= 128 * 128
    if platform() == "cpu" and large:
        out = jax.lax.map(lambda head: _attend(*head, bias), (q, k, v))
    else:
        out = jax.vmap(_attend, (0, 0, 0, None))(q, k, v, bias)
    return out.transpose(1, 2, 0, 3)


@jax.checkpoint  # saves q, k and v for the gradient, not the scores
def _attend(
    q: Float[Array, "b n e"],
    k: Float[Array, "b m e"],
    v: Float[Array, "b m e"],
    bias: Float[Array, "b m"] | None,
) -> Float[Array, "b n e"]:
    """Attention of one head, with all scores in memory."""
    scores = jnp.einsum("bne,bme->bnm", q, k, preferred_element_type=jnp.float32)
    scores *= q.shape[-1] ** -0.5
    if bias is not None:
        scores += bias[:, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bnm,bme->bne", weights, v, preferred_element_type=jnp.float32)
    return out.astype(q.dtype)
