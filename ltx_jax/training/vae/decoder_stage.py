"""Trains a smaller decoder for the latents of a trained VAE."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ltx_jax.checkpoints import keys
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import ExecutionConfig, TrainDecoder
from ltx_jax.data.loader import Loader
from ltx_jax.models.vae import LatentStatistics, VideoVAE
from ltx_jax.models.vae_taps import Decoded, decode_with_features
from ltx_jax.pixels import from_bytes
from ltx_jax.runtime import sharding
from ltx_jax.training import batches
from ltx_jax.training.frozen_vae import load_frozen_vae, stored_configuration
from ltx_jax.training.optim import Optimizer, make_optimizer
from ltx_jax.training.stage import BatchSource, InitialWeights, LossValue
from ltx_jax.training.state import TrainState
from ltx_jax.training.vae.decoder_loss import DecoderNetworks, decoder_loss
from ltx_jax.training.vae.loss import DecoderInputs, decoder_inputs
from ltx_jax.training.vae.pruning import Pruned, check_prunable, prune_decoder
from ltx_jax.training.vae.stage import VAEStage, read_perceptual
from ltx_jax.training.validation_clips import require_pixels

_log = logging.getLogger(__name__)

_DECODER_ALONE = r"^(?!decoder/)"  # what is frozen


class DecoderStage(VAEStage):
    """Trains the decoder of a `TrainDecoder`, and the projections of its features.

    The encoder is part of the state, so that the run is a whole VAE, but never changes; neither do
    the statistics of the latents. The large VAE is saved with the run, which continues with it even
    if the checkpoint that `vae` names has changed.

    Args:
      cfg: the configuration of the run.
      mesh: the devices to run on.
      perceptual: weights of the networks that the loss needs.
      large: the VAE with the large decoder; without weights, shapes are enough.
      loader: source of the clips; None for a stage that is only described.

    Raises:
      ValueError: if the networks do not fit each other, or sizes of clips the networks.
    """

    cfg: TrainDecoder

    def __init__(
        self,
        cfg: TrainDecoder,
        mesh: Mesh,
        perceptual: Mapping[str, Any],
        large: Checkpoint,
        loader: BatchSource | None = None,
    ):
        super().__init__(cfg, mesh, perceptual, loader)
        assert large.vae is not None  # as `frozen_vae` ensures
        check_prunable(large.vae, cfg.model)
        self.vae, self._large = large, VideoVAE(large.vae, cfg.execution)
        channels = large.vae.latent_channels
        self._normal = large.statistics or LatentStatistics.identity(channels)
        self._statistics = self._normal  # with which the run begins
        self._large_params = large.vae_params
        decoder = {name: x for name, x in large.vae_params.items() if name in _DECODING}
        self.frozen = {**perceptual, "large": decoder}
        self._widths = _feature_widths(cfg, large)

    @classmethod
    def open(
        cls, cfg: TrainDecoder, mesh: Mesh, *, loader: BatchSource | None = None
    ) -> "DecoderStage":
        """Makes the stage with its data and the large VAE.

        Raises:
          ValueError: also if there is no such VAE.
        """
        large = load_frozen_vae(cfg.vae, cfg.run.output, mesh)
        loader = loader or batches.open_loader(cfg, mesh)
        stage = cls(cfg, mesh, read_perceptual(cfg.loss), large, loader)
        if cfg.run.validate_every:
            stage._validator.prepare()
        return stage

    @classmethod
    def describe(cls, cfg: TrainDecoder, mesh: Mesh) -> "DecoderStage":
        """Makes the stage with shapes in place of the weights of the large VAE."""
        own = stored_configuration(cfg.vae)
        if own is None:
            width = cfg.model.encoder_base_channels
            _log.warning(
                "there is no VAE at %s: a decoder as wide as the encoder is assumed", cfg.vae
            )
            own = dataclasses.replace(cfg.model, decoder_base_channels=width)
        large = Checkpoint(vae=own, vae_params=sharding.described(keys.vae_boxed(own), mesh))
        return cls(cfg, mesh, read_perceptual(cfg.loss, described=True), large)

    def init(self, key: Array) -> dict[str, Any]:
        """As the VAE's; and "projection" if features are compared."""
        params = super().init(key)
        if not self._widths:
            return params
        projection = {
            name: jax.random.normal(jax.random.fold_in(key, i), widths) * widths[0] ** -0.5
            for i, (name, widths) in enumerate(self._widths.items())
        }
        return {**params, "projection": projection}

    def optimizers(self) -> dict[str, Optimizer]:
        """The decoder's; the projections' with the same settings, but without an average; and the
        discriminator's."""
        main, *rest = super().optimizers().items()
        cfg, steps = self.cfg.optim, self.cfg.run.steps
        frozen = dataclasses.replace(cfg, freeze=(*cfg.freeze, _DECODER_ALONE))
        own = {main[0]: Optimizer.of(frozen, steps), **dict(rest)}
        if not self._widths:
            return own
        return {**own, "projection": Optimizer(make_optimizer(cfg, steps))}

    def latent_statistics(self, state: TrainState) -> dict[str, Any]:
        """Those of the large VAE, bit by bit."""
        del state
        return {"mean": self._normal.mean, "std": self._normal.std}

    def derived_weights(self) -> InitialWeights:
        """The large VAE's encoder, and its decoder pruned, with fitting projections."""
        pruned = self._prune()
        params = {**self._fixed(), "decoder": pruned.decoder}
        if self._widths:
            params["projection"] = {name: pruned.projections[name] for name in self._widths}
        return InitialWeights(params, ())

    def initial_weights(self, checkpoint: Checkpoint) -> InitialWeights:
        """The decoder of a checkpoint with the same network, such as an earlier run."""
        weights = super().initial_weights(checkpoint)
        params = {**self._fixed(), "decoder": weights.params["decoder"]}
        return InitialWeights(params, weights.configs)

    def _fixed(self) -> dict[str, Any]:
        """Copies of the parameters that are not trained, as the state's are donated."""
        parts = self._large_params.items()
        return {name: jax.tree.map(jnp.copy, x) for name, x in parts if name != "decoder"}

    def _prune(self) -> Pruned:
        cfg = self.cfg
        # On one device of each process, from the same clips.
        longest = max(cfg.data.sizes, key=lambda bucket: bucket.num_frames)
        bucket = dataclasses.replace(longest, batch_size=cfg.matching.pruning_clips, weight=1.0)
        data = dataclasses.replace(cfg.data, buckets=(bucket,), processes=0)
        [batch] = Loader(data, (("none", 1.0),), cfg.run.seed).batches(0, 1)
        frames = require_pixels(batch)
        large, params = self._large.cfg, jax.tree.map(sharding.on_host, self._large_params)
        _log.info("choosing channels of the decoder on %d clips", len(frames))

        @jax.jit
        def inputs(params: Any, frames: Array) -> DecoderInputs:
            vae = VideoVAE(large, ExecutionConfig())
            posterior: Any = vae.apply({"params": params}, from_bytes(frames), method="encode")
            key = jax.random.key(cfg.run.seed)
            return decoder_inputs(posterior, self._normal, key, self.cfg.loss)

        return prune_decoder(large, params, cfg.model, inputs(params, np.asarray(frames)))

    def loss(
        self, params: Any, state: TrainState, batch: Any, frozen: Any, key: Array
    ) -> LossValue:
        """See `decoder_loss`."""

        def encode(params: Any, video: Array) -> Any:
            return self._vae.apply({"params": params}, video, method="encode")

        def decode(vae: VideoVAE, params: Any, inputs: DecoderInputs) -> Decoded:
            arguments = inputs.latents, inputs.times, inputs.maps()
            return decode_with_features(vae, params, *arguments)

        networks = DecoderNetworks(
            encode,
            lambda *both: decode(self._vae, *both),
            lambda *both: decode(self._large, *both),
            self._discriminator.apply if self._has_gan else None,
        )
        cfg = self.cfg
        return decoder_loss(
            networks, params, state, batch, frozen, key, cfg.loss, cfg.matching, self._disc_start
        )


_DECODING = ("decoder", "post_quant_conv")  # the parts of a VAE that decode


def _feature_widths(cfg: TrainDecoder, large: Checkpoint) -> dict[str, tuple[int, int]]:
    """The widths of the features to compare, by the block's name: of the small decoder and of the
    large one."""
    if not cfg.matching.feature_weight:
        return {}
    small, wide = (sharding.unbox(keys.vae_boxed(x))["decoder"] for x in (cfg.model, large.vae))
    blocks = cfg.model.decoder_blocks[::-1]
    names = [f"up_blocks_{i}" for i, block in enumerate(blocks) if block.name == "res_x"]

    def width(params: Any, name: str) -> int:
        return params[name]["res_blocks_0"]["conv1"]["kernel"].shape[-2]

    return {n: (width(small, n), width(wide, n)) for n in names[: cfg.matching.feature_blocks]}
