"""Directories as diffusers saves them: transformer/, vae/ and scheduler/, each with its config.

Sharded files are read and written. config.json cannot say whether positions are causal, nor list
the allowed steps: files that this package wrote have both in their metadata; in others they are
inferred from the pipeline's class, or from the VAE's family.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ltx_jax.checkpoints import (
    diffusers_config,
    diffusers_vae,
    keys,
    official,
    official_config,
    placement,
    tensors,
)
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.tensors import Pending, StoredTensor
from ltx_jax.config import DType, TransformerConfig
from ltx_jax.runtime import files

_WEIGHTS = "diffusion_pytorch_model"
_INDEX = f"{_WEIGHTS}.safetensors.index.json"
_SCHEDULER = "scheduler/scheduler_config.json"
_PIPELINES = {False: "LTXPipeline", True: "LTXConditionPipeline"}  # key: positions are causal
# The version of diffusers whose configuration files are written.
_VERSION = "0.36.0"
_MAX_SHARD_BYTES = 10 * 10**9  # diffusers' own limit


def is_directory(path: Path) -> bool:
    """Whether `path` is such a directory, or one network of it."""
    return any((path / part / "config.json").is_file() for part in ("transformer", "vae"))


def read(
    path: Path, *, mesh: Mesh | None = None, dtype: DType | None = None, allow_fp8: bool = False
) -> Checkpoint:
    """Reads a directory: the networks it holds.

    Arguments and errors are those of `official.read`.
    """
    pipeline = None
    if (path / "model_index.json").is_file():
        pipeline = _json(path / "model_index.json").get("_class_name")
    # Other tools write metadata too; only that of this package describes the model.
    raw_metadata: dict[str, str] = {}
    files: list[Path] = []
    networks: dict[str, tuple[dict[str, Any], dict[str, StoredTensor]]] = {}
    for part in ("transformer", "vae"):
        config = path / part / "config.json"
        if not config.is_file():
            continue
        stored, metadata = _open(path / part)
        networks[part] = (_json(config), stored)
        raw_metadata = raw_metadata or {k: v for k, v in metadata.items() if k != "format"}
        files += [config, *sorted({tensor.path for tensor in stored.values()})]
    metadata_configs = None
    if "config" in raw_metadata:
        metadata_configs = official_config.parse(raw_metadata["config"], str(path))

    checkpoint = Checkpoint(metadata=raw_metadata if metadata_configs is not None else {})
    if "vae" in networks:
        _read_vae(
            checkpoint, path / "vae", *networks["vae"], metadata_configs, mesh, dtype, allow_fp8
        )
    if "transformer" in networks:
        raw, stored = networks["transformer"]
        cfg = diffusers_config.transformer(raw, str(path / "transformer" / "config.json"))
        new_vae = any(block.name.endswith("_res") for block in _encoder(checkpoint))
        cfg = _with_positions(cfg, metadata_configs, pipeline, new_vae)
        boxed = keys.transformer_boxed(cfg)
        rename = keys.diffusers_transformer_name
        leaves = [leaf.renamed(rename) for leaf in keys.transformer_leaves(boxed)]
        where = str(path / "transformer")
        placement.check(where, "the transformer", leaves, stored, allow_fp8=allow_fp8)
        checkpoint.transformer_params = placement.read(leaves, boxed, stored, mesh, dtype)
        checkpoint.transformer = cfg
    if metadata_configs is not None:
        checkpoint.scheduler = metadata_configs.scheduler
        checkpoint.allowed_inference_steps = metadata_configs.allowed_inference_steps
    if (path / _SCHEDULER).is_file():
        files.append(path / _SCHEDULER)
        raw = _json(path / _SCHEDULER)
        # A file that this package wrote has our configuration in its metadata: nothing is inferred.
        if metadata_configs is None or not _says(
            raw, diffusers_config.dump_scheduler(metadata_configs.scheduler)
        ):
            checkpoint.scheduler = diffusers_config.scheduler(raw, str(path / _SCHEDULER), pipeline)
    checkpoint.source_hash = tensors.fingerprint(files)
    return checkpoint


def _says(raw: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return all(raw.get(key) == value for key, value in expected.items())


def _encoder(checkpoint: Checkpoint) -> tuple[Any, ...]:
    return checkpoint.vae.encoder_blocks if checkpoint.vae is not None else ()


def _with_positions(
    cfg: TransformerConfig,
    metadata_configs: official_config.Configs | None,
    pipeline: str | None,
    new_vae: bool,
) -> TransformerConfig:
    """Decides whether positions are causal, which config.json does not say."""
    if metadata_configs is not None and metadata_configs.transformer is not None:
        own = diffusers_config.dump_transformer(metadata_configs.transformer)
        if own == diffusers_config.dump_transformer(cfg):
            return metadata_configs.transformer
    # Causal positions came with 0.9.5, its pipeline and its VAE; 13B models (48 layers) are later.
    causal = pipeline == _PIPELINES[True] or new_vae or cfg.num_layers == 48
    return dataclasses.replace(cfg, causal_temporal_positioning=causal)


def _read_vae(
    checkpoint: Checkpoint,
    path: Path,
    raw: dict[str, Any],
    stored: dict[str, StoredTensor],
    metadata_configs: official_config.Configs | None,
    mesh: Mesh | None,
    dtype: DType | None,
    allow_fp8: bool,
) -> None:
    cfg, blocks = diffusers_vae.vae(raw, str(path / "config.json"))
    if metadata_configs is not None and metadata_configs.vae is not None:
        # The same blocks can be listed in several ways: keep the original file's.
        own = diffusers_vae.dump_vae(metadata_configs.vae)
        if own == diffusers_vae.dump_vae(cfg):
            cfg, blocks = metadata_configs.vae, diffusers_vae.vae_names(metadata_configs.vae)
    boxed = keys.vae_boxed(cfg)
    rename = diffusers_vae.vae_renamer(blocks)
    leaves = [leaf.renamed(rename) for leaf in keys.vae_leaves(cfg, boxed)]
    stored = dict(stored)
    std, mean = (
        stored.pop(rename(name), None) for name in (keys.STATISTICS_STD, keys.STATISTICS_MEAN)
    )
    placement.check(str(path), "the VAE", leaves, stored, allow_fp8=allow_fp8)
    checkpoint.statistics = official.read_statistics(
        str(path), std, mean, cfg.latent_channels, mesh
    )
    checkpoint.vae_params = placement.read(leaves, boxed, stored, mesh, dtype)
    checkpoint.vae = cfg


def _json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return official_config.parse_json(text, str(path))


def _open(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of one network's folder, of all its shards, and the metadata of the first."""
    if (path / _INDEX).is_file():
        weight_map = _json(path / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{path / _INDEX} has no weight_map")
        shards = [path / name for name in sorted(set(weight_map.values()))]
        absent = [shard.name for shard in shards if not shard.is_file()]
        if absent:
            raise ValueError(f"{path} lacks {absent}, which {_INDEX} lists: fetch them too")
    else:
        shards = _unlisted(path)
    stored: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for shard in shards:
        file = tensors.open_file(shard)
        twice = sorted(set(file.tensors) & set(stored))
        if twice:
            raise ValueError(f"{shard} holds {placement.some(twice)}, as another file does")
        stored |= file.tensors
        metadata = metadata or file.metadata
    return stored, metadata


def _unlisted(path: Path) -> list[Path]:
    """The weights of a folder without an index: one file, or shards, or one of its variants."""
    if (path / f"{_WEIGHTS}.safetensors").is_file():
        return [path / f"{_WEIGHTS}.safetensors"]
    shards = sorted(path.glob(f"{_WEIGHTS}-*.safetensors"))
    variants = sorted(path.glob(f"{_WEIGHTS}.*.safetensors"))
    if shards:
        return shards
    if len(variants) == 1:
        return variants
    if variants:
        names = [file.name for file in variants]
        raise ValueError(f"{path} holds several variants, {names}: leave one of them")
    pickles = any(path.glob("*.bin"))
    hint = ", only pickles: save them with safe_serialization=True" if pickles else ""
    raise ValueError(f"{path} holds no {_WEIGHTS}.safetensors{hint}")


def write(path: Path, checkpoint: Checkpoint, *, max_shard_bytes: int = _MAX_SHARD_BYTES) -> None:
    """Writes a directory that diffusers' classes load; it appears whole or not at all.

    The pipeline's model_index.json is written, but no text encoder or tokenizer: pass them to the
    pipeline.

    Raises:
      ValueError: if diffusers cannot express the configuration (says why), if `path` holds files,
        or if the place cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is no empty folder: choose another")
    configs = {_SCHEDULER: diffusers_config.dump_scheduler(checkpoint.scheduler)}
    parts: dict[str, dict[str, Pending]] = {}
    by_name = official.official_tensors(checkpoint)
    if checkpoint.transformer is not None:
        configs["transformer/config.json"] = diffusers_config.dump_transformer(
            checkpoint.transformer
        )
        parts["transformer"] = {
            keys.diffusers_transformer_name(name.removeprefix(keys.TRANSFORMER_PREFIX)): tensor
            for name, tensor in by_name.items()
            if name.startswith(keys.TRANSFORMER_PREFIX)
        }
    if checkpoint.vae is not None:
        configs["vae/config.json"] = diffusers_vae.dump_vae(checkpoint.vae)
        rename = diffusers_vae.vae_renamer(diffusers_vae.vae_names(checkpoint.vae))
        parts["vae"] = {
            rename(name.removeprefix(keys.VAE_PREFIX)): tensor
            for name, tensor in by_name.items()
            if name.startswith(keys.VAE_PREFIX)
        }
        if checkpoint.statistics is None:
            channels = checkpoint.vae.latent_channels
            parts["vae"]["latents_mean"] = tensors.pending(np.zeros(channels, np.float32))
            parts["vae"]["latents_std"] = tensors.pending(np.ones(channels, np.float32))
    configs["model_index.json"] = _model_index(checkpoint)

    metadata = {**official.metadata(checkpoint), "format": "pt"}
    with files.atomic_folder(path) as temporary:
        for part, entries in parts.items():
            _write_weights(temporary / part, entries, metadata, max_shard_bytes)
        for name, raw in configs.items():
            text = json.dumps({**raw, "_diffusers_version": _VERSION}, indent=2, sort_keys=True)
            files.atomic_write_text(temporary / name, f"{text}\n")


def _model_index(checkpoint: Checkpoint) -> dict[str, Any]:
    causal = (
        checkpoint.transformer is not None and checkpoint.transformer.causal_temporal_positioning
    )
    return {
        "_class_name": _PIPELINES[causal],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "LTXVideoTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLLTXVideo"],
    }


def _write_weights(
    path: Path, entries: Mapping[str, Pending], metadata: Mapping[str, str], max_shard_bytes: int
) -> None:
    shards: list[dict[str, Pending]] = [{}]
    room = max_shard_bytes
    for name, tensor in entries.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        tensors.write_file(path / f"{_WEIGHTS}.safetensors", shards[0], metadata)
        return
    weight_map = {}
    for i, shard in enumerate(shards):
        name = f"{_WEIGHTS}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors.write_file(path / name, shard, metadata)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in entries.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True)
    files.atomic_write_text(path / _INDEX, f"{text}\n")
