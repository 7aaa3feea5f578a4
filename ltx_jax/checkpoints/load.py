"""Loads checkpoints of every kind: a file, a folder, a repository, a run, an embedded model."""

import dataclasses
import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ltx_jax.checkpoints import (
    adapters,
    diffusers,
    embedded_models,
    exported_folder,
    hub,
    latent_colours_file,
    official,
    run_config,
)
from ltx_jax.checkpoints.checkpoint import NETWORKS, Checkpoint, Network, network_of
from ltx_jax.config import DType, SamplingConfig, TrainTransformer, UpsamplerConfig, VAEConfig

__all__ = ["Checkpoint", "load_checkpoint", "load_upsampler", "own_settings"]


def load_checkpoint(
    path_or_hub_id: str | Path,
    *,
    vae: str | Path | None = None,
    networks: Collection[Network] = NETWORKS,
    mesh: Mesh | None = None,
    dtype: DType | None = None,
    in_memory: bool = True,
) -> Checkpoint:
    """Loads a checkpoint of any kind: a file (official, ComfyUI's, GGUF), a diffusers folder, a
    repository of either, what `ltx_jax.export` wrote, a run of ltx-train or a step of one
    (RUN/steps/N), also by its address (gs://), or a model that ships ("embedded:NAME").

    Args:
      vae: another checkpoint whose VAE takes the place of this one's, for files that hold a
        transformer alone.
      networks: those to load, if the checkpoint holds them.
      mesh: lays the parameters out by their logical axes; None puts them on the default device.
      dtype: of the parameters; None keeps what is stored (bfloat16 for quantised weights).
      in_memory: False leaves the parameters in their files, each to be read when it is used
        (`placement.StoredParameter`); those of a run are loaded nevertheless.

    Raises:
      ValueError: if there is no such checkpoint, or it is damaged, incomplete or of a kind that
        is not supported; says what is wrong and what to do.
    """
    if vae is None:
        return _load(path_or_hub_id, networks, None, mesh, dtype, in_memory)
    second = _load(vae, ("vae",), None, mesh, dtype, in_memory)
    if second.vae is None:
        raise ValueError(f"{vae} holds no VAE")
    first = _load(path_or_hub_id, ("transformer",), second.vae, mesh, dtype, in_memory)
    return dataclasses.replace(
        first,
        **{name: getattr(second, name) for name in _OF_THE_VAE},
        names={},  # those of two files need not fit into one
        hashes={"transformer": first.source_hash, "vae": second.source_hash},
        source_hash=hashlib.sha256((first.source_hash + second.source_hash).encode()).hexdigest(),
    )


def load_transformer(
    path_or_hub_id: str | Path,
    *,
    vae: VAEConfig | None = None,
    mesh: Mesh | None = None,
    dtype: DType | None = None,
) -> Any:
    """The parameters of a checkpoint's transformer, without its other networks.

    Args:
      vae: the VAE that the transformer is used with; tells the version if the file has no config.
      mesh: as in `load_checkpoint`.
      dtype: as in `load_checkpoint`.

    Raises:
      ValueError: as `load_checkpoint`.
    """
    return _load(path_or_hub_id, ("transformer",), vae, mesh, dtype).transformer_params


_OF_THE_VAE = ("vae", "vae_params", "vae_dtype", "statistics", "colours")


def _load(
    path_or_hub_id: str | Path,
    networks: Collection[Network],
    vae: VAEConfig | None,
    mesh: Mesh | None,
    dtype: DType | None,
    in_memory: bool = True,
) -> Checkpoint:
    """Loads one checkpoint. `vae` of another one helps to infer a transformer's version."""
    loaded = _load_networks(path_or_hub_id, networks, vae, mesh, dtype, in_memory)
    if loaded.vae is None or loaded.colours is not None:
        return loaded
    return dataclasses.replace(loaded, colours=latent_colours_file.read(path_or_hub_id))


def _load_networks(
    path_or_hub_id: str | Path,
    networks: Collection[Network],
    vae: VAEConfig | None,
    mesh: Mesh | None,
    dtype: DType | None,
    in_memory: bool,
) -> Checkpoint:
    if str(path_or_hub_id).startswith("gs://"):
        return _load_run(path_or_hub_id, networks, mesh, dtype)
    path = hub.resolve(path_or_hub_id)
    placed: dict[str, Any] = dict(networks=networks, mesh=mesh, dtype=dtype, in_memory=in_memory)
    if path.is_file():
        return official.read(path, vae=vae, **placed)
    # Runs first: a transformer's run has a folder `vae` too, but only runs have their own config.
    if run_config.is_run(path):
        return _load_run(path, networks, mesh, dtype)
    if exported_folder.is_exported(path):
        return exported_folder.read(path, **placed)
    if diffusers.is_directory(path):
        return diffusers.read(path, vae=vae, **placed)
    raise ValueError(f"{path} is no checkpoint: {_contents(path)}")


def _load_run(
    path: str | Path, networks: Collection[Network], mesh: Mesh | None, dtype: DType | None
) -> Checkpoint:
    from ltx_jax.checkpoints import runs  # imports Orbax, which takes a second

    if run_config.trains_adapter(run_config.read_config(path)):
        return _load_adapter_run(path, networks, mesh, dtype)
    return _only(networks, _cast(runs.load_run(path, mesh=mesh), dtype))


