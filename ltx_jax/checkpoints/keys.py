"""The one place that maps names and layouts of tensors: our trees <-> PyTorch's files.

Our trees have Linen's (in, out) kernels, convolution kernels (t, h, w, in, out) and the blocks of
the transformer stacked on a leading axis; the files have (out, in), (out, in, t, h, w) and one
tensor per block. All else has the same layout.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from ltx_jax.config import (
    AdapterConfig,
    DType,
    ExecutionConfig,
    TextEncoderConfig,
    TransformerConfig,
    UpsamplerConfig,
    VAEConfig,
)
from ltx_jax.models import adapter as models_adapter
from ltx_jax.models.text_network import text_network
from ltx_jax.models.transformer import Transformer, example_inputs
from ltx_jax.models.upsampler import LatentUpsampler
from ltx_jax.models.vae import VideoVAE
from ltx_jax.runtime import sharding

Path = tuple[str, ...]
AnyArray = TypeVar("AnyArray", np.ndarray, jax.Array)

TRANSFORMER_PREFIX = "model.diffusion_model."
PATCHIFY = "patchify_proj.weight"  # the first layer of every transformer
DIFFUSERS_PATCHIFY = "proj_in.weight"
VAE_CONV_IN = (
    "coder.conv_in.conv.weight"  # how the names of the first layers of encoder and decoder end
)
VAE_PREFIX = "vae."
STATISTICS = "per_channel_statistics."
STATISTICS_STD = f"{STATISTICS}std-of-means"
STATISTICS_MEAN = f"{STATISTICS}mean-of-means"
# Tensors of the released VAEs that nothing uses. They are kept for writing the file again, like
# those that `is_dropped_norm` names and those outside the prefixes.
TOLERATED = (
    f"{STATISTICS}mean-of-stds",
    f"{STATISTICS}mean-of-stds_over_std-of-means",
    f"{STATISTICS}channel",
)

# Modules whose official names differ: inside a block, then elsewhere.
_BLOCK_MODULES = {
    "attn1.to_out": "attn1.to_out.0",
    "attn2.to_out": "attn2.to_out.0",
    "ff.linear_1": "ff.net.0.proj",
    "ff.linear_2": "ff.net.2",
}
_TIMESTEP_EMBEDDER = "adaln_single.timestep_embedder"
_TIMESTEP_EMBEDDER_OFFICIAL = "adaln_single.emb.timestep_embedder"

_LIST = re.compile(r"(down_blocks|up_blocks|res_blocks|attention_blocks)_(\d+)")
_UPSAMPLER_LIST = re.compile(r"((?:post_upsample_)?res_blocks|upsampler)_(\d+)")
# Modules that are causal convolutions: upstream, these wrap the module that has the weights.
_WRAPPED = ("conv_in", "conv_out", "conv1", "conv2", "conv")
_WEIGHTS = ("kernel", "scale")

# Segments of names that differ in diffusers' transformer.
_DIFFUSERS_TRANSFORMER = {
    "patchify_proj": "proj_in",
    "adaln_single": "time_embed",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}


class Leaf(NamedTuple):
    """One parameter and its tensors in a file: one, or one per layer if it is stacked."""

    path: Path
    shape: tuple[int, ...]
    names: tuple[str, ...]  # official, without the prefix
    stacked: bool = False

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Shape without the axis of the layers."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of each tensor in the file."""
        shape = self.layer_shape
        if self._is_noise_scale:
            return (*shape, 1, 1)
        return tuple(shape[axis] for axis in self._axes)

    def renamed(self, rename: Callable[[str], str]) -> "Leaf":
        """The same parameter, its tensors under other names."""
        return self._replace(names=tuple(rename(name) for name in self.names))

    @property
    def _is_noise_scale(self) -> bool:
        return self.path[-1] in ("per_channel_scale1", "per_channel_scale2")

    @property
    def _axes(self) -> tuple[int, ...]:
        """Our axes in the file's order: outputs, inputs, then the kernel's window."""
        rank = len(self.layer_shape)
        if self.path[-1] != "kernel":
            return tuple(range(rank))
        return (rank - 1, rank - 2, *range(rank - 2))

    def from_stored(self, array: AnyArray) -> AnyArray:
        """A view of a tensor of the file, laid out as ours."""
        if self._is_noise_scale:
            return array.reshape(self.layer_shape)
        return array.transpose(np.argsort(self._axes)) if array.ndim else array

    def to_stored(self, array: AnyArray) -> AnyArray:
        """The inverse of `from_stored`, of one layer."""
        return array.reshape(self.stored_shape) if self._is_noise_scale else self._transposed(array)

    def _transposed(self, array: AnyArray) -> AnyArray:
        return array.transpose(self._axes) if array.ndim else array


