"""The forms of the network that the sampler and the training step call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_transformer_fast import CFG, inputs, params  # noqa: F401

from ltx_jax.diffusion.denoiser import Plain
from ltx_jax.models.transformer import Transformer
from ltx_jax.runtime import sharding

pytestmark = pytest.mark.thorough


def test_the_plain_form_is_the_network(params):  # noqa: F811
    plain, (x, t, context) = Plain(CFG), inputs()
    call = jax.jit(lambda p, *a: plain(plain.prepare(p), *a))
    got, state = call(params, x, t, plain.prepare_context(params, context))
    network = jax.jit(lambda p, *a: Transformer(CFG).apply({"params": p}, *a))
    want = network(params, x, t, context)
    np.testing.assert_array_equal(got, want)
    assert state is None


def test_the_plain_form_draws_the_parameters_that_are_stored(params):  # noqa: F811
    drawn = sharding.unbox(jax.eval_shape(Plain(CFG).init, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, params)
