"""The loss of the second stage: rectified flow on noised latents with conditions.

`flow_loss` computes it from a batch. Tokens are laid out by `conditioning.prepare`, as for
sampling: a condition token at time t in training is one of strength 1 - t in sampling.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ltx_jax.config import FlowConfig
from ltx_jax.diffusion import conditioning, positions
from ltx_jax.diffusion.conditioning import Encoded
from ltx_jax.diffusion.denoiser import Plain
from ltx_jax.diffusion.flow import add_noise, velocity_of
from ltx_jax.diffusion.noise import KeyNoise
from ltx_jax.models.transformer import Context
from ltx_jax.training import losses
from ltx_jax.training.stage import LossValue
from ltx_jax.training.transformer.conditions import ConditionItem, Conditions
from ltx_jax.training.transformer.sources import Captions, Moments

_MULTIPLE = 8  # the number of kept tokens is a multiple of it
BINS = 5  # number of intervals of the time from 0 to 1; the loss is reported for each


def time_density(count: int, cfg: FlowConfig) -> tuple[float, float, float]:
    """Mean of the logit-normal density for `count` tokens, and the times at its two percentiles.

    The mean is linear in the token count, as in SD3, but constant above `max_tokens`, where the
    line would concentrate all times near t = 1.
    """
    slope = (cfg.max_shift - cfg.min_shift) / (cfg.max_tokens - cfg.min_tokens)
    mean = cfg.min_shift + slope * (min(count, cfg.max_tokens) - cfg.min_tokens)
    normal = statistics.NormalDist(mean)

    def time(percentile: float) -> float:
        return 1 / (1 + math.exp(-normal.inv_cdf(percentile / 100)))

    return mean, time(cfg.low_percentile), time(cfg.high_percentile)


def training_times(key: Array, batch: int, count: int, cfg: FlowConfig) -> Float[Array, " b"]:
    """Draws the times of a batch of clips with `count` tokens each, in [min_time, 1].

    The distribution is logit-normal, clipped at its two percentiles and stretched so that they map
    to the ends of the range (paper, section 3.1). A fraction of the samples is uniform instead.
    """
    normal_key, uniform_key = jax.random.split(key)
    uniform, choice = jax.random.uniform(uniform_key, (2, batch))
    mean, low, high = time_density(count, cfg)
    t = jax.nn.sigmoid(mean + jax.random.normal(normal_key, (batch,)))
    t = jnp.clip((t - low) / (high - low), 0, 1)
    t = jnp.where(choice < cfg.uniform_fraction, uniform, t)
    return t * (1 - cfg.min_time) + cfg.min_time


def condition_times(key: Array, t: Float[Array, " b"], cfg: FlowConfig) -> Float[Array, " b"]:
    """Draws a time for each sample's condition tokens: 0 with probability one half, else uniform
    between 0 and the maximum, but never above t."""
    own, choice = jax.random.uniform(key, (2, *t.shape))
    return jnp.where(choice < 0.5, 0.0, jnp.minimum(own * cfg.max_condition_time, t))


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How latents map to pixels: the VAE's compression, and the transformer's frame convention."""

    temporal_factor: int
    spatial_factor: int
    causal: bool


class NoisedBatch(NamedTuple):
    """The network's inputs for a batch, and its targets.

    Attributes:
      time: time of each sample, (b,).
      tokens: (b, n, c), the extra tokens of conditions first.
      times: time of each token (b, n), or (b, 1) if all tokens of a sample have the same time.
      coords: (b, n, 3) pixel coordinates.
      target: (b, n, c), the velocity to predict.
      weight: (b, n), weight of each token in the loss: 0 for conditions, else 1 if the batch does
        not say otherwise.
    """

    time: Any
    tokens: Any
    times: Any
    coords: Any
    target: Any
    weight: Any


def encoded_conditions(
    latents: Float[Array, "b t h w c"], conditions: Conditions, strength: Float[Array, " b"]
) -> list[Encoded]:
    """The conditions of a batch as `conditioning.prepare` takes them.

    Args:
      latents: normalised latents of the data.
      conditions: the conditions, whose videos are normalised latents (b, t, h, w, c).
      strength: strength of each sample's conditions; references have 1.
    """
    encoded = [Encoded(item, strength, frame) for item, frame in conditions.items]
    if conditions.reference is not None:
        encoded.append(Encoded(conditions.reference, 1.0, None))
    if conditions.prefix is not None:
        first = jnp.arange(latents.shape[1])[None] < conditions.prefix[:, None]
        encoded.append(Encoded(latents, jnp.where(first, strength[:, None], 0.0), 0))
    if conditions.kept is not None:
        per_sample = strength[:, None, None, None]
        encoded.append(Encoded(latents, jnp.where(conditions.kept, per_sample, 0.0), 0))
    return encoded


