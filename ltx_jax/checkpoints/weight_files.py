"""Opens the weights of a network, in one file or several: safetensors or GGUF, whole or sharded."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ltx_jax.checkpoints import gguf_files, placement, tensors
from ltx_jax.checkpoints.tensors import Tensor
from ltx_jax.config import read_object, shown

_log = logging.getLogger(__name__)

_ENDING = ".safetensors"
_PICKLES = (".pt", ".pth", ".ckpt", ".bin")
# Variants of a folder's weights in the order of preference: "" has no variant in its name.
_PREFERRED = ("", "bf16", "fp16")


class Weights(NamedTuple):
    """The tensors of a network by name, not read yet, and the metadata of the (first) file."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def open_file(path: Path) -> Weights:
    """Opens one file.

    Raises:
      ValueError: if it is missing, damaged, or of another format.
    """
    if path.suffix in _PICKLES:
        raise ValueError(
            f"{path} is a pickle, which may run any code when opened: convert it to safetensors "
            "where you trust it"
        )
    if path.is_file() and tensors.is_gguf(path):
        metadata, stored = gguf_files.open_file(path)
        return Weights(stored, metadata)
    file = tensors.open_file(path)
    return Weights(file.tensors, file.metadata)


def open_folder(path: Path, stem: str) -> Weights:
    """Opens the weights of a folder: one file, the shards that an index lists, or shards alone.

    Args:
      path: the folder.
      stem: beginning of the files' names: STEM.safetensors, STEM-00001-of-00002.safetensors,
        STEM.safetensors.index.json, or with a variant, STEM.fp16.safetensors,
        STEM.fp16-00001-of-00002.safetensors, STEM.safetensors.index.fp16.json.

    Raises:
      ValueError: if files are missing or damaged, or hold a tensor twice.
    """
    stored: dict[str, Tensor] = {}
    metadata: Mapping[str, str] = {}
    for shard in _files(path, stem):
        file = tensors.open_file(shard)
        twice = sorted(set(file.tensors) & set(stored))
        if twice:
            raise ValueError(f"{shard} holds {placement.first_five(twice)}, as another file does")
        stored |= file.tensors
        metadata = metadata or file.metadata
    return Weights(stored, metadata)


def _files(path: Path, stem: str) -> list[Path]:
    """The files of the preferred variant."""
    variants = _variants(path, stem)
    if not variants:
        pickles = any(path.glob("*.bin"))
        hint = ", only pickles: save them with safe_serialization=True" if pickles else ""
        raise ValueError(f"{path} holds no {stem}{_ENDING}{hint}")
    chosen = next((v for v in _PREFERRED if v in variants), min(variants))
    if len(variants) > 1 and chosen:
        _log.warning("%s holds the variants %s: %s is read", path, sorted(variants), chosen)
    index = path / f"{stem}{_ENDING}.index.{f'{chosen}.' if chosen else ''}json"
    return _listed(path, index) if index.is_file() else variants[chosen]


def _variants(path: Path, stem: str) -> dict[str, list[Path]]:
    """The variants that a folder holds, and the files of each in order."""
    variants: dict[str, list[Path]] = {}
    for file in sorted(path.glob(f"{stem}*{_ENDING}")):
        # "", "-00001-of-00002", ".fp16" or ".fp16-00001-of-00002"
        variant = file.name.removeprefix(stem).removesuffix(_ENDING).partition("-")[0]
        if variant == "" or variant.startswith("."):
            variants.setdefault(variant[1:], []).append(file)
    for variant, files in variants.items():
        whole = [file for file in files if "-" not in file.name.removeprefix(stem)]
        variants[variant] = whole or files
    for file in path.glob(f"{stem}{_ENDING}.index*.json"):  # whose shards may all be missing
        middle = file.name.removeprefix(f"{stem}{_ENDING}.index").removesuffix("json")
        variants.setdefault(middle.strip("."), [])
    return variants


def _listed(path: Path, index: Path) -> list[Path]:
    """The shards that an index lists."""
    weight_map = read_object(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names:
        raise ValueError(f"{index} has no weight_map: it is not the index of a sharded model")
    foreign = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if foreign:
        raise ValueError(f"{index} lists {shown(foreign[0])}, which is no name of a file beside it")
    shards = [path / name for name in sorted(set(names))]
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise ValueError(f"{path} lacks {absent}, which {index.name} lists: fetch them too")
    return shards
