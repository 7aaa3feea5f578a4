"""The first stage: the Video-VAE and its discriminator, on pictures and videos together."""

import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from ltx_jax.checkpoints import perceptual
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import BucketConfig, TrainVAE, VAEConfig, VAELossConfig
from ltx_jax.data.loader import Loader
from ltx_jax.models import convolution
from ltx_jax.models.discriminator import Discriminator
from ltx_jax.models.vae import VideoVAE, check_video_shape
from ltx_jax.runtime import sharding
from ltx_jax.training import adversary
from ltx_jax.training.flops import count_flop
from ltx_jax.training.initial import Given, start_from
from ltx_jax.training.optim import make_optimizer
from ltx_jax.training.stage import Sketch, Stage, Work, described, replicate, share, split
from ltx_jax.training.state import Shared, TrainState, descend, make_step, plan
from ltx_jax.training.vae_loss import (
    Networks,
    first_statistics,
    latent_statistics,
    reconstruction_loss,
    vae_loss,
)
from ltx_jax.training.vae_validation import pixels, validator

_log = logging.getLogger(__name__)


def sketch(cfg: TrainVAE, mesh: Mesh) -> Sketch:
    """The stage without its data.

    Raises:
      ValueError: if the sizes of clips do not fit the networks, or a file of weights cannot be
        read.
    """
    cfg = _with_clean_latents(cfg)
    return _sketch(cfg, mesh, _read_lpips(cfg.loss))


def _with_clean_latents(cfg: TrainVAE) -> TrainVAE:
    """A decoder that is told no time gets clean latents."""
    if cfg.model.timestep_conditioning:
        return cfg
    return dataclasses.replace(cfg, loss=dataclasses.replace(cfg.loss, max_decode_time=0.0))


def _sketch(cfg: TrainVAE, mesh: Mesh, lpips: Any) -> Sketch:
    model = VideoVAE(cfg.model, cfg.execution)
    discriminator = Discriminator(cfg.discriminator, cfg.disc_execution)
    game = cfg.loss.gan_weight > 0
    networks = Networks(model.apply, discriminator.apply if game else None)
    for bucket in cfg.data.sizes:
        _check(bucket, cfg, networks, lpips)

    smallest = min(cfg.data.sizes, key=lambda b: b.num_frames * b.height * b.width)
    video = jnp.zeros((1, smallest.num_frames, smallest.height, smallest.width, 3))

    def init(key: Array) -> Any:
        return model.init(key, video)["params"]

    def init_discriminator(key: Array) -> Any:
        pair = jnp.concatenate([video] * (2 if cfg.loss.gan == "pair" else 1), axis=-1)
        return discriminator.init(key, pair)["params"]

    tx = make_optimizer(cfg.optim, cfg.run.steps)
    start = round(cfg.loss.disc_start * cfg.run.steps)
    disc_tx = make_optimizer(cfg.disc_optim, cfg.run.steps - start)
    planned = plan(
        init,
        tx,
        mesh,
        cfg.run.seed,
        first_statistics(cfg.model.latent_channels),
        (init_discriminator, disc_tx) if game else None,
    )
    loss = functools.partial(vae_loss, networks, cfg=cfg.loss, disc_start=start)
    alone = functools.partial(vae_loss, Networks(model.apply), cfg=cfg.loss)
    if game:
        update = adversary.compete(loss, tx, disc_tx, cfg.optim, start, planned.layout)
    else:
        update = descend(loss, tx, cfg.optim, planned.layout)
    with sharding.use_mesh(mesh):
        options = convolution.compiler_options()
    step = make_step(update, planned.layout, cfg.run.seed, options)

    def batch(shape: tuple[int, ...]) -> dict[str, Any]:
        frames = described(jax.ShapeDtypeStruct(shape, jnp.uint8), mesh)
        shared = {} if lpips is None else {"lpips": Shared(described(lpips, mesh, whole=True))}
        return {"frames": frames, **shared}

    @functools.cache
    def work_of(shape: tuple[int, ...], playing: bool) -> Work:
        params, key = planned.shapes.params, jax.eval_shape(jax.random.key, 0)
        counted = loss if playing else alone
        flop = count_flop(counted, params, planned.shapes, batch(shape), key, gradient=0)
        return Work(_voxels(cfg, shape), flop)

    return Sketch(
        planned,
        step,
        # A discriminator waits for updates. Steps may be a few more: those that are rejected.
        lambda batch, step: work_of(batch["frames"].shape, step > start),
        tuple((size, batch(_shape(size))) for size in cfg.data.sizes),
    )


