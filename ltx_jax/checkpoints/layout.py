"""Recognises what a file holds by the names of its tensors, and sorts them by network.

Names of LTX-Video's networks are the official ones, below a prefix that depends on the tool that
wrote the file, or those of diffusers' transformer, with some of LTX-Video-Q8-Kernels among them.
Other files are refused, with an error that says what they are.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ltx_jax.checkpoints import keys, placement
from ltx_jax.checkpoints.tensors import Tensor

# Prefixes of the transformer: of the official files, then of ComfyUI's split files.
_TRANSFORMER_PREFIXES = (keys.TRANSFORMER_PREFIX, "diffusion_model.")
_PREFIXES = (*_TRANSFORMER_PREFIXES, keys.VAE_PREFIX)
# First segments of names, to tell the networks apart in files without prefixes.
_VAE_PARTS = ("encoder", "decoder", "quant_conv", "post_quant_conv", "per_channel_statistics")

_T5 = "encoder.block.0.layer.0.SelfAttention.q.weight"
_T5_GGUF = "enc.blk.0.attn_q.weight"
# Parts of names that only adapters have.
_ADAPTERS = (
    *(".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lora.down.", ".lora.up.", "_lora.up."),
    *(".lora_linear_layer.", ".hada_w1_a", ".lokr_w1", ".lokr_w2", ".dora_scale", ".set_weight"),
    *(".lora_magnitude_vector", ".oft_blocks", ".diff_b"),
)
# Parts of names that one family of models has, and what to say. The first that fits decides.
_FAMILIES = (
    ("audio_patchify_proj.", "an LTX-2 model (video with sound), which is another network"),
    ("audio_vae.", "a part of an LTX-2 model (video with sound), which is another network"),
    ("initial_conv.weight", "a latent upsampler: pass it as --spatial_upscaler"),
    (_T5, "a T5 text encoder: pass it as --text_encoder"),
    (_T5_GGUF, "a T5 text encoder: pass it as --text_encoder"),
    ("individual_token_refiner.", "a HunyuanVideo model, which is another network"),
    ("double_blocks.0.img_attn", "a Flux model, which is another network"),
    ("self_attn.q.weight", "a Wan model, which is another network"),
    ("cap_embedder.", "a Lumina model, which is another network"),
    ("t5_yproj.", "a Mochi model, which is another network"),
    ("input_blocks.0.0.weight", "a Stable Diffusion model, which is another network"),
    ("joint_blocks.0.", "a Stable Diffusion 3 model, which is another network"),
    ("pos_embed.proj.", "a PixArt model, which is another network"),
    ("patch_embed.", "a CogVideoX model, which is another network"),
    ("text_model.encoder.", "a CLIP text encoder; LTX-Video reads captions by T5"),
    ("features.0.weight", "a VGG network, which measures videos and makes none"),
)

# Modules that LTX-Video-Q8-Kernels names otherwise than diffusers does.
_Q8_KERNELS = {".ff.act.": ".ff.net.0.", ".ff.proj_down.": ".ff.net.2."} | {
    f".to_out.{leaf}": f".to_out.0.{leaf}" for leaf in ("weight", "bias", "scales")
}


class Networks(NamedTuple):
    """The tensors of a file by network, under official names without prefix."""

    transformer: dict[str, Tensor]
    vae: dict[str, Tensor]
    rest: dict[str, Tensor]  # under their names in the file
    official: bool  # whether an official file may have these names


def split(stored: Mapping[str, Tensor], where: str) -> Networks:
    """Sorts the tensors of a file by network.

    As upstream: if any name has a prefix, only the tensors with a prefix belong to a network. In a
    file without any prefix all tensors do.

    Raises:
      ValueError: if the file is an adapter or of another family of models; says which.
    """
    _refuse_others(stored, where)
    if any(name.startswith(_PREFIXES) for name in stored):
        prefix = next(
            (p for p in _TRANSFORMER_PREFIXES if any(name.startswith(p) for name in stored)),
            keys.TRANSFORMER_PREFIX,
        )
        # Upstream removes every occurrence of the prefix, not only the first.
        transformer, vae = (
            {n.replace(p, ""): t for n, t in stored.items() if n.startswith(p)}
            for p in (prefix, keys.VAE_PREFIX)
        )
        used = (prefix, keys.VAE_PREFIX)
        rest = {n: t for n, t in stored.items() if not n.startswith(used)}
        is_official = prefix == keys.TRANSFORMER_PREFIX
    else:
        vae = {n: t for n, t in stored.items() if n.partition(".")[0] in _VAE_PARTS}
        transformer, rest, is_official = {n: t for n, t in stored.items() if n not in vae}, {}, True
    if keys.DIFFUSERS_PATCHIFY in transformer:
        names = {_official(name): tensor for name, tensor in transformer.items()}
        return Networks(names, vae, rest, False)
    return Networks(transformer, vae, rest, is_official)


def _official(name: str) -> str:
    for theirs, ours in _Q8_KERNELS.items():
        name = name.replace(theirs, ours)
    return keys.official_transformer_name(name)


def _refuse_others(stored: Mapping[str, Tensor], where: str) -> None:
    if any(part in name for name in stored for part in _ADAPTERS):
        raise ValueError(
            f"{where} is a LoRA or another adapter, which changes the weights of a model and "
            "is no model itself: name the model that it was made for, and pass this file as --lora"
        )
    what = family(stored)
    if what is not None:
        raise ValueError(f"{where} is no LTX-Video checkpoint: it is {what}")


def family(names: Iterable[str]) -> str | None:
    """Which other model a file holds, by the names of its tensors; None if they do not show it."""
    names = list(names)
    ltx2 = _FAMILIES[:2]
    is_ours = any(name.endswith((keys.PATCHIFY, keys.VAE_CONV_IN)) for name in names)
    for part, what in ltx2 if is_ours else _FAMILIES:
        if any(part in name for name in names):
            return what
    return None


def describe(stored: Mapping[str, Tensor]) -> str:
    """What a file is, or the names of some of its tensors; ends an error message."""
    if any(name.endswith((keys.PATCHIFY, keys.VAE_CONV_IN)) for name in stored):
        return "it is an LTX-Video checkpoint: pass it as --checkpoint"
    what = family(stored)
    names = placement.first_five(list(stored)) or "no tensors at all"
    return f"it is {what}" if what else f"it holds {names}"
