"""train.py from end to end: both stages on the procedural world, stopped, killed and resumed."""

import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ltx_jax.checkpoints import checkpoint
from train import main

ROOT = pathlib.Path(__file__).parents[1]
VAE = str(ROOT / "configs/shapes_tiny_vae.py")
TRANSFORMER = str(ROOT / "configs/shapes_tiny_transformer.py")


def check_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def start(file, output, steps, *more):
    """Starts train.py in a process of its own, on one device."""
    command = [sys.executable, str(ROOT / "train.py"), file, "--run.output", str(output), *more]
    command += ["--run.steps", str(steps), "--run.save_every", "2", "--run.log_every", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def finish(*arguments):
    """Trains to the end; returns what train.py said."""
    process = start(*arguments)
    said = process.communicate()[0]
    assert process.returncode == 0
    return said


def wait_for_a_step(process):
    while "step" not in process.stdout.readline():
        pass


def weights(folder):
    loaded = checkpoint.load(folder)
    return loaded.transformer_params, loaded.text_encoder, loaded.vae_params, loaded.statistics


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of both stages, four steps each."""
    folder = tmp_path_factory.mktemp("runs")
    finish(VAE, folder / "vae", 4)
    finish(TRANSFORMER, folder / "transformer", 4, "--vae", str(folder / "vae"))
    return folder


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(trained, tmp_path):
    finish(VAE, tmp_path / "vae", 2)
    assert "continues after step 2" in finish(VAE, tmp_path / "vae", 4)
    check_equal(weights(tmp_path / "vae"), weights(trained / "vae"))

    vae = ("--vae", str(trained / "vae"))
    finish(TRANSFORMER, tmp_path / "transformer", 2, *vae)
    finish(TRANSFORMER, tmp_path / "transformer", 4, *vae)
    check_equal(weights(tmp_path / "transformer"), weights(trained / "transformer"))


def test_a_transformer_run_is_complete_in_itself(trained):
    vae = checkpoint.load(trained / "vae")
    assert vae.transformer is None
    assert (np.asarray(vae.statistics.std) > 0).all()

    whole = checkpoint.load(trained / "transformer")
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


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_weights_of_one_that_was_not(tmp_path):
    finish(VAE, tmp_path / "whole", 40)
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = start(VAE, tmp_path / "killed", 40)
        wait_for_a_step(process)
        time.sleep(rng.uniform(0.0, 1.0))  # also while it saves
        process.kill()
        process.wait()
    finish(VAE, tmp_path / "killed", 40)
    check_equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_sigterm_saves_and_leaves_cleanly(tmp_path):
    process = start(VAE, tmp_path / "run", 100_000)
    wait_for_a_step(process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 0
    step = said.split("stopped and saved at step ")[1].split(";")[0]
    assert step in [file.name for file in (tmp_path / "run/steps").iterdir()]
