"""A linear map from latents to colours, which shows in no time what latents look like."""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8

from ltx_jax import pixels


@dataclasses.dataclass(frozen=True)
class LatentColours:
    """Maps every normalised latent to a few pixels of one picture per latent frame.

    Attributes:
      side: pixels per latent, along height and along width.
      matrix: (c, side * side * 3); its outputs are (row, column, colour), in [-1, 1].
      bias: (side * side * 3).
    """

    side: int
    matrix: Float[np.ndarray, "c d"]
    bias: Float[np.ndarray, " d"]

    def pictures(self, latents: Float[np.ndarray, "b t h w c"]) -> UInt8[np.ndarray, "b t h2 w2 3"]:
        """One small picture per latent frame."""
        colours = np.asarray(latents, np.float32) @ self.matrix + self.bias
        return as_pictures(colours, self.side)


def as_pictures(
    colours: Float[np.ndarray, "b t h w d"], side: int
) -> UInt8[np.ndarray, "b t h2 w2 3"]:
    """Lays the outputs of the map out as pixels."""
    b, t, h, w, _ = colours.shape
    x = colours.reshape(b, t, h, w, side, side, 3).transpose(0, 1, 2, 4, 3, 5, 6)
    return np.asarray(pixels.to_nearest_bytes(x.reshape(b, t, h * side, w * side, 3)))


def colour_targets(
    frames: UInt8[np.ndarray, "b t h w 3"], side: int, temporal_factor: int, spatial_factor: int
) -> Float[np.ndarray, "b t2 h2 w2 d"]:
    """What `LatentColours` should map the latents of clips to: mean colours in [-1, 1].

    The first latent frame stands for the first frame, each other one for `temporal_factor` frames.

    Raises:
      ValueError: if `side` does not divide the spatial factor.
    """
    if side < 1 or spatial_factor % side:
        raise ValueError(
            f"{side} pixels per latent cannot be averaged from {spatial_factor}: take a divisor"
        )
    size = spatial_factor // side
    b, t, height, width, _ = frames.shape
    h, w = height // spatial_factor, width // spatial_factor
    x = (
        np.asarray(pixels.from_bytes(frames))
        .reshape(b, t, h, side, size, w, side, size, 3)
        .mean((4, 7))
        .transpose(0, 1, 2, 4, 3, 5, 6)
    )
    later = x[:, 1:].reshape(b, -1, temporal_factor, *x.shape[2:]).mean(2)
    return np.concatenate([x[:, :1], later], axis=1).reshape(b, -1, h, w, side * side * 3)


def fit_colours(
    latents: Float[np.ndarray, "n c"], targets: Float[np.ndarray, "n d"], side: int
) -> LatentColours:
    """The least-squares map from latents to colours.

    Raises:
      ValueError: if there are fewer latents than unknowns per colour.
    """
    count, channels = latents.shape
    if count <= channels:
        raise ValueError(
            f"{count} latents are too few to fit a map from {channels} channels: take more clips, "
            "or larger ones"
        )
    inputs = np.concatenate([latents, np.ones((count, 1))], axis=1, dtype=np.float64)
    solution = np.linalg.lstsq(inputs, np.asarray(targets, np.float64), rcond=None)[0]
    return LatentColours(side, *(x.astype(np.float32) for x in (solution[:-1], solution[-1])))
