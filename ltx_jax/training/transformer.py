"""The second stage: the transformer, and a text encoder along with it, on rectified flow.

Latents come from a frozen VAE, stored with the data or encoded as the batches come. The posterior
is sampled afresh in every step.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from ltx_jax.checkpoints import (
    exported_folder,
    hub,
    official,
    official_config,
    run_config,
    runs,
)
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.checkpoints.releases import RELEASED
from ltx_jax.config import (
    BucketConfig,
    ExecutionConfig,
    TrainTransformer,
    TrainVAE,
    TransformerConfig,
    VAEConfig,
)
from ltx_jax.data.loader import Batch, Loader
from ltx_jax.diffusion import positions
from ltx_jax.diffusion.conditioning import PREFIX
from ltx_jax.diffusion.denoiser import Plain
from ltx_jax.inference.encode_dataset import check_vae
from ltx_jax.models.transformer import Context
from ltx_jax.models.vae import check_video_shape
from ltx_jax.runtime import sharding
from ltx_jax.runtime.platforms import onednn_options
from ltx_jax.training import captions, flops, latents
from ltx_jax.training.captions import Captions, Dropped, Place
from ltx_jax.training.conditions import Conditions, Draw, Item, choose
from ltx_jax.training.flow_loss import Geometry, flow_loss, kept_tokens, noised, rope_of
from ltx_jax.training.flow_validation import losses_at_times, validator
from ltx_jax.training.initial import Given, start_from
from ltx_jax.training.optim import make_optimizer
from ltx_jax.training.stage import Sketch, Stage, Work, described, share, split
from ltx_jax.training.state import Loss, TrainState, descend, make_step, plan

_log = logging.getLogger(__name__)


def network(
    cfg: TransformerConfig, execution: ExecutionConfig, texts: Captions
) -> tuple[Callable[..., Any], ...]:
    """`init(key)` and `velocity(params, tokens, times, captions, rope)` of all that is trained."""
    denoiser = Plain(cfg, execution)

    def init(key: Array) -> dict[str, Any]:
        keys = jax.random.split(key)
        return {"transformer": denoiser.init(keys[0]), **texts.init(keys[1])}

    def velocity(params: Any, x: Array, times: Array, arrays: Any, rope: Any) -> Array:
        context = Context(*texts.embed(params, arrays), rope)
        return denoiser(params["transformer"], x, times, context)[0]

    return init, velocity


def grid_of(bucket: BucketConfig, vae: VAEConfig) -> positions.Grid:
    """Latent frames, rows and columns of a bucket's clips."""
    return (
        (bucket.num_frames - 1) // vae.temporal_factor + 1,
        bucket.height // vae.spatial_factor,
        bucket.width // vae.spatial_factor,
    )


class _Parts(NamedTuple):
    """What the stage computes, apart from where its numbers come from.

    Attributes:
      init: key -> parameters with their axis names.
      loss: of a batch of any bucket.
      counted_loss: the same by plain attention, which has no padding to be counted.
      held_out_loss: (parameters, batch, key) -> the loss at each of `TIMES`, without conditions.
      kept: how many tokens of a video are not dropped, by its latent grid.
    """

    init: Callable[[Array], Any]
    loss: Loss
    counted_loss: Loss
    held_out_loss: Callable[[Any, Any, Array], Array]
    kept: dict[positions.Grid, int]


def _parts(cfg: TrainTransformer, loaded: Checkpoint, vae: VAEConfig, texts: Captions) -> _Parts:
    init, velocity = network(cfg.model, cfg.execution, texts)
    counted = dataclasses.replace(cfg.execution, attention="plain")
    _, plain = network(cfg.model, counted, texts)
    causal = cfg.model.causal_temporal_positioning
    geometry = Geometry(vae.temporal_factor, vae.spatial_factor, causal)
    kept = _kept(cfg, vae)
    sample = latents.sampler(loaded, vae)
    return _Parts(
        init,
        _loss(cfg, velocity, sample, geometry, kept),
        _loss(cfg, plain, sample, geometry, kept),
        _held_out_loss(cfg, velocity, sample, geometry),
        kept,
    )


def _check(cfg: TrainTransformer, vae: VAEConfig, mesh: Mesh) -> None:
    """Refuses settings that do not fit each other, before anything large is opened."""
    sharding.check_heads(cfg.model.num_attention_heads, mesh)
    for size in cfg.data.sizes:
        shape = (size.batch_size, size.num_frames, size.height, size.width, vae.in_channels)
        check_video_shape(vae, shape)
    for name in ("in_channels", "out_channels"):
        channels = getattr(cfg.model, name)
        if channels != vae.latent_channels:
            raise ValueError(
                f"the VAE of {cfg.vae} has {vae.latent_channels} latent channels and "
                f"model.{name} is {channels}"
            )


