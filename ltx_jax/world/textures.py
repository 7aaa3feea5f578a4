"""Textures of backgrounds, computed from a few plane waves."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64


def waves(
    texture: str, wavelength: float, angle: float, seed: int
) -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, " n"]]:
    """Computes the wave vectors, in radians per shorter side, and the phases of a texture.

    Args:
      texture: a key of `LEVELS`.
      wavelength: in shorter sides of the picture.
      angle: of the waves, in degrees.
      seed: of the phases, and of the directions and lengths of the waves of "cloudy".
    """
    rng = np.random.default_rng(seed)
    number = 2 * math.pi / wavelength
    if texture == "cloudy":
        angles = 2 * math.pi * rng.random(6)
        numbers = number / (1 + 2 * rng.random(6))
    elif texture == "shaded":
        # Half a wave across the picture: one side is dark, the other light.
        angles, numbers = np.array([math.radians(angle)]), np.array([math.pi / 1.6])
        return _vectors(angles, numbers), np.array([-math.pi / 2])
    else:
        angles = np.radians(angle + np.array([0.0, 90.0]))
        numbers = np.array([number, number])
    return _vectors(angles, numbers), 2 * math.pi * rng.random(len(angles))


def _vectors(angles: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Vectors (n, 2) of the given angles and lengths."""
    return np.stack([numbers * np.cos(angles), numbers * np.sin(angles)], axis=1)


def _steep(levels: np.ndarray) -> np.ndarray:
    """Sharpens the edges of a texture."""
    return np.clip(4 * levels, -1, 1)


# Maps the cosines (n, h, w) of the waves to grey levels (h, w) in [-1, 1]; smooth ones reach 1.5.
LEVELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "shaded": lambda waves: 1.5 * waves[0],
    "striped": lambda waves: _steep(waves[0]),
    "checkered": lambda waves: _steep(waves[0] * waves[1]),
    "dotted": lambda waves: _steep(waves[0] + waves[1] - np.float32(1.1)),
    "cloudy": lambda waves: np.clip(waves.sum(axis=0) / 2, -1.5, 1.5),
}
