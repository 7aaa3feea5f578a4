"""The flow's schedules against the released scheduler, and its steps against their definition."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltx_jax.config import SchedulerConfig
from ltx_jax.diffusion import flow

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "schedules.npz")


def scheduler_of(name: str) -> SchedulerConfig:
    return {
        "LinearQuadratic": SchedulerConfig("LinearQuadratic"),
        "Uniform": SchedulerConfig("Uniform"),
        "Constant1.5": SchedulerConfig("Constant", shift=1.5),
        "SD3": SchedulerConfig(shifting="SD3"),
        "SD3_t0.1": SchedulerConfig(shifting="SD3", target_shift_terminal=0.1),
        "SimpleDiffusion": SchedulerConfig(shifting="SimpleDiffusion"),
    }[name]


@pytest.mark.parametrize("key", GOLDEN.files)
def test_schedules_equal_the_released_ones_to_the_bit(key):
    name, *shape, steps = key.split("/")
    tokens = math.prod(int(size) for size in shape[0].split("x")[2:]) if shape else 1
    ours = flow.schedule(scheduler_of(name), int(steps), tokens)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, GOLDEN[key])


def test_uniform_times_equal_torch_for_every_count():
    torch = pytest.importorskip("torch")
    for steps in range(1, 1001):
        expected = torch.linspace(1, 1 / steps, steps).numpy()
        np.testing.assert_array_equal(flow.uniform(steps), expected)


def test_the_count_is_clipped_to_that_of_training():
    assert len(flow.schedule(SchedulerConfig(num_train_timesteps=7), 100, 1)) == 7


def test_one_step_starts_at_noise_whatever_the_shift():
    for name in ("Uniform", "LinearQuadratic", "SD3_t0.1", "SimpleDiffusion"):
        assert flow.schedule(scheduler_of(name), 1, 1024) == 1


def test_skipped_steps_are_cut_from_both_ends_after_the_shift():
    cfg = scheduler_of("SD3_t0.1")
    whole = flow.inference_times(cfg, 999, num_inference_steps=20)
    cut = flow.inference_times(cfg, 999, num_inference_steps=20, skip_initial=3, skip_final=2)
    np.testing.assert_array_equal(cut, whole[3:18])


def test_explicit_times_are_used_verbatim():
    cfg = scheduler_of("SD3_t0.1")
    times = flow.inference_times(cfg, 999, timesteps=[1.0, 0.9937, 0.725], skip_initial=1)
    np.testing.assert_array_equal(times, np.float32([1.0, 0.9937, 0.725]))


@pytest.mark.parametrize("times", [[0.5, 0.5], [0.2, 0.4], [1.2, 0.5], [0.5, 0.0], []])
def test_times_that_do_not_fall_from_one_to_zero_are_refused(times):
    with pytest.raises(ValueError, match="timesteps must"):
        flow.inference_times(SchedulerConfig(), 1, timesteps=times)


@pytest.mark.parametrize(("initial", "final"), [(-1, 0), (0, -1), (4, 4), (9, 0)])
def test_skips_must_leave_a_step(initial, final):
    with pytest.raises(ValueError, match="leave at least one of 8"):
        flow.inference_times(
            SchedulerConfig(), 1, num_inference_steps=8, skip_initial=initial, skip_final=final
        )


def test_a_distilled_checkpoint_takes_its_own_times_alone():
    allowed = (1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219)
    cfg = scheduler_of("LinearQuadratic")
    # The released list is LinearQuadratic(8) rounded to 4 decimals.
    assert len(flow.inference_times(cfg, 1, num_inference_steps=8, allowed=allowed)) == 8
    flow.inference_times(cfg, 1, timesteps=[0.9094, 0.725, 0.4219], allowed=allowed)
    with pytest.raises(ValueError, match=r"cannot sample at \[0\.5\]"):
        flow.inference_times(cfg, 1, timesteps=[1.0, 0.5], allowed=allowed)


def test_next_time_is_the_highest_listed_one_below():
    times = jnp.array([1.0, 0.9, 0.5])
    t = jnp.array([[1.0, 0.95, 0.9, 0.9000005, 0.7, 0.5, 0.3, 0.0]])
    expected = [[0.9, 0.9, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0]]
    np.testing.assert_allclose(flow.next_time(t, times), expected, rtol=1e-7)


def test_the_exact_velocity_recovers_the_data_from_any_time(keys):
    data, noise = (jax.random.normal(next(keys), (2, 5, 3)) for _ in range(2))
    t = jax.random.uniform(next(keys), (2, 5))
    x = flow.add_noise(data, noise, t)
    velocity = flow.velocity_of(data, noise)
    # Rounding of a few operations on numbers of order one.
    np.testing.assert_allclose(flow.data_of(x, velocity, t), data, atol=1e-6)
    np.testing.assert_allclose(flow.euler_step(x, velocity, t, jnp.zeros_like(t)), data, atol=1e-6)
    half = flow.euler_step(x, velocity, t, t / 2)
    np.testing.assert_allclose(half, flow.add_noise(data, noise, t / 2), atol=1e-6)


def test_a_stochastic_step_replaces_the_noise(keys):
    data, noise, fresh = (jax.random.normal(next(keys), (2, 5, 3)) for _ in range(3))
    t = jnp.array([[0.8], [0.6]])
    x = flow.add_noise(data, noise, t)
    target = jnp.array([[0.3], [0.2]])
    stepped = flow.stochastic_step(x, flow.velocity_of(data, noise), t, target, fresh)
    np.testing.assert_allclose(stepped, flow.add_noise(data, fresh, target), atol=1e-6)
