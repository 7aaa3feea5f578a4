"""Adapters (LoRA and similar ones): reads them, merges them into the weights of a network."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ltx_jax.checkpoints import adapter_trees, keys, releases, run_config, tensors
from ltx_jax.checkpoints.adapter_changes import (
    Adapter,
    Change,
    Difference,
    HadamardProduct,
    KroneckerProduct,
    LowRank,
    Renormalized,
    Replacement,
)
from ltx_jax.checkpoints.adapter_keys import LayerNames
from ltx_jax.checkpoints.adapter_metadata import Alphas, Origin
from ltx_jax.checkpoints.checkpoint import NOUNS, Checkpoint, Network, network_of
from ltx_jax.checkpoints.quantized import rotate
from ltx_jax.config import TransformerConfig, VAEConfig

_log = logging.getLogger(__name__)


def file_of(path: str | os.PathLike[str]) -> Path:
    """The file of an adapter: the argument, or `adapter_model.safetensors` in a folder (peft). A
    run of ltx-train has none, and stands for itself."""
    path = Path(path)
    is_peft = path.is_dir() and not run_config.is_run(path)
    return path / "adapter_model.safetensors" if is_peft else path


def read(
    path: str | os.PathLike[str],
    transformer: TransformerConfig | None,
    vae: VAEConfig | None = None,
) -> Adapter:
    """Reads an adapter of a transformer or of a VAE's decoder.

    Args:
      path: as `file_of` takes it, or a run of ltx-train that trains an adapter, or a step of one.
      transformer: the transformer that it changes, if it is of one.
      vae: the VAE that it changes, if it is of one.

    Raises:
      ValueError: if a key has no counterpart in this network, a tensor lacks its other half or has
        another shape, a value is not finite, or the adapter is of an unsupported kind. The message
        names the key.
    """
    if run_config.is_run(path):
        from ltx_jax.checkpoints import runs  # imports Orbax, which takes a second

        run = runs.load_adapter(path)
        return of_run(run, path, _chosen(network_of(run.cfg.model), path, transformer, vae))
    path = file_of(path)
    stamp, file = _stamp(path), tensors.open_file(path)
    is_of_vae = any(key.startswith(keys.VAE_PREFIX) for key in file.tensors)
    network: Network = "vae" if is_of_vae else "transformer"
    shapes = keys.stored_shapes(keys.adaptable_leaves(_chosen(network, path, transformer, vae)))
    names = LayerNames(shapes, "VAE's decoder" if is_of_vae else "transformer")
    parts: dict[str, dict[str, tensors.StoredTensor]] = {}
    for key, tensor in file.tensors.items():
        module, role = names.split(key, path)
        roles = parts.setdefault(module, {})
        if role in roles:
            raise ValueError(
                f"{path} changes one layer twice: {roles[role].name} and {key}; remove one of them"
            )
        roles[role] = tensor
    if not parts:
        raise ValueError(f"{path} holds no tensors")
    alphas = Alphas(path, file.metadata)
    is_rotated = _are_rotated(parts)
    if is_rotated:
        _log.warning("%s was rotated for 8-bit kernels and is rotated back", path)
    changes: dict[str, Change] = {}
    for module, roles in parts.items():
        changes |= _changes(module, roles, alphas, is_rotated and _is_in_block(module))
    for name, change in changes.items():
        if name not in shapes or tuple(change.shape) != shapes[name]:
            wanted = shapes.get(name, "no such tensor")
            raise ValueError(
                f"{path} is for another {NOUNS[network]}: it changes {name} as a tensor of shape "
                f"{tuple(change.shape)}, and this model has {wanted}"
            )
    return Adapter(path, changes, file.metadata, stamp, network)


def _chosen(
    network: Network,
    path: str | os.PathLike[str],
    transformer: TransformerConfig | None,
    vae: VAEConfig | None,
) -> TransformerConfig | VAEConfig:
    """The network that an adapter changes.

    Raises:
      ValueError: if there is none.
    """
    cfg = transformer if network == "transformer" else vae
    if cfg is None:
        raise ValueError(f"{path} is an adapter of a {NOUNS[network]}, and there is none to change")
    return cfg


def read_again(
    adapter: Adapter, transformer: TransformerConfig | None, vae: VAEConfig | None = None
) -> Adapter:
    """An adapter, read again if its file has changed or it is that of a run.

    Raises:
      ValueError: as `read`.
    """
    is_current = adapter.stamp is not None and adapter.stamp == _stamp(adapter.path)
    return adapter if is_current else read(adapter.path, transformer, vae)


def _stamp(file: Path) -> tuple[int, int] | None:
    """Time of change and size of a file; None if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def check_base(adapter: Adapter, checkpoint: Checkpoint) -> None:
    """Compares the base that an adapter names with the checkpoint that it is used with.

    Another checkpoint of the same architecture gets a notice: adapters of one release are used with
    later ones and with fine-tuned ones, and the same weights in another format have another hash.

    Raises:
      ValueError: if the base is a release whose network computes something else, although its
        tensors may have the same shapes.
    """
    origin, own_hash = Origin.from_metadata(adapter.metadata), checkpoint.base_hash(adapter.network)
    if origin.base_hash in ("", own_hash):
        return
    base = origin.base or "a checkpoint"
    released = releases.network(base, adapter.network)
    own = checkpoint.network(adapter.network)
    for field in dataclasses.fields(released) if released is not None else ():
        theirs, ours = (getattr(cfg, field.name) for cfg in (released, own))
        if theirs != ours:
            raise ValueError(
                f"{adapter.path} was made for {base}, another version than this checkpoint: "
                f"{field.name} is {theirs} there and {ours} here"
            )
    _log.warning(
        "%s was made for %s (%.8s), and this is another checkpoint (%.8s): what it does may differ",
        *(adapter.path, base, origin.base_hash, own_hash),
    )


