"""The pages of the documentation: their links, their commands and the names that they mention."""

import ast
import contextlib
import importlib
import importlib.util
import pathlib
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from ltx_jax import config
from ltx_jax.config import files

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("ltx_jax/assets/*/MODEL_CARD.md"),
    )
)
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.py"))
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# Words in capitals stand for the reader's own.
PLACEHOLDERS = {"NAME", "CONFIG", "TARGET", "CHECKPOINT", "CLIPS"}


def code(page: str) -> str:
    """The lines of a page that are code: indented by four, or fenced without a language."""
    text = (ROOT / page).read_text()
    if page.endswith(".py"):
        text = ast.get_docstring(ast.parse(text)) or ""
        return "\n".join(line.strip() for line in text.splitlines() if line.startswith(" "))
    fenced = "\n".join(re.findall(r"^```(?:sh|text)?\n(.*?)^```", text, re.M | re.S))
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return "\n".join([fenced, *re.findall(r"^    (\S.*|  .*)$", text, re.M)])


def commands(page: str, *programs: str) -> list[list[str]]:
    """The commands of a page that call one of `programs`, as lists of words without comments."""
    lines = re.sub(r"\\\n\s*", " ", code(page)).splitlines()
    found = []
    for line in lines:
        for part in line.split("&&"):
            words = shlex.split(part, comments=True) if "ltx-" in part or "python" in part else []
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words and pathlib.Path(words[0]).name in programs:
                found.append([pathlib.Path(words[0]).name, *words[1:]])
    return found


EXAMPLES = [
    pytest.param(page, words, id=f"{page}: {' '.join(words)}"[:90])
    for page in (*PAGES, *CONFIGS)
    for words in commands(page, *SCRIPTS)
]


def test_the_pages_hold_commands():
    programs = {example.values[1][0] for example in EXAMPLES}
    assert programs == set(SCRIPTS)
    assert len(EXAMPLES) > 40


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """The calls of the work behind every command, which is not done."""
    pytest.importorskip("torch", reason="ltx_jax.prepare.aesthetics imports it")
    calls = []

    def record(place, value=None):
        module, name = place.split(":")
        monkeypatch.setattr(
            importlib.import_module(module), name, lambda *a, **k: calls.append((place, a)) or value
        )

    record("ltx_jax.training.loop:train")
    record("ltx_jax.training.loop:evaluate")
    record("ltx_jax.planning.plan:prepare")
    record("ltx_jax.planning.plan:plan")
    record("ltx_jax.inference.make_videos:make_videos")
    record("ltx_jax.inference.encode_dataset:encode")
    record("ltx_jax.training.distillation.paths:sample_paths")
    record("ltx_jax.export:export", [])
    record("ltx_jax.checkpoints.adapter_export:extract")
    record("ltx_jax.checkpoints.adapter_export:write_trained")
    record("ltx_jax.prepare.__main__:prepare")
    record("ltx_jax.prepare.aesthetics:main")
    record("ltx_jax.prepare.emoji:prepare")
    record("ltx_jax.prepare.references:draw_references", [])
    record("ltx_jax.prepare.networks:prepare", ())
    record("ltx_jax.prepare.vocabulary:write_vocabulary")
    record("ltx_jax.evaluate.__main__:_run")
    record("ltx_jax.demo.__main__:_serve")
    record("ltx_jax.inference.fit_latent_colours:fit")
    record("ltx_jax.runtime.compiled:use_compilation_cache")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    with contextlib.chdir(tmp_path):
        yield calls


@pytest.mark.parametrize(("page", "words"), EXAMPLES)
def test_a_command_of_the_documentation_is_understood(page, words, recorded, capsys):
    program, *arguments = words
    if program in ("ltx-train", "ltx-encode", "ltx-prepare") and arguments[0] in PLACEHOLDERS:
        kind = {"ltx-train": "ltxv_2b", "ltx-encode": "ltxv_2b", "ltx-prepare": "clips"}[program]
        arguments[0] = kind
    arguments = [word for word in arguments if not re.fullmatch(r"\[.*|VALUE|\.\.\.\]", word)]
    module, name = SCRIPTS[program].split(":")
    main = getattr(importlib.import_module(module), name)
    if "--help" in arguments:
        arguments.remove("--help")
    status = main(arguments)
    assert status == 0, capsys.readouterr().err
    assert any(place != "ltx_jax.runtime.compiled:use_compilation_cache" for place, _ in recorded)


