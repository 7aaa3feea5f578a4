"""Pixels as whole and as floating-point numbers in [-1, 1]: the one place where they are converted.

The functions take arrays of numpy and of JAX alike.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8, UInt16


def from_bytes(pixels: UInt8[Any, "*shape"]) -> Float[Any, "*shape"]:
    """Bytes as float32 in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1


def to_bytes(pixels: Float[Any, "*shape"]) -> UInt8[Array, "*shape"]:
    """Numbers, clipped to [-1, 1], as bytes; truncates fractions, as the released pipeline does."""
    return (255 * jnp.clip(pixels * 0.5 + 0.5, 0, 1)).astype(jnp.uint8)


def to_nearest_bytes(pixels: Float[Any, "*shape"]) -> UInt8[Array, "*shape"]:
    """Numbers, clipped to [-1, 1], as the nearest bytes: the inverse of `from_bytes`."""
    return jnp.round((jnp.clip(pixels, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def to_nearest_words(pixels: Float[Any, "*shape"]) -> UInt16[Array, "*shape"]:
    """Numbers, clipped to [-1, 1], as the nearest of 65536 levels."""
    return jnp.round((jnp.clip(pixels, -1, 1) + 1) * 32767.5).astype(jnp.uint16)
