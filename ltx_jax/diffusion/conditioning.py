"""Conditions: images and clips that a video has to show, as latents, extra tokens and strengths.

A condition at frame 0 replaces the first latent frames. Later latent frames cannot simply be
replaced: the first latent frame of a clip stands for one frame, but in the middle of a video a
latent frame stands for eight. So a later image, and the first two latent frames of a later clip,
become extra tokens before those of the video, with the positions of the frames that they show. The
rest of the clip replaces the video's latent frames.

Every token has a strength, which is 0 for tokens without a condition. A token of strength s starts
at noise level 1 - s, and does not change until the time of the other tokens has fallen to 1 - s.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from ltx_jax import pixels
from ltx_jax.diffusion import positions
from ltx_jax.diffusion.noise import NoiseSource
from ltx_jax.models.transformer import TimeGroups

PREFIX = 2  # latent frames of a later clip that become extra tokens

Media = UInt8[np.ndarray, "*t h w c"] | Float[np.ndarray, "*t h w c"]


@dataclasses.dataclass(frozen=True, eq=False)
class Condition:
    """An image or a clip that the video has to show.

    Attributes:
      media: a path, or an array (h, w, 3) for an image, (t, h, w, 3) for a clip, (b, t, h, w, 3)
        for one clip per video of a batch; uint8, or floating point in [-1, 1].
      frame: the frame of the video that shows the first frame of the media.
      strength: s in [0, 1]. The condition starts at noise level 1 - s: 1 shows it exactly, 0 has no
        effect.

    Raises:
      ValueError: for a negative frame, or a strength outside [0, 1].
    """

    media: str | os.PathLike[str] | Any
    frame: int = 0
    strength: float = 1.0

    def __post_init__(self):
        if self.frame < 0:
            raise ValueError(f"a condition cannot start at frame {self.frame}: frames count from 0")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"the strength of a condition must lie in [0, 1], got {self.strength}")


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """A condition as latents, for sampling and training.

    Attributes:
      latents: (b, t, h, w, c), normalised.
      strength: one for all (), one per sample (b,), or one per latent frame (b, t).
      frame: the frame of the video that shows the condition's first frame: a Python int, or a
        traced array (b,) with one per sample. In such an array none may be 0, and the condition
        may have at most `PREFIX` latent frames.
    """

    latents: Any
    strength: Any
    frame: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
    """The initial tokens with the conditions: extra tokens first, then those of the video.

    Attributes:
      tokens: (b, n, c).
      coords: pixel coordinates (frame, row, column): (n, 3), or (b, n, 3) if samples differ.
      strength: strength of each token, (b, n); None if there are no conditions.
    """

    tokens: Any
    coords: Any
    strength: Any


def check_conditions(
    conditions: Sequence[Condition],
    lengths: Sequence[int],
    num_frames: int,
    temporal_factor: int = 8,
) -> None:
    """Checks that conditions with `lengths` frames each fit into a video of `num_frames` frames.

    Raises:
      ValueError: if one does not; the message names the condition, the value and a valid one.
    """
    for i, (condition, length) in enumerate(zip(conditions, lengths, strict=True)):
        frame, name = condition.frame, f"condition {i}"
        if length < 1:
            raise ValueError(f"{name} has no frames")
        if frame + length > num_frames:
            raise ValueError(f"{name} {_too_long(frame, length, num_frames, temporal_factor)}")
        if (length - 1) % temporal_factor:
            valid = (length - 1) // temporal_factor * temporal_factor + 1
            raise ValueError(
                f"{name} has {length} frames, but a clip must have {temporal_factor}k+1; cut it to "
                f"its first {valid}"
            )
        if length > 1 and frame % temporal_factor:
            below = frame // temporal_factor * temporal_factor
            raise ValueError(
                f"{name} is a clip at frame {frame}, but a clip must start at a multiple of "
                f"{temporal_factor}: {below} or {below + temporal_factor} (an image may be at any "
                "frame)"
            )


def _too_long(frame: int, length: int, num_frames: int, temporal_factor: int) -> str:
    """The error message for a condition that is too long; a long file's `length` is truncated."""
    room, ways = num_frames - frame, []
    if room > 0:
        ways.append(f"cut it to its first {(room - 1) // temporal_factor * temporal_factor + 1}")
    if length <= num_frames:
        last = num_frames - length
        ways.append(f"start it at frame {last if length == 1 else last - last % temporal_factor}")
    return (
        f"does not fit: a video of {num_frames} frames has {max(room, 0)} from frame {frame} on; "
        f"{', or '.join(ways)}"
    )


def as_video(media: Media) -> Float[np.ndarray, "b t h w c"]:
    """Converts any array that `Condition` accepts to float32 in [-1, 1].

    Raises:
      ValueError: for other shapes, and for numbers out of range.
    """
    media = np.asarray(media)
    if media.ndim not in (3, 4, 5):
        raise ValueError(
            f"a condition must be (h, w, c), (t, h, w, c) or (b, t, h, w, c), got {media.shape}"
        )
    media = media.reshape((1,) * (5 - media.ndim) + media.shape)
    if media.dtype == np.uint8:
        return pixels.from_bytes(media)
    media = media.astype(np.float32)
    if not np.all(np.abs(media) <= 1.001):  # rounding of an earlier resize; also false for NaN
        raise ValueError(
            f"floating-point media must lie in [-1, 1], got {media.min()} to {media.max()}; pass "
            f"uint8 for 0 to 255"
        )
    return media


