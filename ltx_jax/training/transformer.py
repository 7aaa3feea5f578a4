"""The second stage: the transformer and its text encoder on rectified flow.

Latents come from a frozen VAE: encoded once for a folder, live for the procedural world. The
posterior is sampled afresh in every step.
"""

import math
import statistics as stdlib_statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from ltx_jax import sharding
from ltx_jax.checkpoints import checkpoint, runs
from ltx_jax.checkpoints.contents import Checkpoint
from ltx_jax.config import DataConfig, FlowConfig, TrainTransformer, TransformerConfig, VAEConfig
from ltx_jax.data.loader import Batch, Loader
from ltx_jax.diffusion import tokens
from ltx_jax.diffusion.flow import add_noise, velocity_of
from ltx_jax.models import convolution
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.models.transformer import Transformer
from ltx_jax.models.vae import LatentStatistics, Posterior, VideoVAE, check_video_shape
from ltx_jax.text import ByteTokenizer, tokenize
from ltx_jax.training import losses
from ltx_jax.training.optim import make_optimizer
from ltx_jax.training.stage import Stage, Validation, Work, ahead, replicate, split
from ltx_jax.training.state import TrainState, descend, make_step, plan
from ltx_jax.training.vae import to_float


def time_density(count: int, cfg: FlowConfig) -> tuple[float, float, float]:
    """Mean of the logit-normal density for `count` tokens, and the times of its two percentiles.

    The mean is linear in the token count, as in SD3, and constant above `max_tokens`: the line
    goes on to put all mass next to t = 1.
    """
    slope = (cfg.max_shift - cfg.min_shift) / (cfg.max_tokens - cfg.min_tokens)
    mean = cfg.min_shift + slope * (min(count, cfg.max_tokens) - cfg.min_tokens)
    normal = stdlib_statistics.NormalDist(mean)

    def time(percentile: float) -> float:
        return 1 / (1 + math.exp(-normal.inv_cdf(percentile / 100)))

    return mean, time(cfg.low_percentile), time(cfg.high_percentile)


def training_times(key: Array, batch: int, count: int, cfg: FlowConfig) -> Float[Array, " b"]:
    """Times of a batch of clips of `count` tokens, in [min_time, 1].

    Logit-normal, clipped at its percentiles and stretched so that they land on the ends (paper,
    section 3.1); a part of the samples is uniform.
    """
    normal_key, uniform_key = jax.random.split(key)
    uniform, choice = jax.random.uniform(uniform_key, (2, batch))
    mean, low, high = time_density(count, cfg)
    t = jax.nn.sigmoid(mean + jax.random.normal(normal_key, (batch,)))
    t = jnp.clip((t - low) / (high - low), 0, 1)
    t = jnp.where(choice < cfg.uniform_fraction, uniform, t)
    return t * (1 - cfg.min_time) + cfg.min_time


def condition_times(key: Array, t: Float[Array, " b"], cfg: FlowConfig) -> Float[Array, " b"]:
    """Times of condition tokens: 0 half of the time, else up to the maximum, never above t."""
    own, choice = jax.random.uniform(key, (2, *t.shape))
    return jnp.where(choice < 0.5, 0.0, jnp.minimum(own * cfg.max_condition_time, t))


