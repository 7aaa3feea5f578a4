"""The edits of docs/extending.md: they apply, they are as short as the page says, they work."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/run.sh"))
NAMES = [path.name for path in EXAMPLES]


def edited_tree(example: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A copy of the sources with an example's new files in place and its edits applied."""
    for name in ("ltx_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "sample.py"):
        shutil.copy(ROOT / name, folder)
    if (example / "new").exists():
        shutil.copytree(example / "new", folder, dirs_exist_ok=True)
    if (example / "edit.diff").exists():
        subprocess.run(["git", "apply", str(example / "edit.diff")], cwd=folder, check=True)
    return folder


def size(example: pathlib.Path) -> tuple[int, int]:
    """Files that an example edits or adds, and the lines that it adds there: blank ones apart."""
    files = [path for path in (example / "new").rglob("*") if path.is_file()]
    lines = [line for path in files for line in path.read_text().splitlines() if line.strip()]
    diff = (example / "edit.diff").read_text() if (example / "edit.diff").exists() else ""
    lines += re.findall(r"^\+(?!\+\+).*\S.*$", diff, re.M)
    return len(files) + len(re.findall(r"^\+\+\+ ", diff, re.M)), len(lines)


@pytest.mark.parametrize("example", EXAMPLES, ids=NAMES)
def test_an_edit_applies_and_is_as_short_as_the_page_says(example, tmp_path):
    edited_tree(example, tmp_path)
    files, lines = size(example)
    page = (ROOT / "docs" / "extending.md").read_text()
    row = rf"\| `examples/{example.name}` \| [^|\n]+ \| {files} / {lines} \| \d+ / \d+ \|"
    assert re.search(row, page), (
        f"docs/extending.md does not say {files} / {lines} for {example.name}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=NAMES)
def test_an_edited_tree_trains_resumes_samples_and_exports(example, tmp_path):
    tree = edited_tree(example, tmp_path)
    environment = os.environ | {"PYTHON": sys.executable, "HERE": str(example), "PYTHONPATH": "."}
    result = subprocess.run(
        ["bash", "-euo", "pipefail", str(example / "run.sh")],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
