"""What an installed package offers, and what the repository promises on its first screen."""

import pathlib
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv

import pytest

import ltx_jax

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("name", ltx_jax.__all__)
def test_the_public_names_exist(name):
    assert getattr(ltx_jax, name).__name__ == name


def test_the_package_alone_imports_nothing_heavy():
    program = (
        "import sys, ltx_jax; print(*sorted({'jax', 'flax', 'tyro', 'av'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.split() == []


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'LTXPipelin'"):
        ltx_jax.LTXPipelin  # noqa: B018


def test_torch_is_needed_by_tests_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=\[]", line)[0] for line in project["dependencies"]}
    assert not names & {"torch", "diffusers", "tensorflow", "opencv-python-headless"}
    assert {"jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers"} <= names


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of the commands of a wheel, installed into a new environment.

    What the package depends on comes from the environment of the tests.
    """
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    place = sysconfig.get_path("purelib", vars={"base": str(folder / "venv")})
    (wheel,) = folder.glob("*.whl")
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    target = ["--python", str(folder / "venv/bin/python"), "install", *options, str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *target], check=True, capture_output=True)
    (pathlib.Path(place) / "tests.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "venv/bin"


def run(program, *arguments, folder, status=0):
    command = [str(program), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert result.returncode == status, result.stderr
    return result


@pytest.mark.slow
def test_an_installed_package_has_its_commands_and_its_configs(installed, tmp_path):
    where = "import ltx_jax.config.files as f; print(f.__file__, f.folder())"
    for place in run(installed / "python", "-c", where, folder=tmp_path).stdout.split():
        assert place.startswith(str(installed.parent))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for script in scripts:
        assert f"usage: {script} " in run(installed / script, "--help", folder=tmp_path).stdout
    small = ("--run.steps", 2, "--run.log_every", 1, "--run.output", "run")
    run(installed / "ltx-train", "shapes_tiny_vae", *small, folder=tmp_path)
    assert (tmp_path / "run/config.json").exists()
    run(installed / "ltx-export", "run", "exported", folder=tmp_path)
    assert (tmp_path / "exported/model.safetensors").exists()
    options = ("--config", "shapes", "--checkpoint", "nowhere.safetensors", "--prompt", "a")
    error = run(installed / "ltx-sample", *options, folder=tmp_path, status=2).stderr
    assert error.startswith("ltx-sample: error: ")
    assert "nowhere.safetensors" in error
    error = run(installed / "ltx-train", "ltxv_2c", folder=tmp_path, status=2).stderr
    assert "did you mean 'ltxv_2b'" in error
