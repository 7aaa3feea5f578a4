"""Steps, losses and times of both stages. Whole runs are in test_train.py."""

import jax
import numpy as np
import optax
import pytest
from tiny_stages import QUICK, load, one_device, tiny_vae

from ltx_jax.config import MeshConfig
from ltx_jax.runtime import sharding
from ltx_jax.training import state, transformer, vae


def steps(stage, mesh, count):
    current = stage.plan.make()
    with sharding.use_mesh(mesh):
        for step in range(count):
            current, metrics = stage.step(current, next(stage.batches(step, step + 1)))
    return jax.device_get(current), float(metrics["loss"])


@pytest.fixture
def quick_steps(monkeypatch):
    """Compiles training steps at a low level: tests spend more on compiling than on running."""
    for module in (vae, transformer):
        monkeypatch.setattr(module, "make_step", lambda *args: state.make_step(*args[:3], QUICK))


@pytest.mark.usefixtures("quick_steps")
@pytest.mark.parametrize("name", ["vae"])
def test_eight_devices_train_as_one(name, monkeypatch, tmp_path):
    module = {"vae": vae, "transformer": transformer}[name]
    # Plain gradient descent: Adam would make a whole step of a rounding error near zero.
    monkeypatch.setattr(module, "make_optimizer", lambda *_: optax.sgd(0.1))
    monkeypatch.setattr(transformer, "load_checkpoint", lambda *_, **__: tiny_vae())
    cfg = load(name, "--run.output", str(tmp_path / "none"))
    shape = {"vae": dict(data=2, fsdp=4), "transformer": dict(data=1, fsdp=2, seq=2, tensor=2)}
    results = []
    for mesh in (one_device(), sharding.make_mesh(MeshConfig(**shape[name]))):
        results.append(steps(module.build(cfg, mesh), mesh, 3))
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
