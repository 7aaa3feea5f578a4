"""train.py from end to end: both stages on the procedural world, stopped, killed and resumed."""

import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from kills import number_of_kills

from ltx_jax import config
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.train import main

ROOT = pathlib.Path(__file__).parents[1]
VAE = str(ROOT / "configs/shapes_tiny_vae.py")
TRANSFORMER = str(ROOT / "configs/shapes_tiny_transformer.py")
# These runs are mostly compilation.
QUICK = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}


def check_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def start(file, output, steps, *more, **pipes):
    """Starts train.py in a process of its own, on one device."""
    command = [sys.executable, str(ROOT / "train.py"), file, "--run.output", str(output), *more]
    command += ["--run.steps", str(steps), "--run.save_every", "2", "--run.log_every", "1"]
    command += ["--optim.name", "adamw"]
    pipes = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "env": QUICK, **pipes}
    return subprocess.Popen(command, **pipes)


def finish(*arguments):
    """Trains to the end; returns what train.py said."""
    process = start(*arguments)
    said = process.communicate()[0]
    assert process.returncode == 0
    return said


def wait_for_a_step(process):
    while "step " not in process.stdout.readline():
        assert process.poll() is None


def weights(folder):
    loaded = load_checkpoint(folder)
    return loaded.transformer_params, loaded.text_encoder, loaded.vae_params, loaded.statistics


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of both stages, four steps each."""
    folder = tmp_path_factory.mktemp("runs")
    finish(VAE, folder / "vae", 4)
    finish(TRANSFORMER, folder / "transformer", 4, "--vae", str(folder / "vae"))
    return folder


@pytest.mark.thorough
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(trained, tmp_path):
    finish(VAE, tmp_path / "vae", 2)
    assert "continues after step 2" in finish(VAE, tmp_path / "vae", 4)
    check_equal(weights(tmp_path / "vae"), weights(trained / "vae"))

    vae = ("--vae", str(trained / "vae"))
    finish(TRANSFORMER, tmp_path / "transformer", 2, *vae)
    finish(TRANSFORMER, tmp_path / "transformer", 4, *vae)
    check_equal(weights(tmp_path / "transformer"), weights(trained / "transformer"))


@pytest.mark.thorough
def test_a_run_that_follows_references_resumes_bitwise_and_validates(trained, tmp_path):
    """Validation samples each clip by its reference, and again from its first frame."""
    settings = ("--vae", str(trained / "vae"), "--data.reference", "canny")
    settings += ("--run.validation_clips", "1", "--run.validation_first_frames")
    whole, broken = (tmp_path / name for name in ("whole", "broken"))
    said = finish(TRANSFORMER, whole, 4, *settings, "--run.validate_every", "4")
    assert "val_loss" in said
    finish(TRANSFORMER, broken, 2, *settings)
    assert "continues after step 2" in finish(TRANSFORMER, broken, 4, *settings)
    check_equal(weights(broken), weights(whole))
    alone = weights(trained / "transformer")[0]
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(weights(whole)[0]), strict=True)
    )


@pytest.mark.thorough
def test_a_transformer_run_is_complete_in_itself(trained):
    vae = load_checkpoint(trained / "vae")
    assert vae.transformer is None
    assert (np.asarray(vae.statistics.std) > 0).all()

    whole = load_checkpoint(trained / "transformer")
    assert whole.transformer.in_channels == vae.vae.latent_channels
    assert whole.text_encoder is not None
    assert whole.vae == vae.vae
    check_equal(whole.vae_params, vae.vae_params)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--data.source", "{tmp}/nowhere"], "nowhere"),
        (["--data.source", "{tmp}"], "no clip"),
        (["--data.num_frames", "6"], "5 and 7"),
        (["--data.height", "18"], "multiples of 4"),
        (["--data.batch_size", "3"], "batch_size = 3"),
        (["--run.output", "{tmp}/full"], "not empty"),
    ],
)
def test_mistakes_of_the_user_are_one_line_and_a_status(overrides, message, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    overrides = [text.replace("{tmp}", str(tmp_path)) for text in overrides]
    assert main([VAE, "--run.output", str(tmp_path / "run"), *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_config_is_one_line(capsys):
    assert main(["configs/nowhere.py"]) == 2
    error = capsys.readouterr().err
    assert "configs/nowhere.py" in error
    assert error.count("\n") == 1


@pytest.mark.thorough
def test_a_mistake_in_a_config_names_what_was_meant(tmp_path):
    mistakes = {
        "OptimConfig(peek_lr=1.0)": "OptimConfig has no field 'peek_lr': did you mean 'peak_lr'?",
        "dataclasses.replace(RunConfig(), stpes=3)": "RunConfig has no field 'stpes': did you",
        "OptimConfig(zzz=1)": "OptimConfig has no field 'zzz'",
        "TransformerConfig(remat='full')": "no field 'remat', which is a field of ExecutionConfig",
        "TrainVAE()": "missing 1 required positional argument: 'model'",
        "3": "holds a int, which is not a training config",
        "RunConfig(keep=0)": "keep must be positive, got 0",
    }
    for i, line in enumerate(mistakes):
        head = "import dataclasses\nfrom ltx_jax.config import *\n"
        (tmp_path / f"{i}.py").write_text(f"{head}config = {line}\n")
    # In a process without the type checks of the tests, which stand before the constructors.
    program = (
        "import sys\nfrom ltx_jax import train\nfor file in sys.argv[1:]: print(train.main([file]))"
    )
    files = [str(tmp_path / f"{i}.py") for i in range(len(mistakes))]
    done = subprocess.run(
        [sys.executable, "-c", program, *files],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout.split() == ["2"] * len(mistakes)
    for error, message in zip(done.stderr.splitlines(), mistakes.values(), strict=True):
        assert message in error


def test_a_mistake_on_the_command_line_names_what_was_meant(capsys):
    with pytest.raises(SystemExit) as stop:
        main([VAE, "--optim.peek-lr", "1.0"])
    assert stop.value.code == 2
    assert "--optim.peak-lr" in capsys.readouterr().err


def test_help_tells_of_the_flags_that_are_no_settings(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for flag in ("--profile", "--evaluate"):
        assert flag in said


def test_settings_on_the_command_line_need_tyro_and_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert isinstance(config.load(VAE), config.TrainVAE)
    with pytest.raises(ValueError, match=r"\(--run.steps\) need tyro, which is not installed"):
        config.load(VAE, ["--run.steps", "3"])


@pytest.mark.thorough
def test_evaluation_is_of_the_latest_checkpoint(trained):
    said = finish(VAE, trained / "vae", 4, "--evaluate", "--run.validation-clips", "2")
    assert f"{trained / 'vae'} after step 4\nval_pixel 0." in said
    assert len(list((trained / "vae/steps").iterdir())) == 2


@pytest.mark.thorough
def test_training_needs_neither_tyro_nor_grain_nor_pyav(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import dataclasses, runpy\n"
        f"config = runpy.run_path({VAE!r})['config']\n"
        f"run = dataclasses.replace(config.run, output={str(tmp_path / 'run')!r}, steps=4)\n"
        "optim = dataclasses.replace(config.optim, name='adamw')\n"
        "config = dataclasses.replace(config, run=run, optim=optim)\n"
    )
    program = f"""
