"""Single-file checkpoints: the official layout, and those of other tools.

Official files are safetensors with the configuration in the metadata, as in the loaders upstream
(transformer3d.py, causal_video_autoencoder.py, rf.py). Other tools change the prefixes of names,
drop the metadata, quantise weights or write GGUF: see `layout`, `inferred_config`, `quantized`.
"""

import dataclasses
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ltx_jax.checkpoints import (
    inferred_config,
    keys,
    layout,
    official_config,
    placement,
    quantized,
    tensors,
    weight_files,
)
from ltx_jax.checkpoints.checkpoint import NETWORKS, Checkpoint, Network
from ltx_jax.checkpoints.keys import STATISTICS, STATISTICS_MEAN, STATISTICS_STD, Leaf
from ltx_jax.checkpoints.official_config import Configs
from ltx_jax.checkpoints.tensors import Pending, StoredTensor, Tensor
from ltx_jax.checkpoints.weight_files import Weights
from ltx_jax.config import DType, SchedulerConfig, UpsamplerConfig, VAEConfig
from ltx_jax.models.vae import LatentStatistics

_log = logging.getLogger(__name__)


def read(
    path: Path,
    *,
    networks: Collection[Network] = NETWORKS,
    vae: VAEConfig | None = None,
    mesh: Mesh | None = None,
    dtype: DType | None = None,
    in_memory: bool = True,
) -> Checkpoint:
    """Reads the networks of a file.

    Args:
      networks: those to read, if the file holds them.
      vae: the VAE of another file that the transformer of this file is used with. It helps to infer
        the version of a transformer whose file holds no config.
      mesh: lays the parameters out by their logical axes; None puts them on the default device.
      dtype: of the parameters; None keeps the file's dtype, but quantised weights become bfloat16.
      in_memory: as in `placement.read`.

    Raises:
      ValueError: if the file is damaged, no LTX-Video checkpoint, or of an unsupported kind, or
        if tensors are missing, unexpected or wrongly shaped; the message names them.
    """
    weights = weight_files.open_file(path)
    parts = layout.split(weights.tensors, str(path))
    configs = _configs(weights, parts, networks, vae, path)
    checkpoint = Checkpoint(
        scheduler=configs.scheduler,
        allowed_inference_steps=configs.allowed_inference_steps,
        metadata={k: v for k, v in weights.metadata.items() if k != quantized.METADATA},
        source_hash=tensors.fingerprint([path]),
    )
    rest = {name: tensor for name, tensor in parts.rest.items() if not quantized.is_marker(name)}
    context = _Context(str(path), checkpoint, mesh, dtype, parts.official, rest, in_memory)
    if configs.transformer is not None and parts.transformer and "transformer" in networks:
        boxed = keys.transformer_boxed(configs.transformer)
        leaves = keys.transformer_leaves(boxed)
        joined = _unrotated(quantized.joined(parts.transformer, weights.metadata, str(path)), path)
        stored = _rename(context, joined, keys.TRANSFORMER_PREFIX)
        checkpoint.transformer = configs.transformer
        checkpoint.transformer_params = _read(
            context, "the transformer", keys.TRANSFORMER_PREFIX, leaves, boxed, stored
        )
    if configs.vae is not None and parts.vae and "vae" in networks:
        boxed = keys.vae_boxed(configs.vae)
        leaves = keys.vae_leaves(configs.vae, boxed)
        joined = quantized.joined(parts.vae, {}, str(path))
        stored = _rename(context, joined, keys.VAE_PREFIX, leaves)
        std, mean = stored.pop(STATISTICS_STD, None), stored.pop(STATISTICS_MEAN, None)
        if std is not None and mean is None:
            checkpoint.names[keys.VAE_PREFIX + STATISTICS_MEAN] = None
        channels = configs.vae.latent_channels
        checkpoint.statistics = read_statistics(str(path), std, mean, channels, mesh)
        checkpoint.vae = configs.vae
        checkpoint.vae_params = _read(context, "the VAE", keys.VAE_PREFIX, leaves, boxed, stored)
    if not parts.transformer and not parts.vae:
        raise ValueError(
            f"{path} is no LTX-Video checkpoint: it has none of the tensors that its config "
            f"describes, but {placement.first_five(list(weights.tensors)) or 'no tensors at all'}"
        )
    checkpoint.tolerated = {
        name: _keep(tensor) for name, tensor in rest.items() if isinstance(tensor, StoredTensor)
    }
    return checkpoint


def read_configs(path: Path, networks: Collection[Network] = NETWORKS) -> Configs:
    """Reads the configurations of a file's networks, without their tensors.

    Raises:
      ValueError: as `read` does.
    """
    weights = weight_files.open_file(path)
    return _configs(weights, layout.split(weights.tensors, str(path)), networks, None, path)