def flow_loss(
    velocity: Callable[..., Any],
    params: Any,
    latents: Float[Array, "b n c"],
    condition: Bool[Array, " n"],
    text: dict[str, Any],
    rope: Any,
    key: Array,
    cfg: FlowConfig,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Mean squared error of the predicted velocity, and metrics.

    Args:
      velocity: (params, x (b, n, c), times (b, n), token ids, caption mask, rope) -> (b, n, c).
      params: of both networks.
      latents: normalised data.
      condition: tokens that are given: they have a small time of their own and carry no loss.
      text: `ids` and `mask` (b, m) of the captions; `empty_ids` and `empty_mask` (m,) of none.
      rope: passed on.
      key: of this step.
      cfg: times, caption dropout.
    """
    time_key, condition_key, noise_key, drop_key = jax.random.split(key, 4)
    b, n, _ = latents.shape
    t = training_times(time_key, b, n, cfg)
    own = condition_times(condition_key, t, cfg)
    times = jnp.where(condition[None], own[:, None], t[:, None])
    noise = jax.random.normal(noise_key, latents.shape)
    x = add_noise(latents, noise, times)

    drop = jax.random.bernoulli(drop_key, cfg.caption_dropout, (b, 1))
    ids = jnp.where(drop, text["empty_ids"][None], text["ids"])
    mask = jnp.where(drop, text["empty_mask"][None], text["mask"])
    prediction = velocity(params, x, times, ids, mask, rope)

    weight = jnp.broadcast_to(~condition[None], (b, n)).astype(jnp.float32)
    per_sample = losses.velocity_loss(prediction, velocity_of(latents, noise), weight)
    return jnp.mean(per_sample), {"conditioned": jnp.mean(condition.astype(jnp.float32))}


def networks(cfg: TrainTransformer) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`init(key)` and `velocity(params, ...)` of transformer and text encoder together."""
    transformer, text_encoder = Transformer(cfg.model), T5Encoder(cfg.text_encoder)

    def init(key: Array) -> dict[str, Any]:
        keys = jax.random.split(key)
        x = jnp.zeros((1, 2, cfg.model.in_channels))
        caption = jnp.zeros((1, 1, cfg.model.caption_channels))
        rope = (jnp.ones((1, 2, cfg.model.width // 2)),) * 2
        ids = jnp.zeros((1, cfg.max_caption_tokens), jnp.int32)
        return {
            "transformer": transformer.init(keys[0], x, jnp.ones((1, 1)), caption, None, rope)[
                "params"
            ],
            "text_encoder": text_encoder.init(keys[1], ids, ids)["params"],
        }

    def velocity(params: Any, x: Array, times: Array, ids: Array, mask: Array, rope: Any) -> Array:
        caption: Any = text_encoder.apply({"params": params["text_encoder"]}, ids, mask)
        weights = {"params": params["transformer"]}
        return transformer.apply(weights, x, times, caption, mask, rope)  # pyright: ignore[reportReturnType]

    return init, velocity


def rope_of(
    cfg: TransformerConfig,
    grid: tokens.Grid,
    factors: tuple[int, int],
    frame_rate: Float[Array, " b"],
) -> tuple[Array, Array]:
    """Rotary tables of each sample, at its own frames per second."""
    coords = tokens.pixel_coords(
        tokens.latent_coords(grid), *factors, causal=cfg.causal_temporal_positioning
    )
    coords = jnp.broadcast_to(coords[None], (frame_rate.shape[0], *coords.shape))
    return tokens.rope_tables(tokens.positions(coords, frame_rate), cfg)


def build(cfg: TrainTransformer, mesh: Mesh) -> Stage:
    """Opens data and VAE, and plans the state.

    Raises:
      ValueError: if data, VAE and transformer do not fit each other.
    """
    data, seed = cfg.data, cfg.run.seed
    loaded, vae = _load_vae(cfg, mesh)
    shape = (data.batch_size, data.num_frames, data.height, data.width, vae.in_channels)
    check_video_shape(vae, shape)
    factors = (vae.temporal_factor, vae.spatial_factor)
    grid = (
        (data.num_frames - 1) // factors[0] + 1,
        data.height // factors[1],
        data.width // factors[1],
    )
    # Without statistics the latents are not normalised.
    channels = vae.latent_channels
    normal = loaded.statistics or LatentStatistics(jnp.zeros(channels), jnp.ones(channels))
    empty_ids, empty_mask = tokenize(ByteTokenizer(), [""], cfg.max_caption_tokens)
    init, velocity = networks(cfg)

    def loss(params: Any, state: TrainState, batch: dict[str, Any], key: Array) -> Any:
        sample_key, key = jax.random.split(key)
        posterior = Posterior(batch["mean"], batch["logvar"])
        z = posterior.sample(jax.random.normal(sample_key, posterior.mean.shape))
        latents = tokens.patchify(normal.normalize(z))
        text = {name: batch[name] for name in ("ids", "mask")}
        text |= {"empty_ids": jnp.asarray(empty_ids[0]), "empty_mask": jnp.asarray(empty_mask[0])}
        rope = rope_of(cfg.model, grid, factors, batch["frame_rate"])
        value, metrics = flow_loss(
            velocity, params, latents, batch["condition"], text, rope, key, cfg.flow
        )
        return value, (metrics, state.statistics)

    loader = Loader(data, (("none", 1.0),), seed)
    posterior_of = _posteriors(loader, data, vae, loaded.vae_params, mesh)

    def batch(step: int, loaded: Batch) -> dict[str, Any]:
        ids, mask = tokenize(ByteTokenizer(), loaded.captions, cfg.max_caption_tokens)
        host = {"ids": ids, "mask": mask, "frame_rate": loaded.frame_rate}
        condition = _first_frame(cfg.flow, grid, seed, step)
        condition = replicate(condition, mesh)
        return {**posterior_of(step, loaded), **split(host, mesh), "condition": condition}

    def batches(first: int, last: int) -> Iterator[dict[str, Any]]:
        made = loader.batches(first, last)
        return ahead(lambda step: batch(step, next(made)), first, last)

    tx = make_optimizer(cfg.optim, cfg.run.steps)
    planned = plan(init, tx, mesh, seed)
    update = descend(loss, tx, cfg.optim.ema_decay, planned.layout)
    step = make_step(update, planned.layout, seed)
    return Stage(
        planned,
        step,
        batches=batches,
        work=lambda batch: Work(0, 0.0),
        validate=lambda state: Validation(),
        statistics=lambda state: {},
        vae=loaded,
    )


def _first_frame(cfg: FlowConfig, grid: tokens.Grid, seed: int, step: int) -> np.ndarray:
    """Marks the first latent frame in a share of the batches; a single frame is never given."""
    given = np.random.default_rng([seed, step]).random() < cfg.first_frame_probability
    frame = np.arange(math.prod(grid)) // (grid[1] * grid[2])
    return (frame == 0) & (given and grid[0] > 1)


def _load_vae(cfg: TrainTransformer, mesh: Mesh) -> tuple[Checkpoint, VAEConfig]:
    # A run that goes on keeps the VAE it began with, whatever has become of that path.
    loaded = runs.load_vae(cfg.run.output, mesh=mesh) or checkpoint.load(cfg.vae, mesh=mesh)
    if loaded.vae is None:
        raise ValueError(f"{cfg.vae} holds no VAE: --vae must name a checkpoint that does")
    for name in ("in_channels", "out_channels"):
        channels = getattr(cfg.model, name)
        if channels != loaded.vae.latent_channels:
            raise ValueError(
                f"the VAE of {cfg.vae} has {loaded.vae.latent_channels} latent channels and "
                f"model.{name} is {channels}"
            )
    return loaded, loaded.vae


def _posteriors(
    loader: Loader, data: DataConfig, vae: VAEConfig, vae_params: Any, mesh: Mesh
) -> Callable[[int, Batch], dict[str, Any]]:
    """(step, its pixels) -> moments of the posterior, on the mesh; those of files are kept."""
    model = VideoVAE(vae)

    def moments(params: Any, frames: Array) -> dict[str, Array]:
        posterior: Any = model.apply({"params": params}, to_float(frames), method="encode")
        return {"mean": posterior.mean, "logvar": posterior.logvar}

    program = jax.jit(moments, compiler_options=convolution.compiler_options())

    def encode(frames: Any) -> dict[str, Array]:
        with sharding.use_mesh(mesh):  # contexts belong to threads, and batches come from another
            return program(vae_params, split(frames, mesh))

    if data.source == "shapes":
        return lambda step, loaded: encode(loaded.frames)

    kept: dict[tuple[int, int], dict[str, np.ndarray]] = {}

    def stored(step: int, loaded: Batch) -> dict[str, Any]:
        rows = loader.plan(step).rows
        if not all(row in kept for row in rows):
            encoded = jax.tree.map(np.asarray, encode(loaded.frames))
            for i, row in enumerate(rows):
                kept[row] = jax.tree.map(lambda x, i=i: x[i], encoded)
        return split(jax.tree.map(lambda *x: np.stack(x), *[kept[row] for row in rows]), mesh)

    return stored
