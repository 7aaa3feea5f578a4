"""Trajectory regression on a Gaussian flow, whose paths are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltx_jax.config import DistillationConfig
from ltx_jax.training.distillation.loss import held_out_errors, segment, trajectory_loss

CHANNELS = 3
MEAN = np.array([0.5, -1.0, 0.2])
ROOT = np.array([[0.8, 0.0, 0.0], [0.3, 0.5, 0.0], [-0.2, 0.1, 0.4]])
COVARIANCE = ROOT @ ROOT.T
TIMES = (1.0, 0.9, 0.6, 0.3)


def settings(target):
    return DistillationConfig(teacher="a", paths="b", times=TIMES, target=target)


def power(matrix, exponent):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T


def covariance_at(t):
    return (1 - t) ** 2 * COVARIANCE + t**2 * np.eye(CHANNELS)


def exact_map(x, t, r):
    """Moves x from time t to r along the flow of x0 ~ N(MEAN, COVARIANCE)."""
    linear = power(covariance_at(r), 0.5) @ power(covariance_at(t), -0.5)
    return (1 - r) * MEAN + (x - (1 - t) * MEAN) @ linear.T


def paths(count, tokens=2):
    """Exact paths in the layout of a batch; every token is a sample of its own."""
    noise = np.random.default_rng(0).standard_normal((count, tokens, CHANNELS))
    states = np.stack([exact_map(noise, 1.0, r) for r in (*TIMES, 0.0)], axis=1)
    return {
        "states": jnp.asarray(states, jnp.float32),
        "own_times": jnp.ones((count, 1), jnp.float32),
    }


def exact_student(target):
    """The velocity that an exact student has at its times."""
    later = dict(zip(TIMES, (*TIMES[1:], 0.0), strict=True))

    def velocity(x, times):
        result = jnp.zeros_like(x)
        for t in TIMES:
            r = later[t] if target == "next" else 0.0
            linear = power(covariance_at(r), 0.5) @ power(covariance_at(t), -0.5)
            mean = jnp.asarray((1 - t) * MEAN, jnp.float32)[None, None]
            moved = (x - mean) @ jnp.asarray(linear.T, jnp.float32)
            moved += jnp.asarray((1 - r) * MEAN, jnp.float32)[None, None]
            here = jnp.abs(times - t) < 1e-6
            result = jnp.where(here[..., None], (x - moved) / (t - r), result)
        return result

    return velocity


@pytest.mark.parametrize("target", ["next", "end"])
def test_the_exact_student_has_no_loss_and_another_has(target):
    batch, cfg = paths(64), settings(target)
    value = trajectory_loss(exact_student(target), batch, jax.random.key(0), cfg)
    assert value.loss < 1e-10  # the square of float32's rounding
    assert value.metrics["conditioned"] == 0
    assert max(float(value.metrics[f"loss_at/{t:g}"]) for t in TIMES) < 1e-10
    other = exact_student("end" if target == "next" else "next")
    # At the last time both targets are the end.
    errors = held_out_errors(other, batch, cfg).losses
    assert errors[-1] < 1e-10
    assert errors[:-1].min() > 1e-3


@pytest.mark.parametrize("target", ["next", "end"])
def test_an_exact_student_reaches_the_data_in_its_steps(target):
    """One step for "end", four for "next", from the same noise as the exact flow."""
    batch, cfg = paths(4096), settings(target)
    assert held_out_errors(exact_student(target), batch, cfg).end < 1e-5
    ends = np.asarray(batch["states"][:, -1]).reshape(-1, CHANNELS)
    # 8192 samples: a standard error of 0.01.
    np.testing.assert_allclose(ends.mean(axis=0), MEAN, atol=0.04)
    np.testing.assert_allclose(np.cov(ends.T), COVARIANCE, atol=0.04)


def test_condition_tokens_keep_their_own_times_and_have_no_weight():
    batch = paths(4, tokens=3)
    own = np.ones((4, 3), np.float32)
    own[:, 0] = 0.2
    batch["own_times"] = jnp.asarray(own)
    part = segment(batch, jnp.array([0, 1, 2, 3]), settings("next"))
    np.testing.assert_array_equal(part.weight, own == 1)
    np.testing.assert_allclose(part.times[:, 0], 0.2)
    np.testing.assert_allclose(part.times[:, 1], TIMES)

    def loss(velocity):
        return trajectory_loss(velocity, batch, jax.random.key(0), settings("next")).loss

    exact = exact_student("next")
    wrong = jnp.asarray(own)[..., None] < 1
    assert loss(lambda x, t: jnp.where(wrong, 9.0, exact(x, t))) < 1e-10
    assert loss(lambda x, t: jnp.where(wrong, exact(x, t), 9.0)) > 1


def test_a_step_is_drawn_for_each_path():
    """All steps are learned equally often, and the draw depends on the key alone."""
    drawn = []

    def velocity(x, times):
        drawn.append(np.asarray(times[:, 0]))
        return x

    batch = paths(4000)
    for seed in (0, 0, 1):
        trajectory_loss(velocity, batch, jax.random.key(seed), settings("next"))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    shares = [np.isclose(drawn[0], t).mean() for t in TIMES]
    np.testing.assert_allclose(shares, 0.25, atol=0.03)  # four standard errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": (0.9, 0.5)}, "must begin at 1"),
        ({"times": (1.0, 0.5, 0.5)}, "decrease"),
        ({"times": (1.0, 0.0)}, "above 0"),
        ({"times": ()}, "must begin at 1"),
        ({"times": (1.0, 0.12345)}, "4 decimals"),
        ({"teacher_steps": 0}, "teacher_steps must be positive"),
    ],
)
def test_times_that_cannot_be_are_refused(changes, message):
    fields = {"teacher": "a", "paths": "b", **changes}
    with pytest.raises(ValueError, match=message):
        DistillationConfig(**fields)
