"""AutoencoderKLLTXVideo of diffusers <-> our Video-VAE: configurations and names.

diffusers builds its VAE from groups, each of which has consecutive residual blocks, a resampling
and a change of width; the official VAE is a flat list of blocks. `Group` is what they share.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ltx_jax.checkpoints.keys import STATISTICS_MEAN, STATISTICS_STD
from ltx_jax.checkpoints.official_config import build, check_fixed, check_names, number
from ltx_jax.config import BlockConfig, VAEConfig, shown

Raw = Mapping[str, Any]

_OLD, _NEW = "LTXVideoDownBlock3D", "LTXVideo095DownBlock3D"
_DOWN_TYPES = {
    "compress_all": "conv",
    "compress_space_res": "spatial",
    "compress_time_res": "temporal",
    "compress_all_res": "spatiotemporal",
}
_DOWN_NAMES = {value: key for key, value in _DOWN_TYPES.items()}

_VAE_FIXED: dict[str, tuple[tuple[Any, ...], Any]] = {
    "_class_name": (("AutoencoderKLLTXVideo",), None),
    "encoder_causal": ((True,), True),
    "patch_size_t": ((1,), 1),
    "resnet_norm_eps": ((1e-6,), 1e-6),
}
_VAE_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": (_OLD,) * 4,
    "decoder_block_out_channels": (128, 256, 512, 512),
    "layers_per_block": (4, 3, 3, 3, 4),
    "decoder_layers_per_block": (4, 3, 3, 3, 4),
    "spatio_temporal_scaling": (True, True, True, False),
    "decoder_spatio_temporal_scaling": (True, True, True, False),
    "decoder_inject_noise": (False,) * 5,
    "downsample_type": ("conv",) * 4,
    "upsample_residual": (False,) * 4,
    "upsample_factor": (1,) * 4,
    "timestep_conditioning": False,
    "patch_size": 4,
    "decoder_causal": False,
}

# Keys that are not needed: the blocks determine the compression, and statistics scale the latents.
_VAE_IGNORED = ("scaling_factor", "spatial_compression_ratio", "temporal_compression_ratio")


class Group(NamedTuple):
    """One group of diffusers' VAE: residual blocks, a resampling and a change of width.

    An encoder applies them in this order, a decoder in the reverse.
    """

    layers: int | None = None  # residual blocks; None if the official list has no block for them
    scale: BlockConfig | None = None
    resize: BlockConfig | None = None
    inject_noise: bool = False


class GroupedNetwork(NamedTuple):
    """An encoder or decoder of diffusers: groups in the order of application, and the mid block."""

    groups: tuple[Group, ...]
    mid: Group


def group_encoder(blocks: Sequence[BlockConfig]) -> GroupedNetwork:
    """Sorts the blocks of an official encoder into groups.

    Raises:
      ValueError: naming a block that diffusers does not have.
    """
    groups: list[Group] = [Group()]
    for block in blocks:
        now = groups[-1]
        if block.name == "res_x":
            groups.append(Group(layers=block.num_layers))
        elif block.name in _DOWN_TYPES:
            if now.scale or now.resize:
                groups.append(Group())
            groups[-1] = groups[-1]._replace(scale=block)
        elif block.name == "res_x_y":
            # diffusers' block with a change of width downsamples only by a strided convolution.
            if now.resize or (now.scale and now.scale.name != "compress_all"):
                groups.append(Group())
            groups[-1] = groups[-1]._replace(resize=block)
        else:
            raise ValueError(f"diffusers' encoder has no {block.name}")
    return _split_mid_block(groups)


def group_decoder(blocks: Sequence[BlockConfig], conditioned: bool) -> GroupedNetwork:
    """Sorts the blocks of an official decoder, in the order of application, into groups.

    Raises:
      ValueError: naming what diffusers does not have.
    """
    groups: list[Group] = [Group()]
    for block in blocks:
        now = groups[-1]
        if block.name == "res_x":
            if now.layers is not None:
                groups.append(Group())
            groups[-1] = groups[-1]._replace(
                layers=block.num_layers, inject_noise=block.inject_noise
            )
        elif block.name == "compress_all":
            narrows = now.resize is not None and block.channel_multiplier > 1
            # The mid block consists of residual blocks only.
            if len(groups) == 1 or now.scale or now.layers is not None or narrows:
                groups.append(Group())
            groups[-1] = groups[-1]._replace(scale=block)
        elif block.name == "res_x_y":
            if conditioned:
                raise ValueError("diffusers' decoder has no res_x_y with timestep_conditioning")
            if block.inject_noise:
                raise ValueError("diffusers' decoder has no res_x_y with inject_noise")
            # Its first group keeps the width.
            groups += [Group()] * (2 if len(groups) == 1 else 1)
            groups[-1] = Group(resize=block)
        else:
            raise ValueError(f"diffusers' decoder has no {block.name}")
    mid, *rest = groups
    rest = rest or [Group()]
    if conditioned and any(group.layers is None for group in (mid, *rest)):
        raise ValueError(
            "diffusers' decoder with timestep_conditioning has a res_x before and after every "
            "compress_all, and this one does not"
        )
    return GroupedNetwork(tuple(rest), mid)


def _split_mid_block(groups: list[Group]) -> GroupedNetwork:
    """Separates the mid block from the end of an encoder's groups."""
    groups = groups if groups[0] != Group() else groups[1:]
    mid = Group()
    if groups and not groups[-1].scale and not groups[-1].resize:
        mid = groups.pop()
    # There must be at least one group, and the last one must keep its width.
    if not groups or groups[-1].resize:
        groups.append(Group())
    return GroupedNetwork(tuple(groups), mid)


