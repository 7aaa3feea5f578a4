"""Low-rank adapters (LoRA) kept apart from the weights that they change.

An adapter is a tree with the modules of a network's parameters, {"blocks": {"attn1": {"to_q":
{"down": ..., "up": ...}}}}, where `down` is (i, r) and `up` is (r, o), with a leading axis for
stacked layers. In a convolution, `down` is a kernel (t, h, w, i, r) of the same window, and `up`
acts on each position. `attach` puts it beside the kernels, where the layers read it
(`layers.low_rank`).
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ltx_jax.config import AdapterConfig
from ltx_jax.models.layers import param
from ltx_jax.runtime import sharding

Path = tuple[str, ...]


def kernels(boxed: Any) -> dict[Path, Any]:
    """The kernels of a network's layers by the path of their module.

    Args:
      boxed: parameters or their shapes, with or without the names of their axes.
    """
    leaves = jax.tree.leaves_with_path(boxed, is_leaf=sharding.is_boxed)
    paths = [(tuple(entry.key for entry in path), leaf) for path, leaf in leaves]
    return {path[:-1]: leaf for path, leaf in paths if path[-1] == "kernel"}


def select(boxed: Any, patterns: Sequence[str]) -> dict[Path, Any]:
    """The kernels of the layers in whose path ("blocks/attn1/to_q") a pattern is found.

    Raises:
      ValueError: if a pattern is found in none.
    """
    whole = kernels(boxed)
    for pattern in patterns:
        if not any(re.search(pattern, "/".join(path)) for path in whole):
            raise ValueError(
                f"adapter.targets: {pattern!r} matches no layer; layers are "
                f"{', '.join(sorted('/'.join(path) for path in whole))}"
            )
    return {
        path: x
        for path, x in whole.items()
        if any(re.search(pattern, "/".join(path)) for pattern in patterns)
    }


def init(boxed: Any, cfg: AdapterConfig, key: Key[Array, ""], dtype: str) -> dict[str, Any]:
    """Initialises an adapter that changes nothing yet: `up` is zero.

    Args:
      boxed: shapes and logical axes of the network's parameters.
      cfg: rank, targets and distribution of `down`.
      key: random key.
      dtype: of the adapter's parameters.

    Returns:
      The adapter, with the names of its logical axes.

    Raises:
      ValueError: if a target matches no layer, or the rank exceeds a layer's inputs or outputs.
    """
    tree: dict[str, Any] = {}
    for i, (path, kernel) in enumerate(select(boxed, cfg.patterns).items()):
        *before, outputs = kernel.value.shape
        *axes_before, columns = kernel.names
        stacked = int(axes_before[0] == "layers")
        inputs = math.prod(before[stacked:])  # of a convolution: all values in its window
        if cfg.rank > min(inputs, outputs):
            raise ValueError(
                f"adapter.rank = {cfg.rank} is more than {'/'.join(path)} can use, which has "
                f"{inputs} inputs and {outputs} outputs: take a smaller rank or other targets"
            )
        shapes = (*before, cfg.rank), (*before[:stacked], cfg.rank, outputs)
        # FSDP splits the model's width, which is on one side of a layer, and on the other the rank.
        narrow = [
            None if side is not None and sharding.RULES[side] == "fsdp" else "embed"
            for side in (axes_before[-1], columns)
        ]
        axes = (*axes_before, narrow[0]), (*axes_before[:stacked], narrow[1], columns)
        down, up = _down(cfg, inputs), jax.nn.initializers.zeros
        node(tree, path).update(
            down=param(axes[0], down)(jax.random.fold_in(key, i), shapes[0], dtype),
            up=param(axes[1], up)(key, shapes[1], dtype),
        )
    return tree


def _down(cfg: AdapterConfig, inputs: int) -> Any:
    if cfg.init == "normal":
        return jax.nn.initializers.normal(1 / cfg.rank)
    # That of peft and of the published trainers: `kaiming_uniform_` with a = sqrt(5).
    bound = inputs**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def node(tree: dict[str, Any], path: Path) -> dict[str, Any]:
    """The dictionary at a path of nested dictionaries, which are made if they are missing."""
    for part in path:
        tree = tree.setdefault(part, {})
    return tree


def modules(adapter: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The path and the matrices of every layer of an adapter."""
    for name, value in adapter.items():
        if "up" in value:
            yield (*path, name), value
        else:
            yield from modules(value, (*path, name))


def attach(
    params: Mapping[str, Any],
    adapter: Mapping[str, Any],
    *,
    scale: float = 1.0,
    dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> dict[str, Any]:
    """Returns a network's parameters, arrays shared, with an adapter beside their kernels.

    Args:
      params: the network's parameters.
      adapter: the adapter. Layers that already have a "scale" (*layers, r), one factor for each
        column of `down`, keep it.
      scale: factor of the other layers.
      dropout: share of the inputs that is set to zero.
      key: random key of the dropout; None turns it off.
    """
    result = _copy(params)
    for i, (path, matrices) in enumerate(modules(adapter)):
        *layers, rank, _ = matrices["up"].shape
        extra: dict[str, Any] = {"scale": np.full((*layers, rank), scale, np.float32)}
        if key is not None and dropout > 0:
            extra["key"] = jax.random.fold_in(key, i)
            if layers:
                extra["key"] = jax.random.split(extra["key"], layers[0])
            extra["keep"] = jnp.full(layers, 1 - dropout, jnp.float32)
        node(result, path)["adapter"] = {**extra, **matrices}
    return result


def rescale(params: Mapping[str, Any], scales: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with the same adapters at other strengths.

    Args:
      params: from `attach`.
      scales: a tree with the "scale" of every layer of the adapter.
    """
    result = dict(params)
    for name, value in scales.items():
        if name == "scale":
            result["adapter"] = {**result["adapter"], "scale": value}
        else:
            result[name] = rescale(result[name], value)
    return result


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copy(x) if isinstance(x, Mapping) else x for name, x in tree.items()}
