"""The `config` of the official files' metadata <-> our configurations.

Keys, meanings and defaults are those of Transformer3DModel, CausalVideoAutoencoder,
RectifiedFlowScheduler and LatentUpsampler upstream. A value that our networks do not have is
refused by name, and so is a key that is not known: it may change what is computed. Known keys that
nothing here reads are kept in the raw metadata.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from ltx_jax.config import (
    BlockConfig,
    SchedulerConfig,
    TransformerConfig,
    UpsamplerConfig,
    VAEConfig,
    parse_json,
    shown,
)

Raw = Mapping[str, Any]

# Keys that change what upstream computes, where our networks have only one of the forms: key ->
# (values that mean this form, upstream's value if the key is absent).
_TRANSFORMER_FIXED: dict[str, tuple[tuple[Any, ...], Any]] = {
    "_class_name": (("Transformer3DModel",), "Transformer3DModel"),
    "activation_fn": (("gelu-approximate",), "geglu"),
    "adaptive_norm": (("single_scale_shift",), "single_scale_shift"),
    "attention_type": (("default",), "default"),
    "double_self_attention": ((False,), False),
    "norm_elementwise_affine": ((False,), True),
    "only_cross_attention": ((False,), False),
    "patch_size": ((None, 1), None),
    "patch_size_t": ((None, 1), None),
    "positional_embedding_type": (("rope",), "rope"),
    "qk_norm": (("rms_norm",), None),
    "standardization_norm": (("rms_norm",), "layer_norm"),
}
_VAE_FIXED: dict[str, tuple[tuple[Any, ...], Any]] = {
    "_class_name": (("CausalVideoAutoencoder",), None),
    "dims": ((3,), None),
    "normalize_latent_channels": ((False,), False),
    "patch_size_t": ((None, 1), None),
}
# Keys that change nothing here: those that upstream's classes take and do not use, or use only in
# training, and those that older versions of this package wrote.
_TRANSFORMER_IGNORED = (
    *("dropout", "norm_num_groups", "num_embeds_ada_norm", "num_vector_embeds"),
    *("project_to_2d_pos", "upcast_attention", "use_linear_projection", "use_tpu_flash_attention"),
    "attention",
)
_VAE_IGNORED = ("scaling_factor",)
# Keys that `transformer` reads by name, besides those of the tables and of our configuration.
_TRANSFORMER_READ = ("cross_attention_dim",)
_VAE_READ = ("blocks", "double_z")
# Upstream's values for keys that a file lacks, where they differ from those of our dataclasses.
_TRANSFORMER_DEFAULTS = {
    "num_layers": 1,
    "num_attention_heads": 16,
    "attention_head_dim": 88,
    "norm_eps": 1e-5,
    "attention_bias": False,
}
_VAE_DEFAULTS = {"patch_size": 1, "norm_layer": "group_norm", "use_quant_conv": True}


class Configs(NamedTuple):
    """What one file's metadata describes."""

    transformer: TransformerConfig | None
    vae: VAEConfig | None
    scheduler: SchedulerConfig
    allowed_inference_steps: tuple[float, ...] | None


def parse(text: str, where: str) -> Configs:
    """Reads the metadata's `config`.

    Args:
      where: names the file in errors.

    Raises:
      ValueError: if it does not describe an LTX-Video model, or one that is not supported.
    """
    return from_raw(parse_object(text, f"{where}: its metadata entry config"), where)


def from_raw(raw: Raw, where: str) -> Configs:
    """As `parse`, for a `config` that is a dict already.

    Raises:
      ValueError: as `parse` does.
    """
    if raw.get("_class_name") == "LatentUpsampler" or "mid_channels" in raw:
        raise ValueError(f"{where} is a latent upsampler: pass it as --spatial_upscaler")
    parts = {}
    for name in ("transformer", "vae", "scheduler"):
        parts[name] = raw.get(name)
        if not isinstance(parts[name], dict | None):
            raise ValueError(f"{where}: config.{name} is no JSON object")
    if parts["transformer"] is None and parts["vae"] is None:
        raise ValueError(
            f"{where} is no LTX-Video checkpoint: its config has neither transformer nor vae"
        )
    return Configs(
        None if parts["transformer"] is None else transformer(parts["transformer"], where),
        None if parts["vae"] is None else vae(parts["vae"], where),
        scheduler(parts["scheduler"] or {}, where),
        _steps(raw.get("allowed_inference_steps"), f"{where}: allowed_inference_steps"),
    )


def _steps(raw: Any, what: str) -> tuple[float, ...] | None:
    if not raw:
        return None
    if not isinstance(raw, list) or len(raw) > 1000:
        raise ValueError(f"{what} is no list of at most 1000 times")
    steps = tuple(number(float, step, what) for step in raw)
    if not all(0 <= step <= 1 for step in steps):
        raise ValueError(f"{what} must lie in [0, 1], got {list(steps)}")
    return steps