def vae(raw: Raw, where: str) -> tuple[VAEConfig, dict[str, str]]:
    """Converts the VAE's config.json; also returns the names of its blocks: official -> diffusers.

    Raises:
      ValueError: naming a value that our VAE does not support, or that cannot work in diffusers.
    """
    check_fixed(raw, _VAE_FIXED, where)
    check_names(raw, (*_VAE_FIXED, *_VAE_DEFAULTS, *_VAE_IGNORED), where)
    values = {**_VAE_DEFAULTS, **{k: v for k, v in raw.items() if k in _VAE_DEFAULTS}}
    for key, default in _VAE_DEFAULTS.items():
        if isinstance(default, tuple):
            _check_list(values[key], type(default[0]), f"{where} {key}")
    conditioned = bool(values["timestep_conditioning"])
    try:
        encoder = _read_encoder(values)
        decoder, last = _read_decoder(values, conditioned)
    except (IndexError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{where}: its lists of blocks do not fit each other ({error})") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    encoder_blocks, encoder_names = _walk(encoder, "encoder.down_blocks", decoder=False)
    decoder_blocks, decoder_names = _walk(decoder, "decoder.up_blocks", decoder=True)
    fields = {
        **values,
        "encoder_blocks": tuple(encoder_blocks),
        "decoder_blocks": tuple(decoder_blocks[::-1]),
        "encoder_base_channels": values["block_out_channels"][0],
        "decoder_base_channels": last,
        "causal_decoder": values["decoder_causal"],
    }
    cfg = build(VAEConfig, fields, where)
    return cfg, {**encoder_names, **decoder_names}


def _check_list(value: Any, kind: type, what: str) -> None:
    """Checks a list of names, switches, or numbers of layers or channels."""
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= 64:
        raise ValueError(f"{what} is no list of 1 to 64 values")
    for item in value:
        if not (isinstance(item, str) if kind is str else number(kind, item, what) <= 1 << 20):
            raise ValueError(f"{what} holds {shown(item)}")


def _read_encoder(raw: Raw) -> GroupedNetwork:
    channels, layers = raw["block_out_channels"], raw["layers_per_block"]
    types = raw["down_block_types"]
    new = types[-1] == _NEW
    groups, width = [], channels[0]
    count = len(channels) - new
    for i in range(count):
        wide = channels[min(i + 1, len(channels) - 1)]
        scale = resize = None
        if types[i] == _OLD:
            scale = BlockConfig("compress_all") if raw["spatio_temporal_scaling"][i] else None
            if wide != width:
                resize = BlockConfig("res_x_y", multiplier=_ratio(wide, width))
        elif types[i] == _NEW:
            name = _DOWN_NAMES[raw["downsample_type"][i]]
            if not raw["spatio_temporal_scaling"][i]:
                _keep_width(width, wide)
            elif name == "compress_all":
                _keep_width(width, wide)
                scale = BlockConfig(name)
            else:
                scale = BlockConfig(name, multiplier=_ratio(wide, width))
        else:
            raise ValueError(f"down_block_types holds {shown(types[i])}; supported: {_OLD}, {_NEW}")
        groups.append(Group(layers[i] or None, scale, resize))
        width = wide
    return GroupedNetwork(tuple(groups), Group(layers[-1] or None))


def _read_decoder(raw: Raw, conditioned: bool) -> tuple[GroupedNetwork, int]:
    """The groups, and the width of the last."""
    channels = raw["decoder_block_out_channels"][::-1]
    layers = raw["decoder_layers_per_block"][::-1]
    inject = raw["decoder_inject_noise"][::-1]
    scaling = raw["decoder_spatio_temporal_scaling"][::-1]
    residual, factors = raw["upsample_residual"][::-1], raw["upsample_factor"][::-1]

    def run(i: int) -> int | None:
        # A group without residual blocks still has its time embedding.
        return layers[i] if layers[i] or conditioned else None

    groups, width = [], channels[0]
    for i, channel in enumerate(channels):
        narrow = width // factors[i]
        out = channel // factors[i]
        resize = scale = None
        if out != narrow:
            if factors[i] != 1 or conditioned or inject[i + 1]:
                raise ValueError(
                    f"decoder_block_out_channels changes from {width} to {channel} in a group with "
                    "a factor, a time or noise, which does not work in diffusers either"
                )
            resize = BlockConfig("res_x_y", multiplier=_ratio(narrow, out))
        if scaling[i]:
            multiplier = factors[i] if factors[i] != 1 else None
            scale = BlockConfig("compress_all", multiplier=multiplier, residual=bool(residual[i]))
        elif factors[i] != 1:
            raise ValueError(f"upsample_factor {factors[i]} in a group that does not upsample")
        groups.append(Group(run(i + 1), scale, resize, bool(inject[i + 1])))
        width = out
    return GroupedNetwork(tuple(groups), Group(run(0), inject_noise=bool(inject[0]))), width


def _ratio(wide: int, narrow: int) -> int:
    if wide % narrow:
        raise ValueError(f"a change of width from or to {wide} by {narrow} is no whole factor")
    return wide // narrow


def _keep_width(width: int, wide: int) -> None:
    if wide != width:
        raise ValueError(
            f"block_out_channels changes from {width} to {wide} in a group that must keep it"
        )


def vae_names(cfg: VAEConfig) -> dict[str, str]:
    """The names of a VAE's blocks: official -> diffusers ("decoder.up_blocks.1" -> ...).

    Raises:
      ValueError: as `dump_vae` does.
    """
    encoder, decoder = _grouped(cfg)
    return {
        **_walk(encoder, "encoder.down_blocks", decoder=False)[1],
        **_walk(decoder, "decoder.up_blocks", decoder=True)[1],
    }


def _grouped(cfg: VAEConfig) -> tuple[GroupedNetwork, GroupedNetwork]:
    conditioned = cfg.timestep_conditioning
    return (
        group_encoder(cfg.encoder_blocks),
        group_decoder(cfg.decoder_blocks[::-1], conditioned),
    )


def _walk(
    grouped: GroupedNetwork, prefix: str, *, decoder: bool
) -> tuple[list[BlockConfig], dict[str, str]]:
    """The flat list of blocks in the order of application, and diffusers' name of each."""
    blocks: list[BlockConfig] = []
    names: dict[str, str] = {}
    network, where = prefix.split(".")

    def add(block: BlockConfig | None, place: str) -> None:
        if block is not None:
            names[f"{prefix}.{len(blocks)}"] = f"{network}.{place}"
            blocks.append(block)

    def run(group: Group) -> BlockConfig | None:
        if group.layers is None:
            return None
        return BlockConfig("res_x", group.layers, inject_noise=group.inject_noise)

    if decoder:
        add(run(grouped.mid), "mid_block")
    for i, group in enumerate(grouped.groups):
        place = f"{where}.{i}"
        if decoder:
            add(group.resize, f"{place}.conv_in")
            add(group.scale, f"{place}.upsamplers.0")
            add(run(group), place)
        else:
            add(run(group), place)
            add(group.scale, f"{place}.downsamplers.0")
            add(group.resize, f"{place}.conv_out")
    if not decoder:
        add(run(grouped.mid), "mid_block")
    return blocks, names


def dump_vae(cfg: VAEConfig) -> dict[str, Any]:
    """The inverse of `vae`: the config.json of AutoencoderKLLTXVideo.

    Raises:
      ValueError: naming what diffusers cannot express.
    """
    for name, constant in {
        "norm_layer": "pixel_norm",
        "latent_log_var": "uniform",
        "spatial_padding_mode": "zeros",
        "use_quant_conv": False,
    }.items():
        if getattr(cfg, name) != constant:
            raise ValueError(
                f"diffusers cannot express {name} {getattr(cfg, name)!r}: its class has "
                f"{constant!r}"
            )
    encoder, decoder = _grouped(cfg)
    return {
        "_class_name": "AutoencoderKLLTXVideo",
        "in_channels": cfg.in_channels,
        "out_channels": cfg.out_channels,
        "latent_channels": cfg.latent_channels,
        **_dump_encoder(encoder, cfg.encoder_base_channels),
        **_dump_decoder(decoder, cfg.decoder_base_channels),
        "timestep_conditioning": cfg.timestep_conditioning,
        "patch_size": cfg.patch_size,
        "patch_size_t": 1,
        "resnet_norm_eps": 1e-6,
        "scaling_factor": 1.0,
        "encoder_causal": True,
        "decoder_causal": cfg.causal_decoder,
        # If absent, diffusers derives these as if every resampling were of both time and space.
        "spatial_compression_ratio": cfg.spatial_factor,
        "temporal_compression_ratio": cfg.temporal_factor,
    }


def _dump_encoder(grouped: GroupedNetwork, width: int) -> dict[str, Any]:
    old = all(g.scale is None or g.scale.name == "compress_all" for g in grouped.groups)
    channels = [width]
    for group in grouped.groups:
        for block in (group.scale, group.resize):
            if block is not None and block.name != "compress_all":  # its factor is ignored
                width *= block.channel_multiplier
        channels.append(width)
    return {
        "block_out_channels": channels[:-1] if old else channels,
        # The newer type changes the width only when it downsamples. The type of the last block
        # decides how diffusers reads the whole list.
        "down_block_types": [_OLD if old or g.resize else _NEW for g in grouped.groups],
        "layers_per_block": [g.layers or 0 for g in (*grouped.groups, grouped.mid)],
        "spatio_temporal_scaling": [g.scale is not None for g in grouped.groups],
        "downsample_type": [
            _DOWN_TYPES[g.scale.name] if g.scale else "conv" for g in grouped.groups
        ],
    }


def _dump_decoder(grouped: GroupedNetwork, last: int) -> dict[str, Any]:
    factors = [g.scale.channel_multiplier if g.scale else 1 for g in grouped.groups]
    ratios = [g.resize.channel_multiplier if g.resize else 1 for g in grouped.groups]
    width = last * math.prod(factors) * math.prod(ratios)
    channels = []
    for factor, ratio in zip(factors, ratios, strict=True):
        # The list contains the width after a group's change of width and before its factor.
        channels.append(width // ratio)
        width //= factor * ratio
    return {
        "decoder_block_out_channels": channels[::-1],
        "decoder_layers_per_block": [g.layers or 0 for g in (grouped.mid, *grouped.groups)][::-1],
        "decoder_spatio_temporal_scaling": [g.scale is not None for g in grouped.groups][::-1],
        "decoder_inject_noise": [g.inject_noise for g in (grouped.mid, *grouped.groups)][::-1],
        "upsample_residual": [bool(g.scale and g.scale.residual) for g in grouped.groups][::-1],
        "upsample_factor": factors[::-1],
    }


def vae_renamer(blocks: Mapping[str, str]) -> Callable[[str], str]:
    """Returns the map from official names of tensors to diffusers'; `blocks` is that of blocks."""

    def rename(name: str) -> str:
        if name in _VAE_BUFFERS:
            return _VAE_BUFFERS[name]
        parts = name.split(".")
        place = ".".join(parts[:3])
        if place in blocks:
            rest = ".".join(parts[3:]).replace("res_blocks.", "resnets.")
            rest = rest.replace("conv_shortcut.", "conv_shortcut.conv.")
            return f"{blocks[place]}.{rest.replace('norm3.norm.', 'norm3.')}"
        # The modulation of the decoder as a whole, not of its blocks.
        return name.replace("decoder.last_", "decoder.")

    return rename


_VAE_BUFFERS = {STATISTICS_MEAN: "latents_mean", STATISTICS_STD: "latents_std"}
