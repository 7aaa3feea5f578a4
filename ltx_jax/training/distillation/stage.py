"""The third stage: trains a student on the stored paths of its teacher.

Nothing but the paths is read: they hold the conditions, and the VAE is only saved with the run and
used in validation.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import BucketConfig, TrainStudent
from ltx_jax.data.path_cache import PathBatch, PathLoader
from ltx_jax.runtime import sharding
from ltx_jax.training import batches
from ltx_jax.training.distillation.loss import HeldOutErrors, held_out_errors, trajectory_loss
from ltx_jax.training.distillation.paths import check_described
from ltx_jax.training.stage import LossValue, Validation
from ltx_jax.training.state import TrainState
from ltx_jax.training.transformer import sources
from ltx_jax.training.transformer.sources import Place
from ltx_jax.training.transformer.stage import TransformerStage


class DistillationStage(TransformerStage):
    """Trains a student of few steps without guidance; see `TransformerStage` for the arguments,
    whose loader reads paths here."""

    cfg: TrainStudent

    @classmethod
    def open(
        cls,
        cfg: TrainStudent,
        mesh: Mesh,
        *,
        loader: PathLoader | None = None,
        vae: Checkpoint | None = None,
    ) -> "TransformerStage":
        """Makes the stage with its paths, its VAE and its text encoder.

        Args:
          cfg: the configuration of the run.
          mesh: the devices to run on.
          loader: source of paths that replaces `cfg.distillation.paths`.
          vae: checkpoint that replaces the one that `cfg.vae` names.

        Raises:
          ValueError: if paths, networks and settings do not fit each other.
        """
        paths = loader or _open_paths(cfg, mesh)
        check_described(cfg, paths.description)
        return super().open(cfg, mesh, loader=paths, vae=vae)

    def abstract_batch(self, bucket: BucketConfig) -> dict[str, Any]:
        """Shapes of a bucket's largest batch, whose conditions add the most tokens."""
        clips = super().abstract_batch(bucket)
        b, steps = bucket.batch_size, len(self.cfg.distillation.times)
        n = super().tokens(clips) // b
        batch = {
            "states": jax.ShapeDtypeStruct(
                (b, steps + 1, n, self.cfg.model.in_channels), jnp.float16
            ),
            "own_times": jax.ShapeDtypeStruct((b, n), jnp.float32),
            "coords": jax.ShapeDtypeStruct((b, n, 3), jnp.int32),
        }
        same = {name: clips[name] for name in ("frame_rate", "captions", "context")}
        return {**batches.split_shapes(self.mesh, batch), **same}

    def batches(self, first: int, last: int) -> Iterator[dict[str, Any]]:
        """Batches with the fields of `abstract_batch`."""
        place = functools.partial(batches.split_over, self.mesh)
        for batch in self._paths.batches(first, last):
            yield self._placed(batch, place)

    @property
    def _paths(self) -> PathLoader:
        assert isinstance(self._loader, PathLoader), "a stage that is only described has no paths"
        return self._loader

    def _placed(self, batch: PathBatch, place: Place) -> dict[str, Any]:
        none_dropped = np.zeros(len(batch.captions), bool)
        shapes = self.cfg.model.context_shapes
        return {
            "states": place(batch.states),
            "own_times": place(batch.own_times),
            "coords": place(batch.coords),
            "frame_rate": place(batch.frame_rate),
            "captions": self._captions.read(batch.captions, batch.embeddings, none_dropped, place),
            "context": place(sources.read_context(batch.context, shapes, none_dropped)),
        }

    def tokens(self, batch: dict[str, Any]) -> int:
        """Tokens that the transformer processes, including those of conditions."""
        b, _, n, _ = batch["states"].shape
        return b * n

    def loss(
        self, params: Any, state: TrainState, batch: Any, frozen: Any, key: Array
    ) -> LossValue:
        """See `trajectory_loss`."""
        velocity = self._velocity(self.networks(params, frozen), batch)
        return trajectory_loss(velocity, batch, key, self.cfg.distillation)

    def _velocity(self, params: Any, batch: Any) -> Callable[[Array, Array], Array]:
        context = self.model.context(params, batch, batch["coords"])
        return lambda x, times: self.model.velocity(params, x, times, context)

    def validate(self, state: TrainState) -> Validation:
        """The errors on held-out paths, and videos in the student's steps."""
        params = self.networks(state.ema, self.frozen)
        place = functools.partial(batches.replicate_over, self.mesh)
        errors: list[HeldOutErrors] = []
        for batch in self._paths.held_out():
            with sharding.use_mesh(self.mesh):
                errors.append(jax.device_get(self._measure(params, self._placed(batch, place))))
        scalars: dict[str, float] = {}
        if errors:
            by_step = np.mean([one.losses for one in errors], axis=0)
            scalars["val_loss"] = float(by_step.mean())
            scalars["val_end_distance"] = float(np.mean([one.end for one in errors]))
            times = self.cfg.distillation.times
            scalars |= {
                f"val_loss_at/{time:g}": float(loss)
                for time, loss in zip(times, by_step, strict=True)
            }
        return Validation(scalars, super().validate(state).videos)

    @functools.cached_property
    def _measure(self) -> Callable[[Any, Any], HeldOutErrors]:
        def measure(params: Any, batch: Any) -> HeldOutErrors:
            return held_out_errors(self._velocity(params, batch), batch, self.cfg.distillation)

        everywhere = NamedSharding(self.mesh, P())
        return jax.jit(measure, out_shardings=everywhere, compiler_options=self.compiler_options())


def _open_paths(cfg: TrainStudent, mesh: Mesh) -> PathLoader:
    index, count = batches.process_part(mesh)
    return PathLoader(
        cfg.distillation.paths,
        cfg.data.sizes,
        cfg.run.seed,
        cfg.distillation.held_out,
        process_index=index,
        process_count=count,
    )
