"""AdamW with moments in eight bits, against optax's in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen.spmd import LogicallyPartitioned
from jax.sharding import PartitionSpec as P

from ltx_jax.config import OptimConfig
from ltx_jax.training import adam_8bit
from ltx_jax.training.optim import MAIN, Optimizer, make_optimizer
from ltx_jax.training.state import plan_state

SMALL = OptimConfig(peak_lr=3e-3, warmup_steps=0, weight_decay=0.0, clip_norm=1e9, b2=0.999)
EIGHT = dataclasses.replace(SMALL, moment_dtype="8bit")


@pytest.mark.parametrize("signed", [True, False])
def test_rounding_is_right_on_average_and_within_a_tenth(signed):
    draw = np.random.default_rng(0)
    x = np.exp(draw.uniform(-9, 0, (64, 128))).astype(np.float32)
    x[:, 0] = 0
    if signed:
        x *= draw.choice([-1, 1], x.shape)

    def there_and_back(key):
        codes, maxima = adam_8bit._encoded(jnp.asarray(x), key, signed=signed)
        assert codes.dtype == jnp.uint8
        return adam_8bit._decoded(codes, maxima, signed=signed)

    keys = jax.random.split(jax.random.key(0), 500)
    drawn = np.asarray(jax.jit(jax.vmap(there_and_back))(keys))
    np.testing.assert_array_equal(drawn[:, x == 0], 0)
    largest = np.abs(x) == np.abs(x).max(-1, keepdims=True)
    np.testing.assert_allclose(drawn[0][largest], x[largest], rtol=1e-6)
    whole = x != 0
    relative = drawn[:, whole] / x[whole] - 1
    assert np.abs(relative).max() < 0.0906
    # At most 4.53 % of deviation, over 500 draws; 8192 values.
    assert np.abs(relative.mean(0)).max() < 5 * 0.0453 / 500**0.5
    assert abs(relative.mean()) < 5 * 0.0453 / (500 * whole.sum()) ** 0.5


def test_a_second_moment_is_never_rounded_to_zero():
    x = jnp.full((32, 256), 1e-20).at[:, 0].set(1.0)
    codes, maxima = adam_8bit._encoded(x, jax.random.key(0), signed=False)
    assert (np.asarray(adam_8bit._decoded(codes, maxima, signed=False)) > 0).all()


def run(cfg, steps=400):
    """Losses of a network of two layers that learns another one's outputs."""
    keys = jax.random.split(jax.random.key(0), 6)
    shapes = {"a": (16, 512), "b": (512, 16)}

    def draw(keys):
        return {
            name: {"kernel": jax.random.normal(key, shape) / shape[0] ** 0.5}
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def outputs(params, x):
        return jnp.tanh(x @ params["a"]["kernel"]) @ params["b"]["kernel"]

    teacher, params = draw(keys[:2]), draw(keys[2:4])
    tx = make_optimizer(cfg, steps)

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            x = jax.random.normal(key, (64, 16))

            def error(params):
                return jnp.mean((outputs(params, x) - outputs(teacher, x)) ** 2)

            loss, grads = jax.value_and_grad(error)(params)
            changes, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, changes), state), loss

        return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(keys[4], steps))

    (_, state), losses = train(params)
    return np.asarray(losses), state


def test_it_trains_as_adam_does():
    (exact, _), (small, state) = run(SMALL), run(EIGHT)
    # A step differs by 5 % in every parameter, at random.
    np.testing.assert_allclose(small[:5], exact[:5], rtol=0.01)
    ends = [x[-50:].mean() for x in (small, exact)]
    assert ends[1] < 0.1 * exact[0]
    assert ends[0] < 1.05 * ends[1]
    sizes = [x.nbytes for x in jax.tree.leaves(state)]
    assert sum(sizes) < 2.5 * 2 * 16 * 512  # 8 bytes in float32; blocks of 16 here cost 0.5


@pytest.mark.thorough
def test_the_second_moment_follows_gradients_that_shrink():
    """Rounding to the nearest would keep it where it is, as a step changes it by 0.1 %."""
    tx = adam_8bit.scale_by_adam_8bit(0.9, 0.999)
    shape = (16, 256)

    @jax.jit
    def many(state, size):
        def step(state, _):
            # One value of each block keeps its gradient, so that the maximum stays.
            grads = jnp.full(shape, size).at[:, 0].set(1.0)
            changes, state = tx.update({"x": grads}, state)
            return state, changes["x"]

        state, changes = jax.lax.scan(step, state, length=5000)
        return state, changes[-1]

    state, _ = many(tx.init({"x": jnp.zeros(shape)}), 1.0)
    state, change = many(state, 0.1)
    # 0.999**5000 of the first gradients is left: v = 0.01 + 0.0067 * 0.99, and m = 0.1. Random
    # rounding spreads v by a fifth, which makes the mean of its inverse roots 2 % larger.
    want = 0.1 / np.sqrt(0.01 + 0.99 * 0.999**5000)
    np.testing.assert_allclose(np.mean(change[:, 1:]), want, rtol=0.05)


def test_moments_are_sharded_like_their_parameter(mesh):
    def init(key):
        kernel = jnp.zeros((8, 1024))
        return {"net": {"kernel": LogicallyPartitioned(kernel, ("embed", "mlp"))}}

    state = plan_state(init, {MAIN: Optimizer.of(EIGHT, 10)}, mesh, 0).shapes.opt_state[MAIN]
    moments = [x for x in jax.tree.leaves(state) if x.ndim]
    assert sorted(x.shape for x in moments) == [(8, 4)] * 2 + [(8, 1024)] * 2
    assert {x.sharding.spec for x in moments} == {P("fsdp", "tensor")}


def test_it_is_for_adamw_alone():
    with pytest.raises(ValueError, match="'8bit' is for AdamW, and name is 'muon'"):
        OptimConfig(name="muon", moment_dtype="8bit")
