"""Both stages on eight devices: their gradients and their steps are those of one."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_stages import QUICK, load, one_device

from ltx_jax import sharding
from ltx_jax.checkpoints import runs
from ltx_jax.config import BucketConfig, DiscriminatorConfig, MeshConfig
from ltx_jax.training import state, transformer, vae

MESHES = [
    dict(data=1, fsdp=2, seq=4),
    dict(data=2, fsdp=2, tensor=2),
    dict(data=1, fsdp=8),
]


class Recorded(NamedTuple):
    gradient: Any


def descent(*_):
    """Plain gradient descent, which leaves the gradient in its state. (Adam would make a whole
    step of a rounding error near zero.)"""

    def update(gradient, _, params=None):
        return jax.tree.map(lambda g: -0.1 * g, gradient), Recorded(gradient)

    return optax.GradientTransformation(lambda p: Recorded(jax.tree.map(jnp.zeros_like, p)), update)


@pytest.fixture(scope="module", autouse=True)
def plain_descent_that_compiles_quickly():
    with pytest.MonkeyPatch.context() as patch:
        for module in (vae, transformer):
            patch.setattr(module, "make_optimizer", descent)
            patch.setattr(module, "make_step", lambda *args: state.make_step(*args[:3], QUICK))
        yield


def sketch_of_vae(mesh):
    """All that the loss may hold without files, and a discriminator that plays from the start."""
    cfg = load("vae")
    loss = dict(mse_weight=0.5, dwt_weight=0.5, gan_weight=0.1, disc_start=0.0)
    cfg = dataclasses.replace(
        cfg,
        loss=dataclasses.replace(cfg.loss, **loss),
        discriminator=DiscriminatorConfig(base_channels=16, levels=2),
        data=dataclasses.replace(cfg.data, buckets=(BucketConfig(5, 32, 16, 8),)),
    )
    return vae.sketch(cfg, mesh)


def sketch_of_transformer(mesh, vae_path):
    """45 tokens, 15 of them a keyframe's, that no axis divides; the text encoder trains along."""
    options = ("--flow.keyframes-probability", "0.5", "--flow.max-keyframes", "1")
    cfg = load("transformer", "--vae", vae_path, "--model.num-attention-heads", "8", *options)
    data = dataclasses.replace(cfg.data, buckets=(BucketConfig(5, 20, 12, 8),))
    return transformer.sketch(dataclasses.replace(cfg, data=data), mesh)


def drawn(path, like):
    """Something that a loader could have given."""
    name = jax.tree_util.keystr(path[-1:])
    rng = np.random.default_rng(len(jax.tree_util.keystr(path)))
    if name == "['mask']":
        return (np.arange(like.shape[1]) < rng.integers(1, 9, (like.shape[0], 1))).astype(np.int32)
    if name == "['frame_rate']":
        return np.full(like.shape, 24, np.float32)
    high = {"['frames']": 256, "['ids']": 200, ".prefix": 2, ".frame": 4}.get(name)
    values = rng.standard_normal(like.shape) if high is None else rng.integers(0, high, like.shape)
    return values.astype(like.dtype)


def train(sketch, mesh, start):
    """Gradients of the first of three steps, and the parameters after them, of all networks."""
    (_, shapes), *_ = sketch.batches
    batch = jax.tree.map_with_path(
        lambda path, like: jax.device_put(drawn(path, like), like.sharding), shapes
    )
    current, gradients = jax.device_put(start, sketch.plan.layout), None
    with sharding.use_mesh(mesh):
        for _ in range(3):
            current, metrics = sketch.step(current, batch)
            if gradients is None:
                others = current.adversary.get("opt_state")
                gradients = jax.device_get((current.opt_state, others))
    assert metrics["rejected"] == 0
    return gradients, jax.device_get((current.params, current.ema, current.adversary.get("params")))


@pytest.fixture(scope="module")
def sketch_on(tmp_path_factory):
    run = tmp_path_factory.mktemp("vae")
    runs.write_config(run, load("vae"))
    return {"vae": sketch_of_vae, "transformer": lambda mesh: sketch_of_transformer(mesh, str(run))}


@pytest.fixture(scope="module")
def alone(sketch_on):
    """The first state of a stage, and what one device makes of it."""

    @functools.cache
    def trained(name):
        sketch = sketch_on[name](one_device())
        start = jax.device_get(sketch.plan.make())
        return start, *train(sketch, one_device(), start)

    return trained


# Sequence parallelism has code of its own; all else is the partitioner's.
CASES = [
    pytest.param(
        name,
        sizes,
        id=f"{name}, {sizes}",
        marks=() if (name, sizes) == ("transformer", MESHES[0]) else pytest.mark.slow,
    )
    for name in ("transformer", "vae")
    for sizes in MESHES
]


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_eight_devices_train_as_one(name, sizes, sketch_on, alone):
    start, gradients, params = alone(name)
    mesh = sharding.make_mesh(MeshConfig(**sizes))
    found, trained = train(sketch_on[name](mesh), mesh, start)
    assert_close(found, gradients, lambda x: 1e-5 * np.abs(x).max())
    assert_close(trained, params, lambda x: 1e-6)


def assert_close(got, want, tolerance):
    """Equal but for sums that are made in another order."""
    for (path, y), x in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(y, x, atol=tolerance(x), rtol=0, err_msg=name)
