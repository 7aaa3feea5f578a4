"""The loop around the steps, on a stage that takes milliseconds: least squares."""

import contextlib
import dataclasses
import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_stages import load

from ltx_jax.checkpoints import run_config, runs
from ltx_jax.runtime import sharding
from ltx_jax.training import initial, loop, optim, stage, state
from ltx_jax.training.stage import Footage, Stage, Validation, Work


class Tiny:
    """Builds the stage, and notes what is asked of it."""

    def __init__(self):
        self.events = []
        self.spoilt = set()  # steps whose batch has a NaN
        self.before = {}  # step -> called as its batch is made
        self.losses = iter(())

    def build(self, cfg, mesh):
        tx = optim.make_optimizer(cfg.optim, cfg.run.steps)

        def init(key):
            return {"encoder": {"kernel": jax.random.normal(key, (4, 2)), "bias": jnp.zeros(2)}}

        def loss(params, current, batch, key):
            layer = params["encoder"]
            noise = jax.random.normal(key, (2,))
            error = batch["x"] @ layer["kernel"] - batch["y"] + (layer["bias"] + noise)[None]
            moved = jax.tree.map(lambda x: x + 1, current.statistics)
            return jnp.mean(error**2), ({"worst": jnp.max(error)}, moved)

        planned = state.plan(init, tx, mesh, cfg.run.seed, {"mean": jnp.zeros(())})
        planned = initial.start_from(cfg.run.init_from, planned, mesh, lambda found: None)
        update = state.descend(loss, tx, cfg.optim, planned.layout)
        compiled = state.make_step(update, planned.layout, cfg.run.seed)

        def step(current, batch):
            self.events.append(("step", batch["number"]))
            return compiled(current, {name: batch[name] for name in ("x", "y")})

        def batches(first, last):
            for number in range(first + 1, last + 1):
                self.before.get(number, lambda: None)()
                rng = np.random.default_rng(number)
                arrays = {"x": rng.standard_normal((8, 4)), "y": rng.standard_normal((8, 2))}
                arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
                if number in self.spoilt:
                    arrays["x"][0, 0] = np.nan
                yield {**stage.split(arrays, mesh), "number": number}

        def validate(current):
            self.events.append(("validate", int(current.step)))
            clip = Footage(np.zeros((3, 8, 8, 3), np.uint8), 24.0)
            return Validation({"val_loss": next(self.losses, 1.0), "other": 7.0}, {"clip": clip})

        return Stage(
            planned, step, batches, lambda batch, step: Work(8, 1e3), validate, lambda _: {}
        )


@pytest.fixture
def tiny(monkeypatch):
    made = Tiny()
    monkeypatch.setattr(loop.vae, "build", made.build)
    return made


def settings(path, **changes):
    cfg = load("vae")
    few = dict(steps=10, log_every=1, save_every=4, tensorboard=False, output=str(path))
    run = dataclasses.replace(cfg.run, **few | changes)
    return dataclasses.replace(cfg, run=run, optim=dataclasses.replace(cfg.optim, name="adamw"))


def check_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def saved(path):
    return sorted(int(p.name) for p in (pathlib.Path(path) / "steps").iterdir())


def test_a_run_that_goes_on_is_bitwise_one_that_never_stopped(tiny, tmp_path):
    whole = loop.train(settings(tmp_path / "whole"))
    loop.train(settings(tmp_path / "parts", steps=3))
    loop.train(settings(tmp_path / "parts", steps=4))
    again = loop.train(settings(tmp_path / "parts"))
    check_equal(jax.device_get(again), jax.device_get(whole))
    assert int(again.step) == 10
    assert float(again.statistics["mean"]) == 10


def test_the_figures_of_a_step_are_read_while_the_next_one_runs(tiny, tmp_path, monkeypatch):
    told = loop.Reporter.step

    def step(self, done, *rest):
        tiny.events.append(("tell", done))
        told(self, done, *rest)

    monkeypatch.setattr(loop.Reporter, "step", step)
    loop.train(settings(tmp_path, steps=5, validate_every=3))
    assert tiny.events == [
        ("step", 1),
        ("step", 2),
        ("tell", 1),
        ("step", 3),
        ("tell", 2),
        ("tell", 3),  # the line of a step stands before that of its validation
        ("validate", 3),
        ("step", 4),
        ("step", 5),
        ("tell", 4),
        ("tell", 5),
        ("validate", 5),
    ]


def test_validation_chooses_what_is_kept_beside_the_latest(tiny, tmp_path):
    tiny.losses = iter([0.5, 0.1, 0.3, 0.4])
    lines = []
    cfg = settings(tmp_path, steps=8, save_every=2, validate_every=2, keep=1, keep_best=1)
    loop.train(cfg, lines.append)
    assert saved(tmp_path) == [4, 8]
    assert "step 4/8  other 7  val_loss 0.1" in lines