@functools.lru_cache(maxsize=8)  # tracing takes a second
def transformer_boxed(cfg: TransformerConfig, dtype: DType = "float32") -> Any:
    """Shapes and logical axes of a transformer's parameters, in `dtype`."""
    init = Transformer(cfg, ExecutionConfig(param_dtype=dtype)).init
    inputs = jax.eval_shape(lambda: example_inputs(cfg))
    return jax.eval_shape(init, jax.random.key(0), *inputs)["params"]


def adaptable_boxed(cfg: TransformerConfig | VAEConfig) -> Any:
    """Shapes and logical axes of the parameters that an adapter may change: all of a transformer,
    and of a VAE the decoder, so that its latents stay those that transformers know."""
    if isinstance(cfg, TransformerConfig):
        return transformer_boxed(cfg)
    return {"decoder": vae_boxed(cfg)["decoder"]}


def adaptable_leaves(cfg: TransformerConfig | VAEConfig) -> list[Leaf]:
    """The parameters of `adaptable_boxed` and their official names."""
    boxed = adaptable_boxed(cfg)
    if isinstance(cfg, TransformerConfig):
        return transformer_leaves(boxed)
    return vae_leaves(cfg, boxed)


def adapter_boxed(cfg: TransformerConfig | VAEConfig, adapter: AdapterConfig, dtype: DType) -> Any:
    """Shapes and logical axes of the parameters of a network's adapter, in `dtype`."""
    boxed = adaptable_boxed(cfg)
    return jax.eval_shape(
        lambda key: models_adapter.init(boxed, adapter, key, dtype), jax.random.key(0)
    )


@functools.lru_cache(maxsize=8)
def vae_boxed(cfg: VAEConfig, dtype: DType = "float32") -> Any:
    """Shapes and logical axes of a VAE's parameters, in `dtype`."""
    size = cfg.patch_size * 2 ** len(cfg.encoder_blocks)  # divisible by every block's stride
    video = jax.ShapeDtypeStruct((1, 1, size, size, cfg.in_channels), np.float32)
    init = VideoVAE(cfg, ExecutionConfig(param_dtype=dtype)).init
    return jax.eval_shape(init, jax.random.key(0), video)["params"]


@functools.lru_cache(maxsize=8)
def text_encoder_boxed(cfg: TextEncoderConfig, dtype: DType = "float32") -> Any:
    """Shapes and logical axes of a text encoder's parameters, in `dtype`."""
    ids = jax.ShapeDtypeStruct((1, 1), np.int32)
    init = text_network(cfg, ExecutionConfig(param_dtype=dtype)).init
    return jax.eval_shape(init, jax.random.key(0), ids, ids)["params"]


def upsampler_boxed(cfg: UpsamplerConfig, dtype: DType = "float32") -> Any:
    """Shapes and logical axes of a latent upsampler's parameters, in `dtype`."""
    latents = jax.ShapeDtypeStruct((1, 1, 2, 2, cfg.in_channels), np.float32)
    init = LatentUpsampler(cfg, ExecutionConfig(param_dtype=dtype)).init
    return jax.eval_shape(init, jax.random.key(0), latents)["params"]


def transformer_leaves(boxed: Any) -> list[Leaf]:
    """The parameters of `transformer_boxed` and their official names."""
    leaves = []
    for path, shape in flat(boxed):
        if path[0] == "blocks":
            name = _transformer_name(path[1:])
            names = tuple(f"transformer_blocks.{i}.{name}" for i in range(shape.shape[0]))
            leaves.append(Leaf(path, shape.shape, names, stacked=True))
        else:
            names = (_transformer_name(path),)
            leaves.append(Leaf(path, shape.shape, names))
    return leaves


