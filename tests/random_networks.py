"""Frozen networks with random weights, in files as `ltx-prepare networks` writes them."""

import numpy as np
from safetensors.numpy import save_file

from ltx_jax.models import efficientnet


def write_random_efficientnet(path):
    """Writes random weights of EfficientNet-lite0."""
    rng, weights = np.random.default_rng(0), {}
    for name, shape in efficientnet.shapes().items():
        spread = (2 / max(np.prod(shape[1:]), 1)) ** 0.5
        value = rng.uniform(0.7, 1.3, shape) if len(shape) == 1 else rng.normal(0, spread, shape)
        weights[name] = value.astype(np.float32)
    save_file(weights, path)
