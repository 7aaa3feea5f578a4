"""Joins the processes of a run, handles signals, and runs the profiler."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from ltx_jax.config import DistributedConfig

# Parts of the error messages of jax.distributed: one if it detects no cluster, the other if devices
# are already in use (as in a notebook). In both cases, training uses this process alone.
_ALONE = ("coordinator_address should be defined", "must be called before any JAX calls")
# The steps that a profiler trace records, counted from 1. They come after the steps that compile,
# and are few, so that the trace stays readable.
_TRACED = range(3, 6)


def join(cfg: DistributedConfig) -> None:
    """Connects to the other processes of the run; must be called before the first use of a device.

    jax.distributed detects SLURM, GKE, TPU pods and Open MPI from the environment, each with its
    own definition of a process (SLURM: one task for each GPU). Elsewhere the three settings are
    needed; without them this process runs alone.

    Raises:
      ValueError: if only some of the settings are given.
    """
    place = (cfg.coordinator, cfg.num_processes, cfg.process_id)
    alone = place == (None, None, None)
    if not alone and None in place:
        raise ValueError(
            "--distributed.coordinator, --distributed.num-processes and --distributed.process-id "
            "belong together: give all three, or none under SLURM, on GKE and on TPU pods"
        )
    try:
        jax.distributed.initialize(*place)
    except (ValueError, RuntimeError) as error:
        if not (alone and any(text in str(error) for text in _ALONE)):
            raise


def is_first() -> bool:
    """Whether this process is the one that writes logs and configurations."""
    return jax.process_index() == 0


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[int], bool]]:
    """Catches SIGTERM and SIGINT; yields a function that returns whether to stop after a step.

    A second signal of the same kind has its usual effect. With several processes, all stop after
    the same step once one of them gets a SIGTERM, and SIGINT is not caught.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    stop_requested = False
    previous: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        nonlocal stop_requested
        stop_requested = True
        signal.signal(number, previous[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        # Signals belong to the main thread; elsewhere (a notebook's worker) nothing is caught.
        with contextlib.suppress(ValueError):
            previous[number] = signal.signal(number, note)
    try:
        yield lambda _: stop_requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def traced(
    folder: epath.Path | None, log: Callable[[str], None]
) -> Iterator[Callable[[int, Any], None]]:
    """Writes a profiler trace of a few steps to a folder; with None, it writes no trace.

    Yields a function that has to be called before every step, with the step's number (from 1) and
    the state before it.
    """
    running = False

    def stop() -> None:
        nonlocal running
        jax.profiler.stop_trace()
        running = False
        log(f"trace: {folder}")

    def before(number: int, state: Any) -> None:
        nonlocal running
        if folder is None or number not in (_TRACED.start, _TRACED.stop):
            return
        jax.block_until_ready(state)
        if running:
            stop()
        elif number == _TRACED.start:
            jax.profiler.start_trace(str(folder))
            running = True

    try:
        yield before
    finally:
        if running:
            stop()