import sys
for name in ("tyro", "grain", "av", "tensorboardX", "wandb", "tensorflow_datasets", "array_record"):
    sys.modules[name] = None
from ltx_jax import train
sys.exit(train.main([{str(tmp_path / "mine.py")!r}]))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=QUICK, check=False)
    assert done.returncode == 0, done.stderr
    assert "TensorBoard is off: it needs tensorboardX" in done.stdout
    assert "step 4/4" in done.stdout


class Log:
    """A run of train.py that writes what it says to a file."""

    def __init__(self, folder, steps, file, *more):
        self.path = folder.with_suffix(f".{time.time_ns()}.log")
        self._file = self.path.open("w")
        command = [sys.executable, str(ROOT / "train.py"), file, "--run.output", str(folder)]
        command += ["--run.steps", str(steps), "--run.save_every", "7", "--run.log_every", "1"]
        command += ["--optim.name", "adamw", *more]
        self.process = subprocess.Popen(command, stdout=self._file, cwd=ROOT, env=QUICK)

    def wait_for(self, happened):
        """Waits until something has happened; False if the run has ended before."""
        while not happened():
            if self.process.poll() is not None:
                return False
            time.sleep(0.0005)
        return True

    def steps(self):
        """Figures of every step that was told, without its speed."""
        lines = re.findall(r"^step (\d+)/\d+  (loss .*?)(?:  \S+ steps/s.*)?$", self.read(), re.M)
        return [(int(step), figures) for step, figures in lines]

    def read(self):
        return self.path.read_text()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._file.close()