def build(cfg: TrainVAE, mesh: Mesh) -> Stage:
    """Opens the data and plans the state.

    Raises:
      ValueError: if the data cannot be used or its sizes do not fit the networks, or a file of
        weights cannot be read.
    """
    cfg = _with_clean_latents(cfg)
    lpips = _read_lpips(cfg.loss)
    sketched = _sketch(cfg, mesh, lpips)
    shared = {} if lpips is None else {"lpips": Shared(replicate(lpips, mesh))}
    index, count = share(mesh)
    loader = Loader(
        cfg.data, (("none", 1.0),), cfg.run.seed, process_index=index, process_count=count
    )

    def batches(first: int, last: int) -> Iterator[dict[str, Any]]:
        for batch in loader.batches(first, last):
            yield {"frames": split(pixels(batch), mesh), **shared}

    def statistics(state: TrainState) -> dict[str, Any]:
        value = latent_statistics(state.statistics)
        return {"mean": value.mean, "std": value.std}

    given = functools.partial(_given, cfg.model)
    return Stage(
        start_from(cfg.run.init_from, sketched.plan, mesh, given),
        sketched.step,
        batches=batches,
        work=sketched.work,
        validate=validator(cfg, mesh, shared),
        statistics=statistics,
    )


def _given(cfg: VAEConfig, found: Checkpoint) -> Given:
    """The weights of a checkpoint, and its statistics as the running ones."""
    if found.vae is None:
        raise ValueError("--run.init_from names a checkpoint without a VAE")
    running = None
    if found.statistics is not None:
        mean, std = (jnp.asarray(x) for x in (found.statistics.mean, found.statistics.std))
        running = {"mean": mean, "square": std**2 + mean**2}
    return Given(found.vae_params, ((found.vae, cfg),), running)


def _read_lpips(cfg: VAELossConfig) -> Any:
    """LPIPS' weights, or None where the term is off."""
    if not cfg.lpips_weight:
        return None
    if not (cfg.vgg and cfg.lpips_heads):
        _log.warning(
            "LPIPS is off: loss.lpips_weight is %g, but its weights are not given; name files of "
            "them with --loss.vgg and --loss.lpips-heads",
            cfg.lpips_weight,
        )
        return None
    return perceptual.read_lpips(cfg.vgg, cfg.lpips_heads)


def _check(bucket: BucketConfig, cfg: TrainVAE, networks: Networks, lpips: Any) -> None:
    """Refuses sizes that a network or a term of the loss cannot take, before any step."""
    shape = _shape(bucket)
    check_video_shape(cfg.model, shape)
    video = jax.ShapeDtypeStruct(shape, jnp.float32)
    jax.eval_shape(lambda x: reconstruction_loss(x, x, lpips, cfg.loss), video)
    if networks.discriminator is not None:
        jax.eval_shape(Discriminator(cfg.discriminator).init, jax.random.key(0), video)


def _shape(bucket: BucketConfig) -> tuple[int, ...]:
    return (bucket.batch_size, bucket.num_frames, bucket.height, bucket.width, 3)


def _voxels(cfg: TrainVAE, shape: tuple[int, ...]) -> int:
    """Latent voxels of a batch of frames."""
    b, t, h, w, _ = shape
    time, space = cfg.model.temporal_factor, cfg.model.spatial_factor
    return b * ((t - 1) // time + 1) * (h // space) * (w // space)
