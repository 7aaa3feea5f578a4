"""The loop around the steps, on a stage that takes milliseconds: least squares."""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_stages import load, one_device

from ltx_jax.checkpoints import run_config, runs
from ltx_jax.runtime import sharding
from ltx_jax.training import batches, loop
from ltx_jax.training.stage import LoggedVideo, LossValue, Stage, Validation
from ltx_jax.training.state import TrainState
from ltx_jax.training.step import GRADIENTS, Trainer, describe_nonfinite


class Tiny(Stage):
    """Least squares; notes what is asked of it."""

    def __init__(self, cfg, mesh):
        super().__init__(cfg, mesh)
        self.events = []
        self.spoilt = set()  # steps whose batch has a NaN
        self.before = {}  # step -> called as its batch is made
        self.losses = iter(())

    @classmethod
    def open(cls, cfg, mesh, *, loader=None):
        return cls(cfg, mesh)

    describe = open

    def init(self, key):
        return {"encoder": {"kernel": jax.random.normal(key, (4, 2)), "bias": jnp.zeros(2)}}

    def first_statistics(self):
        return {"mean": jnp.zeros(())}

    def abstract_batch(self, bucket):
        shapes = {
            name: jax.ShapeDtypeStruct((8, n), jnp.float32) for name, n in (("x", 4), ("y", 2))
        }
        return batches.split_shapes(self.mesh, shapes)

    def batches(self, first, last):
        for number in range(first + 1, last + 1):
            self.before.get(number, lambda: None)()
            rng = np.random.default_rng(number)
            arrays = {"x": rng.standard_normal((8, 4)), "y": rng.standard_normal((8, 2))}
            arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
            if number in self.spoilt:
                arrays["x"][0, 0] = np.nan
            yield batches.split_over(self.mesh, arrays)

    def tokens(self, batch):
        return 8

    def loss(self, params, current, batch, frozen, key):
        layer = params["encoder"]
        noise = jax.random.normal(key, (2,))
        error = batch["x"] @ layer["kernel"] - batch["y"] + (layer["bias"] + noise)[None]
        moved = jax.tree.map(lambda x: x + 1, current.statistics)
        return LossValue(jnp.mean(error**2), {"worst": jnp.max(error)}, moved)

    def validate(self, current):
        self.events.append(("validate", int(current.step)))
        clip = LoggedVideo(np.zeros((3, 8, 8, 3), np.uint8), 24.0)
        return Validation({"val_loss": next(self.losses, 1.0), "other": 7.0}, {"clip": clip})


class NotedTrainer(Trainer):
    """Notes its steps with the events of its stage."""

    def step(self, current, batch):
        self.stage.events.append(("step", int(current.step) + 1))
        return super().step(current, batch)


class Runs:
    """Trains the stage, one after the other time, with the same notes and the same faults."""

    def __init__(self):
        self.notes = Tiny(settings(""), one_device())

    def trainer(self, cfg):
        stage = Tiny.open(cfg, sharding.make_mesh(cfg.mesh))
        for name in ("events", "spoilt", "before", "losses"):
            setattr(stage, name, getattr(self.notes, name))
        return NotedTrainer(stage)

    def fit(self, cfg, *options, **named):
        return loop.fit(self.trainer(cfg), *options, **named)


@pytest.fixture
def tiny():
    return Runs()


def settings(path, **changes):
    cfg = load("vae")
    few = dict(steps=10, log_every=1, save_every=4, tensorboard=False, output=str(path))
    run = dataclasses.replace(cfg.run, **few | changes)
    return dataclasses.replace(cfg, run=run, optim=dataclasses.replace(cfg.optim, name="adamw"))


def check_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def saved(path):
    return sorted(int(p.name) for p in (pathlib.Path(path) / "steps").iterdir())


