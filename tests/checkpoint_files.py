"""Small official checkpoints of every released family, every tensor drawn at random."""

import copy
import json
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from golden_weights import golden_tensor

from ltx_jax.checkpoints import keys, official_config, releases

FAMILIES = ("0.9.0", "0.9.1", "0.9.5")
_VERSIONS = {"0.9.0": "2b-0.9.0", "0.9.1": "2b-0.9.1", "0.9.5": "2b-0.9.6-distilled"}


def raw_config(family: str, width: int = 8) -> dict[str, Any]:
    """The released configuration with one or two blocks everywhere, and narrow."""
    raw = copy.deepcopy(releases.RELEASED[_VERSIONS[family]].config)
    raw["transformer"] |= {
        "num_layers": 3,
        "num_attention_heads": 2,
        "attention_head_dim": width,
        "cross_attention_dim": 2 * width,
        "caption_channels": 12,
        "in_channels": 8,
        "out_channels": 8,
    }
    vae = raw["vae"] | {
        "latent_channels": 8,
        "encoder_base_channels": width,
        "decoder_base_channels": width,
    }
    for name in ("blocks", "encoder_blocks", "decoder_blocks"):
        if name in vae:
            vae[name] = [_few(block, i) for i, block in enumerate(vae[name])]
    raw["vae"] = vae
    return raw


def _few(block: list[Any], i: int) -> list[Any]:
    name, params = block
    layers = 1 + (i % 4 == 0)
    if name != "res_x":
        return block
    return [name, layers if isinstance(params, int) else params | {"num_layers": layers}]


def official_shapes(raw: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Full names and shapes of all that the networks of a configuration need."""
    shapes = {}
    if "transformer" in raw:
        leaves = keys.transformer_leaves(
            keys.transformer_boxed(official_config.transformer(raw["transformer"]))
        )
        shapes |= {keys.TRANSFORMER_PREFIX + k: v for k, v in keys.stored_shapes(leaves).items()}
    if "vae" in raw:
        cfg = official_config.vae(raw["vae"])
        leaves = keys.vae_leaves(cfg, keys.vae_boxed(cfg))
        shapes |= {keys.VAE_PREFIX + k: v for k, v in keys.stored_shapes(leaves).items()}
        for name in (keys.STATISTICS_STD, keys.STATISTICS_MEAN, *keys.TOLERATED):
            shapes[keys.VAE_PREFIX + name] = (cfg.latent_channels,)
    return shapes


def random_tensors(raw: dict[str, Any], dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """A value for each of `official_shapes`; deviations are positive."""
    values = {}
    for name, shape in official_shapes(raw).items():
        bare = name.removeprefix(keys.TRANSFORMER_PREFIX).removeprefix(keys.VAE_PREFIX)
        value = golden_tensor(bare, shape)
        if keys.STATISTICS in name:
            value = 1 + np.abs(value)
        values[name] = value.astype(dtype)
    return values


def write_official(
    path: pathlib.Path, raw: dict[str, Any], values: dict[str, np.ndarray], **metadata: str
) -> pathlib.Path:
    """Writes by the format's own library."""
    safetensors.numpy.save_file(values, path, {"config": json.dumps(raw), **metadata})
    return path


def read_all(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata, by the format's own library."""
    with safetensors.safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def assert_bitwise(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """The same names, dtypes, shapes and bits."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert ours[name].shape == value.shape, name
        assert ours[name].tobytes() == value.tobytes(), name
