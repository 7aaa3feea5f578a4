"""What all stages that train on pixels of clips share: their batches and a validation."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ltx_jax.config import BucketConfig, TrainConfig, VAEConfig
from ltx_jax.data.loader import Batch
from ltx_jax.models.vae import check_video_shape
from ltx_jax.runtime import sharding
from ltx_jax.training import batches
from ltx_jax.training.stage import BatchSource, LossValue, Stage, Validation
from ltx_jax.training.state import TrainState
from ltx_jax.training.validation_clips import read_validation_clips, require_pixels


class ClipStage(Stage):
    """A stage whose batches are `frames`, uint8 (b, t, h, w, 3).

    Args:
      cfg: the configuration of the run.
      mesh: the devices to run on.
      vae: the VAE that encodes the clips, whose compression says how many latents they have.
      loader: source of the clips; None for a stage that is only described (`--plan`).

    Raises:
      ValueError: if the VAE cannot encode clips of the sizes in `cfg.data`.
    """

    def __init__(
        self, cfg: TrainConfig, mesh: Mesh, vae: VAEConfig, loader: BatchSource | None = None
    ):
        super().__init__(cfg, mesh)
        self._compression, self._loader = vae, loader
        for bucket in cfg.data.sizes:
            check_video_shape(vae, clip_shape(bucket))

    def abstract_batch(self, bucket: BucketConfig) -> dict[str, Any]:
        """The shape of `frames`."""
        frames = jax.ShapeDtypeStruct(clip_shape(bucket), jnp.uint8)
        return batches.split_shapes(self.mesh, {"frames": frames})

    def batches(self, first: int, last: int) -> Iterator[dict[str, Any]]:
        """Batches of `frames`."""
        assert self._loader is not None, "a stage that is only described has no data"
        for batch in self._loader.batches(first, last):
            yield {"frames": batches.split_over(self.mesh, require_pixels(batch))}

    def tokens(self, batch: dict[str, Any]) -> int:
        """Latent voxels of a batch."""
        b, t, h, w, _ = batch["frames"].shape
        time, space = self._compression.temporal_factor, self._compression.spatial_factor
        return b * ((t - 1) // time + 1) * (h // space) * (w // space)

    def validate(self, state: TrainState) -> Validation:
        """The loss of held-out clips and its metrics, with the averaged parameters and one key."""
        frames = require_pixels(self._held_out)
        frozen, batch = batches.replicate_over(self.mesh, (dict(self.frozen), {"frames": frames}))
        with sharding.use_mesh(self.mesh):
            value = self._held_out_loss(state.ema, state, batch, frozen, jax.random.key(0))
        scalars = {"loss": value.loss, **value.metrics}
        return Validation({f"val_{name}": float(x) for name, x in scalars.items()})

    @functools.cached_property
    def _held_out(self) -> Batch:
        return read_validation_clips(self.cfg.run, self.cfg.data)

    @functools.cached_property
    def _held_out_loss(self) -> Callable[..., LossValue]:
        return jax.jit(self.loss, compiler_options=self.compiler_options())


def clip_shape(bucket: BucketConfig) -> tuple[int, ...]:
    """The shape of a bucket's batches, (b, t, h, w, 3)."""
    return (bucket.batch_size, bucket.num_frames, bucket.height, bucket.width, 3)
