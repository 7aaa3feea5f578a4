"""Reads and checks the arguments of a pipeline call: options, sizes, captions."""

import dataclasses
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Shaped

from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import SamplingConfig, TransformerConfig, VAEConfig
from ltx_jax.diffusion import flow
from ltx_jax.inference.text_encoder import TextEncoder

_log = logging.getLogger(__name__)


class Caption(NamedTuple):
    """A batch of encoded captions.

    Attributes:
      embeddings: (b, m, d).
      mask: (b, m), 1 where there is text.
    """

    embeddings: Any
    mask: Any


@dataclasses.dataclass(frozen=True)
class Size:
    """The requested size of a video, and the next larger valid size, which is sampled.

    Rows and columns are added on both sides, frames at the end; all are cropped after sampling.
    """

    frames: int
    height: int
    width: int
    temporal_factor: int  # frames per latent frame
    spatial_factor: int  # pixels per latent row and column

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames, rows, columns."""
        rows, columns = (-(-side // self.spatial_factor) for side in (self.height, self.width))
        return -(-(self.frames - 1) // self.temporal_factor) + 1, rows, columns

    @property
    def padded(self) -> tuple[int, int, int]:
        """Frames, height and width of the video that is sampled."""
        t, h, w = self.grid
        return (t - 1) * self.temporal_factor + 1, h * self.spatial_factor, w * self.spatial_factor

    def notice(self) -> None:
        """Logs a warning if the sampled size is larger than the requested one."""
        if self.padded != (self.frames, self.height, self.width):
            _log.warning(
                "%d frames of %d x %d are not a valid size: sampling %d of %d x %d, then cropping",
                *(self.frames, self.height, self.width),
                *self.padded,
            )

    def pad(self, clip: Shaped[np.ndarray, "b t h w c"]) -> Shaped[np.ndarray, "b t h2 w2 c"]:
        """Pads a clip of the requested size with zeros, which are mid-grey, to the sampled height
        and width."""
        sides = []
        for own, padded in zip((self.height, self.width), self.padded[1:], strict=True):
            before = (padded - own) // 2
            sides.append((before, padded - own - before))
        return np.pad(clip, ((0, 0), (0, 0), *sides, (0, 0)))

    def crop(self, clip: Shaped[np.ndarray, "b t h w c"]) -> Shaped[np.ndarray, "b t2 h2 w2 c"]:
        """Crops a sampled video to the requested size."""
        _, height, width = self.padded
        top, left = (height - self.height) // 2, (width - self.width) // 2
        return clip[:, : self.frames, top : top + self.height, left : left + self.width]


def replace(options: SamplingConfig, changes: Mapping[str, Any]) -> SamplingConfig:
    """The options with some fields replaced; converts lists to tuples, and ints to floats in
    fields of type float."""
    real = {f.name for f in dataclasses.fields(options) if "float" in str(f.type)}

    def frozen(value: Any, name: str) -> Any:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(frozen(entry, name) for entry in value)
        whole = isinstance(value, int) and not isinstance(value, bool)
        return float(value) if whole and name in real else value

    return dataclasses.replace(options, **{name: frozen(v, name) for name, v in changes.items()})


def check_input(
    options: SamplingConfig, first_time: float, input_media: Any, input_latents: Any
) -> None:
    """Checks that noise does not replace an input video entirely at the first time, and that
    initial steps are skipped only if there is an input video."""
    has_input = input_media is not None or input_latents is not None
    if input_media is not None and input_latents is not None:
        raise ValueError("give input_media or input_latents, not both")
    if has_input and first_time > 1 - flow.TIME_EPSILON:
        raise ValueError(
            "the first time is 1, at which noise replaces all of the input: set "
            "skip_initial_inference_steps, or timesteps that start below 1"
        )
    if not has_input and options.skip_initial_inference_steps and options.timesteps is None:
        raise ValueError(
            f"skip_initial_inference_steps is {options.skip_initial_inference_steps}, which is for "
            f"changing a video: give input_media, or set it to 0"
        )


def checked(name: str, value: Any, shape: tuple[int, ...]) -> Float32[Array, "b t h w c"]:
    """Converts an array to float32, and checks its shape."""
    value = jnp.asarray(value, jnp.float32)
    if value.shape != shape:
        raise ValueError(
            f"{name} has the shape {value.shape}, and this run takes (b, t, h, w, c) = {shape}"
        )
    return value


def embedded_captions(
    embeddings: Mapping[str, Any], needs_negative: bool, channels: int
) -> list[Caption]:
    """Makes captions from prompt_embeds and prompt_mask, and negative captions, if they are needed,
    from negative_embeds and negative_mask.

    Raises:
      ValueError: if an array is missing or has a wrong shape; the message names it.
    """

    def read(kind: str, names: tuple[str, str]) -> Caption:
        missing = [name for name in names if name not in embeddings]
        if missing:
            raise ValueError(
                f"the embeddings lack {missing}"
                + (", which guidance_scale > 1 needs" if kind == "negative" else "")
                + f"; they hold {sorted(embeddings)}"
            )
        values, mask = (jnp.asarray(embeddings[name]) for name in names)
        if values.ndim != 3 or values.shape[2] != channels or mask.shape != values.shape[:2]:
            raise ValueError(
                f"{names[0]} must be (b, m, {channels}) and {names[1]} (b, m), got "
                f"{values.shape} and {mask.shape}"
            )
        return Caption(values, mask)

    caption = read("positive", ("prompt_embeds", "prompt_mask"))
    if not needs_negative:
        return [caption]
    return match_captions(caption, read("negative", ("negative_embeds", "negative_mask")))


def networks(checkpoint: Checkpoint) -> tuple[TransformerConfig, VAEConfig]:
    """The two networks that sampling needs.

    Raises:
      ValueError: if one is missing, or they do not belong together.
    """
    transformer, vae = checkpoint.transformer, checkpoint.vae
    if transformer is None or vae is None:
        missing = "transformer" if transformer is None else "VAE"
        hint = ": name one with --vae" if vae is None else ""
        raise ValueError(f"sampling needs a transformer and a VAE: this one has no {missing}{hint}")
    if transformer.in_channels != vae.latent_channels:
        raise ValueError(
            f"the transformer takes latents of {transformer.in_channels} channels and the VAE "
            f"makes {vae.latent_channels}: they do not belong together"
        )
    return transformer, vae


def encoded_captions(
    prompt: str | Sequence[str], negative: str | None, encoder: TextEncoder | None
) -> list[Caption]:
    """Encodes the prompts, and the negative prompt unless it is None.

    Raises:
      ValueError: if there is no text encoder, or no prompt.
    """
    if encoder is None:
        raise ValueError(
            "this checkpoint has no text encoder of its own: name one (--text_encoder, or "
            "text_encoder=...), or give embeddings"
        )
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("the list of prompts is empty")
    caption = Caption(*encoder.encode(prompts))
    if negative is None:
        return [caption]
    return match_captions(caption, Caption(*encoder.encode([negative])))


def match_captions(caption: Caption, negative: Caption) -> list[Caption]:
    """Pads both to the same number of tokens, and repeats a single negative caption."""
    batch, length = caption.mask.shape
    if negative.mask.shape[0] not in (1, batch):
        raise ValueError(
            f"there are {negative.mask.shape[0]} negative captions for {batch} prompts; give one, "
            "or one per prompt"
        )
    length = max(length, negative.mask.shape[1])

    def fitted(caption: Caption, rows: int) -> Caption:
        more = length - caption.mask.shape[1]
        values = jnp.pad(caption.embeddings, ((0, 0), (0, more), (0, 0)))
        mask = jnp.pad(caption.mask.astype(jnp.float32), ((0, 0), (0, more)))
        repeats = rows // values.shape[0]
        return Caption(jnp.repeat(values, repeats, axis=0), jnp.repeat(mask, repeats, axis=0))

    return [fitted(caption, batch), fitted(negative, batch)]


def context_fields(
    context: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], batch: int
) -> dict[str, Float32[Array, "b ..."]]:
    """The further inputs of the network, one row per video.

    Args:
      context: arrays by name, with a batch axis of 1 or `batch`.
      shapes: `TransformerConfig.context_shapes`.
      batch: number of videos.

    Raises:
      ValueError: for an input that the network does not take, or one of a wrong shape.
    """
    fields = {}
    for name, value in context.items():
        if name not in shapes:
            raise ValueError(
                f"this network takes no input {name!r}; besides captions it takes "
                f"{sorted(shapes) or 'none'}: leave it out, or take a network trained with it"
            )
        value, shape = jnp.asarray(value, jnp.float32), (batch, *shapes[name])
        if value.shape not in (shape, (1, *shapes[name])):
            raise ValueError(
                f"the input {name!r} has the shape {value.shape}, and this run takes {shape}"
            )
        fields[name] = jnp.broadcast_to(value, shape)
    return fields


def split_lora(text: str, option: str = "--lora") -> tuple[str, float]:
    """The file and the strength in FILE or FILE:STRENGTH; without a strength it is 1.

    Args:
      text: the value of the option.
      option: its name, for messages.

    Raises:
      ValueError: if there is no such file, or the strength is no finite number.
    """
    path, colon, number = text.rpartition(":")
    if not colon or os.path.exists(text):
        path, number = text, "1"
    if not os.path.exists(path):
        raise ValueError(f"{option}: there is no file {path}")
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise ValueError(f"{option} {text}: the strength must be a number, got {number!r}")
    return path, strength
