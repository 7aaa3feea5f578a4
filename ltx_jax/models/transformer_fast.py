"""The transformer in the form that samples fastest on one GPU: same function, less memory traffic.

Layers are unrolled, and the captions' keys and values are computed once for all steps. The
parameters come from `models/transformer_fast_parameters.py`. `models/transformer.py` is the
reference in tests. `models/teacache.py` calls the methods separately, to skip the layers in some
steps.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from ltx_jax.config import ExecutionConfig, TransformerConfig
from ltx_jax.models.attention import attention
from ltx_jax.models.eight_bit import FP8, FP8_MAX
from ltx_jax.models.layers import rms_normalize, sinusoidal_embedding
from ltx_jax.models.transformer import (
    OUTPUT_NORM_EPSILON,
    QK_NORM_EPSILON,
    Context,
    Rope,
    Skip,
    TimeGroups,
)

# For every transformer layer, the largest absolute input of each of its linear layers.
Maxima = list[dict[str, Array]]


@struct.dataclass
class FastContext:
    """The context of the fast form; made from a `Context`.

    Attributes:
      caption_heads: keys and values of the captions in every layer, each (b, m, k, e).
      caption_mask: (b, m); None means all ones.
      rope: as in `Context`.
      time_groups: as in `Context`.
    """

    caption_heads: Any
    caption_mask: Any
    rope: Any
    time_groups: TimeGroups | None = None


class Times(NamedTuple):
    """Embedded times, one per token, per sample (n = 1), or per group of tokens.

    Attributes:
      modulation: the modulation for all blocks, (b, n, 6, d).
      embedded: the embedding, (b, n, d).
      group: if there is one time per group, the index of each token's group, (b, tokens); else
        None.
    """

    modulation: Any
    embedded: Any
    group: Any


@dataclasses.dataclass(frozen=True)
class FastTransformer:
    """The same function as `Transformer(cfg, execution)`, with parameters and context in another
    form."""

    cfg: TransformerConfig
    execution: ExecutionConfig = ExecutionConfig()

    def context(self, params: Any, context: Context) -> FastContext:
        """Converts a context to this form, once for all steps.

        Raises:
          ValueError: if the context has a field that this form does not support.
        """
        _check_context(context)
        caption = context.caption.astype(self.execution.dtype)
        h = jax.nn.gelu(_linear(caption, params["caption_1"]), approximate=True)
        h = _linear(h, params["caption_2"])
        heads = []
        for layer in params["layers"]:
            k = _normalized(_linear(h, layer["caption_k"]), layer["caption_k_gain"]).astype(h.dtype)
            heads.append((self._heads(k), self._heads(_linear(h, layer["caption_v"]))))
        return FastContext(tuple(heads), context.caption_mask, context.rope, context.time_groups)

    def __call__(
        self,
        params: Any,
        x: Float[Array, "b n c"],
        t: Float[Array, "b #n"],
        context: FastContext,
        skip: Skip | None = None,
        maxima: Maxima | None = None,
    ) -> Float[Array, "b n c2"]:
        """Returns the velocity in float32, equal to `Transformer`'s up to rounding.

        Args:
          params: result of `derive` or `quantize`.
          x: noisy normalised latents.
          t: times in [0, 1], one per sample or per token.
          context: result of `self.context`.
          skip: blocks to skip, for spatio-temporal guidance.
          maxima: a list that the largest inputs of linear layers are appended to, for calibration.
        """
        h, times = self.embed(params, x, t, context)
        return self.project(params, self.layers(params, h, times, context, skip, maxima), times)

    def embed(
        self, params: Any, x: Float[Array, "b n c"], t: Float[Array, "b #n"], context: FastContext
    ) -> tuple[Float[Array, "b n d"], Times]:
        """Embeds tokens and times: the input of the layers, and the `Times`."""
        dtype, groups = self.execution.dtype, context.time_groups
        group = None
        if groups is not None and t.shape[1] > 1:
            t, group = jnp.take_along_axis(t, groups.member, axis=1), groups.group
        scaled = t.astype(jnp.float32) * self.cfg.timestep_scale_multiplier
        h = _linear(sinusoidal_embedding(scaled).astype(dtype), params["time_1"])
        embedded = _linear(jax.nn.silu(h), params["time_2"])
        rows = _linear(jax.nn.silu(embedded), params["modulation"])
        x = _linear(x.astype(dtype), params["patchify_proj"])
        return x, Times(rows.reshape(*t.shape, 6, self.cfg.width), embedded, group)

    def first_input(
        self, params: Any, x: Float[Array, "b n d"], times: Times
    ) -> Float[Array, "b n d"]:
        """The input of the first layer's self-attention: `x`, normalised and modulated."""
        rows = _rows(times.modulation, params["layers"][0]["table"], times.group)
        return self._modulated(x, rows[0], rows[1])

    def layers(
        self,
        params: Any,
        x: Float[Array, "b n d"],
        times: Times,
        context: FastContext,
        skip: Skip | None = None,
        maxima: Maxima | None = None,
    ) -> Float[Array, "b n d"]:
        """Applies all layers; arguments as in a call."""
        form, heads = self.execution.attention, context.caption_heads
        for i, layer in enumerate(params["layers"]):
            keep = None if skip is None else skip.mask[i]
            record: dict[str, Array] | None = None
            if maxima is not None:
                record = {}
                maxima.append(record)
            rows = _rows(times.modulation, layer["table"], times.group)
            before = x

            h = self._modulated(x, rows[0], rows[1])
            q, k, v = jnp.split(_linear(h, layer["qkv"], record, "qkv"), 3, axis=-1)
            q = self._rotated(q, layer["q_gain"], context.rope)
            k = self._rotated(k, layer["k_gain"], context.rope)
            out = attention(q, k, self._heads(v), form=form).reshape(x.shape)
            if skip is not None and skip.mode == "attention_values":
                out = _keep(keep, out, v)
            elif skip is not None and skip.mode == "attention_skip":
                out = _keep(keep, out, h)
            x = _gated(x, _linear(out, layer["out"], record, "out"), rows[2])

            q = _linear(x, layer["caption_q"], record, "caption_q")
            q = self._heads(_normalized(q, layer["caption_q_gain"]).astype(q.dtype))
            out = attention(q, *heads[i], mask=context.caption_mask, form=form).reshape(x.shape)
            x = x + _linear(out, layer["caption_out"], record, "caption_out")

            h = self._modulated(x, rows[3], rows[4])
            h = jax.nn.gelu(_linear(h, layer["ff_in"], record, "ff_in"), approximate=True)
            x = _gated(x, _linear(h, layer["ff_out"], record, "ff_out"), rows[5])
            if skip is not None and skip.mode == "transformer_block":
                x = _keep(keep, x, before)
        return x

    def project(self, params: Any, x: Float[Array, "b n d"], times: Times) -> Float[Array, "b n c"]:
        """Projects the output of the layers to the velocity."""
        h = x.astype(jnp.float32)
        h = rms_normalize(h - jnp.mean(h, axis=-1, keepdims=True), OUTPUT_NORM_EPSILON)
        table = params["scale_shift_table"]
        shift, scale = _rows(times.embedded[:, :, None], table, times.group)
        return _linear(h * (1 + scale) + shift, params["proj_out"])

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.cfg.num_attention_heads, self.cfg.attention_head_dim)

    def _rotated(self, x: Array, gain: Array, rope: Rope) -> Array:
        """Normalises and rotates queries or keys; returns (b, n, k, e)."""
        heads = (*x.shape[:2], self.cfg.num_attention_heads)
        cos, sin = (table.reshape(*table.shape[:2], heads[2], 1, -1) for table in rope)
        halves = _normalized(x, gain).reshape(*heads, 2, -1)
        sign = jnp.array([-1.0, 1.0]).reshape(1, 1, 1, 2, 1)
        y = halves * cos + halves[..., ::-1, :] * (sin * sign)
        return y.astype(x.dtype).reshape(*heads, -1)

    def _modulated(self, x: Array, shift: Array, scale: Array) -> Array:
        return (rms_normalize(x, self.cfg.norm_eps) * (1 + scale) + shift).astype(x.dtype)