def test_a_run_stops_after_steps_in_a_row_that_are_not_finite_and_names_tensors(tiny, tmp_path):
    tiny.spoilt = {3, *range(6, 100)}
    lines = []
    cfg = settings(tmp_path, steps=100, max_rejected=4)
    with pytest.raises(FloatingPointError) as error:
        loop.train(cfg, lines.append)
    text = str(error.value)
    assert "4 steps in a row were not finite, the last is 9" in text
    assert "gradients: encoder/bias, encoder/kernel; parameters: none" in text
    assert "figures: grad_norm" in text
    assert tiny.events[-1] == ("step", 10)  # it was on its way already
    assert saved(tmp_path) == [4, 8]
    assert "rejected 1 steps (not finite)" in lines[4]
    # What is there is whole, and a run that is mended goes on.
    tiny.spoilt = set()
    state = loop.train(settings(tmp_path, steps=20, max_rejected=4))
    assert (int(state.step), int(state.updates), int(state.rejected)) == (20, 16, 0)


@pytest.mark.parametrize("begun", [False, True])
def test_figures_of_a_discriminator_that_has_not_begun_are_not_called_broken(begun):
    """They are no numbers by intent, as is the loss of a time that no sample had."""
    broken, norm = jnp.asarray(jnp.nan), jnp.asarray(0.5 * begun)
    figures = dict.fromkeys(("loss", "disc_loss", "gan", "loss_at/0.1"), broken)
    gradients = {"decoder": {"bias": broken}, "discriminator": {"bias": norm}}
    fields = dict.fromkeys(state.TrainState.__dataclass_fields__)
    current = state.TrainState(**fields | {"params": {}, "adversary": {}})
    text = loop._name_broken({**figures, "psnr": norm}, gradients, current)
    names = "disc_loss, gan, loss" if begun else "loss"
    assert text == f"Not finite are figures: {names}; gradients: decoder/bias; parameters: none"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(number, tiny, tmp_path):
    tiny.before[6] = lambda: os.kill(os.getpid(), number)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    lines = []
    state = loop.train(settings(tmp_path, steps=1000), lines.append)
    assert int(state.step) == 6
    assert 6 in saved(tmp_path)
    assert lines[-1].startswith("stopped and saved at step 6;")
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_evaluation_says_the_figures_of_the_latest_step_and_changes_nothing(tiny, tmp_path):
    cfg = settings(tmp_path / "run", steps=4)
    loop.train(cfg)
    files = sorted(p for p in (tmp_path / "run").rglob("*"))
    tiny.losses = iter([0.125])
    lines = []
    with contextlib.closing(runs.Run(cfg)):  # also while it is being trained
        loop.evaluate(cfg, lines.append)
    assert lines == [f"{tmp_path / 'run'} after step 4", "val_loss 0.125", "other 7"]
    assert tiny.events[-1] == ("validate", 4)
    assert sorted(p for p in (tmp_path / "run").rglob("*")) == files
    with pytest.raises(ValueError, match="cannot be read"):
        loop.evaluate(settings(tmp_path / "none"))


def test_a_profile_is_of_a_few_steps_and_changes_no_result(tiny, tmp_path):
    whole = loop.train(settings(tmp_path / "whole", steps=8))
    lines = []
    traced = loop.train(settings(tmp_path / "run", steps=8), lines.append, profile=True)
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))
    assert f"trace: {tmp_path / 'run/profile'}" in lines
    check_equal(jax.device_get(traced), jax.device_get(whole))


def test_the_trace_of_a_run_at_an_address_is_written_here():
    assert str(loop._traces(run_config.locate("gs://bucket/name"))) == "name/profile"
    assert str(loop._traces(run_config.locate("/runs/name"))) == "/runs/name/profile"


def test_a_run_that_fails_lets_go_of_its_folder(tiny, tmp_path):
    def fail():
        raise ValueError("no more clips")

    tiny.before[6] = fail
    with pytest.raises(ValueError, match="no more clips"):
        loop.train(settings(tmp_path))
    tiny.before.clear()
    assert int(loop.train(settings(tmp_path)).step) == 10


def test_a_run_that_cannot_be_made_leaves_nothing(tiny, tmp_path):
    cfg = settings(tmp_path / "run")
    broken = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, freeze=("nothing",)))
    with pytest.raises(ValueError, match="'nothing' matches no parameter"):
        loop.train(broken)
    with pytest.raises(ValueError, match="no checkpoint"):
        loop.train(settings(tmp_path / "run", init_from=str(tmp_path)))
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_on_another_mesh(tiny, tmp_path):
    def on(mesh, path, **changes):
        cfg = settings(path, **changes)
        return dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, **mesh))

    whole = loop.train(on(dict(data=2, fsdp=4), tmp_path / "whole"))
    loop.train(on(dict(data=2, fsdp=4), tmp_path / "parts", steps=5))
    moved = loop.train(on(dict(data=4, tensor=2), tmp_path / "parts"))
    for x, y in zip(jax.tree.leaves(moved), jax.tree.leaves(whole), strict=True):
        # Means over eight examples in another order, five times.
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert dict(sharding.make_mesh(on(dict(data=4, tensor=2), "x").mesh).shape)["tensor"] == 2
