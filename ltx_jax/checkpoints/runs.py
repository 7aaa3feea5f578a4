"""Run folders of ltx-train: their files, the training state in them, and their networks.

RUN/config.json     the whole configuration, so that a run describes itself
RUN/steps/N/        Orbax: parameters, their average, the rest of the training state, checksums
RUN/damaged/N/      steps that could not be read, which training has set aside
RUN/vae/            the VAE a transformer is trained on, with its own config.json
RUN/latent_colours.json   what the latents look like, if `ltx-preview` was run for it or its VAE
RUN/base.json       path and hash of the checkpoint that an adapter belongs to (a run that trains an
                    adapter holds nothing else of that checkpoint, and no VAE)
RUN/lock            the process that writes the run now

RUN may be a local folder or an address, gs://.
"""

import collections
import contextlib
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers

from ltx_jax.checkpoints import keys, latent_colours_file, placement, tensors
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.checksums import checksums, first_difference
from ltx_jax.checkpoints.lock import Lock, is_address
from ltx_jax.checkpoints.run_config import (
    CONFIG,
    STEPS,
    StoredBase,
    StoredVAE,
    check_same,
    locate,
    read_config,
    read_vae,
    split,
    trains_adapter,
    write_base,
    write_config,
    write_vae,
)
from ltx_jax.config import (
    ExecutionConfig,
    RunConfig,
    TrainConfig,
    TrainTransformer,
    TrainVAE,
    UpsamplerConfig,
    VAEConfig,
)
from ltx_jax.models.vae import LatentStatistics
from ltx_jax.runtime import sharding

_LOCK = "lock"
_CHECKSUMS = "checksums"  # beside the parts of a step; steps of older versions have none

_log = logging.getLogger(__name__)


def _is_no_error_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


# Threads of Orbax log the traceback of every error of a save, which `Run` raises in one line.
logging.getLogger("absl").addFilter(_is_no_error_of_orbax)


