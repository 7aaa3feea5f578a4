"""The compiled programs before and after the denoising loop: from media and noise to the initial
tokens, and from latents to a video."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ltx_jax import pixels
from ltx_jax.config import ExecutionConfig, TransformerConfig, VAEConfig
from ltx_jax.diffusion import conditioning, flow, latents, positions
from ltx_jax.diffusion.conditioning import Encoded
from ltx_jax.inference.arguments import Size
from ltx_jax.models.transformer import Rope, TimeGroups
from ltx_jax.models.vae import LatentStatistics, Posterior, VideoVAE
from ltx_jax.runtime import platforms, sharding

# Up to four videos of the small model at once, oneDNN saves less time than its compilation takes.
_FEW_PIXELS = 1_000_000


class NotFiniteError(ValueError):
    """Embeddings, latents or pixels hold NaN or infinity, so that there is no video to write.

    Args:
      what: the first numbers that are not finite.
    """

    def __init__(self, what: str):
        super().__init__(
            f"{what} hold NaN or infinity, and everything before was finite; nothing is written. "
            "Look for damaged weights, for a guidance scale that is too large, and for dtype "
            "float16 (bfloat16 and float32 hold larger numbers)"
        )


def storable_if_small(*sizes: int) -> contextlib.AbstractContextManager[None]:
    """Programs for few pixels, the product of `sizes`, can be stored on disk on CPUs.

    This depends on the size alone, so that a video is the same from a command, the page and Python.
    """
    return platforms.storable_programs(math.prod(sizes) <= _FEW_PIXELS)


def all_finite(values: Float[Array, "..."]) -> Bool[Array, ""]:
    """Whether there is neither NaN nor infinity."""
    return jnp.isfinite(values).all()


def first_not_finite(captions: Sequence[Any], start: Float[Array, "b n c"]) -> str:
    """What was not finite first in a run whose denoised latents are not.

    Args:
      captions: the captions and, if there are any, the negative ones, each with its `embeddings`.
      start: the initial tokens.
    """
    parts = [
        (f"the embeddings of the {name}prompt", caption.embeddings)
        for name, caption in zip(("", "negative "), captions, strict=False)
    ]
    parts.append(("the noise, conditions and input, as latents,", start))
    for what, values in parts:
        if not np.isfinite(sharding.on_host(values)).all():
            return what
    return "the latents after denoising"


@functools.partial(jax.jit, static_argnames=("cfg", "execution"))
def encode(
    params: Any, clip: Float[Array, "b t h w c"], *, cfg: VAEConfig, execution: ExecutionConfig
) -> Posterior:
    """Encodes a clip in [-1, 1] with the VAE."""
    vae = VideoVAE(cfg, execution)
    return vae.apply({"params": params}, clip, method="encode")  # pyright: ignore[reportReturnType]


class StartLayout(NamedTuple):
    """The static arguments of `make_start`."""

    transformer: TransformerConfig
    batch: int
    grid: tuple[int, int, int]
    temporal_factor: int
    spatial_factor: int
    frame_rate: float
    frames: tuple[int | None, ...]  # the first frame of each condition; None for a reference

    @classmethod
    def of(
        cls,
        transformer: TransformerConfig,
        size: Size,
        batch: int,
        frame_rate: float,
        frames: tuple[int | None, ...],
    ) -> "StartLayout":
        """The layout of a batch of videos of a size."""
        factors = size.temporal_factor, size.spatial_factor
        return cls(transformer, batch, size.grid, *factors, frame_rate, frames)


@functools.partial(jax.jit, static_argnames="layout")
def make_start(
    statistics: LatentStatistics,
    noise: Any,
    first_time: Float[Array, ""],
    source: Posterior | Array | None,
    posteriors: Sequence[Posterior],
    strengths: Sequence[Array],
    kept: Sequence[Array | None],
    *,
    layout: StartLayout,
) -> tuple[conditioning.Prepared, Rope, TimeGroups | None]:
    """Makes the initial tokens with the conditions, and the rotary tables; if there are conditions,
    also the groups of tokens with equal times.

    Args:
      statistics: statistics of the VAE's latents.
      noise: a `NoiseSource`.
      first_time: noise level to which noise is added to `source`.
      source: the input of video-to-video, as a posterior or as normalised latents; None starts from
        noise.
      posteriors: posteriors of the conditions' clips.
      strengths: strengths of the conditions.
      kept: for each condition the latents that its mask keeps, (1, t, h, w), 1 or 0; None for all.
      layout: the static arguments.
    """
    b, cfg = layout.batch, layout.transformer

    def draw_latents(posterior: Posterior, name: str) -> Array:
        fresh = noise.draw(name, (b, *posterior.mean.shape[1:]))
        return statistics.normalize(posterior.sample(fresh))

    x = noise.draw("initial", (b, *layout.grid, cfg.in_channels)).astype(jnp.float32)
    if isinstance(source, Posterior):
        source = draw_latents(source, "input")
    if source is not None:
        x = flow.add_noise(source, x, jnp.broadcast_to(first_time, (b,)))
    encoded = [
        Encoded(
            draw_latents(posterior, f"posterior/{i}"),
            strength if keep is None else strength * keep,
            frame,
        )
        for i, (posterior, strength, keep, frame) in enumerate(
            zip(posteriors, strengths, kept, layout.frames, strict=True)
        )
    ]
    prepared = conditioning.prepare(
        x,
        encoded,
        noise,
        temporal_factor=layout.temporal_factor,
        spatial_factor=layout.spatial_factor,
        causal=cfg.causal_temporal_positioning,
    )
    # Sharded like the results of a step; otherwise the first step would compile another program.
    laid_out = sharding.constrain(prepared.tokens, "batch", "token", None)
    rope = positions.rope_of(prepared.coords, layout.frame_rate, cfg)
    groups = None
    if prepared.strength is not None:
        groups = conditioning.time_groups(prepared.strength, jnp.stack([jnp.zeros(()), *strengths]))
    return dataclasses.replace(prepared, tokens=laid_out), rope, groups


@functools.partial(jax.jit, static_argnames=("cfg", "execution", "uint8"))
def decode(
    params: Any,
    statistics: LatentStatistics,
    x: Float[Array, "b t h w c"],
    noise: Any,
    timestep: Float[Array, ""],
    level: Float[Array, ""],
    tone_ratio: Float[Array, ""],
    *,
    cfg: VAEConfig,
    execution: ExecutionConfig,
    uint8: bool,
) -> tuple[Array, Bool[Array, ""]]:
    """Decodes normalised latents to a video (b, t, h, w, 3), in [-1, 1] or uint8.

    Also returns whether all its pixels are finite, which a clipped or uint8 video cannot tell.

    Args:
      params: parameters of the VAE.
      statistics: statistics of its latents.
      x: the latents.
      noise: a `NoiseSource`, for the noise that is added here and inside the decoder.
      timestep: noise level that a timestep-conditioned decoder gets as its input.
      level: noise level that is actually added to the latents for such a decoder.
      tone_ratio: ratio of `latents.tone_map`, which compresses large values.
      cfg: configuration of the VAE.
      execution: how it is computed.
      uint8: whether to return uint8.
    """
    b = x.shape[0]
    if cfg.timestep_conditioning:
        fresh = noise.draw("decode", x.shape)
        x = latents.decoder_noise(x, fresh, jnp.broadcast_to(level, (b,)))
    x = statistics.denormalize(latents.tone_map(x, tone_ratio))

    def injected(index: int, shape: tuple[int, int]) -> Array:
        return noise.draw("decoder", (b, *shape), index)

    times = jnp.broadcast_to(timestep, (b,)) if cfg.timestep_conditioning else None
    vae = VideoVAE(cfg, execution)
    clip: Any = vae.apply({"params": params}, x, times, injected, method="decode")
    return pixels.to_bytes(clip) if uint8 else jnp.clip(clip, -1, 1), all_finite(clip)
