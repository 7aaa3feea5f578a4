"""Latents as tokens: their order, their positions in the video, and their rotary tables.

Coordinates are (frame, row, column). One token is one voxel of the latent grid; tokens are in
row-major order of (frame, row, column).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ltx_jax.config import TransformerConfig

Grid = tuple[int, int, int]  # frames, rows, columns


def patchify(latents: Float[Array, "b t h w c"]) -> Float[Array, "b n c"]:
    """Lays the latents out as tokens."""
    return latents.reshape(latents.shape[0], -1, latents.shape[-1])


def unpatchify(tokens: Float[Array, "b n c"], grid: Grid) -> Float[Array, "b t h w c"]:
    """The inverse of `patchify`.

    Raises:
      ValueError: if the grid does not hold this many tokens.
    """
    if np.prod(grid) != tokens.shape[1]:
        raise ValueError(f"{tokens.shape[1]} tokens do not fill a latent grid of {grid}")
    return tokens.reshape(tokens.shape[0], *grid, tokens.shape[-1])


def latent_coords(grid: Grid) -> Int[Array, "n 3"]:
    """The coordinate of each token in the latent grid."""
    return jnp.stack(jnp.indices(grid, jnp.int32), axis=-1).reshape(-1, 3)


def pixel_coords(
    latent_coords: Int[Array, "*b n 3"], temporal_factor: int, spatial_factor: int, causal: bool
) -> Int[Array, "*b n 3"]:
    """The coordinates of each latent voxel's first pixel, in frames and pixels.

    With `causal`, the first latent frame covers only the first frame, and the second one starts at
    frame 1 (`causal_temporal_positioning` of the released checkpoints).
    """
    frame, row, column = (latent_coords[..., i] for i in range(3))
    frame = frame * temporal_factor
    if causal:
        frame = jnp.maximum(frame + 1 - temporal_factor, 0)
    return jnp.stack([frame, row * spatial_factor, column * spatial_factor], axis=-1)


def positions(
    pixel_coords: Int[Array, "*b n 3"], frame_rate: float | int | Float[Array, " b"]
) -> Float[Array, "*b n 3"]:
    """Converts frames to seconds; rows and columns stay in pixels.

    `frame_rate` is one number, or one per sample.
    """
    # Multiplied by the rounded reciprocal, as upstream: an error in the last bit of a position
    # changes the fastest angles by 1e-3.
    if isinstance(frame_rate, jax.Array):
        period = (1 / frame_rate.astype(jnp.float32))[:, None]
    else:
        period = np.float32(1 / frame_rate)
    coords = pixel_coords.astype(jnp.float32)
    return coords.at[..., 0].multiply(period)


def rope_frequencies(width: int, theta: float) -> np.ndarray:
    """The frequencies of each axis: pi/2 theta^x for width // 6 values x evenly spaced in [0, 1].

    They are float32, and every operation is rounded as upstream does on CPUs: angles reach 15708,
    so that one unit in the last place of a frequency changes the third decimal of the cosine.
    """
    count = width // 6
    step = np.float32(1) / np.float32(max(count - 1, 1))  # a single frequency has x = 0
    k = np.arange(count)
    rising = (step * k.astype(np.float32)).astype(np.float64)
    falling = (1.0 - np.float64(step) * (count - 1 - k)).astype(np.float32)  # one rounding
    exponents = np.where(k < max(count // 2, 1), rising, falling)
    powers = (np.float64(theta) ** exponents).astype(np.float32)
    return powers * np.float32(np.pi) / np.float32(2)


def rope_tables(
    positions: Float[Array, "*b n 3"], cfg: TransformerConfig
) -> tuple[Float[Array, "b n p"], Float[Array, "b n p"]]:
    """Cosines and sines (b or 1, n, width / 2), one for each pair of channels, in float32.

    A position is divided by `positional_embedding_max_pos` and scaled to [-1, 1]. The pairs are
    ordered by frequency, then by axis. If width is not a multiple of 6, the remaining pairs come
    first and are not rotated.
    """
    frequencies = jnp.asarray(
        rope_frequencies(cfg.width, cfg.positional_embedding_theta), jnp.float32
    )
    at = positions.reshape(-1, *positions.shape[-2:])
    limits = jnp.asarray(cfg.positional_embedding_max_pos, jnp.float32)
    # The barrier keeps this a division: XLA would multiply by a constant's reciprocal instead.
    limits = jax.lax.optimization_barrier(jnp.broadcast_to(limits, at.shape))
    angles = frequencies[None, None, :, None] * (at / limits * 2 - 1)[:, :, None]
    angles = angles.reshape(*at.shape[:2], -1)
    unrotated = ((0, 0), (0, 0), (cfg.width // 2 - angles.shape[-1], 0))
    return (
        jnp.pad(jnp.cos(angles), unrotated, constant_values=1.0),
        jnp.pad(jnp.sin(angles), unrotated),
    )


def rope_of(
    pixel_coords: Int[Array, "*b n 3"],
    frame_rate: float | int | Float[Array, " b"],
    cfg: TransformerConfig,
) -> tuple[Float[Array, "b n p"], Float[Array, "b n p"]]:
    """The rotary tables of tokens at pixel coordinates (frame, row, column).

    `frame_rate` is in frames per second: one number, or one per sample.
    """
    return rope_tables(positions(pixel_coords, frame_rate), cfg)
