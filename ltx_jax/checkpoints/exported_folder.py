"""Folders that `ltx-export` writes: a model and everything needed to sample it.

FOLDER/model.safetensors   both networks, in the official layout
FOLDER/text_encoder/, FOLDER/tokenizer/   its text encoder, as transformers has it
FOLDER/settings.json       how it is sampled, in the form of the JSON beside a video
FOLDER/latent_colours.json what its latents look like (`latent_colours_file`), if that was fitted
FOLDER/vocabulary.json     what it knows (`vocabulary_file`), if that was written

The model that ships with the package is such a folder.
"""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path

from jax.sharding import Mesh

from ltx_jax import config
from ltx_jax.checkpoints import official, tensors, text_encoder_files
from ltx_jax.checkpoints.checkpoint import NETWORKS, Checkpoint, Network
from ltx_jax.config import DType, SamplingConfig
from ltx_jax.runtime import files

MODEL = "model.safetensors"
UPSAMPLER = "upsampler.safetensors"
TEXT_ENCODER, TOKENIZER = "text_encoder", "tokenizer"
SETTINGS = "settings.json"


def is_exported(folder: Path) -> bool:
    """Whether `ltx-export` wrote a folder. (A text encoder's folder also holds a config.json.)"""
    return (folder / MODEL).is_file() and not (folder / "config.json").is_file()


def read(
    folder: Path,
    *,
    networks: Collection[Network] = NETWORKS,
    mesh: Mesh | None = None,
    dtype: DType | None = None,
    in_memory: bool = True,
) -> Checkpoint:
    """Reads a folder. Its text encoder is read only if it is byte-level.

    Args:
      folder: as above; only the model is required.
      networks: those to read, if the model has them.
      mesh: lays the parameters out by their logical axes; None puts them on the default device.
      dtype: of the parameters; None keeps what is stored.
      in_memory: as in `placement.read`, for the model.

    Raises:
      ValueError: if a part is damaged or incomplete.
    """
    checkpoint = official.read(
        folder / MODEL, networks=networks, mesh=mesh, dtype=dtype, in_memory=in_memory
    )
    checkpoint.settings = read_settings(folder)
    max_tokens = text_encoder_files.max_byte_tokens(folder / TOKENIZER)
    if max_tokens is not None:
        cfg = text_encoder_files.read_config(folder / TEXT_ENCODER)
        params = text_encoder_files.load_params(folder / TEXT_ENCODER, cfg, mesh, dtype)
        checkpoint.text_encoder = cfg, params, max_tokens
        weights = sorted((folder / TEXT_ENCODER).glob("*.safetensors"))
        checkpoint.source_hash = tensors.fingerprint([folder / MODEL, *weights])
    return checkpoint


def read_settings(folder: Path) -> SamplingConfig | None:
    """The sampling settings stored with a folder's model; None if there are none.

    Raises:
      ValueError: if the file is damaged, or names a setting that does not exist.
    """
    file = folder / SETTINGS
    if not file.is_file():
        return None
    content = config.read_object(file)
    if "settings" not in content:
        raise ValueError(f"{file} holds no settings")
    return config.build(SamplingConfig, content["settings"], f"{file}: settings")


def write_settings(folder: Path, settings: SamplingConfig) -> None:
    """Writes the settings, whole or not at all, without the paths and media of a `SampleConfig`."""
    content = {"settings": dataclasses.asdict(config.sampling_options(settings))}
    text = json.dumps(content, indent=2) + "\n"
    files.atomic_write_text(folder / SETTINGS, text)
