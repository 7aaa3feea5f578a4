"""Low-rank adapters in two forms: by official name, as files have them, and as trees beside our
parameters (`models/adapter.py`), as training and `layers.Dense` have them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ltx_jax.checkpoints import keys
from ltx_jax.checkpoints.adapter_changes import Adapter, LowRank
from ltx_jax.checkpoints.checkpoint import network_of
from ltx_jax.config import TransformerConfig, VAEConfig
from ltx_jax.models import adapter as adapter_model


def _kernels(
    cfg: TransformerConfig | VAEConfig,
) -> Iterator[tuple[keys.Path, keys.Leaf]]:
    for leaf in keys.adaptable_leaves(cfg):
        if leaf.path[-1] == "kernel":
            yield leaf.path[:-1], leaf


def named(
    tree: Mapping[str, Any],
    cfg: TransformerConfig | VAEConfig,
    scale: float,
    path: Path,
    metadata: Mapping[str, str],
) -> Adapter:
    """Converts an adapter that was trained here to official names.

    Args:
      tree: the adapter, with the modules of the network's parameters.
      cfg: the network.
      scale: its factor, alpha / rank.
      path: where it comes from.
      metadata: entries of the adapter's metadata.
    """
    layers = dict(adapter_model.modules(tree))
    changes = {}
    for module, leaf in _kernels(cfg):
        if module not in layers:
            continue
        down, up = (np.asarray(layers[module][name]) for name in ("down", "up"))
        for i, name in enumerate(leaf.names):
            one = (down[i], up[i]) if leaf.stacked else (down, up)
            stored_down, stored_up = (_kernel(x.shape).to_stored(x) for x in one)
            changes[name] = LowRank(stored_down, stored_up, scale)
    return Adapter(path, changes, metadata, network=network_of(cfg))


def tree_of(adapter: Adapter, cfg: TransformerConfig | VAEConfig, scale: float) -> dict[str, Any]:
    """The inverse of `named`, in float32: a tree to train on, with a factor of its own.

    Args:
      adapter: the adapter, of one rank.
      cfg: the network.
      scale: the factor that the tree will have. `up` takes what the adapter's own factors differ
        from it.

    Raises:
      ValueError: if the adapter does more than add low-rank matrices to kernels, or changes only
        some blocks of a stack.
    """
    _check_low_rank([(adapter, 1.0)], cfg)
    tree: dict[str, Any] = {}
    for module, leaf in _kernels(cfg):
        changes: list[Any] = [adapter.changes.get(name) for name in leaf.names]
        if not any(changes):
            continue
        missing = [name for name, x in zip(leaf.names, changes, strict=True) if x is None]
        if missing:
            raise ValueError(
                f"{adapter.path} changes {'/'.join(module)} in some blocks and lacks {missing[0]}: "
                "training changes all blocks or none"
            )
        matrices = {
            "down": [_kernel(x.down.shape).from_stored(_float32(x.down)) for x in changes],
            "up": [_float32(x.up).T * np.float32(x.scale / scale) for x in changes],
        }
        adapter_model.node(tree, module).update(
            {name: np.stack(x) if leaf.stacked else x[0] for name, x in matrices.items()}
        )
    return tree


def _float32(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float32)


def _kernel(shape: tuple[int, ...]) -> keys.Leaf:
    """A matrix of an adapter, which is laid out like the kernel of its layer."""
    return keys.Leaf(("kernel",), shape, names=())


def beside(adapters: Sequence[tuple[Adapter, float]], cfg: TransformerConfig) -> dict[str, Any]:
    """Joins several adapters to one tree with the same effect, whose strengths are arrays in it.

    The ranks of a layer's adapters lie one after the other: sum_i s_i down_i up_i is the product of
    all columns with all rows. "scale" (*layers, r) holds the strength times alpha / rank of each.
    Where an adapter changes only some layers of a stack, or with a smaller rank, there are zeros.

    Raises:
      ValueError: if an adapter does more than add low-rank matrices to kernels.
    """
    _check_low_rank(adapters, cfg)
    tree = scales(adapters, cfg)
    for module, leaf, parts in _changed(adapters, cfg):
        inputs, outputs = leaf.layer_shape
        ranks = sum(part.rank for part in parts)
        down = np.zeros((len(leaf.names), inputs, ranks), np.float32)
        up = np.zeros((len(leaf.names), ranks, outputs), np.float32)
        for i, place, change, _ in _places(parts):
            down[i, :, place], up[i, place] = np.asarray(change.down).T, np.asarray(change.up).T
        matrices = {"down": down, "up": up} if leaf.stacked else {"down": down[0], "up": up[0]}
        adapter_model.node(tree, module).update(matrices)
    return tree


def scales(adapters: Sequence[tuple[Adapter, float]], cfg: TransformerConfig) -> dict[str, Any]:
    """The part of `beside` that depends on the strengths: the "scale" of every layer."""
    tree: dict[str, Any] = {}
    for module, leaf, parts in _changed(adapters, cfg):
        scale = np.zeros((len(leaf.names), sum(part.rank for part in parts)), np.float32)
        for i, place, change, strength in _places(parts):
            scale[i, place] = strength * change.scale
        adapter_model.node(tree, module)["scale"] = scale if leaf.stacked else scale[0]
    return tree


class _Part(NamedTuple):
    """What one adapter does to a stack of layers: the change of each, None for none."""

    changes: list[LowRank | None]
    rank: int  # the largest one
    strength: float


def _changed(
    adapters: Sequence[tuple[Adapter, float]], cfg: TransformerConfig
) -> Iterator[tuple[keys.Path, keys.Leaf, list[_Part]]]:
    """The modules that adapters change."""
    for module, leaf in _kernels(cfg):
        parts = []
        for adapter, strength in adapters:
            changes: list[Any] = [adapter.changes.get(name) for name in leaf.names]
            rank = max((len(change.down) for change in changes if change is not None), default=0)
            if rank:
                parts.append(_Part(changes, rank, strength))
        if parts:
            yield module, leaf, parts


def _places(parts: Sequence[_Part]) -> Iterator[tuple[int, slice, LowRank, float]]:
    """Index of the layer, place among the joined ranks, change and strength."""
    first = 0
    for part in parts:
        for i, change in enumerate(part.changes):
            if change is not None:
                yield i, slice(first, first + len(change.down)), change, part.strength
        first += part.rank


def _check_low_rank(
    adapters: Sequence[tuple[Adapter, float]], cfg: TransformerConfig | VAEConfig
) -> None:
    kernels = {name for _, leaf in _kernels(cfg) for name in leaf.names}
    for adapter, _ in adapters:
        for name, change in adapter.changes.items():
            if name not in kernels or not isinstance(change, LowRank):
                raise ValueError(
                    f"{adapter.path} changes {name} by a {type(change).__name__}, which cannot be "
                    "kept apart from the weights: merge it (merge=True, or ltx-export --merge)"
                )
