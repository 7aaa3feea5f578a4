"""Sampling in two passes: a small video, upsampled as latents, then refined.

This is the multi-scale pipeline of the released 0.9.7 and 0.9.8 settings. Most steps run on fewer
than half of the tokens. The second pass starts from the upsampled latents, noised to its first
time, rather than from pure noise.
"""

import dataclasses
import functools
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ltx_jax import pixels
from ltx_jax.config import SamplingConfig, UpsamplerConfig
from ltx_jax.diffusion import conditioning
from ltx_jax.diffusion.conditioning import Condition, Reference
from ltx_jax.diffusion.latents import adain
from ltx_jax.diffusion.noise import KeyNoise, seeded
from ltx_jax.diffusion.sampler import Progress
from ltx_jax.inference import arguments, condition_media
from ltx_jax.inference.encode_decode import NotFiniteError
from ltx_jax.inference.pipeline import LTXPipeline, Output
from ltx_jax.inference.previews import ShowPreview
from ltx_jax.models import convolution
from ltx_jax.models.upsampler import LatentUpsampler
from ltx_jax.models.vae import LatentStatistics
from ltx_jax.runtime import sharding

# Options of the first pass that also apply to the second.
_SHARED = (
    *("negative_prompt", "num_frames", "frame_rate", "seed"),
    *("image_cond_noise_scale", "prepare_conditions"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Upsampler:
    """A latent upsampler that doubles rows and columns, computed in float32.

    Raises:
      ValueError: if the upsampler also changes the number of frames.
    """

    cfg: UpsamplerConfig
    params: Any

    def __post_init__(self):
        if self.cfg.temporal_upsample or not self.cfg.spatial_upsample:
            raise ValueError(
                "two passes need an upsampler that changes only rows and columns, unlike this one: "
                "take a released spatial upscaler"
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mesh: Any = None) -> "Upsampler":
        """Loads a released file (ltxv-spatial-upscaler-0.9.8.safetensors), or a training run."""
        from ltx_jax.checkpoints.load import load_upsampler  # importing Orbax takes seconds

        return cls(*load_upsampler(os.fspath(path), mesh=mesh, dtype="float32"))


def sample(
    pipe: LTXPipeline,
    upsampler: Upsampler,
    prompt: str | Sequence[str] | None = None,
    options: SamplingConfig = SamplingConfig(),
    *,
    second_pass: SamplingConfig,
    downscale_factor: float = 0.6666666,
    conditions: Sequence[Condition | Reference] = (),
    embeddings: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] = MappingProxyType({}),
    noise: Any = None,
    first_sample: int = 0,
    output: Output = "uint8",
    callback: Callable[[Progress], None] | None = None,
    preview: ShowPreview | None = None,
    **changes: Any,
) -> Shaped[np.ndarray, "b t h w c"]:
    """Samples one video per prompt in two passes.

    Args:
      pipe: the pipeline for both passes; its `timings` become the sums over both passes.
      upsampler: doubles the rows and columns of the first pass's latents.
      prompt: as in `LTXPipeline.__call__`; so are the arguments that are not listed here.
      options: options of the first pass, but with the size of the final video.
      second_pass: schedule, guidance and decoding of the second pass; size, number of frames, seed,
        negative prompt and conditioning are taken from `options`.
      downscale_factor: size of the first pass, as a fraction of the final size.
      noise: initial noise of the first pass.
      output: "latents" returns those of the second pass, whose size is twice that of the first.

    Raises:
      ValueError: as in the pipeline, and if the size of the first pass would be zero.
      MemoryError: if the device has too little memory.
    """
    options = arguments.replace(options, changes)
    size = pipe.size(options)
    size.notice()
    frames, height, width = size.padded
    low = {
        "height": _downscaled("height", height, downscale_factor, size.spatial_factor),
        "width": _downscaled("width", width, downscale_factor, size.spatial_factor),
    }
    # Prepared once for both passes: as upstream, each resizes the same crop to its own size.
    common: dict[str, Any] = dict(
        conditions=condition_media.load_conditions(conditions, size, None, options),
        embeddings=embeddings,
        context=context,
        first_sample=first_sample,
        callback=callback,
        preview=preview,
    )
    first = dataclasses.replace(options, num_frames=frames, **low)
    small = pipe(prompt, first, noise=noise, output="latents", **common)
    timings = dict(pipe.timings)

    with pipe.part("upsample", size):
        large = enlarge(pipe, upsampler, jnp.asarray(small))
        if not np.isfinite(sharding.on_host(large)).all():
            raise NotFiniteError("the upsampled latents")
    timings["upsample"] = pipe.timings["upsample"]

    shared = {name: getattr(first, name) for name in _SHARED}
    twice = {name: 2 * side for name, side in low.items()}
    # Refining is meant for sizes that were too large for the first pass.
    second = dataclasses.replace(second_pass, **shared, **twice, range_warning=False)
    refined = pipe(
        prompt,
        second,
        input_latents=large,
        noise=_second_noise(options.seed, small.shape[0], first_sample),
        output="latents" if output == "latents" else "float",
        **common,
    )
    for part, seconds in pipe.timings.items():
        if part != "load":
            timings[part] = timings.get(part, 0.0) + seconds
    pipe.timings = timings
    if output == "latents":
        return refined
    clips = [_resized(clip, height, width, output == "uint8") for clip in refined]
    return size.crop(np.stack(clips))


def enlarge(
    pipe: LTXPipeline, upsampler: Upsampler, latents: Float[Array, "b t h w c"]
) -> Float[Array, "b t h2 w2 c"]:
    """Doubles rows and columns of normalised latents; keeps each channel's mean and deviation."""
    return pipe.programs(
        _enlarge,
        upsampler.params,
        pipe.statistics,
        latents,
        cfg=upsampler.cfg,
        compiler_options=convolution.compiler_options(),
    )


@functools.partial(jax.jit, static_argnames="cfg")
def _enlarge(
    params: Any,
    statistics: LatentStatistics,
    latents: Float[Array, "b t h w c"],
    *,
    cfg: UpsamplerConfig,
) -> Array:
    z: Any = LatentUpsampler(cfg).apply({"params": params}, statistics.denormalize(latents))
    return adain(statistics.normalize(z), latents)


def _downscaled(name: str, size: int, factor: float, multiple: int) -> int:
    scaled = int(size * factor)
    low = scaled - scaled % multiple
    if not low:
        raise ValueError(
            f"a {name} of {size} is too small for two passes: {factor} of it, rounded down to a "
            f"multiple of {multiple}, is 0; sample a larger video, or in one pass"
        )
    return low


def _second_noise(seed: int, batch: int, first: int) -> KeyNoise:
    """The second pass's noise: independent of the first's, which its latents already contain."""
    tag = zlib.crc32(b"second pass")
    keys = seeded(seed, batch, first).keys
    return KeyNoise(jax.vmap(lambda key: jax.random.fold_in(key, tag))(keys))


@functools.partial(jax.jit, static_argnames=("height", "width", "uint8"))
def _resize(clip: Float[Array, "t h w c"], *, height: int, width: int, uint8: bool) -> Array:
    clip = conditioning.resize(clip, height, width)
    return pixels.to_bytes(clip) if uint8 else clip


def _resized(
    clip: Float[np.ndarray, "t h w c"], height: int, width: int, uint8: bool
) -> Shaped[np.ndarray, "t h2 w2 c"]:
    return np.asarray(_resize(jnp.asarray(clip), height=height, width=width, uint8=uint8))
