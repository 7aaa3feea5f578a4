"""Run directories of train.py: what a run is made of, where it stands, and its networks.

RUN/config.json     the whole configuration, so that a run describes itself
RUN/steps/N/        Orbax: parameters, their average, and the rest of the training state
RUN/vae/            the VAE a transformer is trained on, with its own config.json
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding

from ltx_jax import sharding
from ltx_jax.checkpoints import keys, tensors
from ltx_jax.checkpoints.contents import Checkpoint
from ltx_jax.config import T5Config, TrainTransformer, TrainVAE, VAEConfig
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.models.vae import LatentStatistics

_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (TrainVAE, TrainTransformer, VAEConfig)}
_CONFIG = "config.json"
# Parts of a configuration that may differ when a run goes on.
_FREE = ("run", "mesh")


def is_run(path: Path) -> bool:
    """Whether a folder is a run of train.py."""
    try:
        return json.loads((path / _CONFIG).read_text()).get("type") in (
            "TrainVAE",
            "TrainTransformer",
        )
    except (OSError, ValueError, AttributeError):
        return False


def write_config(folder: Path, cfg: Any) -> None:
    """Writes a configuration with the name of its type."""
    content = {"type": type(cfg).__name__, "config": dataclasses.asdict(cfg)}
    text = json.dumps(content, indent=2) + "\n"
    tensors.write_atomically(folder / _CONFIG, [text.encode()])


def read_config(folder: Path) -> Any:
    """Reads what `write_config` wrote; fields that the file lacks take their defaults.

    Raises:
      ValueError: if it is no such file, or names a field that does not exist.
    """
    file = folder / _CONFIG
    try:
        content = json.loads(file.read_text())
        kind = _KINDS[content["type"]]
        return _build(kind, content["config"], "config")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is no configuration of a run: {error!r}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _build(kind: Any, value: Any, where: str) -> Any:
    """The inverse of `dataclasses.asdict` followed by JSON."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise ValueError(f"{where} has no field {unknown[0]!r}")
        fields = {name: _build(hints[name], v, f"{where}.{name}") for name, v in value.items()}
        return kind(**fields)  # pyright: ignore[reportCallIssue]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        tuples = [arg for arg in args if typing.get_origin(arg) is tuple]
        return _build(tuples[0], value, where) if tuples and isinstance(value, list) else value
    if origin is tuple:
        inner = args[:1] * len(value) if args[1:] == (...,) else args
        return tuple(_build(t, v, where) for t, v in zip(inner, value, strict=True))
    return float(value) if kind is float else value


def check_same(stored: Any, wanted: Any, folder: Path) -> None:
    """Refuses to go on with a run under another configuration; `run` and `mesh` may differ.

    Raises:
      ValueError: naming the first field that differs.
    """
    if type(stored) is not type(wanted):
        raise ValueError(
            f"{folder} holds a {type(stored).__name__} run, not {type(wanted).__name__}: "
            "choose another --run.output"
        )
    pairs = zip(_flat(stored), _flat(wanted), strict=False)
    for (name, old), (other, new) in pairs:
        if name.startswith(_FREE) and name != "run.seed":
            continue
        if (name, old) != (other, new):
            raise ValueError(
                f"{folder} was started with {name} = {old!r}, and now it is {new!r}: choose "
                "another --run.output, or remove that folder"
            )


def _flat(cfg: Any, prefix: str = "") -> list[tuple[str, Any]]:
    items = []
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            items += _flat(value, f"{prefix}{field.name}.")
        else:
            items.append((prefix + field.name, value))
    return items


class Run:
    """A run that is being trained: opens or starts it, saves, restores.

    A step folder appears under its name when it is complete, so a run that is killed while it
    saves keeps the one before.

    Raises:
      ValueError: if the folder cannot be written, or holds a run of another configuration.
    """

    def __init__(self, cfg: TrainVAE | TrainTransformer):
        self.folder = Path(cfg.run.output).expanduser().absolute()
        if (self.folder / _CONFIG).exists():
            check_same(read_config(self.folder), cfg, self.folder)
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty and no run: choose another --run.output")
        write_config(self.folder, cfg)
        self._manager = _manager(self.folder, keep=cfg.run.keep)

    @property
    def latest_step(self) -> int | None:
        """The last step saved."""
        return self._manager.latest_step()

    def save(self, step: int, parts: Mapping[str, Any]) -> None:
        """Writes named trees of arrays; they may be changed (donated) afterwards."""
        args = {name: ocp.args.StandardSave(tree) for name, tree in parts.items()}
        self._manager.save(step, args=ocp.args.Composite(**args), force=True)
        self._manager.wait_until_finished()

    def restore(self, shapes: Mapping[str, Any]) -> dict[str, Any]:
        """Reads the latest step; `shapes` are trees of ShapeDtypeStruct with shardings."""
        return _restore(self._manager, shapes, self.folder)

    def write_vae(self, checkpoint: Checkpoint) -> None:
        """Writes the VAE of a checkpoint beside the steps, once."""
        folder = self.folder / "vae"
        if (folder / _CONFIG).exists():
            return
        if checkpoint.vae is None:
            raise ValueError("this checkpoint holds no VAE")
        channels = checkpoint.vae.latent_channels
        statistics = checkpoint.statistics or LatentStatistics(
            np.zeros(channels, np.float32), np.ones(channels, np.float32)
        )
        tree = {
            "params": checkpoint.vae_params,
            "statistics": {"mean": statistics.mean, "std": statistics.std},
        }
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "weights", tree, force=True)
        write_config(folder, checkpoint.vae)  # last: it says that the weights are complete

    def close(self) -> None:
        """Releases Orbax's threads."""
        self._manager.close()


