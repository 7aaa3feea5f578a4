"""The training state: what it consists of, and how runs store it."""

import dataclasses

import jax
import pytest
from test_vae_stage import full
from tiny_stages import load, one_device

from ltx_jax.config import TrainConfig
from ltx_jax.training.stage import stage_class
from ltx_jax.training.state import by_optimizer, from_stored, joined, to_stored
from ltx_jax.training.step import Trainer
from ltx_jax.training.vae.stage import VAEStage


@pytest.fixture(scope="module")
def shapes():
    return Trainer(VAEStage.describe(full(), one_device())).plan.shapes


def test_a_run_is_stored_as_it_always_was(shapes):
    """Under these names runs of all versions hold a state; other names would not resume."""
    stored = to_stored(shapes)
    assert {name: set(part) for name, part in stored.items()} == {
        "params": {"encoder", "decoder"},
        "ema": {"encoder", "decoder"},
        "state": {"step", "updates", "rejected", "opt_state", "statistics", "adversary"},
    }
    assert set(stored["state"]["adversary"]) == {"params", "opt_state"}
    assert stored["state"]["adversary"]["params"] == shapes.params["discriminator"]
    assert from_stored(stored) == shapes


def test_without_a_discriminator_its_place_is_empty():
    shapes = Trainer(VAEStage.describe(load("vae"), one_device())).plan.shapes
    stored = to_stored(shapes)
    assert stored["state"]["adversary"] == {}
    assert from_stored(stored) == shapes


def test_every_parameter_belongs_to_one_optimiser(shapes):
    groups = by_optimizer(shapes.params, shapes.opt_state)
    assert {name: set(group) for name, group in groups.items()} == {
        "main": {"encoder", "decoder"},
        "discriminator": set(shapes.params["discriminator"]),
    }
    assert joined(groups) == shapes.params
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (groups, shapes.params)]
    assert sizes[0] == sizes[1]


def test_every_configuration_names_its_stage():
    for cfg in (load("vae"), load("transformer")):
        name = type(cfg).__name__.removeprefix("Train")
        assert stage_class(cfg).__name__ == f"{name}Stage"


def test_a_stage_that_is_not_there_is_named():
    @dataclasses.dataclass(frozen=True)
    class TrainNothing(TrainConfig):
        stage = "ltx_jax.training.nothing:NothingStage"

    with pytest.raises(ValueError, match=r"TrainNothing\.stage = 'ltx_jax.training.nothing:Noth"):
        stage_class(TrainNothing())
