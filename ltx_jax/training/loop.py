"""The training loop: steps, reports, validation, checkpoints, and a clean stop on a signal."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from ltx_jax.checkpoints import runs
from ltx_jax.checkpoints.lock import is_address
from ltx_jax.config import TrainTransformer, TrainVAE
from ltx_jax.runtime import sharding
from ltx_jax.runtime.compiled import explain_memory_errors
from ltx_jax.training import process, transformer, vae
from ltx_jax.training.adversary import FIGURES
from ltx_jax.training.report import Reporter, check_installed
from ltx_jax.training.stage import Stage, Validation, Work, check_batch_size
from ltx_jax.training.state import GRADIENTS, TrainState

_MEMORY_ADVICE = (
    "raise --optim.accumulate, lower --data.batch_size, --data.num_frames or the size, set "
    "--execution.remat full, or split the model over more devices (--mesh.fsdp)"
)


def train(
    cfg: TrainVAE | TrainTransformer, log: Callable[[str], None] = print, profile: bool = False
) -> TrainState:
    """Trains from the latest step of `run.output`, or from the start, to `run.steps`.

    SIGTERM and Ctrl-C save and return after the step in progress; a second Ctrl-C leaves at once.

    Args:
      cfg: the whole configuration.
      log: takes the lines of the log; in the first process only.
      profile: writes a profiler's trace of a few steps under the run.

    Returns:
      The last state.

    Raises:
      ValueError: if the configuration, the data or the run's folder cannot be used.
      FloatingPointError: after `run.max_rejected` steps in a row that were not finite.
      MemoryError: says what to lower.
    """
    if not process.is_first():
        log = _silent
    with explain_memory_errors(_MEMORY_ADVICE):
        mesh, stage = _build(cfg)
        with contextlib.closing(runs.Run(cfg)) as run:
            state = _begin(run, stage, mesh, cfg.run.steps, log)
            traces = _traces(run.folder) if profile and process.is_first() else None
            with (
                sharding.use_mesh(mesh),
                process.interruptible() as stopping,
                process.traced(traces, log) as tracer,
                contextlib.closing(Reporter(cfg, run.folder, int(state.step), log)) as reporter,
            ):
                state, stopped = _steps(cfg, stage, run, state, reporter, tracer, stopping)
        if stopped:  # and saved: the run is closed
            log(f"stopped and saved at step {state.step}; the same command goes on from there")
        return state


def _traces(folder: epath.Path) -> epath.Path:
    """Under the run; of a run at an address, under the folder of its name: here."""
    return (epath.Path(folder.name) if is_address(folder) else folder) / "profile"


def evaluate(cfg: TrainVAE | TrainTransformer, log: Callable[[str], None] = print) -> Validation:
    """Validates the latest step of `run.output`, and says its figures.

    Raises:
      ValueError: if there is no such run or no step of it, or it has another configuration.
    """
    with explain_memory_errors(_MEMORY_ADVICE):
        mesh, stage = _build(cfg)
        state = _restored(lambda shapes: runs.restore(cfg, shapes), stage)
        with sharding.use_mesh(mesh):
            found = stage.validate(state)
    if process.is_first():
        log(f"{cfg.run.output} after step {state.step}")
        for name, value in found.scalars.items():
            log(f"{name} {value:.6g}")
    return found


def _build(cfg: TrainVAE | TrainTransformer) -> tuple[Mesh, Stage]:
    mesh = sharding.make_mesh(cfg.mesh)
    for bucket in cfg.data.sizes:
        check_batch_size(bucket.batch_size, mesh, cfg.optim.accumulate)
    check_installed(cfg)
    build = vae.build if isinstance(cfg, TrainVAE) else transformer.build
    return mesh, build(cfg, mesh)  # pyright: ignore[reportArgumentType]


def _begin(
    run: runs.Run, stage: Stage, mesh: Mesh, last: int, log: Callable[[str], None]
) -> TrainState:
    """The state to go on from."""
    if run.latest_step is None:
        state = stage.plan.make()
        count = sum(x.size for x in jax.tree.leaves(state.params))
        log(f"{run.folder}: {count / 1e6:.2f} M parameters on {mesh.size} device(s)")
    else:
        state = _restored(run.restore, stage)
        log(f"{run.folder}: continues after step {state.step} of {last}")
    run.begin(stage.vae)
    return state


class _Taken(NamedTuple):
    """What is to be said of a step, while the next one runs."""

    done: int
    metrics: dict[str, Any]
    work: Work
    waited: float


def _steps(
    cfg: TrainVAE | TrainTransformer,
    stage: Stage,
    run: runs.Run,
    state: TrainState,
    reporter: Reporter,
    tracer: Callable[[int, Any], None],
    stopping: Callable[[int], bool],
) -> tuple[TrainState, bool]:
    """Takes all steps that are left; the last state, and whether it was asked to stop before."""
    first, last, settings = int(state.step), cfg.run.steps, cfg.run
    batches = stage.batches(first, last)
    taken: _Taken | None = None
    stop = False

    def tell() -> None:
        nonlocal taken
        if taken is not None:
            _report(taken, reporter, settings.max_rejected, state)
        taken = None

    for done in range(first + 1, last + 1):
        with reporter.pause():
            tracer(done - first, state)
        begin = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - begin
        work = stage.work(batch, done)  # runs programs, perhaps: beside exchanges they would hang
        state, metrics = stage.step(state, batch)
        tell()  # of the step before: fetching this one's numbers would make the device wait
        taken = _Taken(done, metrics, work, waited)
        run.check()
        stop = stopping(done)
        loss = None
        if settings.validates_after(done) and not stop:
            tell()
            with reporter.pause():
                found = stage.validate(state)
                reporter.validation(done, found)
            loss = next(iter(found.scalars.values()), None)
        if stop or done == last or done % settings.save_every == 0:
            with reporter.pause():
                _save(run, stage, state, loss)
        if stop:
            break
    tell()
    return state, stop


def _report(taken: _Taken, reporter: Reporter, most: int, state: TrainState) -> None:
    tensors = taken.metrics[GRADIENTS]
    figures = {name: x for name, x in taken.metrics.items() if name != GRADIENTS}
    reporter.step(taken.done, figures, taken.work, taken.waited)
    rejected = int(figures["rejected_in_a_row"])
    if rejected >= most:
        raise FloatingPointError(
            f"{rejected} steps in a row were not finite, the last is {taken.done}. "
            f"{_name_broken(figures, tensors, state)}. No step of them was kept: go on with a "
            "lower --optim.peak_lr in another run that starts from this one (--run.init_from)"
        )


def _name_broken(figures: Mapping[str, Any], gradients: Any, state: TrainState) -> str:
    """The figures, gradients and parameters that are not finite.

    Of the figures not those that are no number where all is well: of parts ("/"; the gradients
    name theirs), and of a discriminator that has not begun, whose gradient is zero.
    """
    playing = any(jax.tree.leaves(jax.device_get(gradients.get("discriminator", {}))))
    silent = () if playing else FIGURES
    figures = {name: x for name, x in figures.items() if "/" not in name and name not in silent}
    all_finite = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))
    params = {**state.params, "discriminator": state.adversary.get("params", {})}
    told = []
    for kind, tree in (("figures", figures), ("gradients", gradients), ("parameters", params)):
        flags = jax.tree.leaves_with_path(jax.device_get(all_finite(dict(tree))))
        names = ["/".join(str(entry.key) for entry in path) for path, well in flags if not well]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        told.append(f"{kind}: {', '.join(names[:5]) or 'none'}{more}")
    return "Not finite are " + "; ".join(told)


def _silent(_: str) -> None: ...


def _save(run: runs.Run, stage: Stage, state: TrainState, loss: float | None) -> None:
    step = int(state.step)  # waits for it
    parts = {"params": state.params, "ema": state.ema, "state": _rest(state)}
    statistics = stage.statistics(state)
    if statistics:
        parts["statistics"] = statistics
    run.save(step, parts, loss)


def _restored(read: Callable[[Mapping[str, Any]], dict[str, Any]], stage: Stage) -> TrainState:
    shapes = stage.plan.shapes
    parts = read({"params": shapes.params, "ema": shapes.ema, "state": _rest(shapes)})
    return TrainState(params=parts["params"], ema=parts["ema"], **parts["state"])


def _rest(state: TrainState) -> dict[str, Any]:
    """What a step changes beside the parameters and their average."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    return {name: x for name, x in fields.items() if name not in ("params", "ema")}
