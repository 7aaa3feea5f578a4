"""Reads and writes a run's configuration, also in older forms; says which settings may change.

Separate from `runs`, which needs a second to import Orbax.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from ltx_jax import config
from ltx_jax.checkpoints.lock import is_address
from ltx_jax.config import (
    ExecutionConfig,
    T5Config,
    TrainConfig,
    TrainTransformer,
    TrainVAE,
    VAEConfig,
    dump,
    subclasses,
)
from ltx_jax.runtime import files

CONFIG = "config.json"
STEPS = "steps"
BASE = "base.json"

_EXECUTION = tuple(field.name for field in dataclasses.fields(ExecutionConfig))
# Where older versions kept a network's execution: among the settings of the network itself.
_OLD_EXECUTION = {
    "model": "execution",
    "discriminator": "disc_execution",
    "text_encoder": "text_execution",
}


class StoredVAE(NamedTuple):
    """The configuration, in a run's folder, of the VAE that its transformer is trained on."""

    cfg: VAEConfig
    execution: ExecutionConfig


class StoredBase(NamedTuple):
    """The checkpoint that a run's adapter belongs to.

    Attributes:
      path: what `run.init_from` named; absolute if it is a local file or folder, and "embedded"
        with the model's name.
      source_hash: hash of the checkpoint (`Checkpoint.base_hash`), whatever its path.
      vae: what `vae` named, in the same form as `path`; "" if the adapter is of a VAE itself.
    """

    path: str
    source_hash: str
    vae: str = ""


def locate(path: str | os.PathLike[str]) -> epath.Path:
    """A run's folder, absolute, or its address.

    Raises:
      ValueError: for an address to which Orbax cannot write.
    """
    if not is_address(path):
        return epath.Path(path).expanduser().absolute()
    if not os.fspath(path).startswith("gs://"):
        raise ValueError(
            f"{path}: runs lie in folders and at gs:// addresses, others cannot be written: mount "
            "the place as a folder"
        )
    return epath.Path(path)


def split(path: str | os.PathLike[str]) -> tuple[epath.Path, int | None]:
    """Splits RUN or RUN/steps/N into the run's folder and the step, which is None for RUN."""
    folder = locate(path)
    is_step = folder.parent.name == STEPS and folder.name.isdecimal()
    if is_step and not (folder / CONFIG).exists():
        return folder.parent.parent, int(folder.name)
    return folder, None


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a run of ltx-train, or a step of one."""
    try:
        content = config.parse_json((split(path)[0] / CONFIG).read_text(), CONFIG)
        return content.get("type") in subclasses(TrainConfig)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def trains_adapter(cfg: TrainConfig) -> bool:
    """Whether a run trains an adapter, and no network of its own."""
    return isinstance(cfg, TrainTransformer | TrainVAE) and cfg.adapter.rank > 0


def write_config(folder: str | os.PathLike[str], cfg: TrainConfig) -> None:
    """Writes a configuration with the name of its type, whole or not at all."""
    content = dump(cfg)
    _write(folder, {"type": content.pop("type"), "config": content})


def read_config(path: str | os.PathLike[str]) -> Any:
    """Reads what `write_config` wrote; fields that the file lacks take their defaults.

    Older versions kept the settings of execution among those of the networks, and had T5s alone
    as text encoders; both are read.

    Args:
      path: the folder that it was written to, or a step of that run.

    Raises:
      ValueError: if it is no such file, or names a field that does not exist.
    """

    def parse(content: Any) -> Any:
        raw = dict(content["config"])
        for network, execution in _OLD_EXECUTION.items():
            if network in raw and execution not in raw:
                raw[network], raw[execution] = _split_execution(raw[network])
        if "text_encoder" in raw:
            raw["text_encoder"] = {"type": T5Config.__name__, **raw["text_encoder"]}
        return config.build(TrainConfig, {**raw, "type": content["type"]}, "config")

    return _read(path, parse)


def write_vae(folder: str | os.PathLike[str], vae: StoredVAE) -> None:
    """Writes the configuration of a VAE, whole or not at all."""
    parts = {"config": dataclasses.asdict(vae.cfg), "execution": dataclasses.asdict(vae.execution)}
    _write(folder, {"type": VAEConfig.__name__, **parts})


def read_vae(path: str | os.PathLike[str]) -> StoredVAE:
    """Reads what `write_vae` wrote.

    Raises:
      ValueError: as `read_config` does.
    """

    def parse(content: Any) -> StoredVAE:
        raw, settings = _split_execution(content["config"])
        settings = content.get("execution", settings)
        return StoredVAE(
            config.build(VAEConfig, raw, "config"),
            config.build(ExecutionConfig, settings, "execution"),
        )

    return _read(path, parse)


def write_base(folder: str | os.PathLike[str], base: StoredBase) -> None:
    """Writes which checkpoint the run's adapter belongs to, whole or not at all."""
    _write(folder, base._asdict(), BASE)