@pytest.mark.thorough
def test_a_run_that_goes_on_is_bitwise_one_that_never_stopped(tiny, tmp_path):
    whole = tiny.fit(settings(tmp_path / "whole"))
    tiny.fit(settings(tmp_path / "parts", steps=3))
    tiny.fit(settings(tmp_path / "parts", steps=4))
    again = tiny.fit(settings(tmp_path / "parts"))
    check_equal(jax.device_get(again), jax.device_get(whole))
    assert int(again.step) == 10
    assert float(again.statistics["mean"]) == 10


@pytest.mark.thorough
def test_the_metrics_of_a_step_are_read_while_the_next_one_runs(tiny, tmp_path):
    def report(line):
        if (step := re.match(r"step (\d+)/5  ", line)) and "val_" not in line:
            tiny.notes.events.append(("report", int(step[1])))

    tiny.fit(settings(tmp_path, steps=5, validate_every=3), report)
    assert tiny.notes.events == [
        ("step", 1),
        ("step", 2),
        ("report", 1),
        ("step", 3),
        ("report", 2),
        ("report", 3),  # the line of a step stands before that of its validation
        ("validate", 3),
        ("step", 4),
        ("step", 5),
        ("report", 4),
        ("report", 5),
        ("validate", 5),
    ]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("init_from", "steps"), [("a.safetensors", [0, 3, 5, 6]), (None, [3, 5, 6])]
)
def test_what_begins_with_a_checkpoint_is_validated_before_it_is_trained(
    tiny, tmp_path, monkeypatch, init_from, steps
):
    monkeypatch.setattr(loop.warm_start, "first_state", lambda stage, plan: plan.make())
    cfg = settings(tmp_path, steps=5, validate_every=3, init_from=init_from)
    lines = []
    tiny.fit(cfg, lines.append)
    tiny.fit(dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, steps=6)))  # not once more
    assert [step for what, step in tiny.notes.events if what == "validate"] == steps
    assert any(line.startswith("step 0/5  other 7") for line in lines) is (0 in steps)


@pytest.mark.thorough
def test_validation_chooses_what_is_kept_beside_the_latest(tiny, tmp_path):
    tiny.notes.losses = iter([0.5, 0.1, 0.3, 0.4])
    lines = []
    cfg = settings(tmp_path, steps=8, save_every=2, validate_every=2, keep=1, keep_best=1)
    tiny.fit(cfg, lines.append)
    assert saved(tmp_path) == [4, 8]
    assert "step 4/8  other 7  val_loss 0.1" in lines


@pytest.mark.thorough
def test_a_run_stops_after_steps_in_a_row_that_are_not_finite_and_names_tensors(tiny, tmp_path):
    tiny.notes.spoilt = {3, *range(6, 100)}
    lines = []
    cfg = settings(tmp_path, steps=100, max_rejected=4)
    with pytest.raises(FloatingPointError) as error:
        tiny.fit(cfg, lines.append)
    text = str(error.value)
    assert "not finite in 4 steps in a row, the last of them step 9" in text
    assert "gradients (encoder/bias, encoder/kernel); parameters (none)" in text
    assert "metrics (grad_norm" in text
    assert tiny.notes.events[-1] == ("step", 10)  # it was on its way already
    assert saved(tmp_path) == [4, 8]
    assert "rejected 1 steps (not finite)" in lines[4]
    # What is there is whole, and a run that is mended goes on.
    tiny.notes.spoilt = set()
    state = tiny.fit(settings(tmp_path, steps=20, max_rejected=4))
    assert (int(state.step), int(state.updates), int(state.rejected)) == (20, 16, 0)