def _sketch(cfg: TrainTransformer, vae: VAEConfig, parts: _Parts, mesh: Mesh) -> Sketch:
    tx = make_optimizer(cfg.optim, cfg.run.steps)
    planned = plan(parts.init, tx, mesh, cfg.run.seed)
    update = descend(parts.loss, tx, cfg.optim, planned.layout)
    with sharding.use_mesh(mesh):
        options = onednn_options()
    step = make_step(update, planned.layout, cfg.run.seed, options)
    batches = tuple((size, _batch_shapes(cfg, size, vae, mesh)) for size in cfg.data.sizes)
    return Sketch(planned, step, _work(parts.counted_loss, parts.kept, planned.shapes), batches)


def sketch(cfg: TrainTransformer, mesh: Mesh) -> Sketch:
    """The stage without its data, its VAE and its text encoder.

    Raises:
      ValueError: if networks and settings do not fit each other.
    """
    vae = _described_vae(cfg.vae, cfg.model.in_channels)
    _check(cfg, vae, mesh)
    parts = _parts(cfg, Checkpoint(), vae, captions.sketched(cfg))
    return _sketch(cfg, vae, parts, mesh)


def _described_vae(path: str, channels: int) -> VAEConfig:
    """What a path says of its VAE; if there is none, the released one: all releases compress alike.

    Raises:
      ValueError: if there is none, and the released one has other than so many channels.
    """
    if run_config.is_run(path):
        cfg = run_config.read_config(path)
        return cfg.model if isinstance(cfg, TrainVAE) else _described_vae(cfg.vae, channels)
    file = hub.EMBEDDED_FOLDER if path == hub.EMBEDDED else Path(path)
    file = file / exported_folder.MODEL if exported_folder.is_exported(file) else file
    if file.is_file() and (found := official.read_configs(file).vae) is not None:
        return found
    released = official_config.vae(RELEASED["2b-0.9.5"].config["vae"])
    if released.latent_channels != channels:
        raise ValueError(
            f"there is no VAE at {path}, and the released one has {released.latent_channels} "
            f"channels where model.in_channels is {channels}: train it first, or name another --vae"
        )
    _log.warning("there is no VAE at %s: latents are taken to be those of the released one", path)
    return released


def _batch_shapes(cfg: TrainTransformer, size: BucketConfig, vae: VAEConfig, mesh: Mesh) -> Any:
    """A batch of a bucket, with the conditions that add the most tokens."""
    b, grid = size.batch_size, grid_of(size, vae)

    def moments(frames: int) -> dict[str, Any]:
        at = (b, frames, *grid[1:])
        return {
            "mean": jax.ShapeDtypeStruct((*at, vae.latent_channels), jnp.float16),
            "logvar": jax.ShapeDtypeStruct((*at, 1), jnp.float16),
        }

    number: Any = jax.ShapeDtypeStruct((b,), jnp.int32)
    given = {name for name, share in cfg.flow.patterns[1:] if share and grid[0] > 1}
    keyframes = cfg.flow.max_keyframes if "keyframes" in given else 0
    items = [1] * keyframes or [PREFIX] * ("clip" in given)
    return described(
        {
            "video": moments(grid[0]),
            "given": Conditions(
                number if given else None, tuple(Item(moments(frames), number) for frames in items)
            ),
            "frame_rate": jax.ShapeDtypeStruct((b,), jnp.float32),
            "captions": captions.shapes(cfg, b),
        },
        mesh,
    )


def build(cfg: TrainTransformer, mesh: Mesh) -> Stage:
    """Opens data, VAE and text encoder, and plans the state.

    Raises:
      ValueError: if data, networks and settings do not fit each other.
    """
    data, seed = cfg.data, cfg.run.seed
    loaded, vae = _load_vae(cfg, mesh)
    _check(cfg, vae, mesh)
    part = share(mesh)
    loader = Loader(data, cfg.flow.patterns, seed, process_index=part[0], process_count=part[1])
    if loader.encoding is not None:
        check_vae(loader.encoding, loaded, cfg.vae)
    texts = captions.open_captions(cfg, loader.encoding, mesh)
    parts = _parts(cfg, loaded, vae, texts)
    sketched = _sketch(cfg, vae, parts, mesh)
    moments = latents.reader(loaded, vae, data, mesh)

    def on_mesh(batch: Batch, given: Conditions, dropped: Dropped, place: Place) -> Any:
        """What a step takes; work for the devices is begun, not waited for."""
        prefix = None if given.prefix is None else place(given.prefix)
        items = (Item(moments(item.video, place), place(item.frame)) for item in given.items)
        return {
            "video": moments(_video(batch), place),
            "given": Conditions(prefix, tuple(items)),
            "frame_rate": place(batch.frame_rate),
            "captions": texts.read(batch.captions, batch.embeddings, dropped, place),
        }

    def made(first: int, last: int) -> Iterator[Any]:
        # Not in a thread: all processes have to begin programs in one order.
        for step, batch in enumerate(loader.batches(first, last), first):
            draw = Draw(seed, step, part)
            dropped = draw.chances(cfg.flow.caption_dropout, len(batch.captions))
            given = choose(batch, draw, cfg.flow, vae.temporal_factor)
            yield on_mesh(batch, given, dropped, functools.partial(split, mesh=mesh))

    return Stage(
        start_from(cfg.run.init_from, sketched.plan, mesh, functools.partial(_given, cfg)),
        sketched.step,
        batches=made,
        work=sketched.work,
        validate=validator(cfg, mesh, loaded, texts, parts.held_out_loss, on_mesh),
        statistics=lambda state: {},
        vae=loaded,
    )


