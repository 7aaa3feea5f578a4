"""Every term of the losses, alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltx_jax.training import losses

haar_bands = jax.jit(losses.haar_bands, static_argnums=1)


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


def test_kl_reaches_all_channels_alike():
    """What the uniform log-variance is for: no channel is switched off on its own."""
    mean, logvar = jnp.ones((2, 1, 3, 3, 5)), jnp.full((2, 1, 3, 3, 1), -2.0)
    of_mean = jax.grad(losses.kl_loss)(mean, logvar)
    np.testing.assert_allclose(of_mean, 1 / 18, rtol=1e-6)  # one of 18 voxels, each channel whole
    # The one log-variance is pulled by all channels together, whatever their means.
    of_logvar = jax.grad(losses.kl_loss, 1)(draw(2, 1, 3, 3, 5), logvar)
    np.testing.assert_allclose(of_logvar, 5 * 0.5 * (np.exp(-2) - 1) / 18, rtol=1e-5)


def test_haar_bands_are_those_of_pywavelets():
    pywt = pytest.importorskip("pywt")
    for frames, height, width, levels in [(4, 8, 4, 1), (5, 8, 8, 1), (7, 16, 8, 3), (1, 8, 8, 2)]:
        video = np.asarray(draw(2, frames, height, width, 3), np.float64)
        found = haar_bands(jnp.asarray(video, jnp.float32), levels)
        expected, low = [], video
        for _ in range(levels):
            axes = (1, 2, 3)
            if low.shape[1] == 1:
                axes = (2, 3)
            elif low.shape[1] % 2:
                low = np.concatenate([low[:, :1], low], axis=1)
            bands = pywt.dwtn(low, "haar", axes=axes)
            low = bands.pop("a" * len(axes))
            expected += bands.values()
        by_norm = sorted([*expected, low], key=lambda band: (band.size, np.abs(band).sum()))
        ours = sorted(found, key=lambda band: (band.size, np.abs(band).sum()))
        assert len(ours) == len(by_norm)
        for band, wanted in zip(ours, by_norm, strict=True):
            np.testing.assert_allclose(np.abs(band), np.abs(wanted), atol=1e-5)
        np.testing.assert_allclose(found[-1], low, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_haar_transform_keeps_energy_and_the_low_band_what_is_constant(levels):
    video = draw(1, 8, 16, 8, 2)
    bands = haar_bands(video, levels)
    assert [band.shape[1] for band in bands[:7]] == [4] * 7
    energy = sum(float(jnp.sum(band**2)) for band in bands)
    assert energy == pytest.approx(float(jnp.sum(video**2)), rel=1e-5)
    *details, low = haar_bands(jnp.ones((1, 8, 8, 8, 1)), levels)
    assert max(float(jnp.abs(band).max()) for band in details) < 1e-6  # rounding
    np.testing.assert_allclose(low, 8 ** (levels / 2), rtol=1e-5)


@pytest.mark.thorough
def test_dwt_loss_is_the_mean_distance_of_all_coefficients():
    a, b = draw(2, 5, 8, 8, 3), draw(2, 5, 8, 8, 3) * 0.5 + 1
    bands = zip(haar_bands(a, 2), haar_bands(b, 2), strict=True)
    distances = np.concatenate([np.abs(np.asarray(x) - np.asarray(y)).ravel() for x, y in bands])
    assert losses.dwt_loss(a, b, 2) == pytest.approx(distances.mean(), rel=1e-5)
    assert losses.dwt_loss(a, a, 2) == 0
    # A blur costs more than a shift of the grey level with the same pixel error.
    noise = jnp.sign(draw(1, 4, 8, 8, 1))
    zero = jnp.zeros_like(noise)
    assert losses.pixel_loss(noise, zero, "l1") == losses.pixel_loss(zero + 1, zero, "l1")
    assert losses.dwt_loss(noise, zero, 1) > 2 * losses.dwt_loss(zero + 1, zero, 1)


def test_sizes_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match=r"12 x 8 pixels cannot be halved 3 times \(dwt_levels\)"):
        haar_bands(jnp.zeros((1, 1, 12, 8, 1)), 3)


def test_swapping_the_pair_flips_the_target_of_the_discriminator():
    """Logits that are right in one order are wrong in the other, by as much."""
    first, second = draw(4, 2, 3), draw(4, 2, 3) - 1
    right, swapped = losses.pair_losses(first, second), losses.pair_losses(second, first)
    assert right.discriminator == pytest.approx(float(swapped.generator), rel=1e-6)
    assert right.generator == pytest.approx(float(swapped.discriminator), rel=1e-6)
    assert right.accuracy == pytest.approx(1 - float(swapped.accuracy))
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    softplus = np.mean(np.log1p(np.exp(-a))) + np.mean(np.log1p(np.exp(b)))
    assert right.discriminator == pytest.approx(softplus, rel=1e-6)
    assert right.accuracy == pytest.approx(((a > 0).mean() + (b < 0).mean()) / 2)


def test_hinge_losses_stop_where_the_margin_is_kept():
    sure = losses.hinge_losses(jnp.full(3, 2.0), jnp.full(3, -1.5))
    assert sure.discriminator == 0
    assert sure.accuracy == 1
    assert sure.generator == 1.5
    unsure = losses.hinge_losses(jnp.asarray([0.5, 3.0]), jnp.asarray([-0.25, 0.5]))
    assert unsure.discriminator == pytest.approx((0.5 + 0) / 2 + (0.75 + 1.5) / 2)
    assert unsure.accuracy == pytest.approx(0.75)
    assert unsure.generator == pytest.approx(-0.125)


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
