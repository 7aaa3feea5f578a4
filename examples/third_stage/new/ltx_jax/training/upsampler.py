"""The third stage: a latent upsampler, on latents of clips at half and at full size."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import ExecutionConfig
from ltx_jax.config.training import TrainUpsampler
from ltx_jax.models.upsampler import LatentUpsampler
from ltx_jax.models.vae import LatentStatistics, VideoVAE
from ltx_jax.pixels import from_bytes
from ltx_jax.training import batches
from ltx_jax.training.clip_stage import ClipStage
from ltx_jax.training.frozen_vae import describe_frozen_vae, load_frozen_vae
from ltx_jax.training.stage import BatchSource, LossValue
from ltx_jax.training.state import TrainState


class UpsamplerStage(ClipStage):
    """Trains a latent upsampler on a frozen VAE, which encodes the clips in the step."""

    cfg: TrainUpsampler

    def __init__(
        self, cfg: TrainUpsampler, mesh: Mesh, vae: Checkpoint, loader: BatchSource | None = None
    ):
        super().__init__(cfg, mesh, vae.vae, loader)
        self.vae, self.frozen = vae, {"vae": jax.device_get(vae.vae_params)}
        self._encoder = VideoVAE(vae.vae, ExecutionConfig(dtype=vae.vae_dtype))
        self._statistics = vae.statistics or LatentStatistics.identity(cfg.model.in_channels)
        self._upsampler = LatentUpsampler(cfg.model, cfg.execution)

    @classmethod
    def open(
        cls, cfg: TrainUpsampler, mesh: Mesh, *, loader: BatchSource | None = None
    ) -> "UpsamplerStage":
        """Makes the stage with its VAE and its data."""
        vae = load_frozen_vae(cfg.vae, cfg.run.output, mesh)
        return cls(cfg, mesh, vae, loader or batches.open_loader(cfg, mesh))

    @classmethod
    def describe(cls, cfg: TrainUpsampler, mesh: Mesh) -> "UpsamplerStage":
        """Makes the stage without its data and without the weights of its VAE."""
        return cls(cfg, mesh, describe_frozen_vae(cfg.vae, cfg.model.in_channels))

    def init(self, key: Array) -> dict[str, Any]:
        """Initialises "upsampler"."""
        latents = jnp.zeros((1, 1, 2, 2, self.cfg.model.in_channels))
        return {"upsampler": self._upsampler.init(key, latents)["params"]}

    def loss(
        self, params: Any, state: TrainState, batch: Any, frozen: Any, key: Array
    ) -> LossValue:
        """Mean absolute error of the normalised latents at full size."""
        video = from_bytes(batch["frames"])
        b, t, h, w, c = video.shape
        half = jax.image.resize(video, (b, t, h // 2, w // 2, c), "linear")
        small, target = (
            self._encoder.apply({"params": frozen["vae"]}, clip, method="encode").mode()
            for clip in (half, video)
        )
        large = self._upsampler.apply({"params": params["upsampler"]}, small)
        error = self._statistics.normalize(large) - self._statistics.normalize(target)
        return LossValue(jnp.mean(jnp.abs(error)))
