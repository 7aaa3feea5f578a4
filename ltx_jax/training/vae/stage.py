"""The first stage: the Video-VAE and its discriminator, on pictures and videos together.

With `adapter.rank`, it trains an adapter beside the decoder of a frozen VAE instead.
"""

import copy
import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ltx_jax.checkpoints import perceptual
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import BucketConfig, TrainVAE, VAELossConfig
from ltx_jax.models import convolution, efficientnet
from ltx_jax.models.discriminator import Discriminator
from ltx_jax.models.vae import LatentStatistics, VideoVAE
from ltx_jax.training import batches
from ltx_jax.training.adapter_base import (
    describe_base,
    init_adapter,
    load_base,
    split_key,
    with_adapter,
)
from ltx_jax.training.clip_stage import ClipStage, clip_shape
from ltx_jax.training.optim import MAIN, Optimizer, make_optimizer
from ltx_jax.training.stage import BatchSource, InitialWeights, LossValue, Stage, Validation
from ltx_jax.training.state import TrainState
from ltx_jax.training.vae import gan
from ltx_jax.training.vae.loss import (
    Networks,
    first_statistics,
    latent_statistics,
    reconstruction_loss,
    running_statistics,
    vae_loss,
)
from ltx_jax.training.vae.validation import VAEValidator

_log = logging.getLogger(__name__)


