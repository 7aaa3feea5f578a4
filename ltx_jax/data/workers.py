"""Reads ahead in worker processes, which return arrays in shared memory.

Threads suffice for video decoders, which release the GIL. Work that consists of many small numpy
operations, such as rendering the procedural world, holds the GIL and needs processes.
"""

import collections
import functools
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import numpy as np

Work = Callable[[int], Any]


def read_ahead_in_processes(
    begin: Callable[[], Work], first: int, last: int, *, processes: int, ahead: int
) -> Generator[Any, None, None]:
    """Yields `begin()(index)` for the indices [first, last), in order.

    Args:
      begin: called once in each process; returns the function that computes an item. `begin` and
        the items must be picklable.
      first: the first index.
      last: the end of the indices (exclusive).
      processes: number of worker processes.
      ahead: number of items that are computed before they are needed.

    Raises:
      ChildProcessError: if a process dies.
    """
    indices = iter(range(first, last))
    # Spawned, not forked: JAX has threads, and a forked process would inherit their locks.
    spawn = multiprocessing.get_context("spawn")
    pending: collections.deque[Future[_Parcel]] = collections.deque()
    with ProcessPoolExecutor(processes, spawn, _begin, (begin,)) as pool:
        try:
            pending.extend(pool.submit(_pack, i) for i in itertools.islice(indices, ahead))
            while pending:
                item = _unpack(pending[0].result())
                pending.popleft()
                pending.extend(pool.submit(_pack, i) for i in itertools.islice(indices, 1))
                yield item
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process that reads data died, perhaps because memory ran out: use fewer "
                "--data.processes"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
            for future in pending:
                if not future.cancelled() and future.exception() is None:
                    _unpack(future.result())


class _Parcel(NamedTuple):
    """A pickled object, and the shared memory with the bytes of its arrays."""

    pickled: bytes
    memory: str  # name of the shared memory
    sizes: tuple[int, ...]  # bytes of each array


_work: Callable[[], Work]  # returns this worker process's function; unset in the parent


def _begin(begin: Callable[[], Work]) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent alone
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _work = functools.cache(begin)  # called by `_pack`, whose errors reach the parent


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _pack(index: int) -> _Parcel:
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(_work()(index), protocol=5, buffer_callback=buffers.append)
    sizes = tuple(buffer.raw().nbytes for buffer in buffers)
    memory = SharedMemory(create=True, size=max(sum(sizes), 1))
    _fill(np.ndarray(memory.size, np.uint8, memory.buf), buffers, sizes)
    memory.close()  # no array may refer to it any more
    return _Parcel(pickled, memory.name, sizes)


def _fill(whole: np.ndarray, buffers: Sequence[pickle.PickleBuffer], sizes: Sequence[int]) -> None:
    for buffer, place in zip(buffers, _cut(whole, sizes), strict=True):
        place[:] = np.frombuffer(buffer.raw(), np.uint8)


def _unpack(parcel: _Parcel) -> Any:
    """Copies the object out of shared memory, and frees that."""
    memory = SharedMemory(parcel.memory)
    # numpy copies without the GIL, so other threads continue.
    whole = np.ndarray(memory.size, np.uint8, memory.buf).copy()
    memory.close()
    memory.unlink()
    return pickle.loads(parcel.pickled, buffers=_cut(whole, parcel.sizes))


def _cut(whole: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Splits an array into pieces of the given sizes; the rest is left out."""
    return np.split(whole, np.cumsum(sizes))[:-1]
