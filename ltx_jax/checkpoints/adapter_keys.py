"""The keys of an adapter's file: PREFIX + MODULE + SUFFIX.

The prefix tells which program wrote the file (ComfyUI, diffusers, peft, kohya); `vae.` begins the
keys of an adapter of the VAE's decoder. Modules are named as in official files or as in diffusers,
also flattened (`_` for `.`). The suffix says what the tensor is. An unknown key is an error.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ltx_jax.checkpoints import keys

# The longer ones first. Those of the second group stand before flattened names.
_PREFIXES = (
    "transformer.base_model.model.",
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    keys.VAE_PREFIX,
)
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")

# What a tensor is, by the end of its key; longer ends first where one ends with another.
_ROLES = {
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_A": "down",
    ".lora_B": "up",
    ".lora_B.bias": "up_bias",
    ".lora_B.default.bias": "up_bias",
    ".alpha": "alpha",
    ".dora_scale": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".diff": "difference",
    ".w_norm": "difference",
    ".diff_b": "bias_difference",
    ".b_norm": "bias_difference",
    ".set_weight": "replacement",
    **{f".hada_w{i}_{x}": f"hadamard_{x}{i}" for i in (1, 2) for x in "ab"},
    **{f".lokr_w{i}": f"kronecker_{i}" for i in (1, 2)},
    **{f".lokr_w{i}_{x}": f"kronecker_{i}{x}" for i in (1, 2) for x in "ab"},
}
_ENDS = sorted(_ROLES, key=len, reverse=True)

# Ends of the keys of adapters that are not supported.
_UNSUPPORTED = re.compile(
    r"\.(lora_mid|hada_t[12]|lokr_t2|oft_[A-Z]+|oft_blocks|oft_diag|boft_[A-Z]+|a1|a2|b1|b2|"
    r"vera_lambda_[bd]|ia3_l|reshape_weight)(\.weight)?$"
)

# Names in the keys of adapters for other models.
_FAMILIES = {
    "LTX-2": re.compile(r"audio_|video_a2v|av_ca_"),
    "Wan": re.compile(r"(^|[._])blocks[._]\d+[._](self_attn|cross_attn|ffn)"),
    "Flux or HunyuanVideo": re.compile(r"double_blocks|single_(transformer_)?blocks"),
    "Stable Diffusion": re.compile(r"down_blocks|up_blocks|mid_block|input_blocks|lora_te"),
    "Stable Diffusion 3": re.compile(r"joint_blocks|context_block"),
}


class LayerNames:
    """The layers of a network under all their names.

    Args:
      tensor_names: official names of the network's tensors.
      network: what to call it in messages.
    """

    def __init__(self, tensor_names: Iterable[str], network: str):
        self._network = network
        modules = {name.removesuffix(".weight").removesuffix(".bias") for name in tensor_names}
        self._modules = {
            spelling: module
            for module in modules
            for spelling in (keys.diffusers_transformer_name(module), module)
        }
        self._flat = {name.replace(".", "_"): module for name, module in self._modules.items()}

    def split(self, key: str, path: Path) -> tuple[str, str]:
        """The module and the role of a key.

        Raises:
          ValueError: if there is no such module or role.
        """
        end = next((end for end in _ENDS if key.endswith(end)), None)
        if end is None:
            if match := _UNSUPPORTED.search(key):
                raise ValueError(
                    f"{path} is an adapter of a kind that is not supported ({match[1]} in {key}): "
                    "LoRA, DoRA, LoHa, LoKr and whole differences are"
                )
            raise ValueError(f"{path} has an unknown key {key}: it is no adapter, or a newer kind")
        name = key[: -len(end)]
        for prefix in _FLAT_PREFIXES:
            if name.startswith(prefix):
                return self._find(name.removeprefix(prefix), self._flat, key, path), _ROLES[end]
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
        return self._find(name.removeprefix(prefix), self._modules, key, path), _ROLES[end]

    def _find(self, name: str, modules: Mapping[str, str], key: str, path: Path) -> str:
        if name in modules:
            return modules[name]
        for family, pattern in _FAMILIES.items():
            if pattern.search(key) and not key.startswith(keys.VAE_PREFIX):
                raise ValueError(
                    f"{path} is an adapter of {family}, not of LTX-Video: it has {key}"
                )
        close = difflib.get_close_matches(name, modules, n=1)
        hint = f"; the nearest layer is {close[0]}" if close else ""
        raise ValueError(f"{path} changes {key}, a layer that this {self._network} lacks{hint}")
