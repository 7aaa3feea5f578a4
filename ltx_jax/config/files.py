"""Finds config files by the name of one that ships with the package, or by path, and reads them.

Python files are run. Sampling settings may also be JSON (as written beside every video) or YAML (as
in the official repository). Files with another ending are refused without being read.
"""

import dataclasses
import re
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ltx_jax.config import (
    adapters,
    command_line,
    distillation,
    networks,
    official_yaml,
    preparation,
    sampling,
    training,
)
from ltx_jax.config.from_json import build, nearest, parse_json
from ltx_jax.config.sampling import SampleConfig

_YAML = (".yaml", ".yml")
_ENDINGS = (".py", ".json", *_YAML)
_SCHEMA = (adapters, distillation, networks, preparation, sampling, training)


def folder() -> Path:
    """The folder of the configs that ship: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def names() -> dict[str, Path]:
    """The configs that ship: each by `folder/name` and by its bare name."""
    return dict(_names())


def _names() -> Iterator[tuple[str, Path]]:
    for path in sorted(folder().rglob("*.py")):
        yield path.stem, path
        yield path.relative_to(folder()).with_suffix("").as_posix(), path


def find(name: str) -> Path:
    """The file of a config.

    Args:
      name: name of a shipped config (`ltxv_2b`, `sample/shapes`, `shapes`), or the path of a file.

    Raises:
      ValueError: if there is no such config (with the most similar name), or if the file's ending
        is not one of a config.
    """
    path = Path(name)
    if path.suffix in _ENDINGS:
        if path.is_file():
            return path
        raise ValueError(f"there is no file {name}{nearest(path.stem, names())}")
    shipped = names()
    if name in shipped:
        return shipped[name]
    if path.is_file():
        raise ValueError(f"{name} is not a config: its name must end in {', '.join(_ENDINGS)}")
    raise ValueError(f"there is no config {name!r}{nearest(name, shipped)}")


def load(name: str, overrides: Sequence[str] = (), *, program: str | None = None) -> Any:
    """Reads `config` from a Python file, then applies `--group.field value`.

    Args:
      name: as `find` takes it; `FILE.py:NAME` reads another variable than `config`.
      overrides: settings from the command line.
      program: the command's name in the `--help` of the overrides.

    Raises:
      ValueError: if there is no such file, if it is not Python, if it does not define the variable
        or sets a field that does not exist, or if there are overrides and no tyro.
    """
    name, variable = _split(name)
    file = find(name)
    if file.suffix != ".py":
        raise ValueError(f"{file} cannot be used: this command takes a Python config (.py)")
    try:
        namespace = runpy.run_path(str(file))
    except TypeError as error:
        if ".__init__()" not in str(error):
            raise
        raise ValueError(f"{file}: {_explain(error)}") from error
    if variable not in namespace:
        raise ValueError(f"{file} defines no {variable!r}")
    default = namespace[variable]
    if not overrides:
        return default
    try:
        return command_line.parse(overrides, default, prog=program)
    except ImportError as error:
        raise ValueError(
            f"settings on the command line ({overrides[0]}) need tyro, which is not installed: "
            "pip install tyro, or set them in a config file"
        ) from error


def _split(name: str) -> tuple[str, str]:
    """Splits FILE.py:NAME into the file and the variable; without NAME this is `config`."""
    match = re.fullmatch(r"(.+\.py):(\w+)", name)
    return (match[1], match[2]) if match else (name, "config")


def _explain(error: TypeError) -> str:
    """What a constructor complains about, with the field that was meant."""
    match = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    kinds = [vars(module).get(match[1]) for module in _SCHEMA] if match else []
    kind = next(filter(None, kinds), None)
    if match is None or kind is None:
        return str(error)
    if match[2] in (field.name for field in dataclasses.fields(networks.ExecutionConfig)):
        return (
            f"{match[1]} has no field {match[2]!r}, which is a field of ExecutionConfig: set it in "
            "the config's `execution`"
        )
    fields = [field.name for field in dataclasses.fields(kind)]
    return f"{match[1]} has no field {match[2]!r}{nearest(match[2], fields)}"


def load_sampling(name: str) -> SampleConfig:
    """Reads sampling settings.

    Args:
      name: as `find` takes it: a Python config, the JSON beside a video, or an official pipeline
        config in YAML.

    Raises:
      ValueError: if there is no such config, or if it does not hold sampling settings.
    """
    file = find(_split(name)[0])
    if file.suffix == ".json":
        settings = read_sampling_json(file)
    elif file.suffix in _YAML:
        settings = official_yaml.read(file)
    else:
        settings = load(name)
        if not isinstance(settings, SampleConfig):
            raise ValueError(
                f"{name} holds a {type(settings).__name__}, not sampling settings: take a config "
                "of configs/sample, the JSON beside a video or an official YAML"
            )
    return dataclasses.replace(settings, config=str(file))


def read_sampling_json(path: Path) -> SampleConfig:
    """Reads the settings from the JSON beside a video.

    Raises:
      ValueError: if the file cannot be read or does not hold sampling settings.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise ValueError(
            f"{path} holds no sampling settings: take a JSON that ltx-sample writes beside a video"
        )
    return build(SampleConfig, content["settings"], f"{path}: settings")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      ValueError: if it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    return parse_json(text, str(path))


def read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Raises:
      ValueError: if it cannot be read, or holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content
