"""The VAE stage with a perceptual loss on EfficientNet's features, with random weights."""

import dataclasses

import jax
import numpy as np
import pytest
from quick import QUICK
from random_networks import write_random_efficientnet
from test_vae_stage import CLIPS, full
from tiny_stages import QUICK_MESH, assert_eight_devices_train_as_one, load, one_device

from ltx_jax.models import efficientnet
from ltx_jax.runtime import sharding
from ltx_jax.training.step import Trainer
from ltx_jax.training.vae.stage import VAEStage


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch):
    """Cuts the network after its third block: the others take minutes to compile."""
    monkeypatch.setattr(efficientnet, "_COMPARED", (1, 3))


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    """The pixel loss and the perceptual one, on clips."""
    path = tmp_path_factory.mktemp("networks") / "efficientnet.safetensors"
    write_random_efficientnet(path)
    others = {"mse_weight": 0.0, "dwt_weight": 0.0, "gan_weight": 0.0}
    cfg = full(efficientnet=str(path), efficientnet_weight=0.7, **others)
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, buckets=(CLIPS,)))


@pytest.mark.thorough
def test_a_step_reports_the_term_and_leaves_its_network_out_of_the_state(cfg):
    trainer = Trainer(VAEStage.open(cfg, one_device()), compiler_options=QUICK)
    state = trainer.plan.make()
    names = {path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(state.params)}
    assert names == {"encoder", "decoder"}
    first = jax.device_get(state.params["encoder"])  # the step takes the state's memory
    with sharding.use_mesh(one_device()):
        for batch in trainer.stage.batches(0, 1):
            state, values = trainer.step(state, batch)
    term = float(values["efficientnet"])
    assert 0 < term < np.inf
    expected = float(values["pixel"]) + 0.7 * term + cfg.loss.kl_weight * float(values["kl"])
    assert float(values["loss"]) == pytest.approx(expected, rel=1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.params)))
    changes = jax.tree.map(lambda x, y: np.abs(x - y).max(), first, dict(state.params["encoder"]))
    assert max(jax.tree.leaves(changes)) > 0
    scalars = trainer.stage.validate(state).scalars
    assert 0 < scalars["val_efficientnet"] < np.inf


@pytest.mark.thorough
def test_eight_devices_train_as_one(cfg):
    assert_eight_devices_train_as_one(lambda mesh: VAEStage.open(cfg, mesh), QUICK_MESH)


def test_weights_that_are_not_there_are_an_error_that_says_how_to_get_them(tmp_path):
    named = ("--loss.efficientnet", f"{tmp_path}/a/b.safetensors")
    VAEStage.open(load("vae", *named), one_device())  # the term is off
    with pytest.raises(ValueError, match=r"a/b\.safetensors: .*ltx-prepare networks --output .*/a"):
        VAEStage.open(load("vae", *named, "--loss.efficientnet-weight", "1"), one_device())
