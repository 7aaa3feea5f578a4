"""The released versions: their files and the configurations in those files' metadata.

A checkpoint's own metadata always decides. This table is for models trained from scratch in a
released shape, and for checks of shapes without files.
"""

from pathlib import PurePath
from typing import Any, NamedTuple

from ltx_jax.checkpoints import official_config
from ltx_jax.checkpoints.checkpoint import Network

REPOSITORY = "Lightricks/LTX-Video"


class Release(NamedTuple):
    """One version: official files on the hub, and the `config` of their metadata."""

    files: tuple[str, ...]
    config: dict[str, Any]


def _transformer(layers: int, head_dim: int, causal: bool) -> dict[str, Any]:
    raw = {
        "_class_name": "Transformer3DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": head_dim,
        "attention_type": "default",
        "caption_channels": 4096,
        "cross_attention_dim": 32 * head_dim,
        "double_self_attention": False,
        "dropout": 0.0,
        "in_channels": 128,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "num_attention_heads": 32,
        "num_layers": layers,
        "only_cross_attention": False,
        "out_channels": 128,
        "positional_embedding_max_pos": [20, 2048, 2048],
        "positional_embedding_theta": 10000.0,
        "positional_embedding_type": "rope",
        "qk_norm": "rms_norm",
        "standardization_norm": "rms_norm",
        "timestep_scale_multiplier": 1000,
    }
    # The configs of the first releases lack the key.
    return raw | {"causal_temporal_positioning": True} if causal else raw


_VAE = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "scaling_factor": 1.0,
    "norm_layer": "pixel_norm",
    "patch_size": 4,
    "latent_log_var": "uniform",
    "use_quant_conv": False,
    "causal_decoder": False,
}
_BLOCKS_090: list[list[Any]] = [
    ["res_x", 4],
    ["compress_all", 1],
    ["res_x_y", 1],
    ["res_x", 3],
    ["compress_all", 1],
    ["res_x_y", 1],
    ["res_x", 3],
    ["compress_all", 1],
    ["res_x", 3],
    ["res_x", 4],
]
_UP: list[Any] = ["compress_all", {"residual": True, "multiplier": 2}]


def _res(layers: int, **options: bool) -> list[Any]:
    return ["res_x", {"num_layers": layers, **options}]


_VAE_090 = _VAE | {"blocks": _BLOCKS_090}
_VAE_091 = _VAE | {
    "encoder_blocks": _BLOCKS_090,
    "decoder_blocks": [
        _res(5, inject_noise=True),
        _UP,
        _res(6, inject_noise=True),
        _UP,
        _res(7, inject_noise=True),
        _UP,
        _res(8, inject_noise=False),
    ],
    "timestep_conditioning": True,
}
_VAE_095 = _VAE | {
    "encoder_blocks": [
        _res(4),
        ["compress_space_res", {"multiplier": 2}],
        _res(6),
        ["compress_time_res", {"multiplier": 2}],
        _res(6),
        ["compress_all_res", {"multiplier": 2}],
        _res(2),
        ["compress_all_res", {"multiplier": 2}],
        _res(2),
    ],
    "decoder_blocks": [_res(5), _UP, _res(5), _UP, _res(5), _UP, _res(5)],
    "timestep_conditioning": True,
}
_SD3 = {
    "_class_name": "RectifiedFlowScheduler",
    "num_train_timesteps": 1000,
    "shifting": "SD3",
    "base_resolution": None,
    "target_shift_terminal": 0.1,
}
_LINEAR_QUADRATIC = {
    "_class_name": "RectifiedFlowScheduler",
    "num_train_timesteps": 1000,
    "sampler": "LinearQuadratic",
    "shifting": None,
}
_DISTILLED_STEPS = [1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219]


def _release(
    files: str,
    transformer: dict[str, Any],
    vae: dict[str, Any] = _VAE_095,
    scheduler: dict[str, Any] = _LINEAR_QUADRATIC,
    distilled: bool = False,
) -> Release:
    config: dict[str, Any] = {"transformer": transformer, "vae": vae, "scheduler": scheduler}
    if distilled:
        config["allowed_inference_steps"] = _DISTILLED_STEPS
    return Release(tuple(f"{name}.safetensors" for name in files.split()), config)


_2B, _13B = (28, 64), (48, 128)  # layers, channels per head

RELEASED: dict[str, Release] = {
    "2b-0.9.0": _release("ltx-video-2b-v0.9", _transformer(*_2B, False), _VAE_090, _SD3),
    "2b-0.9.1": _release("ltx-video-2b-v0.9.1", _transformer(*_2B, False), _VAE_091, _SD3),
    "2b-0.9.5": _release("ltx-video-2b-v0.9.5", _transformer(*_2B, True)),
    "2b-0.9.6-dev": _release("ltxv-2b-0.9.6-dev-04-25", _transformer(*_2B, True)),
    "2b-0.9.6-distilled": _release(
        "ltxv-2b-0.9.6-distilled-04-25", _transformer(*_2B, True), distilled=True
    ),
    "2b-0.9.8-distilled": _release(
        "ltxv-2b-0.9.8-distilled", _transformer(*_2B, True), distilled=True
    ),
    "13b-0.9.7-dev": _release("ltxv-13b-0.9.7-dev", _transformer(*_13B, True)),
    "13b-0.9.7-distilled": _release(
        "ltxv-13b-0.9.7-distilled", _transformer(*_13B, True), distilled=True
    ),
    "13b-0.9.8-dev": _release("ltxv-13b-0.9.8-dev", _transformer(*_13B, True)),
    "13b-0.9.8-distilled": _release(
        "ltxv-13b-0.9.8-distilled", _transformer(*_13B, True), distilled=True
    ),
}
UPSAMPLER_FILES = (
    "ltxv-spatial-upscaler-0.9.7.safetensors",
    "ltxv-spatial-upscaler-0.9.8.safetensors",
)


def name_of(checkpoint: str) -> str:
    """The release that a path or hub id names by one of its official files, or else the last part
    of the path."""
    last = PurePath(checkpoint).name
    for release, (files, _) in RELEASED.items():
        if last in files:
            return release
    return last


def network(release: str, network: Network) -> Any:
    """The configuration of a release's network; None if there is no such release."""
    if release not in RELEASED:
        return None
    build = {"transformer": official_config.transformer, "vae": official_config.vae}[network]
    return build(RELEASED[release].config[network])
