import jax.numpy as jnp
import numpy as np
import pytest

from ltx_jax.training import losses


def draw(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape, np.float32))


def test_kl_is_the_closed_form_summed_over_channels_and_averaged_over_voxels():
    mean, logvar = draw(2, 3, 4, 5, 6), 2 * draw(2, 3, 4, 5, 1) - 1
    m, v = np.asarray(mean, np.float64), np.exp(np.asarray(logvar, np.float64))
    expected = (0.5 * (m * m + v - 1 - np.log(v))).sum(-1).mean()
    assert losses.kl_loss(mean, logvar) == pytest.approx(expected, rel=1e-5)  # float32 sums
    repeated = jnp.broadcast_to(logvar, mean.shape)
    assert losses.kl_loss(mean, repeated) == pytest.approx(expected, rel=1e-5)


def test_kl_is_zero_at_the_standard_normal_alone():
    zero = jnp.zeros((1, 1, 2, 2, 3), np.float32)
    assert losses.kl_loss(zero, zero) == 0
    assert losses.kl_loss(zero + 0.1, zero) > 0
    assert losses.kl_loss(zero, zero + 0.1) > 0
    assert losses.kl_loss(zero, zero - 0.1) > 0


@pytest.mark.parametrize(("kind", "expected"), [("l1", 0.25), ("mse", 0.125)])
def test_pixel_loss_is_a_mean_in_float32(kind, expected):
    video = jnp.zeros((1, 2, 2, 2, 1))
    other = video.at[0, 0].set(0.5)
    assert losses.pixel_loss(other, video, kind) == pytest.approx(expected)
    # bfloat16 would round the sum of a million differences to 8 bits.
    large = jnp.full((1, 1, 1000, 1000, 1), 1.0, jnp.bfloat16)
    value = losses.pixel_loss(large, large * 0.99, kind)
    assert value.dtype == jnp.float32


def test_tokens_of_weight_zero_do_not_count_in_the_velocity_loss():
    prediction, velocity = draw(2, 4, 3), draw(2, 4, 3) * 0
    weight = jnp.array([[0, 1, 1, 1], [1, 1, 0, 0]], jnp.float32)
    value = losses.velocity_loss(prediction, velocity, weight)
    error = (np.asarray(prediction, np.float64) ** 2).mean(-1)
    np.testing.assert_allclose(value, [error[0, 1:].mean(), error[1, :2].mean()], rtol=1e-5)
    prediction = prediction.at[0, 0].set(1e6)
    assert losses.velocity_loss(prediction, velocity, weight)[0] == value[0]


def test_psnr_counts_a_range_of_two():
    assert losses.psnr(jnp.float32(4.0)) == pytest.approx(0, abs=1e-6)
    assert losses.psnr(jnp.float32(0.04)) == pytest.approx(20, abs=1e-5)
