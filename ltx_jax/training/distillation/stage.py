"""The third stage: trains a student on the stored paths of its teacher.

The paths hold the conditions, and the VAE is only saved with the run and used in validation. Some
methods also call the teacher in every step, which is frozen then.
"""

import copy
import dataclasses
import functools
import logging
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
from ltx_jax.diffusion.denoiser import Plain
from ltx_jax.models.attention import chosen_form
from ltx_jax.runtime import sharding
from ltx_jax.training import batches
from ltx_jax.training.distillation import fake_score
from ltx_jax.training.distillation.loss import HeldOutErrors, held_out_errors, trajectory_loss
from ltx_jax.training.distillation.paths import check_described, load_teacher
from ltx_jax.training.distillation.teacher import Teacher
from ltx_jax.training.distillation.teacher_losses import (
    Network,
    consistency_step,
    matching_step,
)
from ltx_jax.training.optim import MAIN, Optimizer, make_optimizer
from ltx_jax.training.stage import InitialWeights, LossValue, Stage, Validation
from ltx_jax.training.state import TrainState
from ltx_jax.training.transformer import sources
from ltx_jax.training.transformer.loss import FlowModel
from ltx_jax.training.transformer.sources import Dropped, Place
from ltx_jax.training.transformer.stage import TransformerStage

_log = logging.getLogger(__name__)
_FAKE = "fake"  # the fake score's part of the parameters, and its optimiser


