"""Solvers of the flow, on flows whose solutions are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltx_jax.config import SamplingConfig
from ltx_jax.diffusion import flow
from ltx_jax.diffusion.solver import DPMSolverPP2M, Euler, Interval, Stochastic, solver_of

MEAN, DEVIATION = 0.4, 0.5


def variance(t):
    return (1 - t) ** 2 * DEVIATION**2 + t**2


def velocity(x, t):
    """Of data that are normally distributed: E[noise - data | x_t = x]."""
    t = t[..., None]
    centred = x - (1 - t) * MEAN
    return (t - (1 - t) * DEVIATION**2) / variance(t) * centred - MEAN


def solution(x, t, target):
    """The flow carries quantiles into quantiles."""
    centred = (x - (1 - t) * MEAN) * np.sqrt(variance(target) / variance(t))
    return (1 - target) * MEAN + centred


def solve(solver, times, x, waits=None):
    """Through all times, in float64; a token i is not moved before `waits[i]` comes."""
    times = jnp.asarray(times, jnp.float64)

    def predict(x, t, state):
        return velocity(x, t), state

    memory = solver.init_memory(x)
    limit = jnp.ones(x.shape[:2]) if waits is None else jnp.asarray(waits)
    for t in times[:-1]:
        time = jnp.minimum(t, limit)
        target = flow.next_time(time, times)
        interval = Interval(time, target, lambda x=x: jnp.zeros_like(x))
        moved, _, memory = solver(predict, x, interval, None, memory)
        x = jnp.where((t - flow.TIME_EPSILON < limit)[..., None], moved, x)
    return np.asarray(x)


@pytest.fixture
def start():
    with jax.enable_x64(True):
        yield jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3)))


def error(solver, times, start):
    got = solve(solver, times, start)
    return np.abs(got - solution(np.asarray(start), times[0], times[-1])).max()


@pytest.mark.thorough
@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (DPMSolverPP2M(), 2)])
def test_the_error_falls_with_the_order_of_the_solver(solver, order, start):
    """Twice as many steps divide it by 2^order, where the signal-to-noise ratio is finite."""
    errors = [error(solver, np.linspace(0.95, 0.05, steps + 1), start) for steps in (32, 64, 128)]
    rates = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(rates, order, atol=0.1)


def test_the_second_order_is_nearer_to_the_data_than_the_first(start):
    """From noise to data, the infinite ratios at both ends included."""
    times = np.linspace(1, 0, 33)
    assert error(DPMSolverPP2M(), times, start) < 0.2 * error(Euler(), times, start)


def test_the_second_order_takes_the_steps_of_diffusers(start):
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(8)
    times = np.asarray(scheduler.sigmas, np.float64)
    x = np.asarray(start)
    for i, t in enumerate(scheduler.timesteps):
        v = np.asarray(velocity(jnp.asarray(x), jnp.full(x.shape[:2], times[i])))
        x = scheduler.step(torch.tensor(v), t, torch.tensor(x)).prev_sample.numpy()
    # Its coefficients are float32.
    np.testing.assert_allclose(solve(DPMSolverPP2M(), times, start), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("solver", "bound"), [(Euler(), 0.01), (DPMSolverPP2M(), 1e-3)])
def test_tokens_that_wait_start_at_their_own_time(solver, bound, start):
    """And one that is data already stays as it is, with no number gone wrong."""
    levels = np.array([1.0, 0.625, 0.3125, 0.125, 0.0])  # all of them times of the schedule
    got = solve(solver, np.linspace(1, 0, 257), start, jnp.broadcast_to(levels, (2, 5)))
    want = solution(np.asarray(start), levels[:, None], 0.0)
    np.testing.assert_allclose(got, want, rtol=0, atol=bound)
    np.testing.assert_array_equal(got[:, 4], start[:, 4])


def test_options_name_the_solver():
    assert solver_of(SamplingConfig()) == Euler()
    assert solver_of(SamplingConfig(stochastic_sampling=True)) == Stochastic()
    assert solver_of(SamplingConfig(solver="dpmpp_2m")) == DPMSolverPP2M()
    unknown = SamplingConfig()
    object.__setattr__(unknown, "solver", "heun")  # past the types, which only tests check
    with pytest.raises(ValueError, match=r"known: .*dpmpp_2m"):
        solver_of(unknown)
    with pytest.raises(ValueError, match="only with the euler solver"):
        SamplingConfig(solver="dpmpp_2m", stochastic_sampling=True)
