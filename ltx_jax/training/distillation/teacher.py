"""The frozen teacher of a student, for losses that call it in every step."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ltx_jax.config import SamplingConfig
from ltx_jax.diffusion import guidance, sampler
from ltx_jax.training.transformer.loss import FlowModel


class TeacherContexts(NamedTuple):
    """The inputs of the teacher besides tokens and times, for a batch.

    Attributes:
      own: those with the captions of the samples.
      rows: those of all branches of guidance.
    """

    own: Any
    rows: Any


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher with its guidance, which is the same at all times.

    Attributes:
      model: its networks.
      options: the guidance, as in sampling.
    """

    model: FlowModel
    options: SamplingConfig

    @property
    def needs_negative(self) -> bool:
        """Whether batches need the empty caption, as "empty"."""
        return self._schedule.needs_negative

    def contexts(self, params: Any, batch: Mapping[str, Any]) -> TeacherContexts:
        """The contexts for a batch with "captions", "context", "coords", "frame_rate" and, if it
        needs the empty caption, "empty".

        Args:
          params: the parameters of the teacher's networks.
          batch: the batch.
        """
        model = self.model
        own = model.context(params, batch, batch["coords"])
        negative = None
        if self.needs_negative:
            unknown = jax.tree.map(jnp.zeros_like, batch["context"])
            dropped = {**batch, "captions": batch["empty"], "context": unknown}
            negative = model.context(params, dropped, batch["coords"])
        return TeacherContexts(
            own, guidance.context_rows(own, negative, self._schedule.branches[0])
        )

    def velocity(
        self, params: Any, rows: Any, x: Float[Array, "b n c"], times: Float[Array, "b #n"]
    ) -> Float[Array, "b n c"]:
        """The guided velocity, without a gradient.

        Args:
          params: the parameters of the teacher's networks.
          rows: of the batch's `contexts`.
          x: noised tokens.
          times: their times.
        """
        mode, schedule = sampler.mode_of(self.options), self._schedule
        velocity, _ = guidance.predict(
            self.model.denoiser,
            self.model.denoiser.prepare(params["transformer"]),
            x,
            times,
            None,
            rows=rows,
            branches=schedule.branches[0],
            scales=jax.tree.map(lambda values: jnp.asarray(values[0]), schedule.scales),
            stg_mode=mode.stg,
            cfg_star=mode.cfg_star,
        )
        return jax.lax.stop_gradient(velocity)

    @property
    def _schedule(self) -> guidance.GuidanceSchedule:
        layers = self.model.denoiser.cfg.num_layers
        return guidance.guidance_schedule(self.options, np.ones(1, np.float32), layers)
