"""The order of the data: seeded choices that any process can compute for any step by itself."""

import bisect
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from ltx_jax.config import ConditionPattern, DataConfig

_PERIOD = 2**64
_STRIDE = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, made odd


class WeightedChoices:
    """Chooses one of several options for every number 0, 1, ..., in proportion to their weights.

    The choices form a low-discrepancy sequence: number i is the point i * golden ratio on a circle
    of circumference 1, and every option has an arc of the circle as long as its weight. Among any n
    consecutive numbers, the count of an option therefore differs by only a few from n times its
    weight.

    Args:
      weights: weights of the options, not all 0; they need not sum to 1.
      seed: rotates the circle.

    Raises:
      ValueError: if all weights are 0.
    """

    def __init__(self, weights: Sequence[float], seed: Sequence[int]):
        total = sum(weights)
        if not total > 0:
            raise ValueError(f"weights must not all be 0, got {tuple(weights)}")
        ends = [0, *(round(_PERIOD * (sum_ / total)) for sum_ in itertools.accumulate(weights))]
        self._ends = [*ends[:-1], _PERIOD]
        self._turn = int(np.random.default_rng(seed).integers(_PERIOD, dtype=np.uint64))

    def choose(
        self, first: int, count: int
    ) -> tuple[Int64[np.ndarray, "{count}"], Int64[np.ndarray, "{count}"]]:
        """Chooses options for the numbers first, ..., first + count - 1.

        Returns:
          The options, and for each how many smaller numbers choose the same option.
        """
        if len(self._ends) == 2:
            return np.zeros(count, np.int64), np.arange(first, first + count)
        options, ranks = np.empty((2, count), np.int64)
        next_rank: dict[int, int] = {}
        for i in range(count):
            point = (self._turn + (first + i) * _STRIDE) % _PERIOD
            option = bisect.bisect_right(self._ends, point) - 1
            if option not in next_rank:
                next_rank[option] = self._before(first, option)
            options[i], ranks[i] = option, next_rank[option]
            next_rank[option] += 1
        return options, ranks

    def _before(self, number: int, option: int) -> int:
        """How many numbers below `number` choose the option."""
        low, high = self._ends[option : option + 2]
        return _floor_sum(number, self._turn - low) - _floor_sum(number, self._turn - high)


def _floor_sum(n: int, b: int) -> int:
    """The sum of (stride * i + b) // period over 0 <= i < n, by the steps of Euclid's algorithm."""
    total, a, m = (b // _PERIOD) * n, _STRIDE, _PERIOD
    b %= _PERIOD
    while True:
        total += (a // m) * (n * (n - 1) // 2) + (b // m) * n
        a, b = a % m, b % m
        last = a * n + b
        if last < m:
            return total
        n, b, a, m = last // m, last % m, m, a


def shuffled(rank: int, count: int, seed: tuple[int, ...]) -> int:
    """Item `rank` of an endless sequence that repeats `count` items in a new order every epoch.

    A Feistel network over the next power of four permutes the items, which needs no memory; results
    outside [0, count) are permuted again (cycle walking).
    """
    epoch, place = divmod(rank, count)
    half = max((count - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for key in _keys((*seed, epoch)):
            left, right = right, left ^ (_mix_bits(right + key) & mask)
        place = left << half | right
        if place < count:
            return place


@functools.lru_cache(1024)
def _keys(seed: tuple[int, ...]) -> list[int]:
    return np.random.default_rng(seed).integers(_PERIOD, size=6, dtype=np.uint64).tolist()


def _mix_bits(x: int) -> int:
    """Mixes 64 bits: the finaliser of SplitMix64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % _PERIOD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % _PERIOD
    return x ^ (x >> 31)


class StepPlan(NamedTuple):
    """The examples of one step's batch, over all processes.

    Attributes:
      bucket: index of the bucket in the config.
      pattern: the condition pattern of the whole batch; "none" for pictures.
      first: number of examples that earlier steps took from this bucket.
      rows: for each example (source, index among the examples of that source that fit the bucket).
    """

    bucket: int
    pattern: ConditionPattern
    first: int
    rows: tuple[tuple[int, int], ...]


class Order:
    """Determines each step's batch: first its bucket, then its condition pattern and examples.

    Each bucket reads each source epoch by epoch, in a new order every time. The weight of a source
    without examples for a bucket is distributed over the others.

    Args:
      cfg: buckets, sources and their weights.
      counts: for every bucket and source, the number of examples that fit; None if endless.
      patterns: condition patterns of batches of videos, and their weights.
      seed: seed of all choices.

    Raises:
      ValueError: if all weights are 0.
    """

    def __init__(
        self,
        cfg: DataConfig,
        counts: Sequence[Sequence[int | None]],
        patterns: Sequence[tuple[ConditionPattern, float]],
        seed: int,
    ):
        self._buckets, self._counts, self._seed = cfg.sizes, counts, seed
        self._patterns = [pattern for pattern, _ in patterns]
        pattern_weights = [weight for _, weight in patterns]
        weights = [
            [0.0 if n == 0 else source.weight for n, source in zip(row, cfg.sources, strict=True)]
            for row in counts
        ]
        self._bucket = WeightedChoices([bucket.weight for bucket in cfg.sizes], (seed, 0))
        self._pattern = [WeightedChoices(pattern_weights, (seed, 1, i)) for i in range(len(counts))]
        self._source = [WeightedChoices(row, (seed, 2, i)) for i, row in enumerate(weights)]

    def plan(self, step: int) -> StepPlan:
        """The batch of a step."""
        [number], [rank] = (array.tolist() for array in self._bucket.choose(step, 1))
        bucket = self._buckets[number]
        [choice] = self._pattern[number].choose(rank, 1)[0]
        first = rank * bucket.batch_size
        sources, ranks = self._source[number].choose(first, bucket.batch_size)
        rows = tuple(map(functools.partial(self._row, number), sources.tolist(), ranks.tolist()))
        pattern = self._patterns[choice] if bucket.num_frames > 1 else "none"
        return StepPlan(number, pattern, first, rows)

    def _row(self, bucket: int, source: int, rank: int) -> tuple[int, int]:
        count = self._counts[bucket][source]
        if count is None:
            return source, rank
        return source, shuffled(rank, count, (self._seed, 3, bucket, source))
