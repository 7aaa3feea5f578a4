"""Layers that several networks use."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ltx_jax.runtime.platforms import platform


def param(
    axes: tuple[str | None, ...], init: nn.initializers.Initializer
) -> nn.initializers.Initializer:
    """Adds the names of the parameter's logical axes to an initialiser."""
    return nn.with_logical_partitioning(init, axes)


def dot_general(x: Array, kernel: Array, dimensions: Any, **options: Any) -> Array:
    """`jax.lax.dot_general` of a linear layer, in the form that is fast on each platform.

    JAX computes the kernel's gradient as a matmul with a transposed result, and XLA's CPU backend
    runs such a matmul in bfloat16 10 to 50 times slower. Transposing the kernel first, behind an
    optimization barrier (`transposed`), avoids that slow path.
    """
    if platform() == "cpu" and kernel.dtype == jnp.bfloat16:
        kernel = transposed(kernel, (1, 0))
        dimensions = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, kernel, dimensions, **options)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def transposed(x: Array, axes: tuple[int, ...]) -> Array:
    """`x.transpose(axes)`, whose gradient has an optimization barrier after the transposition.

    Without the barrier, XLA's CPU backend merges the transposition into the matmul that computes
    the gradient, which is slow, or with oneDNN writes to the wrong place (jax 0.11, if the
    transposed axes have the same size). The forward pass needs no copy.
    """
    return x.transpose(axes)


