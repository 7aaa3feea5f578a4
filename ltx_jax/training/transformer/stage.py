"""The second stage: trains the transformer, and optionally a text encoder, with rectified flow.

With `adapter.rank`, it trains an adapter beside a frozen transformer instead.

Latents come from a frozen VAE; they are stored with the data, or encoded batch by batch. Every step
draws a new sample of their posterior.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import BucketConfig, TrainTransformer, VAEConfig
from ltx_jax.data.loader import Batch
from ltx_jax.diffusion import positions
from ltx_jax.diffusion.conditioning import PREFIX
from ltx_jax.diffusion.denoiser import Plain
from ltx_jax.inference.encode_dataset import check_vae
from ltx_jax.models.vae import check_video_shape
from ltx_jax.runtime import sharding
from ltx_jax.runtime.platforms import onednn_options
from ltx_jax.training import batches
from ltx_jax.training.adapter_base import (
    describe_base,
    init_adapter,
    load_base,
    split_key,
    with_adapter,
)
from ltx_jax.training.frozen_vae import check_holds_vae, describe_frozen_vae, load_frozen_vae
from ltx_jax.training.stage import BatchSource, InitialWeights, LossValue, Stage, Validation
from ltx_jax.training.state import TrainState
from ltx_jax.training.transformer import sources
from ltx_jax.training.transformer.conditions import (
    ConditionItem,
    Conditions,
    StepRandom,
    draw_conditions,
    loss_weight,
)
from ltx_jax.training.transformer.loss import FlowModel, Geometry, flow_loss, kept_tokens
from ltx_jax.training.transformer.sources import Captions, Dropped, Moments, Place
from ltx_jax.training.transformer.validation import FlowValidator


class TransformerStage(Stage):
    """Trains the transformer on the latents of a VAE.

    Args:
      cfg: the configuration of the run.
      mesh: the devices to run on.
      vae: a checkpoint with the VAE's configuration; also with its weights and latent statistics,
        unless the stage is only described.
      captions: the source of caption embeddings.
      loader: source of clips or latents; None for a stage that is only described.

    Raises:
      ValueError: if networks and settings do not fit each other.
    """

    cfg: TrainTransformer
    vae: Checkpoint

    def __init__(
        self,
        cfg: TrainTransformer,
        mesh: Mesh,
        vae: Checkpoint,
        captions: Captions,
        loader: BatchSource | None = None,
    ):
        super().__init__(cfg, mesh)
        self.vae, self._loader, self._captions = vae, loader, captions
        vae_cfg = self._vae_cfg
        check_fit(cfg, vae_cfg, mesh)
        causal = cfg.model.causal_temporal_positioning
        self.model = FlowModel(
            Plain(cfg.model, cfg.execution),
            captions,
            sources.latent_sampler(vae, vae_cfg),
            Geometry(vae_cfg.temporal_factor, vae_cfg.spatial_factor, causal),
        )
        grids = [latent_grid(bucket, vae_cfg) for bucket in cfg.data.sizes]
        sizes = zip(map(math.prod, grids), (x.batch_size for x in cfg.data.sizes), strict=True)
        kept = kept_tokens(tuple(sizes), cfg.flow.token_drop)
        self._kept = dict(zip(grids, kept, strict=True))
        if loader is not None:
            self._moments = sources.latent_reader(vae, vae_cfg, cfg.data, mesh)

    @classmethod
    def open(
        cls,
        cfg: TrainTransformer,
        mesh: Mesh,
        *,
        loader: BatchSource | None = None,
        vae: Checkpoint | None = None,
    ) -> "TransformerStage":
        """Makes the stage with its data, its VAE and its text encoder.

        Args:
          cfg: the configuration of the run.
          mesh: the devices to run on.
          loader: source of examples that replaces the one of `cfg.data`.
          vae: checkpoint that replaces the one that `cfg.vae` names.
        """
        vae = vae or load_frozen_vae(cfg.vae, cfg.run.output, mesh)
        check_fit(cfg, check_holds_vae(vae, cfg.vae), mesh)  # before anything large is loaded
        loader = loader or batches.open_loader(cfg, mesh, cfg.flow.patterns)
        if loader.encoding is not None:
            check_vae(loader.encoding, vae, cfg.vae)
        captions = sources.open_captions(cfg, loader.encoding, mesh)
        stage = cls(cfg, mesh, vae, captions, loader)
        if cfg.adapter.rank:
            base = load_base(cfg, mesh)
            stage.base, stage.initial = base.stored, base.initial
            stage.frozen = {"transformer": base.params}
        if cfg.run.validate_every:
            stage._validator.prepare()  # so that errors in it appear before the first step
        return stage

    @classmethod
    def describe(cls, cfg: TrainTransformer, mesh: Mesh) -> "TransformerStage":
        """Makes the stage without data, and without weights of the VAE and the text encoder."""
        vae = describe_frozen_vae(cfg.vae, cfg.model.in_channels)
        stage = cls(cfg, mesh, vae, sources.described_captions(cfg))
        if cfg.adapter.rank:
            stage.frozen = {"transformer": describe_base(cfg, mesh)}
        return stage

    def init(self, key: Array) -> dict[str, Any]:
        """Initialises "transformer", and "text_encoder" if it is trained; or "adapter" alone."""
        return init_adapter(self.cfg, key) if self.cfg.adapter.rank else self.model.init(key)

    def networks(
        self, params: Mapping[str, Any], frozen: Mapping[str, Any], key: Array | None = None
    ) -> Mapping[str, Any]:
        """The parameters of all networks: the trained ones, or the base with its adapter.

        Args:
          params: the trained parameters.
          frozen: the weights of `self.frozen`.
          key: random key of the adapter's dropout; None turns it off.
        """
        if not self.cfg.adapter.rank:
            return params
        return {"transformer": with_adapter(frozen["transformer"], params, self.cfg.adapter, key)}

    def abstract_batch(self, bucket: BucketConfig) -> dict[str, Any]:
        """Shapes of a bucket's largest batch, whose conditions add the most tokens."""
        cfg, b, grid = self.cfg, bucket.batch_size, latent_grid(bucket, self._vae_cfg)
        channels = self._vae_cfg.latent_channels

        def moments(frames: int, factor: int = 1) -> Moments:
            shape = (b, frames, grid[1] // factor, grid[2] // factor)
            return {
                "mean": jax.ShapeDtypeStruct((*shape, channels), jnp.float16),
                "logvar": jax.ShapeDtypeStruct((*shape, 1), jnp.float16),
            }

        number: Any = jax.ShapeDtypeStruct((b,), jnp.int32)
        patterns = {name for name, share in cfg.flow.patterns[1:] if share and grid[0] > 1}
        keyframes = cfg.flow.max_keyframes if "keyframes" in patterns else 0
        lengths = [1] * keyframes or [PREFIX] * ("clip" in patterns)
        items = tuple(ConditionItem(moments(frames), number) for frames in lengths)
        has_prefix, reference = bool(patterns - {"mask"}), None
        if cfg.data.reference != "none":
            reference = moments(grid[0], cfg.data.reference_downscale_factor)
        kept: Any = jax.ShapeDtypeStruct((b, *grid), jnp.bool_)
        conditions = Conditions(
            number if has_prefix else None, items, kept if "mask" in patterns else None, reference
        )
        weight: Any = jax.ShapeDtypeStruct((b, *grid), jnp.float32)
        batch = {
            "video": moments(grid[0]),
            "conditions": conditions,
            "weight": weight if cfg.flow.weighs_latents else None,
            "frame_rate": jax.ShapeDtypeStruct((b,), jnp.float32),
            "captions": sources.caption_shapes(cfg, b),
            "context": {
                name: jax.ShapeDtypeStruct((b, *shape), jnp.float32)
                for name, shape in cfg.model.context_shapes.items()
            },
        }
        return batches.split_shapes(self.mesh, batch)

    def batches(self, first: int, last: int) -> Iterator[dict[str, Any]]:
        """Batches with the fields of `abstract_batch`, each with the conditions of its pattern."""
        for _, batch in self.loaded(first, last):
            yield batch

    def loaded(self, first: int, last: int) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """The batches of `batches`, each after the examples that it was made from."""
        assert self._loader is not None, "a stage that is only described has no data"
        cfg, part = self.cfg, batches.process_part(self.mesh)
        place = functools.partial(batches.split_over, self.mesh)
        # Not in a thread, since all processes must launch programs in the same order.
        for step, batch in enumerate(self._loader.batches(first, last), first):
            random = StepRandom(cfg.run.seed, step, part)
            dropped = random.chances(cfg.flow.caption_dropout, len(batch.captions))
            conditions = draw_conditions(batch, random, cfg.flow, self._vae_cfg)
            yield batch, self._on_mesh(batch, conditions, dropped, place)

    def _on_mesh(
        self, batch: Batch, conditions: Conditions, dropped: Dropped, place: Place
    ) -> dict[str, Any]:
        """Converts a loaded batch to the inputs of a step; encoders are launched asynchronously."""
        prefix, kept = (
            None if x is None else place(x) for x in (conditions.prefix, conditions.kept)
        )
        items = tuple(
            ConditionItem(self._moments(item.video, place), place(item.frame))
            for item in conditions.items
        )
        reference = conditions.reference
        if reference is not None:
            reference = self._moments(reference, place)
        grid = latent_grid(batch.bucket, self._vae_cfg)
        weight = loss_weight(batch, self.cfg.flow, self._vae_cfg, grid)
        context = sources.read_context(batch.context, self.cfg.model.context_shapes, dropped)
        return {
            "video": self._moments(_pixels_or_moments(batch), place),
            "conditions": Conditions(prefix, items, kept, reference),
            "weight": None if weight is None else place(weight),
            "frame_rate": place(batch.frame_rate),
            "captions": self._captions.read(batch.captions, batch.embeddings, dropped, place),
            "context": place(context),
        }

    def tokens(self, batch: dict[str, Any]) -> int:
        """Tokens that the transformer processes, including those of conditions, without dropped
        ones."""
        b, *grid, _ = batch["video"]["mean"].shape
        _, items, _, reference = batch["conditions"]
        videos = [item.video for item in items] + [reference] * (reference is not None)
        extra = sum(math.prod(video["mean"].shape[1:4]) for video in videos)
        return b * (self._kept[tuple(grid)] + extra)

    def loss(
        self, params: Any, state: TrainState, batch: Any, frozen: Any, key: Array
    ) -> LossValue:
        """See `flow_loss`."""
        key, dropout_key = split_key(self.cfg.adapter, key)
        networks = self.networks(params, frozen, dropout_key)
        return flow_loss(self.model, networks, batch, key, self.cfg.flow, self._kept)

    def flop_stage(self, step: int) -> Stage:
        """This stage with plain attention: fused kernels also compute padding, which should not be
        counted."""
        return self._with_plain_attention

    @functools.cached_property
    def _with_plain_attention(self) -> "TransformerStage":
        execution = dataclasses.replace(self.cfg.execution, attention="plain")
        stage, denoiser = copy.copy(self), Plain(self.cfg.model, execution)
        stage.model = dataclasses.replace(self.model, denoiser=denoiser)
        return stage

    def validate(self, state: TrainState) -> Validation:
        """See `FlowValidator`."""
        return self._validator(self.networks(state.ema, self.frozen))

    @functools.cached_property
    def _validator(self) -> FlowValidator:
        return FlowValidator(self.cfg, self.mesh, self.vae, self.model, self._on_mesh)

    def initial_weights(self, checkpoint: Checkpoint) -> InitialWeights:
        """The transformer of a checkpoint, and its text encoder if this run trains one."""
        if checkpoint.transformer is None:
            raise ValueError("--run.init_from names a checkpoint without a transformer")
        params = {"transformer": checkpoint.transformer_params}
        configs = ((checkpoint.transformer, self.cfg.model),)
        if checkpoint.text_encoder is None or self.cfg.captions != "train":
            return InitialWeights(params, configs)
        text_cfg, text_params, _ = checkpoint.text_encoder
        params["text_encoder"] = text_params
        return InitialWeights(params, (*configs, (text_cfg, self.cfg.text_encoder)))

    def compiler_options(self) -> dict[str, Any] | None:
        """The XLA options for fast matmuls on CPUs."""
        return onednn_options()

    @property
    def _vae_cfg(self) -> VAEConfig:
        assert self.vae.vae is not None  # ensured by `open` and `describe`
        return self.vae.vae


def latent_grid(bucket: BucketConfig, vae: VAEConfig) -> positions.Grid:
    """Latent frames, rows and columns of a bucket's clips."""
    return (
        (bucket.num_frames - 1) // vae.temporal_factor + 1,
        bucket.height // vae.spatial_factor,
        bucket.width // vae.spatial_factor,
    )


def check_fit(cfg: TrainTransformer, vae: VAEConfig, mesh: Mesh) -> None:
    """Checks that the settings fit each other.

    Raises:
      ValueError: if they do not; the message names them.
    """
    sharding.check_heads(cfg.model.num_attention_heads, mesh)
    for size in cfg.data.sizes:
        shape = (size.batch_size, size.num_frames, size.height, size.width, vae.in_channels)
        check_video_shape(vae, shape)
        factor = cfg.data.reference_downscale_factor
        step = vae.spatial_factor * factor
        if cfg.data.reference != "none" and (size.height % step or size.width % step):
            raise ValueError(
                f"references {factor} times smaller (data.reference_downscale_factor) need clips "
                f"with a height and width that are multiples of {step}, and a bucket has "
                f"{size.height} x {size.width}"
            )
    for name in ("in_channels", "out_channels"):
        channels = getattr(cfg.model, name)
        if channels != vae.latent_channels:
            raise ValueError(
                f"the VAE of {cfg.vae} has {vae.latent_channels} latent channels and "
                f"model.{name} is {channels}: make them equal"
            )


def _pixels_or_moments(batch: Batch) -> Any:
    """The frames of a batch, or the moments of its stored posteriors."""
    if batch.latents is None:
        return batch.frames
    return {"mean": batch.latents.mean, "logvar": batch.latents.logvar}
