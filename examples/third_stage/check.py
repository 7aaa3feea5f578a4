"""The resumed run has the weights of the one without a break, and so has the exported file."""

import jax
import numpy as np

from ltx_jax.checkpoints.load import load_upsampler

files = ("runs/shapes_tiny_upsampler", "runs/without_a_break", "exported/upsampler.safetensors")
(config, weights), *others = map(load_upsampler, files)
for other_config, other_weights in others:
    assert other_config == config
    jax.tree.map(np.testing.assert_array_equal, other_weights, weights)
