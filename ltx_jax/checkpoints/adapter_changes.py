"""What an adapter does to one tensor: a low-rank or other change, and its arithmetic.

Weights are (out, in), as in files. Everything is computed in float32; matmuls are exact to float32
on every device. Changes are pytrees, so that compiled programs take strengths and values as inputs.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, dataclass_transform, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltx_jax.checkpoints.checkpoint import Network

_Class = TypeVar("_Class")
_matmul = functools.partial(jnp.matmul, precision="highest")


@runtime_checkable
class Change(Protocol):
    """A change of one tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensors that it can be applied to."""
        ...

    def __call__(self, old: Float[Array, "..."], strength: Any) -> Float[Array, "..."]:
        """The tensor after the change.

        Args:
          old: the tensor before it, in float32.
          strength: 0 leaves the tensor as it is (`Replacement` excepted), 1 is the whole change.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no equality of their own
class Adapter:
    """An adapter in memory. Adapters are compared by identity.

    Attributes:
      path: its file.
      changes: official name of a tensor, without the prefix of files -> its change.
      metadata: metadata of the file.
      stamp: modification time and size of the file when it was read; None for a run.
      network: the network that the adapter changes.
    """

    path: Path
    changes: Mapping[str, Change]
    metadata: Mapping[str, str]
    stamp: tuple[int, int] | None = None
    network: Network = "transformer"


@dataclass_transform(frozen_default=True)
def _pytree(cls: type[_Class]) -> type[_Class]:
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_pytree
class LowRank:
    """LoRA (arXiv 2106.09685): adds strength x scale x up @ down.

    Attributes:
      down: (r, in), or (r, in, t, h, w) for the kernel of a convolution.
      up: (out, r).
      scale: alpha / r, or alpha / sqrt(r) (rank-stabilised, arXiv 2312.03732).
    """

    down: Any
    up: Any
    scale: Any = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """As in `Change`."""
        return self.up.shape[0], *self.down.shape[1:]

    def __call__(self, old: Float[Array, "..."], strength: Any) -> Float[Array, "..."]:
        """As in `Change`."""
        product = _matmul(self.up, self.down.reshape(len(self.down), -1))
        return old + strength * self.scale * product.reshape(self.shape)


@_pytree
class HadamardProduct:
    """LoHa (FedPara, arXiv 2108.06098): adds strength x scale x (a1 @ b1) * (a2 @ b2)."""

    a1: Any  # (out, r)
    b1: Any  # (r, in)
    a2: Any
    b2: Any
    scale: Any = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """As in `Change`."""
        return self.a1.shape[0], self.b1.shape[1]

    def __call__(self, old: Float[Array, "..."], strength: Any) -> Float[Array, "..."]:
        """As in `Change`."""
        product = _matmul(self.a1, self.b1) * _matmul(self.a2, self.b2)
        return old + strength * self.scale * product


@_pytree
class KroneckerProduct:
    """LoKr (arXiv 2309.14859): adds strength x scale x kron(first, second).

    Each factor is one matrix, or a pair whose product it is.
    """

    first: Any
    second: Any
    scale: Any = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """As in `Change`."""
        sizes = [(x[0].shape[0], x[-1].shape[1]) for x in (self.first, self.second)]
        return sizes[0][0] * sizes[1][0], sizes[0][1] * sizes[1][1]

    def __call__(self, old: Float[Array, "..."], strength: Any) -> Float[Array, "..."]:
        """As in `Change`."""
        whole = [x[0] if len(x) == 1 else _matmul(*x) for x in (self.first, self.second)]
        return old + strength * self.scale * jnp.kron(*whole)


@_pytree
class Renormalized:
    """DoRA (arXiv 2402.09353): another change, then rows or columns scaled to given norms.

    The norm is that of the changed weight, as in LyCORIS and peft.

    Attributes:
      change: the change of the direction, at full strength.
      magnitude: (out, 1) for the norms of rows, (1, in) for those of columns.
    """

    change: Any
    magnitude: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """As in `Change`."""
        return self.change.shape

    def __call__(self, old: Float[Array, "..."], strength: Any) -> Float[Array, "..."]:
        """As in `Change`."""
        new = self.change(old, 1.0)
        axis = 1 if self.magnitude.shape[1] == 1 else 0
        norm = jnp.sqrt(jnp.sum(jnp.square(new), axis, keepdims=True))
        return old + strength * (self.magnitude * new / norm - old)


@_pytree
class Difference:
    """Adds strength x scale x difference to a weight, a bias, a norm or a table."""

    difference: Any
    scale: Any = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """As in `Change`."""
        return self.difference.shape

    def __call__(self, old: Float[Array, "..."], strength: Any) -> Float[Array, "..."]:
        """As in `Change`."""
        return old + strength * self.scale * self.difference


@_pytree
class Replacement:
    """Replaces the tensor, at any strength."""

    new: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """As in `Change`."""
        return self.new.shape

    def __call__(self, old: Float[Array, "..."], strength: Any) -> Float[Array, "..."]:
        """As in `Change`."""
        del old, strength
        return self.new