def _configs(
    weights: Weights,
    parts: layout.Networks,
    networks: Collection[Network],
    vae: VAEConfig | None,
    path: Path,
) -> Configs:
    """The configurations in the metadata; those that are missing are inferred from the tensors."""
    if "config" in weights.metadata:
        configs = official_config.parse(weights.metadata["config"], str(path))
    elif parts.transformer or parts.vae:
        configs = Configs(None, None, SchedulerConfig(), None)
    else:
        raise ValueError(f"{path} is no LTX-Video checkpoint: {layout.describe(weights.tensors)}")
    if parts.vae and configs.vae is None and "vae" in networks:
        configs = configs._replace(vae=inferred_config.vae(parts.vae, path))
    if parts.transformer and configs.transformer is None and "transformer" in networks:
        own = inferred_config.transformer(parts.transformer, configs.vae or vae, path)
        configs = own._replace(vae=configs.vae)
    return configs


def _unrotated(stored: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    plain = quantized.unrotated(stored)
    if plain is None:
        return stored
    _log.warning(
        "%s holds rotated 8-bit weights, as the first upload of ltxv-13b-0.9.7-dev-fp8 does: they "
        "are rotated back",
        path.name,
    )
    return plain


class _Context(NamedTuple):
    where: str
    checkpoint: Checkpoint
    mesh: Mesh | None
    dtype: DType | None
    official: bool  # names are kept for writing the file again
    extra: dict[str, Tensor]  # tolerated tensors, by name in the file
    in_memory: bool


def _rename(
    context: _Context,
    stored: Mapping[str, Tensor],
    prefix: str,
    vae_leaves: list[Leaf] | None = None,
) -> dict[str, Tensor]:
    """Tensors by official name. Records other spellings and the tensors that no network uses."""
    expected = keys.stored_shapes(vae_leaves) if vae_leaves is not None else {}
    renamed: dict[str, Tensor] = {}
    for bare, tensor in stored.items():
        name = bare
        if vae_leaves is not None and not bare.startswith(STATISTICS):
            name = keys.clean_vae_name(bare)
            if name not in expected and keys.is_dropped_norm(name, expected):
                context.extra[tensor.name] = tensor
                continue
        elif bare in keys.TOLERATED:
            context.extra[tensor.name] = tensor
            continue
        if name in renamed:
            raise ValueError(f"{context.where} holds {name} twice, also as {tensor.name}")
        renamed[name] = tensor
        if context.official and tensor.name != prefix + name:
            context.checkpoint.names[prefix + name] = tensor.name
    return renamed


def _read(
    context: _Context,
    what: str,
    prefix: str,
    leaves: list[Leaf],
    boxed: Any,
    stored: Mapping[str, Tensor],
) -> Any:
    """A network's parameters."""
    placement.check(context.where, what, leaves, stored)
    if context.dtype is None:
        for leaf in leaves:
            kind = placement.parameter_dtype(leaf, stored)
            for name in leaf.names:
                if stored[name].dtype != kind:
                    context.checkpoint.dtypes[prefix + name] = stored[name].dtype.name
    placed = (context.mesh, context.dtype, context.in_memory)
    return placement.read(leaves, boxed, stored, *placed)


def read_statistics(
    where: str,
    std: Tensor | None,
    mean: Tensor | None,
    channels: int,
    mesh: Mesh | None,
) -> LatentStatistics | None:
    """Reads the statistics of the latents; missing means are taken as zero, as upstream.

    Raises:
      ValueError: if they lack the deviations, or have another length.
    """
    if std is None and mean is None:
        return None
    if std is None:
        raise ValueError(f"{where} has latent statistics without {STATISTICS_STD}")
    for tensor in (std, mean):
        if tensor is not None and tensor.shape != (channels,):
            raise ValueError(
                f"{where}: {tensor.name} has shape {tensor.shape}, expected ({channels},)"
            )
    std_values = std.read_as(std.dtype)
    mean_values = np.zeros_like(std_values) if mean is None else mean.read_as(mean.dtype)
    if not (np.isfinite(std_values).all() and np.isfinite(mean_values).all()):
        raise ValueError(f"{where} is damaged: its latent statistics hold NaN or infinity")

    def place(array: np.ndarray) -> jax.Array:
        if mesh is None:
            return jnp.asarray(array)
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec()))

    return LatentStatistics(mean=place(mean_values), std=place(std_values))


