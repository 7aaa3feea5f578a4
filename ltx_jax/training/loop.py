"""The training loop: steps, reports, validation, checkpoints, and a clean stop on a signal."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from ltx_jax.checkpoints import runs
from ltx_jax.checkpoints.lock import is_address
from ltx_jax.config import TrainConfig
from ltx_jax.runtime import sharding
from ltx_jax.runtime.compiled import explain_memory_errors
from ltx_jax.training import process, warm_start
from ltx_jax.training.batches import check_batch_sizes
from ltx_jax.training.report import Reporter, check_installed
from ltx_jax.training.stage import Validation, stage_class
from ltx_jax.training.state import TrainState, from_stored, to_stored
from ltx_jax.training.step import GRADIENTS, Trainer, Work, describe_nonfinite

Log = Callable[[str], None]

_MEMORY_ADVICE = (
    "raise --optim.accumulate, lower --data.batch_size, --data.num_frames or the size, set "
    "--execution.remat full, or split the model over more devices (--mesh.fsdp)"
)


def train(cfg: TrainConfig, log: Log = print, profile: bool = False) -> TrainState:
    """Trains from the latest checkpoint in `run.output`, or from the start, to step `run.steps`.

    On SIGTERM or Ctrl-C, the step in progress is finished and saved before the function returns; a
    second Ctrl-C interrupts at once.

    Args:
      cfg: the whole configuration.
      log: called with each line of the log, in the first process only.
      profile: whether to write a profiler trace of a few steps into the run's folder.

    Returns:
      The last state.

    Raises:
      ValueError: if the configuration, the data or the run's folder cannot be used.
      FloatingPointError: after `run.max_rejected` steps in a row that were not finite.
      MemoryError: if the device has too little memory; the message says what to change.
    """
    with explain_memory_errors(_MEMORY_ADVICE):
        return fit(open_trainer(cfg), log, profile)


def evaluate(cfg: TrainConfig, log: Log = print) -> Validation:
    """Validates the latest checkpoint in `run.output`, and logs the metrics.

    Raises:
      ValueError: if the run or a checkpoint of it is missing, or its configuration differs.
    """
    with explain_memory_errors(_MEMORY_ADVICE):
        return validate_latest(open_trainer(cfg), log)


def open_trainer(cfg: TrainConfig) -> Trainer:
    """Opens the stage of a configuration with its data, and makes its `Trainer`.

    Raises:
      ValueError: as `train` does.
    """
    check_installed(cfg)
    mesh = sharding.make_mesh(cfg.mesh)
    check_batch_sizes(cfg, mesh)
    return Trainer(stage_class(cfg).open(cfg, mesh))


def fit(trainer: Trainer, log: Log = print, profile: bool = False) -> TrainState:
    """Does what `train` does, with a stage that is already open."""
    if not process.is_first():
        log = _silent
    cfg = trainer.stage.cfg
    with contextlib.closing(runs.Run(cfg)) as run:
        state = _begin(run, trainer, log)
        traces = trace_folder(run.folder) if profile and process.is_first() else None
        with (
            sharding.use_mesh(trainer.mesh),
            process.interruptible() as stopping,
            process.traced(traces, log) as tracer,
            contextlib.closing(Reporter(cfg, run.folder, int(state.step), log)) as reporter,
        ):
            state, stopped = _steps(trainer, run, state, reporter, tracer, stopping)
    if stopped:  # closing the run has finished the save
        log(f"stopped and saved at step {state.step}; the same command continues from there")
    return state


def validate_latest(trainer: Trainer, log: Log = print) -> Validation:
    """Does what `evaluate` does, with a stage that is already open."""
    cfg = trainer.stage.cfg
    state = _restored(lambda shapes: runs.restore(cfg, shapes), trainer)
    with sharding.use_mesh(trainer.mesh):
        validation = trainer.stage.validate(state)
    if process.is_first():
        log(f"{cfg.run.output} after step {state.step}")
        for name, value in validation.scalars.items():
            log(f"{name} {value:.6g}")
    return validation


def trace_folder(folder: epath.Path) -> epath.Path:
    """The folder of a run's profile: inside the run's folder, or inside a local folder of the same
    name if the run is at a remote address."""
    return (epath.Path(folder.name) if is_address(folder) else folder) / "profile"


def _begin(run: runs.Run, trainer: Trainer, log: Log) -> TrainState:
    """Returns the state to start or to resume from."""
    if run.latest_step is None:
        state = warm_start.first_state(trainer.stage, trainer.plan)
        count = sum(x.size for x in jax.tree.leaves(to_stored(state)["params"]))
        log(f"{run.folder}: {count / 1e6:.2f} M parameters on {trainer.mesh.size} device(s)")
    else:
        state = _restored(run.restore, trainer)
        last = trainer.stage.cfg.run.steps
        log(f"{run.folder}: continues after step {state.step} of {last}")
    run.begin(trainer.stage.vae, trainer.stage.base)
    return state


class _UnreportedStep(NamedTuple):
    """A step whose metrics are fetched while the next one runs."""

    done: int
    metrics: dict[str, Any]
    work: Work
    waited: float


def _steps(
    trainer: Trainer,
    run: runs.Run,
    state: TrainState,
    reporter: Reporter,
    tracer: Callable[[int, Any], None],
    stopping: Callable[[int], bool],
) -> tuple[TrainState, bool]:
    """Takes all remaining steps; returns the last state, and whether a signal ended them early."""
    stage, settings = trainer.stage, trainer.stage.cfg.run
    first, last = int(state.step), settings.steps
    batches = stage.batches(first, last)
    unreported: _UnreportedStep | None = None
    stop = False

    def report() -> None:
        nonlocal unreported
        if unreported is not None:
            _report(unreported, reporter, trainer, state)
        unreported = None

    def validate(done: int) -> float | None:
        with reporter.pause():
            validation = stage.validate(state)
            reporter.validation(done, validation)
        return next(iter(validation.scalars.values()), None)

    if first == 0 and settings.validates_after(0):
        validate(0)
    for done in range(first + 1, last + 1):
        with reporter.pause():
            tracer(done - first, state)
        begin = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - begin
        # Before the step is launched: tracing may run programs on the devices, and with several
        # processes these could hang between the collectives of a step in progress.
        work = trainer.work(batch, done)
        state, metrics = trainer.step(state, batch)
        report()  # on the step before: fetching this step's metrics would make the device wait
        unreported = _UnreportedStep(done, metrics, work, waited)
        run.check()
        stop = stopping(done)
        loss = None
        if settings.validates_after(done) and not stop:
            report()
            loss = validate(done)
        if stop or done == last or done % settings.save_every == 0:
            with reporter.pause():
                _save(run, trainer, state, loss)
        if stop:
            break
    report()
    return state, stop


def _report(step: _UnreportedStep, reporter: Reporter, trainer: Trainer, state: TrainState) -> None:
    scalars = {name: x for name, x in step.metrics.items() if name != GRADIENTS}
    reporter.step(step.done, scalars, step.work, step.waited)
    rejected = int(scalars["rejected_in_a_row"])
    if rejected >= trainer.stage.cfg.run.max_rejected:
        causes = describe_nonfinite(step.metrics, state, trainer.pending_metrics(state))
        raise FloatingPointError(
            f"the loss or a gradient was not finite in {rejected} steps in a row, the last of them "
            f"step {step.done}. {causes}. These steps changed no parameters. Start another run "
            "from this one (--run.init_from) with a lower --optim.peak_lr"
        )


def _silent(_: str) -> None: ...


def _save(run: runs.Run, trainer: Trainer, state: TrainState, loss: float | None) -> None:
    step = int(state.step)  # waits until the step is done
    parts = to_stored(state)
    statistics = trainer.stage.latent_statistics(state)
    if statistics:
        parts["statistics"] = statistics
    run.save(step, parts, loss)


def _restored(read: Callable[[Mapping[str, Any]], dict[str, Any]], trainer: Trainer) -> TrainState:
    return from_stored(read(to_stored(trainer.plan.shapes)))
