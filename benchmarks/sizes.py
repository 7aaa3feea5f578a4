"""Sizes for the benchmarks, those of the released model or smaller ones, and random arrays."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltx_jax.config import (
    BlockConfig,
    DType,
    ExecutionConfig,
    Linears,
    T5Config,
    TransformerConfig,
    VAEConfig,
)
from ltx_jax.runtime import sharding

# Compiler options per function, not XLA_FLAGS, where an unknown name would end the process.
NO_TRITON_GEMM = {"xla_gpu_enable_triton_gemm": False}
FORCE_NHWC = {"xla_gpu_force_conv_nhwc": True}


class Video(NamedTuple):
    """A kind of video: its steps, as a fraction of the scale's steps, and options."""

    steps: float = 1.0
    guidance: float = 1.0
    teacache: float = 0.0


# The words that the names of cases (`--only`) are made of, axis by axis.
MODELS = ("2B", "13B")
LINEARS: dict[str, Linears | None] = {"none": None, "float8": "float8", "int8": "int8"}
VIDEOS = {
    "plain": Video(),
    "guided": Video(guidance=3.0),
    "distilled": Video(steps=0.4),
    "teacache": Video(teacache=0.05),
}
# Forms of the diffusers models: three of the transformer, then those of the VAE.
TORCH = (
    *("written", "blocks", "compiled"),
    *("channels-first", "channels-first-compiled"),
    *("channels-last", "channels-last-blocks", "channels-last-compiled"),
)
WORDS = (*MODELS, *LINEARS, *VIDEOS, *TORCH)


