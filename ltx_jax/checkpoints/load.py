"""Loads checkpoints of every kind: a file, a folder, a repository, a run, the embedded model."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ltx_jax.checkpoints import diffusers, exported_folder, hub, official, run_config
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import DType, SamplingConfig, UpsamplerConfig

__all__ = ["Checkpoint", "load_checkpoint", "load_upsampler", "own_settings"]


def load_checkpoint(
    path_or_hub_id: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: DType | None = None,
    allow_fp8: bool = False,
) -> Checkpoint:
    """Loads an official file, a diffusers folder, a repository of either, what `ltx_jax.export`
    wrote, a run of ltx-train or a step of one (RUN/steps/N), also by its address (gs://), or
    "embedded", the model that ships.

    Args:
      mesh: lays the parameters out by their logical axes; None puts them on the default device.
      dtype: of the parameters; None keeps what is stored.
      allow_fp8: reads 8-bit weights as plain values. Those of some releases are rotated: they
        would give noise.

    Raises:
      ValueError: if there is no such checkpoint, or it is damaged, incomplete or of a kind that
        is not supported; says what is wrong and what to do.
    """
    if str(path_or_hub_id).startswith("gs://"):
        from ltx_jax.checkpoints import runs  # imports Orbax, which takes a second

        return _cast(runs.load_run(path_or_hub_id, mesh=mesh), dtype)
    path = hub.resolve(path_or_hub_id)
    if path.is_file():
        _refuse_others(path)
        return official.read(path, mesh=mesh, dtype=dtype, allow_fp8=allow_fp8)
    # Runs first: a transformer's run has a folder `vae` too, but only runs have their own config.
    if run_config.is_run(path):
        from ltx_jax.checkpoints import runs

        return _cast(runs.load_run(path, mesh=mesh), dtype)
    if exported_folder.is_exported(path):
        return exported_folder.read(path, mesh=mesh, dtype=dtype)
    if diffusers.is_directory(path):
        return diffusers.read(path, mesh=mesh, dtype=dtype, allow_fp8=allow_fp8)
    raise ValueError(f"{path} is no checkpoint: {_contents(path)}")


def own_settings(path_or_hub_id: str | Path) -> SamplingConfig | None:
    """The sampling settings of a checkpoint, read without its weights; None if it has none.

    Raises:
      ValueError: if its settings are damaged.
    """
    path = Path(path_or_hub_id).expanduser()
    if path_or_hub_id == hub.EMBEDDED:
        path = hub.EMBEDDED_FOLDER
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
      path_or_hub_id: its official file, or a run that trained it.
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
    path = hub.resolve(path_or_hub_id)
    _refuse_others(path)
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


def _refuse_others(path: Path) -> None:
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        raise ValueError(
            f"{path} is a pickle, which may run any code when opened: convert it to safetensors "
            "where you trust it"
        )


def _contents(path: Path) -> str:
    """Says from a folder's content which path to name instead; ends an error message."""
    files = sorted(file.name for file in path.glob("*.safetensors"))
    if (path / "config.json").is_file() and path.name in ("transformer", "vae"):
        return f"it is one part of a diffusers folder, give {path.parent}"
    if files:
        return f"give one of its files, such as {path / files[0]}"
    return (
        "expected an official .safetensors file, a diffusers folder (with transformer/ or vae/) "
        "or a run of ltx-train"
    )
