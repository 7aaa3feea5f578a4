"""Reads, checks and scales the media of a pipeline call: conditions, references, input video."""

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Shaped

from ltx_jax import pixels
from ltx_jax.config import SamplingConfig
from ltx_jax.data import inputs, masks
from ltx_jax.diffusion import conditioning
from ltx_jax.diffusion.conditioning import Condition, Reference
from ltx_jax.inference.arguments import Size
from ltx_jax.models.vae import Posterior

_log = logging.getLogger(__name__)


def load_conditions(
    conditions: Sequence[Condition | Reference],
    size: Size,
    batch: int | None,
    options: SamplingConfig,
) -> list[Condition | Reference]:
    """Reads, checks and prepares the media of conditions, and pads them to the sampled size.

    Media with a batch axis of size 1 apply to all videos; otherwise that axis must have the size
    `batch`, which None leaves unchecked.

    Clips in files are resampled to the video's frame rate and trimmed, as in the official script,
    to 8k+1 frames that fit into the video; the log says so. Arrays have to fit as they are.

    Files and uint8 arrays are cropped to the aspect ratio. Conditions, but not references, are
    blurred and compressed as in training, with `options.prepare_conditions`. Floating-point arrays
    are taken as already prepared: they are only resized if necessary. So are stored posteriors
    (`models.vae.Posterior`), which must have the size of the video.

    Returns:
      The conditions, with media (b, t, h, w, 3) in float32 or posteriors, and masks (1, t, h, w).

    Raises:
      ValueError: for media that cannot be read or do not fit the video.
    """
    clips = []
    for i, condition in enumerate(conditions):
        # Reads one frame more than the video has, to notice clips that are too long.
        clip = _read(condition.media, size.frames + 1, options.frame_rate)
        if isinstance(condition.media, inputs.File):
            clip = _trimmed(clip, condition, size)
        if batch is not None and _batch_of(clip) not in (1, batch):
            raise ValueError(
                f"condition {i} holds {_batch_of(clip)} clips for a batch of {batch} videos"
            )
        clips.append(clip)
    lengths = [
        _length(clip, size, isinstance(condition, Reference))
        for condition, clip in zip(conditions, clips, strict=True)
    ]
    conditioning.check_conditions(conditions, lengths, size.frames, size.temporal_factor)
    return [
        _prepared(condition, clip, size, options)
        for condition, clip in zip(conditions, clips, strict=True)
    ]


def _prepared(
    condition: Condition | Reference, clip: Any, size: Size, options: SamplingConfig
) -> Condition | Reference:
    if isinstance(clip, Posterior):
        return condition
    if isinstance(condition, Reference):
        clip = _drawn(clip, condition.preprocessor, size)
        return dataclasses.replace(condition, media=size.pad(clip), preprocessor=None)
    mask = condition.mask
    if mask is not None:
        mask = _read_mask(mask, clip, size, options.frame_rate)
    media = size.pad(_fit(clip, size, options.prepare_conditions))
    return dataclasses.replace(condition, media=media, mask=mask)


def _drawn(
    clip: Shaped[np.ndarray, "b t h w c"], name: str | None, size: Size
) -> Float32[np.ndarray, "b t h2 w2 c"]:
    """What a preprocessor draws from a clip at the video's size, where adapters learned it."""
    fitted = _fit(clip, size, False)
    if name is None:
        return fitted
    if clip.dtype != np.uint8:
        raise ValueError(f"the preprocessor {name} draws from files and uint8 arrays, not floats")
    from ltx_jax.data import preprocessors

    draw = preprocessors.preprocessor(name)
    return pixels.from_bytes(
        np.stack([draw(np.asarray(pixels.to_nearest_bytes(x))) for x in fitted])
    )


def _batch_of(clip: Any) -> int:
    return (clip.mean if isinstance(clip, Posterior) else clip).shape[0]


