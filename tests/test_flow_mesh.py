"""The transformer stage on several devices, which have to train as one."""

import jax
import numpy as np
import optax
import pytest
from tiny_stages import QUICK, load, one_device, tiny_vae

from ltx_jax import sharding
from ltx_jax.config import MeshConfig
from ltx_jax.training import state, transformer

# Extra tokens, first frames, dropped tokens; four heads, which four devices can split.
SETTINGS = (
    *("--flow.keyframes_probability", "1", "--flow.first_frame_probability", "0"),
    *("--flow.max_keyframes", "1", "--flow.token_drop", "0.2"),
    *("--model.num_attention_heads", "4", "--run.output", "/none"),
)


@pytest.mark.parametrize(
    "shape",
    [
        dict(data=1, fsdp=2, seq=4),
        pytest.param(dict(data=1, fsdp=8), marks=pytest.mark.slow),
        pytest.param(dict(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_eight_devices_train_as_one(shape, monkeypatch):
    """Gradients of the first step, and parameters after three of plain gradient descent."""
    monkeypatch.setattr(transformer.checkpoint, "load", lambda *_, **__: tiny_vae())
    monkeypatch.setattr(transformer, "make_optimizer", lambda *_: optax.sgd(0.1))
    monkeypatch.setattr(transformer, "make_step", lambda *args: state.make_step(*args[:3], QUICK))
    results = []
    for mesh in (one_device(), sharding.make_mesh(MeshConfig(**shape))):
        stage = transformer.build(load("transformer", *SETTINGS), mesh)
        current = stage.plan.make()
        seen = [jax.device_get(current.params)]
        with sharding.use_mesh(mesh):
            for batch in stage.batches(0, 3):
                current, metrics = stage.step(current, batch)
                seen.append(jax.device_get(current.params))
        assert metrics["conditioned"] > 0.2
        results.append(seen)
    alone, together = results
    jax.tree.map(np.testing.assert_array_equal, alone[0], together[0])
    for path, start in jax.tree.leaves_with_path(alone[0]):
        steps = [[_at(tree, path) for tree in trees] for trees in results]
        # Sums in another order: of a tensor's largest gradient, and of one after three steps.
        gradient = np.abs(steps[0][1] - start).max()
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(steps[1][1], steps[0][1], atol=1e-5 * gradient, err_msg=name)
        np.testing.assert_allclose(steps[1][3], steps[0][3], atol=1e-6, err_msg=name)


def _at(tree, path):
    for entry in path:
        tree = tree[entry.key]
    return tree


def test_heads_that_devices_cannot_split_are_refused_at_the_start(monkeypatch):
    monkeypatch.setattr(transformer.checkpoint, "load", lambda *_, **__: tiny_vae())
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, seq=2, tensor=2))
    with pytest.raises(ValueError, match="2 attention heads cannot be split"):
        transformer.build(load("transformer", "--run.output", "/none"), mesh)
