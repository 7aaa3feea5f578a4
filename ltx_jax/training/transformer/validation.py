"""Validation of the second stage on held-out clips: losses at fixed times, and sampled videos."""

import dataclasses
import functools
import logging
import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import TrainTransformer
from ltx_jax.data.loader import Batch
from ltx_jax.diffusion import conditioning, positions
from ltx_jax.diffusion.conditioning import Condition, Encoded, Reference
from ltx_jax.diffusion.flow import add_noise, velocity_of
from ltx_jax.diffusion.noise import KeyNoise
from ltx_jax.inference.encode_dataset import check_vae
from ltx_jax.inference.encode_decode import NotFiniteError
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.inference.previews import enlarged
from ltx_jax.models.vae import Posterior
from ltx_jax.runtime import sharding
from ltx_jax.training.batches import replicate_over
from ltx_jax.training.stage import LoggedVideo, Validation
from ltx_jax.training.transformer.conditions import Conditions, reference_of
from ltx_jax.training.transformer.loss import FlowModel
from ltx_jax.training.validation_clips import read_validation_clips, select_examples

TIMES = tuple(i / 10 for i in range(1, 10))
EMBEDDINGS = ("prompt_embeds", "prompt_mask", "negative_embeds", "negative_mask")
_STEPS = 20  # denoising steps of a sampled video
_STEPS_PER_SECOND = 4.0  # in the video that shows them
_PREVIEW = 64  # pixels of the shorter side of a preview

_log = logging.getLogger(__name__)


def losses_at_times(
    velocity: Callable[[Array, Array], Array], latents: Float[Array, "b t h w c"], key: Array
) -> Float[Array, " s"]:
    """Mean squared error of the velocity at each of `TIMES`, with the same noise at each.

    Args:
      velocity: (tokens (b, n, c), times (b, 1)) -> the predicted velocity.
      latents: normalised latents of the data.
      key: random key of the noise.
    """
    data = positions.patchify(latents)
    noise = jax.random.normal(key, data.shape)
    target = velocity_of(data, noise)

    def at(time: Array) -> Array:
        t = jnp.broadcast_to(time, (data.shape[0], 1))
        error = velocity(add_noise(data, noise, t), t) - target
        return jnp.mean(error * error)

    return jax.lax.map(at, jnp.asarray(TIMES))


