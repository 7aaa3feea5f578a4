"""How good a transformer is on clips it has not seen: its loss at fixed times, and its videos."""

import dataclasses
import functools
import textwrap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from ltx_jax.checkpoints import run_config
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import TrainTransformer
from ltx_jax.data.loader import Batch
from ltx_jax.diffusion import positions
from ltx_jax.diffusion.flow import add_noise, velocity_of
from ltx_jax.inference.encode_dataset import check_vae
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.runtime import sharding
from ltx_jax.training.captions import Captions
from ltx_jax.training.conditions import Conditions
from ltx_jax.training.held_out import held_out, rows
from ltx_jax.training.stage import Footage, Validation, replicate
from ltx_jax.training.state import TrainState

TIMES = tuple(i / 10 for i in range(1, 10))
EMBEDDINGS = ("prompt_embeds", "prompt_mask", "negative_embeds", "negative_mask")
_STEPS = 20  # of a sampled video


def losses_at_times(
    velocity: Callable[..., Any],
    params: Any,
    latents: Float[Array, "b t h w c"],
    captions: Any,
    rope: Any,
    key: Array,
) -> Float[Array, " s"]:
    """Mean squared error of the velocity at each of `TIMES`, with the same noise at all."""
    data = positions.patchify(latents)
    noise = jax.random.normal(key, data.shape)
    target = velocity_of(data, noise)

    def at(time: Array) -> Array:
        t = jnp.broadcast_to(time, (data.shape[0], 1))
        error = velocity(params, add_noise(data, noise, t), t, captions, rope) - target
        return jnp.mean(error * error)

    return jax.lax.map(at, jnp.asarray(TIMES))


def validator(
    cfg: TrainTransformer,
    mesh: Mesh,
    vae: Checkpoint,
    captions: Captions,
    losses: Callable[[Any, Any, Array], Array],
    on_mesh: Callable[..., Any],
) -> Callable[[TrainState], Validation]:
    """What a stage validates with: the averaged parameters, held-out clips, the same noise.

    Args:
      cfg: of the run.
      mesh: to run on.
      vae: a checkpoint that holds the VAE.
      captions: the source of embeddings.
      losses: (params, batch, key) -> the loss at each of `TIMES`.
      on_mesh: (batch, conditions, which captions are dropped, how arrays are placed) -> a batch as
        the step takes it.
    """
    own = dataclasses.replace(vae, transformer=cfg.model, scheduler=cfg.scheduler)
    pipeline = LTXPipeline(own, dtype=cfg.execution.dtype, mesh=mesh)
    pipeline.execution = dataclasses.replace(cfg.execution, remat="none")
    settings: Any = run_config.own_settings(cfg)  # a transformer's run has them

    everywhere = NamedSharding(mesh, P())
    measure = jax.jit(losses, out_shardings=everywhere)
    embed = jax.jit(captions.embed, out_shardings=everywhere)

    @functools.cache
    def clips() -> tuple[Batch, list[Any], Any]:
        """Held-out clips, each of them on all devices (they are few), and the empty caption."""
        same_vae = functools.partial(check_vae, loaded=vae, name=cfg.vae)
        whole = held_out(cfg.run, cfg.data, same_vae)
        place = functools.partial(replicate, mesh=mesh)
        singles = [rows(whole, [i]) for i in range(len(whole.captions))]
        shown = [on_mesh(one, Conditions(), np.zeros(1, bool), place) for one in singles]
        one = singles[0]
        return whole, shown, captions.read(one.captions, one.embeddings, np.ones(1, bool), place)

    def video(params: Any, given: Any, empty: Any, batch: Batch, i: int) -> Footage:
        options = dataclasses.replace(
            settings,
            num_frames=batch.bucket.num_frames,
            height=batch.bucket.height,
            width=batch.bucket.width,
            frame_rate=float(batch.frame_rate[i]),
            num_inference_steps=_STEPS,
            seed=cfg.run.seed,
        )
        with sharding.use_mesh(mesh):
            texts = (*embed(params, given), *embed(params, empty))
        pipeline.params = pipeline.denoiser.prepare(params["transformer"])
        clip = pipeline(
            None, options, embeddings=dict(zip(EMBEDDINGS, texts, strict=True)), first_sample=i
        )
        return Footage(clip[0], options.frame_rate)

    def validate(state: TrainState) -> Validation:
        batch, shown, empty = clips()
        found, videos = [], {}
        for i, (one, text) in enumerate(zip(shown, batch.captions, strict=True)):
            with sharding.use_mesh(mesh):
                found.append(np.asarray(measure(state.ema, one, jax.random.key(i))))
            name = f"sample {i}: {textwrap.shorten(text, 60)}"
            videos[name] = video(state.ema, one["captions"], empty, batch, i)
        means = np.mean(found, axis=0)
        scalars = {"val_loss": float(means.mean())}
        scalars |= {f"val_loss_at/{t}": float(x) for t, x in zip(TIMES, means, strict=True)}
        return Validation(scalars, videos)

    if cfg.run.validate_every:
        clips()  # so that what is wrong with them shows before the first step
    return validate
