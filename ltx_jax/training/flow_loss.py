"""The loss of the second stage: times, noise and conditions of a batch, and what is asked for.

A batch is laid out by the sampler's own `conditioning.prepare`: a condition token of time t there
is one of strength 1 - t here.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ltx_jax.config import FlowConfig, TransformerConfig
from ltx_jax.diffusion import conditioning, positions
from ltx_jax.diffusion.conditioning import Encoded
from ltx_jax.diffusion.flow import add_noise, velocity_of
from ltx_jax.diffusion.noise import KeyNoise
from ltx_jax.training import losses
from ltx_jax.training.conditions import Conditions

_MULTIPLE = 8  # of tokens
BINS = 5  # of the time, by which the loss is reported


def time_density(count: int, cfg: FlowConfig) -> tuple[float, float, float]:
    """Mean of the logit-normal density for `count` tokens, and the times of its two percentiles.

    The mean is linear in the token count, as in SD3, and constant above `max_tokens`: the line
    goes on to put all mass next to t = 1.
    """
    slope = (cfg.max_shift - cfg.min_shift) / (cfg.max_tokens - cfg.min_tokens)
    mean = cfg.min_shift + slope * (min(count, cfg.max_tokens) - cfg.min_tokens)
    normal = statistics.NormalDist(mean)

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


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How latents lie in a video: the VAE's factors, and the transformer's reading of frames."""

    temporal_factor: int
    spatial_factor: int
    causal: bool


class Noised(NamedTuple):
    """What the network is shown of a batch, and what it has to answer.

    Attributes:
      time: of each sample, (b,).
      tokens: (b, n, c), the extra ones of conditions first.
      times: of each token (b, n), or (b, 1) where all of a sample have the same.
      coords: (b, n, 3) pixel coordinates.
      target: (b, n, c), the velocity.
      weight: (b, n), 1 for the tokens that count and 0 for conditions.
    """

    time: Any
    tokens: Any
    times: Any
    coords: Any
    target: Any
    weight: Any


def noised(
    latents: Float[Array, "b t h w c"],
    given: Conditions,
    key: Array,
    cfg: FlowConfig,
    geometry: Geometry,
    kept: int,
) -> Noised:
    """Draws times and noise, and lays out tokens.

    Args:
      latents: normalised data.
      given: conditions, their videos normalised latents (b, t, h, w, c).
      key: of this step.
      cfg: the distribution of times.
      geometry: see there.
      kept: how many of the video's own tokens the network sees, drawn for each sample.
    """
    b, t, h, w, _ = latents.shape
    count = t * h * w
    time_key, condition_key, noise_key, drop_key = jax.random.split(key, 4)
    time = training_times(time_key, b, count, cfg)
    strength = 1 - condition_times(condition_key, time, cfg)
    noise = KeyNoise(jax.random.split(noise_key, b))
    fresh = noise.draw("initial", latents.shape)

    conditions = [Encoded(item, strength, frame) for item, frame in given.items]
    if given.prefix is not None:
        first = jnp.arange(t)[None] < given.prefix[:, None]
        conditions.append(Encoded(latents, jnp.where(first, strength[:, None], 0.0), 0))
    prepared = conditioning.prepare(fresh, conditions, noise, **dataclasses.asdict(geometry))
    mask = jnp.zeros((b, 1)) if prepared.strength is None else prepared.strength

    extra = prepared.tokens.shape[1] - count
    data, fresh = (
        jnp.pad(positions.patchify(x), ((0, 0), (extra, 0), (0, 0))) for x in (latents, fresh)
    )
    is_free = mask == 0
    x = jnp.where(is_free[..., None], add_noise(data, fresh, time), prepared.tokens)
    result = Noised(
        time=time,
        tokens=x,
        times=jnp.minimum(time[:, None], 1 - mask),
        coords=jnp.broadcast_to(prepared.coords, (b, *prepared.coords.shape[-2:])),
        target=velocity_of(data, fresh),
        weight=jnp.broadcast_to(is_free, x.shape[:2]).astype(jnp.float32),
    )
    return result if kept == count else _drop(result, drop_key, extra, kept)


def _drop(whole: Noised, key: Array, extra: int, kept: int) -> Noised:
    """Leaves out all but `kept` of the video's own tokens, in their order."""
    b, n = whole.weight.shape
    order = jnp.argsort(jax.random.uniform(key, (b, n - extra)), axis=1)
    own = extra + jnp.sort(order[:, :kept], axis=1)
    index = jnp.concatenate([jnp.broadcast_to(jnp.arange(extra), (b, extra)), own], axis=1)

    def take(x: Array) -> Array:
        if x.shape[1] == 1:
            return x
        return jnp.take_along_axis(x, index if x.ndim == 2 else index[..., None], axis=1)

    return whole._replace(**{name: take(getattr(whole, name)) for name in Noised._fields[1:]})


def kept_tokens(sizes: Sequence[tuple[int, int]], share: float) -> tuple[int, ...]:
    """How many tokens of a sample of each bucket the network sees.

    The buckets' steps come as close to each other as dropping at most `share` of a sample's tokens
    allows: the largest one is cut by that share, the others to the same number of tokens if they
    have more. Of any tokens dropped, a multiple of eight is left, which devices can split.

    Args:
      sizes: tokens of a sample, and batch size, of each bucket.
      share: the largest that may be dropped.
    """
    target = (1 - share) * max(count * batch for count, batch in sizes)

    def kept(count: int, batch: int) -> int:
        least = max((1 - share) * count, target / batch)
        return min(math.ceil(least / _MULTIPLE) * _MULTIPLE, count)

    return tuple(kept(count, batch) for count, batch in sizes)


def rope_of(
    coords: Int[Array, "b n 3"], frame_rate: Float[Array, " b"], cfg: TransformerConfig
) -> tuple[Array, Array]:
    """Rotary tables of each sample, at its own frames per second."""
    return positions.rope_tables(positions.positions(coords, frame_rate), cfg)


def flow_loss(
    velocity: Callable[..., Any],
    params: Any,
    shown: Noised,
    captions: Mapping[str, Any],
    rope: Any,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Mean squared error of the predicted velocity, and metrics.

    Args:
      velocity: (params, tokens (b, n, c), times (b, 1 or n), captions, rope) -> (b, n, c).
      params: passed on.
      shown: the batch.
      captions: passed on.
      rope: passed on.
    """
    prediction = velocity(params, shown.tokens, shown.times, captions, rope)
    per_sample = losses.velocity_loss(prediction, shown.target, shown.weight)
    return jnp.mean(per_sample), {
        "conditioned": 1 - jnp.mean(shown.weight),
        **by_time(per_sample, shown.time),
    }


def by_time(loss: Float[Array, " b"], time: Float[Array, " b"]) -> dict[str, Float[Array, ""]]:
    """Mean loss of the samples of each bin of the time; NaN where there is none."""
    bins = jnp.minimum((time * BINS).astype(jnp.int32), BINS - 1)
    inside = jax.nn.one_hot(bins, BINS, axis=0)
    means = jnp.sum(inside * loss[None], axis=1) / jnp.sum(inside, axis=1)
    return {f"loss_at/{(i + 0.5) / BINS:.1f}": means[i] for i in range(BINS)}
