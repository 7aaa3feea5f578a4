"""What surrounds a training process: the others, the signals it gets, the profiler."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from ltx_jax.config import DistributedConfig

# What jax says where it recognises no cluster, and where devices are in use already (a notebook).
_ALONE = ("coordinator_address should be defined", "must be called before any JAX calls")
# Steps of a trace, counted from 1: after those that compile, and few enough to be looked at.
_TRACED = range(3, 6)


def join(cfg: DistributedConfig) -> None:
    """Meets the other processes, before the first use of a device.

    SLURM, GKE, TPU pods and Open MPI are recognised from the environment by jax.distributed, each
    with its own idea of a process (SLURM: one task for each GPU). Elsewhere the three settings say
    who is where; without them this process is alone.

    Raises:
      ValueError: if only some of the settings are given.
    """
    place = (cfg.coordinator, cfg.num_processes, cfg.process_id)
    alone = place == (None, None, None)
    if not alone and None in place:
        raise ValueError(
            "--distributed.coordinator, --distributed.num-processes and --distributed.process-id "
            "belong together: give all three, or none where SLURM, GKE or a TPU pod says it"
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
    """Turns SIGTERM and SIGINT into a question, asked after every step: whether to stop.

    The second signal of one kind acts as it always did. Of several processes all stop after the
    same step when one gets a SIGTERM; SIGINT is left alone there.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
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
        yield lambda _: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def traced(
    folder: epath.Path | None, log: Callable[[str], None]
) -> Iterator[Callable[[int, Any], None]]:
    """Writes the profiler's trace of a few steps to a folder; None: of none.

    What it yields is called before every step with its number, from 1, and the state it begins on.
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
