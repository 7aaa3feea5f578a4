"""The network as the sampler and the training step see it.

A denoiser prepares the stored parameters once, and the context once per run; then, step by step, it
maps noisy tokens and their times to velocities. There are three forms: `Plain`, the network with
its stored parameters; `Fast`, for one GPU; and `TeaCache`, which skips all layers in some steps.
Denoisers are pytrees: their static fields are part of the compiled program, the others are data.
"""

import contextlib
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
    """Calls a jitted function. It is the default of arguments named `call`; other functions in its
    place compile ahead of time, or measure the time of the call."""
    return function(*args, **static)


@runtime_checkable
class Denoiser(Protocol):
    """One form of the network. `Plain` is the reference that the others are tested against."""

    def prepare(self, stored: Any) -> Any:
        """Converts the parameters that a checkpoint stores to those of this form."""
        ...

    def prepare_context(
        self, params: Any, context: Context, call: Callable[..., Any] = call_directly
    ) -> Any:
        """Converts a context to that of this form, once for all steps.

        Args:
          params: from `prepare`.
          context: the context of a sampling run or a training batch.
          call: calls a jitted function.
        """
        ...

    def init_state(self, shape: tuple[int, int, int]) -> Any:
        """The state before the first step, for tokens of this shape (r, n, c); None if the form
        carries no state from step to step."""
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
        """Predicts the velocity (noise minus data) of every token, in float32.

        Args:
          params: from `prepare`.
          x: noisy normalised latents, as tokens.
          t: times in [0, 1], where 1 is noise; one per token, or one per row.
          context: from `prepare_context`.
          skip: blocks that some rows skip, for spatio-temporal guidance.
          state: from `init_state`, or from the previous step.

        Returns:
          The velocity, and the next state.
        """
        ...


def _static(**options: Any) -> Any:
    return dataclasses.field(metadata={"static": True}, **options)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plain:
    """The network with the parameters that are stored and trained, on any mesh."""

    cfg: TransformerConfig = _static()
    execution: ExecutionConfig = _static(default=ExecutionConfig())

    def init(self, key: Key[Array, ""]) -> Any:
        """Initialises parameters, each with the names of its logical axes."""
        return self._network.init(key, *example_inputs(self.cfg))["params"]

    def prepare(self, stored: Any) -> Any:
        """Returns the stored parameters unchanged."""
        return stored

    def prepare_context(
        self, params: Any, context: Context, call: Callable[..., Any] = call_directly
    ) -> Context:
        """Returns the context unchanged."""
        return context

    def init_state(self, shape: tuple[int, int, int]) -> None:
        """This form has no state."""

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
        """The transformer of this form."""
        return FastTransformer(self.cfg, self.execution)

    def prepare(self, stored: Any) -> Any:
        """Converts the stored parameters to those of `FastTransformer`.

        Raises:
          UnsupportedParametersError: if they are parameters of a network that `FastTransformer`
            does not compute.
        """
        return derive(stored, self.cfg, self.execution)

    def prepare_context(
        self, params: Any, context: Context, call: Callable[..., Any] = call_directly
    ) -> FastContext:
        """Computes the captions' keys and values in every layer."""
        return call(_fast_context, params, context, network=self.network)

    def init_state(self, shape: tuple[int, int, int]) -> Any:
        """This form has no state."""
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
    """The fast form with TeaCache: steps in which little changes skip all layers, and reuse the
    update that the layers made in an earlier step.

    Attributes:
      threshold: a step computes all layers if the estimated change reaches this value; ().
      last_time: time of the run's last step, which always computes all layers; ().
      references: number of leading tokens that belong to references.
    """

    threshold: Any = 0.0
    last_time: Any = 0.0
    references: int = _static(default=0)

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
        arguments = (params, x, t, context, skip, state, self.threshold, last, self.references)
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
    """Chooses the form to sample with (`Fast` on one GPU, else `Plain`); prepares its parameters.

    If the stored parameters are not exactly those that the fast form supports, the plain form is
    chosen, and the log says so.

    Args:
      cfg: configuration of the transformer.
      execution: how it is computed.
      stored: its stored parameters.
      mesh: the devices; None means a single device.
      fast: True for the fast form, False for the plain one; None chooses by device.
      linears: 8-bit format of the large matrices, which only the fast form supports.

    Raises:
      ValueError: for the fast form on a mesh, or for 8-bit matrices without the fast form.
    """
    if fast is None:
        on_gpu = mesh is None and jax.default_backend() == "gpu"
        fast = on_gpu or linears is not None
    if fast and mesh is not None:
        raise ValueError(
            "fast sampling is for one device: leave out fast, linears and teacache, or the mesh"
        )
    if linears is not None and not fast:
        raise ValueError(f"{linears} linears need fast sampling: leave out fast=False")
    if fast:
        form = Fast(cfg, execution)
        try:
            return form, form.prepare(stored)
        except UnsupportedParametersError as error:
            if linears is not None:
                raise ValueError(
                    f"{linears} linears need the fast form of the transformer, which does not "
                    f"support these parameters ({error}): leave linears out"
                ) from error
            _log.warning(
                "the fast form of the transformer does not support these parameters (%s): sampling "
                "with the plain form",
                error,
            )
    return Plain(cfg, execution), stored


def loading_device(linears: Linears | None) -> contextlib.AbstractContextManager[Any]:
    """Where parameters are loaded and prepared: in host memory if they are to become int8, since
    the stored ones may not fit on the device; else on the default device."""
    if linears != "int8":
        return contextlib.nullcontext()
    return jax.default_device(jax.local_devices(backend="cpu")[0])


def with_teacache(
    denoiser: Plain | Fast, threshold: float, last_time: float
) -> Plain | Fast | TeaCache:
    """The denoiser with TeaCache, for a run whose last step is at `last_time`.

    A threshold of 0 returns the denoiser unchanged.

    Raises:
      ValueError: if the denoiser is not a `Fast` one.
    """
    if threshold <= 0:
        return denoiser
    if not isinstance(denoiser, Fast):
        raise ValueError("teacache needs fast sampling: make the pipeline with fast=True")
    least, last = (jnp.asarray(x, jnp.float32) for x in (threshold, last_time))
    return TeaCache(denoiser.cfg, denoiser.execution, least, last)


def for_references(denoiser: Plain | Fast, tokens: int) -> Plain | Fast:
    """The same denoiser, for a run whose first `tokens` tokens belong to references."""
    if not isinstance(denoiser, TeaCache):
        return denoiser
    return dataclasses.replace(denoiser, references=tokens)


def for_masks(
    denoiser: Plain | Fast, masks: Sequence[Shaped[Array, "b m"] | Shaped[np.ndarray, "b m"]]
) -> Plain | Fast:
    """The same denoiser, with a form of attention that supports these caption masks.

    Fused attention kernels take a mask as a length. So plain attention is chosen if a row of a mask
    has a zero before a one, or no ones.
    """
    if all(_is_prefix(mask) for mask in masks):
        return denoiser
    plain = dataclasses.replace(denoiser.execution, attention="plain")
    return dataclasses.replace(denoiser, execution=plain)


def _is_prefix(mask: Shaped[Array, "b m"] | Shaped[np.ndarray, "b m"]) -> bool:
    """Whether every row's ones, at least one, come before its zeros."""
    rows = np.asarray(mask) != 0
    return bool(rows[:, 0].all() and (rows[:, 1:] <= rows[:, :-1]).all())
