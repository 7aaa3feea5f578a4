"""Converts stored parameters to those of `models/transformer_fast.py`.

Queries, keys and values become one matrix. The channels of each head are reordered so that the
rotary embedding pairs its first half with its second, rather than neighbouring channels. Layers are
unstacked. The large matrices can be quantised to eight bits.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ltx_jax.config import ExecutionConfig, Linears, TransformerConfig
from ltx_jax.models.eight_bit import FP8, FP8_MAX, quantized

# The large matrices of a layer, which are quantised.
LINEARS = ("qkv", "out", "caption_q", "caption_out", "ff_in", "ff_out")
# For every layer, the largest absolute input of each of `LINEARS`.
InputMaxima = Sequence[dict[str, float]]

# Inputs may be larger than those of the calibration by this factor. This costs no precision, since
# float8 is a floating-point format.
_INPUT_MARGIN = 2.0
_TIME_FEATURES = 256  # features of `layers.sinusoidal_embedding`


class UnsupportedParametersError(ValueError):
    """The stored parameters belong to a network that the fast form does not support."""


class _Stored:
    """A tree of stored parameters that are taken one by one, to detect any that remain unused."""

    def __init__(self, tree: Any, place: str = ""):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        self._leaves = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves
        }
        self._place = place

    def take(self, name: str, *shape: int) -> Array:
        """Takes the parameter of this name, which must have this shape."""
        leaf = self._leaves.pop(name, None)
        if leaf is None:
            raise UnsupportedParametersError(f"the parameter {self._place}{name} is missing")
        if leaf.shape != shape:
            raise UnsupportedParametersError(
                f"the parameter {self._place}{name} has the shape {leaf.shape}, expected {shape}"
            )
        return leaf

    def linear(
        self, name: str, rows: int, columns: int, order: Int[Array, " d"] | None = None
    ) -> dict[str, Array]:
        """Takes the kernel and bias of a linear layer, with its outputs in the given order. A
        missing bias becomes zeros."""
        kernel, bias = self.take(f"{name}/kernel", rows, columns), jnp.zeros(columns)
        if f"{name}/bias" in self._leaves:
            bias = self.take(f"{name}/bias", columns)
        if order is not None:
            kernel, bias = kernel[:, order], bias[order]
        return {"kernel": kernel, "bias": bias}

    def finish(self) -> None:
        """Checks that all parameters have been taken."""
        if self._leaves:
            names = ", ".join(f"{self._place}{name}" for name in sorted(self._leaves))
            raise UnsupportedParametersError(f"the fast form does not use the parameters {names}")


def derive(
    params: Any, cfg: TransformerConfig, execution: ExecutionConfig = ExecutionConfig()
) -> dict[str, Any]:
    """Converts the parameters of `Transformer` to those of `FastTransformer`.

    Args:
      params: the stored parameters.
      cfg: configuration of the transformer.
      execution: how it is computed. Converted matrices are in `execution.dtype`, tables in float32.

    Raises:
      UnsupportedParametersError: if a parameter is missing, has another shape, or is not used by
        the fast form, which would then compute a different function.
    """
    ends = _ends({name: x for name, x in params.items() if name != "blocks"}, cfg, execution.dtype)
    blocks = params.get("blocks", {})
    return ends | {
        "layers": tuple(_layer(blocks, i, cfg, execution) for i in range(cfg.num_layers))
    }


def _cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def _ends(params: Any, cfg: TransformerConfig, dtype: str) -> dict[str, Any]:
    """Converts the parameters before and after the layers."""
    stored, d = _Stored(params), cfg.width
    matrices = {
        "patchify_proj": stored.linear("patchify_proj", cfg.in_channels, d),
        "time_1": stored.linear("adaln_single/timestep_embedder/linear_1", _TIME_FEATURES, d),
        "time_2": stored.linear("adaln_single/timestep_embedder/linear_2", d, d),
        "modulation": stored.linear("adaln_single/linear", d, 6 * d),
        "caption_1": stored.linear("caption_projection/linear_1", cfg.caption_channels, d),
        "caption_2": stored.linear("caption_projection/linear_2", d, d),
    }
    # The last layer stays in float32, as in the reference.
    last = {
        "proj_out": stored.linear("proj_out", d, cfg.out_channels),
        "scale_shift_table": stored.take("scale_shift_table", 2, d),
    }
    stored.finish()
    return _cast(matrices, dtype) | _cast(last, "float32")


@functools.partial(jax.jit, static_argnames=("cfg", "execution"))  # one program for all layers
def _layer(
    blocks: Any, i: Any, cfg: TransformerConfig, execution: ExecutionConfig
) -> dict[str, Any]:
    stored, d = _Stored(jax.tree.map(lambda x: x[i], blocks), "blocks/"), cfg.width
    halves = _halves(cfg)
    qkv = (
        stored.linear("attn1/to_q", d, d, halves),
        stored.linear("attn1/to_k", d, d, halves),
        stored.linear("attn1/to_v", d, d),
    )
    matrices = {
        "qkv": jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *qkv),
        "out": stored.linear("attn1/to_out", d, d),
        "caption_q": stored.linear("attn2/to_q", d, d, halves),
        "caption_k": stored.linear("attn2/to_k", d, d, halves),
        "caption_v": stored.linear("attn2/to_v", d, d),
        "caption_out": stored.linear("attn2/to_out", d, d),
        "ff_in": stored.linear("ff/linear_1", d, 4 * d),
        "ff_out": stored.linear("ff/linear_2", 4 * d, d),
    }
    tables = {
        "table": stored.take("scale_shift_table", 6, d),
        "q_gain": stored.take("attn1/q_norm/scale", d)[halves],
        "k_gain": stored.take("attn1/k_norm/scale", d)[halves],
        "caption_q_gain": stored.take("attn2/q_norm/scale", d)[halves],
        "caption_k_gain": stored.take("attn2/k_norm/scale", d)[halves],
    }
    stored.finish()
    return _cast(matrices, execution.dtype) | _cast(tables, "float32")


def _halves(cfg: TransformerConfig) -> Int[Array, " d"]:
    """The channel order in which each head's even channels come before its odd ones."""
    channels = jnp.arange(cfg.width).reshape(cfg.num_attention_heads, -1, 2)
    return channels.transpose(0, 2, 1).reshape(-1)


