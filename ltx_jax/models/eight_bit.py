"""Weights in eight bits with one scale per output, as sampling and frozen networks store them."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

EightBit = Literal["int8", "float8"]

FP8 = jnp.float8_e4m3fn
FP8_MAX = 448.0
_INT8_MAX = 127.0


def quantized(
    kernel: Float[Array, "*layers i o"], form: EightBit
) -> tuple[Array, Float[Array, "*layers 1 o"]]:
    """Rounds a kernel to eight bits; kernel = result * scale, up to rounding.

    Args:
      kernel: one matrix, or several that are stacked.
      form: "int8" has the smaller error where a column's values are of one size, "float8" (e4m3)
        where they differ by orders of magnitude.

    Returns:
      The kernel in eight bits, and the scales in float32.
    """
    kernel = kernel.astype(jnp.float32)
    most = _INT8_MAX if form == "int8" else FP8_MAX
    scale = jnp.max(jnp.abs(kernel), axis=-2, keepdims=True) / most
    scaled = kernel / jnp.where(scale > 0, scale, 1)
    small = jnp.round(scaled).astype(jnp.int8) if form == "int8" else scaled.astype(FP8)
    return small, scale


def quantized_blocks(params: Any, form: EightBit) -> dict[str, Any]:
    """Quantises the kernels of a transformer's blocks, for `layers.Dense`.

    Each kernel gets a "kernel_scale" (layers, o) beside it. Kernels are converted one by one and
    taken out of `params["blocks"]`, so that memory never holds both forms of all kernels.

    Args:
      params: the parameters of `Transformer`, or their shapes with shardings.
      form: as in `quantized`.
    """

    def convert(tree: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name in list(tree):
            if isinstance(tree[name], dict):
                result[name] = convert(tree[name])
            elif name == "kernel":
                result |= _quantized_beside(tree.pop(name), form)
            else:
                result[name] = tree[name]
        return result

    return {**params, "blocks": convert(params["blocks"])}


def _quantized_beside(kernel: Any, form: EightBit) -> dict[str, Any]:
    """Both results of `quantized`, sharded like the kernel; for a shape, their shapes."""
    where = kernel.sharding
    axes = where.spec if isinstance(where, NamedSharding) else ()
    scales, spec = where, (*axes, *(None,) * (kernel.ndim - len(axes)))
    if isinstance(where, NamedSharding):
        scales = NamedSharding(where.mesh, PartitionSpec(*spec[:-2], spec[-1]))
    names = ("kernel", "kernel_scale")

    def program(kernel: Any) -> dict[str, Any]:
        small, scale = quantized(kernel, form)
        return dict(zip(names, (small, jnp.squeeze(scale, -2)), strict=True))

    layout = dict(zip(names, (where, scales), strict=True))
    if isinstance(kernel, jax.ShapeDtypeStruct):
        shapes = jax.eval_shape(program, kernel)
        return {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout[name])
            for name, x in shapes.items()
        }
    return jax.jit(program, out_shardings=layout)(kernel)
