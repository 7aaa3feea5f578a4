"""Adapters of the transformer (LoRA and similar ones): reads them, merges them into its weights.

A key of an adapter's file is PREFIX + MODULE + SUFFIX. The prefix tells who wrote it (ComfyUI,
diffusers, peft, kohya); modules are named as in official files or as in diffusers, also flattened
(`_` for `.`); the suffix says what the tensor is. An unknown key is an error.
"""

import dataclasses
import difflib
import functools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ltx_jax.checkpoints import keys, tensors
from ltx_jax.checkpoints.adapter_changes import (
    Change,
    Difference,
    HadamardProduct,
    KroneckerProduct,
    LowRank,
    Renormalized,
    Replacement,
)
from ltx_jax.checkpoints.quantized import rotate
from ltx_jax.config import TransformerConfig

_log = logging.getLogger(__name__)

# The longer ones first. Those of the second group stand before flattened names.
_PREFIXES = (
    "transformer.base_model.model.",
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
)
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")

# What a tensor is, by the end of its key; longer ends first where one ends with another.
_ROLES = {
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_A": "down",
    ".lora_B": "up",
    ".lora_B.bias": "up_bias",
    ".lora_B.default.bias": "up_bias",
    ".alpha": "alpha",
    ".dora_scale": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".diff": "difference",
    ".w_norm": "difference",
    ".diff_b": "bias_difference",
    ".b_norm": "bias_difference",
    ".set_weight": "replacement",
    **{f".hada_w{i}_{x}": f"hadamard_{x}{i}" for i in (1, 2) for x in "ab"},
    **{f".lokr_w{i}": f"kronecker_{i}" for i in (1, 2)},
    **{f".lokr_w{i}_{x}": f"kronecker_{i}{x}" for i in (1, 2) for x in "ab"},
}
_ENDS = sorted(_ROLES, key=len, reverse=True)

# Ends of the keys of adapters that are not supported.
_UNSUPPORTED = re.compile(
    r"\.(lora_mid|hada_t[12]|lokr_t2|oft_[A-Z]+|oft_blocks|oft_diag|boft_[A-Z]+|a1|a2|b1|b2|"
    r"vera_lambda_[bd]|ia3_l|reshape_weight)(\.weight)?$"
)

