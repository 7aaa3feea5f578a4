"""Halving the steps of Heun's solver quarters its error, on a flow whose solution is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ltx_jax.diffusion.solver import Heun, Interval

jax.config.update("jax_enable_x64", True)
VARIANCE = 0.25  # of Gaussian data: the path's variance is (1 - t)^2 VARIANCE + t^2


def velocity(x, t, state):
    variance = (1 - t) ** 2 * VARIANCE + t**2
    return x * ((t - (1 - t) * VARIANCE) / variance)[..., None], state


def error(steps, last=0.1):
    x, times = jnp.ones((1, 1, 1)), np.linspace(1, last, steps + 1)
    for time, target in itertools.pairwise(times):
        interval = Interval(jnp.full((1, 1), time), jnp.full((1, 1), target), None)
        x, _, _ = Heun()(velocity, x, interval, None, None)
    return abs(float(x[0, 0, 0]) - np.sqrt((1 - last) ** 2 * VARIANCE + last**2))


order = np.log2(error(64) / error(128))
assert 1.9 < order < 2.1, order