def _length(clip: Any, size: Size, is_reference: bool) -> int:
    """The number of frames of a clip, or of the clip that a posterior encodes."""
    if not isinstance(clip, Posterior):
        return clip.shape[1]
    shape, grid = clip.mean.shape[1:4], size.grid
    factor = max(grid[1] // shape[1], 1) if is_reference else 1
    if (factor * shape[1], factor * shape[2]) != grid[1:]:
        raise ValueError(f"a posterior has {shape[1:]} rows and columns, and the video {grid[1:]}")
    return (shape[0] - 1) * size.temporal_factor + 1


def _trimmed(
    clip: Shaped[np.ndarray, "b t h w c"], condition: Condition | Reference, size: Size
) -> Shaped[np.ndarray, "b t2 h w c"]:
    """As many frames of a clip, 8k+1, as fit into the video from the condition's frame on."""
    frame = condition.frame or 0
    factor, room = size.temporal_factor, max(size.frames - frame, 1)
    length = (min(clip.shape[1], room) - 1) // factor * factor + 1
    if length < clip.shape[1]:
        _log.warning(
            "%s: trimmed to %d frames; clips have %dk+1, and %d of %d follow frame %d",
            *(condition.media, length, factor, room, size.frames, frame),
        )
    return clip[:, :length]


def _read_mask(
    media: Any, clip: Shaped[np.ndarray, "b t h w c"], size: Size, frame_rate: float
) -> Bool[np.ndarray, "1 t h2 w2"]:
    """The mask of a clip at the sampled size, False in what padding adds."""
    length, is_prepared = clip.shape[1], clip.dtype != np.uint8
    if isinstance(media, inputs.File):
        frames = _read(media, length, frame_rate)[0]
    else:
        frames = np.asarray(media)
        if frames.dtype == np.bool_:
            frames = frames.astype(np.uint8) * 255
        if frames.dtype != np.uint8 or frames.ndim not in (2, 3, 4) or not frames.size:
            raise ValueError(
                f"a mask must be boolean or uint8, (h, w) or (t, h, w), got {frames.dtype} "
                f"{frames.shape}"
            )
        frames = frames.reshape(-1, *frames.shape[-2:], 1)
    if len(frames) == 1:
        frames = np.repeat(frames, length, axis=0)
    if len(frames) < length:
        raise ValueError(f"the mask has {len(frames)} frames and its condition {length}")
    frames = np.broadcast_to(frames[:length], (*frames[:length].shape[:3], 3))
    (height, width), own = clip.shape[2:4], frames.shape[1:3]
    if abs(own[0] * width - own[1] * height) > max(*own, height, width):
        raise ValueError(
            f"the mask is {own[1]} x {own[0]} and its condition {width} x {height}: make it of the "
            "same shape"
        )
    from ltx_jax.data import pixels as scaling

    if not is_prepared:
        frames = scaling.crop_to_aspect(frames, size.height, size.width)
    fitted = masks.of_frames(scaling.resized(frames, size.height, size.width))
    return size.pad(fitted[None, ..., None])[..., 0]


def reference_factor(metadata: Sequence[Mapping[str, str]]) -> int:
    """The factor by which adapters want references to be smaller than the video.

    Args:
      metadata: that of the loaded adapters' files.

    Raises:
      ValueError: if they want several, or one that is no whole number, or references that are also
        slower than the video.
    """
    factors = set()
    for entries in metadata:
        # LTX-2's names; adapters for LTX-Video have none.
        for name in ("reference_downscale_factor", "reference_spatial_scale_factor"):
            if name in entries:
                factors.add(_whole(name, entries[name]))
        name = "reference_temporal_scale_factor"
        if name in entries and _whole(name, entries[name]) != 1:
            raise ValueError(
                f"an adapter has {name} = {entries[name]}: references with fewer frames per second "
                "than the video are not supported"
            )
    if len(factors) > 1:
        raise ValueError(
            f"the adapters want references of {sorted(factors)} times smaller sides: set the "
            "downscale_factor of the reference, or load one of them"
        )
    return factors.pop() if factors else 1


def _whole(name: str, text: str) -> int:
    try:
        value = float(json.loads(text))
    except (ValueError, TypeError):
        value = 0.0
    if value < 1 or value != int(value):
        raise ValueError(f"an adapter has {name} = {text[:40]!r}, and it must be a whole number")
    return int(value)


def encoder_input(condition: Condition | Reference, size: Size, factor: int) -> Any:
    """The clip to encode of a condition that `load_conditions` has prepared, or its posterior.

    Args:
      condition: the condition.
      size: the size of the video.
      factor: the downscale factor of references that have none of their own.

    Raises:
      ValueError: if the sampled size is not a multiple of the reference's.
    """
    clip: Any = condition.media
    if not isinstance(condition, Reference) or isinstance(clip, Posterior):
        return clip
    factor = condition.downscale_factor or factor
    step = factor * size.spatial_factor
    _, height, width = size.padded
    if height % step or width % step:
        raise ValueError(
            f"a reference {factor} times smaller than the video needs a height and width that are "
            f"multiples of {step}, and {height} x {width} is sampled"
        )
    boxes = clip.reshape(*clip.shape[:2], height // factor, factor, width // factor, factor, -1)
    return boxes.mean(axis=(3, 5))


def kept_latents(
    condition: Condition | Reference, size: Size
) -> Float32[np.ndarray, "1 t h w"] | None:
    """1 for the latents that a prepared condition's mask keeps, else 0; None without a mask."""
    mask: Any = condition.mask if isinstance(condition, Condition) else None
    if mask is None:
        return None
    free = masks.on_latents(mask, size.temporal_factor, size.spatial_factor)
    return 1 - free.astype(np.float32)


def reference_tokens(
    conditions: Sequence[Condition | Reference], posteriors: Sequence[Posterior]
) -> int:
    """Number of the tokens of references, given the posterior of each condition."""
    shapes = [
        posterior.mean.shape[1:4]
        for condition, posterior in zip(conditions, posteriors, strict=True)
        if isinstance(condition, Reference)
    ]
    return sum(map(math.prod, shapes))


def load_input(
    media: Any, size: Size, batch: int, prepare: bool
) -> Float32[np.ndarray, "b t h w c"]:
    """Reads the input of video-to-video and pads it to the sampled size; b is 1 or the batch.

    Surplus frames of a longer video are dropped. The frames added by padding repeat the last one.

    Raises:
      ValueError: for media that cannot be read, a still image or a clip that is too short.
    """
    clip = _read(media, size.padded[0])
    if clip.shape[0] not in (1, batch):
        raise ValueError(f"the input holds {clip.shape[0]} clips for a batch of {batch} videos")
    length = clip.shape[1]
    if length == 1 < size.frames:
        raise ValueError(
            f"the input is a still image, where a clip of {size.frames} frames is expected; "
            f"to start a video from an image, pass it as a condition"
        )
    if length < size.frames:
        raise ValueError(
            f"the input has {length} frames and num_frames is {size.frames}: set num_frames to "
            f"{length} or less"
        )
    clip = _fit(clip[:, : size.padded[0]], size, prepare)
    missing = size.padded[0] - clip.shape[1]
    clip = np.pad(clip, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0)), mode="edge")
    return size.pad(clip)


