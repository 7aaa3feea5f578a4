"""Infers the configuration of files that hold none, and logs what was inferred.

Every released transformer and VAE has one of the structures in `releases`; widths are read off the
tensors. What shapes cannot tell is taken from the version in the file's name: whether positions
are causal (2B models came with both), and whether the model is distilled, which fixes its times.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltx_jax.checkpoints import official_config
from ltx_jax.checkpoints.official_config import Configs
from ltx_jax.checkpoints.releases import RELEASED
from ltx_jax.checkpoints.tensors import Tensor
from ltx_jax.config import TransformerConfig, VAEConfig

_log = logging.getLogger(__name__)

_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.")
_VERSION = re.compile(r"0\.9(?:\.(\d))?(?!\d)")
_HEADS = 32  # of every released transformer
_LAYERS = {28: "2b", 48: "13b"}


def transformer(stored: Mapping[str, Tensor], vae: VAEConfig | None, path: Path) -> Configs:
    """The configuration of a transformer, and the schedule that belongs to it.

    Args:
      stored: its tensors by official name.
      vae: the VAE that comes with the transformer; it tells the early versions from later ones.
      path: the file; its name may hold the version ("ltxv-2b-0.9.6-distilled").

    Raises:
      ValueError: if the tensors are not those of an LTX-Video transformer.
    """
    layers = 1 + max((int(m[1]) for name in stored if (m := _BLOCK.match(name))), default=-1)
    query = _shape(stored, "transformer_blocks.0.attn1.to_q.weight", path)
    patchify = _shape(stored, "patchify_proj.weight", path)
    width = query[0]
    if width % _HEADS or not layers:
        raise ValueError(
            f"{path} has no config, and no released model has {layers} layers of width {width}: "
            "take a file with its config in the metadata"
        )
    family = _early_or_late(layers, vae, path)
    version = f"{_LAYERS.get(layers, '2b')}-{family}"
    distilled = "distilled" in path.name.lower() and family != "0.9.1"
    released = next(
        entry
        for name, entry in RELEASED.items()
        if name.startswith(version) and ("distilled" in name) == distilled
    )
    changes = {
        "num_layers": layers,
        "num_attention_heads": _HEADS,
        "attention_head_dim": width // _HEADS,
        "cross_attention_dim": width,
        "in_channels": patchify[1],
        "out_channels": _shape(stored, "proj_out.weight", path)[0],
        "caption_channels": _shape(stored, "caption_projection.linear_1.weight", path)[1],
    }
    raw = released.config | {"transformer": released.config["transformer"] | changes}
    configs = official_config.from_raw({k: v for k, v in raw.items() if k != "vae"}, str(path))
    assert configs.transformer is not None
    _log.warning("%s", _notice(configs.transformer, distilled, path))
    return configs


def _notice(cfg: TransformerConfig, distilled: bool, path: Path) -> str:
    """The warning, which says what was inferred."""
    sizes = {28: "the 2B model", 48: "the 13B model"}
    size = sizes.get(cfg.num_layers, "a model of no released depth")
    age = "0.9.5 or later" if cfg.causal_temporal_positioning else "0.9 or 0.9.1"
    kind = "distilled, with its fixed times" if distilled else "not distilled"
    return (
        f"{path.name} holds no config. From its shapes and names it is taken as {size} "
        f"({cfg.num_layers} layers, width {cfg.width}, {_HEADS} heads), version {age}, {kind}. If "
        "that is wrong, name the file after its version, such as ltxv-2b-0.9.6-distilled"
    )


def _early_or_late(layers: int, vae: VAEConfig | None, path: Path) -> str:
    """The version: the file's own if its name has one, else the latest that it can be.

    Up to 0.9.1 positions are not causal; otherwise the transformers are the same. The VAEs of
    those versions have no blocks that turn space into channels.
    """
    if layers == 48:
        return "0.9.8" if "0.9.8" in path.name else "0.9.7"
    if vae is not None:
        early = not any(block.name.endswith("_res") for block in vae.encoder_blocks)
    else:
        match = _VERSION.search(path.name)
        early = match is not None and int(match[1] or 0) < 5
    return "0.9.1" if early else "0.9.6"


def vae(stored: Mapping[str, Tensor], path: Path) -> VAEConfig:
    """The configuration of a VAE.

    Raises:
      ValueError: if the tensors are not those of a released VAE.
    """
    if any(name.startswith(("encoder.mid_block.", "decoder.mid_block.")) for name in stored):
        raise ValueError(
            f"{path} is the VAE of a diffusers folder: give that folder, whose vae/config.json "
            "describes it"
        )
    if "decoder.last_time_embedder.timestep_embedder.linear_1.weight" not in stored:
        version = "2b-0.9.0"
    elif "encoder.down_blocks.1.conv.conv.weight" in stored:
        version = "2b-0.9.5"
    else:
        version = "2b-0.9.1"
    changes: dict[str, Any] = {
        "encoder_base_channels": _shape(stored, "encoder.conv_in.conv.weight", path)[0],
        "decoder_base_channels": _shape(stored, "decoder.conv_out.conv.weight", path)[1],
        "latent_channels": _shape(stored, "decoder.conv_in.conv.weight", path)[1],
    }
    cfg = official_config.vae(RELEASED[version].config["vae"] | changes, str(path))
    _log.warning(
        "%s holds no config of its VAE, which is taken as that of %s", path.name, version[3:]
    )
    return cfg


def _shape(stored: Mapping[str, Tensor], name: str, path: Path) -> tuple[int, ...]:
    shape = stored[name].shape if name in stored else ()
    if len(shape) < 2:
        raise ValueError(
            f"{path} is no LTX-Video checkpoint: it has no config, and no matrix {name} to "
            "recognise it by"
        )
    return shape
