"""The sources of the sampler's random numbers.

Every draw has a name and, within a loop, an index. So it does not depend on the draws before it,
and a test can replace random numbers by recorded ones.
"""

import dataclasses
import math
import zlib
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


@runtime_checkable
class NoiseSource(Protocol):
    """A pytree that provides random numbers by name.

    The names are "initial", "input" (posterior of an input video), "posterior/i" and "condition/i"
    (of the i-th condition), "image_condition" and "stochastic" (the index is the step), "decode",
    and "decoder" (the index is the number of the noise injection in the decoder).
    """

    def draw(
        self, name: str, shape: tuple[int, ...], index: int | Int[Array, ""] = 0
    ) -> Float[Array, "..."]:
        """Standard normal numbers in float32; `name` is static, `index` may be traced."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyNoise:
    """Draws sample i of a batch from the i-th key, independently of batch and mesh."""

    keys: Any  # (b,) typed keys

    def draw(
        self, name: str, shape: tuple[int, ...], index: int | Int[Array, ""] = 0
    ) -> Float[Array, "..."]:
        """Standard normal numbers; the first axis of `shape` is the batch."""
        tag = zlib.crc32(name.encode())

        def one(key: Key[Array, ""]) -> Array:
            key = jax.random.fold_in(jax.random.fold_in(key, tag), index)
            # Drawn flat: this gives the same numbers as a draw of `shape[1:]`, and compiles in a
            # tenth of the time.
            return jax.random.normal(key, (math.prod(shape[1:]),)).reshape(shape[1:])

        return jax.vmap(one)(self.keys)


def seeded(seed: int, batch: int, first: int = 0) -> KeyNoise:
    """The noise of the samples [first, first + batch) of a run; each sample has its own key."""
    key = jax.random.key(seed)
    return KeyNoise(jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(batch)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GivenStart:
    """Takes the initial noise from an array, and all other draws from another source."""

    initial: Any  # (b, t, h, w, c)
    rest: Any  # a NoiseSource

    def draw(
        self, name: str, shape: tuple[int, ...], index: int | Int[Array, ""] = 0
    ) -> Float[Array, "..."]:
        """Returns the array for "initial", else a draw from the other source."""
        return self.initial if name == "initial" else self.rest.draw(name, shape, index)