def read_base(path: str | os.PathLike[str]) -> StoredBase:
    """Reads what `write_base` wrote.

    Raises:
      ValueError: as `read_config` does.
    """
    return _read(path, lambda content: StoredBase(**content), BASE)


def check_same_base(path: str | os.PathLike[str], base: StoredBase) -> None:
    """Checks that a base is the one that the run in a folder was started with.

    Raises:
      ValueError: if it is not; names both.
    """
    stored = read_base(path)
    if stored.source_hash != base.source_hash:
        raise ValueError(
            f"the adapter in {path} belongs to {stored.path} (hash {stored.source_hash[:12]}), and "
            f"{base.path} is another checkpoint or has been changed ({base.source_hash[:12]}): "
            "name the right one with --run.init_from"
        )


def _split_execution(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separates a network's settings from those of its execution, which older versions mixed."""
    network = {name: value for name, value in raw.items() if name not in _EXECUTION}
    return network, {name: value for name, value in raw.items() if name in _EXECUTION}


def _write(folder: str | os.PathLike[str], content: Mapping[str, Any], name: str = CONFIG) -> None:
    text = json.dumps(content, indent=2) + "\n"
    if is_address(folder):
        (locate(folder) / name).write_text(text)
    else:
        files.atomic_write_text(Path(folder) / name, text)


def _read(path: str | os.PathLike[str], parse: Any, name: str = CONFIG) -> Any:
    file = split(path)[0] / name
    try:
        return parse(config.parse_json(file.read_text(), "its content"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no configuration of a run: {error!r}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def may_change(name: str) -> bool:
    """Whether a run can go on with another value of a setting, such as "execution.remat".

    It can if each step computes the same with either value, up to the order of its sums. This holds
    for the mesh, processes, loader threads, attention's form, what the gradient recomputes, and
    `run` except its seed. It does not hold for dtypes: steps would round differently, and
    parameters of another `param_dtype` would not be those that were saved.
    """
    if name == "run.seed":
        return False
    loader = ("data.threads", "data.processes", "data.prefetch")
    execution = ("execution.attention", "execution.remat")
    return name in (*loader, *execution) or name.startswith(("run.", "mesh.", "distributed."))


def check_same(stored: Any, current: Any, folder: epath.Path) -> None:
    """Refuses to continue a run with other settings, except those that `may_change`.

    Raises:
      ValueError: naming the first field that differs.
    """
    if type(stored) is not type(current):
        raise ValueError(
            f"{folder} holds a {type(stored).__name__} run, not {type(current).__name__}: "
            "choose another --run.output"
        )
    before, now = dict(_flat(stored)), dict(_flat(current))
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if old != new and not may_change(name):
            raise ValueError(
                f"{folder} was started with {name} = {old!r}, and now it is {new!r}: choose "
                "another --run.output, or remove that folder"
            )


def _flat(cfg: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if prefix:
        yield prefix + "type", type(cfg).__name__
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value
