"""Linear layers: the form that a CPU is fast at is the same function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ltx_jax.models.layers import dense


def layers():
    x = jax.random.normal(jax.random.key(0), (2, 5, 7))
    ours = dense(11, (None, None), name="linear", dtype="float32", param_dtype="float32")
    params = nn.meta.unbox(ours.init(jax.random.key(1), x))
    return x, params, ours.apply, nn.Dense(11).apply


def close(ours, expected):
    # Sums of 7, 10 and 11 products of order 1, in another order.
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(compare, ours, expected)


def test_a_linear_layer_and_its_gradients_are_those_of_flax():
    x, params, ours, plain = layers()
    weights = jax.random.normal(jax.random.key(2), (2, 5, 11))

    def value(apply):
        return lambda params, x: jnp.sum(weights * jnp.sin(apply(params, x)))

    gradients = jax.grad(value(ours), (0, 1))(params, x)
    close(gradients, jax.grad(value(plain), (0, 1))(params, x))
    assert np.abs(gradients[0]["params"]["kernel"]).max() > 0.1


def test_a_linear_layer_has_forward_derivatives():
    x, params, ours, plain = layers()
    tangent = jnp.cos(x)
    close(
        jax.jvp(lambda x: ours(params, x), (x,), (tangent,)),
        jax.jvp(lambda x: plain(params, x), (x,), (tangent,)),
    )