class Run:
    """A run that this process trains: locks its folder, saves in the background, restores.

    Nothing but the lock is written before `begin`. A step folder appears under its name when it is
    complete, so a run that is killed while it saves keeps the previous step.

    Raises:
      ValueError: if the folder cannot be written, holds a run of another configuration or other
        things, or is being written by another process.
    """

    def __init__(self, cfg: TrainConfig):
        self.folder = locate(cfg.run.output)
        self._cfg = cfg
        self._saving: int | None = None
        self._made_anew: int | None = None  # a step whose save made the old place of a moved run
        self._lock: Lock | None = None
        if jax.process_index() == 0:
            self._lock = self._take()
        # If the folder is renamed during a save, the save is completed in the folder, rather than
        # in a new one at the old place. Processes that save together have to agree on a path.
        self._pinned = self.folder
        if self._lock is not None and jax.process_count() == 1:
            self._pinned = self._lock.pinned
        self._manager = _manager(self._pinned, cfg.run)

    def _take(self) -> Lock:
        if (self.folder / CONFIG).exists():
            # A run without a step may restart under any configuration: it has learned nothing,
            # and its first step may have run out of memory.
            if has_step(self.folder):
                check_same(read_config(self.folder), self._cfg, self.folder)
        elif self.folder.exists() and {file.name for file in self.folder.iterdir()} - {_LOCK}:
            raise ValueError(f"{self.folder} is not empty and no run: choose another --run.output")
        self.folder.mkdir(parents=True, exist_ok=True)
        return Lock(self.folder)

    @property
    def latest_step(self) -> int | None:
        """The last step saved."""
        return self._manager.latest_step()

    def begin(self, vae: Checkpoint | None = None, base: StoredBase | None = None) -> None:
        """Writes what describes the run: its configuration, and the VAE it is trained on, or in
        place of the VAE the base of an adapter."""
        if jax.process_index() == 0:
            write_config(self.folder, self._cfg)
            if base is not None:
                write_base(self.folder, base)
            (self.folder / STEPS).mkdir(exist_ok=True)
        if vae is not None and base is None:
            self._write_vae(vae)

    def _write_vae(self, checkpoint: Checkpoint) -> None:
        folder = self.folder / "vae"
        if (folder / CONFIG).exists() and has_step(self.folder):
            return
        if checkpoint.vae is None:
            raise ValueError("this checkpoint holds no VAE")
        channels = checkpoint.vae.latent_channels
        # As numpy arrays: Orbax takes an array that only one process has in no other form.
        identity = jax.tree.map(np.asarray, LatentStatistics.identity(channels))
        statistics = checkpoint.statistics or identity
        tree = {
            "params": checkpoint.vae_params,
            "statistics": {"mean": statistics.mean, "std": statistics.std},
        }
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "weights", tree, force=True)
        sums = checksums(tree)
        if jax.process_index() == 0:
            (folder / f"{_CHECKSUMS}.json").write_text(json.dumps(sums))
            if checkpoint.colours is not None:
                latent_colours_file.write(
                    self.folder / latent_colours_file.NAME, checkpoint.colours
                )
            # The configuration is written last: it marks the weights as complete.
            dtypes = collections.Counter()
            for x in jax.tree.leaves(checkpoint.vae_params):
                dtypes[np.dtype(x.dtype).name] += x.size
            [(main, _)] = dtypes.most_common(1)
            execution = ExecutionConfig(dtype=checkpoint.vae_dtype, param_dtype=main)
            write_vae(folder, StoredVAE(checkpoint.vae, execution))

    def save(self, step: int, parts: Mapping[str, Any], loss: float | None = None) -> None:
        """Begins to write named trees of arrays; the caller may donate them as soon as it returns.

        Args:
          step: how many steps the state has been trained for.
          parts: trees of arrays, by name.
          loss: validation loss at this step; None if there was no validation. The `run.keep_best`
            steps with the lowest losses are kept.

        Raises:
          ValueError: if this save cannot start or the previous one failed; names the last whole
            step.
        """
        self.wait()
        self._check_place()
        args: dict[str, Any] = {name: ocp.args.StandardSave(x) for name, x in parts.items()}
        args[_CHECKSUMS] = ocp.args.JsonSave({name: checksums(x) for name, x in parts.items()})
        if loss is not None and math.isnan(loss):
            loss = math.inf
        self._saving = step
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(**args),
                metrics=None if loss is None else {"loss": loss},
                force=True,
            )

    def check(self) -> None:
        """Raises the error of a failed background save, as `wait` does, but never waits."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises:
          ValueError: if it has failed, and names the last complete step; if the folder has been
            moved or deleted.
        """
        with self._explained():
            self._manager.wait_until_finished()
        step, self._saving = self._saving, None
        if step is not None:
            self._check_place(step)

    def _check_place(self, step: int | None = None) -> None:
        """Checks the lock; removes what saving a step made at the old place of a moved folder."""
        if self._lock is None:
            return
        try:
            self._lock.check()
        except ValueError:
            if step is not None and not (self.folder / CONFIG).exists():
                self._made_anew = step
                self._remove_made_anew(step)
            raise

    def _remove_made_anew(self, step: int) -> None:
        folder = self.folder / STEPS
        for path in [*folder.glob(f"{step}.*"), folder / str(step)]:
            _remove(path)
        for path in (folder, self.folder):
            with contextlib.suppress(OSError):  # it holds other things, or is not there
                path.rmdir()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:
            step, self._saving = self._saving, None
            self._check_place(step)  # a folder that is gone is the reason of whatever failed in it
            reason = str(error).strip().splitlines()[0].replace(str(self._pinned), str(self.folder))
            if "No space left" in str(error):
                reason = f"the disk is full ({reason})"
            self._discard_unfinished()
            steps = self._manager.all_steps(read=True)
            left = f"step {max(steps)} is whole" if steps else "there is no earlier one"
            raise ValueError(
                f"step {step} could not be saved in {self.folder}, {left}: {reason}"
            ) from error

    def _discard_unfinished(self) -> None:
        """Deletes what a failed save has written."""
        if jax.process_index() == 0:
            for path in (self._pinned / STEPS).glob("*.orbax-checkpoint-tmp*"):
                with contextlib.suppress(OSError):
                    path.rmtree()

    def restore(self, shapes: Mapping[str, Any]) -> dict[str, Any]:
        """Reads the latest step; `shapes` are trees of ShapeDtypeStruct with shardings.

        Damaged steps are set aside, with a notice, if one before them is whole.

        Raises:
          ValueError: if there is none, or none is whole.
        """
        step, parts = _restore_latest(self._manager, shapes, self.folder)
        for later in self._manager.all_steps():
            if later > step:
                (self.folder / "damaged").mkdir(exist_ok=True)
                aside = self.folder / "damaged" / str(later)
                if aside.exists():
                    aside.rmtree()
                (self.folder / STEPS / str(later)).rename(aside)
        self._manager.reload()
        return parts

    def close(self) -> None:
        """Waits for the last save, releases Orbax's threads and the lock.

        Raises:
          ValueError: as `wait` does.
        """
        try:
            self.wait()
            self._manager.close()
            if self._made_anew is not None:  # Orbax's threads may have written until now
                self._remove_made_anew(self._made_anew)
        finally:
            if self._lock is not None:
                self._lock.release()
                if not (self.folder / CONFIG).exists():  # `begin` was not called
                    self._lock.remove()


