"""How good a transformer is on clips it has not seen: its loss at fixed times, and its videos."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from ltx_jax import sharding
from ltx_jax.checkpoints.contents import Checkpoint
from ltx_jax.config import BucketConfig, SamplingConfig, TrainTransformer
from ltx_jax.data.loader import Batch
from ltx_jax.diffusion import tokens
from ltx_jax.diffusion.flow import add_noise, velocity_of
from ltx_jax.pipeline import LTXPipeline
from ltx_jax.training.captions import Captions
from ltx_jax.training.conditions import Conditions
from ltx_jax.training.flow_loss import Geometry, rope_of
from ltx_jax.training.held_out import held_out, rows
from ltx_jax.training.stage import Footage, Validation, share
from ltx_jax.training.state import TrainState

TIMES = tuple(i / 10 for i in range(1, 10))
_STEPS = 20  # of a sampled video


def losses_at_times(
    velocity: Callable[..., Any],
    params: Any,
    latents: Float[Array, "b t h w c"],
    captions: Any,
    rope: Any,
    key: Array,
) -> Float[Array, "s b"]:
    """Mean squared error of the velocity at each of `TIMES`, with the same noise at all."""
    data = tokens.patchify(latents)
    noise = jax.random.normal(key, data.shape)
    target = velocity_of(data, noise)

    def at(time: Array) -> Array:
        t = jnp.broadcast_to(time, (data.shape[0], 1))
        error = velocity(params, add_noise(data, noise, t), t, captions, rope) - target
        return jnp.mean(error * error, axis=(1, 2))

    return jax.lax.map(at, jnp.asarray(TIMES))


class Samples:
    """Samples a video for each of a few captions, the same noise every time.

    Args:
      cfg: of the run.
      size: of the videos.
      vae: a checkpoint that holds the VAE.
      mesh: to run on.
    """

    def __init__(self, cfg: TrainTransformer, size: BucketConfig, vae: Checkpoint, mesh: Mesh):
        own = dataclasses.replace(vae, transformer=cfg.model, scheduler=cfg.scheduler)
        self._pipe = LTXPipeline(own, dtype=cfg.model.dtype, mesh=mesh)
        self._options = SamplingConfig(
            num_frames=size.num_frames,
            height=size.height,
            width=size.width,
            num_inference_steps=_STEPS,
            stg_scale=0.0,
            seed=cfg.run.seed,
        )

    def __call__(
        self, params: Any, embeddings: dict[str, Any], frame_rate: float, count: int
    ) -> list[Footage]:
        """The first `count` videos.

        Args:
          params: the transformer's.
          embeddings: of the captions and of no caption, as the pipeline takes them.
          frame_rate: of all videos.
          count: as many are decoded.
        """
        self._pipe.checkpoint.transformer_params = params
        options = dataclasses.replace(self._options, frame_rate=frame_rate)
        latents = self._pipe(None, options, embeddings=embeddings, output="latents")
        clips = (
            self._pipe.decode(latents[i : i + 1], options, first_sample=i)[0] for i in range(count)
        )
        return [Footage(clip, frame_rate) for clip in clips]


def validator(
    cfg: TrainTransformer,
    mesh: Mesh,
    vae: Checkpoint,
    captions: Captions,
    velocity: Callable[..., Any],
    sample: Callable[..., Any],
    geometry: Geometry,
    on_mesh: Callable[..., Any],
) -> Callable[[TrainState], Validation]:
    """What a stage validates with: the averaged parameters, held-out clips, the same noise.

    Args:
      cfg: of the run.
      mesh: to run on.
      vae: a checkpoint that holds the VAE.
      captions: the source of embeddings.
      velocity: of the stage.
      sample: (moments, key) -> normalised latents.
      geometry: of the stage.
      on_mesh: (batch, conditions, which captions are dropped) -> what `captions` and `sample` read.
    """
    count, factors = cfg.run.validation_clips, dataclasses.asdict(geometry)

    def losses(params: Any, batch: Any) -> Array:
        latents = sample(batch["video"], jax.random.key(0))
        coords = tokens.pixel_coords(tokens.latent_coords(latents.shape[1:4]), **factors)
        coords = jnp.broadcast_to(coords, (latents.shape[0], *coords.shape))
        rope = rope_of(coords, batch["frame_rate"], cfg.model)
        arguments = (params, latents, batch["captions"], rope, jax.random.key(1))
        return jnp.mean(losses_at_times(velocity, *arguments)[:, :count], axis=1)

    measure = jax.jit(losses, out_shardings=NamedSharding(mesh, P()))
    embed = jax.jit(captions.embed)

    @functools.cache
    def clips() -> tuple[Batch, Any, Any, Samples]:
        """The clips, a batch of them that all devices can share, captions of none, a sampler."""
        whole = held_out(cfg.run, cfg.data)
        index, parts = share(mesh)
        total = -(-count // mesh.size) * mesh.size
        own = range(index * total // parts, (index + 1) * total // parts)
        batch = rows(whole, [i % count for i in own])
        nothing = np.ones(len(own), bool)
        shown = on_mesh(batch, Conditions(), ~nothing)
        empty = captions.read(batch.captions, batch.embeddings, nothing)
        return whole, shown, empty, Samples(cfg, whole.bucket, vae, mesh)

    def validate(state: TrainState) -> Validation:
        whole, batch, empty, samples = clips()
        with sharding.use_mesh(mesh):
            found = np.asarray(measure(state.ema, batch))
            caption, mask = embed(state.ema, batch["captions"])
            negative, negative_mask = embed(state.ema, empty)
        scalars = {"val_loss": float(found.mean())}
        scalars |= {f"val_loss_at/{t}": float(x) for t, x in zip(TIMES, found, strict=True)}
        embeddings = {
            "prompt_embeds": caption,
            "prompt_mask": mask,
            "negative_embeds": negative,
            "negative_mask": negative_mask,
        }
        rate = float(whole.frame_rate[0])
        footage = samples(state.ema["transformer"], embeddings, rate, count)
        names = [f"sample {i}: {text}" for i, text in enumerate(whole.captions)]
        return Validation(scalars, dict(zip(names, footage, strict=True)))

    return validate
