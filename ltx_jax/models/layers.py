"""Layers that several networks use."""

import functools
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


def dense(
    features: int,
    axes: tuple[str | None, str | None],
    *,
    name: str,
    dtype: str,
    param_dtype: str,
    use_bias: bool = True,
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform(),
) -> nn.Dense:
    """A linear layer whose kernel (in, out) has the given logical axes."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=param(axes, kernel_init),
        bias_init=param(axes[-1:], nn.initializers.zeros),
        dot_general=dot_general,
        name=name,
    )


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
