"""The tiny configs of both stages, and what tests of training make from them."""

import functools
import pathlib

import jax
import jax.numpy as jnp

from ltx_jax import config, sharding
from ltx_jax.checkpoints.contents import Checkpoint
from ltx_jax.config import MeshConfig
from ltx_jax.models.vae import LatentStatistics, VideoVAE

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# The bit generators of random draws cost seconds at a higher level.
QUICK = {"xla_backend_optimization_level": 0}


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
    channels = cfg.latent_channels
    statistics = LatentStatistics(jnp.zeros(channels), jnp.ones(channels))
    return Checkpoint(vae=cfg, vae_params=init(jax.random.key(0)), statistics=statistics)
