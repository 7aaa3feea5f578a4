"""Masks: black and white clips that mark a part of a clip.

White is what a model has to paint, or what counts in the loss; black is what stays.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8


def of_frames(frames: UInt8[np.ndarray, "*t h w c"]) -> Bool[np.ndarray, "*t h w"]:
    """The mask that frames show: True where they are nearer to white than to black."""
    return frames.mean(axis=-1) >= 128


def on_latents(
    mask: Bool[np.ndarray, "*b t h w"], temporal_factor: int, spatial_factor: int
) -> Bool[np.ndarray, "*b t2 h2 w2"]:
    """Whether any pixel of each latent is in the mask.

    Args:
      mask: 1 + k * `temporal_factor` frames; the first latent frame stands for the first alone.
      temporal_factor: frames per latent frame.
      spatial_factor: pixels per latent row and column.
    """
    first, rest = mask[..., :1, :, :], mask[..., 1:, :, :]

    def any_of(part: np.ndarray, frames: int) -> np.ndarray:
        *batch, t, h, w = part.shape
        sides: Sequence[int] = (t // frames, frames, h // spatial_factor, spatial_factor)
        boxes = part.reshape(*batch, *sides, w // spatial_factor, spatial_factor)
        return np.any(boxes, axis=(-5, -3, -1))

    return np.concatenate([any_of(first, 1), any_of(rest, temporal_factor)], axis=-3)