@pytest.mark.parametrize("pending", [(), ("disc_loss", "gan")])
def test_metrics_of_a_discriminator_that_has_not_begun_are_not_called_broken(pending):
    """They are no numbers by intent, as is the loss of a time that no sample had."""
    broken, norm = jnp.asarray(jnp.nan), jnp.asarray(0.5)
    metrics = dict.fromkeys(("loss", "disc_loss", "gan", "loss_at/0.1"), broken)
    metrics |= {"psnr": norm, GRADIENTS: {"decoder": {"bias": broken}}}
    fields = dict.fromkeys(TrainState.__dataclass_fields__)
    text = describe_nonfinite(metrics, TrainState(**fields | {"params": {}}), pending)
    names = "loss" if pending else "disc_loss, gan, loss"
    assert text == f"Not finite: metrics ({names}); gradients (decoder/bias); parameters (none)"


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(number, tiny, tmp_path):
    tiny.notes.before[6] = lambda: os.kill(os.getpid(), number)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    lines = []
    state = tiny.fit(settings(tmp_path, steps=1000), lines.append)
    assert int(state.step) == 6
    assert 6 in saved(tmp_path)
    assert lines[-1].startswith("stopped and saved at step 6;")
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers


@pytest.mark.thorough
def test_evaluation_logs_the_metrics_of_the_latest_step_and_changes_nothing(tiny, tmp_path):
    cfg = settings(tmp_path / "run", steps=4)
    tiny.fit(cfg)
    files = sorted(p for p in (tmp_path / "run").rglob("*"))
    tiny.notes.losses = iter([0.125])
    lines = []
    with contextlib.closing(runs.Run(cfg)):  # also while it is being trained
        loop.validate_latest(tiny.trainer(cfg), lines.append)
    assert lines == [f"{tmp_path / 'run'} after step 4", "val_loss 0.125", "other 7"]
    assert tiny.notes.events[-1] == ("validate", 4)
    assert sorted(p for p in (tmp_path / "run").rglob("*")) == files
    with pytest.raises(ValueError, match="cannot be read"):
        loop.validate_latest(tiny.trainer(settings(tmp_path / "none")))


@pytest.mark.thorough
def test_a_profile_is_of_a_few_steps_and_changes_no_result(tiny, tmp_path):
    whole = tiny.fit(settings(tmp_path / "whole", steps=8))
    lines = []
    traced = tiny.fit(settings(tmp_path / "run", steps=8), lines.append, profile=True)
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))
    assert f"trace: {tmp_path / 'run/profile'}" in lines
    check_equal(jax.device_get(traced), jax.device_get(whole))


def test_the_trace_of_a_run_at_an_address_is_written_here():
    assert str(loop.trace_folder(run_config.locate("gs://bucket/name"))) == "name/profile"
    assert str(loop.trace_folder(run_config.locate("/runs/name"))) == "/runs/name/profile"


def test_a_run_that_fails_lets_go_of_its_folder(tiny, tmp_path):
    def fail():
        raise ValueError("no more clips")

    tiny.notes.before[6] = fail
    with pytest.raises(ValueError, match="no more clips"):
        tiny.fit(settings(tmp_path))
    tiny.notes.before.clear()
    assert int(tiny.fit(settings(tmp_path)).step) == 10


def test_a_run_that_cannot_be_made_leaves_nothing(tiny, tmp_path):
    cfg = settings(tmp_path / "run")
    broken = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, freeze=("nothing",)))
    with pytest.raises(ValueError, match="'nothing' matches no parameter"):
        tiny.fit(broken)
    with pytest.raises(ValueError, match="no checkpoint"):
        tiny.fit(settings(tmp_path / "run", init_from=str(tmp_path)))
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_a_run_goes_on_on_another_mesh(tiny, tmp_path):
    def on(mesh, path, **changes):
        cfg = settings(path, **changes)
        return dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, **mesh))

    whole = tiny.fit(on(dict(data=2, fsdp=4), tmp_path / "whole"))
    tiny.fit(on(dict(data=2, fsdp=4), tmp_path / "parts", steps=5))
    moved = tiny.fit(on(dict(data=4, tensor=2), tmp_path / "parts"))
    for x, y in zip(jax.tree.leaves(moved), jax.tree.leaves(whole), strict=True):
        # Means over eight examples in another order, five times.
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert dict(sharding.make_mesh(on(dict(data=4, tensor=2), "x").mesh).shape)["tensor"] == 2
