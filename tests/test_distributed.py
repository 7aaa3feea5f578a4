"""Two processes of four devices each train one model: stopped, killed, and taken over by one."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/shapes_tiny_vae.py")
# Both processes split parameters and batch; the second half of every batch is the second one's.
MESH = ["--mesh.data", "2", "--mesh.fsdp", "4"]


def start(folder, steps, devices, *more):
    """One process of train.py; what it says goes to a file."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    command = [sys.executable, str(ROOT / "train.py"), CONFIG, "--run.output", str(folder)]
    command += ["--run.steps", str(steps), "--run.save_every", "5", "--run.log_every", "1"]
    command += ["--optim.name", "adamw", *more]
    with folder.with_suffix(f".{time.time_ns()}.log").open("w") as log:
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment)
    return process, pathlib.Path(log.name)


def start_two(folder, steps, *more, last=()):
    """Two processes; `last` are further arguments of the second one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    where = ["--distributed.coordinator", f"localhost:{port}", "--distributed.num-processes", "2"]
    return [
        start(folder, steps, 4, *MESH, *where, "--distributed.process-id", str(i), *more, *own)
        for i, own in enumerate([(), last])
    ]


def losses(log):
    lines = re.findall(r"^step (\d+)/\d+  loss (\S+)", log.read_text(), re.M)
    return {int(step): float(loss) for step, loss in lines}


def wait_for_step(step, running):
    while step not in losses(running[0][1]):
        for process, log in running:
            assert process.poll() is None, log.read_text()
        time.sleep(0.01)


@pytest.mark.slow
def test_two_processes_are_killed_and_one_goes_on_with_the_same_losses(tmp_path):
    steps = 30
    whole = start_two(tmp_path / "whole", steps)
    for process, log in whole:
        assert process.wait() == 0, log.read_text()
    expected = losses(whole[0][1])
    assert sorted(expected) == list(range(1, steps + 1))
    assert losses(whole[1][1]) == {}  # only the first process writes

    killed = start_two(tmp_path / "killed", steps)
    wait_for_step(12, killed)
    for process, _ in killed:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = losses(killed[0][1])
    alone, log = start(tmp_path / "killed", steps, 8, "--mesh.data", "8")
    assert alone.wait() == 0, log.read_text()
    after = losses(log)
    assert "continues after step" in log.read_text()
    assert set(before) & set(after)  # some steps were taken again
    assert {**before, **after}.keys() == expected.keys()
    for step, loss in [*before.items(), *after.items()]:
        # Sums over the devices in another order, once a step.
        np.testing.assert_allclose(loss, expected[step], rtol=2e-4, err_msg=str(step))


@pytest.mark.slow
def test_a_signal_to_one_process_saves_and_stops_both_after_the_same_step(tmp_path):
    running = start_two(tmp_path / "run", 100_000)
    wait_for_step(3, running)
    running[1][0].send_signal(signal.SIGTERM)
    for process, log in running:
        assert process.wait() == 0, log.read_text()
    said = running[0][1].read_text()
    step = re.search(r"stopped and saved at step (\d+);", said)
    assert step is not None, said
    assert step[1] in [path.name for path in (tmp_path / "run/steps").iterdir()]


@pytest.mark.slow
def test_a_part_of_the_settings_of_several_processes_is_refused(tmp_path):
    process, log = start(tmp_path / "run", 5, 4, "--distributed.coordinator", "localhost:1234")
    assert process.wait() == 2
    assert "belong together" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_the_others_end_at_once_when_a_process_is_killed(dead, tmp_path):
    running = start_two(tmp_path / "run", 100_000)
    wait_for_step(3, running)
    running[dead][0].kill()
    killed = time.monotonic()
    process, log = running[1 - dead]
    assert process.wait(timeout=60) == 2, log.read_text()
    assert time.monotonic() - killed < 20
    [line] = [line for line in log.read_text().splitlines() if "has ended before" in line]
    assert line.startswith(f"train.py: error: process {dead} of 2 has ended before the others")
    assert log.read_text().rstrip().endswith(line)  # and no raw text of a runtime after it


@pytest.mark.slow
def test_a_process_that_fails_shows_its_own_error_and_ends_the_other(tmp_path):
    bad = ["--data.source", str(tmp_path / "nowhere")]
    (other, other_log), (process, log) = start_two(tmp_path / "run", 100_000, last=bad)
    assert process.wait(timeout=120) == 2
    assert other.wait(timeout=60) == 2
    [line] = [line for line in log.read_text().splitlines() if "error:" in line]
    assert str(tmp_path / "nowhere") in line
    [line] = [line for line in other_log.read_text().splitlines() if "error:" in line]
    assert line.startswith("train.py: error: process 1 of 2 has ended before the others")


# An error whose text takes a while, in the first of two processes.
FAIL = """
import socket, time
import jax
from ltx_jax.config import DistributedConfig
from ltx_jax.training import peers

class Slow(RuntimeError):
    def __str__(self):
        time.sleep(0.5)
        return "the error itself"

link, other = socket.socketpair()
jax.process_count, jax.process_index = lambda: 2, lambda: 0
peers._connect = lambda cfg: {1: link}
with peers.watched(DistributedConfig(), "train.py"):
    raise Slow
"""


def test_a_failing_process_lives_until_its_error_is_printed():
    command = [sys.executable, "-c", FAIL]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.rstrip().endswith("the error itself"), result.stderr


@pytest.mark.slow
def test_a_run_whose_folder_is_renamed_stops_and_makes_no_new_one(tmp_path):
    # Renamed between two saves: one that is under way would be completed at the old place.
    process, log = start(tmp_path / "run", 100_000, 4, "--run.save_every", "60")
    wait_for_step(61, [(process, log)])
    while not (tmp_path / "run/steps/60").exists():
        time.sleep(0.01)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert process.wait(timeout=120) == 2, log.read_text()
    last = log.read_text().splitlines()[-1]
    assert last.startswith(f"train.py: error: {tmp_path / 'run'} has been moved or deleted"), last
    assert not (tmp_path / "run").exists()
    assert "60" in [path.name for path in (tmp_path / "moved/steps").iterdir()]
