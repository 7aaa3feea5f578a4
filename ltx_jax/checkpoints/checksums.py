"""Checksums of the arrays of a tree: the same on every mesh, for any number of processes.

They are computed where the arrays are, in one pass over their memory, so that nothing is copied to
the host. An array's checksum is the sum of its elements' bits, each times an odd number that
depends on the element's index, modulo 2^32. A single flipped bit always changes it; other damage
goes unnoticed with a probability of 2^-32.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped, UInt32


def checksums(tree: Any) -> dict[str, str]:
    """Dtype and checksum of each array, by its path in the tree."""
    named = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(tree)}
    # In one program, since loading a compiled one for each shape would take as long as some
    # trainings take to start.
    sums = jax.device_get(_sums(named))
    return {name: f"{x.dtype} {int(sums[name]):08x}" for name, x in named.items()}


def first_difference(tree: Any, stored: Mapping[str, str]) -> str | None:
    """The name of the first array whose checksum is not the stored one; None if there is none.

    Arrays that were converted to another dtype as they were read cannot be compared.
    """
    for name, current in checksums(tree).items():
        before = stored.get(name, "")
        if before != current and before.split(" ")[0] in ("", current.split(" ")[0]):
            return name
    return None


@jax.jit
def _sums(arrays: dict[str, Any]) -> dict[str, UInt32[Array, ""]]:
    sums: dict[str, UInt32[Array, ""]] = {}
    zero = jnp.uint32(0)
    for name, x in arrays.items():
        sums[name] = _sum(x, zero)
        # The next sum waits for this one: collectives at once could hang in each other.
        zero, _ = lax.optimization_barrier((zero, sums[name]))
    return sums


@jax.jit  # so that arrays of one shape are traced once
def _sum(x: Shaped[Array, "..."], zero: UInt32[Array, ""]) -> UInt32[Array, ""]:
    bits = jnp.dtype(f"uint{8 * np.dtype(x.dtype).itemsize}")
    words = (x if x.dtype == bool else lax.bitcast_convert_type(x, bits)).astype(jnp.uint32)
    index = jnp.full(x.shape, zero)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    # The mixing of 32 bits in MurmurHash3, so that weights of neighbours have nothing in common.
    for factor, shift in ((0x85EBCA6B, 13), (0xC2B2AE35, 16)):
        index = (index ^ (index >> 16)) * jnp.uint32(factor)
        index = index ^ (index >> shift)
    return jnp.sum(words * (index | 1), dtype=jnp.uint32)