def check(path: str | os.PathLike[str]) -> None:
    """Opens an adapter without reading its values, so that a wrong path is reported early.

    Raises:
      ValueError: if there is no adapter, or its header is damaged.
    """
    if not run_config.is_run(path):
        tensors.open_file(file_of(path))
    elif not run_config.trains_adapter(run_config.read_config(path)):
        raise ValueError(f"{path} is a run that trains no adapter: pass it as --checkpoint")


def of_run(run: Any, path: str | os.PathLike[str], cfg: TransformerConfig | VAEConfig) -> Adapter:
    """The adapter of a run of ltx-train (`runs.RunAdapter`) by official names.

    Args:
      run: what was read of it.
      path: the run, or a step of it.
      cfg: the network.

    Raises:
      ValueError: if it was trained for another network.
    """
    network = network_of(run.cfg.model)
    if run.cfg.model != cfg:
        raise ValueError(f"the adapter of {path} was trained for another {NOUNS[network]}")
    base = run_config.read_base(path)
    origin = Origin(
        base=releases.name_of(base.path),
        base_hash=base.source_hash,
        dataset=", ".join(Path(source.path).name for source in run.cfg.data.sources),
        steps=run.step,
        rank=run.cfg.adapter.rank,
    )
    scale, metadata = run.cfg.adapter.scale, origin.to_metadata(network)
    data = run.cfg.data
    if data.reference != "none":
        metadata["reference_downscale_factor"] = str(data.reference_downscale_factor)
    return adapter_trees.named(run.adapter, cfg, scale, Path(path), metadata)


