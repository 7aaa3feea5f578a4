"""Draws the conditions of a batch: what the network sees with less noise than the rest.

The pattern of a batch says which kind of condition its examples have: none, the first frame, the
first latent frames, single frames, a short clip anywhere later, or all that lies outside of a mask.
The number of these frames and their places are drawn here, on the host, for each example. The
reference of an example, if it has one, is always a condition.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int

from ltx_jax.config import ConditionPattern, FlowConfig, VAEConfig
from ltx_jax.data import masks
from ltx_jax.data.loader import Batch, StoredLatents
from ltx_jax.diffusion import positions
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
      kept: latents outside of the masks, which are conditions, (b, t, h, w); None if no example has
        such conditions.
      reference: the clip to follow, in the forms of `ConditionItem.video`; None without one.
    """

    prefix: Int[np.ndarray, " b"] | None = None
    items: tuple[ConditionItem, ...] = ()
    kept: Bool[np.ndarray, "b t h w"] | None = None
    reference: Any = None


def draw_conditions(
    batch: Batch, random: StepRandom, cfg: FlowConfig, vae: VAEConfig
) -> Conditions:
    """Draws the conditions of a batch; its references alone if its clips are too short for its
    pattern.

    If the conditions are single frames or a clip, each example also has its first frame as a
    condition with probability one half.

    Raises:
      ValueError: if a data set of latents holds no separately encoded items for the pattern.
    """
    frames = (batch.bucket.num_frames - 1) // vae.temporal_factor + 1
    shortest = {"first_frame": 2, "prefix": 2, "keyframes": 2, "clip": 1 + PREFIX}
    drawn = Conditions()
    if batch.pattern == "mask":
        mask = latent_mask(batch, vae)
        drawn = Conditions(kept=None if mask is None else ~mask)
    elif batch.pattern != "none" and frames >= shortest[batch.pattern]:
        drawn = _of_frames(batch, random, cfg, vae.temporal_factor, frames)
    return drawn._replace(reference=reference_of(batch))


def _of_frames(
    batch: Batch, random: StepRandom, cfg: FlowConfig, temporal_factor: int, frames: int
) -> Conditions:
    """Draws conditions that are whole frames, of clips of `frames` latent frames."""
    rows, pattern = len(batch.captions), batch.pattern
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


def reference_of(batch: Batch) -> Any:
    """The references of a batch, as pixels or as moments; None without any."""
    if batch.latents is None:
        return batch.reference
    stored = batch.latents.reference
    return None if stored is None else {"mean": stored[..., :-1], "logvar": stored[..., -1:]}


def latent_mask(batch: Batch, vae: VAEConfig) -> Bool[np.ndarray, "b t h w"] | None:
    """The latents that the masks of a batch touch; None without masks."""
    if batch.mask is None or batch.latents is not None:
        return batch.mask
    return masks.on_latents(batch.mask, vae.temporal_factor, vae.spatial_factor)


def loss_weight(
    batch: Batch, cfg: FlowConfig, vae: VAEConfig, grid: positions.Grid
) -> Float32[np.ndarray, "b t h w"] | None:
    """The weight of each latent in the loss; None if all count equally."""
    if not cfg.weighs_latents:
        return None
    mask = latent_mask(batch, vae)
    weight = np.ones((len(batch.captions), *grid), np.float32)
    if mask is not None:
        weight *= np.where(mask, 1.0, cfg.outside_weight)
    if cfg.loss_frames is not None:
        first, end = cfg.loss_frames
        last_of = vae.temporal_factor * np.arange(grid[0])  # the last frame of each latent frame
        first_of = np.maximum(last_of - vae.temporal_factor + 1, 0)
        counts = (first_of < end) & (last_of >= first)
        weight *= counts[:, None, None]
    return weight.astype(np.float32)


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
