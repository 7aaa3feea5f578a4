"""Where the sampler's random numbers come from.

Every draw has a name and, within a loop, an index: it does not depend on how many others came
before it, and a test can put recorded numbers in the place of random ones.
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
    """A pytree of random draws.

    The names drawn are "initial", "input" (posterior of a whole input video), "posterior/i" and
    "condition/i" (of the i-th condition), "image_condition" and "stochastic" (index: the step),
    "decode", and "decoder" (index: the running number of the injection).
    """

    def draw(
        self, name: str, shape: tuple[int, ...], index: int | Int[Array, ""] = 0
    ) -> Float[Array, "..."]:
        """Standard normal numbers in float32; `name` is static, `index` may be traced."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyNoise:
    """Draws sample i of a batch from the i-th key, whatever the batch and the mesh."""

    keys: Any  # (b,) typed keys

    def draw(
        self, name: str, shape: tuple[int, ...], index: int | Int[Array, ""] = 0
    ) -> Float[Array, "..."]:
        """Standard normal numbers; the first axis of `shape` is the batch."""
        tag = zlib.crc32(name.encode())

        def one(key: Key[Array, ""]) -> Array:
            key = jax.random.fold_in(jax.random.fold_in(key, tag), index)
            # The same numbers as in `shape[1:]`, but that takes XLA ten times as long to compile.
            return jax.random.normal(key, (math.prod(shape[1:]),)).reshape(shape[1:])

        return jax.vmap(one)(self.keys)


def seeded(seed: int, batch: int, first: int = 0) -> KeyNoise:
    """The noise of samples `first` to `first + batch` of a run: sample i has its own key."""
    key = jax.random.key(seed)
    return KeyNoise(jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(batch)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GivenStart:
    """The initial noise from an array, and all other draws from another source."""

    initial: Any  # (b, t, h, w, c)
    rest: Any  # a NoiseSource

    def draw(
        self, name: str, shape: tuple[int, ...], index: int | Int[Array, ""] = 0
    ) -> Float[Array, "..."]:
        """The array for "initial"."""
        return self.initial if name == "initial" else self.rest.draw(name, shape, index)
