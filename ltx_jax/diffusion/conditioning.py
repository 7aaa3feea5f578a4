"""Conditions: images and clips that a video has to show or follow, as latents, extra tokens and
strengths.

A condition at frame 0 replaces the first latent frames. Later latent frames cannot simply be
replaced: the first latent frame of a clip stands for one frame, but in the middle of a video a
latent frame stands for eight. So a later image, and the first two latent frames of a later clip,
become extra tokens before those of the video, with the positions of the frames that they show. The
rest of the clip replaces the video's latent frames.

A reference is not shown: all its latents are extra tokens, before those of other conditions, with
the positions of the video's own tokens. What the video takes from it, such as edges, depends on
the training of the network, usually of an adapter called IC-LoRA ("in-context").

Every token has a strength, which is 0 for tokens without a condition. A token of strength s starts
at noise level 1 - s, and does not change until the time of the other tokens has fallen to 1 - s.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

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
      mask: for a condition at frame 0: a path, or an array (h, w) for all frames or (t, h, w),
        boolean or uint8. Latents that any white pixel (True, or 128 and more) touches are left to
        the model; the others are the condition. None: all of it is the condition.

    Raises:
      ValueError: for a negative frame, a strength outside [0, 1], or a mask at a later frame.
    """

    media: str | os.PathLike[str] | Any
    frame: int = 0
    strength: float = 1.0
    mask: str | os.PathLike[str] | Any = None

    def __post_init__(self):
        if self.frame < 0:
            raise ValueError(f"a condition cannot start at frame {self.frame}: frames count from 0")
        _check_strength("condition", self.strength)
        if self.mask is not None and self.frame:
            raise ValueError(
                f"a condition with a mask must start at frame 0, not {self.frame}: later ones "
                "become tokens of their own, so that a mask has nothing to leave free"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """A clip that a video has to follow without showing it.

    Attributes:
      media: as in `Condition`; the clip begins at the first frame of the video.
      strength: as in `Condition`.
      downscale_factor: k, a whole number: the reference is encoded at 1/k of the video's height and
        width. None: as the loaded adapters say in their metadata, or 1.
      preprocessor: what to draw from the media first, as in `data.preprocessors`: "canny", or
        "depth:MODEL". None: the media are the reference.

    Raises:
      ValueError: for a strength outside [0, 1], or a factor below 1.
    """

    media: str | os.PathLike[str] | Any
    strength: float = 1.0
    downscale_factor: int | None = None
    preprocessor: str | None = None
    frame: ClassVar[None] = None  # the place of references in `Encoded`

    def __post_init__(self):
        _check_strength("reference", self.strength)
        if self.downscale_factor is not None and self.downscale_factor < 1:
            raise ValueError(
                f"the downscale_factor of a reference must be 1 or more, got "
                f"{self.downscale_factor}"
            )


def _check_strength(kind: str, strength: float) -> None:
    if not 0 <= strength <= 1:
        raise ValueError(f"the strength of a {kind} must lie in [0, 1], got {strength}")


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """A condition or a reference as latents, for sampling and training.

    Attributes:
      latents: (b, t, h, w, c), normalised. A reference may have 1/k of the video's rows and
        columns, for a whole number k.
      strength: one for all (), one per sample (b,), one per latent frame (b, t), or one per latent
        (b, t, h, w).
      frame: the frame of the video that shows the condition's first frame: a Python int, or a
        traced array (b,) with one per sample. In such an array none may be 0, and the condition
        may have at most `PREFIX` latent frames. None for a reference.
    """

    latents: Any
    strength: Any
    frame: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
    """The initial tokens with the conditions: tokens of references, those of other conditions, and
    those of the video.

    Attributes:
      tokens: (b, n, c).
      coords: pixel coordinates (frame, row, column): (n, 3), or (b, n, 3) if samples differ.
      strength: strength of each token, (b, n); None if there are no conditions.
    """

    tokens: Any
    coords: Any
    strength: Any


def check_conditions(
    conditions: Sequence[Condition | Reference],
    lengths: Sequence[int],
    num_frames: int,
    temporal_factor: int = 8,
) -> None:
    """Checks that conditions with `lengths` frames each fit into a video of `num_frames` frames.

    Raises:
      ValueError: if one does not; the message names the condition, the value and a valid one.
    """
    for i, (condition, length) in enumerate(zip(conditions, lengths, strict=True)):
        kind = "condition" if isinstance(condition, Condition) else "reference"
        frame, name = condition.frame or 0, f"{kind} {i}"
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
      conditions: conditions that `check_conditions` accepts, and references, in any order; where
        several conditions overlap, the last one applies.
      noise: source of the noise "condition/i" for the extra tokens of condition i.
      temporal_factor: frames per latent frame.
      spatial_factor: pixels per latent row and column.
      causal: the transformer's `causal_temporal_positioning`.
    """
    b, t, h, w, _ = latents.shape

    def coords_of(grid: positions.Grid) -> Int[Array, "n 3"]:
        """Coordinates of latents that cover the video's rows and columns."""
        corner = positions.latent_coords(grid)
        return positions.pixel_coords(
            corner, temporal_factor, spatial_factor * (h // grid[1]), causal
        )

    def extra_tokens(number: int, item: Array, strength: Array, frame: Any) -> _Tokens:
        item = jnp.broadcast_to(item, (b, *item.shape[1:]))
        item = _lerp(noise.draw(f"condition/{number}", item.shape), item, strength)
        frames, rows, columns = item.shape[1:4]
        coords = coords_of((frames, rows, columns))
        coords = jnp.broadcast_to(coords, (*jnp.shape(frame), *coords.shape))
        coords = coords.at[..., 0].add(jnp.asarray(frame, jnp.int32)[..., None])
        return _Tokens(positions.patchify(item), coords, strength.reshape(b, -1))

    strengths = jnp.zeros((b, t, h, w), jnp.float32)
    references: list[_Tokens] = []
    extra: list[_Tokens] = []
    for i, condition in enumerate(conditions):
        item, frame = condition.latents.astype(latents.dtype), condition.frame
        strength = _per_latent(condition.strength, (b, *item.shape[1:4]))
        if frame is None:
            references.append(extra_tokens(i, item, strength, 0))
            continue
        is_first = isinstance(frame, int) and frame == 0
        head = 0 if is_first else PREFIX
        tail, weight = item[:, head:], strength[:, head:]
        if tail.shape[1]:
            start = 0 if is_first else frame // temporal_factor + PREFIX
            place = slice(start, start + tail.shape[1])
            latents = latents.at[:, place].set(_lerp(latents[:, place], tail, weight))
            strengths = strengths.at[:, place].set(weight)
        if not is_first:
            extra.append(extra_tokens(i, item[:, :head], strength[:, :head], frame))

    own = _Tokens(positions.patchify(latents), coords_of((t, h, w)), strengths.reshape(b, -1))
    all_tokens, all_coords, all_strengths = zip(*references, *extra, own, strict=True)
    samples = (b,) if any(coords.ndim == 3 for coords in all_coords) else ()
    all_coords = [jnp.broadcast_to(x, (*samples, *x.shape[-2:])) for x in all_coords]
    return Prepared(
        tokens=jnp.concatenate(all_tokens, axis=1),
        coords=jnp.concatenate(all_coords, axis=-2),
        strength=jnp.concatenate(all_strengths, axis=1) if conditions else None,
    )


class _Tokens(NamedTuple):
    """Tokens (b, n, c), their coordinates (n, 3) or (b, n, 3), and strengths (b, n)."""

    tokens: Any
    coords: Any
    strength: Any


def time_groups(strength: Float[Array, "b n"], levels: Float[Array, "g"]) -> TimeGroups:
    """Groups the tokens by strength, since tokens of equal strength have equal times at every step.

    Args:
      strength: strength of each token.
      levels: all values that can occur in `strength`; each makes one group.
    """
    group = jnp.argmin(jnp.abs(strength[..., None] - levels[None, None]), axis=-1)
    inside = group[:, None] == jnp.arange(len(levels))[None, :, None]
    return TimeGroups(group, jnp.argmax(inside, axis=-1))


def _per_latent(strength: Any, shape: tuple[int, int, int, int]) -> Float[Array, "b t h w"]:
    strength = jnp.asarray(strength, jnp.float32)
    missing = 4 - strength.ndim if strength.ndim else 0
    return jnp.broadcast_to(strength.reshape(strength.shape + (1,) * missing), shape)


def _lerp(a: Array, b: Array, weight: Float[Array, "b t h w"]) -> Array:
    """Interpolates from a to b; exact at weights 0 and 1."""
    weight = weight[..., None]
    return jnp.where(weight < 0.5, a + weight * (b - a), b - (b - a) * (1 - weight))
