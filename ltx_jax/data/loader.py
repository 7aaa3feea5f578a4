"""Training batches: what a step sees, as a pure function of (seed, step), read ahead in threads.

A step draws its bucket, the bucket its pattern and its examples' sources, each source an order of
its own in every epoch. Nothing depends on how many processes or threads there are, so that a run
goes on from its step count alone.
"""

import collections
import dataclasses
import functools
import importlib.util
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float16, Float32, Int32, UInt8

from ltx_jax.config import BucketConfig, ConditionPattern, DataConfig
from ltx_jax.data import order
from ltx_jax.data.sources import Example, Source, World

_ATTEMPTS = 8  # to find an example that can be read in place of one that cannot

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StoredLatents:
    """Posteriors as `encode.py` stores them: means that are not normalised, and one log-variance.

    Condition items are encoded by themselves, their channels the mean's and then the log-variance.
    """

    mean: Float16[np.ndarray, "b t h w c"]
    logvar: Float16[np.ndarray, "b t h w 1"]
    keyframes: Float16[np.ndarray, "b k h w _"]  # single frames, and where each lies in the clip,
    keyframe_numbers: Int32[np.ndarray, "b k"]  # counted in frames
    clips: Float16[np.ndarray, "b k 2 h w _"]  # of two latent frames, and where each begins
    clip_numbers: Int32[np.ndarray, "b k"]


@dataclasses.dataclass(frozen=True)
class Batch:
    """One process's share of one step's examples, all of one bucket."""

    bucket: BucketConfig
    pattern: ConditionPattern  # what the whole batch is given; "none" for pictures
    captions: tuple[str, ...]
    frame_rate: Float32[np.ndarray, " b"]
    frames: UInt8[np.ndarray, "b t h w 3"] | None = None  # pixels, or
    latents: StoredLatents | None = None
    embeddings: tuple[Float16[np.ndarray, "_ c"], ...] | None = None  # of captions, unpadded


class Plan(NamedTuple):
    """What one step sees, over all processes."""

    bucket: int
    pattern: ConditionPattern
    first: int  # examples of this bucket before this step
    rows: tuple[tuple[int, int], ...]  # source, and number among those of it that fit the bucket