def _load_adapter_run(
    path: str | Path, networks: Collection[Network], mesh: Mesh | None, dtype: DType | None
) -> Checkpoint:
    """Loads the base of a run's adapter, and merges the adapter into it.

    The base of a VAE's adapter may hold a transformer too, which stays as it is.
    """
    from ltx_jax.checkpoints import runs

    base = run_config.read_base(path)
    vae, transformer = Checkpoint(), Checkpoint()
    if "vae" in networks:
        vae = _load(base.vae or base.path, ("vae",), None, mesh, dtype)
    if "transformer" in networks:
        transformer = _load(base.path, ("transformer",), vae.vae, mesh, dtype)
    whole = dataclasses.replace(
        transformer, names={}, **{name: getattr(vae, name) for name in _OF_THE_VAE}
    )
    network = network_of(run_config.read_config(path).model)
    if network not in networks:
        return whole
    own = vae if network == "vae" else transformer
    run_config.check_same_base(path, base._replace(source_hash=own.base_hash(network)))
    run, cfg, params = runs.load_adapter(path), own.network(network), f"{network}_params"
    adapter = adapters.of_run(run, path, cfg)
    merged = adapters.merge(getattr(own, params), cfg, [(adapter, 1.0)], donate=True)
    trained: dict[str, Any] = {params: merged}
    if isinstance(run.cfg, TrainTransformer):
        trained |= {"scheduler": run.cfg.scheduler, "settings": run.cfg.sampling_settings()}
    folder = run_config.split(path)[0]
    hashes = transformer.source_hash + vae.source_hash + run.source_hash
    return dataclasses.replace(
        whole,
        **trained,
        metadata={"run": folder.name, "step": str(run.step), "weights": "ema"},
        source_hash=hashlib.sha256(hashes.encode()).hexdigest(),
    )


def _only(networks: Collection[Network], checkpoint: Checkpoint) -> Checkpoint:
    """Drops the networks of a run that are not asked for."""
    dropped = {name: None for name in NETWORKS if name not in networks}
    parameters = {f"{name}_params": None for name in dropped}
    return dataclasses.replace(checkpoint, **dropped, **parameters)


def own_settings(path_or_hub_id: str | Path) -> SamplingConfig | None:
    """The sampling settings of a checkpoint, read without its weights; None if it has none.

    Raises:
      ValueError: if its settings are damaged, or no embedded model has this name.
    """
    path = embedded_models.local(path_or_hub_id)
    if exported_folder.is_exported(path):
        return exported_folder.read_settings(path)
    if run_config.is_run(path_or_hub_id):
        return run_config.read_config(path_or_hub_id).sampling_settings()
    return None


def load_upsampler(
    path_or_hub_id: str | Path, *, mesh: Mesh | None = None, dtype: DType | None = None
) -> tuple[UpsamplerConfig, Any]:
    """Loads a latent upsampler: its configuration and its parameters.

    Args:
      path_or_hub_id: its official file, the folder of a diffusers pipeline (latent_upsampler/), or
        a run that trained it.
      mesh: lays the parameters out by their logical axes; None puts them on the default device.
      dtype: of the parameters; None keeps what is stored.

    Raises:
      ValueError: as `load_checkpoint` does.
    """
    if run_config.is_run(path_or_hub_id):
        cfg = run_config.read_config(path_or_hub_id).model
        if not isinstance(cfg, UpsamplerConfig):
            raise ValueError(f"{path_or_hub_id} is a run that trains no latent upsampler")
        return cfg, load_checkpoint(path_or_hub_id, mesh=mesh, dtype=dtype).upsampler_params
    path = hub.resolve(path_or_hub_id, hub.UPSAMPLER_FILES)
    if path.is_dir():
        return diffusers.read_upsampler(path, mesh=mesh, dtype=dtype)
    return official.read_upsampler(path, mesh=mesh, dtype=dtype)


def _cast(checkpoint: Checkpoint, dtype: DType | None) -> Checkpoint:
    """Converts a run's parameters to another dtype."""
    if dtype is None:
        return checkpoint
    changes: dict[str, Any] = {}
    for name in ("transformer_params", "vae_params", "upsampler_params"):
        changes[name] = jax.tree.map(lambda x: x.astype(dtype), getattr(checkpoint, name))
    if checkpoint.text_encoder is not None:
        cfg, params, max_tokens = checkpoint.text_encoder
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        changes["text_encoder"] = cfg, params, max_tokens
    return dataclasses.replace(checkpoint, **changes)


_WEIGHTS = (".safetensors", ".gguf")


def _contents(path: Path) -> str:
    """Says from a folder's content which path to name instead; ends an error message."""
    files = sorted(file.name for file in path.iterdir() if file.suffix in _WEIGHTS)
    if diffusers.is_upsampler(path):
        return "it is a latent upsampler, pass it as --spatial_upscaler"
    if (path / "config.json").is_file() and path.name in ("transformer", "vae"):
        return f"it is one part of a diffusers folder, give {path.parent}"
    if files:
        return f"give one of its files, such as {path / files[0]}"
    return (
        "expected an official .safetensors file, a diffusers folder (with transformer/ or vae/) "
        "or a run of ltx-train"
    )
