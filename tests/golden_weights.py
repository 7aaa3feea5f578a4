"""The weights behind `tests/golden`: every tensor is a function of its official name and shape."""

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np


def golden_tensor(key: str, shape: Sequence[int]) -> np.ndarray:
    """The float32 tensor that the golden model holds under `key` (no prefix), in PyTorch layout."""
    if key.endswith("timestep_scale_multiplier"):
        return np.full(shape, 1000.0, np.float32)
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    noise = np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32)
    if key.endswith("scale_shift_table"):
        value = 0.3 * noise
    elif "per_channel_scale" in key:
        value = 0.5 * noise
    elif len(shape) == 1:
        value = 1 + 0.1 * noise if key.endswith(".weight") else 0.1 * noise
    else:
        value = noise / math.sqrt(math.prod(shape[1:]))
    return np.asarray(value, np.float32)


def golden_state_dict(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """A whole model, from the `shapes` table (parsed JSON) of its golden file."""
    return {key: golden_tensor(key, shape) for key, shape in shapes.items()}
