"""Where a batch's latents come from: stored with the data, or encoded as the pixels come."""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8

from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import DataConfig, ExecutionConfig, VAEConfig
from ltx_jax.data.sources import World
from ltx_jax.models import convolution
from ltx_jax.models.vae import LatentStatistics, Posterior, VideoVAE
from ltx_jax.runtime import sharding
from ltx_jax.training.captions import Place
from ltx_jax.training.vae_loss import to_float

Moments = dict[str, Any]  # "mean" and "logvar" of posteriors, not normalised
_ROOM = 2**30  # bytes of moments that are remembered


def sampler(loaded: Checkpoint, vae: VAEConfig) -> Callable[[Moments, Array], Array]:
    """(moments, key) -> a sample of the posterior, normalised: a part of the step."""
    statistics = loaded.statistics or LatentStatistics.identity(vae.latent_channels)

    def sample(moments: Moments, key: Array) -> Array:
        mean, logvar = (moments[name].astype(jnp.float32) for name in ("mean", "logvar"))
        noise = jax.random.normal(key, mean.shape)
        return statistics.normalize(Posterior(mean, logvar).sample(noise))

    return sample


def reader(
    loaded: Checkpoint, vae: VAEConfig, data: DataConfig, mesh: Mesh
) -> Callable[[Any, Place], Moments]:
    """(pixels in uint8 or stored moments, how arrays are placed) -> moments on the mesh."""
    model = VideoVAE(vae, ExecutionConfig(dtype=loaded.vae_dtype))

    @functools.partial(jax.jit, compiler_options=convolution.compiler_options())
    def program(params: Any, frames: Array) -> Moments:
        posterior: Any = model.apply({"params": params}, to_float(frames), method="encode")
        moments = {"mean": posterior.mean, "logvar": posterior.logvar}
        return jax.tree.map(lambda x: sharding.constrain(x, "batch", *(None,) * 4), moments)

    def encode(frames: UInt8[np.ndarray, "b t h w 3"], place: Place) -> Moments:
        with sharding.use_mesh(mesh):
            return program(loaded.vae_params, place(frames))

    of_pixels = _once(encode) if _comes_again(data) else encode

    def read(video: Any, place: Place) -> Moments:
        return place(video) if isinstance(video, dict) else of_pixels(video, place)

    return read


def _comes_again(data: DataConfig) -> bool:
    """Whether clips are the same in every epoch, and all are this process's."""
    endless = any(World.has(source.path) for source in data.sources)
    chance = data.random_start or data.random_crop or data.flip
    return jax.process_count() == 1 and not endless and not chance


def _once(encode: Callable[[Any, Place], Moments]) -> Callable[[Any, Place], Moments]:
    """Encodes each clip once, as far as there is room; clips are known by their pixels."""
    kept: dict[Any, Moments] = {}
    room = _ROOM

    def moments(frames: UInt8[np.ndarray, "b t h w 3"], place: Place) -> Moments:
        nonlocal room
        names = [(clip.shape, hashlib.blake2b(clip.tobytes()).digest()) for clip in frames]
        if not all(name in kept for name in names):
            made = encode(frames, place)
            size = sum(x.nbytes for x in made.values())
            if size > room:
                return made
            room -= size
            found = jax.tree.map(np.asarray, made)
            for i, name in enumerate(names):
                kept[name] = jax.tree.map(lambda x, i=i: x[i], found)
        return place(
            {part: np.stack([kept[name][part] for name in names]) for part in kept[names[0]]}
        )

    return moments
