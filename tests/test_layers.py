"""Linear layers: the fast form for CPUs computes the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ltx_jax.models.layers import dense

TYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def layers(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 5, 7))
    ours = dense(11, (None, None), name="linear", dtype=dtype, param_dtype="float32")
    params = nn.meta.unbox(ours.init(jax.random.key(1), x))
    return x, params, ours.apply, nn.Dense(11, dtype=dtype).apply


def close(ours, expected, dtype):
    # Sums of 7, 10 and 11 products of order 1, in another order; bfloat16 rounds to 8 bits.
    bound = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]

    def compare(one, other):
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(one, other, rtol=bound, atol=bound)

    jax.tree.map(compare, ours, expected)


@pytest.mark.thorough
@TYPES
def test_a_linear_layer_and_its_gradients_are_those_of_flax(dtype):
    x, params, ours, plain = layers(dtype)
    weights = jax.random.normal(jax.random.key(2), (2, 5, 11))

    def value(apply):
        return lambda params, x: jnp.sum(weights * jnp.sin(apply(params, x)))

    gradients = jax.grad(value(ours), (0, 1))(params, x)
    close(gradients, jax.grad(value(plain), (0, 1))(params, x), dtype)
    assert np.abs(gradients[0]["params"]["kernel"]).max() > 0.1


@TYPES
def test_a_linear_layer_has_forward_derivatives(dtype):
    x, params, ours, plain = layers(dtype)
    tangent = jnp.cos(x)
    close(
        jax.jvp(lambda x: ours(params, x), (x,), (tangent,)),
        jax.jvp(lambda x: plain(params, x), (x,), (tangent,)),
        dtype,
    )