def _loss(metrics: Any) -> float:
    return metrics["loss"]


def _manager(folder: epath.Path, run: RunConfig | None = None) -> ocp.CheckpointManager:
    """Orbax' manager of a run's steps, which keeps them as `run` says; if None, it only reads."""
    if run is None:
        reading = ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=False)
        return ocp.CheckpointManager(folder / STEPS, options=reading)
    policies: list[Any] = [checkpoint_managers.LatestN(run.keep)]
    if run.keep_best:
        # BestN keeps the last steps of its order, so the order has to begin with the highest loss.
        best = checkpoint_managers.BestN(
            get_metric_fn=_loss,
            reverse=True,
            n=run.keep_best,
            keep_checkpoints_without_metrics=False,
        )
        policies.append(best)
    options = ocp.CheckpointManagerOptions(
        create=False,  # by `Run.begin`
        cleanup_tmp_directories=True,
        best_fn=_loss if run.keep_best else None,  # without it losses are not stored
        best_mode="min",
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
    )
    return ocp.CheckpointManager(folder / STEPS, options=options)


@contextlib.contextmanager
def _explaining_damage(what: str) -> Iterator[None]:
    """Turns what Orbax raises for damaged files into a ValueError of one line."""
    try:
        yield
    except Exception as error:
        # Orbax raises a bare Exception for an array of which a part is missing.
        damage = (ValueError, TypeError, AttributeError, LookupError, OSError)
        if not isinstance(error, damage) and type(error) is not Exception:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{what} cannot be restored: {reason[:200]}") from error


def _restore(
    manager: ocp.CheckpointManager, shapes: Mapping[str, Any], folder: epath.Path, step: int
) -> dict[str, Any]:
    """Reads a step, and compares its arrays with their checksums.

    Raises:
      ValueError: if it is damaged, or its arrays have other shapes.
    """
    what = f"step {step} of {folder}"
    args: dict[str, Any] = {name: ocp.args.StandardRestore(x) for name, x in shapes.items()}
    if (folder / STEPS / str(step) / _CHECKSUMS).exists():
        args[_CHECKSUMS] = ocp.args.JsonRestore()
    with _explaining_damage(what):
        restored = dict(manager.restore(step, args=ocp.args.Composite(**args)))
        stored = restored.pop(_CHECKSUMS, {})
        for name, sums in stored.items():
            if name in restored:
                _check_sums(restored[name], sums, name)
    return restored


def _check_sums(tree: Any, stored: Mapping[str, str], name: str) -> None:
    if array := first_difference(tree, stored):
        raise ValueError(f"{name}{array} is not what was saved: its checksum differs")


def _remove(folder: epath.Path) -> None:
    """Deletes a folder into which threads of a failed save may still write, if it is there."""
    for _ in range(50):
        if not folder.exists():
            return
        with contextlib.suppress(OSError):  # a file came in meanwhile
            folder.rmtree()
        time.sleep(0.1)