def whole_state(folder):
    """Everything that a run has saved of its latest step."""
    latest = max((folder / "steps").iterdir(), key=lambda path: int(path.name))
    names = ("params", "ema", "state", "statistics")
    with ocp.PyTreeCheckpointer() as reader:
        return {name: reader.restore(latest / name) for name in names if (latest / name).exists()}


def unfinished(folder):
    return [p for p in (folder / "steps").glob("*") if "tmp" in p.name]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "transformer"])
def test_a_run_that_is_killed_at_any_moment_is_bitwise_one_that_was_not(stage, trained, tmp_path):
    """Five kills, each third one while a step is being saved; all steps since are taken again."""
    seed = int.from_bytes(os.urandom(8))
    print("seed of the moments:", seed)  # of a failure
    rng = np.random.default_rng(seed)
    kills = number_of_kills(5)
    steps, whole, killed = 60 * kills, tmp_path / "whole", tmp_path / "killed"
    command = [VAE] if stage == "vae" else [TRANSFORMER, "--vae", str(trained / "vae")]
    command += ["--data.processes", "2"]
    uninterrupted = Log(whole, steps, *command)
    assert uninterrupted.process.wait() == 0
    expected = dict(uninterrupted.steps())
    assert sorted(expected) == list(range(1, steps + 1))

    told = []
    for kill in range(kills):
        log = Log(killed, steps, *command)
        taken = int(rng.integers(1, 50))  # and a part of the next step
        assert log.wait_for(lambda log=log, taken=taken: log.read().count("\nstep ") >= taken)
        time.sleep(rng.uniform(0.0, 0.05))
        if kill % 3 == 2:
            assert log.wait_for(lambda: unfinished(killed))
        log.kill()
        if kill % 3 == 2:
            assert unfinished(killed), "the save was quicker than the signal"
        told.append(log.steps())
        assert told[-1][-1][0] < steps
    last = Log(killed, steps, *command)
    assert last.process.wait() == 0
    told.append(last.steps())

    assert "continues after step" in last.read()
    again = sum(
        len({step for step, _ in before} & {step for step, _ in after})
        for before, after in itertools.pairwise(told)
    )
    assert again > 0
    for step, figures in (entry for run in told for entry in run):
        assert figures == expected[step], step
    check_equal(whole_state(killed), whole_state(whole))
    check_equal(weights(killed), weights(whole))


@pytest.mark.slow
def test_sigterm_saves_and_leaves_cleanly(tmp_path):
    process = start(VAE, tmp_path / "run", 100_000)
    wait_for_a_step(process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 0
    step = said.split("stopped and saved at step ")[1].split(";")[0]
    assert step in [file.name for file in (tmp_path / "run/steps").iterdir()]


@pytest.mark.slow
def test_a_second_run_of_one_folder_is_refused_while_the_first_goes_on(tmp_path):
    process = start(VAE, tmp_path / "run", 100_000)
    wait_for_a_step(process)
    second = start(VAE, tmp_path / "run", 100_000, stderr=subprocess.PIPE)
    _, error = second.communicate()
    assert second.returncode == 2
    assert f"is being written by process {process.pid} on" in error
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 0