class Loader:
    """The batches of one process.

    Args:
      cfg: the data.
      patterns: what batches are given, and in which shares.
      seed: of the order and of all that is left to chance.
      process_index: of this process.
      process_count: of all; each reads an equal share of every batch.

    Attributes:
      replaced: examples that could not be read and had another put in their place.

    Raises:
      ValueError: if a source cannot be used, nothing fits a bucket, or a batch cannot be shared.
    """

    def __init__(
        self,
        cfg: DataConfig,
        patterns: Sequence[tuple[ConditionPattern, float]],
        seed: int,
        *,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._cfg, self._seed = cfg, seed
        self._buckets = cfg.sizes
        self._sources = [open_source(source.path, cfg, seed) for source in cfg.sources]
        self._patterns = patterns
        self._process = process_index, process_count
        for bucket in self._buckets:
            if bucket.batch_size % process_count:
                raise ValueError(
                    f"a batch of {bucket.batch_size} cannot be shared by {process_count} processes"
                )
        numbers = range(len(self._buckets))
        self._counts = [[source.count(b) for source in self._sources] for b in self._buckets]
        for number in numbers:
            if all(count == 0 for count in self._counts[number]):
                raise ValueError(f"no example fits the bucket {describe(self._buckets[number])}")
        self._bucket_shares = order.Shares([b.weight for b in self._buckets], (seed, 0))
        self._pattern_shares = [
            order.Shares([share for _, share in patterns], (seed, 1, number)) for number in numbers
        ]
        self._source_shares = [
            order.Shares(
                [
                    0.0 if count == 0 else source.weight
                    for source, count in zip(cfg.sources, self._counts[number], strict=True)
                ],
                (seed, 2, number),
            )
            for number in numbers
        ]
        self._rows = max(b.batch_size for b in self._buckets) // process_count
        self.plan = functools.lru_cache(8)(self._plan)
        self.replaced = 0

    def _plan(self, step: int) -> Plan:
        [number], [rank] = self._bucket_shares.choose(step, 1)
        bucket = self._buckets[number]
        [choice], _ = self._pattern_shares[number].choose(int(rank), 1)
        pattern = self._patterns[choice][0] if bucket.num_frames > 1 else "none"
        first = int(rank) * bucket.batch_size
        rows = []
        for source, place in zip(
            *self._source_shares[number].choose(first, bucket.batch_size), strict=True
        ):
            count = self._counts[number][source]
            if count is None:  # buckets share one endless stream
                index = int(place) * len(self._buckets) + int(number)
            else:
                seed = (self._seed, 3, int(number), int(source))
                index = order.shuffled(int(place), count, seed)
            rows.append((int(source), index))
        return Plan(int(number), pattern, first, tuple(rows))

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        return self._stack(step, [self._example(step, row) for row in self._share(step)])

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """The batches of the steps [first, last), examples read ahead in threads."""
        rows, cfg = self._rows, self._cfg
        work = functools.partial(self._flat, rows)
        ahead = cfg.prefetch * rows
        examples = _read_ahead(work, first * rows, last * rows, cfg.threads, ahead)
        for step in range(first, last):
            made = [next(examples) for _ in range(rows)]
            yield self._stack(step, [example for example in made if isinstance(example, Example)])

    def _flat(self, rows: int, index: int) -> Example | tuple[()]:
        """Example `index` of steps of `rows` each; nothing where a batch is smaller."""
        step, row = divmod(index, rows)
        share = self._share(step)
        return self._example(step, share[row]) if row < len(share) else ()

    def _share(self, step: int) -> range:
        """This process's rows of a step's batch."""
        size = len(self.plan(step).rows)
        index, count = self._process
        return range(index * size // count, (index + 1) * size // count)

    def _example(self, step: int, row: int) -> Example:
        plan = self.plan(step)
        source, index = plan.rows[row]
        bucket = self._buckets[plan.bucket]
        count = self._counts[plan.bucket][source]
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng([self._seed, 4, plan.bucket, plan.first + row, attempt])
            try:
                return self._sources[source].example(bucket, index, rng)
            except ValueError as error:
                self.replaced += 1
                _log.warning("replaced: %s", error)
                last = error
            if count is not None:
                index = int(np.random.default_rng([self._seed, 5, source, index]).integers(count))
        raise ValueError(f"{_ATTEMPTS} examples in a row cannot be read; the last: {last}")

    def _stack(self, step: int, examples: Sequence[Example]) -> Batch:
        plan = self.plan(step)
        return Batch(
            self._buckets[plan.bucket],
            plan.pattern,
            tuple(example.caption for example in examples),
            np.array([example.frame_rate for example in examples], np.float32),
            np.stack([example.frames for example in examples]),
        )


def describe(bucket: BucketConfig) -> str:
    """A bucket as people write it."""
    return f"{bucket.num_frames} x {bucket.height} x {bucket.width}"


def open_source(path: str, cfg: DataConfig, seed: int) -> Source:
    """A source by its name in a config.

    Raises:
      ValueError: if there is no such source, or none of its examples can be used.
    """
    if path == "shapes":
        return World(cfg, seed)
    from ltx_jax.data import folder, media  # with PyAV, which the world does without

    clips, facts = folder.check_clips(folder.list_clips(path))
    return media.Media(facts, lambda index: (clips[index].path, clips[index].caption), cfg)


def _read_ahead(
    work: Callable[[int], Any], first: int, last: int, threads: int, ahead: int
) -> Iterator[Any]:
    """`work(index)` of [first, last) in order, up to `ahead` of them done before they are asked."""
    if importlib.util.find_spec("grain") is None:
        yield from _by_threads(work, first, last, threads, ahead)
        return
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    iterator = iter(grain.MapDataset.range(first, last).map(work).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def _by_threads(
    work: Callable[[int], Any], first: int, last: int, threads: int, ahead: int
) -> Iterator[Any]:
    with ThreadPoolExecutor(threads) as pool:
        begun = iter(range(first, last))
        pending = collections.deque(pool.submit(work, i) for i in itertools.islice(begun, ahead))
        try:
            while pending:
                made = pending.popleft().result()
                pending.extend(pool.submit(work, i) for i in itertools.islice(begun, 1))
                yield made
        finally:
            for future in pending:
                future.cancel()
