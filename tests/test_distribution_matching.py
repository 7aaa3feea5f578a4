"""Distribution matching on Gaussians, whose velocities and divergences are known in closed form."""

import gaussian_flow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_flow import Gaussian
from quick import compiled

from ltx_jax.diffusion.flow import add_noise, data_of
from ltx_jax.training.distillation import distribution_matching as matching

SIZE = 3
TIMES = jnp.asarray([1.0, 0.934, 0.853, 0.609])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def tokens(function):
    """A function of vectors (d,) and a time as one of tokens (b, d, 1) and their times."""
    return lambda x, times: jax.vmap(lambda x, t: function(x[:, 0], t[0])[:, None])(x, times)


def all_at(t, x):
    return jnp.full(x.shape[:2], t)


def largest(x):
    return float(jnp.abs(x).max())


def test_the_difference_of_the_data_is_that_of_the_means():
    real = gaussian_flow.correlated(0, SIZE)
    fake = real._replace(mean=jnp.asarray([0.5, -1.0, 2.0]))
    x, s = jax.random.normal(jax.random.key(0), (4, SIZE, 1)), 0.7
    times = all_at(s, x)

    @compiled
    def difference(x):
        velocities = [tokens(one.velocity)(x, times) for one in (fake, real)]
        return matching.data_difference(x, times, *velocities)

    got = difference(x)
    wanted = s**2 * jnp.linalg.solve(real.at(s)[1], fake.mean - real.mean)
    assert largest(got[..., 0] - wanted[None]) < 1e-12


def divergence(one, other):
    """The Kullback-Leibler divergence of one normal distribution from another."""
    (m, c), (n, d) = one, other
    inverse, gap = jnp.linalg.inv(d), n - m
    logs = jnp.linalg.slogdet(d)[1] - jnp.linalg.slogdet(c)[1]
    return 0.5 * (jnp.trace(inverse @ c) + gap @ inverse @ gap - len(m) + logs)


def test_the_gradient_is_that_of_the_divergence():
    """A linear student a + B z, whose fake score is exact: expectations over z and the noise are
    those of quadratic functions, for which a few points are exact."""
    real, s = gaussian_flow.correlated(0, SIZE), 0.6
    student = {"mean": jnp.asarray([0.5, -1.0, 2.0]), "matrix": jnp.eye(SIZE) * 0.7 + 0.1}
    points = jnp.concatenate([jnp.eye(2 * SIZE), -jnp.eye(2 * SIZE)]) * SIZE**0.5 * 2**0.5
    z, noise = points[:, :SIZE], points[:, SIZE:, None]

    def own(student):
        return Gaussian(student["mean"], student["matrix"] @ student["matrix"].T)

    def loss(student):
        data = (student["mean"][None] + z @ student["matrix"].T)[..., None]
        x = add_noise(jax.lax.stop_gradient(data), noise, jnp.full(len(data), s))
        times = all_at(s, x)
        fake = own(jax.lax.stop_gradient(student))
        velocities = [tokens(one.velocity)(x, times) for one in (fake, real)]
        difference = matching.data_difference(x, times, *velocities)
        weight = ((1 - s) / s) ** 2  # of the exact gradient
        return weight * jnp.mean(jnp.sum(difference * data, axis=(1, 2)))

    got = compiled(jax.grad(loss))(student)
    kullback_leibler = lambda student: divergence(own(student).at(s), real.at(s))  # noqa: E731
    wanted = compiled(jax.grad(kullback_leibler))(student)
    for name, gradient in wanted.items():
        assert largest(gradient) > 0.02
        assert largest(got[name] - gradient) < 1e-12


def test_the_gradient_of_the_loss_is_the_normalised_difference():
    keys = jax.random.split(jax.random.key(1), 4)
    data, noised, fake, real = (jax.random.normal(key, (2, 4, 3)) for key in keys)
    weight = jnp.asarray([[1.0, 1, 1, 1], [0, 1, 1, 0]])
    times = jnp.asarray([[0.5] * 4, [0.1, 0.8, 0.8, 0.1]])

    def total(data):
        return matching.matching_loss(data, noised, times, fake, real, weight).sum()

    gradient = np.asarray(compiled(jax.grad(total))(data))
    predicted = np.asarray(noised - times[..., None] * real)
    for i, rows in enumerate([[0, 1, 2, 3], [1, 2]]):
        distance = np.abs(np.asarray(data[i]) - predicted[i])[rows].mean()
        difference = np.asarray(times[i, :, None] * (real[i] - fake[i]))[rows]
        np.testing.assert_allclose(
            gradient[i, rows], difference / distance / difference.size, atol=1e-7
        )
    assert np.all(gradient[1, [0, 3]] == 0)  # conditions