def _transformer_name(path: Path) -> str:
    module = ".".join(path[:-1])
    module = _BLOCK_MODULES.get(module, module)
    if module.startswith(_TIMESTEP_EMBEDDER):
        module = _TIMESTEP_EMBEDDER_OFFICIAL + module.removeprefix(_TIMESTEP_EMBEDDER)
    leaf = "weight" if path[-1] in _WEIGHTS else path[-1]
    return f"{module}.{leaf}" if module else leaf


def vae_leaves(cfg: VAEConfig, boxed: Any) -> list[Leaf]:
    """The parameters of `vae_boxed` and their official names."""
    return [Leaf(path, shape.shape, (_vae_name(cfg, path),)) for path, shape in flat(boxed)]


def _vae_name(cfg: VAEConfig, path: Path) -> str:
    *modules, leaf = path
    parts = [_LIST.sub(r"\1.\2", module) for module in modules]
    last = modules[-1] if modules else ""
    if last == "conv" and _is_strided(cfg, modules):
        pass  # upstream, the block itself is the module that wraps it
    elif last in _WRAPPED:
        parts.append("conv")
    elif last == "norm3" or (cfg.norm_layer == "layer_norm" and last in _BLOCK_NORMS):
        parts.append("norm")
    elif last == "to_out":
        parts.append("0")
    elif len(modules) > 1 and modules[-2] in ("time_embedder", "last_time_embedder"):
        parts.insert(-1, "timestep_embedder")
    parts.append("weight" if leaf in _WEIGHTS else leaf)
    return ".".join(parts)


def _is_strided(cfg: VAEConfig, modules: list[str]) -> bool:
    """Whether this is an encoder block that is a strided convolution and nothing else."""
    match = _LIST.fullmatch(modules[1])
    if modules[0] != "encoder" or match is None:
        return False
    name = cfg.encoder_blocks[int(match[2])].name
    return name.startswith("compress") and not name.endswith("_res")


_BLOCK_NORMS = ("norm1", "norm2", "conv_norm_out")


def upsampler_leaves(boxed: Any) -> list[Leaf]:
    """The parameters of `upsampler_boxed` and their official names."""

    def name(path: Path) -> str:
        parts = [_UPSAMPLER_LIST.sub(r"\1.\2", module) for module in path[:-1]]
        return ".".join([*parts, "weight" if path[-1] in _WEIGHTS else path[-1]])

    return [Leaf(path, shape.shape, (name(path),)) for path, shape in flat(boxed)]


def flat(params: Any) -> list[tuple[Path, Any]]:
    """Path and array (or shape) of every parameter."""
    leaves = jax.tree.leaves_with_path(sharding.unbox(params))
    return [(tuple(entry.key for entry in path), array) for path, array in leaves]


def stored_shapes(leaves: Iterable[Leaf]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the file must hold."""
    return {name: leaf.stored_shape for leaf in leaves for name in leaf.names}


def clean_vae_name(name: str) -> str:
    """Undoes old spellings of the VAE's modules, as upstream does while loading."""
    name = name.replace(".resnets.", ".res_blocks.")
    return name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")


def is_dropped_norm(name: str, expected: Iterable[str]) -> bool:
    """Whether upstream silently drops a VAE tensor: one of a norm that the model lacks.

    That is any name with "norm" in it whose parent is no module of the model. The norms without
    weights are modules too: a weight for one of those is an error upstream and here.
    """
    parent = name.rpartition(".")[0]
    if "norm" not in name or not parent:
        return False
    modules = set()
    for key in expected:
        parts = key.split(".")[:-1]
        modules.update(".".join(parts[:i]) for i in range(1, len(parts) + 1))
    above, _, last = parent.rpartition(".")
    bare_norm = last in (*_BLOCK_NORMS, "norm3") and above in modules
    return parent not in modules and not bare_norm


def diffusers_transformer_name(name: str) -> str:
    """The name in diffusers of an official tensor of the transformer."""
    return ".".join(_DIFFUSERS_TRANSFORMER.get(part, part) for part in name.split("."))


def official_transformer_name(name: str) -> str:
    """The inverse of `diffusers_transformer_name`."""
    inverse = {theirs: ours for ours, theirs in _DIFFUSERS_TRANSFORMER.items()}
    return ".".join(inverse.get(part, part) for part in name.split("."))