class FlowValidator:
    """Computes losses at fixed times, and samples videos, for held-out clips.

    Every validation uses the same noise. No frame of the clips is a condition, except in the second
    sample of each clip with `run.validation_first_frames`. If clips have references, the losses and
    the samples use them.

    Args:
      cfg: the configuration of the run.
      mesh: the devices to run on.
      vae: a checkpoint that holds the VAE.
      model: the networks of the stage.
      on_mesh: (batch, conditions, dropped captions (b,), place) -> the inputs of a step.
    """

    def __init__(
        self,
        cfg: TrainTransformer,
        mesh: Mesh,
        vae: Checkpoint,
        model: FlowModel,
        on_mesh: Callable[..., Any],
    ):
        self._cfg, self._mesh, self._vae, self._model = cfg, mesh, vae, model
        self._on_mesh = on_mesh
        everywhere = NamedSharding(mesh, P())
        self._measure = jax.jit(self._losses, out_shardings=everywhere)
        self._embed = jax.jit(model.captions.embed, out_shardings=everywhere)

    @functools.cached_property
    def _clips(self) -> tuple[Batch, list[Any], Any]:
        """The held-out clips; the step's inputs for each clip, replicated since clips are few; the
        embedding of the empty caption."""
        same_vae = functools.partial(check_vae, loaded=self._vae, name=self._cfg.vae)
        clips = read_validation_clips(self._cfg.run, self._cfg.data, same_vae)
        place = functools.partial(replicate_over, self._mesh)
        singles = [select_examples(clips, [i]) for i in range(len(clips.captions))]
        every: list[Any] = [Conditions(reference=reference_of(one)) for one in singles]
        placed = [
            self._on_mesh(one, conditions, np.zeros(1, bool), place)
            for one, conditions in zip(singles, every, strict=True)
        ]
        first = singles[0]
        empty = self._model.captions.read(first.captions, first.embeddings, np.ones(1, bool), place)
        return clips, placed, empty

    def prepare(self) -> None:
        """Reads the clips and makes the pipeline; raises a ValueError if they cannot be used."""
        _ = self._clips, self._pipeline

    @functools.cached_property
    def _pipeline(self) -> LTXPipeline:
        cfg = self._cfg
        own = dataclasses.replace(self._vae, transformer=cfg.model, scheduler=cfg.scheduler)
        pipeline = LTXPipeline(own, dtype=cfg.execution.dtype, mesh=self._mesh)
        pipeline.execution = dataclasses.replace(cfg.execution, remat="none")
        return pipeline

    def __call__(self, params: Mapping[str, Any]) -> Validation:
        """Metrics and videos of the parameters of all networks."""
        clips, placed, empty = self._clips
        losses, videos = [], {}
        for i, (one, text) in enumerate(zip(placed, clips.captions, strict=True)):
            with sharding.use_mesh(self._mesh):
                losses.append(np.asarray(self._measure(params, one, jax.random.key(i))))
            for start, conditions in self._starts(one).items():
                name = f"{start} {i}: {textwrap.shorten(text, 60)}"
                try:
                    made = self._videos(params, one, empty, clips, i, conditions)
                    videos |= {f"{kind}{name}": video for kind, video in made.items()}
                except NotFiniteError as error:  # not a reason to end a run
                    _log.warning("%s: %s", name, error)
        means = np.mean(losses, axis=0)
        scalars = {"val_loss": float(means.mean())}
        scalars |= {f"val_loss_at/{t}": float(x) for t, x in zip(TIMES, means, strict=True)}
        return Validation(scalars, videos)

    def _losses(self, params: Any, batch: Any, key: Array) -> Array:
        """The loss at each of `TIMES`."""
        model = self._model
        sample_key, noise_key = jax.random.split(key)
        video: Any = model.sample_latents(batch["video"], sample_key)
        moments = batch["conditions"].reference
        encoded = []
        if moments is not None:
            reference = model.sample_latents(moments, jax.random.fold_in(sample_key, 1))
            encoded = [Encoded(reference, 1.0, None)]
        keys = KeyNoise(jax.random.split(noise_key, video.shape[0]))
        layout = conditioning.prepare(video, encoded, keys, **dataclasses.asdict(model.geometry))
        coords = jnp.broadcast_to(layout.coords, (video.shape[0], *layout.coords.shape[-2:]))
        context = model.context(params, batch, coords)
        extra = layout.tokens[:, : -math.prod(video.shape[1:4])]
        velocity = functools.partial(self._velocity, params, context, extra)
        return losses_at_times(velocity, video, noise_key)

    def _velocity(self, params: Any, context: Any, extra: Array, x: Array, t: Array) -> Array:
        """The velocity of tokens after the `extra` ones of a reference, which are at time 0."""
        count = extra.shape[1]
        if count:
            still = jnp.zeros(extra.shape[:2], t.dtype)
            t = jnp.concatenate([still, jnp.broadcast_to(t, x.shape[:2])], axis=1)
            x = jnp.concatenate([extra, x], axis=1)
        return self._model.velocity(params, x, t, context)[:, count:]

    def _starts(self, one: Any) -> dict[str, list[Condition | Reference]]:
        """The conditions of each sample of a clip, whose step inputs are `one`, by its name."""
        moments = one["conditions"].reference
        references = [] if moments is None else [Reference(Posterior(**moments))]
        starts: dict[str, list[Condition | Reference]] = {"sample": [*references]}
        if self._cfg.run.validation_first_frames:
            # The encoder is causal: the first latent frame stands for the first frame alone.
            first = Posterior(**{name: x[:, :1] for name, x in one["video"].items()})
            starts["from first frame"] = [Condition(first), *references]
        return starts

    def _videos(
        self, params: Any, one: Any, empty: Any, clips: Batch, i: int, conditions: Any
    ) -> dict[str, LoggedVideo]:
        """Samples a video of clip `i`, whose step inputs are `one`; "steps of " shows its previews,
        one after the other, if the VAE has a map from latents to colours."""
        options = dataclasses.replace(
            self._cfg.sampling_settings(),
            num_frames=clips.bucket.num_frames,
            height=clips.bucket.height,
            width=clips.bucket.width,
            frame_rate=float(clips.frame_rate[i]),
            num_inference_steps=_STEPS,
            seed=self._cfg.run.seed,
        )
        with sharding.use_mesh(self._mesh):
            texts = (*self._embed(params, one["captions"]), *self._embed(params, empty))
        self._pipeline.params = self._pipeline.denoiser.prepare(params["transformer"])
        embeddings: dict[str, Any] = dict(zip(EMBEDDINGS, texts, strict=True))
        inputs: dict[str, Any] = dict(
            embeddings=embeddings, context=one["context"], conditions=conditions
        )
        steps: list[np.ndarray] = []
        if self._vae.colours is not None:
            inputs["preview"] = lambda _, pictures: steps.append(enlarged(pictures[0], _PREVIEW))
        video = self._pipeline(None, options, **inputs, first_sample=i)
        sample = {"": LoggedVideo(video[0], options.frame_rate)}
        if not steps:
            return sample
        # One picture per step: the latent frames, side by side.
        strips = np.stack([np.concatenate(list(step), axis=1) for step in steps])
        return {**sample, "steps of ": LoggedVideo(strips, _STEPS_PER_SECOND)}