class DistillationStage(TransformerStage):
    """Trains a student of few steps without guidance; see `TransformerStage` for the arguments,
    whose loader reads paths here."""

    cfg: TrainStudent
    _student_rests = False  # whether the student's loss is left out of the program

    @classmethod
    def open(
        cls,
        cfg: TrainStudent,
        mesh: Mesh,
        *,
        loader: PathLoader | None = None,
        vae: Checkpoint | None = None,
        teacher: Checkpoint | None = None,
    ) -> "TransformerStage":
        """Makes the stage with its paths, its VAE, its text encoder and its teacher.

        Args:
          cfg: the configuration of the run.
          mesh: the devices to run on.
          loader: source of paths that replaces `cfg.distillation.paths`.
          vae: checkpoint that replaces the one that `cfg.vae` names.
          teacher: checkpoint that replaces the one that `cfg.distillation.teacher` names.

        Raises:
          ValueError: if paths, networks and settings do not fit each other.
        """
        paths = loader or _open_paths(cfg, mesh)
        check_described(cfg, paths.description)
        stage = super().open(cfg, mesh, loader=paths, vae=vae)
        assert isinstance(stage, DistillationStage)
        if stage._calls_teacher:
            teacher = teacher or load_teacher(cfg, mesh)
            _check_teacher(cfg, teacher, paths)
            stage.frozen = {"teacher": super(cls, stage).initial_weights(teacher).params}
            stage._notice_attention()
        return stage

    @classmethod
    def describe(cls, cfg: TrainStudent, mesh: Mesh) -> "TransformerStage":
        """Makes the stage without its paths, and without weights."""
        stage = super().describe(cfg, mesh)
        assert isinstance(stage, DistillationStage)
        if stage._calls_teacher:
            boxed = jax.eval_shape(stage.model.init, jax.random.key(0))
            stage.frozen = {"teacher": sharding.described(boxed, mesh)}
        return stage

    def init(self, key: Array) -> dict[str, Any]:
        """Initialises the student's networks, and those of the "fake" score if there is one."""
        params = super().init(key)
        if not self._matches:
            return params
        fake = self.model.init(jax.random.fold_in(key, 1))["transformer"]
        return {**params, _FAKE: fake_score.with_steps(fake, self._steps)}

    def optimizers(self) -> dict[str, Optimizer]:
        """The student's optimiser; with distribution matching, it takes part in some updates alone,
        and the fake score's in all of them."""
        if not self._matches:
            return super().optimizers()
        cfg, every = self.cfg, self.cfg.distillation.fake_updates
        student = Optimizer.of(cfg.optim, max(cfg.run.steps // every, 1))
        own = Optimizer(make_optimizer(cfg.fake_optim, cfg.run.steps), cfg.fake_optim.freeze)
        return {MAIN: student._replace(every=every, metrics=("matching",)), _FAKE: own}

    def initial_weights(self, checkpoint: Checkpoint) -> InitialWeights:
        """The networks of a checkpoint; the fake score starts from the teacher."""
        weights = super().initial_weights(checkpoint)
        if not self._matches:
            return weights
        # Copied, since the initial weights are donated.
        teacher = jax.tree.map(jnp.copy, self.frozen["teacher"]["transformer"])
        fake = fake_score.with_steps(teacher, self._steps)
        return weights._replace(params={**weights.params, _FAKE: fake})

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
        if self._needs_empty:
            same["empty"] = clips["captions"]
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

        def captions(dropped: Dropped) -> Any:
            return self._captions.read(batch.captions, batch.embeddings, dropped, place)

        placed = {
            "states": place(batch.states),
            "own_times": place(batch.own_times),
            "coords": place(batch.coords),
            "frame_rate": place(batch.frame_rate),
            "captions": captions(none_dropped),
            "context": place(sources.read_context(batch.context, shapes, none_dropped)),
        }
        return {**placed, "empty": captions(~none_dropped)} if self._needs_empty else placed

    def tokens(self, batch: dict[str, Any]) -> int:
        """Tokens that the transformer processes, including those of conditions."""
        b, _, n, _ = batch["states"].shape
        return b * n

    def loss(
        self, params: Any, state: TrainState, batch: Any, frozen: Any, key: Array
    ) -> LossValue:
        """See `trajectory_loss`, `consistency_step` and `matching_step`."""
        networks = self.networks(params, frozen)
        if not self._calls_teacher:
            velocity = self._velocity(networks, batch)
            return trajectory_loss(velocity, batch, key, self.cfg.distillation)

        # Text encoders do not depend on tokens and times, so that they are called once.
        student = {"networks": networks, "context": self._context(networks, batch)}
        contexts = self._teacher.contexts(frozen["teacher"], batch)
        teacher = functools.partial(self._teacher.velocity, frozen["teacher"], contexts.rows)
        if not self._matches:
            network = _student(self._forward_mode)
            return consistency_step(network, student, teacher, batch, key, self.cfg, state.updates)

        def fake(params: Any, step: Array, x: Array, times: Array) -> Array:
            transformer = fake_score.at_step(params, step)
            return self.model.velocity({"transformer": transformer}, x, times, contexts.own)

        both = {"student": student, "fake": networks[_FAKE]}
        learns = not self._student_rests and self.optimizers()[MAIN].learns(state.updates)
        times = self.cfg.distillation.times
        return matching_step(
            *(_student(self.model), fake, both, teacher), batch, key, times, learns
        )

    def flop_stage(self, step: int) -> Stage:
        """As in the second stage; without the student's loss for steps in which it rests."""
        plain = super().flop_stage(step)
        assert isinstance(plain, DistillationStage)
        # This is an estimate: rejected steps are not updates.
        rests = self._matches and not self.optimizers()[MAIN].learns(step - 1)
        return plain._without_student if rests else plain

    @functools.cached_property
    def _without_student(self) -> "DistillationStage":
        stage = copy.copy(self)
        stage._student_rests = True
        return stage

    @property
    def _calls_teacher(self) -> bool:
        return self.cfg.distillation.method != "trajectory"

    @property
    def _matches(self) -> bool:
        return self.cfg.distillation.method == "matching"

    @property
    def _teacher(self) -> Teacher:
        return Teacher(self.model, self.cfg.distillation.teacher_sampling)

    @property
    def _forward_mode(self) -> FlowModel:
        """The networks, with attention that has a forward mode if the tangent needs it."""
        if self.cfg.distillation.tangent == "difference":
            return self.model
        execution = dataclasses.replace(self.cfg.execution, attention="plain")
        return dataclasses.replace(self.model, denoiser=Plain(self.cfg.model, execution))

    def _notice_attention(self) -> None:
        """Says so if the student's attention is another than the config asks for."""
        cfg = self.cfg
        if self._matches or self._forward_mode is self.model:
            return
        with sharding.use_mesh(self.mesh):
            form = chosen_form(
                cfg.execution.attention,
                jnp.dtype(cfg.execution.dtype),
                cfg.model.attention_head_dim,
            )
        if form != "plain":
            _log.warning(
                "the student's attention is 'plain' instead of %r, which has no forward mode: "
                "--distillation.tangent difference needs none",
                form,
            )

    @property
    def _steps(self) -> int:
        return len(self.cfg.distillation.times)

    @property
    def _needs_empty(self) -> bool:
        return self._calls_teacher and self._teacher.needs_negative

    def _context(self, params: Any, batch: Any) -> Any:
        return self.model.context(params, batch, batch["coords"])

    def _velocity(self, params: Any, batch: Any) -> Callable[[Array, Array], Array]:
        context = self._context(params, batch)
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


def _student(model: FlowModel) -> Network:
    """The student as losses call it: its parameters are those of its networks, and its context."""
    return lambda params, x, times: model.velocity(params["networks"], x, times, params["context"])


def _check_teacher(cfg: TrainStudent, teacher: Checkpoint, paths: PathLoader) -> None:
    """Checks that a teacher is the one that the paths were made with."""
    stored = paths.description.get("teacher_hash")
    if stored is not None and stored != teacher.source_hash:
        raise ValueError(
            f"distillation.teacher {cfg.distillation.teacher} has other weights than the teacher "
            f"of the paths in {cfg.distillation.paths}: name that one, or make the paths again "
            "(ltx-encode)"
        )


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
