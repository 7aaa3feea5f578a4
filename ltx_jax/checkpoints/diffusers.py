"""Directories as diffusers saves them: transformer/, vae/ and scheduler/, each with its config.

Sharded files are read and written. config.json cannot say whether positions are causal, nor list
the allowed steps: files that this package wrote have both in their metadata; in others they are
inferred from the pipeline's class, or from the VAE's family.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
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
    quantized,
    tensors,
    weight_files,
)
from ltx_jax.checkpoints.checkpoint import NETWORKS, Checkpoint, Network
from ltx_jax.checkpoints.tensors import Pending, Tensor
from ltx_jax.config import DType, TransformerConfig, UpsamplerConfig, VAEConfig, read_object
from ltx_jax.runtime import files

_WEIGHTS = "diffusion_pytorch_model"
_INDEX = f"{_WEIGHTS}.safetensors.index.json"
_UPSAMPLER = "LTXLatentUpsamplerModel"
_SCHEDULER = "scheduler/scheduler_config.json"
_PIPELINES = {False: "LTXPipeline", True: "LTXConditionPipeline"}  # key: positions are causal
# The version of diffusers whose configuration files are written.
_VERSION = "0.36.0"
_MAX_SHARD_BYTES = 10 * 10**9  # diffusers' own limit


def is_directory(path: Path) -> bool:
    """Whether `path` is such a directory, or one network of it."""
    return any((path / part / "config.json").is_file() for part in ("transformer", "vae"))


def read(
    path: Path,
    *,
    networks: Collection[Network] = NETWORKS,
    vae: VAEConfig | None = None,
    mesh: Mesh | None = None,
    dtype: DType | None = None,
    in_memory: bool = True,
) -> Checkpoint:
    """Reads a directory: the networks it holds.

    Arguments and errors are those of `official.read`.
    """
    pipeline = None
    if (path / "model_index.json").is_file():
        pipeline = read_object(path / "model_index.json").get("_class_name")
    # Other tools write metadata too; only that of this package describes the model.
    raw_metadata: dict[str, str] = {}
    files: list[Path] = []
    parts: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {}
    for part in networks:
        config = path / part / "config.json"
        if not config.is_file():
            continue
        weights = weight_files.open_folder(path / part, _WEIGHTS)
        metadata = weights.metadata
        stored = quantized.joined(weights.tensors, metadata, str(path / part))
        parts[part] = (read_object(config), stored)
        raw_metadata = raw_metadata or {k: v for k, v in metadata.items() if k != "format"}
        files += [config, *sorted({tensor.path for tensor in stored.values()})]
    metadata_configs = None
    if "config" in raw_metadata:
        metadata_configs = official_config.parse(raw_metadata["config"], str(path))

    checkpoint = Checkpoint(metadata=raw_metadata if metadata_configs is not None else {})
    if "vae" in parts:
        placed = (mesh, dtype, in_memory)
        _read_vae(checkpoint, path / "vae", *parts["vae"], metadata_configs, *placed)
    if "transformer" in parts:
        raw, stored = parts["transformer"]
        cfg = diffusers_config.transformer(raw, str(path / "transformer" / "config.json"))
        beside = checkpoint.vae or vae
        blocks = beside.encoder_blocks if beside is not None else ()
        new_vae = any(block.name.endswith("_res") for block in blocks)
        cfg = _with_positions(cfg, metadata_configs, pipeline, new_vae)
        boxed = keys.transformer_boxed(cfg)
        rename = keys.diffusers_transformer_name
        leaves = [leaf.renamed(rename) for leaf in keys.transformer_leaves(boxed)]
        where = str(path / "transformer")
        placement.check(where, "the transformer", leaves, stored)
        placed = (mesh, dtype, in_memory)
        checkpoint.transformer_params = placement.read(leaves, boxed, stored, *placed)
        checkpoint.transformer = cfg
    if metadata_configs is not None:
        checkpoint.scheduler = metadata_configs.scheduler
        checkpoint.allowed_inference_steps = metadata_configs.allowed_inference_steps
    if (path / _SCHEDULER).is_file():
        files.append(path / _SCHEDULER)
        raw = read_object(path / _SCHEDULER)
        # A file that this package wrote has our configuration in its metadata: nothing is inferred.
        if metadata_configs is None or not _has_entries(
            raw, diffusers_config.dump_scheduler(metadata_configs.scheduler)
        ):
            checkpoint.scheduler = diffusers_config.scheduler(raw, str(path / _SCHEDULER), pipeline)
    checkpoint.source_hash = tensors.fingerprint(files)
    return checkpoint


def _has_entries(raw: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether `raw` has all expected entries; it may have others too."""
    return all(raw.get(key) == value for key, value in expected.items())


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
    stored: dict[str, Tensor],
    metadata_configs: official_config.Configs | None,
    mesh: Mesh | None,
    dtype: DType | None,
    in_memory: bool,
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
    placement.check(str(path), "the VAE", leaves, stored)
    checkpoint.statistics = official.read_statistics(
        str(path), std, mean, cfg.latent_channels, mesh
    )
    checkpoint.vae_params = placement.read(leaves, boxed, stored, mesh, dtype, in_memory)
    checkpoint.vae = cfg


def is_upsampler(path: Path) -> bool:
    """Whether `path` is a diffusers folder with a latent upsampler, or the upsampler's own."""
    return _upsampler_folder(path) is not None


def _upsampler_folder(path: Path) -> Path | None:
    for folder in (path / "latent_upsampler", path):
        config = folder / "config.json"
        if config.is_file() and read_object(config).get("_class_name") == _UPSAMPLER:
            return folder
    return None


def read_upsampler(
    path: Path, *, mesh: Mesh | None = None, dtype: DType | None = None
) -> tuple[UpsamplerConfig, Any]:
    """Reads the folder of a latent upsampler: its configuration and its parameters.

    Raises:
      ValueError: as `read` does.
    """
    folder = _upsampler_folder(path)
    if folder is None:
        raise ValueError(f"{path} holds no {_UPSAMPLER}: its config.json names another class")
    raw = read_object(folder / "config.json")
    cfg = diffusers_config.upsampler(raw, str(folder / "config.json"))
    weights = weight_files.open_folder(folder, _WEIGHTS)
    return cfg, official.read_upsampler_params(weights, cfg, str(folder), mesh, dtype)


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
