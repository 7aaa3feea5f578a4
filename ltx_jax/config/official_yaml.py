"""Reads pipeline configs of the official LTX-Video repository (YAML) as our sampling settings.

Keys and their meaning: configs/*.yaml and ltx_video/inference.py of Lightricks/LTX-Video.
"""

import logging
from pathlib import Path
from typing import Any

from ltx_jax.config.from_json import build, nearest, shown
from ltx_jax.config.sampling import SampleConfig

_log = logging.getLogger(__name__)

# Official keys, and the names of the settings that hold their values here.
_RENAMED = {
    "checkpoint_path": "checkpoint",
    "text_encoder_model_name_or_path": "text_encoder",
    "spatial_upscaler_model_path": "spatial_upscaler",
    "downscale_factor": "downscale_factor",
}
# Keys of one pass of sampling. In a file for two passes they may also stand outside the passes,
# and then hold for both.
_PASS_KEYS = (
    *("num_inference_steps", "skip_initial_inference_steps", "skip_final_inference_steps"),
    *("timesteps", "guidance_scale", "stg_scale", "rescaling_scale", "guidance_timesteps"),
    *("skip_block_list", "cfg_star_rescale", "stg_mode", "stochastic_sampling"),
    *("decode_timestep", "decode_noise_scale", "tone_map_compression_ratio"),
)
# Values that the official pipeline uses for missing keys, where they differ from our defaults.
_DEFAULTS = {
    "num_inference_steps": 20,
    "guidance_scale": 4.5,
    "decode_timestep": 0.0,
    "decode_noise_scale": None,
}
_STG_MODES = {
    "stg_av": "attention_values",
    "stg_as": "attention_skip",
    "stg_r": "residual",
    "stg_t": "transformer_block",
}
_PASSES = ("first_pass", "second_pass")
# Keys that are not copied into a setting: each is read by its own code.
_CHECKED = ("pipeline_type", "precision", "sampler")
# Prompts are sampled as they are written: no language model rewrites them.
IGNORED = (
    "prompt_enhancement_words_threshold",
    "prompt_enhancer_image_caption_model_name_or_path",
    "prompt_enhancer_llm_model_name_or_path",
)


def read(path: Path) -> SampleConfig:
    """Reads an official pipeline config.

    Raises:
      ValueError: if the file is not YAML, has a key or value that has no counterpart here, or lacks
        what its pipeline type needs.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as YAML: {error}") from error
    _check_keys(content, (*_RENAMED, *_PASS_KEYS, *_PASSES, *_CHECKED, *IGNORED), str(path))
    ignored = [key for key in IGNORED if key in content]
    if ignored:
        _log.warning("%s: ignored, since prompts are not rewritten: %s", path, ", ".join(ignored))

    settings = {_RENAMED[key]: content[key] for key in _RENAMED if key in content}
    settings |= _precision(content.get("precision", "bfloat16"), path)
    if content.get("sampler") not in (None, "from_checkpoint"):
        raise ValueError(
            f"{path}: sampler {shown(content['sampler'])} is not supported: use the checkpoint's "
            "schedule (sampler: from_checkpoint), or list the times (timesteps)"
        )
    common = {key: content[key] for key in _PASS_KEYS if key in content}
    match content.get("pipeline_type", "base"):
        case "base":
            needs, excludes = (), (*_PASSES, "downscale_factor", "spatial_upscaler_model_path")
            settings |= _one_pass(common, path)
        case "multi-scale":
            needs, excludes = (*_PASSES, "downscale_factor", "spatial_upscaler_model_path"), ()
        case kind:
            raise ValueError(
                f"{path}: pipeline_type must be base or multi-scale, got {shown(kind)}"
            )
    missing = [key for key in needs if key not in content]
    if missing:
        raise ValueError(f"{path} is for two passes (multi-scale) and lacks {', '.join(missing)}")
    surplus = [key for key in excludes if key in content]
    if surplus:
        raise ValueError(
            f"{path} is for one pass (base) and has {', '.join(surplus)}: set pipeline_type to "
            "multi-scale, or remove them"
        )
    if needs:
        for name in _PASSES:
            _check_keys(content[name], _PASS_KEYS, f"{path}: {name}")
        first, second = (_one_pass(common | content[name], path) for name in _PASSES)
        settings |= first | {"second_pass": second}
    return build(SampleConfig, settings, str(path))


def _check_keys(content: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where} must hold keys with values, as official pipeline configs do")
    for key in content:
        if key not in known:
            raise ValueError(f"{where} has an unknown key {shown(key)}{nearest(str(key), known)}")


def _one_pass(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Settings of one pass, with the official defaults and with our name of the STG mode."""
    settings = _DEFAULTS | settings
    if "stg_mode" in settings:
        mode = str(settings["stg_mode"]).lower()
        mode = _STG_MODES.get(mode, mode)
        if mode not in _STG_MODES.values():
            raise ValueError(
                f"{path}: stg_mode must be one of {', '.join(_STG_MODES.values())}, got "
                f"{shown(settings['stg_mode'])}"
            )
        settings["stg_mode"] = mode
    return settings


def _precision(value: Any, path: Path) -> dict[str, Any]:
    """Settings for a precision. bfloat16 needs none: it is the default where it is fast."""
    match value:
        case "bfloat16":
            return {}
        case "float8_e4m3fn":
            return {"linears": "float8"}
    raise ValueError(
        f"{path}: precision {shown(value)} is not supported: use bfloat16 or float8_e4m3fn, or add "
        "the option --dtype float32"
    )