class VAEStage(ClipStage):
    """Trains the Video-VAE; with a discriminator if `loss.gan_weight` is above 0.

    Args:
      cfg: the configuration of the run.
      mesh: the devices to run on.
      frozen: weights of the networks that the loss needs.
      loader: source of the clips; None for a stage that is only described.

    Raises:
      ValueError: if the sizes of clips do not fit the networks.
    """

    cfg: TrainVAE
    _statistics: LatentStatistics | None = None  # of the base of an adapter

    def __init__(
        self,
        cfg: TrainVAE,
        mesh: Mesh,
        frozen: Mapping[str, Any],
        loader: BatchSource | None = None,
    ):
        if not cfg.model.timestep_conditioning:
            # A decoder without the noise level as an input is trained on clean latents.
            clean = dataclasses.replace(cfg.loss, max_decode_time=0.0)
            cfg = dataclasses.replace(cfg, loss=clean)
        if cfg.adapter.rank:
            # The encoder is frozen, and the statistics are those that transformers know.
            decoding = dataclasses.replace(cfg.loss, kl_weight=0.0, statistics_decay=1.0)
            cfg = dataclasses.replace(cfg, loss=decoding)
        super().__init__(cfg, mesh, cfg.model, loader)
        self.frozen = self._perceptual = frozen
        self._vae = VideoVAE(cfg.model, cfg.execution)
        self._discriminator = Discriminator(cfg.discriminator, cfg.disc_execution)
        self._has_gan = cfg.loss.gan_weight > 0
        self._disc_start = round(cfg.loss.disc_start * cfg.run.steps)
        for bucket in cfg.data.sizes:
            self._check(bucket)

    @classmethod
    def open(cls, cfg: TrainVAE, mesh: Mesh, *, loader: BatchSource | None = None) -> "VAEStage":
        """Makes the stage with its data, from `cfg.data` or another loader.

        Raises:
          ValueError: also if a file of weights cannot be read.
        """
        stage = cls(cfg, mesh, read_perceptual(cfg.loss), loader or batches.open_loader(cfg, mesh))
        if cfg.adapter.rank:
            base = load_base(cfg, mesh)
            stage.base, stage.initial = base.stored, base.initial
            stage.frozen = {**stage.frozen, "vae": base.params}
            stage._statistics = base.statistics
        if cfg.run.validate_every:
            stage._validator.prepare()  # so that errors in it appear before the first step
        return stage

    @classmethod
    def describe(cls, cfg: TrainVAE, mesh: Mesh) -> "VAEStage":
        """Makes the stage without its data, and with zeros as EfficientNet's weights."""
        stage = cls(cfg, mesh, read_perceptual(cfg.loss, described=True))
        if cfg.adapter.rank:
            stage.frozen = {**stage.frozen, "vae": describe_base(cfg, mesh)}
        return stage

    def init(self, key: Array) -> dict[str, Any]:
        """Initialises "encoder" and "decoder", or "adapter", and "discriminator" if there is
        one."""
        smallest = min(self.cfg.data.sizes, key=lambda b: b.num_frames * b.height * b.width)
        video = jnp.zeros((1, *clip_shape(smallest)[1:]))
        adapts = self.cfg.adapter.rank > 0
        params: Any = (
            init_adapter(self.cfg, key) if adapts else self._vae.init(key, video)["params"]
        )
        if not self._has_gan:
            return params
        pair = jnp.concatenate([video] * (2 if self.cfg.loss.gan == "pair" else 1), axis=-1)
        own = self._discriminator.init(jax.random.fold_in(key, 1), pair)["params"]
        return {**params, "discriminator": own}

    def optimizers(self) -> dict[str, Optimizer]:
        """The autoencoder's optimiser, and the discriminator's, which begins later and keeps no
        average."""
        main = super().optimizers()
        if not self._has_gan:
            return main
        cfg, start = self.cfg, self._disc_start
        tx = make_optimizer(cfg.disc_optim, cfg.run.steps - start)
        own = Optimizer(tx, cfg.disc_optim.freeze, start=start, metrics=gan.METRICS)
        return {MAIN: main[MAIN], "discriminator": own}

    def first_statistics(self) -> dict[str, Any]:
        """Running moments of the latents, before any batch; of a base, those that it has."""
        if self._statistics is not None:
            return running_statistics(self._statistics)
        return first_statistics(self.cfg.model.latent_channels)

    def networks(
        self, params: Mapping[str, Any], frozen: Mapping[str, Any], key: Array | None = None
    ) -> Mapping[str, Any]:
        """The parameters of all networks: the trained ones, or the base with its adapter beside
        what else is trained.

        Args:
          params: the trained parameters.
          frozen: the weights of `self.frozen`.
          key: random key of the adapter's dropout; None turns it off.
        """
        if not self.cfg.adapter.rank:
            return params
        others = {name: part for name, part in params.items() if name != "adapter"}
        return {**others, **with_adapter(frozen["vae"], params, self.cfg.adapter, key)}

    def loss(
        self, params: Any, state: TrainState, batch: Any, frozen: Any, key: Array
    ) -> LossValue:
        """See `vae_loss`."""
        discriminator = self._discriminator.apply if self._has_gan else None
        apply = Networks(self._vae.apply, discriminator)
        key, dropout_key = split_key(self.cfg.adapter, key)
        networks = self.networks(params, frozen, dropout_key)
        return vae_loss(apply, networks, state, batch, frozen, key, self.cfg.loss, self._disc_start)

    def flop_stage(self, step: int) -> Stage:
        """This stage without the discriminator for the steps before it begins."""
        # This is an estimate: the discriminator begins after a number of updates, and rejected
        # steps are not updates.
        return self._without_gan if self._has_gan and step <= self._disc_start else self

    @functools.cached_property
    def _without_gan(self) -> "VAEStage":
        stage = copy.copy(self)
        stage._has_gan = False
        return stage

    def validate(self, state: TrainState) -> Validation:
        """See `VAEValidator`."""
        return self._validator(self.networks(state.ema, self.frozen), state.statistics)

    @functools.cached_property
    def _validator(self) -> VAEValidator:
        return VAEValidator(self.cfg, self.mesh, self._perceptual)

    def latent_statistics(self, state: TrainState) -> dict[str, Any]:
        """Mean and deviation of each channel of the latents; {} for an adapter, whose base has
        them."""
        if self.cfg.adapter.rank:
            return {}
        value = latent_statistics(state.statistics)
        return {"mean": value.mean, "std": value.std}

    def initial_weights(self, checkpoint: Checkpoint) -> InitialWeights:
        """The VAE of a checkpoint; its latent statistics initialise the running ones, unless the
        latents have other channels now."""
        if checkpoint.vae is None:
            raise ValueError("--run.init_from names a checkpoint without a VAE")
        running, statistics = None, checkpoint.statistics
        same_channels = checkpoint.vae.latent_channels == self.cfg.model.latent_channels
        if statistics is not None and same_channels:
            running = running_statistics(statistics)
        configs = ((checkpoint.vae, self.cfg.model),)
        return InitialWeights(checkpoint.vae_params, configs, running)

    def compiler_options(self) -> dict[str, Any] | None:
        """The XLA options for fast convolutions."""
        return convolution.compiler_options(few_rows=False)

    def _check(self, bucket: BucketConfig) -> None:
        """Checks that the discriminator and the loss can process clips of a bucket's size."""
        video = jax.ShapeDtypeStruct(clip_shape(bucket), jnp.float32)
        jax.eval_shape(lambda x: reconstruction_loss(x, x, self.frozen, self.cfg.loss), video)
        if self._has_gan:
            jax.eval_shape(self._discriminator.init, jax.random.key(0), video)


def read_perceptual(cfg: VAELossConfig, *, described: bool = False) -> dict[str, Any]:
    """Reads the weights of the frozen networks whose terms are on. If the stage is only described,
    zeros stand for EfficientNet's weights, whose file may be missing then."""
    frozen: dict[str, Any] = {}
    if cfg.efficientnet_weight and described:
        zeros = {name: np.zeros(x, np.float32) for name, x in efficientnet.shapes().items()}
        frozen["efficientnet"] = efficientnet.fold(zeros)
    elif cfg.efficientnet_weight:
        frozen["efficientnet"] = perceptual.read_efficientnet(cfg.efficientnet)
    lpips = _read_lpips(cfg)
    return frozen if lpips is None else {**frozen, "lpips": lpips}


def _read_lpips(cfg: VAELossConfig) -> Any:
    """Reads the weights of LPIPS; None if the term is off."""
    if not cfg.lpips_weight:
        return None
    if not (cfg.vgg and cfg.lpips_heads):
        _log.warning(
            "LPIPS is off: loss.lpips_weight is %g, but the files with its weights are not given; "
            "name them with --loss.vgg and --loss.lpips-heads",
            cfg.lpips_weight,
        )
        return None
    return perceptual.read_lpips(cfg.vgg, cfg.lpips_heads)
