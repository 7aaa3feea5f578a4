"""The order of the data: seeded choices that any process can work out for any step by itself."""

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


class Shares:
    """Chooses one of several options for every number 0, 1, ..., each in its share of the choices.

    The choices spread evenly: the multiples of the golden ratio fill a circle as evenly as any
    sequence does, and every option owns an arc of it. Among any n numbers in a row an option comes
    up n times its share, give or take a few.

    Args:
      weights: of the options, not all 0; they need not sum to 1.
      seed: turns the circle.

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
        """Options of `count` numbers from `first` on, and how often each was chosen before."""
        if len(self._ends) == 2:
            return np.zeros(count, np.int64), np.arange(first, first + count)
        options, ranks = np.empty((2, count), np.int64)
        seen: dict[int, int] = {}
        for i in range(count):
            point = (self._turn + (first + i) * _STRIDE) % _PERIOD
            option = bisect.bisect_right(self._ends, point) - 1
            if option not in seen:
                seen[option] = self._before(first, option)
            options[i], ranks[i] = option, seen[option]
            seen[option] += 1
        return options, ranks

    def _before(self, number: int, option: int) -> int:
        """How many of the numbers below `number` choose the option."""
        low, high = self._ends[option : option + 2]
        return _floor_sum(number, self._turn - low) - _floor_sum(number, self._turn - high)


def _floor_sum(n: int, b: int) -> int:
    """The sum of (stride * i + b) // period over i < n, by the steps of Euclid's algorithm."""
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
    """Item number `rank` of an endless reading of `count` items, every time in another order.

    The orders are Feistel networks over the next power of four, so none takes any memory; numbers
    from `count` on are sent through again.
    """
    epoch, place = divmod(rank, count)
    half = max((count - 1).bit_length() + 1, 2) // 2
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for key in _keys((*seed, epoch)):
            left, right = right, left ^ (_scrambled(right + key) & mask)
        place = left << half | right
        if place < count:
            return place


@functools.lru_cache(1024)
def _keys(seed: tuple[int, ...]) -> list[int]:
    return np.random.default_rng(seed).integers(_PERIOD, size=6, dtype=np.uint64).tolist()


def _scrambled(x: int) -> int:
    """A well-mixed function of 64 bits: the finaliser of SplitMix64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % _PERIOD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % _PERIOD
    return x ^ (x >> 31)


class Plan(NamedTuple):
    """What one step sees, over all processes.

    Attributes:
      bucket: its number in the config.
      pattern: what the whole batch is given; "none" for pictures.
      first: how many examples of this bucket come before those of this step.
      rows: for each example its source, and its number among those of it that fit the bucket.
    """

    bucket: int
    pattern: ConditionPattern
    first: int
    rows: tuple[tuple[int, int], ...]


class Order:
    """What every step sees: its bucket, and from that its pattern and its examples.

    Each bucket reads each source to the end and then anew, every time in another order. Sources
    that have nothing for a bucket leave their share of it to the others.

    Args:
      cfg: buckets, sources, weights.
      counts: of every bucket and source, how many examples fit; None for no end of them.
      patterns: what batches of videos are given, and in which shares.
      seed: of all choices.

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
        shares = [share for _, share in patterns]
        weights = [
            [0.0 if n == 0 else source.weight for n, source in zip(row, cfg.sources, strict=True)]
            for row in counts
        ]
        self._bucket = Shares([bucket.weight for bucket in cfg.sizes], (seed, 0))
        self._pattern = [Shares(shares, (seed, 1, i)) for i in range(len(counts))]
        self._source = [Shares(row, (seed, 2, i)) for i, row in enumerate(weights)]

    def plan(self, step: int) -> Plan:
        """What a step sees."""
        [number], [rank] = (found.tolist() for found in self._bucket.choose(step, 1))
        bucket = self._buckets[number]
        [choice] = self._pattern[number].choose(rank, 1)[0]
        first = rank * bucket.batch_size
        sources, ranks = self._source[number].choose(first, bucket.batch_size)
        rows = tuple(map(functools.partial(self._row, number), sources.tolist(), ranks.tolist()))
        pattern = self._patterns[choice] if bucket.num_frames > 1 else "none"
        return Plan(number, pattern, first, rows)

    def _row(self, bucket: int, source: int, rank: int) -> tuple[int, int]:
        count = self._counts[bucket][source]
        if count is None:
            return source, rank
        return source, shuffled(rank, count, (self._seed, 3, bucket, source))
