"""Training batches: which clips a step sees, as a pure function of (seed, step)."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from ltx_jax.config import DataConfig
from ltx_jax.data import folder, shapes

_CACHE_BYTES = 4 * 2**30  # of decoded clips kept in memory


@dataclasses.dataclass(frozen=True)
class Example:
    """One clip, its caption, and its own frames per second."""

    frames: UInt8[np.ndarray, "t h w 3"]
    caption: str
    frame_rate: float


@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples of one size, stacked."""

    frames: UInt8[np.ndarray, "b t h w 3"]
    captions: tuple[str, ...]
    frame_rate: Float32[np.ndarray, " b"]


@runtime_checkable
class Source(Protocol):
    """Examples by index. `count` is None if there is no end of them."""

    @property
    def count(self) -> int | None:
        """Number of different examples."""
        ...

    def example(self, index: int) -> Example:
        """Example number `index`."""
        ...


class World:
    """The procedural world: every index is a new clip."""

    count = None

    def __init__(self, cfg: DataConfig, seed: int):
        self._cfg, self._seed = cfg, seed

    def example(self, index: int) -> Example:
        """Draws a clip."""
        cfg = self._cfg
        clip = shapes.clip(
            index,
            seed=self._seed,
            num_frames=cfg.num_frames,
            height=cfg.height,
            width=cfg.width,
            fps=cfg.frame_rates[0],
        )
        return Example(clip.frames, clip.caption, cfg.frame_rates[0])


class Folder:
    """The first frames of every clip of a folder, at the clip's own rate.

    As many decoded clips as fit the cache stay in memory; a folder that fits as a whole is read at
    once, so that a bad clip shows before training starts.

    Raises:
      ValueError: if there is no clip, or one is damaged, too short or without caption.
    """

    def __init__(self, cfg: DataConfig):
        self._cfg = cfg
        self._clips = folder.list_clips(cfg.source)
        self._cache: dict[int, Example] = {}
        self._room = _CACHE_BYTES // (cfg.num_frames * cfg.height * cfg.width * 3)
        if len(self._clips) <= self._room:
            for index in range(len(self._clips)):
                self.example(index)

    @property
    def count(self) -> int:
        """Number of clips."""
        return len(self._clips)

    def example(self, index: int) -> Example:
        """Reads a clip, or takes it from memory."""
        if index in self._cache:
            return self._cache[index]
        cfg, clip = self._cfg, self._clips[index]
        frames, rate = folder.load_clip(clip.path, cfg.num_frames, cfg.height, cfg.width)
        example = Example(frames, clip.caption, rate)
        if len(self._cache) < self._room:
            self._cache[index] = example
        return example


def open_source(cfg: DataConfig, seed: int) -> World | Folder:
    """The source that the config names.

    Raises:
      ValueError: if the folder or one of its clips cannot be used.
    """
    return World(cfg, seed) if cfg.source == "shapes" else Folder(cfg)


def indices(count: int | None, seed: int, step: int, batch_size: int) -> list[int]:
    """The examples of a step: every epoch is a permutation of its own, cut into batches."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    if count is None:
        return list(positions)
    orders = {
        epoch: np.random.default_rng([seed, epoch]).permutation(count)
        for epoch in {position // count for position in positions}
    }
    return [int(orders[position // count][position % count]) for position in positions]


def load_batch(source: Source, chosen: Sequence[int]) -> Batch:
    """Reads and stacks examples."""
    examples = [source.example(index) for index in chosen]
    return Batch(
        np.stack([example.frames for example in examples]),
        tuple(example.caption for example in examples),
        np.array([example.frame_rate for example in examples], np.float32),
    )


def in_order(source: Source, batch_size: int) -> Iterator[tuple[list[int], Batch]]:
    """All examples of a finite source once, batch by batch; the last one repeats its last.

    Yields the indices without the repeated ones, and the batch.
    """
    count = source.count or 0
    for start in range(0, count, batch_size):
        chosen = list(range(start, min(start + batch_size, count)))
        padded = chosen + chosen[-1:] * (batch_size - len(chosen))
        yield chosen, load_batch(source, padded)