def quantize(params: Any, linears: Linears, maxima: InputMaxima | None = None) -> dict[str, Any]:
    """Quantises the large matrices of every layer to eight bits.

    Args:
      params: from `derive`.
      linears: "float8" computes matmuls in eight bits (e4m3), with one scale per tensor. "int8"
        only stores matrices in eight bits, with one scale per output, and computes in the dtype of
        the activations.
      maxima: the largest inputs, from `calibration.input_maxima`; required for "float8".

    Raises:
      ValueError: for "float8" without `maxima`.
    """
    if linears == "float8" and maxima is None:
        raise ValueError("float8 linears need the largest inputs, from calibration.input_maxima")

    def small(i: int, name: str, p: Any) -> Any:
        return _to_int8(p) if maxima is None else _to_float8(p, maxima[i][name])

    layers = tuple(
        {name: small(i, name, p) if name in LINEARS else p for name, p in layer.items()}
        for i, layer in enumerate(params["layers"])
    )
    return params | {"layers": layers}


@jax.jit  # one program per shape, instead of one per operation
def _to_float8(p: dict[str, Array], maximum: Any) -> dict[str, Array]:
    # Hopper's 8-bit matmuls need the contracted axis last in both operands: (out, in).
    kernel = p["kernel"].astype(jnp.float32).T
    # Divides by the rounded scale, since the rounded scale is what the matmul multiplies with.
    scale = (jnp.max(jnp.abs(kernel)) / FP8_MAX).astype(p["bias"].dtype)
    return {
        "kernel": (kernel / jnp.where(scale > 0, scale, 1).astype(jnp.float32)).astype(FP8),
        "scale": scale,
        "input_scale": jnp.asarray(maximum * _INPUT_MARGIN / FP8_MAX, p["bias"].dtype),
        "bias": p["bias"],
    }


@jax.jit
def _to_int8(p: dict[str, Array]) -> dict[str, Array]:
    whole, scale = quantized(p["kernel"], "int8")
    return {"kernel": whole, "scale": scale, "bias": p["bias"]}
