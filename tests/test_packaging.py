"""What an installed package offers, and what the repository promises on its first screen."""

import pathlib
import re
import subprocess
import sys
import tomllib

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


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_and_files_in_the_documentation_exist(page):
    text = (ROOT / page).read_text()
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (folder / target).exists(), target
    for target in re.findall(r"(?:configs|benchmarks|tests)/[\w/]+\.py", text):
        assert "NAME" in target or (ROOT / target).exists(), target
