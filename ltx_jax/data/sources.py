"""Where training examples come from, one by one: what a source is, and the procedural world."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from ltx_jax.config import BucketConfig, DataConfig
from ltx_jax.data import shapes


@dataclasses.dataclass(frozen=True)
class Example:
    """One clip, its caption, and its own frames per second."""

    frames: UInt8[np.ndarray, "t h w 3"]
    caption: str
    frame_rate: float


@runtime_checkable
class Source(Protocol):
    """Examples by number."""

    def count(self, bucket: BucketConfig) -> int | None:
        """How many examples fit a bucket; None if there is no end of them."""
        ...

    def example(self, bucket: BucketConfig, index: int, rng: np.random.Generator) -> Example:
        """Number `index` of those that fit; `rng` draws all that is left to chance.

        Raises:
          ValueError: if it cannot be read.
        """
        ...


class World:
    """The procedural world: every index is a new clip."""

    def __init__(self, cfg: DataConfig, seed: int):
        self._frame_rates, self._seed = cfg.frame_rates, seed

    def count(self, bucket: BucketConfig) -> None:
        """There is no end of clips of any size."""

    def example(self, bucket: BucketConfig, index: int, rng: np.random.Generator) -> Example:
        """Draws a clip."""
        frame_rate = float(rng.choice(self._frame_rates))
        clip = shapes.clip(
            index,
            seed=self._seed,
            num_frames=bucket.num_frames,
            height=bucket.height,
            width=bucket.width,
            fps=frame_rate,
        )
        return Example(clip.frames, clip.caption, frame_rate)