def _manager(folder: Path, keep: int | None = None) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=keep is not None,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=keep is not None,
    )
    return ocp.CheckpointManager(folder / "steps", options=options)


def _restore(
    manager: ocp.CheckpointManager, shapes: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    args = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
    step = manager.latest_step()
    try:
        return dict(manager.restore(step, args=ocp.args.Composite(**args)))
    except (ValueError, KeyError, OSError) as error:
        first = str(error).strip().splitlines()[:1]
        raise ValueError(f"step {step} of {folder} cannot be restored: {first}") from error


def _placed(boxed: Any, mesh: Mesh | None) -> Any:
    """Shapes with shardings: by their logical axes, or all on the first device."""
    shapes = sharding.unbox(boxed)
    if mesh is None:
        where = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes)
    else:
        where = sharding.shardings(boxed, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where
    )


def _text_encoder_boxed(cfg: T5Config) -> Any:
    ids = jax.ShapeDtypeStruct((1, 1), np.int32)
    return jax.eval_shape(T5Encoder(cfg).init, jax.random.key(0), ids, ids)["params"]


def _statistics_shapes(channels: int, mesh: Mesh | None) -> Any:
    vector = jax.ShapeDtypeStruct((channels,), np.float32)
    return _placed({"mean": vector, "std": vector}, mesh)


def load_run(path: str | Path, *, mesh: Mesh | None = None, ema: bool = True) -> Checkpoint:
    """Reads the networks of the latest step of a run.

    Args:
      path: the run's folder.
      mesh: lays the parameters out by their logical axes; None puts them on the default device.
      ema: the averaged parameters rather than those of the last step.

    Raises:
      ValueError: if it is no run, has no step yet, or does not fit its own configuration.
    """
    folder = Path(path).expanduser().absolute()
    cfg = read_config(folder)
    if not (folder / "steps").is_dir():
        raise ValueError(f"{folder} has no checkpoint yet: train it first")
    manager = _manager(folder)
    try:
        step = manager.latest_step()
        if step is None:
            raise ValueError(f"{folder} has no checkpoint yet: train it first")
        part = "ema" if ema else "params"
        checkpoint = Checkpoint(metadata={"run": str(folder), "step": str(step), "weights": part})
        files = sorted(file for file in (folder / "steps" / str(step)).rglob("*") if file.is_file())
        checkpoint.source_hash = tensors.fingerprint(files)
        if isinstance(cfg, TrainVAE):
            shapes = {
                part: _placed(keys.vae_boxed(cfg.model), mesh),
                "statistics": _statistics_shapes(cfg.model.latent_channels, mesh),
            }
            restored = _restore(manager, shapes, folder)
            checkpoint.vae = cfg.model
            checkpoint.vae_params = restored[part]
            checkpoint.statistics = LatentStatistics(**restored["statistics"])
            return checkpoint
        boxed = {"transformer": keys.transformer_boxed(cfg.model)}
        if cfg.captions == "train":
            boxed["text_encoder"] = _text_encoder_boxed(cfg.text_encoder)
        restored = _restore(manager, {part: _placed(boxed, mesh)}, folder)[part]
    finally:
        manager.close()
    checkpoint.transformer = cfg.model
    checkpoint.transformer_params = restored["transformer"]
    checkpoint.scheduler = cfg.scheduler
    if cfg.captions == "train":
        params = restored["text_encoder"]
        checkpoint.text_encoder = (cfg.text_encoder, params, cfg.max_caption_tokens)
    vae = load_vae(folder, mesh=mesh)
    if vae is None:
        raise ValueError(f"{folder} has lost its VAE: there is no {folder / 'vae' / _CONFIG}")
    checkpoint.vae, checkpoint.vae_params = vae.vae, vae.vae_params
    checkpoint.statistics = vae.statistics
    return checkpoint


def load_vae(path: str | Path, *, mesh: Mesh | None = None) -> Checkpoint | None:
    """Reads the VAE that a transformer run was started with; None if it holds none."""
    folder = Path(path).expanduser().absolute() / "vae"
    if not (folder / _CONFIG).exists():
        return None
    cfg = read_config(folder)
    shapes = {
        "params": _placed(keys.vae_boxed(cfg), mesh),
        "statistics": _statistics_shapes(cfg.latent_channels, mesh),
    }
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(folder / "weights", shapes)
    statistics = LatentStatistics(**restored["statistics"])
    return Checkpoint(vae=cfg, vae_params=restored["params"], statistics=statistics)
