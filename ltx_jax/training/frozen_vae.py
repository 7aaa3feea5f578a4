"""The frozen VAE whose latents a stage is trained on."""

import logging

from jax.sharding import Mesh

from ltx_jax.checkpoints import (
    embedded_models,
    exported_folder,
    keys,
    latent_colours_file,
    official,
    official_config,
    run_config,
    runs,
)
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.checkpoints.releases import RELEASED
from ltx_jax.config import VAEConfig
from ltx_jax.runtime import sharding

_log = logging.getLogger(__name__)


def load_frozen_vae(path: str, output: str, mesh: Mesh) -> Checkpoint:
    """Loads the VAE of a checkpoint, and nothing else, or the copy that a run keeps in its folder.

    Args:
      path: anything that `--checkpoint` of ltx-sample takes.
      output: the run's folder. A resumed run uses the VAE that is stored there, even if the one at
        `path` has changed.
      mesh: the devices to load it on.

    Raises:
      ValueError: if there is no VAE.
    """
    stored = runs.load_vae(output, mesh=mesh) if runs.has_step(output) else None
    whole = stored or load_checkpoint(path, networks=("vae",), mesh=mesh)
    check_holds_vae(whole, path)
    # The checkpoint may also hold a transformer of many gigabytes.
    return Checkpoint(
        vae=whole.vae,
        vae_params=whole.vae_params,
        vae_dtype=whole.vae_dtype,
        statistics=whole.statistics,
        colours=whole.colours if stored is None else latent_colours_file.read(output),
    )


def check_holds_vae(checkpoint: Checkpoint, path: str) -> VAEConfig:
    """Returns the configuration of a checkpoint's VAE; `path` names the checkpoint in the error.

    Raises:
      ValueError: if there is no VAE.
    """
    if checkpoint.vae is None:
        raise ValueError(f"{path} holds no VAE: --vae must name a checkpoint that does")
    return checkpoint.vae


def describe_frozen_vae(path: str, channels: int) -> Checkpoint:
    """The VAE at a path with shapes in place of its weights.

    If there is none, the released VAE is described; all released versions have the same
    compression.

    Raises:
      ValueError: if there is none, and the released VAE does not have `channels` latent channels.
    """
    cfg = stored_configuration(path) or _released(path, channels)
    return Checkpoint(vae=cfg, vae_params=sharding.unbox(keys.vae_boxed(cfg)))


def stored_configuration(path: str) -> VAEConfig | None:
    """The configuration of the VAE at a path, without its weights; None if there is none."""
    if run_config.is_run(path):
        cfg = run_config.read_config(path)
        own = isinstance(cfg.model, VAEConfig)
        return cfg.model if own else stored_configuration(cfg.vae)
    file = embedded_models.local(path)
    file = file / exported_folder.MODEL if exported_folder.is_exported(file) else file
    return official.read_configs(file, ("vae",)).vae if file.is_file() else None


def _released(path: str, channels: int) -> VAEConfig:
    released = official_config.vae(RELEASED["2b-0.9.5"].config["vae"])
    if released.latent_channels != channels:
        raise ValueError(
            f"there is no VAE at {path}, and the released one has {released.latent_channels} "
            f"channels where model.in_channels is {channels}: train it first, or name another --vae"
        )
    _log.warning("there is no VAE at %s: the released VAE is assumed", path)
    return released
