"""What stands in the places of the network and of the solver when the loop is tested."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ltx_jax.diffusion.solver import Euler, Solver


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Function:
    """A denoiser by a function of (params, tokens, times, context, skip)."""

    function: Callable[..., Any] = dataclasses.field(metadata={"static": True})

    def prepare(self, stored):
        return stored

    def prepare_context(self, params, context):
        return context

    def init_state(self, shape):
        return None

    def __call__(self, params, x, t, context, skip=None, state=None):
        return self.function(params, x, t, context, skip), state


class Seen(NamedTuple):
    """The last prediction of a step: tokens, their times (b, n), the guided velocity; and the
    memory of the solver that asked for it."""

    sample: Any
    time: Any
    velocity: Any
    memory: Any


@dataclasses.dataclass(frozen=True)
class Watching:
    """A solver that does what another one does, and remembers what that one saw."""

    solver: Solver = Euler()

    def init_memory(self, x):
        return Seen(x * 0, x[..., 0] * 0, x * 0, self.solver.init_memory(x))

    def __call__(self, predict, x, interval, state, memory):
        calls = []

        def watched(x, time, state):
            velocity, state = predict(x, time, state)
            calls.append((x, jnp.broadcast_to(time, x.shape[:2]), velocity))
            return velocity, state

        x, state, inner = self.solver(watched, x, interval, state, memory.memory)
        return x, state, Seen(*calls[-1], inner)
