"""The latent upsampler between the passes of multi-scale sampling (latent_upsampler.py upstream).

Its convolutions are not causal and pad with zeros, in time too.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ltx_jax.config import UpsamplerConfig
from ltx_jax.models.convolution import Stride, convolve
from ltx_jax.models.layers import param
from ltx_jax.models.vae_blocks import AffineNorm, depth_to_space
from ltx_jax.runtime.sharding import constrain

Latents = Float[Array, "b t h w c"]

NORM_GROUPS = 32


class LatentUpsampler(nn.Module):
    """Doubles rows and columns, or turns t frames into 2t-1, or both; latents not normalised.

    The output is float32.

    Raises:
      ValueError: if the config upsamples nothing, or time with 2-D convolutions.
    """

    cfg: UpsamplerConfig

    @nn.compact
    def __call__(self, latents: Latents) -> Float[Array, "b t2 h2 w2 c"]:
        cfg = self.cfg
        space, time = cfg.spatial_upsample, cfg.temporal_upsample
        if not space and not time:
            raise ValueError("spatial_upsample and temporal_upsample are both off")
        if time and cfg.dims == 2:
            raise ValueError("temporal_upsample needs 3-D convolutions, and dims is 2")
        if latents.shape[-1] != cfg.in_channels:
            raise ValueError(
                f"the latents have {latents.shape[-1]} channels, this upsampler takes "
                f"{cfg.in_channels}"
            )

        x = latents
        if cfg.dims == 2:  # every frame on its own, so that the norms do not see the others either
            x = x.reshape(-1, 1, *x.shape[2:])
        x = _Conv(cfg, cfg.mid_channels, cfg.dims, name="initial_conv")(x)
        x = nn.silu(_norm(cfg, "initial_norm")(x))
        for i in range(cfg.num_blocks_per_stage):
            x = _ResBlock(cfg, name=f"res_blocks_{i}")(x)

        stride: Stride = (1 + time, 1 + space, 1 + space)
        features = cfg.mid_channels * math.prod(stride)
        # Frames are upsampled on their own unless time grows.
        x = _Conv(cfg, features, 3 if time else 2, name="upsampler_0")(x)
        x = depth_to_space(x, stride)
        x = x[:, 1:] if time else x

        for i in range(cfg.num_blocks_per_stage):
            x = _ResBlock(cfg, name=f"post_upsample_res_blocks_{i}")(x)
        x = _Conv(cfg, cfg.in_channels, cfg.dims, name="final_conv")(x)
        x = x.astype(jnp.float32)
        return x.reshape(latents.shape[0], -1, *x.shape[2:])


class _ResBlock(nn.Module):
    """Convolution, norm, SiLU, convolution, norm; SiLU after the sum."""

    cfg: UpsamplerConfig

    @nn.compact
    def __call__(self, x: Latents) -> Latents:
        cfg = self.cfg
        h = _Conv(cfg, cfg.mid_channels, cfg.dims, name="conv1")(x)
        h = nn.silu(_norm(cfg, "norm1")(h))
        h = _Conv(cfg, cfg.mid_channels, cfg.dims, name="conv2")(h)
        x = nn.silu(_norm(cfg, "norm2")(h) + x)
        return constrain(x, "batch", "frame", "row", None, None)


class _Conv(nn.Module):
    """3x3x3, or 3x3 on every frame; the kernel is (3, 3, 3, c, d) or (3, 3, c, d)."""

    cfg: UpsamplerConfig
    features: int
    dims: int

    @nn.compact
    def __call__(self, x: Latents) -> Float[Array, "b t h w d"]:
        cfg = self.cfg
        shape = (3,) * self.dims + (x.shape[-1], self.features)
        axes = (None,) * self.dims + ("conv_in", "conv_out")
        kernel = self.param(
            "kernel", param(axes, nn.initializers.lecun_normal()), shape, cfg.param_dtype
        )
        bias = self.param(
            "bias", param(("conv_out",), nn.initializers.zeros), (self.features,), cfg.param_dtype
        )
        kernel = kernel.astype(cfg.dtype)
        x = x.astype(cfg.dtype)
        if self.dims == 2:
            kernel = kernel[None]
        else:
            x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        return convolve(x, kernel) + bias.astype(cfg.dtype).reshape(1, 1, 1, 1, -1)


def _norm(cfg: UpsamplerConfig, name: str) -> AffineNorm:
    return AffineNorm(1e-5, NORM_GROUPS, cfg.param_dtype, name=name)