def test_a_student_at_the_teachers_data_has_a_finite_gradient():
    x = jnp.ones((1, 2, 1))
    times, velocity = all_at(0.5, x), jnp.zeros_like(x)
    loss = lambda data: matching.matching_loss(  # noqa: E731
        data, x, times, velocity + 1e-3, velocity, jnp.ones((1, 2))
    ).sum()
    assert np.isfinite(jax.grad(loss)(x)).all()


def test_the_fake_score_learns_the_velocity_of_outputs_that_are_constants():
    keys = jax.random.split(jax.random.key(2))
    data, noise = (jax.random.normal(key, (2, 3, 1)) for key in keys)
    weight = jnp.ones((2, 3))
    assert largest(matching.fake_loss(noise - data, data, noise, weight)) < 1e-12
    loss = lambda velocity, data: matching.fake_loss(velocity, data, noise, weight).sum()  # noqa: E731
    of_velocity, of_data = compiled(jax.grad(loss, argnums=(0, 1)))(noise, data)
    assert largest(of_velocity) > 0.1
    assert largest(of_data) == 0


def test_noised_again_the_exact_student_keeps_the_distribution():
    """All steps are linear in the noises, so their Jacobian gives mean and covariance."""
    real = gaussian_flow.correlated(0, SIZE)
    average = tokens(lambda x, t: real.average_velocity(x, t, 0.0))
    own, count = jnp.ones((1, SIZE)), len(TIMES)

    def generated(noises, last):
        noises = noises.reshape(count, 1, SIZE, 1)
        out = matching.rollout(
            lambda _, x, t: average(x, t),
            *(None, noises[0], own, TIMES, jnp.asarray(last)[None]),
            lambda i: noises[i + 1],
        )
        return out.reshape(-1)

    zero = jnp.zeros(count * SIZE)
    program = compiled(lambda last: (generated(zero, last), jax.jacfwd(generated)(zero, last)))
    for last in range(count):
        mean, jacobian = program(last)
        assert largest(mean - real.mean) < 1e-12
        assert largest(jacobian @ jacobian.T - real.covariance) < 1e-12


def test_only_the_last_step_of_a_rollout_is_differentiated():
    """Two samples, with different last steps; the second token of each is a condition."""
    own = jnp.asarray([[1.0, 0.1], [1.0, 0.0]])
    start = jax.random.normal(jax.random.key(3), (2, 2, 1))
    draws = jax.random.normal(jax.random.key(4), (len(TIMES), 2, 2, 1))

    def student(params, x, times):
        return jnp.sin(params * x + times[..., None])

    def run(params, last=jnp.asarray([0, 2])):
        return matching.rollout(student, params, start, own, TIMES, last, lambda i: draws[i])

    params, x = jnp.asarray(0.8), start
    by_hand = []
    for i in range(3):
        times = jnp.minimum(TIMES[i], own)
        by_hand.append((x, times))
        moved = add_noise(
            data_of(x, student(params, x, times), times), draws[i], jnp.full(2, TIMES[i + 1])
        )
        x = jnp.where(own[..., None] == 1, moved, start)
    wanted, slope = [], 0.0
    for sample, (x, times) in ((0, by_hand[0]), (1, by_hand[2])):
        last_step = lambda p, x=x, times=times: data_of(x, student(p, x, times), times)  # noqa: E731
        wanted.append(last_step(params)[sample, 0])
        slope += jax.grad(lambda p, f=last_step, i=sample: f(p)[i, 0].sum())(params)
    got = compiled(run)(params)
    assert largest(got[:, 0] - jnp.stack(wanted)) < 1e-12
    assert largest(got[:, 1] - start[:, 1]) == 0
    gradient = compiled(jax.grad(lambda p: run(p)[:, 0].sum()))
    assert gradient(params) == pytest.approx(float(slope), abs=1e-12)


def test_outputs_are_compared_mostly_at_high_times():
    times = np.asarray(matching.comparison_times(jax.random.key(0), 100_000))
    assert times.min() == pytest.approx(0.02)
    assert times.max() == pytest.approx(0.98)
    for share in (0.1, 0.5, 0.9):
        wanted = 5 * share / (1 + 4 * share)
        assert np.quantile(times, share) == pytest.approx(min(wanted, 0.98), abs=0.01)