def vae_config(channels: int = 128, latent_channels: int = 128, depth: int = 5) -> VAEConfig:
    """The VAE of the releases from 0.9.5 on, or one like it with fewer channels and layers."""

    def encoder(kind: str, layers: int) -> tuple[BlockConfig, BlockConfig]:
        layers = min(layers, depth + 1)
        return BlockConfig("res_x", layers), BlockConfig(f"compress_{kind}_res", multiplier=2)

    kinds = (("space", 4), ("time", 6), ("all", 6), ("all", 2))
    up = BlockConfig("compress_all", multiplier=2, residual=True)
    res = BlockConfig("res_x", depth)
    return VAEConfig(
        encoder_blocks=(*(b for k in kinds for b in encoder(*k)), BlockConfig("res_x", 2)),
        decoder_blocks=(res, up, res, up, res, up, res),
        latent_channels=latent_channels,
        encoder_base_channels=channels,
        decoder_base_channels=channels,
        timestep_conditioning=True,
    )


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of everything; the defaults are the released 2B model at 121 frames of 512x768."""

    copy_bytes: int = 4 << 30
    square: int = 8192
    rows: tuple[int, ...] = (6144, 12288)
    width: int = 2048
    heads: tuple[tuple[int, int], ...] = ((32, 64), (32, 128))
    caption: int = 256
    caption_used: int = 77
    mosaic_blocks: tuple[tuple[int, int], ...] = ((128, 128), (64, 128), (64, 256), (128, 64))
    stages: tuple[tuple[int, ...], ...] = (  # channels, frames, rows, columns
        (128, 121, 128, 192),
        (256, 61, 64, 96),
        (512, 31, 32, 48),
        (1024, 16, 16, 24),
    )
    narrow_stages: tuple[tuple[int, ...], ...] = ((32, 25, 96, 96), (64, 25, 48, 48))  # small VAEs
    grid: tuple[int, int, int] = (16, 16, 24)
    more_grids: tuple[tuple[int, int, int], ...] = ((16, 22, 38),)  # 121 frames of 704 x 1216
    steps: int = 20
    transformer: TransformerConfig = TransformerConfig()
    vae: VAEConfig = vae_config()
    text: T5Config = T5Config()
    execution: ExecutionConfig = ExecutionConfig(dtype="bfloat16", param_dtype="bfloat16")
    vae_clip: tuple[int, int, int] = (17, 256, 256)  # of training
    discriminator_channels: int = 64
    large: tuple[int, int] = (48, 128)  # layers, and channels of a head, of the 13B model
    only: tuple[frozenset[str], ...] = (frozenset(),)  # words of the requested cases, see `pick`

    def of(self, dtype: DType) -> "Scale":
        """The same sizes in another precision."""
        execution = dataclasses.replace(self.execution, dtype=dtype, param_dtype=dtype)
        return dataclasses.replace(self, execution=execution)


def pick(scale: Scale, *axes: tuple[Sequence[str], Sequence[str]]) -> Iterator[list[list[str]]]:
    """For each requested case, in order, the names to measure along every axis.

    Args:
      scale: holds the requests. If a request has no word of an axis, the axis takes its defaults.
      axes: (all names, default names) of each axis.
    """
    for words in scale.only:
        yield [[x for x in names if x in words] or list(default) for names, default in axes]


TINY = Scale(
    copy_bytes=1 << 20,
    square=128,
    rows=(32,),
    width=64,
    heads=((2, 64),),
    caption=16,
    caption_used=5,
    mosaic_blocks=((64, 64),),
    stages=((8, 5, 8, 8),),
    narrow_stages=((4, 5, 8, 8),),
    grid=(2, 4, 4),
    more_grids=(),
    vae_clip=(9, 64, 64),
    discriminator_channels=4,
    large=(3, 64),
    steps=2,
    transformer=TransformerConfig(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=8,
        out_channels=8,
        caption_channels=32,
    ),
    vae=vae_config(channels=8, latent_channels=8, depth=1),
    text=T5Config(
        vocab_size=384,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
    ),
)


# A few layers as wide as the released ones, on small videos, which a CPU computes in seconds.
SMALL = Scale(
    copy_bytes=1 << 28,
    square=2048,
    rows=(768,),
    stages=((128, 9, 32, 48), (512, 5, 8, 12)),
    narrow_stages=((32, 9, 48, 48),),
    grid=(2, 4, 6),
    more_grids=((4, 8, 12),),
    steps=4,
    transformer=dataclasses.replace(Scale.transformer, num_layers=4),
    vae=vae_config(depth=1),
    text=dataclasses.replace(Scale.text, num_layers=2),
    large=(2, 128),
)
SCALES = {"full": Scale(), "small": SMALL, "tiny": TINY}


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.normal(key, shape, jnp.float32).astype(dtype)


def random(*shape: int, seed: int = 0, dtype: Any = jnp.bfloat16) -> jax.Array:
    """Standard normal values on the device."""
    return _normal(jax.random.key(seed), shape, jnp.dtype(dtype))


_POOL = 2**23 - 15  # odd, so that the rows of a matrix that repeats it differ


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _repeated(
    pool: jax.Array, start: int, deviation: float, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    part, size = jax.lax.dynamic_slice(pool, (start,), (_POOL,)), math.prod(shape)
    flat = jnp.broadcast_to(part[None], (-(-size // _POOL), _POOL)).reshape(-1)[:size]
    return (flat.reshape(shape) * deviation).astype(dtype)


def initialise(init: Callable[..., Any], *inputs: Any) -> Any:
    """Parameters with the shapes and magnitudes of those that a network's `init` draws.

    They are pieces of one random sequence, which takes seconds: a program that draws each of them,
    as `init` does, takes a minute to compile.
    """
    pool = random(2 * _POOL, seed=4)

    def draw(path: Any, boxed: Any) -> jax.Array:
        leaf, name = sharding.unbox(boxed), path[-1].key
        if leaf.ndim == 0 or name in ("scale", "bias"):
            return jnp.asarray(np.full(leaf.shape, name != "bias", leaf.dtype))
        layers = "layers" in getattr(boxed, "names", ())
        summed = leaf.shape[layers:-1] if name == "kernel" else leaf.shape[-1:]
        start = zlib.crc32(jax.tree_util.keystr(path).encode()) % _POOL
        return _repeated(pool, start, math.prod(summed) ** -0.5, leaf.shape, leaf.dtype)

    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)["params"]
    return jax.tree_util.tree_map_with_path(draw, shapes, is_leaf=sharding.is_boxed)