def noise_batch(
    latents: Float[Array, "b t h w c"],
    conditions: Conditions,
    key: Array,
    cfg: FlowConfig,
    geometry: Geometry,
    kept: int,
    weight: Float[Array, "b t h w"] | None = None,
) -> NoisedBatch:
    """Draws times and noise, and lays out the tokens.

    Args:
      latents: normalised latents of the data.
      conditions: the conditions, whose videos are normalised latents (b, t, h, w, c).
      key: random key of this step.
      cfg: distribution of the times.
      geometry: how latents map to pixels.
      kept: number of the video's own tokens that the network sees, a random choice per sample.
      weight: weight of each latent in the loss; None if all count equally.
    """
    b, t, h, w, _ = latents.shape
    count = t * h * w
    time_key, condition_key, noise_key, drop_key = jax.random.split(key, 4)
    time = training_times(time_key, b, count, cfg)
    strength = 1 - condition_times(condition_key, time, cfg)
    noise = KeyNoise(jax.random.split(noise_key, b))
    fresh = noise.draw("initial", latents.shape)

    encoded = encoded_conditions(latents, conditions, strength)
    prepared = conditioning.prepare(fresh, encoded, noise, **dataclasses.asdict(geometry))
    mask = jnp.zeros((b, 1)) if prepared.strength is None else prepared.strength

    extra = prepared.tokens.shape[1] - count
    data, fresh = (
        jnp.pad(positions.patchify(x), ((0, 0), (extra, 0), (0, 0))) for x in (latents, fresh)
    )
    is_free = mask == 0
    x = jnp.where(is_free[..., None], add_noise(data, fresh, time), prepared.tokens)
    counts = jnp.broadcast_to(is_free, x.shape[:2]).astype(jnp.float32)
    if weight is not None:
        counts *= jnp.pad(weight.reshape(b, count), ((0, 0), (extra, 0)))
    result = NoisedBatch(
        time=time,
        tokens=x,
        times=jnp.minimum(time[:, None], 1 - mask),
        coords=jnp.broadcast_to(prepared.coords, (b, *prepared.coords.shape[-2:])),
        target=velocity_of(data, fresh),
        weight=counts,
    )
    return result if kept == count else _drop(result, drop_key, extra, kept)


def _drop(whole: NoisedBatch, key: Array, extra: int, kept: int) -> NoisedBatch:
    """Keeps a random choice of `kept` of the video's own tokens, in their order."""
    b, n = whole.weight.shape
    order = jnp.argsort(jax.random.uniform(key, (b, n - extra)), axis=1)
    own = extra + jnp.sort(order[:, :kept], axis=1)
    index = jnp.concatenate([jnp.broadcast_to(jnp.arange(extra), (b, extra)), own], axis=1)

    def take(x: Array) -> Array:
        if x.shape[1] == 1:
            return x
        return jnp.take_along_axis(x, index if x.ndim == 2 else index[..., None], axis=1)

    return whole._replace(**{name: take(getattr(whole, name)) for name in NoisedBatch._fields[1:]})


def kept_tokens(sizes: Sequence[tuple[int, int]], share: float) -> tuple[int, ...]:
    """Number of tokens per sample that the network sees, for each bucket.

    Dropping tokens makes the batches of different buckets similar in size. The bucket with the most
    tokens per batch drops a fraction `share` of them; each other bucket drops what exceeds the
    number that is left there, but at most `share`. The number of tokens left in a sample is a
    multiple of eight, so that they can be split over devices.

    Args:
      sizes: tokens per sample and batch size, for each bucket.
      share: largest fraction of a sample's tokens to drop.
    """
    target = (1 - share) * max(count * batch for count, batch in sizes)

    def kept(count: int, batch: int) -> int:
        least = max((1 - share) * count, target / batch)
        return min(math.ceil(least / _MULTIPLE) * _MULTIPLE, count)

    return tuple(kept(count, batch) for count, batch in sizes)


