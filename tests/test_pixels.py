"""Bytes to numbers and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from ltx_jax import pixels

ALL = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_bytes_span_minus_one_to_one_and_come_back(kind):
    numbers = pixels.from_bytes(kind(ALL))
    assert (numbers.dtype, float(numbers[0]), float(numbers[255])) == (np.float32, -1.0, 1.0)
    np.testing.assert_allclose(numbers, np.linspace(-1, 1, 256), atol=1e-7)
    np.testing.assert_array_equal(pixels.to_nearest_bytes(numbers), ALL)


def test_fractions_are_cut_off_or_rounded_and_the_rest_is_clipped():
    numbers = np.float32([-2.0, -1.0, 200.7 / 127.5 - 1, 1.0, 3.0])
    np.testing.assert_array_equal(pixels.to_bytes(numbers), [0, 0, 200, 255, 255])
    np.testing.assert_array_equal(pixels.to_nearest_bytes(numbers), [0, 0, 201, 255, 255])