def _restore_latest(
    manager: ocp.CheckpointManager, shapes: Mapping[str, Any], folder: epath.Path
) -> tuple[int, dict[str, Any]]:
    """Reads the latest step that is whole, and logs which ones are not; returns its number too.

    Raises:
      ValueError: if there is no step, or none can be restored. One of several processes cannot
        know whether the others can restore a step: there, if the latest step is damaged.
    """
    problems: list[ValueError] = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            parts = _restore(manager, shapes, folder, step)
        except ValueError as error:
            if jax.process_count() > 1:
                advice = f"move {folder / STEPS / str(step)} away to use the step before"
                raise ValueError(f"{error}; {advice}") from error
            problems.append(error)
            continue
        for problem in problems:
            _log.warning("%s; step %d is used instead", problem, step)
        return step, parts
    if problems:
        raise ValueError(f"{problems[0]}; no earlier step is whole") from problems[0]
    raise ValueError(f"{folder} has no checkpoint yet: train it first")


def has_step(path: str | os.PathLike[str]) -> bool:
    """Whether a run has saved a step; without one it starts from scratch.

    Looks at the files itself, because a single process may call this: Orbax' managers may wait for
    those of the other processes.
    """
    steps = locate(path) / STEPS
    return steps.exists() and any(entry.name.isdecimal() for entry in steps.iterdir())


