"""The shape of the package: imports go down, Flax stays where it belongs, files stay small."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "ltx_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# A module may import the floors below its own, and its own folder. Everything that has no entry
# is a command, on the top floor.
FLOORS = {
    "config": 0,
    "runtime": 1,
    "pixels": 1,
    "vocabulary": 1,
    "models": 2,
    "metrics": 3,
    "world": 2,
    "emoji": 3,
    "data": 4,
    "diffusion": 4,
    "checkpoints": 5,
    "inference": 6,
    "training": 7,
    "planning": 8,
    "sample": 9,
}
COMMANDS = 10
# Everything else sees `apply(params, ...)` and plain dicts.
FLAX = ("models/", "training/state.py", "runtime/sharding.py")
# What the networks and the sampler run without.
LIGHT = ("config", "runtime", "pixels", "models", "diffusion")
HEAVY = ("av", "tyro", "transformers", "safetensors", "torch", "tensorflow", "orbax", "optax")


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports(path: pathlib.Path) -> set[str]:
    """Absolute names of all that a file imports, at module level or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def part(name: str) -> str | None:
    """`models` of ltx_jax.models.vae; None outside the package and for the package itself."""
    package, _, rest = name.partition(".")
    return rest.partition(".")[0] if package == "ltx_jax" and rest else None


def floor(name: str) -> int:
    return FLOORS.get(name, COMMANDS)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path):
    mine = part(module_name(path))
    if mine is None:
        return  # ltx_jax/__init__.py names the public things, lazily
    for name in imports(path):
        theirs = part(name)
        if theirs is None or theirs == mine:
            continue
        assert floor(theirs) < floor(mine), f"{mine} may not import {name}"


def test_modules_of_a_package_import_each_other_in_no_circle():
    modules = {module_name(path): path for path in FILES if path.name != "__init__.py"}
    graph = {name: imports(path) & (set(modules) - {name}) for name, path in modules.items()}
    while graph:
        leaves = {name for name, needs in graph.items() if not needs & set(graph)}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in leaves}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_flax_stays_with_the_networks(path):
    place = path.relative_to(PACKAGE).as_posix()
    if not place.startswith(FLAX):
        assert "flax" not in {name.partition(".")[0] for name in imports(path)}


def test_no_file_passes_600_lines():
    scripts = [
        path
        for folder in ("tests", "configs", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    for path in [*FILES, *ROOT.glob("*.py"), *scripts]:
        assert len(path.read_text().splitlines()) <= 600, path


def test_networks_and_sampler_need_jax_flax_and_numpy_alone():
    names = [module_name(path) for path in FILES if part(module_name(path)) in LIGHT]
    program = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
loaded = {{name.partition(".")[0] for name in sys.modules}}
print(*sorted(loaded & set({HEAVY!r})))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
