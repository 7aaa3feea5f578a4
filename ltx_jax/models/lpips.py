"""LPIPS, a learned perceptual distance between pictures, on features of VGG16.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (arXiv
1801.03924); it computes the same as the authors' package with default settings (version 0.1).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from ltx_jax.models.frame_distance import Pictures, mean_over_frames, unit_length

# Channels of the convolutions of each stage; max pooling lies between stages.
STAGES = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)

# ImageNet's mean and standard deviation, for values in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
# Smallest side of a picture, which four poolings reduce to one pixel.
MIN_SIZE = 2 ** (len(STAGES) - 1)


class LPIPS(nn.Module):
    """The distance of each picture from its counterpart, both with values in [-1, 1]; float32.

    The parameter `conv_S_I` is VGG16's convolution I of stage S, and `head_S` (c,) is the weight
    of each channel of the stage. They are read from files (`checkpoints/perceptual.py`), not
    initialised.
    """

    @nn.compact
    def __call__(self, pictures: Pictures, others: Pictures) -> Float[Array, " b"]:
        """Computes one distance per picture; 0 for equal pictures.

        Raises:
          ValueError: if the pictures are smaller than `MIN_SIZE`.
        """
        if min(pictures.shape[1:3]) < MIN_SIZE:
            raise ValueError(
                f"LPIPS needs pictures of {MIN_SIZE} pixels or more, these are "
                f"{pictures.shape[1]} x {pictures.shape[2]}"
            )
        x = jnp.stack([pictures, others], axis=1).reshape(-1, *pictures.shape[1:])
        shift, scale = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (_SHIFT, _SCALE))
        x = (x.astype(jnp.float32) - shift) / scale
        total = jnp.zeros(len(pictures))
        for stage, widths in enumerate(STAGES):
            if stage > 0:
                x = _pool(x)
            for i, width in enumerate(widths):
                x = nn.relu(nn.Conv(width, (3, 3), name=f"conv_{stage}_{i}")(x))
            head = self.param(f"head_{stage}", nn.initializers.constant(1.0), (widths[-1],))
            a, b = jnp.unstack(unit_length(x).reshape(-1, 2, *x.shape[1:]), axis=1)
            total += jnp.mean((a - b) ** 2 @ head, axis=(1, 2))
        return total


def _pool(x: Array) -> Array:
    """Max pooling of 2 x 2 pixels; an odd last row or column is dropped."""
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return jnp.max(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def lpips_of_frames(
    params: Any, reconstruction: Float[Array, "b t h w 3"], video: Float[Array, "b t h w 3"]
) -> Float[Array, ""]:
    """The mean LPIPS over samples and frames."""

    def distances(pictures: Pictures, others: Pictures) -> Array:
        return LPIPS().apply({"params": params}, pictures, others)  # pyright: ignore[reportReturnType]

    return mean_over_frames(distances, reconstruction, video)