def parse_object(text: str, what: str) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
      ValueError: beginning with `what`.
    """
    raw = parse_json(text, what)
    if not isinstance(raw, dict):
        raise ValueError(f"{what} is no JSON object")
    return raw


def transformer(raw: Raw, where: str = "config") -> TransformerConfig:
    """Converts `config.transformer` to our configuration.

    Raises:
      ValueError: naming the key that is missing or has a value we do not have.
    """
    names = (*_TRANSFORMER_FIXED, *_TRANSFORMER_READ, *_TRANSFORMER_IGNORED)
    check_fixed(raw, _TRANSFORMER_FIXED, f"{where}: transformer")
    check_names(raw, names, f"{where}: transformer", TransformerConfig)
    values = {**_TRANSFORMER_DEFAULTS, **{k: v for k, v in raw.items() if v is not None}}
    for name in (
        "in_channels",
        "caption_channels",
        "positional_embedding_theta",
        "positional_embedding_max_pos",
    ):
        if name not in values:
            raise ValueError(f"{where}: transformer has no {name}")
    values.setdefault("out_channels", values["in_channels"])
    max_pos = values["positional_embedding_max_pos"]
    if not isinstance(max_pos, list | tuple) or len(max_pos) != 3:
        raise ValueError(
            f"{where}: transformer positional_embedding_max_pos is {shown(max_pos)}, expected "
            "3 numbers"
        )
    values["positional_embedding_max_pos"] = tuple(
        number(float, value, f"{where}: transformer positional_embedding_max_pos")
        for value in max_pos
    )
    # Upstream does not multiply if this is missing.
    values["timestep_scale_multiplier"] = values.get("timestep_scale_multiplier") or 1.0
    cfg = build(TransformerConfig, values, f"{where}: transformer")
    width = raw.get("cross_attention_dim", cfg.width)
    if width != cfg.width:
        raise ValueError(
            f"{where}: transformer cross_attention_dim is {width}, supported: the model's width "
            f"({cfg.width}), which captions are projected to"
        )
    return cfg


def vae(raw: Raw, where: str = "config") -> VAEConfig:
    """Converts `config.vae` to our configuration.

    Raises:
      ValueError: naming the key that is missing or has a value we do not have.
    """
    check_fixed(raw, _VAE_FIXED, f"{where}: vae")
    check_names(raw, (*_VAE_FIXED, *_VAE_READ, *_VAE_IGNORED), f"{where}: vae", VAEConfig)
    values = {**_VAE_DEFAULTS, **{k: v for k, v in raw.items() if v is not None}}
    for name in ("encoder_blocks", "decoder_blocks"):
        blocks = values.get(name, values.get("blocks"))
        if blocks is None:
            raise ValueError(f"{where}: vae has neither {name} nor blocks")
        if not isinstance(blocks, list | tuple):
            raise ValueError(f"{where}: vae {name} is no list of blocks")
        values[name] = tuple(_block(block, f"{where}: vae {name}") for block in blocks)
    if "latent_channels" not in values:
        raise ValueError(f"{where}: vae has no latent_channels")
    double = values.get("double_z", True)
    values.setdefault("latent_log_var", "per_channel" if double else "none")
    cfg = build(VAEConfig, values, f"{where}: vae")
    if cfg.use_quant_conv and cfg.latent_log_var in ("uniform", "constant"):
        raise ValueError(
            f"{where}: vae latent_log_var {cfg.latent_log_var!r} requires use_quant_conv false"
        )
    return cfg


def _block(raw: Any, where: str) -> BlockConfig:
    try:
        name, params = raw
        params = {"num_layers": params} if isinstance(params, int) else {**params}
    except (TypeError, ValueError):
        raise ValueError(
            f"{where}: {shown(raw)} is no block; expected [name, number or object]"
        ) from (None)
    if name in ("res_x", "attn_res_x") and "num_layers" not in params:
        raise ValueError(f"{where}: {shown(raw)} has no num_layers")
    if name == "attn_res_x" and "attention_head_dim" not in params:
        raise ValueError(f"{where}: {shown(raw)} has no attention_head_dim")
    check_names(params, (), f"{where}: {name}", BlockConfig)
    return build(BlockConfig, {"name": name, **params}, f"{where}: {name}")


def scheduler(raw: Raw, where: str = "config") -> SchedulerConfig:
    """Converts `config.scheduler` to our configuration.

    Raises:
      ValueError: naming a value that none of our samplers supports.
    """
    check_names(raw, (), f"{where}: scheduler", SchedulerConfig)
    present = {key: value for key, value in raw.items() if value is not None}
    return build(SchedulerConfig, present, f"{where}: scheduler")


def upsampler(raw: Raw, where: str = "config") -> UpsamplerConfig:
    """Converts the flat config of a latent upsampler's file to our configuration.

    Raises:
      ValueError: naming a value that our upsampler does not support.
    """
    if raw.get("_class_name", "LatentUpsampler") != "LatentUpsampler" or "transformer" in raw:
        raise ValueError(f"{where} is no latent upsampler: {sorted(raw)}")
    check_names(raw, (), where, UpsamplerConfig)
    # Upstream's loader has other defaults than its class.
    defaults = {"in_channels": 4, "mid_channels": 128, "num_blocks_per_stage": 4, "dims": 2}
    cfg = build(UpsamplerConfig, {**defaults, **raw}, where)
    if not (cfg.spatial_upsample or cfg.temporal_upsample):
        raise ValueError(f"{where}: neither spatial_upsample nor temporal_upsample is true")
    return cfg


def check_fixed(raw: Raw, fixed: Mapping[str, tuple[tuple[Any, ...], Any]], where: str) -> None:
    """Compares values with a table: key -> (supported values, what an absent key means).

    Raises:
      ValueError: naming the key, its value and the supported ones.
    """
    for key, (supported, default) in fixed.items():
        value = raw.get(key, default)
        if value not in supported:
            choices = " or ".join(repr(v) for v in supported if v is not None)
            state = (
                f"is {shown(value)}" if key in raw else f"is missing, which means {shown(value)}"
            )
            raise ValueError(f"{where} {key} {state}; supported: {choices}")


def check_names(raw: Raw, names: Iterable[str], where: str, kind: Any = None) -> None:
    """Refuses an unknown key, unless its value is null, which counts as absent.

    Args:
      raw: the content of the file.
      names: known keys. Those that begin with an underscore always are: they are notes of the
        tool that wrote the file.
      where: names the place in errors.
      kind: a dataclass whose fields are known keys, too.

    Raises:
      ValueError: naming the key and its value.
    """
    allowed = {*names, *(() if kind is None else get_type_hints(kind))}
    for key, value in raw.items():
        if key not in allowed and not key.startswith("_") and value is not None:
            raise ValueError(
                f"{where} has {key} = {shown(value)}, which no LTX-Video model up to 0.9.8 has: it "
                "may change what is computed, so this file is not read. Newer models are not "
                "supported"
            )


def build(kind: Any, values: Raw, where: str) -> Any:
    """Makes a dataclass from those values that are its fields.

    Raises:
      ValueError: naming the value that has the wrong type or that the dataclass refuses.
    """
    hints = get_type_hints(kind)
    fields = {key: value for key, value in values.items() if key in hints}
    for key, value in fields.items():
        if get_origin(hints[key]) is tuple:  # converted by the caller
            continue
        # The types and the literal values that the field allows.
        choices = [c for arg in get_args(hints[key]) for c in get_args(arg) or (arg,)]
        choices = choices or [hints[key]]
        literals = [choice for choice in choices if isinstance(choice, str | int)]
        if value is None and type(None) in choices:
            continue
        if literals and value not in literals:
            raise ValueError(f"{where} {key} is {shown(value)}; supported: {literals}")
        for scalar in (bool, int, float):
            if scalar in choices:
                fields[key] = number(scalar, value, f"{where} {key}")
        if str in choices and not isinstance(value, str):
            raise ValueError(f"{where} {key} is {shown(value)}, expected a name")
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def number(kind: type, value: Any, what: str) -> Any:
    """A number of the given kind; whole numbers count as floats, and 1.0 as an int.

    Raises:
      ValueError: beginning with `what`, if it is none or not finite.
    """
    is_number = isinstance(value, int | float) and isinstance(value, bool) == (kind is bool)
    try:
        if is_number and kind(value) == value and math.isfinite(value):
            return kind(value)
    except (OverflowError, ValueError):
        pass
    raise ValueError(f"{what} is {shown(value)}, expected {kind.__name__}")


def dump(configs: Configs) -> str:
    """The text of the metadata's `config`, for a checkpoint of this package."""
    raw: dict[str, Any] = {}
    if configs.transformer is not None:
        raw["transformer"] = _dump_transformer(configs.transformer)
    if configs.vae is not None:
        raw["vae"] = _dump_vae(configs.vae)
    raw["scheduler"] = {
        "_class_name": "RectifiedFlowScheduler",
        **dataclasses.asdict(configs.scheduler),
    }
    if configs.allowed_inference_steps is not None:
        raw["allowed_inference_steps"] = list(configs.allowed_inference_steps)
    return json.dumps(raw)


def _dump_transformer(cfg: TransformerConfig) -> dict[str, Any]:
    fixed = {key: supported[-1] for key, (supported, _) in _TRANSFORMER_FIXED.items()}
    fixed = {key: value for key, value in fixed.items() if not key.startswith("patch_size")}
    return {**fixed, **dataclasses.asdict(cfg), "cross_attention_dim": cfg.width}


def _dump_vae(cfg: VAEConfig) -> dict[str, Any]:
    own = dataclasses.asdict(cfg)
    for name in ("encoder_blocks", "decoder_blocks"):
        own[name] = [_dump_block(block) for block in getattr(cfg, name)]
    return {"_class_name": "CausalVideoAutoencoder", "dims": 3, "scaling_factor": 1.0, **own}


def _dump_block(block: BlockConfig) -> list[Any]:
    params = {
        f.name: getattr(block, f.name)
        for f in dataclasses.fields(block)
        if f.name != "name" and getattr(block, f.name) != f.default
    }
    if block.name in ("res_x", "attn_res_x"):
        params["num_layers"] = block.num_layers
    return [block.name, params]
