"""Configurations of diffusers' LTX-Video transformer and scheduler <-> ours."""

import math
from collections.abc import Mapping
from typing import Any

from ltx_jax.checkpoints.official_config import build, check_fixed, check_names, number
from ltx_jax.config import SchedulerConfig, TransformerConfig, UpsamplerConfig

Raw = Mapping[str, Any]

# As in `official_config`: key -> (values that mean the only form that our network has, default of
# diffusers' class).
_TRANSFORMER_FIXED: dict[str, tuple[tuple[Any, ...], Any]] = {
    "_class_name": (("LTXVideoTransformer3DModel",), None),
    "activation_fn": (("gelu-approximate",), "gelu-approximate"),
    "attention_out_bias": ((True,), True),
    "norm_elementwise_affine": ((False,), False),
    "patch_size": ((1,), 1),
    "patch_size_t": ((1,), 1),
    "qk_norm": (("rms_norm_across_heads",), "rms_norm_across_heads"),
}
# Fields of our configuration that diffusers' class has under the same names.
_TRANSFORMER_FIELDS = (
    *("num_layers", "num_attention_heads", "attention_head_dim", "in_channels"),
    *("caption_channels", "norm_eps", "attention_bias"),
)
# Our settings of rotary embeddings and timesteps that are constants in diffusers.
_TRANSFORMER_CONSTANTS = {
    "positional_embedding_theta": 10_000.0,
    "positional_embedding_max_pos": (20.0, 2048.0, 2048.0),
    "timestep_scale_multiplier": 1000.0,
}
_DYNAMIC_SHIFT = {
    "base_image_seq_len": 1024,
    "base_shift": 0.95,
    "max_image_seq_len": 4096,
    "max_shift": 2.05,
}
_UPSAMPLER_FIXED: dict[str, tuple[tuple[Any, ...], Any]] = {
    "rational_spatial_scale": ((None, 2.0), None),
    "use_rational_resampler": ((None, False), None),
}
_SCHEDULER_FIXED: dict[str, tuple[tuple[Any, ...], Any]] = {
    "_class_name": (("FlowMatchEulerDiscreteScheduler",), None),
    "invert_sigmas": ((False,), False),
    "time_shift_type": (("exponential",), "exponential"),
    "use_beta_sigmas": ((False,), False),
    "use_exponential_sigmas": ((False,), False),
    "use_karras_sigmas": ((False,), False),
}


def transformer(raw: Raw, where: str) -> TransformerConfig:
    """Converts the transformer's config.json, which does not say whether positions are causal.

    Raises:
      ValueError: naming a value that our transformer does not support.
    """
    check_fixed(raw, _TRANSFORMER_FIXED, where)
    fixed = (*_TRANSFORMER_FIXED, "cross_attention_dim", "out_channels")
    check_names(raw, (*fixed, *_TRANSFORMER_FIELDS), where)
    values = {name: raw[name] for name in _TRANSFORMER_FIELDS if name in raw}
    values["out_channels"] = raw.get("out_channels") or values.get("in_channels", 128)
    cfg = build(TransformerConfig, values, where)
    width = raw.get("cross_attention_dim", 2048)
    if width != cfg.width:
        raise ValueError(f"{where} cross_attention_dim is {width}; supported: {cfg.width}")
    return cfg


def dump_transformer(cfg: TransformerConfig) -> dict[str, Any]:
    """The inverse of `transformer`: the config.json of LTXVideoTransformer3DModel.

    Raises:
      ValueError: naming a value that diffusers cannot express.
    """
    for name, constant in _TRANSFORMER_CONSTANTS.items():
        if getattr(cfg, name) != constant:
            raise ValueError(
                f"diffusers cannot express {name} {getattr(cfg, name)}: its class has {constant}"
            )
    return {
        **{key: supported[-1] for key, (supported, _) in _TRANSFORMER_FIXED.items()},
        "attention_bias": cfg.attention_bias,
        "attention_head_dim": cfg.attention_head_dim,
        "caption_channels": cfg.caption_channels,
        "cross_attention_dim": cfg.width,
        "in_channels": cfg.in_channels,
        "norm_eps": cfg.norm_eps,
        "num_attention_heads": cfg.num_attention_heads,
        "num_layers": cfg.num_layers,
        "out_channels": cfg.out_channels,
    }


def upsampler(raw: Raw, where: str) -> UpsamplerConfig:
    """Converts the config.json of LTXLatentUpsamplerModel, which has our fields and defaults.

    Raises:
      ValueError: naming a value that our upsampler does not support.
    """
    check_fixed(raw, _UPSAMPLER_FIXED, where)
    check_names(raw, _UPSAMPLER_FIXED, where, UpsamplerConfig)
    return build(UpsamplerConfig, raw, where)


def scheduler(raw: Raw, where: str, pipeline: str | None) -> SchedulerConfig:
    """Converts scheduler_config.json to the schedule that the pipeline class makes of it.

    Without a dynamic shift, LTXPipeline spaces times evenly. LTXConditionPipeline, which is also
    assumed if no class is named, spaces them linearly, then quadratically.

    Raises:
      ValueError: naming a value that none of our samplers supports.
    """
    check_fixed(raw, _SCHEDULER_FIXED, where)
    names = ("num_train_timesteps", "shift", "shift_terminal", "use_dynamic_shifting")
    # Here stochastic sampling belongs to the sampling settings, not to the scheduler.
    check_names(raw, (*_SCHEDULER_FIXED, *_DYNAMIC_SHIFT, *names, "stochastic_sampling"), where)
    if raw.get("use_dynamic_shifting", False):
        check_fixed(raw, {key: ((value,), None) for key, value in _DYNAMIC_SHIFT.items()}, where)
        values = {"shifting": "SD3", "target_shift_terminal": raw.get("shift_terminal") or None}
        return build(SchedulerConfig, values, where)
    shift = 1.0 if raw.get("shift") is None else number(float, raw["shift"], f"{where} shift")
    if shift <= 0:
        raise ValueError(f"{where} shift is {shift}, expected a positive number")
    if shift != 1.0:
        return SchedulerConfig(sampler="Constant", shift=math.log(shift))
    return SchedulerConfig(sampler="Uniform" if pipeline == "LTXPipeline" else "LinearQuadratic")


def dump_scheduler(cfg: SchedulerConfig) -> dict[str, Any]:
    """The inverse of `scheduler`: the config of FlowMatchEulerDiscreteScheduler.

    Raises:
      ValueError: naming a shift that diffusers' scheduler does not have.
    """
    dynamic = cfg.shifting == "SD3" and cfg.sampler == "Uniform"
    if cfg.shifting is not None and not dynamic:
        raise ValueError(
            f"diffusers' scheduler cannot express shifting {cfg.shifting!r} of sampler "
            f"{cfg.sampler!r}"
        )
    constant = cfg.sampler == "Constant" and cfg.shift is not None
    return {
        **{key: supported[-1] for key, (supported, _) in _SCHEDULER_FIXED.items()},
        **_DYNAMIC_SHIFT,
        "num_train_timesteps": cfg.num_train_timesteps,
        "shift": math.exp(cfg.shift) if constant and cfg.shift is not None else 1.0,
        "shift_terminal": cfg.target_shift_terminal,
        "use_dynamic_shifting": dynamic,
    }
