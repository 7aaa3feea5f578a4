"""Adam whose moments take one byte per parameter (Dettmers et al., arXiv 2110.02861).

Each moment is stored in blocks along the last axis, as a float32 maximum and one byte per value.
The bytes are logarithmic: neighbouring values differ by 9 %, down to a 2^16th of the maximum (first
moment, with a sign) or a 2^32nd (second). Rounding is stochastic and unbiased. Rounding to the
nearest would stall the averages, since b2 = 0.999 changes them by less than 9 % per step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, Shaped, UInt8

_BLOCK = 256  # largest number of values with a common maximum
_WHOLE = 4096  # tensors with fewer values (biases, gains) keep moments in float32
_STEPS_PER_OCTAVE = 8  # codes while the value doubles
_SIGNED_LEVELS, _LEVELS = 127, 255  # largest codes, which stand for the maximum; 0 stands for 0


class Adam8BitState(NamedTuple):
    """The moments, each as a tree of codes and a tree of maxima of blocks.

    In small tensors the codes are the moment itself, and the maximum is a scalar that is not used.
    """

    count: Any
    first: Any
    first_maxima: Any
    second: Any
    second_maxima: Any


def scale_by_adam_8bit(b1: float, b2: float, eps: float = 1e-8) -> optax.GradientTransformation:
    """As `optax.scale_by_adam`, with moments in eight bits.

    Args:
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
    """

    def init(params: Any) -> Adam8BitState:
        codes = jax.tree.map(
            lambda x: jnp.zeros(x.shape, jnp.float32 if _is_small(x) else jnp.uint8), params
        )
        maxima = jax.tree.map(lambda x: jnp.zeros(_maxima_shape(x), jnp.float32), params)
        return Adam8BitState(jnp.zeros((), jnp.int32), codes, maxima, codes, maxima)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Adam8BitState]:
        count = state.count + 1
        key = jax.random.fold_in(jax.random.key(0), count)
        leaves, tree = jax.tree.flatten(updates)
        moments = zip(*(jax.tree.leaves(part) for part in state[1:]), strict=True)
        results = []
        for i, (g, (m, m_max, v, v_max)) in enumerate(zip(leaves, moments, strict=True)):
            keys = jax.random.split(jax.random.fold_in(key, i))
            g = g.astype(jnp.float32)
            first = b1 * _decoded(m, m_max, signed=True) + (1 - b1) * g
            second = b2 * _decoded(v, v_max, signed=False) + (1 - b2) * g * g
            change = first / (1 - b1**count) / (jnp.sqrt(second / (1 - b2**count)) + eps)
            stored = (
                *_encoded(first, keys[0], signed=True),
                *_encoded(second, keys[1], signed=False),
            )
            results.append((change.astype(leaves[i].dtype), *stored))
        changes, *parts = (tree.unflatten(column) for column in zip(*results, strict=True))
        return changes, Adam8BitState(count, *parts)

    return optax.GradientTransformation(init, update)


def _is_small(x: Any) -> bool:
    return x.size < _WHOLE


def _block(size: int) -> int:
    """The largest divisor of the last axis's size that a block may have."""
    return max(n for n in range(1, min(size, _BLOCK) + 1) if size % n == 0)


def _maxima_shape(x: Any) -> tuple[int, ...]:
    return () if _is_small(x) else (*x.shape[:-1], x.shape[-1] // _block(x.shape[-1]))


def _encoded(x: Float[Array, "*s"], key: Key[Array, ""], *, signed: bool) -> tuple[Array, Array]:
    """Codes and maxima of a moment."""
    if _is_small(x):
        return x, jnp.zeros(())
    blocks = x.reshape(*_maxima_shape(x), _block(x.shape[-1]))
    size = jnp.abs(blocks)
    maxima = jnp.max(size, axis=-1, keepdims=True)
    size = size / jnp.where(maxima > 0, maxima, 1)
    levels = _SIGNED_LEVELS if signed else _LEVELS
    low = jnp.floor(levels + _STEPS_PER_OCTAVE * jnp.log2(jnp.maximum(size, 1e-30)))
    low = jnp.clip(low, 0, levels - 1)
    below, above = _value(low, levels), _value(low + 1, levels)
    # The code above with the chance that makes the expected value right.
    code = low + (jax.random.uniform(key, size.shape) < (size - below) / (above - below))
    if signed:
        code += jnp.where(blocks < 0, _SIGNED_LEVELS + 1, 0)
    else:
        # A second moment of 0 would make the step as large as 1 / eps.
        code = jnp.where(size > 0, jnp.maximum(code, 1), code)
    return code.astype(jnp.uint8).reshape(x.shape), maxima[..., 0]


def _decoded(
    codes: UInt8[Array, "*s"] | Float[Array, "*s"], maxima: Shaped[Array, "..."], *, signed: bool
) -> Float[Array, "*s"]:
    if _is_small(codes):
        return codes
    blocks = codes.reshape(*maxima.shape, -1).astype(jnp.float32)
    if signed:
        is_negative = blocks > _SIGNED_LEVELS
        size = _value(blocks - jnp.where(is_negative, _SIGNED_LEVELS + 1, 0), _SIGNED_LEVELS)
        blocks = jnp.where(is_negative, -size, size)
    else:
        blocks = _value(blocks, _LEVELS)
    return (blocks * maxima[..., None]).reshape(codes.shape)


def _value(code: Array, levels: int) -> Array:
    """The share of the maximum that a code without sign stands for."""
    return jnp.where(code > 0, jnp.exp2((code - levels) / _STEPS_PER_OCTAVE), 0.0)
