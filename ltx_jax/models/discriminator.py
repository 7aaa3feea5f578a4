"""The patch discriminator of the VAE's adversarial loss, channels last.

A stack of strided 3-D convolutions: the three-dimensional form of PatchGAN (Isola et al.,
"Image-to-Image Translation with Conditional Adversarial Networks", arXiv 1611.07004).
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ltx_jax.config import DiscriminatorConfig, ExecutionConfig
from ltx_jax.models.convolution import Stride, convolve
from ltx_jax.models.layers import param
from ltx_jax.models.vae_blocks import AffineNorm
from ltx_jax.runtime.sharding import constrain

_SLOPE = 0.2  # negative slope of the leaky ReLU
_GROUP = 16  # channels per group of the group norms


class PatchConv(nn.Module):
    """A convolution over three frames, padded in time by repeating the first and the last frame.

    A window of 4 x 4 pixels with a stride of 2 covers every pixel equally often, which avoids a
    checkerboard pattern in the gradient.
    """

    execution: ExecutionConfig
    features: int
    window: int
    stride: Stride = (1, 1, 1)

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 d"]:
        execution = self.execution
        shape = (3, self.window, self.window, x.shape[-1], self.features)
        kernel_init = param(
            (None, None, None, "conv_in", "conv_out"), nn.initializers.lecun_normal()
        )
        bias_init = param(("conv_out",), nn.initializers.zeros)
        kernel = self.param("kernel", kernel_init, shape, execution.param_dtype)
        bias = self.param("bias", bias_init, (self.features,), execution.param_dtype)
        x = jnp.concatenate([x[:, :1], x, x[:, -1:]], axis=1).astype(execution.dtype)
        kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
        return convolve(x, kernel, self.stride) + bias.reshape(1, 1, 1, 1, -1)


class Discriminator(nn.Module):
    """Maps clips (or pairs of clips, concatenated along the channels) to one logit per patch.

    Every level halves rows and columns and doubles the channels; the second half of the levels also
    reduces 2k+1 frames to k+1. With the default of four levels, a patch is 16 x 16 pixels and four
    frames, and the receptive field of its logit is 78 x 78 pixels and 19 frames.
    """

    cfg: DiscriminatorConfig
    execution: ExecutionConfig = ExecutionConfig()

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2"]:
        """Logits in float32.

        Raises:
          ValueError: if the clip has fewer rows or columns than a patch.
        """
        cfg, execution, x = self.cfg, self.execution, video
        if min(x.shape[2:4]) < 2**cfg.levels:
            raise ValueError(
                f"{x.shape[2]} x {x.shape[3]} pixels are smaller than a patch of the "
                f"discriminator, {2**cfg.levels}: lower discriminator.levels"
            )
        for level in range(cfg.levels):
            features = min(cfg.base_channels * 2**level, cfg.max_channels)
            stride = (1, 2, 2) if level < cfg.levels // 2 else (2, 2, 2)
            x = PatchConv(execution, features, 4, stride, name=f"conv_{level}")(x)
            if level > 0:  # a norm at the first level would remove brightness and contrast
                groups = max(features // _GROUP, 1)
                x = AffineNorm(1e-6, groups, execution.param_dtype, name=f"norm_{level}")(x)
            x = constrain(nn.leaky_relu(x, _SLOPE), "batch", "frame", "row", None, None)
        return PatchConv(execution, 1, 3, name="conv_out")(x)[..., 0].astype(jnp.float32)
