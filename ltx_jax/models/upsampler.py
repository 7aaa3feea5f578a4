"""The latent upsampler between the passes of two-pass sampling (latent_upsampler.py upstream).

Its convolutions are not causal, and pad space and time with zeros.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ltx_jax.config import ExecutionConfig, UpsamplerConfig
from ltx_jax.models.convolution import Stride, convolve
from ltx_jax.models.layers import param
from ltx_jax.models.vae_blocks import AffineNorm, depth_to_space
from ltx_jax.runtime.sharding import constrain

Latents = Float[Array, "b t h w c"]

NORM_GROUPS = 32


class LatentUpsampler(nn.Module):
    """Upsamples unnormalised latents: doubles rows and columns, turns t frames into 2t-1, or both.

    The output is float32.

    Raises:
      ValueError: if `cfg` upsamples neither space nor time, or time with 2-D convolutions.
    """

    cfg: UpsamplerConfig
    execution: ExecutionConfig = ExecutionConfig()

    @nn.compact
    def __call__(self, latents: Latents) -> Float[Array, "b t2 h2 w2 c"]:
        cfg, execution = self.cfg, self.execution
        space, time = cfg.spatial_upsample, cfg.temporal_upsample
        if not space and not time:
            raise ValueError("spatial_upsample and temporal_upsample are both off: set one of them")
        if time and cfg.dims == 2:
            raise ValueError("temporal_upsample needs 3-D convolutions, but dims is 2")
        if latents.shape[-1] != cfg.in_channels:
            raise ValueError(
                f"the latents have {latents.shape[-1]} channels, this upsampler takes "
                f"{cfg.in_channels}"
            )

        x = latents
        if cfg.dims == 2:  # frames become samples, so that the norms do not mix frames either
            x = x.reshape(-1, 1, *x.shape[2:])
        x = _Conv(execution, cfg.mid_channels, cfg.dims, name="initial_conv")(x)
        x = nn.silu(_norm(execution, "initial_norm")(x))
        for i in range(cfg.num_blocks_per_stage):
            x = _ResBlock(cfg, execution, name=f"res_blocks_{i}")(x)

        stride: Stride = (1 + time, 1 + space, 1 + space)
        features = cfg.mid_channels * math.prod(stride)
        # Without temporal upsampling, this convolution is 2-D.
        x = _Conv(execution, features, 3 if time else 2, name="upsampler_0")(x)
        x = depth_to_space(x, stride)
        x = x[:, 1:] if time else x

        for i in range(cfg.num_blocks_per_stage):
            x = _ResBlock(cfg, execution, name=f"post_upsample_res_blocks_{i}")(x)
        x = _Conv(execution, cfg.in_channels, cfg.dims, name="final_conv")(x)
        x = x.astype(jnp.float32)
        return x.reshape(latents.shape[0], -1, *x.shape[2:])


class _ResBlock(nn.Module):
    """Convolution, norm, SiLU, convolution, norm; SiLU after the sum."""

    cfg: UpsamplerConfig
    execution: ExecutionConfig = ExecutionConfig()

    @nn.compact
    def __call__(self, x: Latents) -> Latents:
        cfg, execution = self.cfg, self.execution
        h = _Conv(execution, cfg.mid_channels, cfg.dims, name="conv1")(x)
        h = nn.silu(_norm(execution, "norm1")(h))
        h = _Conv(execution, cfg.mid_channels, cfg.dims, name="conv2")(h)
        x = nn.silu(_norm(execution, "norm2")(h) + x)
        return constrain(x, "batch", "frame", "row", None, None)


class _Conv(nn.Module):
    """A 3x3x3 or, with `dims` 2, a 3x3 convolution; kernel (3, 3, 3, c, d) or (3, 3, c, d)."""

    execution: ExecutionConfig
    features: int
    dims: int

    @nn.compact
    def __call__(self, x: Latents) -> Float[Array, "b t h w d"]:
        execution = self.execution
        shape = (3,) * self.dims + (x.shape[-1], self.features)
        axes = (None,) * self.dims + ("conv_in", "conv_out")
        kernel = self.param(
            "kernel", param(axes, nn.initializers.lecun_normal()), shape, execution.param_dtype
        )
        bias = self.param(
            "bias",
            param(("conv_out",), nn.initializers.zeros),
            (self.features,),
            execution.param_dtype,
        )
        kernel = kernel.astype(execution.dtype)
        x = x.astype(execution.dtype)
        if self.dims == 2:
            kernel = kernel[None]
        else:
            x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        return convolve(x, kernel) + bias.astype(execution.dtype).reshape(1, 1, 1, 1, -1)


def _norm(execution: ExecutionConfig, name: str) -> AffineNorm:
    return AffineNorm(1e-5, NORM_GROUPS, execution.param_dtype, name=name)
