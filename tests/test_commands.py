"""How the eight commands are called and how they end, whatever they do in between."""

import contextlib
import importlib
import os
import pathlib
import signal
import subprocess
import sys
import time
import tomllib

import pytest

from ltx_jax.runtime import cli

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# Arguments that are right as far as they are read before the work begins, and whose work ends with
# a mistake of the user.
MISTAKES = {
    "ltx-train": ["nowhere.py"],
    "ltx-sample": ["--prompt", "a", "--prompts_file", "b"],
    "ltx-encode": ["nowhere.py", "--output", "nowhere"],
    "ltx-export": ["nowhere", "nowhere_else"],
    "ltx-prepare": ["nowhere.py", "--input", "nowhere", "--output", "nowhere"],
    "ltx-evaluate": ["vae", "--checkpoint", "nowhere", "--data", "nowhere", "--vgg", "a"],
    "ltx-demo": ["--checkpoint", "nowhere.safetensors", "--prompt", "a", "--embeddings", "b"],
    "ltx-preview": ["embedded:shapes", "--clips", "2"],
}


def load(script):
    module, name = SCRIPTS[script].split(":")
    return getattr(importlib.import_module(module), name)


def test_there_are_eight_commands():
    assert set(SCRIPTS) == set(MISTAKES)


@pytest.mark.thorough
@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_a_command_imports_nothing_heavy_before_it_can_answer_ctrl_c(script):
    module = "ltx_jax." + script.removeprefix("ltx-")
    if script in ("ltx-prepare", "ltx-evaluate", "ltx-demo"):
        module += ".__main__"
    program = f"import sys, {module}; print(*{{'jax', 'numpy', 'tyro', 'rich'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_a_mistake_is_one_line_that_names_the_command(script, capsys, tmp_path):
    with contextlib.chdir(tmp_path):
        assert load(script)(MISTAKES[script]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{script}: error: ")
    assert error.count("\n") == 1


@pytest.mark.thorough
@pytest.mark.parametrize(
    "argv",
    [
        ["train.py"],
        ["sample.py"],
        *(["-m", f"ltx_jax.{script.removeprefix('ltx-')}"] for script in sorted(SCRIPTS)),
    ],
    ids=" ".join,
)
def test_help_names_the_command_as_it_was_called(argv):
    done = subprocess.run(
        [sys.executable, *argv, "--help"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    called = argv[0] if len(argv) == 1 else " ".join(["python", *argv])
    assert f"usage: {called} " in done.stdout.replace("\n", " ")


def test_a_command_returns_a_status(capsys):
    errors = []

    def run(arguments):
        assert arguments == ["a"]
        if errors:
            raise errors.pop()

    def status(error):
        errors.append(error)
        return main(["a"])

    main = cli.command("export", interrupted="nothing is left")(run)
    assert main(["a"]) == 0
    for kind in (ValueError, OSError, MemoryError, FloatingPointError):
        assert status(kind("the  value\nis wrong")) == 2
        assert capsys.readouterr().err == "ltx-export: error: the value is wrong\n"
    assert status(MemoryError()) == 2
    assert capsys.readouterr().err == "ltx-export: error: MemoryError\n"
    assert status(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "ltx-export: interrupted; nothing is left\n"
    with pytest.raises(ZeroDivisionError):  # a fault of ours keeps its traceback
        status(ZeroDivisionError())


WAITS = "import time\nprint('here', flush=True)\ntime.sleep(60)\n"
# As extension modules do, which call Python while they are being initialised.
SWALLOWS = "import time\nprint('here', flush=True)\ntry:\n  time.sleep(60)\nexcept {}: pass\n"


@pytest.mark.thorough
@pytest.mark.parametrize("script", ["train.py", "sample.py"])
@pytest.mark.parametrize("module", [WAITS, SWALLOWS.format("BaseException")])
def test_ctrl_c_while_importing_is_one_line(script, module, tmp_path):
    """A module that tells when JAX is imported, and then waits there."""
    (tmp_path / "jax.py").write_text(module)
    arguments = {"train.py": ["configs/shapes_tiny_vae.py"], "sample.py": ["--prompt", "a"]}[script]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        # In the background of a shell, where the tests may run, SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error.startswith(f"{script}: interrupted; ")
    assert error.count("\n") == 1


@pytest.mark.thorough
@pytest.mark.parametrize("program", [*sorted(SCRIPTS), "train.py", "sample.py"])
def test_ctrl_c_before_a_command_begins_is_quiet(program, tmp_path):
    """While it imports what answers Ctrl-C later on."""
    finder = """
import sys, time
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "ltx_jax.runtime.cli":
            print("here", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Finder())
"""
    (tmp_path / "sitecustomize.py").write_text(finder)
    command = [str(ROOT / program)]
    if program in SCRIPTS:
        module, name = SCRIPTS[program].split(":")
        command = ["-c", f"import sys\nfrom {module} import {name}\nsys.exit({name}())"]
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT, error  # 130 in a shell
    assert error == ""
