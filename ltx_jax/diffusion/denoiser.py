"""The network as the sampler and the training step see it.

A denoiser prepares the stored parameters once, and what conditions the network once per run; then
it maps noisy tokens and their times to velocities, step by step. Denoisers are pytrees: what is
static in one is a part of the compiled program, the rest is data.
"""

import dataclasses
from typing import Any, Protocol

import jax
from jaxtyping import Array, Float, Key

from ltx_jax.config import ExecutionConfig, TransformerConfig
from ltx_jax.models.transformer import Context, Skip, Transformer, example_inputs


class Denoiser(Protocol):
    """One form of the network. `Plain` is the reference that the others are tested against."""

    def prepare(self, stored: Any) -> Any:
        """The parameters of this form, from those that a checkpoint stores."""
        ...

    def prepare_context(self, params: Any, context: Context) -> Any:
        """The context of this form, once for all steps; `params` are prepared ones."""
        ...

    def init_state(self, x: Float[Array, "r n c"]) -> Any:
        """What is carried from step to step, before the first one; None if nothing is."""
        ...

    def __call__(
        self,
        params: Any,
        x: Float[Array, "r n c"],
        t: Float[Array, "r #n"],
        context: Any,
        skip: Skip | None = None,
        state: Any = None,
    ) -> tuple[Float[Array, "r n c"], Any]:
        """The velocity (noise minus data) of every token in float32, and the next state.

        Args:
          params: from `prepare`.
          x: normalised latents, noisy.
          t: in [0, 1], 1 being noise; one of each token, or one of each row.
          context: from `prepare_context`.
          skip: the blocks that some rows leave out, for spatio-temporal guidance.
          state: from `init_state` or the step before.
        """
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plain:
    """The network as it is stored and trained, on any mesh."""

    cfg: TransformerConfig = dataclasses.field(metadata={"static": True})
    execution: ExecutionConfig = dataclasses.field(
        default=ExecutionConfig(), metadata={"static": True}
    )

    def init(self, key: Key[Array, ""]) -> Any:
        """New parameters, each with the names of its axes."""
        x, t, context = example_inputs(self.cfg)
        return Transformer(self.cfg, self.execution).init(key, x, t, *_arguments(context))["params"]

    def prepare(self, stored: Any) -> Any:
        """The stored parameters themselves."""
        return stored

    def prepare_context(self, params: Any, context: Context) -> Context:
        """The context itself."""
        return context

    def init_state(self, x: Float[Array, "r n c"]) -> None:
        """Nothing is carried."""

    def __call__(
        self,
        params: Any,
        x: Float[Array, "r n c"],
        t: Float[Array, "r #n"],
        context: Context,
        skip: Skip | None = None,
        state: None = None,
    ) -> tuple[Float[Array, "r n c"], None]:
        """As in `Denoiser`."""
        network = Transformer(self.cfg, self.execution)
        velocity: Any = network.apply({"params": params}, x, t, *_arguments(context), skip)
        return velocity, None


def _arguments(context: Context) -> tuple[Any, ...]:
    return context.caption, context.caption_mask, context.rope
