"""The networks, as Flax Linen modules with logical axes on every parameter.

- `transformer`: the diffusion transformer; `transformer_fast` (with the parameters of
  `transformer_fast_parameters`), `teacache`: its faster forms for sampling.
- `vae`, `vae_blocks`: the Video-VAE; `discriminator`: the discriminator of its adversarial loss.
- `t5`: the text encoder; `upsampler`: the latent upsampler of two-pass sampling.
- `lpips`, `efficientnet`, `i3d`: networks whose features losses and metrics compare.
- `layers`, `attention`, `convolution`: layers that these networks are built from.
"""

from typing import TYPE_CHECKING

from ltx_jax.runtime.lazy import lazy_attributes

if TYPE_CHECKING:
    from ltx_jax.models.discriminator import Discriminator
    from ltx_jax.models.lpips import LPIPS
    from ltx_jax.models.t5 import T5Encoder
    from ltx_jax.models.transformer import Context, Skip, Transformer
    from ltx_jax.models.upsampler import LatentUpsampler
    from ltx_jax.models.vae import LatentStatistics, VideoVAE

__all__ = [
    "LPIPS",
    "Context",
    "Discriminator",
    "LatentStatistics",
    "LatentUpsampler",
    "Skip",
    "T5Encoder",
    "Transformer",
    "VideoVAE",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Context": "ltx_jax.models.transformer",
        "Discriminator": "ltx_jax.models.discriminator",
        "LPIPS": "ltx_jax.models.lpips",
        "LatentStatistics": "ltx_jax.models.vae",
        "LatentUpsampler": "ltx_jax.models.upsampler",
        "Skip": "ltx_jax.models.transformer",
        "T5Encoder": "ltx_jax.models.t5",
        "Transformer": "ltx_jax.models.transformer",
        "VideoVAE": "ltx_jax.models.vae",
    },
)