# Names in the keys of adapters for other models.
_FAMILIES = {
    "LTX-2": re.compile(r"audio_|video_a2v|av_ca_"),
    "Wan": re.compile(r"(^|[._])blocks[._]\d+[._](self_attn|cross_attn|ffn)"),
    "Flux or HunyuanVideo": re.compile(r"double_blocks|single_(transformer_)?blocks"),
    "Stable Diffusion": re.compile(r"down_blocks|up_blocks|mid_block|input_blocks|lora_te"),
    "Stable Diffusion 3": re.compile(r"joint_blocks|context_block"),
}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter in memory.

    Attributes:
      path: its file.
      changes: by official name of the tensor, without the prefix of files.
      metadata: that of the file.
    """

    path: Path
    changes: Mapping[str, Change]
    metadata: Mapping[str, str]


def file_of(path: str | os.PathLike[str]) -> Path:
    """The file of an adapter: the argument, or `adapter_model.safetensors` in a folder (peft)."""
    path = Path(path)
    return path / "adapter_model.safetensors" if path.is_dir() else path


def read(path: str | os.PathLike[str], cfg: TransformerConfig) -> Adapter:
    """Reads an adapter.

    Args:
      path: as `file_of` takes it.
      cfg: the transformer that it changes.

    Raises:
      ValueError: if a key has no counterpart in this transformer, a tensor lacks its other half or
        has another shape, a value is not finite, or the adapter is of an unsupported kind. The
        message names the key.
    """
    path = file_of(path)
    file = tensors.open_file(path)
    shapes = keys.stored_shapes(keys.transformer_leaves(keys.transformer_boxed(cfg)))
    names = _Names(shapes)
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
    alphas = _Alphas(path, file.metadata)
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
                f"{path} is for another transformer: it changes {name} as a tensor of shape "
                f"{tuple(change.shape)}, and this model has {wanted}"
            )
    return Adapter(path, changes, file.metadata)


class _Names:
    """The modules of a transformer under all their names."""

    def __init__(self, tensor_names: Iterable[str]):
        modules = {name.removesuffix(".weight").removesuffix(".bias") for name in tensor_names}
        self._modules = {
            spelling: module
            for module in modules
            for spelling in (keys.diffusers_transformer_name(module), module)
        }
        self._flat = {name.replace(".", "_"): module for name, module in self._modules.items()}

    def split(self, key: str, path: Path) -> tuple[str, str]:
        """The module and the role of a key.

        Raises:
          ValueError: if there is no such module or role.
        """
        end = next((end for end in _ENDS if key.endswith(end)), None)
        if end is None:
            if match := _UNSUPPORTED.search(key):
                raise ValueError(
                    f"{path} is an adapter of a kind that is not supported ({match[1]} in {key}): "
                    "LoRA, DoRA, LoHa, LoKr and whole differences are"
                )
            raise ValueError(f"{path} has an unknown key {key}: it is no adapter, or a newer kind")
        name = key[: -len(end)]
        for prefix in _FLAT_PREFIXES:
            if name.startswith(prefix):
                return self._find(name.removeprefix(prefix), self._flat, key, path), _ROLES[end]
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
        return self._find(name.removeprefix(prefix), self._modules, key, path), _ROLES[end]

    def _find(self, name: str, modules: Mapping[str, str], key: str, path: Path) -> str:
        if name in modules:
            return modules[name]
        for family, pattern in _FAMILIES.items():
            if pattern.search(key):
                raise ValueError(
                    f"{path} is an adapter of {family}, not of LTX-Video: it has {key}"
                )
        close = difflib.get_close_matches(name, modules, n=1)
        hint = f"; the nearest layer is {close[0]}" if close else ""
        raise ValueError(f"{path} changes {key}, a layer that this transformer lacks{hint}")


class _Alphas:
    """The scales of low-rank changes, by the settings in the metadata or in peft's JSON file."""

    def __init__(self, path: Path, metadata: Mapping[str, str]):
        self._settings: dict[str, Any] = {}
        beside = path.with_name("adapter_config.json")
        if "lora_adapter_metadata" in metadata:
            where, text = f"lora_adapter_metadata of {path}", metadata["lora_adapter_metadata"]
        elif path.name.startswith("adapter_model") and beside.is_file():
            where, text = str(beside), beside.read_text(encoding="utf-8", errors="replace")
        else:
            return
        try:
            stored = dict(json.loads(text))
            self._settings = {key.removeprefix("transformer."): x for key, x in stored.items()}
            self._alpha = float(self._settings.get("lora_alpha") or 0) or None
            patterns = dict(self._settings.get("alpha_pattern") or {})
            self._patterns = [(re.compile(key), float(x)) for key, x in patterns.items()]
        except (ValueError, TypeError, RecursionError, re.error) as error:
            raise ValueError(f"{where} cannot be read: {error}") from error

    def scale(self, module: str, rank: int, stored: float | None) -> float:
        """The factor of a change; without any alpha it is 1.

        Args:
          module: official name.
          rank: of this module's change.
          stored: the alpha beside the module's tensors, if there is one.
        """
        if stored is not None:
            return stored / rank
        if not self._settings:
            return 1.0
        alpha = self._alpha
        for name in (module, keys.diffusers_transformer_name(module)):
            for pattern, value in self._patterns:
                if pattern.match(name):
                    alpha = value
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)


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


