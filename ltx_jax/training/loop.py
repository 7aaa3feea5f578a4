"""The training loop: steps, a progress line, checkpoints, and a clean stop on a signal."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ltx_jax import sharding
from ltx_jax.checkpoints.runs import Run
from ltx_jax.config import TrainTransformer, TrainVAE
from ltx_jax.diffusion.programs import explain_memory_errors
from ltx_jax.training import transformer, vae
from ltx_jax.training.stage import Stage, check_batch_size
from ltx_jax.training.state import TrainState

_MEMORY_ADVICE = (
    "lower --data.batch_size, --data.num_frames or the size, set --model.remat full, or split the "
    "model over more devices (--mesh.fsdp)"
)


def train(cfg: TrainVAE | TrainTransformer, report: Callable[[str], None] = print) -> TrainState:
    """Trains from the latest step of `run.output`, or from the start, to `run.steps`.

    SIGTERM and Ctrl-C save and return after the step in progress; a second Ctrl-C leaves at once.

    Args:
      cfg: the whole configuration.
      report: takes the lines of the log.

    Returns:
      The last state.

    Raises:
      ValueError: if the configuration, the data or the run's folder cannot be used.
      MemoryError: says what to lower.
    """
    with explain_memory_errors(_MEMORY_ADVICE):
        return _train(cfg, report)


def _train(cfg: TrainVAE | TrainTransformer, report: Callable[[str], None]) -> TrainState:
    mesh = sharding.make_mesh(cfg.mesh)
    for bucket in cfg.data.sizes:
        check_batch_size(bucket.batch_size, mesh, cfg.optim.accumulate)
    build = vae.build if isinstance(cfg, TrainVAE) else transformer.build
    stage = build(cfg, mesh)  # pyright: ignore[reportArgumentType]
    run = Run(cfg)
    try:
        if stage.vae is not None:
            run.write_vae(stage.vae)
        if run.latest_step is None:
            state = stage.plan.make()
            count = sum(x.size for x in jax.tree.leaves(state.params))
            report(f"{run.folder}: {count / 1e6:.2f} M parameters on {mesh.size} device(s)")
        else:
            state = _restore(run, stage)
            report(f"{run.folder}: continues after step {int(state.step)} of {cfg.run.steps}")
        with sharding.use_mesh(mesh), _interruptible() as stopping:
            return _steps(cfg, stage, run, state, stopping, report)
    finally:
        run.close()


def _steps(
    cfg: TrainVAE | TrainTransformer,
    stage: Stage,
    run: Run,
    state: TrainState,
    stopping: Callable[[], bool],
    report: Callable[[str], None],
) -> TrainState:
    first, last = int(state.step), cfg.run.steps
    clock = _Clock(first, last)
    late: tuple[int, dict[str, Any]] | None = None
    for step, batch in enumerate(stage.batches(first, last), first):
        state, metrics = stage.step(state, batch)
        # The numbers of the step before: fetching this one's would make the device wait.
        if late is not None:
            clock.report(*late, cfg.run.log_every, report)
        late = (step + 1, metrics)
        stop = stopping()
        if stop or step + 1 == last or (step + 1) % cfg.run.save_every == 0:
            _save(run, stage, state)
        if stop:
            report(f"stopped and saved at step {step + 1}; the same command goes on from there")
            break
    if late is not None:
        clock.report(*late, cfg.run.log_every, report)
    return state


class _Clock:
    """Prints the progress line; the first step, which compiles, does not count as speed."""

    def __init__(self, first: int, last: int):
        self._last = last
        self._mark: tuple[int, float] | None = None
        self._begun = first + 1

    def report(
        self, step: int, metrics: dict[str, Any], every: int, report: Callable[[str], None]
    ) -> None:
        if step != self._begun and step % every and step != self._last:
            return
        values = {name: float(value) for name, value in metrics.items()}
        now = time.monotonic()
        speed = ""
        if self._mark is not None and step > self._mark[0]:
            rate = (step - self._mark[0]) / (now - self._mark[1])
            left = (self._last - step) / rate
            speed = f"  {rate:.3g} steps/s  {_duration(left)} left"
        self._mark = (step, now)
        numbers = "  ".join(
            f"{name} {value:.4g}" for name, value in values.items() if name != "rejected"
        )
        if values.get("rejected"):
            numbers += f"  rejected {values['rejected']:.0f} steps (not finite)"
        report(f"step {step}/{self._last}  {numbers}{speed}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _save(run: Run, stage: Stage, state: TrainState) -> None:
    rest = {
        "step": state.step,
        "updates": state.updates,
        "rejected": state.rejected,
        "opt_state": state.opt_state,
        "statistics": state.statistics,
        "adversary": state.adversary,
    }
    parts = {"params": state.params, "ema": state.ema, "state": rest}
    statistics = stage.statistics(state)
    if statistics:
        parts["statistics"] = statistics
    run.save(int(state.step), parts)


def _restore(run: Run, stage: Stage) -> TrainState:
    shapes = stage.plan.shapes
    rest = {
        "step": shapes.step,
        "updates": shapes.updates,
        "rejected": shapes.rejected,
        "opt_state": shapes.opt_state,
        "statistics": shapes.statistics,
        "adversary": shapes.adversary,
    }
    parts = run.restore({"params": shapes.params, "ema": shapes.ema, "state": rest})
    return TrainState(params=parts["params"], ema=parts["ema"], **parts["state"])


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and SIGINT into a question; the second of one kind acts as it always did."""
    asked = False
    previous: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, previous[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        # Signals belong to the main thread; elsewhere (a notebook's worker) nothing is caught.
        with contextlib.suppress(ValueError):
            previous[number] = signal.signal(number, note)
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