def _check_context(context: Context) -> None:
    """Checks that the context has no field that this form would ignore."""
    names = {field.name for field in dataclasses.fields(context)}
    names -= {"caption", "caption_mask", "rope", "time_groups"}
    unknown = sorted(name for name in names if getattr(context, name) is not None)
    if unknown:
        raise ValueError(
            f"the fast form of the transformer does not know the conditioning "
            f"{', '.join(unknown)}: sample with fast=False"
        )


def _rows(modulation: Array, table: Array, group: Array | None) -> list[Array]:
    """Adds a block's own table (rows, d) to the modulation (b, n, rows, d); returns a list of rows.

    With groups, the row of each token is selected with comparisons, not with a gather: XLA fuses
    these into the consumers, so that the rows of all tokens are never written to memory.
    """
    rows = modulation.astype(jnp.float32) + table[None, None]

    def of_tokens(row: Array) -> Array:
        if group is None:
            return row
        chosen = row[:, :1]
        for i in range(1, row.shape[1]):
            chosen = jnp.where((group == i)[..., None], row[:, i : i + 1], chosen)
        return chosen

    return [of_tokens(rows[:, :, i]) for i in range(table.shape[0])]


def _linear(
    x: Array, p: dict[str, Array], record: dict[str, Array] | None = None, name: str = ""
) -> Array:
    if record is not None:
        record[name] = jnp.max(jnp.abs(x)).astype(jnp.float32)
    if "input_scale" in p:
        return _float8_linear(x, p)
    kernel = p["kernel"]
    if "scale" in p:
        # The barrier keeps XLA from dequantising all matrices in advance, which would use the
        # memory that int8 is meant to save.
        kernel, x = jax.lax.optimization_barrier((kernel, x))
        kernel = (kernel * p["scale"]).astype(x.dtype)
    return x @ kernel + p["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def _float8_linear(x: Array, p: dict[str, Array]) -> Array:
    # XLA rewrites exactly this pattern, and only with 2-D operands, to one 8-bit matmul with scales
    # and bias.
    rows, dtype = x.reshape(-1, x.shape[-1]), x.dtype
    small = jnp.clip(rows / p["input_scale"], -FP8_MAX, FP8_MAX).astype(FP8)
    rows, kernel = small.astype(dtype) * p["input_scale"], p["kernel"].astype(dtype) * p["scale"]
    y = jax.lax.dot_general(rows, kernel, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
    return (y + p["bias"].reshape(1, -1)).reshape(*x.shape[:-1], -1)


def _normalized(x: Array, gain: Array) -> Array:
    """RMS norm over all heads at once, in float32."""
    h = x.astype(jnp.float32)
    r = jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + QK_NORM_EPSILON)
    # The barrier keeps XLA from writing the normalised tensor to memory in float32.
    return h * jax.lax.optimization_barrier(r) * gain.reshape(1, 1, -1)


def _gated(x: Array, update: Array, gate: Array) -> Array:
    return (x.astype(jnp.float32) + gate * update.astype(jnp.float32)).astype(x.dtype)


def _keep(keep: Any, kept: Array, instead: Array) -> Array:
    weight = keep.astype(kept.dtype)[:, None, None]
    return kept * weight + instead * (1 - weight)
