"""Settings of distillation: the teacher's paths, and the few steps that a student takes."""

import dataclasses
import itertools
from typing import ClassVar, Literal

from ltx_jax.config.sampling import SamplingConfig, SolverName
from ltx_jax.config.settings import require, settings
from ltx_jax.config.training import OptimConfig, TrainTransformer

# How a consistency model's derivative along the flow is computed, in tokens and in times: forward
# mode in both, forward mode in tokens alone, or a single difference
# (`ltx_jax.training.distillation.consistency`).
Tangent = Literal["exact", "semi_continuous", "difference"]

_DECIMALS = 4  # of the times that a distilled checkpoint names


@settings
class DistillationConfig:
    """What a student learns from its teacher's paths from noise to data."""

    # The model whose paths are learned: anything that `--checkpoint` of ltx-sample takes.
    teacher: str
    # The data set of paths, which ltx-encode writes with this config.
    paths: str
    # The times of the student's steps; they begin at 1, and the last step goes to 0.
    times: tuple[float, ...] = (1.0, 0.9478, 0.8581, 0.6685)
    # Where a step of the student leads. "next": to the next time along the path; sampling takes all
    # of the times, and adds no noise. "end": to the end of the path; sampling returns to the next
    # time with new noise, and may leave times out (a consistency model).
    target: Literal["next", "end"] = "next"
    teacher_steps: int = 16  # of the teacher's own schedule, to which `times` are added
    solver: SolverName = "euler"  # of the teacher
    guidance_scale: float = 3.0  # of the teacher; the student needs no guidance
    stg_scale: float = 0.0  # spatio-temporal guidance of the teacher
    skip_block_list: tuple[int, ...] = ()  # blocks that its perturbed branch skips
    rescaling_scale: float = 0.7  # as in sampling, with spatio-temporal guidance
    held_out: int = 64  # paths for validation, which are not trained on
    # What the student learns from. "trajectory": the stored paths alone. The other two call the
    # teacher in every step, and need the target "end". "consistency": a continuous-time consistency
    # model, which learns from the teacher's velocity. "matching": distribution matching (DMD2),
    # which compares the teacher's velocity with that of the student's own videos; a second network
    # learns the latter.
    method: Literal["trajectory", "consistency", "matching"] = "trajectory"
    tangent: Tangent = "semi_continuous"  # of a consistency model
    # Updates over which the term of a consistency model with the derivative grows to its weight.
    tangent_warmup: int = 1000
    # Updates of the second network for each of the student, in distribution matching.
    fake_updates: int = 5

    def __post_init__(self):
        times = self.times
        steps = itertools.pairwise((*times, 0.0))
        require(
            times[:1] == (1.0,) and all(time > later for time, later in steps),
            f"distillation.times must begin at 1, decrease, and stay above 0, got {times}",
        )
        require(
            all(round(time, _DECIMALS) == time for time in times),
            f"distillation.times may have {_DECIMALS} decimals, got {times}",
        )
        require(self.teacher_steps > 0, f"teacher_steps must be positive, got {self.teacher_steps}")
        require(
            self.target == "end" or self.method == "trajectory",
            f'distillation.method "{self.method}" has steps that lead to the end: set '
            'distillation.target to "end"',
        )
        self._check_method("consistency", "tangent", "tangent_warmup")
        self._check_method("matching", "fake_updates")
        require(self.fake_updates > 0, f"fake_updates must be positive, got {self.fake_updates}")
        require(
            self.tangent_warmup >= 0,
            f"tangent_warmup must not be negative, got {self.tangent_warmup}",
        )
        require(self.held_out >= 0, f"held_out must not be negative, got {self.held_out}")

    def _check_method(self, method: str, *names: str) -> None:
        """Refuses settings that belong to another method than the one that is set."""
        for name in names:
            require(
                self.method == method or getattr(self, name) == getattr(type(self), name),
                f"distillation.{name} has no effect on the method {self.method!r}: leave it out",
            )

    @property
    def teacher_sampling(self) -> SamplingConfig:
        """The steps and the guidance of the teacher; size and text are those of the data."""
        return SamplingConfig(
            negative_prompt="",
            num_inference_steps=self.teacher_steps,
            solver=self.solver,
            guidance_scale=self.guidance_scale,
            stg_scale=self.stg_scale,
            skip_block_list=self.skip_block_list,
            rescaling_scale=self.rescaling_scale,
            image_cond_noise_scale=0.0,
        )


@settings
class TrainStudent(TrainTransformer):
    """Distillation: a transformer that needs few steps and no guidance, from one that needs many.

    Data and conditions are those of the second stage; they are drawn when the teacher's paths are
    made. The run starts from `run.init_from`: the teacher, or an earlier student of it.
    """

    stage: ClassVar[str] = "ltx_jax.training.distillation.stage:DistillationStage"

    distillation: DistillationConfig = DistillationConfig(teacher="", paths="")
    # The optimiser of the second network of distribution matching, which keeps no average. It uses
    # as many micro-batches as `optim.accumulate` says.
    fake_optim: OptimConfig = OptimConfig(b1=0.0, b2=0.99)

    def __post_init__(self):
        super().__post_init__()
        for name in ("teacher", "paths"):
            require(
                bool(getattr(self.distillation, name)),
                f"a student needs distillation.{name}, and it is empty",
            )
        require(
            self.run.init_from is not None,
            "a student starts from its teacher: name it with --run.init_from",
        )
        require(
            self.distillation.method == "matching" or self.fake_optim == type(self).fake_optim,
            "fake_optim has no effect without distribution matching: set distillation.method",
        )
        require(
            self.fake_optim.accumulate == 1,
            "fake_optim.accumulate has no effect: set optim.accumulate, which both networks use",
        )
        flow, tells = self.flow, "which the paths of a teacher leave out: set it to"
        require(
            flow.caption_dropout == 0,
            f"flow.caption_dropout is {flow.caption_dropout}, {tells} 0, since a student "
            "is sampled without guidance",
        )
        require(flow.token_drop == 0, f"flow.token_drop is {flow.token_drop}, {tells} 0")
        require(
            not flow.weighs_latents,
            "flow.outside_weight and flow.loss_frames have no effect on a student: leave them out",
        )
        require(
            not self.adapter.rank,
            "a student is a whole transformer: leave adapter.rank out (ltx-export extracts an "
            "adapter from two checkpoints)",
        )

    @property
    def inference_steps(self) -> tuple[float, ...]:
        """The times that the student was trained for."""
        return self.distillation.times

    def sampling_settings(self) -> SamplingConfig:
        """Samples in the student's steps, without guidance."""
        return dataclasses.replace(
            super().sampling_settings(),
            timesteps=self.distillation.times,
            num_inference_steps=len(self.distillation.times),
            stochastic_sampling=self.distillation.target == "end",
            guidance_scale=1.0,
        )
