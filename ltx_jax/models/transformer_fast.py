"""The transformer in the form that samples fastest on one GPU: same function, less traffic.

`derive` makes its parameters from the stored ones: queries, keys and values in one product, layers
unrolled, channels of a head ordered so that a rotation swaps halves, linears optionally in eight
bits. What does not change from step to step (`attend_captions`, `halve_rope`) is computed once.
`models/transformer.py` is the reference that this is tested against, and `models/teacache.py` puts
the parts of `velocity` together so that some steps leave the layers out.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltx_jax.config import ExecutionConfig, Linears, TransformerConfig
from ltx_jax.models.attention import Mask, attention
from ltx_jax.models.layers import rms_normalize, sinusoidal_embedding
from ltx_jax.models.transformer import (
    OUTPUT_NORM_EPSILON,
    QK_NORM_EPSILON,
    Rope,
    Skip,
)

# The large products of a layer, with which eight bits are worth it.
LINEARS = ("qkv", "out", "caption_q", "caption_out", "ff_in", "ff_out")

_FP8 = jnp.float8_e4m3fn
_FP8_MAX = 448.0
_INT8_MAX = 127.0
# Inputs may grow past what calibration saw; to a floating-point number the room costs nothing.
_ROOM = 2.0

# Cosines and sines of the pairs of each head, one of a half.
HalvedRope = tuple[Float[Array, "#b n k 1 f"], Float[Array, "#b n k 1 f"]]
# Keys and values of the captions in every layer, (b, m, k, e) each.
CaptionHeads = tuple[tuple[Array, Array], ...]
# Of each layer, the largest absolute input of each of `LINEARS`.
Largest = Sequence[dict[str, float]]


class FewTimes(NamedTuple):
    """Times of tokens that share a few, each of which is embedded once.

    Attributes:
      times: the distinct ones, of each sample: (#b, k).
      which: index of each token's own (b, n).
    """

    times: Any
    which: Any


class Times(NamedTuple):
    """Embedded times.

    Attributes:
      modulation: of all blocks (b, #n, 6, d), and
      embedded: the embedding itself (b, #n, d); of `FewTimes`, (#b, k, 6, d) and (#b, k, d), and
      which: index of each token's own (b, n), else None.
    """

    modulation: Any
    embedded: Any
    which: Any


def derive(
    params: Any, cfg: TransformerConfig, execution: ExecutionConfig = ExecutionConfig()
) -> dict[str, Any]:
    """The parameters of `velocity`, from those of `Transformer`.

    Args:
      params: as stored; matrices come back in `execution.dtype`, tables in float32.
      cfg: of the transformer, and
      execution: how it is computed.
    """
    rest = {name: value for name, value in params.items() if name != "blocks"}
    layers = tuple(_layer(params["blocks"], i, cfg, execution) for i in range(cfg.num_layers))
    return {"layers": layers, **_cast(rest, execution.dtype)}


@functools.partial(jax.jit, static_argnames=("cfg", "execution"))  # one program for all layers
def _layer(
    blocks: Any, i: Any, cfg: TransformerConfig, execution: ExecutionConfig
) -> dict[str, Any]:
    turned = _halves(cfg)
    p = jax.tree.map(lambda x: x[i], blocks)

    def linear(p: Any, columns: Any = None) -> dict[str, Array]:
        kernel, bias = p["kernel"], p.get("bias", jnp.zeros(p["kernel"].shape[-1]))
        if columns is not None:
            kernel, bias = kernel[:, columns], bias[columns]
        dtype = execution.dtype
        return {"kernel": kernel.astype(dtype), "bias": bias.astype(dtype)}

    def gain(p: Any) -> Array:
        return p["scale"][turned].astype(jnp.float32)

    one, two = p["attn1"], p["attn2"]
    parts = [linear(one["to_q"], turned), linear(one["to_k"], turned), linear(one["to_v"])]
    joined = jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *parts)
    small = {
        "table": p["scale_shift_table"].astype(jnp.float32),
        "q_gain": gain(one["q_norm"]),
        "k_gain": gain(one["k_norm"]),
        "caption_q_gain": gain(two["q_norm"]),
        "caption_k_gain": gain(two["k_norm"]),
        "caption_k": linear(two["to_k"], turned),
        "caption_v": linear(two["to_v"]),
    }
    large = {
        "qkv": joined,
        "out": linear(one["to_out"]),
        "caption_q": linear(two["to_q"], turned),
        "caption_out": linear(two["to_out"]),
        "ff_in": linear(p["ff"]["linear_1"]),
        "ff_out": linear(p["ff"]["linear_2"]),
    }
    return small | large


def _cast(rest: Any, dtype: str) -> Any:
    # The last layer stays in float32, as in the reference.
    keep = {name: rest[name] for name in ("proj_out", "scale_shift_table")}
    return jax.tree.map(lambda x: x.astype(dtype), rest) | jax.tree.map(
        lambda x: x.astype(jnp.float32), keep
    )


def _halves(cfg: TransformerConfig) -> Array:
    """Order of channels that puts the even ones of each head before its odd ones."""
    channels = jnp.arange(cfg.width).reshape(cfg.num_attention_heads, -1, 2)
    return channels.transpose(0, 2, 1).reshape(-1)


def quantize(params: Any, linears: Linears, largest: Largest | None = None) -> dict[str, Any]:
    """Parameters of `derive` with the large products of every layer in eight bits.

    Args:
      params: of `derive`.
      linears: "float8" computes in eight bits (e4m3), with one scale for each tensor. "int8" stores
        matrices so, with one scale for each output, and computes as before.
      largest: inputs, for "float8": what `observe` saw.

    Raises:
      ValueError: for "float8" without `largest`.
    """
    if linears == "float8" and largest is None:
        raise ValueError("float8 linears need the largest inputs that `observe` saw")

    def small(i: int, name: str, p: Any) -> Any:
        return _to_int8(p) if largest is None else _to_float8(p, largest[i][name])

    layers = tuple(
        {name: small(i, name, p) if name in LINEARS else p for name, p in layer.items()}
        for i, layer in enumerate(params["layers"])
    )
    return params | {"layers": layers}


@jax.jit  # once for each shape, where operations one by one are a program each
def _to_float8(p: dict[str, Array], largest: Any) -> dict[str, Array]:
    # Hopper's 8-bit products want both operands with the summed axis last: (out, in).
    kernel = p["kernel"].astype(jnp.float32).T
    # Rounded before it divides, for it is the rounded one that multiplies.
    scale = (jnp.max(jnp.abs(kernel)) / _FP8_MAX).astype(p["bias"].dtype)
    return {
        "kernel": (kernel / jnp.where(scale > 0, scale, 1).astype(jnp.float32)).astype(_FP8),
        "scale": scale,
        "input_scale": jnp.asarray(largest * _ROOM / _FP8_MAX, p["bias"].dtype),
        "bias": p["bias"],
    }


@jax.jit
def _to_int8(p: dict[str, Array]) -> dict[str, Array]:
    kernel = p["kernel"].astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=0, keepdims=True) / _INT8_MAX
    whole = jnp.round(kernel / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
    return {"kernel": whole, "scale": scale, "bias": p["bias"]}


def _linear(
    x: Array, p: dict[str, Array], seen: dict[str, Array] | None = None, name: str = ""
) -> Array:
    if seen is not None:
        seen[name] = jnp.max(jnp.abs(x)).astype(jnp.float32)
    if "input_scale" in p:
        return _float8_linear(x, p)
    kernel = p["kernel"]
    if "scale" in p:
        # Not before its turn: all matrices at once would need the memory that this is to save.
        kernel, x = jax.lax.optimization_barrier((kernel, x))
        kernel = (kernel * p["scale"]).astype(x.dtype)
    return x @ kernel + p["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def _float8_linear(x: Array, p: dict[str, Array]) -> Array:
    # XLA makes this one 8-bit product with its scales and bias: of matrices, in just this form.
    rows, dtype = x.reshape(-1, x.shape[-1]), x.dtype
    small = jnp.clip(rows / p["input_scale"], -_FP8_MAX, _FP8_MAX).astype(_FP8)
    rows, kernel = small.astype(dtype) * p["input_scale"], p["kernel"].astype(dtype) * p["scale"]
    y = jax.lax.dot_general(rows, kernel, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
    return (y + p["bias"].reshape(1, -1)).reshape(*x.shape[:-1], -1)


def _heads(x: Array, cfg: TransformerConfig) -> Array:
    return x.reshape(*x.shape[:2], cfg.num_attention_heads, cfg.attention_head_dim)


def _gained(x: Array, gain: Array) -> Array:
    """Normalised over all heads, in float32."""
    h = x.astype(jnp.float32)
    r = jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + QK_NORM_EPSILON)
    # Kept apart, or XLA writes the normalised tensor out in float32 before the rotation.
    return h * jax.lax.optimization_barrier(r) * gain.reshape(1, 1, -1)


def _turned(x: Array, gain: Array, rope: HalvedRope, cfg: TransformerConfig) -> Array:
    """Normalised and rotated: (b, n, k, e)."""
    cos, sin = rope
    halves = _gained(x, gain).reshape(*x.shape[:2], cfg.num_attention_heads, 2, -1)
    sign = jnp.array([-1.0, 1.0]).reshape(1, 1, 1, 2, 1)
    y = halves * cos + halves[..., ::-1, :] * (sin * sign)
    return y.astype(x.dtype).reshape(*x.shape[:2], cfg.num_attention_heads, -1)


def halve_rope(rope: Rope, cfg: TransformerConfig) -> HalvedRope:
    """Rotary tables (b or 1, n, d / 2), laid out for the halves of each head."""
    cos, sin = (table.reshape(*table.shape[:2], cfg.num_attention_heads, 1, -1) for table in rope)
    return cos, sin


def attend_captions(
    params: Any,
    caption: Float[Array, "b m c"],
    cfg: TransformerConfig,
    execution: ExecutionConfig = ExecutionConfig(),
) -> CaptionHeads:
    """Keys and values of encoded captions in every layer; they serve all steps."""
    p = params["caption_projection"]
    h = jax.nn.gelu(_linear(caption.astype(execution.dtype), p["linear_1"]), approximate=True)
    h = _linear(h, p["linear_2"])
    heads = []
    for layer in params["layers"]:
        k = _gained(_linear(h, layer["caption_k"]), layer["caption_k_gain"]).astype(h.dtype)
        heads.append((_heads(k, cfg), _heads(_linear(h, layer["caption_v"]), cfg)))
    return tuple(heads)


def velocity(
    params: Any,
    latents: Float[Array, "b n c"],
    timestep: Float[Array, "b #n"] | FewTimes,
    captions: CaptionHeads,
    caption_mask: Mask | None,
    rope: HalvedRope,
    skip: Skip | None,
    cfg: TransformerConfig,
    execution: ExecutionConfig = ExecutionConfig(),
    seen: list[dict[str, Array]] | None = None,
) -> Float[Array, "b n c2"]:
    """The velocity in float32, as `Transformer` gives it up to rounding.

    Args:
      params: of `derive`.
      latents: normalised, noisy.
      timestep: in [0, 1], one of each sample or of each token, or the few that tokens share.
      captions: of `attend_captions`, and
      caption_mask: their mask.
      rope: of `halve_rope`.
      skip: blocks to skip, for spatio-temporal guidance.
      cfg: of the transformer, and
      execution: how it is computed.
      seen: gets the largest absolute input of every large linear, layer by layer.
    """
    x, times = embed(params, latents, timestep, cfg, execution)
    x = attend(params, x, times, captions, caption_mask, rope, skip, cfg, execution, seen)
    return project(params, x, times)


def embed(
    params: Any,
    latents: Float[Array, "b n c"],
    timestep: Float[Array, "b #n"] | FewTimes,
    cfg: TransformerConfig,
    execution: ExecutionConfig = ExecutionConfig(),
) -> tuple[Float[Array, "b n d"], Times]:
    """What the layers start from."""
    each, which = timestep if isinstance(timestep, FewTimes) else (timestep, None)
    time = each.astype(jnp.float32) * (cfg.timestep_scale_multiplier or 1.0)
    p, embedder = params["adaln_single"], params["adaln_single"]["timestep_embedder"]
    angles = sinusoidal_embedding(time).astype(execution.dtype)
    h = jax.nn.silu(_linear(angles, embedder["linear_1"]))
    embedded = _linear(h, embedder["linear_2"])
    rows = _linear(jax.nn.silu(embedded), p["linear"])
    x = _linear(latents.astype(execution.dtype), params["patchify_proj"])
    return x, Times(rows.reshape(*each.shape, 6, cfg.width), embedded, which)


def _rows(modulation: Array, table: Array, which: Array | None) -> list[Array]:
    """Modulation (b, #n or k, rows, d) plus a block's own table (rows, d), row by row (b, #n, d).

    Tokens choose among few by comparing, which becomes part of what reads it: a row for each token
    is never written.
    """
    rows = modulation.astype(jnp.float32) + table[None, None]

    def of_tokens(row: Array) -> Array:
        if which is None:
            return row
        chosen = row[:, :1]
        for i in range(1, row.shape[1]):
            chosen = jnp.where((which == i)[..., None], row[:, i : i + 1], chosen)
        return chosen

    return [of_tokens(rows[:, :, i]) for i in range(table.shape[0])]


def first_input(
    params: Any, x: Float[Array, "b n d"], times: Times, cfg: TransformerConfig
) -> Float[Array, "b n d"]:
    """What the first layer attends over: `embed`'s output, normalised and modulated."""
    rows = _rows(times.modulation, params["layers"][0]["table"], times.which)
    return _modulated(x, rows[0], rows[1], cfg)


def attend(
    params: Any,
    x: Float[Array, "b n d"],
    times: Times,
    captions: CaptionHeads,
    caption_mask: Mask | None,
    rope: HalvedRope,
    skip: Skip | None,
    cfg: TransformerConfig,
    execution: ExecutionConfig = ExecutionConfig(),
    seen: list[dict[str, Array]] | None = None,
) -> Float[Array, "b n d"]:
    """All layers; arguments as of `velocity`."""
    for i, layer in enumerate(params["layers"]):
        keep = None if skip is None else skip.mask[i]
        record: dict[str, Array] | None = None
        if seen is not None:
            record = {}
            seen.append(record)
        rows = _rows(times.modulation, layer["table"], times.which)
        before = x

        h = _modulated(x, rows[0], rows[1], cfg)
        q, k, v = jnp.split(_linear(h, layer["qkv"], record, "qkv"), 3, axis=-1)
        q, k = _turned(q, layer["q_gain"], rope, cfg), _turned(k, layer["k_gain"], rope, cfg)
        out = attention(q, k, _heads(v, cfg), form=execution.attention).reshape(x.shape)
        if skip is not None and skip.mode == "attention_values":
            out = _keep(keep, out, v)
        elif skip is not None and skip.mode == "attention_skip":
            out = _keep(keep, out, h)
        x = _gated(x, _linear(out, layer["out"], record, "out"), rows[2])

        q = _linear(x, layer["caption_q"], record, "caption_q")
        q = _heads(_gained(q, layer["caption_q_gain"]).astype(q.dtype), cfg)
        out = attention(q, *captions[i], mask=caption_mask, form=execution.attention)
        out = out.reshape(x.shape)
        x = x + _linear(out, layer["caption_out"], record, "caption_out")

        h = _modulated(x, rows[3], rows[4], cfg)
        h = jax.nn.gelu(_linear(h, layer["ff_in"], record, "ff_in"), approximate=True)
        x = _gated(x, _linear(h, layer["ff_out"], record, "ff_out"), rows[5])
        if skip is not None and skip.mode == "transformer_block":
            x = _keep(keep, x, before)
    return x


def project(params: Any, x: Float[Array, "b n d"], times: Times) -> Float[Array, "b n c"]:
    """The velocity that the layers' output stands for."""
    h = x.astype(jnp.float32)
    h = rms_normalize(h - jnp.mean(h, axis=-1, keepdims=True), OUTPUT_NORM_EPSILON)
    shift, scale = _rows(times.embedded[:, :, None], params["scale_shift_table"], times.which)
    return _linear(h * (1 + scale) + shift, params["proj_out"])


@functools.partial(jax.jit, static_argnames=("cfg", "execution"))
def observe(
    params: Any,
    *inputs: Any,
    cfg: TransformerConfig,
    execution: ExecutionConfig = ExecutionConfig(),
) -> tuple[Float[Array, "b n c"], list[dict[str, Array]]]:
    """`velocity` of its arguments up to `skip`, and what it lets `seen` know; `params` are of
    `derive`, before any are of eight bits."""
    seen: list[dict[str, Array]] = []
    return velocity(params, *inputs, cfg=cfg, execution=execution, seen=seen), seen


def largest_of(observed: Sequence[list[dict[str, Array]]]) -> Largest:
    """The largest of what `observe` saw in several calls."""
    return jax.tree.map(lambda *x: float(max(x)), *jax.device_get(list(observed)))


def _modulated(x: Array, shift: Array, scale: Array, cfg: TransformerConfig) -> Array:
    return (rms_normalize(x, cfg.norm_eps) * (1 + scale) + shift).astype(x.dtype)


def _gated(x: Array, update: Array, gate: Array) -> Array:
    return (x.astype(jnp.float32) + gate * update.astype(jnp.float32)).astype(x.dtype)


def _keep(keep: Any, kept: Array, instead: Array) -> Array:
    weight = keep.astype(kept.dtype)[:, None, None]
    return kept * weight + instead * (1 - weight)
