"""Tone mapping, AdaIN and decoder noise against the released functions."""

import pathlib

import jax.numpy as jnp
import numpy as np

from ltx_jax.diffusion import latents

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "misc.npz")


def golden(name):
    return jnp.asarray(np.moveaxis(GOLDEN[name], 1, -1))


def test_tone_mapping_is_the_released_one():
    for ratio, name in ((0.6, "tonemap_06"), (1.0, "tonemap_1")):
        ours = latents.tone_map(golden("tonemap_in"), ratio)
        np.testing.assert_allclose(ours, golden(name), atol=1e-6)


def test_a_tone_mapping_of_zero_changes_nothing():
    np.testing.assert_array_equal(latents.tone_map(golden("tonemap_in"), 0.0), golden("tonemap_in"))


def test_adain_is_the_released_one():
    for factor, name in ((1.0, "adain_out"), (0.5, "adain_out_half")):
        ours = latents.adain(golden("adain_in"), golden("adain_ref"), factor)
        np.testing.assert_allclose(ours, golden(name), atol=2e-6)


def test_adain_gives_the_deviation_of_the_reference():
    ours = latents.adain(golden("adain_in"), golden("adain_ref"))
    for x, y in ((jnp.mean, 1e-6), (jnp.std, 1e-2)):  # the deviations count n - 1
        np.testing.assert_allclose(x(ours, (1, 2, 3)), x(golden("adain_ref"), (1, 2, 3)), atol=y)


def test_decoder_noise_goes_from_the_latents_to_the_noise():
    x, noise = golden("adain_in"), 2 * golden("adain_in")
    mixed = latents.decoder_noise(x, noise, jnp.array([0.0, 0.25]))
    np.testing.assert_allclose(mixed[0], x[0])
    np.testing.assert_allclose(mixed[1], 1.25 * x[1], rtol=1e-6)
