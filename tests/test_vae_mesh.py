"""The adversarial training of the VAE stage on several devices, which have to train as one."""

import dataclasses

import pytest
from test_vae_stage import CLIPS, full
from tiny_stages import QUICK_MESH, SLOW_MESHES, assert_eight_devices_train_as_one

from ltx_jax.training.vae.stage import VAEStage

pytestmark = pytest.mark.thorough

SLOW = [pytest.param(shape, marks=pytest.mark.slow) for shape in SLOW_MESHES]


@pytest.mark.parametrize("shape", [QUICK_MESH, *SLOW], ids=str)
def test_eight_devices_train_as_one(shape):
    """The whole loss, the discriminator in it from the start."""
    cfg = full(disc_start=0.0)
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, buckets=(CLIPS,)))
    assert_eight_devices_train_as_one(lambda mesh: VAEStage.open(cfg, mesh), shape)