@pytest.mark.parametrize("page", PAGES)
def test_scripts_of_the_documentation_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(page, "python", "make", "python3.12"):
        match words[1:]:
            case ["-m", module, *_] if module not in ("venv", "pip"):
                assert importlib.util.find_spec(module), module
            case [script, *_] if script.endswith(".py"):
                assert (ROOT / script).is_file(), script
    for target in re.findall(r"^    make ([\w-]+)", (ROOT / page).read_text(), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("page", PAGES)
def test_python_of_the_documentation_names_what_exists(page):
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S):
        tree = ast.parse(block)
        names = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                pytest.importorskip(str(node.module).partition(".")[0])
                for alias in node.names:
                    names[alias.name] = pkgutil.resolve_name(f"{node.module}.{alias.name}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                thing = names.get(node.value.id)
                assert thing is None or hasattr(thing, node.attr), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES)
def test_links_files_and_settings_in_the_documentation_exist(page):
    text = (ROOT / page).read_text()
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)#\s]+?)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (folder / target).exists(), target
    for target in re.findall(r"`(\w+/[\w/]*\.py|(?:ltx_jax|configs|docs|tests)/[\w/]*)`", text):
        places = (ROOT / target, ROOT / "ltx_jax" / target, ROOT / "docs" / target)
        assert any(place.exists() for place in places), target
    for target in re.findall(r"(?:configs|benchmarks|tests)/[\w/]+\.py", text):
        assert (ROOT / target).exists(), target
    for kind, field in re.findall(r"`([A-Z]\w+Config)(?:\.(\w+))?", text):
        assert hasattr(config, kind), kind
        if field:
            cls = getattr(config, kind)
            names = cls.__dataclass_fields__.keys() | vars(cls).keys()
            assert field in names, f"{kind}.{field}"


@pytest.mark.slow
def test_the_smallest_path_of_the_training_page_runs(tmp_path):
    text = (ROOT / "docs/training.md").read_text().partition("<!-- run by the tests -->")[2]
    block = re.sub(r"\\\n\s*", " ", re.match(r"\s*((?:    .*\n)+)", text)[1])
    programs = []
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        programs.append(program)
        module, name = SCRIPTS[program].split(":")
        with contextlib.chdir(tmp_path):
            assert getattr(importlib.import_module(module), name)(arguments) == 0, line
    assert programs == ["ltx-train", "ltx-train", "ltx-sample", "ltx-export"]
    assert (tmp_path / "outputs/tiny.mp4").exists()
    assert (tmp_path / "exported/model.safetensors").exists()


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "LTXPipeline" in (tmp_path / "site/api/inference.html").read_text()


def test_every_config_that_ships_is_named_in_the_documentation():
    text = "".join((ROOT / page).read_text() for page in PAGES)
    for path in files.folder().glob("*.py"):
        assert path.stem in text, path


def test_every_guarantee_names_tests_that_exist():
    rows = [line.split("|") for line in (ROOT / "docs/robustness.md").read_text().splitlines()]
    guarantees = [row[2] for row in rows if len(row) == 5 and not re.fullmatch("-+| Test ", row[2])]
    assert len(guarantees) > 30
    for cell in guarantees:
        files = re.split(r"`(test_\w+)`: ", cell)[1:]
        assert files, cell
        for file, tests in zip(files[::2], files[1::2], strict=True):
            content = (ROOT / "tests" / f"{file}.py").read_text()
            for name in re.findall(r"`(test_\w+)`", tests):
                assert f"def {name}(" in content, f"{file}: {name}"
