"""The tiny configs of both stages, and what tests of training make from them."""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from quick import QUICK

from ltx_jax import config
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import MeshConfig
from ltx_jax.models.vae import LatentStatistics, VideoVAE
from ltx_jax.runtime import sharding
from ltx_jax.training.step import Trainer

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def load(name, *overrides):
    return config.load(str(CONFIGS / f"shapes_tiny_{name}.py"), overrides)


def one_device():
    return sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])


@functools.cache
def tiny_vae():
    """The tiny VAE with fresh weights, as a checkpoint."""
    cfg = load("vae").model
    model = VideoVAE(cfg)
    video = jnp.zeros((1, 5, 16, 16, 3))
    init = jax.jit(
        lambda key: sharding.unbox(model.init(key, video))["params"], compiler_options=QUICK
    )
    statistics = LatentStatistics.identity(cfg.latent_channels)
    return Checkpoint(vae=cfg, vae_params=init(jax.random.key(0)), statistics=statistics)


class Recorded(NamedTuple):
    gradient: Any


def descent():
    """Plain gradient descent, which leaves the gradient in its state. (Adam would make a whole
    step of a rounding error near zero.)"""

    def update(gradient, _, params=None):
        return jax.tree.map(lambda g: -0.1 * g, gradient), Recorded(gradient)

    return optax.GradientTransformation(lambda p: Recorded(jax.tree.map(jnp.zeros_like, p)), update)


def descending(stage, make=descent):
    """A trainer whose optimisers are plain, compiled at a low level: tests spend more on compiling
    than on running."""
    optimizers = {name: x._replace(tx=make()) for name, x in stage.optimizers().items()}
    return Trainer(stage, optimizers=optimizers, compiler_options=QUICK)


def assert_eight_devices_train_as_one(open_stage, shape):
    """Three steps of a stage (`open_stage` opens it on a mesh) on one device and on eight; returns
    the metrics of the last."""
    results, metrics = [], {}
    for mesh in (one_device(), sharding.make_mesh(MeshConfig(**shape))):
        trainer = descending(open_stage(mesh))
        current, gradients = trainer.plan.make(), None
        with sharding.use_mesh(mesh):
            for batch in trainer.stage.batches(0, 3):
                current, metrics = trainer.step(current, batch)
                if gradients is None:
                    gradients = jax.device_get(current.opt_state)
        assert metrics["rejected"] == 0
        results.append((gradients, jax.device_get((current.params, current.ema))))
    # Sums in another order: of a tensor's largest gradient, and of parameters after three steps.
    (alone, one), (together, eight) = results
    _assert_close(together, alone, lambda x: 1e-5 * np.abs(x).max())
    _assert_close(eight, one, lambda x: 1e-6)
    return metrics


def _assert_close(got, want, tolerance):
    for (path, y), x in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(y, x, atol=tolerance(x), rtol=0, err_msg=name)


# Sequence parallelism has code of its own; all else is the partitioner's.
QUICK_MESH = dict(data=1, fsdp=2, seq=4)
SLOW_MESHES = (dict(data=1, fsdp=8), dict(data=2, fsdp=2, tensor=2))
