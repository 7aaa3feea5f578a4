"""Low-rank adapters in two forms: by official name, as files have them, and as trees beside our
parameters (`models/adapter.py`), as training and `layers.Dense` have them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltx_jax.checkpoints import keys
from ltx_jax.checkpoints.adapter_changes import Adapter, LowRank
from ltx_jax.config import TransformerConfig
from ltx_jax.models import adapter as adapter_model


def _kernels(cfg: TransformerConfig) -> Iterator[tuple[keys.Path, keys.Leaf]]:
    for leaf in keys.transformer_leaves(keys.transformer_boxed(cfg)):
        if leaf.path[-1] == "kernel":
            yield leaf.path[:-1], leaf


def named(
    tree: Mapping[str, Any],
    cfg: TransformerConfig,
    scale: float,
    path: Path,
    metadata: Mapping[str, str],
) -> Adapter:
    """An adapter that was trained here, by official names.

    Args:
      tree: the adapter, with the modules of the transformer's parameters.
      cfg: the transformer.
      scale: its factor, alpha / rank.
      path: where it comes from.
      metadata: what to keep with it.
    """
    layers = dict(adapter_model.modules(tree))
    changes = {}
    for module, leaf in _kernels(cfg):
        if module not in layers:
            continue
        down, up = (np.asarray(layers[module][name]) for name in ("down", "up"))
        for i, name in enumerate(leaf.names):
            one = (down[i], up[i]) if leaf.stacked else (down, up)
            changes[name] = LowRank(one[0].T, one[1].T, scale)
    return Adapter(path, changes, metadata)


def beside(adapters: Sequence[tuple[Adapter, float]], cfg: TransformerConfig) -> dict[str, Any]:
    """A tree that does what several adapters do, with their strengths as data.

    The ranks of a layer's adapters lie one after the other: sum_i s_i down_i up_i is the product of
    all columns with all rows. "scale" (*layers, r) holds the strength and alpha / rank of each.
    Layers of a stack that an adapter does not change get zeros.

    Raises:
      ValueError: if an adapter does more than add low-rank matrices to kernels.
    """
    leaves = dict(_kernels(cfg))
    _check_low_rank(adapters, {name for leaf in leaves.values() for name in leaf.names})
    tree: dict[str, Any] = {}
    for module, leaf in leaves.items():
        parts = [
            part for adapter, strength in adapters if (part := _stacked(adapter, strength, leaf))
        ]
        if not parts:
            continue
        node = tree
        for name in module:
            node = node.setdefault(name, {})
        for name, axis in (("down", -1), ("up", -2), ("scale", -1)):
            whole = np.concatenate([part[name] for part in parts], axis)
            node[name] = whole if leaf.stacked else whole[0]
    return tree


def _stacked(adapter: Adapter, strength: float, leaf: keys.Leaf) -> dict[str, np.ndarray] | None:
    """An adapter's matrices for all layers of a kernel, padded with zeros to the largest rank."""
    changes = [adapter.changes.get(name) for name in leaf.names]
    ranks = [len(change.down) for change in changes if isinstance(change, LowRank)]
    if not ranks:
        return None
    inputs, outputs = leaf.layer_shape
    count, rank = len(changes), max(ranks)
    result = {
        "down": np.zeros((count, inputs, rank), np.float32),
        "up": np.zeros((count, rank, outputs), np.float32),
        "scale": np.zeros((count, rank), np.float32),
    }
    for i, change in enumerate(changes):
        if isinstance(change, LowRank):
            own = len(change.down)
            result["down"][i, :, :own] = np.asarray(change.down).T
            result["up"][i, :own] = np.asarray(change.up).T
            result["scale"][i, :own] = strength * change.scale
    return result


def _check_low_rank(adapters: Sequence[tuple[Adapter, float]], kernels: set[str]) -> None:
    for adapter, _ in adapters:
        for name, change in adapter.changes.items():
            if name not in kernels or not isinstance(change, LowRank):
                raise ValueError(
                    f"{adapter.path} changes {name} by a {type(change).__name__}, which cannot be "
                    "kept apart from the weights: merge it (merge=True)"
                )
