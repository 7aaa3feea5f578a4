"""Convolutions, norms and blocks of the causal Video-VAE, channels last.

Modules and parameters are named as in the released checkpoints (causal_video_autoencoder.py
upstream), so that converting a checkpoint only renames tensors.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from ltx_jax.config import BlockConfig, ExecutionConfig, VAEConfig
from ltx_jax.models.attention import attention
from ltx_jax.models.convolution import Stride, convolve
from ltx_jax.models.layers import RMSNorm, TimestepEmbedder, dense, low_rank, param
from ltx_jax.runtime.sharding import constrain

Video = Float[Array, "b t h w c"]

NORM_GROUPS = 32
# Initial scale of the second convolution of a residual block; it makes a new stack of blocks of any
# depth nearly the identity.
RESIDUAL_GAIN = 0.3


def space_to_depth(x: Video, stride: Stride) -> Float[Array, "b t2 h2 w2 c2"]:
    """Moves the values of every cell of `stride` (frames, rows, columns) into channels.

    The output channel is ((c*s_t + frame)*s_h + row)*s_w + column, as in the checkpoints.
    """
    b, t, h, w, c = x.shape
    st, sh, sw = stride
    x = x.reshape(b, t // st, st, h // sh, sh, w // sw, sw, c)
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, t // st, h // sh, w // sw, c * math.prod(stride))


def depth_to_space(x: Video, stride: Stride) -> Float[Array, "b t2 h2 w2 c2"]:
    """The inverse of `space_to_depth`."""
    b, t, h, w, c = x.shape
    st, sh, sw = stride
    x = x.reshape(b, t, h, w, c // math.prod(stride), st, sh, sw)
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, t * st, h * sh, w * sw, c // math.prod(stride))


class Conv(nn.Module):
    """A 3x3x3 convolution that repeats the first frame as padding, and the last if not causal.

    The config names the mode of spatial padding. Upstream's module has another level of names
    (`.conv.weight`).
    """

    cfg: VAEConfig
    execution: ExecutionConfig
    features: int
    causal: bool
    stride: Stride = (1, 1, 1)
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Video) -> Float[Array, "b t2 h2 w2 d"]:
        cfg, execution = self.cfg, self.execution
        shape = (3, 3, 3, x.shape[-1], self.features)
        axes = (None, None, None, "conv_in", "conv_out")
        kernel = self.param("kernel", param(axes, self.kernel_init), shape, execution.param_dtype)
        bias = self.param(
            "bias", param(("conv_out",), self.bias_init), (self.features,), execution.param_dtype
        )
        x = x.astype(execution.dtype)
        first, last = x[:, :1], x[:, -1:]
        x = jnp.concatenate([first, first, x] if self.causal else [first, x, last], axis=1)

        def convolved(x: Array, kernel: Array) -> Array:
            kernel = kernel.astype(execution.dtype)
            y = convolve(x, kernel, self.stride, cfg.spatial_padding_mode)
            return checkpoint_name(y, "conv")  # remat="dots" saves these

        y = convolved(x, kernel) + bias.astype(execution.dtype).reshape(1, 1, 1, 1, -1)
        adapter = self.get_variable("params", "adapter")
        return y if adapter is None else y + low_rank(x, adapter, convolved)


class PointConv(nn.Module):
    """A 1x1x1 convolution; its kernel has five dimensions, as in the checkpoints."""

    features: int
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x: Video) -> Float[Array, "b t h w d"]:
        init = nn.initializers.lecun_normal()
        axes = (None, None, None, "conv_in", "conv_out")
        shape = (1, 1, 1, x.shape[-1], self.features)
        kernel = self.param("kernel", param(axes, init), shape, self.param_dtype)
        zeros = param(("conv_out",), nn.initializers.zeros)
        bias = self.param("bias", zeros, (self.features,), self.param_dtype).astype(self.dtype)
        x = x.astype(self.dtype)

        def projected(x: Array, kernel: Array) -> Array:
            return x @ kernel[0, 0, 0].astype(self.dtype)

        y = projected(x, kernel) + bias.reshape(1, 1, 1, 1, -1)
        adapter = self.get_variable("params", "adapter")
        return y if adapter is None else y + low_rank(x, adapter, projected)


class AffineNorm(nn.Module):
    """Group norm (over frames, rows, columns and consecutive channels), or layer norm (channels).

    `groups=None` selects layer norm. Statistics are float32.

    Raises:
      ValueError: if the groups do not divide the channels.
    """

    epsilon: float
    groups: int | None
    param_dtype: str

    @nn.compact
    def __call__(self, x: Video) -> Video:
        b, t, h, w, c = x.shape
        scale = self.param("scale", param((None,), nn.initializers.ones), (c,), self.param_dtype)
        bias = self.param("bias", param((None,), nn.initializers.zeros), (c,), self.param_dtype)
        y = x.astype(jnp.float32)
        if self.groups is None:
            axes: tuple[int, ...] = (-1,)
        elif c % self.groups == 0:
            axes = (1, 2, 3, 5)
            y = y.reshape(b, t, h, w, self.groups, c // self.groups)
        else:
            raise ValueError(
                f"group norm has {self.groups} groups, which do not divide {c} channels"
            )
        y = y - y.mean(axes, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axes, keepdims=True) + self.epsilon)
        y = y.reshape(x.shape) * scale.astype(jnp.float32).reshape(1, 1, 1, 1, c)
        return (y + bias.astype(jnp.float32).reshape(1, 1, 1, 1, c)).astype(x.dtype)


def make_norm(cfg: VAEConfig, execution: ExecutionConfig, name: str) -> nn.Module:
    """The norm named in the config. Pixel norm has no parameters."""
    match cfg.norm_layer:
        case "pixel_norm":
            return RMSNorm(1e-8, name=name)
        case "group_norm":
            return AffineNorm(1e-6, NORM_GROUPS, execution.param_dtype, name=name)
        case "layer_norm":
            return AffineNorm(1e-6, None, execution.param_dtype, name=name)
        case unknown:
            raise ValueError(
                f"norm_layer is {unknown!r}; known: pixel_norm, group_norm, layer_norm"
            )


def modulate(x: Video, shift: Float[Array, "b c"], scale: Float[Array, "b c"]) -> Video:
    """Computes x * (1 + scale) + shift, per sample and channel."""
    shift, scale = (jnp.expand_dims(v, (1, 2, 3)).astype(x.dtype) for v in (shift, scale))
    return x * (1 + scale) + shift


def modulation(
    module: nn.Module, name: str, embedding: Float[Array, "b d"], rows: int
) -> list[Float[Array, "b c"]]:
    """Adds the learned table `name` of `module` to an embedding; returns the rows of the sum."""
    channels = embedding.shape[-1] // rows
    init = param((None, None), nn.initializers.normal(channels**-0.5))
    table = module.param(name, init, (rows, channels), module.execution.param_dtype)
    values = embedding.reshape(-1, rows, channels).astype(jnp.float32) + table[None].astype(
        jnp.float32
    )
    return list(jnp.unstack(values, axis=1))


class ResBlock(nn.Module):
    """Norm, SiLU and convolution, twice, plus a skip (a 1x1x1 convolution if the widths differ).

    The embedding (b, 4c) of the time and the two noise maps (h, w) or (b, h, w) are optional.
    """

    cfg: VAEConfig
    execution: ExecutionConfig
    features: int
    causal: bool
    inject_noise: bool = False

    @nn.compact
    def __call__(
        self,
        x: Video,
        embedding: Float[Array, "b d"] | None = None,
        noise: tuple[Float[Array, "..."], ...] = (),
    ) -> Float[Array, "b t h w c2"]:
        cfg, execution = self.cfg, self.execution
        ada = [] if embedding is None else modulation(self, "scale_shift_table", embedding, 4)
        h = self._activate("norm1", x, ada[:2])
        h = Conv(cfg, execution, self.features, self.causal, name="conv1")(h)
        h = self._inject("per_channel_scale1", h, noise[:1])
        h = self._activate("norm2", h, ada[2:])
        small = nn.initializers.variance_scaling(RESIDUAL_GAIN**2, "fan_in", "truncated_normal")
        h = Conv(cfg, execution, self.features, self.causal, kernel_init=small, name="conv2")(h)
        h = self._inject("per_channel_scale2", h, noise[1:])
        if x.shape[-1] != self.features:
            x = AffineNorm(1e-6, None, execution.param_dtype, name="norm3")(x)
            dtypes = execution.dtype, execution.param_dtype
            x = PointConv(self.features, *dtypes, name="conv_shortcut")(x)
        return constrain(x + h, "batch", "frame", "row", None, None)

    def _activate(self, norm: str, x: Array, ada: list[Array]) -> Array:
        x = make_norm(self.cfg, self.execution, norm)(x)
        return nn.silu(modulate(x, *ada) if ada else x)

    def _inject(self, name: str, h: Array, noise: tuple[Array, ...]) -> Array:
        if not self.inject_noise:
            return h
        zeros = param((None,), nn.initializers.zeros)
        scale = self.param(name, zeros, (self.features,), self.execution.param_dtype)
        for values in noise:  # one map for all frames, and for all samples if it has no batch
            values = values.reshape(-1, 1, *values.shape[-2:], 1).astype(h.dtype)
            h = h + values * scale.astype(h.dtype).reshape(1, 1, 1, 1, -1)
        return h


class SelfAttention(nn.Module):
    """Self-attention over all positions, added to its input, without norm or position embedding."""

    execution: ExecutionConfig
    head_dim: int

    @nn.compact
    def __call__(self, x: Video) -> Video:
        param_dtype = self.execution.param_dtype
        b, c = x.shape[0], x.shape[-1]
        heads = c // self.head_dim
        width = heads * self.head_dim
        linear = functools.partial(dense, dtype=self.execution.dtype, param_dtype=param_dtype)
        tokens = x.reshape(b, -1, c)
        q, k, v = (
            linear(width, ("embed", "heads"), name=name)(tokens)
            for name in ("to_q", "to_k", "to_v")
        )
        q = RMSNorm(1e-5, axes=("heads",), param_dtype=param_dtype, name="q_norm")(q)
        k = RMSNorm(1e-5, axes=("heads",), param_dtype=param_dtype, name="k_norm")(k)
        q, k, v = (y.reshape(b, -1, heads, self.head_dim) for y in (q, k, v))
        y = attention(q, k, v, form=self.execution.attention).reshape(b, -1, width)
        y = linear(c, ("heads", "embed"), name="to_out")(y)
        return x + y.reshape(x.shape)


class MidBlock(nn.Module):
    """Residual blocks of one width, each followed by attention if the block has a head dimension.

    `time` (b,) is scaled (0 to 1000); None in the encoder and in unconditional decoders.
    """

    cfg: VAEConfig
    execution: ExecutionConfig
    block: BlockConfig
    causal: bool
    inject_noise: bool = False

    @nn.compact
    def __call__(
        self,
        x: Video,
        time: Float[Array, " b"] | None = None,
        noise: tuple[Float[Array, "..."], ...] = (),
    ) -> Video:
        cfg, execution, c = self.cfg, self.execution, x.shape[-1]
        embedding = None
        if time is not None:
            dtypes = execution.dtype, execution.param_dtype
            embedding = TimestepEmbedder(4 * c, *dtypes, name="time_embedder")(time)
        head_dim = self.block.attention_head_dim if self.block.name == "attn_res_x" else None
        if head_dim is not None and not 0 < head_dim <= c:
            raise ValueError(
                f"attention_head_dim is {head_dim}, with {c} channels: it must be between 1 and "
                "the number of channels"
            )
        for j in range(self.block.num_layers):
            res_block = remat(ResBlock, execution)(
                cfg, execution, c, self.causal, self.inject_noise, name=f"res_blocks_{j}"
            )
            x = res_block(x, embedding, noise[2 * j : 2 * j + 2])
            if head_dim is not None:
                attend = remat(SelfAttention, execution)
                x = attend(execution, head_dim, name=f"attention_blocks_{j}")(x)
        return x


class StridedConv(nn.Module):
    """A causal convolution with a stride."""

    cfg: VAEConfig
    execution: ExecutionConfig
    features: int
    stride: Stride

    @nn.compact
    def __call__(self, x: Video) -> Float[Array, "b t2 h2 w2 c2"]:
        return Conv(
            self.cfg, self.execution, self.features, causal=True, stride=self.stride, name="conv"
        )(x)


class Downsample(nn.Module):
    """Space-to-depth of a convolution, plus that of the input averaged over groups of channels.

    Raises:
      ValueError: if the stride and the numbers of channels do not fit together.
    """

    cfg: VAEConfig
    execution: ExecutionConfig
    features: int
    stride: Stride

    @nn.compact
    def __call__(self, x: Video) -> Float[Array, "b t2 h2 w2 c2"]:
        size, c = math.prod(self.stride), x.shape[-1]
        if self.features % size or c * size % self.features:
            raise ValueError(
                f"a block with a stride of {self.stride} cannot turn {c} channels into "
                f"{self.features}: it needs a multiple of {size} that divides {c * size}"
            )
        if self.stride[0] == 2:  # 2k+1 frames become 2k+2, then k+1
            x = jnp.concatenate([x[:, :1], x], axis=1)
        skip = space_to_depth(x, self.stride)
        skip = skip.reshape(*skip.shape[:-1], self.features, -1).mean(-1)
        narrow = self.features // size
        x = Conv(self.cfg, self.execution, narrow, causal=True, name="conv")(x)
        x = space_to_depth(x, self.stride) + skip.astype(x.dtype)
        return constrain(x, "batch", "frame", "row", None, None)


class Upsample(nn.Module):
    """Depth-to-space of a convolution; drops the first frame if time grows (k+1 to 2k+1 frames).

    The optional residual is the depth-to-space of the input, with its channels repeated.

    Raises:
      ValueError: if the stride and the numbers of channels do not fit together.
    """

    cfg: VAEConfig
    execution: ExecutionConfig
    features: int
    stride: Stride
    residual: bool = False

    @nn.compact
    def __call__(self, x: Video) -> Float[Array, "b t2 h2 w2 c2"]:
        size, c = math.prod(self.stride), x.shape[-1]
        cfg, execution = self.cfg, self.execution
        y = Conv(cfg, execution, size * self.features, cfg.causal_decoder, name="conv")(x)
        y = depth_to_space(y, self.stride)
        if self.residual:
            if c % size or self.features % (c // size):
                raise ValueError(
                    f"a residual with a stride of {self.stride} cannot turn {c} channels into "
                    f"{self.features}: the input needs a multiple of {size} channels, and the "
                    f"output a multiple of {max(c // size, 1)}"
                )
            skip = depth_to_space(x, self.stride)
            y = y + jnp.tile(skip, (1, 1, 1, 1, self.features * size // c)).astype(y.dtype)
        if self.stride[0] == 2:
            y = y[:, 1:]
        return constrain(y, "batch", "frame", "row", None, None)


def remat(module: Any, execution: ExecutionConfig) -> Any:
    """Wraps a block for rematerialisation; "dots" saves the outputs of its convolutions.

    Raises:
      ValueError: for "attention", which exists for the transformer only.
    """
    match execution.remat:
        case "none":
            return module
        case "dots":
            return nn.remat(module, policy=jax.checkpoint_policies.save_only_these_names("conv"))
        case "full":
            return nn.remat(module)
        case unknown:
            raise ValueError(f"remat {unknown!r} is not for the VAE: use none, dots or full")
