"""The file with a checkpoint's map from latents to colours: JSON beside its weights (`beside`).

FOLDER/latent_colours.json of a run, an export or a diffusers folder
FILE.latent_colours.json   of a file
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from ltx_jax import config
from ltx_jax.checkpoints import beside
from ltx_jax.models.latent_colours import LatentColours

NAME = "latent_colours.json"
_MAX_SIDE, _MAX_CHANNELS = 64, 1 << 16


def read(path: str | Path) -> LatentColours | None:
    """The map of a checkpoint; None if there is none.

    Raises:
      ValueError: if the file is damaged.
    """
    file = beside.place(path, NAME)
    if not file.exists():
        return None
    raw = config.parse_json(file.read_text(), str(file))
    try:
        side, matrix, bias = raw["side"], _array(raw["matrix"]), _array(raw["bias"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is no map from latents to colours: {error!r}") from error
    fits = type(side) is int and 0 < side <= _MAX_SIDE and matrix.ndim == 2
    if not fits or matrix.shape[1] != 3 * side**2 or bias.shape != matrix.shape[1:]:
        raise ValueError(
            f"{file} is no map from latents to colours: side is {side}, the matrix {matrix.shape} "
            f"and the bias {bias.shape}"
        )
    if len(matrix) > _MAX_CHANNELS or not (np.isfinite(matrix).all() and np.isfinite(bias).all()):
        raise ValueError(f"{file} holds too many numbers, or some that are not finite")
    return LatentColours(side, matrix, bias)


def write(file: epath.Path | Path, colours: LatentColours) -> None:
    """Writes a map, on this machine whole or not at all."""
    content = {
        "side": colours.side,
        "bias": _rounded(colours.bias),
        "matrix": _rounded(colours.matrix),
    }
    beside.write_text(file, json.dumps(content) + "\n")


def _array(values: Any) -> np.ndarray:
    try:
        return np.asarray(values, np.float32)
    except ValueError as error:  # rows of different lengths
        raise TypeError(str(error)) from error


def _rounded(values: np.ndarray) -> Any:
    return np.round(values.astype(np.float64), 5).tolist()