def _given(cfg: TrainTransformer, found: Checkpoint) -> Given:
    """The weights of a checkpoint; a text encoder that trains is drawn where it has none."""
    if found.transformer is None:
        raise ValueError("--run.init_from names a checkpoint without a transformer")
    given = {"transformer": found.transformer_params}
    configs = ((found.transformer, cfg.model),)
    if found.text_encoder is None or cfg.captions != "train":
        return Given(given, configs)
    text_cfg, params, _ = found.text_encoder
    return Given({**given, "text_encoder": params}, (*configs, (text_cfg, cfg.text_encoder)))


def _load_vae(cfg: TrainTransformer, mesh: Mesh) -> tuple[Checkpoint, VAEConfig]:
    # A run that goes on keeps the VAE it began with, whatever has become of that path.
    kept = runs.load_vae(cfg.run.output, mesh=mesh) if runs.has_step(cfg.run.output) else None
    loaded = kept or load_checkpoint(cfg.vae, mesh=mesh)
    if loaded.vae is None:
        raise ValueError(f"{cfg.vae} holds no VAE: --vae must name a checkpoint that does")
    # What else the checkpoint holds, a transformer of many gigabytes perhaps, is let go.
    alone = Checkpoint(
        vae=loaded.vae,
        vae_params=loaded.vae_params,
        vae_dtype=loaded.vae_dtype,
        statistics=loaded.statistics,
    )
    return alone, loaded.vae


def _loss(
    cfg: TrainTransformer,
    velocity: Callable[..., Any],
    sample: Callable[..., Any],
    geometry: Geometry,
    kept: dict[positions.Grid, int],
) -> Loss:
    """The loss of a batch of any bucket."""

    def loss(params: Any, state: TrainState, batch: dict[str, Any], key: Array) -> Any:
        prefix, items = batch["given"]
        key, video_key, *keys = jax.random.split(key, 2 + len(items))
        video = sample(batch["video"], video_key)
        items = tuple(
            Item(sample(item.video, own), item.frame) for item, own in zip(items, keys, strict=True)
        )
        given, count = Conditions(prefix, items), kept[video.shape[1:4]]
        shown = noised(video, given, key, cfg.flow, geometry, count)
        rope = rope_of(shown.coords, batch["frame_rate"], cfg.model)
        value, metrics = flow_loss(velocity, params, shown, batch["captions"], rope)
        return value, (metrics, state.statistics)

    return loss


def _held_out_loss(
    cfg: TrainTransformer,
    velocity: Callable[..., Any],
    sample: Callable[..., Any],
    geometry: Geometry,
) -> Callable[[Any, Any, Array], Array]:
    """(params, batch, key) -> the loss at each of `TIMES`, without conditions."""

    def losses(params: Any, batch: Any, key: Array) -> Array:
        sample_key, noise_key = jax.random.split(key)
        video = sample(batch["video"], sample_key)
        corners = positions.latent_coords(video.shape[1:4])
        coords = positions.pixel_coords(corners, **dataclasses.asdict(geometry))
        coords = jnp.broadcast_to(coords, (video.shape[0], *coords.shape))
        rope = rope_of(coords, batch["frame_rate"], cfg.model)
        return losses_at_times(velocity, params, video, batch["captions"], rope, noise_key)

    return losses


def _kept(cfg: TrainTransformer, vae: VAEConfig) -> dict[positions.Grid, int]:
    """How many of a video's own tokens are not dropped, in each bucket."""
    grids = [grid_of(size, vae) for size in cfg.data.sizes]
    sizes = [
        (math.prod(grid), size.batch_size) for grid, size in zip(grids, cfg.data.sizes, strict=True)
    ]
    return dict(zip(grids, kept_tokens(sizes, cfg.flow.token_drop), strict=True))


def _work(
    loss: Loss, kept: dict[positions.Grid, int], state: TrainState
) -> Callable[[Any, int], Work]:
    """Counts what a batch has to do in any step; encoders that run before it are not counted."""

    @functools.cache
    def flop(tree: Any, leaves: tuple[Any, ...]) -> float:
        batch = jax.tree.unflatten(tree, leaves)

        def value(params: Any, batch: Any, key: Array) -> Array:
            return loss(params, state, batch, key)[0]

        key = jax.eval_shape(jax.random.key, 0)
        return flops.count_flop(value, state.params, batch, key, gradient=0)

    def work(batch: dict[str, Any], step: int) -> Work:
        b, *grid, _ = batch["video"]["mean"].shape
        extra = sum(math.prod(item.video["mean"].shape[1:4]) for item in batch["given"].items)
        leaves, tree = jax.tree.flatten(batch)
        shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
        return Work(b * (kept[tuple(grid)] + extra), flop(tree, shapes))

    return work


def _video(batch: Batch) -> Any:
    """Pixels, or the moments of stored posteriors."""
    if batch.latents is None:
        return batch.frames
    return {"mean": batch.latents.mean, "logvar": batch.latents.logvar}
