"""The order of the data: seeded choices that any process can work out for any step by itself."""

import bisect
import functools
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

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
    """

    def __init__(self, weights: Sequence[float], seed: Sequence[int]):
        total = sum(weights)
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


@functools.lru_cache(64)
def _permutation(count: int, seed: tuple[int, ...]) -> Int64[np.ndarray, " count"]:
    return np.random.default_rng(seed).permutation(count)


def shuffled(rank: int, count: int, seed: tuple[int, ...]) -> int:
    """Item number `rank` of an endless reading of `count` items, every time in another order."""
    epoch, place = divmod(rank, count)
    return int(_permutation(count, (*seed, epoch))[place])