def _read(media: Any, num_frames: int, frame_rate: float | None = None) -> Any:
    """A file or an array as (b, t, h, w, 3); at most `num_frames` frames of a file, resampled to
    `frame_rate` unless that is None. A posterior as it is."""
    if isinstance(media, Posterior):
        return media
    if isinstance(media, inputs.File):
        from ltx_jax.data import video  # imports PyAV, which only media files need

        return video.read_media(media, num_frames=num_frames, frame_rate=frame_rate)[None]
    clip = np.asarray(media)
    if clip.dtype != np.uint8:
        clip = conditioning.as_video(clip)
    clip = clip.reshape((1,) * (5 - clip.ndim) + clip.shape)
    if clip.ndim != 5 or clip.shape[-1] != 3 or not clip.size:
        raise ValueError(
            f"media must be (h, w, 3), (t, h, w, 3) or (b, t, h, w, 3), got {np.shape(media)}"
        )
    return clip


def _fit(clip: Shaped[np.ndarray, "b t h w c"], size: Size, prepare: bool) -> Any:
    if clip.dtype != np.uint8:
        return np.asarray(conditioning.resize(jnp.asarray(clip), size.height, size.width))
    from ltx_jax.data.condition_pixels import prepare_condition

    crf = 29 if prepare else 0
    return np.stack(
        [
            prepare_condition(frames, size.height, size.width, blur=prepare, crf=crf)
            for frames in clip
        ]
    )