def _changes(
    module: str, roles: Mapping[str, tensors.StoredTensor], alphas: _Alphas, is_rotated: bool
) -> dict[str, Change]:
    """The changes of one module's tensors, by official name; a rotated `lora_A` is rotated back."""
    values = {role: _value(tensor) for role, tensor in roles.items()}
    first = next(iter(roles.values()))
    weight, bias = _tensor_names(module)

    def pair(*names: str) -> list[np.ndarray] | None:
        """Matrices that belong together, or None if there are none of them."""
        present = [name for name in names if name in values]
        if present and len(present) < len(names):
            raise ValueError(
                f"{first.path}: {roles[present[0]].name} lacks its other half: the file is "
                "incomplete"
            )
        return [values.pop(name) for name in names] if present else None

    def scale(rank: int) -> float:
        return alphas.scale(module, rank, alpha)

    stored_alpha = values.pop("alpha", None)
    alpha = None if stored_alpha is None else float(stored_alpha.reshape(-1)[0])
    magnitude = values.pop("magnitude", None)
    kinds: list[Change] = []
    factor = 1.0
    if (matrices := pair("down", "up")) is not None:
        down, up = matrices
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise ValueError(
                f"{first.path}: {roles['down'].name} {down.shape} and {roles['up'].name} "
                f"{up.shape} have no common rank"
            )
        down = rotate(down) if is_rotated else down
        factor = scale(down.shape[0])
        kinds.append(LowRank(down, up, factor))
    if (matrices := pair("hadamard_a1", "hadamard_b1", "hadamard_a2", "hadamard_b2")) is not None:
        kinds.append(HadamardProduct(*matrices, scale(matrices[1].shape[0])))
    if any(role.startswith("kronecker") for role in values):
        kinds.append(_kronecker(first, values, pair, scale))
    if "difference" in values:
        kinds.append(Difference(values.pop("difference")))
    if "replacement" in values:
        kinds.append(Replacement(values.pop("replacement")))
    if len(kinds) > 1:
        raise ValueError(f"{first.path} changes {module} in {len(kinds)} ways at once")
    result: dict[str, Change] = {}
    if kinds:
        change = kinds[0]
        if magnitude is not None:
            if magnitude.ndim == 1:
                magnitude = magnitude[:, None]
            change = Renormalized(change, magnitude)
        result[weight] = change
    elif magnitude is not None:
        raise ValueError(f"{first.path}: {roles['magnitude'].name} lacks the change it belongs to")
    if "up_bias" in values:
        result[bias] = Difference(values.pop("up_bias"), factor)
    if "bias_difference" in values:
        result[bias] = Difference(values.pop("bias_difference"))
    return result


def _kronecker(
    first: tensors.StoredTensor,
    values: dict[str, np.ndarray],
    pair: Callable[..., list[np.ndarray] | None],
    scale: Callable[[int], float],
) -> KroneckerProduct:
    factors, rank = [], None
    for i in (1, 2):
        if (matrices := pair(f"kronecker_{i}a", f"kronecker_{i}b")) is not None:
            rank = matrices[1].shape[0]  # of the second factor if both have one
        elif f"kronecker_{i}" in values:
            matrices = [values.pop(f"kronecker_{i}")]
        else:
            raise ValueError(f"{first.path}: {first.name} lacks factor {i} of its product")
        factors.append(tuple(matrices))
    return KroneckerProduct(*factors, 1.0 if rank is None else scale(rank))


def _tensor_names(module: str) -> tuple[str, str]:
    """Official names of a module's weight and bias; a table is a tensor and no module."""
    if module.endswith("scale_shift_table"):
        return module, f"{module}.bias"
    return f"{module}.weight", f"{module}.bias"


def _value(tensor: tensors.StoredTensor) -> np.ndarray:
    value = tensor.read().astype(np.float32)
    if not np.isfinite(value).all():
        raise ValueError(f"{tensor.path}: {tensor.name} is not finite: the adapter is damaged")
    return value


def merge(
    params: Mapping[str, Any],
    cfg: TransformerConfig,
    adapters: Sequence[tuple[Adapter, float]],
) -> dict[str, Any]:
    """Merges adapters into a transformer's parameters, in their order.

    Each changed tensor is computed in float32 and rounded to its dtype once. The others are shared
    with `params`, whose arrays are not changed.

    Args:
      params: the stored parameters, on any devices.
      cfg: the transformer.
      adapters: adapters and their strengths.
    """
    result = jax.tree.map(lambda x: x, dict(params))
    for leaf in keys.transformer_leaves(keys.transformer_boxed(cfg)):
        changed = [
            (i, [(a.changes[name], strength) for a, strength in adapters if name in a.changes])
            for i, name in enumerate(leaf.names)
            if any(name in a.changes for a, _ in adapters)
        ]
        if not changed:
            continue
        node = result
        for part in leaf.path[:-1]:
            node = node[part]
        whole = jnp.asarray(node[leaf.path[-1]])
        # Only the last part of the path matters to the layout: parameters share their programs.
        shared = leaf._replace(path=leaf.path[-1:], names=())
        for number, (i, steps) in enumerate(changed):
            changes, strengths = zip(*steps, strict=True)
            # The layout is kept, so that programs compiled for the old parameters fit the new ones.
            program = _program(whole.sharding if whole.committed else None, donate=number > 0)
            whole = program(shared, whole, i, changes, jnp.asarray(strengths, jnp.float32))
        node[leaf.path[-1]] = whole
    return result


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
    for change, strength in zip(changes, strengths, strict=True):
        value = change(value, strength)
    layer = leaf.from_stored(value).astype(whole.dtype)
    return whole.at[i].set(layer) if leaf.stacked else layer