def restore(cfg: TrainConfig, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the latest step of a run that another process may be training.

    Raises:
      ValueError: if there is none, or it has another configuration.
    """
    folder = locate(cfg.run.output)
    check_same(read_config(folder), cfg, folder)
    with contextlib.closing(_manager(folder)) as manager:
        return _restore_latest(manager, shapes, folder)[1]


def _placed(boxed: Any, mesh: Mesh | None) -> Any:
    """Shapes with shardings: by their logical axes, or all on the default device."""
    if mesh is not None:
        return sharding.described(boxed, mesh)
    [default] = jnp.zeros(()).devices()
    where = SingleDeviceSharding(default)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), sharding.unbox(boxed)
    )


def _statistics_shapes(channels: int, mesh: Mesh | None) -> Any:
    vector = jax.ShapeDtypeStruct((channels,), np.float32)
    return _placed({"mean": vector, "std": vector}, mesh)


def load_run(
    path: str | os.PathLike[str], *, mesh: Mesh | None = None, ema: bool = True
) -> Checkpoint:
    """Reads the networks of a step of a run.

    Args:
      path: the run's folder, which stands for its latest step, or RUN/steps/N.
      mesh: lays the parameters out by their logical axes; None puts them on the default device.
      ema: the averaged parameters rather than those of the last step.

    Raises:
      ValueError: if it is no run, has no such step, does not fit its own configuration, or a small
        array of it holds NaN or infinity.
    """
    folder, step = split(path)
    cfg = read_config(folder)
    if trains_adapter(cfg):
        raise ValueError(f"{folder} holds an adapter, and no network of its own")
    with contextlib.closing(_manager(folder)) as manager:
        part, dtype = "ema" if ema else "params", cfg.execution.param_dtype
        checkpoint = Checkpoint(metadata={"run": folder.name, "weights": part})

        def restore(shapes: Mapping[str, Any]) -> dict[str, Any]:
            used, parts = _restore_step(manager, shapes, folder, step)
            checkpoint.metadata["step"] = str(used)
            checkpoint.source_hash = _fingerprint(folder / STEPS / str(used))
            placement.check_finite(parts, f"step {used} of {folder}")
            return parts

        if isinstance(cfg.model, VAEConfig):
            shapes = {
                part: _placed(keys.vae_boxed(cfg.model, dtype), mesh),
                "statistics": _statistics_shapes(cfg.model.latent_channels, mesh),
            }
            restored = restore(shapes)
            checkpoint.vae, checkpoint.vae_dtype = cfg.model, cfg.execution.dtype
            checkpoint.vae_params = restored[part]
            checkpoint.statistics = LatentStatistics(**restored["statistics"])
            return checkpoint
        if isinstance(cfg.model, UpsamplerConfig):
            boxed = {"upsampler": keys.upsampler_boxed(cfg.model, dtype)}
            restored = restore({part: _placed(boxed, mesh)})[part]
            checkpoint.upsampler = cfg.model
            checkpoint.upsampler_params = restored["upsampler"]
            return checkpoint
        if not isinstance(cfg, TrainTransformer):
            raise ValueError(f"{folder} is a {type(cfg).__name__} run, and holds no model to load")
        boxed = {"transformer": keys.transformer_boxed(cfg.model, dtype)}
        if cfg.captions == "train":
            text_dtype = cfg.text_execution.param_dtype
            boxed["text_encoder"] = keys.text_encoder_boxed(cfg.text_encoder, text_dtype)
        restored = restore({part: _placed(boxed, mesh)})[part]
    checkpoint.transformer = cfg.model
    checkpoint.transformer_params = restored["transformer"]
    checkpoint.scheduler = cfg.scheduler
    checkpoint.allowed_inference_steps = cfg.inference_steps
    checkpoint.settings = cfg.sampling_settings()
    if "text_encoder" in restored:
        encoder = restored["text_encoder"]
        checkpoint.text_encoder = (cfg.text_encoder, encoder, cfg.max_caption_tokens)
    vae = load_vae(folder, mesh=mesh)
    if vae is None:
        raise ValueError(f"{folder} has lost its VAE: there is no {folder / 'vae' / CONFIG}")
    checkpoint.vae, checkpoint.vae_params = vae.vae, vae.vae_params
    checkpoint.vae_dtype = vae.vae_dtype
    checkpoint.statistics = vae.statistics
    return checkpoint


class RunAdapter(NamedTuple):
    """The adapter of a step of a run.

    Attributes:
      cfg: configuration of the run.
      adapter: a tree as in `models/adapter.py`, on the default device.
      step: the step.
      source_hash: hash of its files.
    """

    cfg: TrainTransformer | TrainVAE
    adapter: Any
    step: int
    source_hash: str


def load_adapter(path: str | os.PathLike[str], *, ema: bool = True) -> RunAdapter:
    """Reads the adapter of a step of a run.

    Args:
      path: as in `load_run`.
      ema: as in `load_run`.

    Raises:
      ValueError: as `load_run`, or if the run trains no adapter.
    """
    folder, step = split(path)
    cfg = read_config(folder)
    if not trains_adapter(cfg):
        raise ValueError(f"{folder} is a run that trains no adapter")
    part = "ema" if ema else "params"
    boxed = keys.adapter_boxed(cfg.model, cfg.adapter, cfg.execution.param_dtype)
    with contextlib.closing(_manager(folder)) as manager:
        shapes = {part: _placed({"adapter": boxed}, None)}
        used, parts = _restore_step(manager, shapes, folder, step)
    return RunAdapter(cfg, parts[part]["adapter"], used, _fingerprint(folder / STEPS / str(used)))


def _restore_step(
    manager: ocp.CheckpointManager, shapes: Mapping[str, Any], folder: epath.Path, step: int | None
) -> tuple[int, dict[str, Any]]:
    """Reads a step, or the latest one that is whole; returns its number too."""
    if step is None:
        return _restore_latest(manager, shapes, folder)
    if step not in manager.all_steps():
        listed = ", ".join(map(str, sorted(manager.all_steps())))
        raise ValueError(f"{folder} has no step {step}: it keeps {listed}")
    return step, _restore(manager, shapes, folder, step)


def _fingerprint(folder: epath.Path) -> str:
    """Hash of a step's files, or of its address if they would have to be downloaded."""
    if is_address(folder):
        return hashlib.sha256(str(folder).encode()).hexdigest()
    return tensors.fingerprint(sorted(p for p in Path(folder).rglob("*") if p.is_file()))


def load_vae(path: str | os.PathLike[str], *, mesh: Mesh | None = None) -> Checkpoint | None:
    """Reads the VAE that is stored in a transformer's run; None if there is none."""
    folder = locate(path) / "vae"
    if not (folder / CONFIG).exists():
        return None
    cfg, execution = read_vae(folder)
    shapes = {
        "params": _placed(keys.vae_boxed(cfg, execution.param_dtype), mesh),
        "statistics": _statistics_shapes(cfg.latent_channels, mesh),
    }
    sums = folder / f"{_CHECKSUMS}.json"
    with _explaining_damage(f"the VAE in {folder}"), ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(folder / "weights", shapes)
        if sums.exists():
            _check_sums(restored, json.loads(sums.read_text()), "")
    placement.check_finite(restored, f"the VAE in {folder}")
    statistics = LatentStatistics(**restored["statistics"])
    return Checkpoint(
        vae=cfg,
        vae_params=restored["params"],
        vae_dtype=execution.dtype,
        statistics=statistics,
    )