@transposed.defjvp
def _transposed_jvp(
    axes: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return x.transpose(axes), jax.lax.optimization_barrier(tangent.transpose(axes))


class Dense(nn.Module):
    """A linear layer: `nn.Dense` that also reads what may lie beside its kernel and bias.

    These are "adapter", a low-rank change of the kernel (`models/adapter.py`), and "kernel_scale",
    the scales of a kernel in eight bits (`models/eight_bit.py`). `init` makes neither; without
    them, the compiled program is that of `nn.Dense`.

    Attributes:
      features: number of outputs.
      axes: logical axes of the kernel (i, o).
      dtype: of the computation.
      param_dtype: of the parameters that `init` makes.
      use_bias: whether there is a bias.
      kernel_init: initialiser of the kernel.
    """

    features: int
    axes: tuple[str | None, str | None]
    dtype: str
    param_dtype: str
    use_bias: bool
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, inputs: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        def own(name: str, init: Any, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Any:
            return self.param(name, param(axes, init), shape, self.param_dtype)

        kernel = own("kernel", self.kernel_init, (inputs.shape[-1], self.features), self.axes)
        bias = None
        if self.use_bias:
            bias = own("bias", nn.initializers.zeros, (self.features,), self.axes[-1:])
        scale = self.get_variable("params", "kernel_scale")
        x, dtype = inputs.astype(self.dtype), self.dtype
        if scale is None:
            y = _matmul(x, jnp.asarray(kernel, dtype))
        else:
            y = _matmul_in_eight_bits(x, kernel, scale)
        if bias is not None:
            y += _along_last(jnp.asarray(bias, dtype), y.ndim)
        adapter = self.get_variable("params", "adapter")
        return y if adapter is None else y + low_rank(x, adapter)


def _last_axis(x: Array) -> Any:
    """The dimension numbers of a matmul of the last axis of `x` with a matrix."""
    return ((x.ndim - 1,), (0,)), ((), ())


def _matmul(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    return dot_general(x, kernel, _last_axis(x))


def low_rank(
    x: Float[Array, "..."],
    adapter: Mapping[str, Any],
    apply: Callable[[Array, Array], Array] = _matmul,
) -> Float[Array, "..."]:
    """(x down) scale up, with dropout of the input if the adapter has a key for it.

    Args:
      x: the layer's input.
      adapter: as in `models/adapter.py`.
      apply: the layer itself, without a bias: input, kernel -> output.
    """
    if "key" in adapter:
        keep = adapter["keep"]
        kept = jax.random.bernoulli(adapter["key"], keep, x.shape)
        x = jnp.where(kept, x / keep.astype(x.dtype), 0)
    down, scale, up = (jnp.asarray(adapter[n], x.dtype) for n in ("down", "scale", "up"))
    return _matmul(apply(x, down) * _along_last(scale, x.ndim), up)


def _along_last(vector: Float[Array, " n"], ndim: int) -> Array:
    """A vector as an array of `ndim` axes, all but the last of size 1."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


@jax.custom_vjp
def _matmul_in_eight_bits(
    x: Float[Array, "*b i"], kernel: Array, scale: Float[Array, " o"]
) -> Float[Array, "*b o"]:
    """x (kernel * scale), with a gradient for x alone.

    For the gradient, the kernel is kept in eight bits. JAX's own gradient would keep the converted
    kernels of all layers at once.
    """
    return _matmul(x, _converted(x, kernel, scale))


def _converted(x: Array, kernel: Array, scale: Array) -> Array:
    # The barrier keeps XLA from converting the matrices of all layers in advance.
    kernel, _ = jax.lax.optimization_barrier((kernel, x))
    return (kernel.astype(jnp.float32) * _along_last(scale, 2)).astype(x.dtype)


def _forward(x: Array, kernel: Array, scale: Array) -> tuple[Array, Any]:
    return _matmul_in_eight_bits(x, kernel, scale), (kernel, scale)


def _backward(saved: tuple[Array, Array], tangent: Array) -> tuple[Array, None, None]:
    kernel = _converted(tangent, *saved)
    last = (((tangent.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(tangent, kernel, last), None, None


_matmul_in_eight_bits.defvjp(_forward, _backward)


def dense(
    features: int,
    axes: tuple[str | None, str | None],
    *,
    name: str,
    dtype: str,
    param_dtype: str,
    use_bias: bool = True,
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform(),
) -> Dense:
    """A linear layer whose kernel (in, out) has the given logical axes."""
    return Dense(features, axes, dtype, param_dtype, use_bias, kernel_init, name=name)


def rms_normalize(x: Float[Array, "*b d"], epsilon: float) -> Float[Array, "*b d"]:
    """Divides by the root mean square over the last axis; always float32."""
    h = x.astype(jnp.float32)
    return h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + epsilon)


# The gradient recomputes the float32 intermediates from x; stored, they would dominate the memory.
@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def _scaled_rms(x: Array, scale: Array | None, epsilon: float) -> Array:
    h = rms_normalize(x, epsilon)
    if scale is not None:
        h = h * scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return h.astype(x.dtype)


class RMSNorm(nn.Module):
    """Divides by the root mean square over the last axis; statistics are float32.

    `axes` is the logical axis of the gain; None means no gain.
    """

    epsilon: float
    axes: tuple[str | None] | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale = None
        if self.axes is not None:
            init = param(self.axes, nn.initializers.ones)
            scale = self.param("scale", init, x.shape[-1:], self.param_dtype)
        return _scaled_rms(x, scale, self.epsilon)


def sinusoidal_embedding(t: Float[Array, "*b"], features: int = 256) -> Float[Array, "*b features"]:
    """Embeds scaled times (0 to 1000) as cosines, then sines, in float32; longest period 10000."""
    half = features // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.expand_dims(t.astype(jnp.float32), -1) * frequencies.reshape(
        (1,) * t.ndim + (half,)
    )
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedder(nn.Module):
    """Sinusoidal embedding of a scaled time and a two-layer MLP (upstream: `timestep_embedder`)."""

    width: int
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, t: Float[Array, "*b"]) -> Float[Array, "*b d"]:
        linear = functools.partial(
            dense, self.width, dtype=self.dtype, param_dtype=self.param_dtype
        )
        h = sinusoidal_embedding(t).astype(self.dtype)
        h = nn.silu(linear((None, "adaln"), name="linear_1")(h))
        return linear(("adaln", "embed"), name="linear_2")(h)
