"""The latent upsampler, compared with outputs of the official code."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import golden_state_dict
from quick import compiled

from ltx_jax.config import UpsamplerConfig
from ltx_jax.models.upsampler import LatentUpsampler
from ltx_jax.runtime import sharding

GOLDEN = pathlib.Path(__file__).parent / "golden"


def our_parameters(state):
    """Official tensors as our parameters: list indices joined by "_", channels last."""
    tree = {}
    for key, value in state.items():
        *path, leaf = re.sub(r"\.(\d+)", r"_\1", key).split(".")
        if value.ndim > 1:
            value, leaf = value.transpose(*range(2, value.ndim), 1, 0), "kernel"
        elif leaf == "weight":
            leaf = "scale"
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        node[leaf] = jnp.asarray(value)
    return tree


def shapes(tree):
    return jax.tree.map(lambda x: x.shape, tree)


def official(name):
    """The config, the official parameters as our parameters, and the golden file."""
    golden = np.load(GOLDEN / f"upsampler_{name}_tiny.npz")
    state = golden_state_dict(json.loads(str(golden["shapes"])))
    return UpsamplerConfig(**json.loads(str(golden["config"]))), our_parameters(state), golden


def boxed_shapes(cfg, shape):
    init = LatentUpsampler(cfg).init
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros(shape))["params"]


def initial_shapes(cfg, shape=(1, 2, 4, 4, 8)):
    return sharding.unbox(boxed_shapes(cfg, shape))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["spatial", "temporal", "both", "spatial2d"])
def test_outputs_are_those_of_the_official_code(name):
    cfg, params, golden = official(name)
    weights = sum(float(np.abs(x, dtype=np.float64).sum()) for x in jax.tree.leaves(params))
    np.testing.assert_allclose(weights, golden["weights_abs_sum"], rtol=1e-9)
    assert shapes(params) == shapes(initial_shapes(cfg))

    latents = jnp.asarray(np.moveaxis(golden["z"], 1, -1))
    out = compiled(LatentUpsampler(cfg).apply)({"params": params}, latents)
    # Outputs of order 1 after ten float32 convolutions summed in another order.
    np.testing.assert_allclose(out, np.moveaxis(golden["out"], 1, -1), atol=1e-5)


def test_the_released_upsampler_has_the_official_parameters():
    tree = initial_shapes(UpsamplerConfig(), (1, 2, 2, 2, 128))
    leaves = jax.tree.leaves(tree)
    assert len(leaves) == 72
    assert sum(leaf.size for leaf in leaves) == 126_250_624
    assert tree["upsampler_0"]["kernel"].shape == (3, 3, 512, 2048)


@pytest.mark.thorough
def test_two_dimensions_keep_frames_apart(keys):
    cfg, params, _ = official("spatial2d")
    apply = compiled(LatentUpsampler(cfg).apply)
    latents = jax.random.normal(next(keys), (2, 3, 4, 4, 8))
    whole = apply({"params": params}, latents)
    assert whole.shape == (2, 3, 8, 8, 8)
    one = apply({"params": params}, latents[1:, 2:])
    np.testing.assert_allclose(whole[1:, 2:], one, atol=1e-5)  # float32 rounding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(spatial_upsample=False), "both off"),
        (dict(dims=2, temporal_upsample=True), "dims is 2"),
        (dict(in_channels=6), "8 channels.*6"),
        (dict(mid_channels=24), "32 groups.*24 channels"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    cfg = UpsamplerConfig(**{"in_channels": 8, "mid_channels": 32, **change})
    with pytest.raises(ValueError, match=message):
        initial_shapes(cfg)


@pytest.mark.thorough
def test_one_device_equals_eight(keys, mesh):
    cfg, params, _ = official("spatial")
    latents = jax.random.normal(next(keys), (2, 2, 4, 4, 8))
    layout = sharding.shardings(boxed_shapes(cfg, latents.shape), mesh)
    assert "fsdp" in str(layout["upsampler_0"]["kernel"].spec)
    apply = LatentUpsampler(cfg).apply
    with sharding.use_mesh(mesh):
        many = compiled(apply)({"params": jax.device_put(params, layout)}, latents)
    np.testing.assert_allclose(many, compiled(apply)({"params": params}, latents), atol=1e-5)
