"""The game of the VAE stage on several devices, which have to play as one."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from test_vae_stage import CLIPS, full
from tiny_stages import QUICK, one_device

from ltx_jax import sharding
from ltx_jax.config import MeshConfig
from ltx_jax.training import state, vae


@pytest.mark.parametrize(
    "shape",
    [
        dict(data=1, fsdp=2, seq=4),
        pytest.param(dict(data=1, fsdp=8), marks=pytest.mark.slow),
        pytest.param(dict(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_eight_devices_play_as_one(shape, monkeypatch):
    """The whole loss, three steps of plain gradient descent on both sides."""
    monkeypatch.setattr(vae, "make_optimizer", lambda *_: optax.sgd(0.1))
    monkeypatch.setattr(vae, "make_step", lambda *args: state.make_step(*args[:3], QUICK))
    cfg = full(disc_start=0.0)
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, buckets=(CLIPS,)))
    results = []
    for mesh in (one_device(), sharding.make_mesh(MeshConfig(**shape))):
        stage = vae.build(cfg, mesh)
        current = stage.plan.make()
        with sharding.use_mesh(mesh):
            for batch in stage.batches(0, 3):
                current, metrics = stage.step(current, batch)
        results.append(jax.device_get((current.params, current.adversary, metrics["loss"])))
    for (path, x), y in zip(
        jax.tree.leaves_with_path(results[0]), jax.tree.leaves(results[1]), strict=True
    ):
        # Sums in another order, three times.
        scale = np.abs(x).max()
        np.testing.assert_allclose(y, x, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))
