"""The network of the fake score: a transformer that gets the step of the student as an input.

It is a copy of the teacher, but the bias of its time embedding exists once for every step of the
student. So the transformer needs no further input, and starts as the teacher at all steps.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from ltx_jax.runtime import sharding

_BIAS = ("adaln_single", "timestep_embedder", "linear_2", "bias")


def with_steps(transformer: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The parameters of a fake score that starts from a transformer.

    Args:
      transformer: its parameters, with or without the names of their axes.
      count: number of steps of the student.
    """

    def repeat(bias: Any) -> Any:
        if sharding.is_boxed(bias):
            return bias.replace(value=repeat(bias.value), names=(None, *bias.names))
        return jnp.stack([bias] * count)

    return _with_leaf(transformer, _BIAS, repeat)


def at_step(fake: Mapping[str, Any], step: Int[Array, ""]) -> dict[str, Any]:
    """The parameters of the transformer for outputs of a step of the student, from 0."""
    return _with_leaf(fake, _BIAS, lambda biases: biases[step])


def _with_leaf(tree: Mapping[str, Any], path: tuple[str, ...], change: Any) -> dict[str, Any]:
    name, *rest = path
    changed = _with_leaf(tree[name], tuple(rest), change) if rest else change(tree[name])
    return {**tree, name: changed}