@dataclasses.dataclass(frozen=True)
class FlowModel:
    """The networks of the stage, as its loss and its validation call them.

    Attributes:
      denoiser: the transformer.
      captions: the source of the caption embeddings.
      sample_latents: (moments, key) -> a sample of the posterior, normalised.
      geometry: how latents map to pixels.
    """

    denoiser: Plain
    captions: Captions
    sample_latents: Callable[[Moments, Array], Array]
    geometry: Geometry

    def init(self, key: Array) -> dict[str, Any]:
        """Initialises the parameters: "transformer", and "text_encoder" if it is trained."""
        keys = jax.random.split(key)
        return {"transformer": self.denoiser.init(keys[0]), **self.captions.init(keys[1])}

    def draw_latents(
        self, batch: Mapping[str, Any], video_key: Array, item_keys: Sequence[Array]
    ) -> tuple[Float[Array, "b t h w c"], Conditions]:
        """Draws a sample of each posterior of a batch: of its videos, and in its conditions."""
        moments: Conditions = batch["conditions"]
        latents: Any = self.sample_latents(batch["video"], video_key)
        items = tuple(
            ConditionItem(self.sample_latents(item.video, item_key), item.frame)
            for item, item_key in zip(moments.items, item_keys, strict=True)
        )
        conditions = moments._replace(items=items)
        if moments.reference is not None:
            reference_key = jax.random.fold_in(video_key, 1)
            reference = self.sample_latents(moments.reference, reference_key)
            conditions = conditions._replace(reference=reference)
        return latents, conditions

    def context(
        self, params: Any, batch: Mapping[str, Any], coords: Int[Array, "b n 3"]
    ) -> Context:
        """Makes the network's context for a batch, given the pixel coordinates of its tokens."""
        caption, mask = self.captions.embed(params, batch["captions"])
        rope = positions.rope_of(coords, batch["frame_rate"], self.denoiser.cfg)
        return Context(caption, mask, rope, **batch["context"])

    def velocity(
        self,
        params: Any,
        x: Float[Array, "b n c"],
        times: Float[Array, "b #n"],
        context: Context,
    ) -> Float[Array, "b n c"]:
        """The predicted velocity of every token."""
        weights = self.denoiser.prepare(params["transformer"])
        prepared = self.denoiser.prepare_context(weights, context)
        return self.denoiser(weights, x, times, prepared)[0]


def flow_loss(
    model: FlowModel,
    params: Any,
    batch: Mapping[str, Any],
    key: Array,
    cfg: FlowConfig,
    kept: Mapping[positions.Grid, int],
) -> LossValue:
    """Mean squared error of the predicted velocity.

    Args:
      model: the networks.
      params: parameters of the trained networks.
      batch: "video", moments of the posterior (b, t, h, w, c); "conditions"; "weight", of each
        latent in the loss, or None; "captions", "frame_rate" and "context", which the context is
        made from.
      key: random key of this step.
      cfg: distribution of the times and conditions.
      kept: for each latent grid, how many of a video's own tokens the network sees.
    """
    # Latents: a sample of each posterior.
    key, video_key, *item_keys = jax.random.split(key, 2 + len(batch["conditions"].items))
    latents, conditions = model.draw_latents(batch, video_key, item_keys)

    # Times, noise, condition tokens, and the tokens that are dropped.
    frames, height, width = latents.shape[1:4]
    count = kept[frames, height, width]
    noised = noise_batch(latents, conditions, key, cfg, model.geometry, count, batch["weight"])

    # The network.
    context = model.context(params, batch, noised.coords)
    prediction = model.velocity(params, noised.tokens, noised.times, context)

    # The error of each sample, condition tokens left out.
    per_sample = losses.velocity_loss(prediction, noised.target, noised.weight)
    conditioned = 1 - jnp.mean(noised.weight > 0)
    metrics = {"conditioned": conditioned, **by_time(per_sample, noised.time)}
    return LossValue(jnp.mean(per_sample), metrics)


def by_time(loss: Float[Array, " b"], time: Float[Array, " b"]) -> dict[str, Float[Array, ""]]:
    """Mean loss of the samples in each interval of the time; NaN for one without samples."""
    bins = jnp.minimum((time * BINS).astype(jnp.int32), BINS - 1)
    inside = jax.nn.one_hot(bins, BINS, axis=0)
    means = jnp.sum(inside * loss[None], axis=1) / jnp.sum(inside, axis=1)
    return {f"loss_at/{(i + 0.5) / BINS:.1f}": means[i] for i in range(BINS)}
