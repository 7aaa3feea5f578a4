"""The network as the sampler and the training step see it.

A denoiser prepares the stored parameters once, and what conditions the network once per run; then
it maps noisy tokens and their times to velocities, step by step. There are three forms: `Plain`,
the network as stored; `Fast`, for one GPU; and `TeaCache`, which leaves layers out. Denoisers are
pytrees: what is static in one is part of the compiled program, the rest is data.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, Shaped

from ltx_jax.config import ExecutionConfig, Linears, TransformerConfig
from ltx_jax.models import teacache
from ltx_jax.models.transformer import Context, Skip, Transformer, example_inputs
from ltx_jax.models.transformer_fast import FastContext, FastTransformer
from ltx_jax.models.transformer_fast_parameters import UnsupportedParametersError, derive

_log = logging.getLogger(__name__)


def call_directly(function: Callable[..., Any], *args: Any, **static: Any) -> Any:
    """Calls a jitted function: the default of those who may compile or time it apart."""
    return function(*args, **static)


@runtime_checkable
class Denoiser(Protocol):
    """One form of the network. `Plain` is the reference that the others are tested against."""

    def prepare(self, stored: Any) -> Any:
        """The parameters of this form, from those that a checkpoint stores."""
        ...

    def prepare_context(
        self, params: Any, context: Context, call: Callable[..., Any] = call_directly
    ) -> Any:
        """The context of this form, once for all steps.

        Args:
          params: from `prepare`.
          context: of a run or a batch.
          call: calls a jitted function.
        """
        ...

    def init_state(self, shape: tuple[int, int, int]) -> Any:
        """What is carried from step to step, before the first one; None if nothing is.

        `shape` is that of the tokens (r, n, c) in a call.
        """
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


def _static(**options: Any) -> Any:
    return dataclasses.field(metadata={"static": True}, **options)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plain:
    """The network as it is stored and trained, on any mesh."""

    cfg: TransformerConfig = _static()
    execution: ExecutionConfig = _static(default=ExecutionConfig())

    def init(self, key: Key[Array, ""]) -> Any:
        """New parameters, each with the names of its axes."""
        return self._network.init(key, *example_inputs(self.cfg))["params"]

    def prepare(self, stored: Any) -> Any:
        """The stored parameters themselves."""
        return stored

    def prepare_context(
        self, params: Any, context: Context, call: Callable[..., Any] = call_directly
    ) -> Context:
        """The context itself."""
        return context

    def init_state(self, shape: tuple[int, int, int]) -> None:
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
        velocity: Any = self._network.apply({"params": params}, x, t, context, skip)
        return velocity, None

    @property
    def _network(self) -> Transformer:
        return Transformer(self.cfg, self.execution)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fast:
    """The network in the form that samples fastest on one GPU."""

    cfg: TransformerConfig = _static()
    execution: ExecutionConfig = _static(default=ExecutionConfig())

    @property
    def network(self) -> FastTransformer:
        """The function itself."""
        return FastTransformer(self.cfg, self.execution)

    def prepare(self, stored: Any) -> Any:
        """The parameters of `FastTransformer`.

        Raises:
          UnsupportedParametersError: if they are those of another network.
        """
        return derive(stored, self.cfg, self.execution)

    def prepare_context(
        self, params: Any, context: Context, call: Callable[..., Any] = call_directly
    ) -> FastContext:
        """With the keys and values of the captions in every layer."""
        return call(_fast_context, params, context, network=self.network)

    def init_state(self, shape: tuple[int, int, int]) -> Any:
        """Nothing is carried."""
        return None

    def __call__(
        self,
        params: Any,
        x: Float[Array, "r n c"],
        t: Float[Array, "r #n"],
        context: FastContext,
        skip: Skip | None = None,
        state: Any = None,
    ) -> tuple[Float[Array, "r n c"], Any]:
        """As in `Denoiser`."""
        return self.network(params, x, t, context, skip), None


@functools.partial(jax.jit, static_argnames="network")
def _fast_context(params: Any, context: Context, *, network: FastTransformer) -> FastContext:
    return network.context(params, context)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TeaCache(Fast):
    """The fast form, where steps that change little reuse what the layers added before.

    Attributes:
      threshold: of the estimated change, from which on a step computes all layers; ().
      last_time: of the run, (); a step at this time computes all layers.
    """

    threshold: Any = 0.0
    last_time: Any = 0.0

    def init_state(self, shape: tuple[int, int, int]) -> teacache.Cache:
        """A cache that makes the first step compute all layers."""
        return teacache.empty(self.network, *shape[:2])

    def __call__(
        self,
        params: Any,
        x: Float[Array, "r n c"],
        t: Float[Array, "r #n"],
        context: FastContext,
        skip: Skip | None = None,
        state: Any = None,
    ) -> tuple[Float[Array, "r n c"], teacache.Cache]:
        """As in `Denoiser`."""
        last = jnp.max(t) <= self.last_time
        arguments = (params, x, t, context, skip, state, self.threshold, last)
        return teacache.velocity(self.network, *arguments)


def sampling_form(
    cfg: TransformerConfig,
    execution: ExecutionConfig,
    stored: Any,
    *,
    mesh: Mesh | None = None,
    fast: bool | None = None,
    linears: Linears | None = None,
) -> tuple[Plain | Fast, Any]:
    """The form to sample with, and its parameters: `Fast` on one GPU, else `Plain`.

    Parameters that are not exactly those of the network that the fast form computes are sampled by
    the plain one, with a word in the log.

    Args:
      cfg: of the transformer.
      execution: how it is computed.
      stored: its parameters.
      mesh: the devices; None is one.
      fast: takes the fast form or the plain one, whatever the device; None lets the device choose.
      linears: eight bits, which the fast form alone knows.

    Raises:
      ValueError: for a fast form on a mesh, or for eight bits without the fast form.
    """
    if fast is None:
        on_gpu = mesh is None and jax.default_backend() == "gpu"
        fast = on_gpu or linears is not None
    if fast and mesh is not None:
        raise ValueError(
            "fast sampling is for one device: leave out fast, linears and teacache, or the mesh"
        )
    if linears is not None and not fast:
        raise ValueError(f"{linears} linears are of fast sampling: leave out fast=False")
    if fast:
        form = Fast(cfg, execution)
        try:
            return form, form.prepare(stored)
        except UnsupportedParametersError as error:
            if linears is not None:
                raise ValueError(
                    f"{linears} linears need the fast form of the transformer, which does not fit "
                    f"these parameters ({error}): leave linears out"
                ) from error
            _log.warning(
                "the fast form of the transformer does not fit these parameters (%s): sampling by "
                "the plain form",
                error,
            )
    return Plain(cfg, execution), stored


def with_teacache(
    denoiser: Plain | Fast, threshold: float, last_time: float
) -> Plain | Fast | TeaCache:
    """The form for a run whose last step is at `last_time`; a threshold of 0 changes nothing.

    Raises:
      ValueError: if the form cannot leave layers out.
    """
    if threshold <= 0:
        return denoiser
    if not isinstance(denoiser, Fast):
        raise ValueError("teacache is of fast sampling: make the pipeline with fast=True")
    limits = (jnp.asarray(x, jnp.float32) for x in (threshold, last_time))
    return TeaCache(denoiser.cfg, denoiser.execution, *limits)


def for_masks(
    denoiser: Plain | Fast, masks: Sequence[Shaped[Array, "b m"] | Shaped[np.ndarray, "b m"]]
) -> Plain | Fast:
    """The same form, with an attention that takes these caption masks.

    Attention kernels know lengths alone: a mask with a hole, or without any token, goes to the
    plain form of attention.
    """
    if all(_is_prefix(mask) for mask in masks):
        return denoiser
    plain = dataclasses.replace(denoiser.execution, attention="plain")
    return dataclasses.replace(denoiser, execution=plain)


def _is_prefix(mask: Shaped[Array, "b m"] | Shaped[np.ndarray, "b m"]) -> bool:
    """Whether every row's ones, at least one, come before its zeros."""
    rows = np.asarray(mask) != 0
    return bool(rows[:, 0].all() and (rows[:, 1:] <= rows[:, :-1]).all())
