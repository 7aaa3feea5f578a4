"""Writes adapters of the transformer under the names that ComfyUI or diffusers read.

ComfyUI's loader (comfy/lora.py, comfy/weight_adapter) takes the official names of modules below
`diffusion_model.`; alpha lies beside the matrices. Diffusers' loader (LTXVideoLoraLoaderMixin)
takes its own names below `transformer.`, no key without `lora` in it, and peft's settings in the
metadata. Neither loads adapters of the VAE's decoder: these have the official names of files,
below `vae.`, and are otherwise written as for ComfyUI.
"""

import collections
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltx_jax.checkpoints import keys, tensors
from ltx_jax.checkpoints.adapter_changes import Change, Difference, LowRank
from ltx_jax.checkpoints.adapter_metadata import PEFT_PREFIX, PEFT_SETTINGS
from ltx_jax.checkpoints.checkpoint import Network
from ltx_jax.config import AdapterNaming, DType

_PREFIXES: dict[Network, str] = {"transformer": "diffusion_model.", "vae": keys.VAE_PREFIX}


def write(
    path: Path,
    changes: Mapping[str, Change],
    *,
    network: Network = "transformer",
    naming: AdapterNaming = "comfy",
    metadata: Mapping[str, str] | None = None,
    dtype: DType | None = None,
) -> None:
    """Writes an adapter; the file appears whole or not at all.

    Args:
      path: a safetensors file.
      changes: by official name of the tensor, without the prefix of files: `LowRank`, and
        `Difference` of biases, norms and tables (with diffusers' names: of the biases of layers
        that have a low-rank change too).
      network: which one they change.
      naming: whose names.
      metadata: of the file, such as `Origin.to_metadata`.
      dtype: of the tensors; None keeps that of each.

    Raises:
      ValueError: for a change that these names cannot express, one that is not finite, or a place
        that cannot be written.
    """
    if not changes:
        raise ValueError(f"there is nothing to write to {path}: this adapter changes no tensor")
    named, settings = entries(changes, naming, network)
    arrays = {}
    for name, value in named.items():
        array = np.asarray(value)
        if dtype is not None and not name.endswith(".alpha"):
            with np.errstate(over="ignore"):  # infinity is reported below
                array = array.astype(np.dtype(dtype))
        if not np.isfinite(array.astype(np.float32)).all():
            raise ValueError(f"{name} is not finite (as {array.dtype}): it is not written")
        arrays[name] = tensors.pending(array)
    tensors.write_file(path, arrays, {"format": "pt", **(metadata or {}), **settings})


def entries(
    changes: Mapping[str, Change], naming: AdapterNaming, network: Network = "transformer"
) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of an adapter's file by name, and the metadata that belong to them.

    Raises:
      ValueError: for a change that these names cannot express.
    """
    if naming == "comfy":
        return _comfy(changes, _PREFIXES[network]), {}
    if network == "vae":
        raise ValueError(
            "diffusers has no names for adapters of a VAE, and loads none: leave --format out, or "
            "merge it into a checkpoint (ltx-export BASE OUT --merge)"
        )
    return _diffusers(changes)


def check(name: str, change: Change, naming: AdapterNaming) -> None:
    """Checks that a naming has a key for a change, as far as this change alone shows.

    Raises:
      ValueError: if it has none.
    """
    if naming == "diffusers" and not isinstance(change, LowRank) and not name.endswith(".bias"):
        raise _no_key(name)


def _no_key(name: str) -> ValueError:
    return ValueError(
        f"diffusers' names have no key for the change of {name}, which is not of low rank: write "
        "ComfyUI's"
    )


def _module(name: str) -> str:
    return name.removesuffix(".weight").removesuffix(".bias")


def _pair(module: str, change: LowRank) -> dict[str, Any]:
    # For a convolution, `lora_B` is a kernel too, with a window of one position.
    up = change.up.reshape(*change.up.shape, *(1,) * (change.down.ndim - 2))
    return {f"{module}.lora_A.weight": change.down, f"{module}.lora_B.weight": up}


def _comfy(changes: Mapping[str, Change], prefix: str) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, change in changes.items():
        module = prefix + _module(name)
        if isinstance(change, LowRank):
            entries |= _pair(module, change)
            if float(change.scale) != 1:
                entries[f"{module}.alpha"] = np.float32(float(change.scale) * len(change.down))
        else:
            end = ".diff_b" if name.endswith(".bias") else ".diff"
            entries[module + end] = _whole(name, change)
    return entries


def _diffusers(changes: Mapping[str, Change]) -> tuple[dict[str, Any], dict[str, str]]:
    pairs = {_module(name): x for name, x in changes.items() if isinstance(x, LowRank)}
    biases = {_module(name): (name, x) for name, x in changes.items() if name.endswith(".bias")}
    for name, change in changes.items():
        check(name, change, "diffusers")
        if _module(name) not in pairs:
            raise _no_key(name)
    entries: dict[str, Any] = {}
    ranks, alphas = {}, {}
    for module, change in pairs.items():
        name = keys.diffusers_transformer_name(module)
        key = PEFT_PREFIX + name
        entries |= _pair(key, change)
        ranks[name] = len(change.down)
        alphas[name] = float(change.scale) * ranks[name]
        if biases:  # peft has a bias in all layers or in none
            bias = np.zeros(len(change.up), np.asarray(change.up).dtype)
            if module in biases and float(change.scale):
                whole = np.asarray(_whole(*biases[module]), np.float32)
                bias = (whole / np.float32(change.scale)).astype(bias.dtype)
            entries[f"{key}.lora_B.bias"] = bias
    return entries, {PEFT_SETTINGS: json.dumps(_peft_settings(ranks, alphas, bool(biases)))}


def _peft_settings(
    ranks: Mapping[str, int], alphas: Mapping[str, float], has_biases: bool
) -> dict[str, Any]:
    """The fields of a LoraConfig: the most frequent rank and alpha, and the layers that differ."""
    rank = collections.Counter(ranks.values()).most_common(1)[0][0]
    alpha = collections.Counter(alphas.values()).most_common(1)[0][0]
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{name}": x for name, x in ranks.items() if x != rank},
        "alpha_pattern": {f"^{name}": x for name, x in alphas.items() if x != alpha},
        "target_modules": list(ranks),
        "lora_bias": has_biases,
        "use_rslora": False,
        "use_dora": False,
    }
    return {PEFT_PREFIX + name: value for name, value in settings.items()}


def _whole(name: str, change: Change) -> Any:
    """The values of a `Difference`, its scale applied."""
    if not isinstance(change, Difference):
        raise ValueError(
            f"the change of {name} is a {type(change).__name__}: only low-rank changes and "
            "differences are written"
        )
    value = np.asarray(change.difference)
    if float(change.scale) == 1:
        return value
    return (value.astype(np.float32) * np.float32(change.scale)).astype(value.dtype)
