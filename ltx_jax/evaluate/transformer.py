"""The transformer's loss on clips it has not seen, at fixed times and with fixed noise."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ltx_jax import pixels
from ltx_jax.config import ExecutionConfig, TransformerConfig, VAEConfig
from ltx_jax.diffusion import positions
from ltx_jax.diffusion.denoiser import Denoiser
from ltx_jax.evaluate.clip_reader import EvaluationClip
from ltx_jax.evaluate.metric_table import MetricRow, mean
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.models import convolution
from ltx_jax.models.transformer import Context
from ltx_jax.models.vae import LatentStatistics, VideoVAE
from ltx_jax.training.transformer.validation import TIMES, losses_at_times


@functools.partial(jax.jit, static_argnames=("vae", "cfg", "execution"))
def _losses(
    denoiser: Denoiser,
    params: tuple[Any, Any],
    statistics: LatentStatistics,
    frames: UInt8[Array, "b t h w 3"],
    frame_rate: Float[Array, " b"],
    caption: tuple[Array, Array],
    key: Array,
    *,
    vae: VAEConfig,
    cfg: TransformerConfig,
    execution: ExecutionConfig,
) -> Float[Array, " s"]:
    vae_params, transformer_params = params
    sample_key, noise_key = jax.random.split(key)
    video = pixels.from_bytes(frames)
    posterior: Any = VideoVAE(vae, execution).apply({"params": vae_params}, video, method="encode")
    draw = posterior.sample(jax.random.normal(sample_key, posterior.mean.shape))
    latents = statistics.normalize(draw)
    _, t, h, w, _ = latents.shape
    corners = positions.latent_coords((t, h, w))
    coords = positions.pixel_coords(
        corners, vae.temporal_factor, vae.spatial_factor, cfg.causal_temporal_positioning
    )
    rope = positions.rope_of(coords[None], frame_rate, cfg)
    context = denoiser.prepare_context(transformer_params, Context(*caption, rope))

    def velocity(x: Array, times: Array) -> Array:
        return denoiser(transformer_params, x, times, context)[0]

    return losses_at_times(velocity, latents, noise_key)


def loss_rows(
    pipe: LTXPipeline, clips: Iterable[EvaluationClip], *, seed: int = 0
) -> list[MetricRow]:
    """The loss at each of `TIMES` and the mean of these losses, for videos and for images.

    Clip i gets the noise of fold_in(key(seed), i) for every model.

    Raises:
      ValueError: if the pipeline has no text encoder.
    """
    if pipe.text_encoder is None:
        raise ValueError(
            "this checkpoint has no text encoder of its own: name one (--text_encoder)"
        )
    params = pipe.checkpoint.vae_params, pipe.params
    losses_by_kind: dict[str, list[np.ndarray]] = {}
    for i, clip in enumerate(clips):
        losses = pipe.programs(
            _losses,
            pipe.denoiser,
            params,
            pipe.statistics,
            jnp.asarray(clip.frames[None]),
            jnp.full(1, clip.frame_rate, jnp.float32),
            pipe.text_encoder.encode([clip.caption]),
            jax.random.fold_in(jax.random.key(seed), i),
            vae=pipe.vae,
            cfg=pipe.transformer,
            execution=pipe.execution,
            compiler_options=convolution.compiler_options(few_rows=False),
        )
        losses_by_kind.setdefault(clip.kind, []).append(np.asarray(losses))
    summary = []
    for kind, rows in losses_by_kind.items():
        summary.append(mean(kind, "loss", np.mean(rows, axis=1)))
        for time, values in zip(TIMES, np.transpose(rows), strict=True):
            summary.append(mean(kind, f"loss at {time:g}", values))
    return summary
