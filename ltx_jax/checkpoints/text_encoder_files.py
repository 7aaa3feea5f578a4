"""Text encoders in the layout of transformers: a directory with config.json and safetensors.

A T5 may also be a single file, see `t5_single_file`.

Tensors are read and written one at a time (`placement`). On a CPU, the peak memory of loading
is that of the parameters and a few tensors of the file; the largest of T5-XXL, the token embedding,
takes 526 MB in float32. For another device the host holds one parameter at a time, with all its
layers: at most 2 GB in bfloat16.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ltx_jax.checkpoints import (
    keys,
    placement,
    quantized,
    t5_single_file,
    tensors,
    weight_files,
)
from ltx_jax.checkpoints.keys import Leaf
from ltx_jax.checkpoints.official_config import build, check_fixed
from ltx_jax.checkpoints.tensors import Tensor
from ltx_jax.config import DType, TextEncoderConfig, read_object, shown, subclasses
from ltx_jax.models.text_network import network_class
from ltx_jax.runtime.files import atomic_write_text

MAX_TOKENS = 256  # of captions of the released models


def max_byte_tokens(directory: Path) -> int | None:
    """Longest caption, in tokens, of a directory's byte tokenizer; None for any other tokenizer.

    Raises:
      ValueError: if its configuration is damaged.
    """
    file = directory / "tokenizer_config.json"
    raw = read_object(file) if file.is_file() else {}
    if raw.get("tokenizer_class") != "ByT5Tokenizer":
        return None
    most = raw.get("model_max_length", MAX_TOKENS)
    if not isinstance(most, int | float) or most < 1:
        raise ValueError(f"{file} has model_max_length {shown(most)}, expected a number of tokens")
    # A number as large as transformers can write stands for no limit.
    return int(most) if most < 10**6 else MAX_TOKENS


def read_config(place: Path) -> TextEncoderConfig:
    """Reads the `config.json` of a directory, or infers the configuration of a single file.

    Raises:
      ValueError: if there is none, or if it describes no text encoder that there is a network for.
    """
    if place.is_file():
        return t5_single_file.read_config(place)
    file = place / "config.json"
    if not file.is_file():
        raise ValueError(f"{place} holds no config.json: it is no text encoder")
    raw = read_object(file)
    kinds = {kind.model_type: kind for kind in subclasses(TextEncoderConfig).values()}
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in kinds:
        supported = ", ".join(map(repr, kinds))
        raise ValueError(
            f"{file} describes a model of type {shown(model_type)}; supported: {supported}"
        )
    # Newer versions of transformers group the settings of rotary embeddings.
    grouped = raw.get("rope_parameters") or {}
    if not isinstance(grouped, dict):
        raise ValueError(f"{file} has rope_parameters {shown(grouped)}, expected an object")
    raw = {**raw, **grouped}
    return _parse(file, kinds[model_type], raw)


def _parse(file: Path, kind: type[TextEncoderConfig], raw: Mapping[str, Any]) -> TextEncoderConfig:
    network = network_class(kind)
    check_fixed(raw, network.file_settings, str(file))
    fields = [field.name for field in dataclasses.fields(kind)]
    needed = [name for name in fields if name not in network.file_optional]
    bad = [name for name in needed if not _is_positive(raw.get(name))]
    if bad:
        raise ValueError(f"{file} gives no positive number as {', '.join(bad)}")
    return build(kind, {name: raw[name] for name in fields if name in raw}, str(file))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def load_params(
    place: Path,
    cfg: TextEncoderConfig,
    mesh: Mesh | None = None,
    dtype: DType | None = None,
) -> dict[str, Any]:
    """Reads the parameters of the network of `cfg`, each laid out on `mesh`, in `dtype` or as
    stored.

    Raises:
      ValueError: if a file is missing or damaged, or tensors are missing, unexpected, wrongly
        shaped or not floating point; it names them. All are checked before any is read.
    """
    network = network_class(cfg)
    leaves = parameter_leaves(cfg)
    expected = {name for leaf in leaves for name in leaf.names}
    stored = {
        name.removeprefix(network.file_prefix): tensor for name, tensor in _open(place).items()
    }
    stored = {
        name: tensor
        for name, tensor in stored.items()
        if name in expected or not re.fullmatch(network.file_ignored, name)
    }
    placement.check(str(place), f"the {network.__name__} of its configuration", leaves, stored)
    return placement.read(leaves, keys.text_encoder_boxed(cfg), stored, mesh, dtype)


def save(
    directory: Path,
    cfg: TextEncoderConfig,
    params: dict[str, Any],
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a directory that `from_pretrained` of transformers loads.

    `config.json` comes last, so that a directory that was not finished does not load.

    Raises:
      ValueError: if `directory` already holds a model, or if `params` are not those of `cfg`.
    """
    if any(directory.glob("*.safetensors")):
        raise ValueError(f"{directory} already holds safetensors: choose an empty directory")
    leaves = parameter_leaves(cfg)
    arrays = dict(keys.flat(params))
    if {path: tuple(array.shape) for path, array in arrays.items()} != {
        leaf.path: leaf.shape for leaf in leaves
    }:
        raise ValueError(f"the parameters are not those of {cfg}")

    shards: list[dict[str, tensors.Pending]] = [{}]
    room = max_shard_bytes
    for leaf in leaves:
        pending = placement.pending(leaf, arrays[leaf.path])
        for name, tensor in zip(leaf.names, pending, strict=True):
            if shards[-1] and tensor.nbytes > room:
                shards.append({})
                room = max_shard_bytes
            shards[-1][name] = tensor
            room -= tensor.nbytes

    weight_map = {}
    for i, shard in enumerate(shards):
        part = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = f"model{part}.safetensors"
        tensors.write_file(directory / file, shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)
    _write_json(directory / "config.json", _config_json(cfg, arrays[leaves[0].path].dtype.name))


def parameter_leaves(cfg: TextEncoderConfig) -> list[Leaf]:
    """The parameters of the network of `cfg` and their names in the files."""
    network = network_class(cfg)
    leaves = []
    for path, shape in keys.flat(keys.text_encoder_boxed(cfg)):
        name = network.file_name(path)
        stacked = "{}" in name
        names = tuple(map(name.format, range(shape.shape[0]))) if stacked else (name,)
        leaves.append(Leaf(path, shape.shape, names, stacked))
    return leaves


def _open(place: Path) -> dict[str, Tensor]:
    if place.is_file():
        return t5_single_file.open_file(place)
    weights = weight_files.open_folder(place, "model")
    return quantized.joined(weights.tensors, weights.metadata, str(place))


def _write_json(file: Path, content: dict[str, Any]) -> None:
    atomic_write_text(file, json.dumps(content, indent=2) + "\n")


def _config_json(cfg: TextEncoderConfig, dtype: str) -> dict[str, Any]:
    network = network_class(cfg)
    return {
        "model_type": cfg.model_type,
        **dataclasses.asdict(cfg),
        **{name: accepted[0] for name, (accepted, _) in network.file_settings.items()},
        **network.file_extras(cfg),
        "torch_dtype": dtype,
    }
