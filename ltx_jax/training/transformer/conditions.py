"""Draws the conditions of a batch: frames that the network sees with less noise than the others.

The pattern of a batch says which kind of condition its examples have: none, the first frame, the
first latent frames, single frames, or a short clip anywhere later. The number of these frames and
their places are drawn here, on the host, for each example.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from ltx_jax.config import ConditionPattern, FlowConfig
from ltx_jax.data.loader import Batch, StoredLatents
from ltx_jax.diffusion.conditioning import PREFIX


class StepRandom:
    """The random choices of one step, which do not depend on the number of processes.

    Every process draws for the whole batch, and uses the rows of its own part.

    Args:
      seed: seed of the run.
      step: number of the step.
      part: index of this process's part of the batch, and how many parts there are.
    """

    def __init__(self, seed: int, step: int, part: tuple[int, int] = (0, 1)):
        self._rng = np.random.default_rng([seed, 10, step])  # the loader uses numbers up to 9
        self._index, self._parts = part

    def number(self, low: int, high: int) -> int:
        """An integer in [low, high] for the whole batch."""
        return int(self._rng.integers(low, high + 1))

    def numbers(self, low: int, high: int, rows: int) -> Int[np.ndarray, " b"]:
        """An integer in [low, high] for each of this process's `rows`."""
        values = self._rng.integers(low, high + 1, rows * self._parts, np.int32)
        return values[self._index * rows :][:rows]

    def chances(self, probability: float, rows: int) -> Bool[np.ndarray, " b"]:
        """A boolean for each of this process's `rows`, True with this probability."""
        values = self._rng.random(rows * self._parts)
        return values[self._index * rows :][:rows] < probability

    def places(self, among: int, count: int, rows: int) -> Int[np.ndarray, "count b"]:
        """`count` distinct integers below `among`, for each of this process's `rows`."""
        order = np.argsort(self._rng.random((rows * self._parts, among)), axis=1)
        return order[self._index * rows :][:rows, :count].T


class ConditionItem(NamedTuple):
    """One image or clip for each example of a batch.

    Attributes:
      video: pixels (b, t, h, w, 3) in uint8, or "mean" and "logvar" of the posterior, or latents;
        at most two latent frames, encoded separately from the video.
      frame: the frame of the video at which the item begins, (b,), above 0.
    """

    video: Any
    frame: Int[np.ndarray, " b"]


class Conditions(NamedTuple):
    """The conditions of a batch.

    Attributes:
      prefix: how many of the first latent frames are conditions, (b,); None if no example has any.
      items: images and clips at later frames.
    """

    prefix: Int[np.ndarray, " b"] | None = None
    items: tuple[ConditionItem, ...] = ()


def draw_conditions(
    batch: Batch, random: StepRandom, cfg: FlowConfig, temporal_factor: int
) -> Conditions:
    """Draws the conditions of a batch; none if its clips are too short for its pattern.

    If the conditions are single frames or a clip, each example also has its first frame as a
    condition with probability one half.

    Raises:
      ValueError: if a data set of latents holds no separately encoded items for the pattern.
    """
    rows = len(batch.captions)
    frames = (batch.bucket.num_frames - 1) // temporal_factor + 1
    pattern = batch.pattern
    shortest = {"none": 1, "first_frame": 2, "prefix": 2, "keyframes": 2, "clip": 1 + PREFIX}
    if pattern == "none" or frames < shortest[pattern]:
        return Conditions()
    if pattern == "first_frame":
        return Conditions(np.ones(rows, np.int32))
    if pattern == "prefix":
        longest = min(max(frames // 2, 2), frames - 1)
        return Conditions(random.numbers(min(2, longest), longest, rows))
    count = random.number(1, cfg.max_keyframes) if pattern == "keyframes" else 1
    prefix = random.numbers(0, 1, rows)
    if batch.latents is not None:
        return Conditions(prefix, _stored_items(batch.latents, pattern, count, random))
    if pattern == "keyframes":
        starts = 1 + random.places(batch.bucket.num_frames - 1, count, rows)
        length = 1
    else:
        starts = temporal_factor * (1 + random.places(frames - PREFIX, count, rows))
        length = 1 + (PREFIX - 1) * temporal_factor
    return Conditions(prefix, tuple(_cut(batch.frames, start, length) for start in starts))


def _cut(pixels: Any, start: Int[np.ndarray, " b"], length: int) -> ConditionItem:
    times = start[:, None] + np.arange(length)
    return ConditionItem(pixels[np.arange(len(start))[:, None], times], start.astype(np.int32))


def _stored_items(
    latents: StoredLatents, pattern: ConditionPattern, count: int, random: StepRandom
) -> tuple[ConditionItem, ...]:
    if pattern == "keyframes":
        videos, starts = latents.keyframes[:, :, None], latents.keyframe_numbers
    else:
        videos, starts = latents.clips, latents.clip_numbers
    rows, stored = starts.shape
    if not stored:
        raise ValueError(
            f"the stored latents hold no {pattern} for conditions: encode the data again with this "
            f"config (ltx-encode), or set --flow.{pattern}_probability 0"
        )
    every = np.arange(rows)
    items = []
    for column in random.places(stored, min(count, stored), rows):
        video = videos[every, column]
        moments = {"mean": video[..., :-1], "logvar": video[..., -1:]}
        items.append(ConditionItem(moments, starts[every, column]))
    return tuple(items)
