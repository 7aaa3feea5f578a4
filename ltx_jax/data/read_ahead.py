"""Reading ahead in threads: by Grain, or by plain threads where it is not installed."""

import collections
import contextlib
import itertools
import queue
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def read_ahead(
    work: Callable[[int], Any], first: int, last: int, *, threads: int, ahead: int
) -> Generator[Any, None, None]:
    """`work(index)` for [first, last), in order, up to `ahead` of them begun before they are due.

    Args:
      work: gives anything but None, which Grain would skip. Threads suffice: decoders and numpy
        release the interpreter's lock.
      first: index, and
      last: too, which is left out.
      threads: at work at a time.
      ahead: of the consumer, indices.
    """
    try:
        import grain
    except ImportError:
        yield from _by_threads(work, first, last, threads, ahead)
        return
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    iterator = iter(grain.MapDataset.range(first, last).map(work).to_iter_dataset(options))
    with contextlib.closing(iterator):
        yield from iterator


def _by_threads(
    work: Callable[[int], Any], first: int, last: int, threads: int, ahead: int
) -> Generator[Any, None, None]:
    indices = iter(range(first, last))
    with ThreadPoolExecutor(threads) as pool:
        pending = collections.deque(pool.submit(work, i) for i in itertools.islice(indices, ahead))
        try:
            while pending:
                made = pending.popleft().result()
                pending.extend(pool.submit(work, i) for i in itertools.islice(indices, 1))
                yield made
        finally:
            for future in pending:
                future.cancel()


def in_background(items: Generator[Any, None, None], ahead: int) -> Generator[Any, None, None]:
    """The same items, up to `ahead` of them made by a thread before they are due."""
    # Not by an executor: to hand it work takes a millisecond at times, while its thread wakes up.
    made, wanted, end = queue.SimpleQueue(), queue.SimpleQueue(), object()

    def make() -> None:
        try:
            while wanted.get():
                made.put((next(items, end), None))
        except BaseException as error:  # raised where the item is wanted
            made.put((end, error))

    # A daemon, so that an iterator that is never closed does not keep the process alive.
    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    for _ in range(ahead):
        wanted.put(True)
    try:
        while (found := made.get())[0] is not end:
            wanted.put(True)
            yield found[0]
        if found[1] is not None:
            raise found[1]
    finally:
        wanted.put(False)
        if not sys.is_finalizing():  # then threads stand still
            thread.join()
            items.close()
