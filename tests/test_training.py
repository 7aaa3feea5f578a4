"""Steps of the VAE stage on one device and on several. Whole runs are in test_train_command.py."""

import jax
import numpy as np
import optax
import pytest
from tiny_stages import descending, load, one_device

from ltx_jax.config import MeshConfig
from ltx_jax.runtime import sharding
from ltx_jax.training.vae.stage import VAEStage

pytestmark = pytest.mark.thorough


def steps(trainer, count):
    current = trainer.plan.make()
    with sharding.use_mesh(trainer.mesh):
        for step in range(count):
            batch = next(trainer.stage.batches(step, step + 1))
            current, metrics = trainer.step(current, batch)
    return jax.device_get(current), float(metrics["loss"])


def test_eight_devices_train_as_one(tmp_path):
    # Plain gradient descent: Adam would make a whole step of a rounding error near zero.
    cfg = load("vae", "--run.output", str(tmp_path / "none"))
    results = []
    for mesh in (one_device(), sharding.make_mesh(MeshConfig(data=2, fsdp=4))):
        trainer = descending(VAEStage.open(cfg, mesh), lambda: optax.sgd(0.1))
        results.append(steps(trainer, 3))
    (alone, loss), (together, other) = results
    assert loss == pytest.approx(other, rel=1e-5)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(alone.params))
    for path, x in jax.tree.leaves_with_path(alone.params):
        y = together.params
        for entry in path:
            y = y[entry.key]
        # Sums in another order, three times.
        np.testing.assert_allclose(
            y, x, atol=2e-6 * scale, rtol=1e-4, err_msg=jax.tree_util.keystr(path)
        )
