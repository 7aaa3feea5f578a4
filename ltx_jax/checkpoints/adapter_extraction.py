"""The difference of two transformers as an adapter: one singular value decomposition per matrix.

Matrices become low-rank changes, the best of their rank (Eckart and Young); biases, norms and
tables become whole differences. Tensors are read, decomposed and dropped one by one.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ltx_jax.checkpoints import keys
from ltx_jax.checkpoints.adapter_changes import Change, Difference, LowRank
from ltx_jax.checkpoints.checkpoint import Checkpoint

# Power iterations of the randomised decomposition (Halko, Martinsson and Tropp, arXiv 0909.4061):
# they separate singular values that are close.
_ITERATIONS = 4
_FIRST_SKETCH = 32


def _with_margin(rank: int) -> int:
    """The size of a sketch whose first singular values, `rank` of them, are accurate."""
    return rank + max(16, rank // 2)


class Extracted(NamedTuple):
    """The change of one tensor.

    Attributes:
      name: official name of the tensor.
      change: the change; at strength 1 it gives the tuned tensor, up to the error.
      size: Frobenius norm of the difference.
      error: Frobenius norm of what the change lacks, rounding of its matrices included.
    """

    name: str
    change: Change
    size: float
    error: float


def extract(
    base: Checkpoint,
    tuned: Checkpoint,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: Any = None,
) -> Iterator[Extracted]:
    """Computes the changes that turn `base` into `tuned`, those that are not of low rank first.

    Args:
      base: the transformer that the adapter will change.
      tuned: the transformer that it should become.
      rank: of every matrix's change, at most the smaller side of the matrix.
      energy: instead of a rank, the part of the sum of squares of each matrix's difference that its
        change has to hold, in (0, 1].
      dtype: of the matrices; None takes that of the tuned ones.

    Raises:
      ValueError: if the transformers have other tensors or shapes, do not differ at all, or hold
        values that are not finite.
    """
    by_rank = energy is None and rank is not None and rank > 0
    by_energy = rank is None and energy is not None and 0 < energy <= 1
    if not by_rank and not by_energy:
        raise ValueError(
            f"give a rank above 0 or an energy in (0, 1], not rank {rank} and energy {energy}"
        )
    layers = [(leaf, i, name) for leaf in _leaves(base, tuned) for i, name in enumerate(leaf.names)]
    differ = False
    for leaf, i, name in sorted(layers, key=lambda layer: _is_matrix(layer[0])):
        tensors = [_tensor(one.transformer_params, leaf, i) for one in (base, tuned)]
        before, after = (jnp.asarray(x, jnp.float32) for x in tensors)
        delta = after - before
        size = _norm(delta)
        if not math.isfinite(size):
            raise ValueError(f"{name} is not finite in one of the two transformers")
        if size == 0:
            continue
        differ = True
        if not _is_matrix(leaf):
            yield Extracted(name, Difference(np.asarray(delta)), size, 0.0)
            continue
        up, down = low_rank(delta, rank, energy)
        kind = np.dtype(tensors[1].dtype if dtype is None else dtype)
        up, down = (np.asarray(x).astype(kind) for x in (up, down))
        change = LowRank(down, up)
        product = jnp.matmul(
            jnp.asarray(up, jnp.float32), jnp.asarray(down, jnp.float32), precision="highest"
        )
        yield Extracted(name, change, size, _norm(delta - product))
    if not differ:
        raise ValueError("the two transformers are equal: there is nothing to extract")


def low_rank(
    matrix: Float[Array, "m n"], rank: int | None, energy: float | None
) -> tuple[Float[Array, "m r"], Float[Array, "r n"]]:
    """The two matrices whose product is the best approximation of a matrix.

    Each is scaled by the square roots of the singular values, so that both have entries of similar
    size.

    Args:
      matrix: the matrix.
      rank: r, at most the smaller side of the matrix.
      energy: the part of the matrix's sum of squares that the product holds; r is the smallest rank
        with which it does.
    """
    smaller, total = min(matrix.shape), _norm(matrix) ** 2
    sketch = _FIRST_SKETCH if rank is None else _with_margin(rank)
    while True:
        is_whole = 2 * sketch >= smaller
        u, s, v = _svd(matrix) if is_whole else _sketched_svd(matrix, sketch)
        if rank is not None:
            count = min(rank, smaller)
            break
        held = np.cumsum(np.square(np.asarray(s, np.float64)))
        count = int(np.searchsorted(held, (energy or 1.0) * total)) + 1
        if is_whole or _with_margin(count) <= sketch:
            count = min(count, smaller)
            break
        sketch *= 2
    root = jnp.sqrt(s[:count])
    return u[:, :count] * root[None], root[:, None] * v[:count]


@jax.jit
def _svd(matrix: Any) -> Any:
    return jnp.linalg.svd(matrix, full_matrices=False)


def _sketched_svd(matrix: Any, size: int) -> Any:
    noise = jax.random.normal(jax.random.key(0), (matrix.shape[1], size))
    return _from_sketch(matrix, noise)


@jax.jit
def _from_sketch(matrix: Any, noise: Any) -> Any:
    with jax.default_matmul_precision("highest"):
        basis = jnp.linalg.qr(matrix @ noise)[0]
        for _ in range(_ITERATIONS):
            basis = jnp.linalg.qr(matrix.T @ basis)[0]
            basis = jnp.linalg.qr(matrix @ basis)[0]
        u, s, v = jnp.linalg.svd(basis.T @ matrix, full_matrices=False)
        return basis @ u, s, v


def _norm(x: Any) -> float:
    return float(jnp.sqrt(jnp.sum(jnp.square(x))))


def _is_matrix(leaf: keys.Leaf) -> bool:
    return leaf.path[-1] == "kernel"


def _leaves(base: Checkpoint, tuned: Checkpoint) -> list[keys.Leaf]:
    """The parameters of both transformers.

    Raises:
      ValueError: if they are not the same.
    """
    for checkpoint, what in ((base, "base"), (tuned, "tuned checkpoint")):
        if checkpoint.transformer is None:
            raise ValueError(f"the {what} holds no transformer")
    leaves = [
        keys.transformer_leaves(keys.transformer_boxed(one.transformer)) for one in (base, tuned)
    ]
    shapes = [keys.stored_shapes(one) for one in leaves]
    for name in {**shapes[0], **shapes[1]}:
        before, after = (one.get(name, "no such tensor") for one in shapes)
        if before != after:
            raise ValueError(
                f"the two transformers are of different sizes: {name} is {before} in the base and "
                f"{after} in the other"
            )
    return leaves[0]


def _tensor(params: Any, leaf: keys.Leaf, i: int) -> np.ndarray:
    for part in leaf.path:
        params = params[part]
    return leaf.to_stored(np.asarray(params[i] if leaf.stacked else params))
