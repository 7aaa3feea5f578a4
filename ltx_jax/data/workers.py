"""Reading ahead in processes of their own, which hand arrays over in shared memory.

Threads share one interpreter. They suffice for decoders, which let go of it, and not for what is
drawn by many small steps of numpy.
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


def read_ahead(
    begin: Callable[[], Work], first: int, last: int, *, processes: int, ahead: int
) -> Generator[Any, None, None]:
    """`begin()(index)` for [first, last), in order, up to `ahead` of them begun early.

    Args:
      begin: called once in each process, for the work that it does; it, and what the work gives,
        can be pickled.
      first: index, and
      last: too, which is left out.
      processes: at work at a time.
      ahead: of the consumer, indices.

    Raises:
      ChildProcessError: if a process dies.
    """
    indices = iter(range(first, last))
    # Not forked: JAX has threads, and a fork would take their locks along.
    spawn = multiprocessing.get_context("spawn")
    pending: collections.deque[Future[_Parcel]] = collections.deque()
    with ProcessPoolExecutor(processes, spawn, _begin, (begin,)) as pool:
        try:
            pending.extend(pool.submit(_pack, i) for i in itertools.islice(indices, ahead))
            while pending:
                made = _unpack(pending[0].result())
                pending.popleft()
                pending.extend(pool.submit(_pack, i) for i in itertools.islice(indices, 1))
                yield made
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process that reads data died, perhaps for want of memory: set fewer "
                "--data.processes"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
            for future in pending:
                if not future.cancelled() and future.exception() is None:
                    _unpack(future.result())


class _Parcel(NamedTuple):
    """A pickled object, and where its arrays' bytes lie."""

    pickled: bytes
    memory: str
    sizes: tuple[int, ...]


_work: Callable[[], Work]  # of this process, if it is one that reads ahead


def _begin(begin: Callable[[], Work]) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _work = functools.cache(begin)  # called later, where an error finds its way to the parent


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
    memory.close()  # which no array may use any more
    return _Parcel(pickled, memory.name, sizes)


def _fill(whole: np.ndarray, buffers: Sequence[pickle.PickleBuffer], sizes: Sequence[int]) -> None:
    for buffer, place in zip(buffers, _cut(whole, sizes), strict=True):
        place[:] = np.frombuffer(buffer.raw(), np.uint8)


def _unpack(parcel: _Parcel) -> Any:
    """The object, with arrays of its own; the shared memory is freed."""
    memory = SharedMemory(parcel.memory)
    # Copied by numpy, which lets other threads run meanwhile.
    whole = np.ndarray(memory.size, np.uint8, memory.buf).copy()
    memory.close()
    memory.unlink()
    return pickle.loads(parcel.pickled, buffers=_cut(whole, parcel.sizes))


def _cut(whole: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """The whole in pieces; what is over is left out."""
    return np.split(whole, np.cumsum(sizes))[:-1]