def resize(
    video: Float[Array, "*b h w c"], height: int, width: int
) -> Float[Array, "*b {height} {width} c"]:
    """Resizes bilinearly like the released pipeline: corners not aligned, no antialiasing."""
    return _resize_axis(_resize_axis(video, -3, height), -2, width)


def _resize_axis(x: Array, axis: int, size: int) -> Array:
    old = x.shape[axis]
    if size == old:
        return x
    at = np.maximum((np.arange(size) + 0.5) * np.float32(old / size) - 0.5, 0).astype(np.float32)
    low = np.minimum(at.astype(np.int32), old - 1)
    weight = (at - low).reshape((-1,) + (1,) * (-axis - 1))
    weight = jnp.asarray(weight, x.dtype).reshape((1,) * (x.ndim + axis) + weight.shape)
    high = np.minimum(low + 1, old - 1)
    return jnp.take(x, low, axis) * (1 - weight) + jnp.take(x, high, axis) * weight


def prepare(
    latents: Float[Array, "b t h w c"],
    conditions: Sequence[Encoded],
    noise: NoiseSource,
    *,
    temporal_factor: int,
    spatial_factor: int,
    causal: bool,
) -> Prepared:
    """Puts the conditions into the initial latents, and as extra tokens before them.

    Args:
      latents: noise, or a video noised to the first time.
      conditions: conditions that `check_conditions` accepts, in any order; where several overlap,
        the last one applies.
      noise: source of the noise "condition/i" for the extra tokens of condition i.
      temporal_factor: frames per latent frame.
      spatial_factor: pixels per latent row and column.
      causal: the transformer's `causal_temporal_positioning`.
    """
    b, t, h, w, _ = latents.shape

    def coords_of(grid: positions.Grid) -> Int[Array, "n 3"]:
        corner = positions.latent_coords(grid)
        return positions.pixel_coords(corner, temporal_factor, spatial_factor, causal)

    strengths = jnp.zeros((b, t), jnp.float32)
    extra: list[tuple[Array, Array, Array]] = []  # tokens, coords, strengths
    for i, condition in enumerate(conditions):
        item, frame = condition.latents.astype(latents.dtype), condition.frame
        strength = _per_frame(condition.strength, (b, item.shape[1]))
        is_first = isinstance(frame, int) and frame == 0
        head = 0 if is_first else PREFIX
        tail, weight = item[:, head:], strength[:, head:]
        if tail.shape[1]:
            start = 0 if is_first else frame // temporal_factor + PREFIX
            place = slice(start, start + tail.shape[1])
            latents = latents.at[:, place].set(_lerp(latents[:, place], tail, weight))
            strengths = strengths.at[:, place].set(weight)
        if is_first:
            continue
        item, weight = item[:, :head], strength[:, :head]
        item = jnp.broadcast_to(item, (b, *item.shape[1:]))
        item = _lerp(noise.draw(f"condition/{i}", item.shape), item, weight)
        coords = coords_of((item.shape[1], h, w))
        coords = jnp.broadcast_to(coords, (*jnp.shape(frame), *coords.shape))
        coords = coords.at[..., 0].add(jnp.asarray(frame, jnp.int32)[..., None])
        extra.append((positions.patchify(item), coords, jnp.repeat(weight, h * w, axis=1)))

    own = jnp.repeat(strengths, h * w, axis=1)
    extra.append((positions.patchify(latents), coords_of((t, h, w)), own))
    all_tokens, all_coords, all_strengths = zip(*extra, strict=True)
    samples = (b,) if any(coords.ndim == 3 for coords in all_coords) else ()
    all_coords = [jnp.broadcast_to(x, (*samples, *x.shape[-2:])) for x in all_coords]
    return Prepared(
        tokens=jnp.concatenate(all_tokens, axis=1),
        coords=jnp.concatenate(all_coords, axis=-2),
        strength=jnp.concatenate(all_strengths, axis=1) if conditions else None,
    )


def time_groups(strength: Float[Array, "b n"], levels: Float[Array, "g"]) -> TimeGroups:
    """Groups the tokens by strength, since tokens of equal strength have equal times at every step.

    Args:
      strength: strength of each token.
      levels: all values that can occur in `strength`; each makes one group.
    """
    group = jnp.argmin(jnp.abs(strength[..., None] - levels[None, None]), axis=-1)
    inside = group[:, None] == jnp.arange(len(levels))[None, :, None]
    return TimeGroups(group, jnp.argmax(inside, axis=-1))


def _per_frame(strength: Any, shape: tuple[int, int]) -> Float[Array, "b t"]:
    strength = jnp.asarray(strength, jnp.float32)
    if strength.ndim == 1:
        strength = strength[:, None]
    return jnp.broadcast_to(strength, shape)


def _lerp(a: Array, b: Array, weight: Float[Array, "b t"]) -> Array:
    """Interpolates from a to b; exact at weights 0 and 1."""
    weight = weight[..., None, None, None]
    return jnp.where(weight < 0.5, a + weight * (b - a), b - (b - a) * (1 - weight))
