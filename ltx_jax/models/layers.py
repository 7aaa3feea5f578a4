"""Layers that several networks share."""

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
    """An initialiser whose parameter carries the names of its logical axes."""
    return nn.with_logical_partitioning(init, axes)


def dot_general(x: Array, kernel: Array, dimensions: Any, **options: Any) -> Array:
    """`jax.lax.dot_general` of a linear layer, in the form that each platform is fast at.

    The kernel's gradient comes from JAX as a product whose result is transposed, and XLA's CPU
    backend leaves that one, in bfloat16, to a kernel 10 to 50 times as slow. Of a kernel that is
    transposed beforehand it comes straight, if the compiler does not see what follows.
    """
    if platform() == "cpu" and kernel.dtype == jnp.bfloat16:
        kernel = transposed(kernel, (1, 0))
        dimensions = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, kernel, dimensions, **options)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def transposed(x: Array, axes: tuple[int, ...]) -> Array:
    """`x.transpose(axes)`; that gradients are transposed is hidden from the compiler.

    The value itself needs no copy. XLA's CPU backend has products written transposed where it sees
    that: slowly, or by oneDNN elsewhere (jax 0.11, if the transposed axes are of one size).
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
    """A linear layer with a kernel (in, out) that lies on the logical `axes`."""
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
    """Divides by the root mean square over the last axis; float32, whatever the input."""
    h = x.astype(jnp.float32)
    return h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + epsilon)


# The gradient recomputes the float32 intermediates from x: kept, they would be most of the memory.
@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def _scaled_rms(x: Array, scale: Array | None, epsilon: float) -> Array:
    h = rms_normalize(x, epsilon)
    if scale is not None:
        h = h * scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return h.astype(x.dtype)


class RMSNorm(nn.Module):
    """Divides by the root mean square over the last axis; statistics in float32.

    `axes` names the axis of the gain; None means no gain.
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
    """Sinusoid and two-layer MLP of a scaled time, as `timestep_embedder` in the checkpoints."""

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