def _keep(tensor: StoredTensor) -> np.ndarray:
    """Reads a small tensor; maps a large one, which stays on disk until it is used."""
    return tensor.read() if tensor.nbytes < 1 << 20 else tensor.map()


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Writes one official file; it appears whole or not at all.

    Parameters keep their dtype. Tolerated tensors, spellings of names and metadata are written as
    they were in the file that was read. A text encoder is left out: the layout has no
    place for it.

    Raises:
      ValueError: if there is nothing to write, the parameters do not fit the configuration, or
        the place cannot be written.
    """
    entries: dict[str, Pending] = {}
    for name, tensor in official_tensors(checkpoint).items():
        spelled = checkpoint.names.get(name, name)
        if spelled is not None:
            entries[spelled] = tensor
    for name, array in checkpoint.tolerated.items():
        entries[name] = tensors.pending(array)
    tensors.write_file(path, entries, metadata(checkpoint))


def official_tensors(checkpoint: Checkpoint) -> dict[str, Pending]:
    """The tensors of a checkpoint's networks by official name, prefix included.

    Raises:
      ValueError: if there are none, or parameters do not fit their configuration.
    """
    parts: list[tuple[str, list[Leaf], Any]] = []
    if checkpoint.transformer is not None:
        leaves = keys.transformer_leaves(keys.transformer_boxed(checkpoint.transformer))
        parts.append((keys.TRANSFORMER_PREFIX, leaves, checkpoint.transformer_params))
    if checkpoint.vae is not None:
        leaves = keys.vae_leaves(checkpoint.vae, keys.vae_boxed(checkpoint.vae))
        parts.append((keys.VAE_PREFIX, leaves, checkpoint.vae_params))
    if not parts:
        raise ValueError("this checkpoint has neither a transformer nor a VAE to write")
    entries: dict[str, Pending] = {}
    for prefix, leaves, params in parts:
        for name, tensor in _entries(leaves, params).items():
            entries[prefix + name] = _narrowed(tensor, checkpoint.dtypes.get(prefix + name))
    if checkpoint.statistics is not None:
        for name, array in (
            (STATISTICS_STD, checkpoint.statistics.std),
            (STATISTICS_MEAN, checkpoint.statistics.mean),
        ):
            entries[keys.VAE_PREFIX + name] = tensors.pending(np.asarray(array))
    return entries


def _entries(leaves: list[Leaf], params: Any) -> dict[str, Pending]:
    """A network's tensors by official name, without a prefix."""
    flat = dict(keys.flat(params))
    shapes = {leaf.path: leaf.shape for leaf in leaves}
    if {path: tuple(np.shape(array)) for path, array in flat.items()} != shapes:
        wrong = [
            "/".join(path)
            for path in {**shapes, **flat}
            if path not in flat or path not in shapes or tuple(np.shape(flat[path])) != shapes[path]
        ]
        raise ValueError(f"the parameters do not fit the configuration: {wrong[:5]}")
    return {
        name: tensor
        for leaf in leaves
        for name, tensor in zip(leaf.names, placement.pending(leaf, flat[leaf.path]), strict=True)
    }


def _narrowed(tensor: Pending, dtype: str | None) -> Pending:
    if dtype is None:
        return tensor
    kind = np.dtype(dtype)

    def make() -> np.ndarray:
        wide = tensor.make()
        narrow = wide.astype(kind)
        if np.isfinite(wide).all() and not np.isfinite(narrow.astype(np.float32)).all():
            raise ValueError(
                f"a weight is too large for {kind}, its dtype in the file: set --dtype"
            )
        return narrow

    return Pending(kind, tensor.shape, make)


def metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """The raw metadata, with a new `config` unless the old one still describes the checkpoint."""
    configs = official_config.Configs(
        checkpoint.transformer,
        checkpoint.vae,
        checkpoint.scheduler,
        checkpoint.allowed_inference_steps,
    )
    raw = checkpoint.metadata
    if "config" in raw:
        stored_configs = official_config.parse(raw["config"], "the metadata")
        # A file may describe more than it holds.
        stored_configs = stored_configs._replace(
            transformer=stored_configs.transformer if configs.transformer is not None else None,
            vae=stored_configs.vae if configs.vae is not None else None,
        )
        if stored_configs == configs:
            return dict(raw)
    return {**raw, "config": official_config.dump(configs)}


def read_upsampler(
    path: Path, *, mesh: Mesh | None = None, dtype: DType | None = None
) -> tuple[UpsamplerConfig, Any]:
    """Reads the file of a latent upsampler: bare names, a flat `config` in the metadata.

    Raises:
      ValueError: as `read` does.
    """
    weights = weight_files.open_file(path)
    if "config" not in weights.metadata:
        raise ValueError(
            f"{path} is no latent upsampler with a config in its metadata: "
            f"{layout.describe(weights.tensors)}"
        )
    what = f"{path}: its metadata entry config"
    raw = official_config.parse_object(weights.metadata["config"], what)
    cfg = official_config.upsampler(raw, str(path))
    return cfg, read_upsampler_params(weights, cfg, str(path), mesh, dtype)


def read_upsampler_params(
    weights: Weights, cfg: UpsamplerConfig, where: str, mesh: Mesh | None, dtype: DType | None
) -> Any:
    """Reads the parameters of a latent upsampler, whose names official files and diffusers share.

    Raises:
      ValueError: as `read` does.
    """
    boxed = keys.upsampler_boxed(cfg)
    leaves = keys.upsampler_leaves(boxed)
    stored = quantized.joined(weights.tensors, weights.metadata, where)
    placement.check(where, "a latent upsampler", leaves, stored)
    return placement.read(leaves, boxed, stored, mesh, dtype)


def write_upsampler(path: Path, cfg: UpsamplerConfig, params: Any) -> None:
    """Writes what `read_upsampler` reads; parameters keep their dtype.

    Raises:
      ValueError: if the parameters do not fit the configuration, or the place cannot be written.
    """
    entries = _entries(keys.upsampler_leaves(keys.upsampler_boxed(cfg)), params)
    raw = {"_class_name": "LatentUpsampler", **dataclasses.asdict(cfg)}
    tensors.write_file(path, entries, {"config": json.dumps(raw)})