def _are_rotated(parts: Mapping[str, Mapping[str, tensors.StoredTensor]]) -> bool:
    """Whether an adapter was converted for kernels that rotate activations (LTX-Video-Q8-Kernels).

    Nothing in the file says so. That conversion multiplies the rows of `lora_A` in the blocks by a
    Hadamard matrix, rounds them to 8-bit floats and stores them in 16 bits; `lora_B` stays.
    """
    pairs = [
        (roles["down"], roles["up"])
        for module, roles in parts.items()
        if _is_in_block(module) and {"down", "up"} <= roles.keys()
    ]
    pairs = [pair for pair in pairs if pair[0].dtype.itemsize > 1][:4]
    return bool(pairs) and all(
        _are_float8(down.read()) and not _are_float8(up.read()) for down, up in pairs
    )


def _is_in_block(module: str) -> bool:
    return module.startswith("transformer_blocks.")


def _are_float8(values: np.ndarray) -> bool:
    values = values.astype(np.float32)
    return bool((values.astype(tensors.DTYPES["F8_E4M3"]).astype(np.float32) == values).all())


class _Parts:
    """The tensors of one module, taken role by role, so that none is overlooked."""

    def __init__(self, roles: Mapping[str, tensors.StoredTensor]):
        self.roles = roles
        self.path = next(iter(roles.values())).path
        self._left = {role: _value(tensor) for role, tensor in roles.items()}

    def take(self, role: str) -> np.ndarray | None:
        """A tensor, or None if there is none with this role."""
        return self._left.pop(role, None)

    def product(self, left: str, right: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Two matrices that are multiplied with each other, or None if there is neither."""
        a, b = self.take(left), self.take(right)
        names = [self.roles[role].name for role in (left, right) if role in self.roles]
        if a is None and b is None:
            return None
        if a is None or b is None:
            raise ValueError(
                f"{self.path}: {names[0]} lacks its other half: the file is incomplete"
            )
        window = max(b.ndim - 2, 0) if right == "down" else 0  # of a convolution
        if a.ndim == 2 + window and set(a.shape[2:]) <= {1}:
            a = a.reshape(*a.shape[:2])
        if a.ndim != 2 or b.ndim != 2 + window or a.shape[1] != b.shape[0] or 0 in (a.size, b.size):
            raise ValueError(
                f"{self.path}: {names[0]} {a.shape} and {names[1]} {b.shape} have no common rank"
            )
        return a, b

    def refuse_rest(self, reason: str) -> None:
        """Checks that everything has been taken."""
        for role in self._left:
            raise ValueError(f"{self.path}: {self.roles[role].name} {reason}")


def _changes(
    module: str, roles: Mapping[str, tensors.StoredTensor], alphas: Alphas, is_rotated: bool
) -> dict[str, Change]:
    """The changes of one module's tensors, by official name; a rotated `lora_A` is rotated back."""
    parts = _Parts(roles)
    weight, bias = _tensor_names(module)
    stored_alpha, magnitude = parts.take("alpha"), parts.take("magnitude")
    if stored_alpha is not None and stored_alpha.size != 1:
        raise ValueError(
            f"{parts.path}: {roles['alpha'].name} must be one number, and has the shape "
            f"{stored_alpha.shape}"
        )
    alpha = None if stored_alpha is None else float(stored_alpha.reshape(()))

    def scale(rank: int) -> float:
        return alphas.scale(module, rank, alpha)

    kinds: list[Change] = []
    biases: list[Change] = []
    if (matrices := parts.product("up", "down")) is not None:
        up, down = matrices
        down = rotate(down.astype(np.float32)) if is_rotated else down
        factor = scale(len(down))
        kinds.append(LowRank(down, up, factor))
        if (up_bias := parts.take("up_bias")) is not None:
            biases.append(Difference(up_bias, factor))
    first, second = (parts.product(f"hadamard_a{i}", f"hadamard_b{i}") for i in (1, 2))
    if first is not None and second is not None:
        kinds.append(HadamardProduct(*first, *second, scale(len(first[1]))))
    elif first is not None or second is not None:
        raise ValueError(f"{parts.path} lacks one of the two products of {module}")
    if any(role.startswith("kronecker") for role in roles):
        kinds.append(_kronecker(module, parts, scale))
    if (difference := parts.take("difference")) is not None:
        kinds.append(Difference(difference))
    if (replacement := parts.take("replacement")) is not None:
        kinds.append(Replacement(replacement))
    if (difference := parts.take("bias_difference")) is not None:
        biases.append(Difference(difference))
    parts.refuse_rest("lacks the change that it belongs to")
    if len(kinds) > 1 or len(biases) > 1:
        raise ValueError(f"{parts.path} changes {module} in several ways at once")
    for role, value in (("magnitude", magnitude), ("alpha", stored_alpha)):
        if value is not None and not kinds:
            raise ValueError(
                f"{parts.path}: {roles[role].name} lacks the change that it belongs to"
            )
    if magnitude is not None:
        magnitude = magnitude[:, None] if magnitude.ndim == 1 else magnitude
        rows, *columns = kinds[0].shape
        if len(columns) != 1 or magnitude.shape not in ((rows, 1), (1, *columns)):
            raise ValueError(
                f"{parts.path}: {roles['magnitude'].name} has the shape {magnitude.shape}, and the "
                f"layer {kinds[0].shape}"
            )
        kinds = [Renormalized(kinds[0], magnitude)]
    return dict(zip((weight,), kinds, strict=False)) | dict(zip((bias,), biases, strict=False))


def _kronecker(module: str, parts: _Parts, scale: Callable[[int], float]) -> KroneckerProduct:
    factors, rank = [], None
    for i in (1, 2):
        matrices = parts.product(f"kronecker_{i}a", f"kronecker_{i}b")
        if matrices is not None:
            rank = len(matrices[1])  # of the second factor if both have one
        elif (whole := parts.take(f"kronecker_{i}")) is not None and whole.ndim == 2:
            matrices = (whole,)
        else:
            raise ValueError(f"{parts.path} lacks factor {i} of the product of {module}")
        factors.append(matrices)
    first, second = factors
    return KroneckerProduct(first, second, 1.0 if rank is None else scale(rank))


def _tensor_names(module: str) -> tuple[str, str]:
    """Official names of a module's weight and bias; a table is a tensor and no module."""
    if module.endswith("scale_shift_table"):
        return module, f"{module}.bias"
    return f"{module}.weight", f"{module}.bias"


def _value(tensor: tensors.StoredTensor) -> np.ndarray:
    """The values as stored, or in float32 if they are no floats of 16 or 32 bits."""
    is_usual = tensor.code in ("F32", "F16", "BF16")
    value = tensor.read() if is_usual else tensor.read_as(np.dtype(np.float32))
    if not np.isfinite(value.astype(np.float32, copy=False)).all():
        raise ValueError(f"{tensor.path}: {tensor.name} is not finite: the adapter is damaged")
    return value


Loaded = Sequence[tuple[Adapter, float]]  # adapters with their strengths, in their order


def merge(
    params: Mapping[str, Any],
    cfg: TransformerConfig | VAEConfig,
    adapters: Loaded,
    *,
    donate: bool = False,
) -> dict[str, Any]:
    """Merges adapters into a network's parameters, in their order.

    Each changed tensor is computed in float32 and rounded to its dtype once. The others are shared
    with `params`.

    Args:
      params: the stored parameters, on any devices.
      cfg: the network.
      adapters: adapters of it, and their strengths.
      donate: reuses the memory of `params`, whose changed arrays must not be used any more. Without
        it they stay as they are, beside the new ones.
    """
    result = jax.tree.map(lambda x: x, dict(params))
    for leaf, node, changed in _changed_leaves(result, cfg, adapters):
        whole = jnp.asarray(node[leaf.path[-1]])
        # Only the last part of the path matters to the layout: parameters share their programs.
        shared = leaf._replace(path=leaf.path[-1:], names=())
        for number, (i, changes, strengths) in enumerate(changed):
            # The layout is kept, so that programs compiled for the old parameters fit the new ones.
            layout = whole.sharding if whole.committed else None
            program = _program(layout, donate=donate or number > 0)
            whole = program(shared, whole, i, changes, strengths)
        node[leaf.path[-1]] = whole
    return result


def merge_lazily(
    params: Mapping[str, Any], cfg: TransformerConfig | VAEConfig, adapters: Loaded
) -> Any:
    """Does what `merge` does when a parameter is read, one layer at a time.

    Args:
      params: arrays, or `placement.StoredParameter`s, which must not change afterwards.
      cfg: the network.
      adapters: adapters of that network, and their strengths.
    """
    result = jax.tree.map(lambda x: x, dict(params))
    for leaf, node, changed in _changed_leaves(result, cfg, adapters):
        node[leaf.path[-1]] = _Merged(leaf, node[leaf.path[-1]], changed)
    return result


_Changed = list[tuple[int, tuple[Change, ...], Any]]  # layer, changes, strengths


def _changed_leaves(
    tree: dict[str, Any], cfg: TransformerConfig | VAEConfig, adapters: Loaded
) -> Iterator[tuple[keys.Leaf, dict[str, Any], _Changed]]:
    """The parameters that adapters change, with the nodes of the tree that hold them."""
    for leaf in keys.adaptable_leaves(cfg):
        changed = []
        for i, name in enumerate(leaf.names):
            steps = [(a.changes[name], s) for a, s in adapters if name in a.changes]
            if steps:
                changes, strengths = zip(*steps, strict=True)
                changed.append((i, changes, jnp.asarray(strengths, jnp.float32)))
        if changed:
            node = tree
            for part in leaf.path[:-1]:
                node = node[part]
            yield leaf, node, changed


class _Merged:
    """A parameter with adapters, merged whenever one of its layers is read."""

    def __init__(self, leaf: keys.Leaf, whole: Any, changed: _Changed):
        self._leaf, self._whole = leaf, whole
        self._changed = {i: steps for i, *steps in changed}
        self.shape, self.dtype = leaf.shape, np.dtype(whole.dtype)

    def __getitem__(self, layer: int) -> np.ndarray:
        """A layer of a stacked parameter.

        Raises:
          ValueError: if a value of it is not finite.
        """
        return self._merged(layer, self._whole[layer])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole."""
        if self._leaf.stacked:
            return np.stack([self[i] for i in range(self.shape[0])])
        return self._merged(0, self._whole)

    def _merged(self, i: int, layer: Any) -> np.ndarray:
        layer = np.asarray(layer)
        if i not in self._changed:
            return layer
        one = keys.Leaf(self._leaf.path[-1:], self._leaf.layer_shape, names=())
        merged = np.asarray(_program(None, donate=False)(one, layer, 0, *self._changed[i]))
        if not np.isfinite(merged.astype(np.float32, copy=False)).all():
            raise ValueError(
                f"{self._leaf.names[i]} with the adapters is not finite as {self.dtype}: lower "
                "their strengths, or set --dtype"
            )
        return merged


@functools.lru_cache(maxsize=32)
def _program(layout: Any, donate: bool) -> Callable[..., Any]:
    """The compiled `_with_changes` for a layout of the result."""
    donated = ("whole",) if donate else ()
    return jax.jit(
        _with_changes, static_argnames="leaf", out_shardings=layout, donate_argnames=donated
    )


def _with_changes(
    leaf: keys.Leaf, whole: Any, i: Any, changes: tuple[Change, ...], strengths: Any
) -> Any:
    """A parameter after changes of one of its layers, or of all of it if it is not stacked."""
    layer = whole[i] if leaf.stacked else whole
    value = leaf.to_stored(layer.astype(jnp.float32))
    changes = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), changes)
    for change, strength in zip(changes, strengths, strict=True):
        value = change(value, strength)
    layer = leaf.from_stored(value).astype(whole.dtype)
    return whole.at[i].set(layer) if leaf.stacked else layer
