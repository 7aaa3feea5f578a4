"""Reads ahead in threads, with Grain if it is installed."""

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
    """Yields `work(index)` for the indices [first, last), in order.

    Args:
      work: computes an item. It must not return None, which Grain would skip, and it should release
        the GIL, as video decoders and numpy do.
      first: the first index.
      last: the end of the indices (exclusive).
      threads: number of threads.
      ahead: number of items that are computed before they are needed.
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
                item = pending.popleft().result()
                pending.extend(pool.submit(work, i) for i in itertools.islice(indices, 1))
                yield item
        finally:
            for future in pending:
                future.cancel()


def in_background(items: Generator[Any, None, None], ahead: int) -> Generator[Any, None, None]:
    """Yields the items of a generator, which runs up to `ahead` items ahead in a thread."""
    # No executor: submitting work to one can take a millisecond, until its thread wakes up.
    results, requests, end = queue.SimpleQueue(), queue.SimpleQueue(), object()

    def make() -> None:
        try:
            while requests.get():
                results.put((next(items, end), None))
        except BaseException as error:  # raised again by the consumer
            results.put((end, error))

    # A daemon, so that an iterator that is never closed does not keep the process alive.
    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    for _ in range(ahead):
        requests.put(True)
    try:
        while (result := results.get())[0] is not end:
            requests.put(True)
            yield result[0]
        if result[1] is not None:
            raise result[1]
    finally:
        requests.put(False)
        if not sys.is_finalizing():  # during shutdown, daemon threads no longer run
            thread.join()
            items.close()
