"""Consistency and MeanFlow on a Gaussian, whose flow is known in closed form."""

import functools
import itertools

import gaussian_flow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import compiled

from ltx_jax.diffusion.flow import euler_step
from ltx_jax.training.distillation import consistency
from ltx_jax.training.distillation.consistency import FlowPoint
from ltx_jax.training.flops import count_traced

BATCH, TOKENS, CHANNELS = 3, 2, 2
SHAPE = (BATCH, TOKENS, CHANNELS)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def per_sample(function):
    """A function of vectors (d,) as one of tokens (b, n, c); all tokens of a sample have one
    time."""

    def over_tokens(x, times, *rest):
        flat = jax.vmap(lambda x, t: function(x, t[0], *rest))(x.reshape(len(x), -1), times)
        return flat.reshape(x.shape)

    return over_tokens


@functools.partial(compiled, static_argnums=(0, 1))
def flow_point(seed, r=0.0):
    """Random points of a Gaussian's flow, at any time above r."""
    data = gaussian_flow.correlated(seed, TOKENS * CHANNELS)
    keys = jax.random.split(jax.random.key(seed + 1))
    x = jax.random.normal(keys[0], SHAPE)
    t = r + (1 - r) * jax.random.uniform(keys[1], (BATCH, 1), minval=0.2)
    times = jnp.broadcast_to(t, SHAPE[:2])
    velocity = per_sample(data.velocity)(x, times)
    return FlowPoint(x, times, times - r, velocity, jnp.ones(SHAPE[:2]))


def exact_student(seed, r=0.0):
    """The average velocity of a Gaussian's flow down to r; parameters scale it."""
    data = gaussian_flow.correlated(seed, TOKENS * CHANNELS)
    average = per_sample(lambda x, t: data.average_velocity(x, t, r))
    return lambda scale, x, times: scale * average(x, times)


def network(params, x, times):
    """A small smooth network of all tokens and times of a sample."""
    inputs = jnp.concatenate([x.reshape(len(x), -1), times], axis=1)
    return (jnp.tanh(inputs @ params["in"]) @ params["out"]).reshape(x.shape)


def weights():
    keys, size = jax.random.split(jax.random.key(2)), TOKENS * CHANNELS
    return {
        "in": jax.random.normal(keys[0], (size + TOKENS, 16)),
        "out": 0.3 * jax.random.normal(keys[1], (16, size)),
    }


def largest(x):
    return float(jnp.abs(x).max())


along_flow = compiled(consistency.along_flow, static_argnums=(0, 3))
consistency_loss = compiled(consistency.consistency_loss, static_argnums=(0, 4))


@functools.partial(compiled, static_argnums=(0, 3))
def gap_of(student, params, point, tangent):
    pair = consistency.along_flow(student, params, point, tangent)
    return consistency.residual(*pair, point)


def test_the_closed_form_of_the_flow_solves_its_equation():
    data = gaussian_flow.correlated(0, 4)
    x = end = jax.random.normal(jax.random.key(3), (4,))
    velocity = compiled(data.velocity)
    grid = np.linspace(0.9, 0.2, 201)
    for t, s in itertools.pairwise(grid):  # the Runge-Kutta method of order 4
        h = s - t
        a = velocity(end, t)
        b = velocity(end + h / 2 * a, t + h / 2)
        c = velocity(end + h / 2 * b, t + h / 2)
        d = velocity(end + h * c, s)
        end = end + h / 6 * (a + 2 * b + 2 * c + d)
    assert largest(end - data.flow(x, 0.9, 0.2)) < 1e-9  # h^4 = 1.5e-10


@pytest.mark.parametrize("tangent", ["exact", "semi_continuous", "difference"])
def test_the_derivative_along_the_flow_agrees_with_differences(tangent):
    point = flow_point(0)
    h, params = 1e-5, weights()
    ahead = network(params, point.x + h * point.velocity, point.times + h)
    behind = network(params, point.x - h * point.velocity, point.times - h)
    _, derivative = along_flow(network, params, point, tangent)
    error = largest(derivative - (ahead - behind) / (2 * h)) / largest(derivative)
    # A central difference errs by h^2 and rounding over h, one-sided ones by up to h = 0.03.
    assert error < {"exact": 1e-8, "semi_continuous": 0.1, "difference": 0.2}[tangent]
    if tangent != "exact":
        assert error > 1e-4


@pytest.mark.parametrize("r", [0.0, 0.3])
def test_the_exact_average_velocity_has_no_residual(r):
    point, student = flow_point(0, r), exact_student(0, r)
    assert largest(gap_of(student, 1.0, point, "exact")) < 1e-12  # of float64
    assert largest(gap_of(student, 1.01, point, "exact")) > 1e-3
    loss, size = consistency_loss(student, 1.0, point, 1.0, "exact")
    assert largest(loss) < 1e-12
    assert largest(size) < 1e-6  # float32
    for tangent in ("semi_continuous", "difference"):  # they err by up to their step of 0.03
        assert 1e-6 < largest(gap_of(student, 1.0, point, tangent)) < 0.1


def test_the_exact_student_takes_one_step():
    data = gaussian_flow.correlated(0, 4)
    noise = jax.random.normal(jax.random.key(4), SHAPE)
    ones = jnp.ones(SHAPE[:2])
    velocity = exact_student(0)(1.0, noise, ones)
    end = euler_step(noise, velocity, ones, jnp.zeros_like(ones))
    wanted = per_sample(lambda x, t: data.flow(x, t, 0.0))(noise, ones)
    assert largest(end - wanted) < 1e-12
    teacher = euler_step(noise, per_sample(data.velocity)(noise, ones), ones, 0 * ones)
    assert largest(teacher - wanted) > 0.1  # one step of the teacher ends elsewhere


@pytest.mark.thorough
@pytest.mark.parametrize("tangent", ["exact", "semi_continuous", "difference"])
def test_condition_tokens_stay_as_they_are(tangent):
    """A pair of tokens, of which the second is a condition at its own time: the flow of the first
    is that of the conditional distribution."""
    data = gaussian_flow.correlated(0, 2)

    def student(params, x, times):
        def one(x, t):
            own = data.conditional(x[1], t[1], 1)
            return jnp.stack([own.average_velocity(x[:1], t[0], 0.0)[0], jnp.sin(9 * x @ t)])

        return jax.vmap(one)(x[..., 0], times)[..., None]

    x = jax.random.normal(jax.random.key(5), (BATCH, 2, 1))
    times = jnp.asarray([[0.9, 0.2], [0.6, 0.1], [0.4, 0.25]])

    def teacher(x, t):
        return data.conditional(x[1], t[1], 1).velocity(x[:1], t[0])

    free = jnp.asarray([[1.0, 0.0]] * BATCH)
    of_first = jax.vmap(teacher)(x[..., 0], times)
    velocity = jnp.stack([of_first, jnp.full_like(of_first, 7.0)], axis=1)
    point = FlowPoint(x, times, times, velocity, free)
    gap = gap_of(student, None, point, tangent)[:, 0]
    assert largest(gap) < (1e-12 if tangent == "exact" else 0.2)
    moving = point._replace(free=jnp.ones_like(free))
    assert largest(gap_of(student, None, moving, tangent)[:, 0]) > 1

    @compiled
    @jax.value_and_grad
    def loss(shift, point):
        shifted = lambda shift, x, t: student(None, x, t) + shift  # noqa: E731
        return consistency.consistency_loss(shifted, shift, point, tangent=tangent)[0].sum()

    shift = jnp.full((BATCH, 2, 1), 0.1)
    value, gradient = loss(shift, point)
    assert largest(gradient[:, 1]) == 0
    assert largest(gradient[:, 0]) > 0.1
    other = shift.at[:, 1].add(5.0)  # what the network says of conditions does not matter
    assert loss(other, point)[0] == pytest.approx(float(value), abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("tangent", ["exact", "semi_continuous"])
def test_the_gradient_is_that_of_a_regression_on_a_constant(tangent, share):
    point, params = flow_point(0), weights()

    @compiled
    @jax.value_and_grad
    def loss(params):
        return consistency.consistency_loss(network, params, point, share, tangent)[0].mean()

    value, derivative = along_flow(network, params, point, tangent)
    gap = point.velocity - value - share * point.times[..., None] * derivative
    rms = jnp.sqrt(jnp.mean(gap**2, axis=(1, 2), keepdims=True))
    target = value + gap / (rms + 0.1)

    @compiled
    @jax.value_and_grad
    def regression(params):
        return jnp.mean((network(params, point.x, point.times) - target) ** 2)

    (got_loss, got), (wanted_loss, wanted) = loss(params), regression(params)
    assert got_loss == pytest.approx(float(wanted_loss), rel=1e-5)
    for name, gradient in wanted.items():
        assert largest(got[name] - gradient) < 1e-5 * largest(gradient)  # the loss is float32


def test_the_residual_is_normalised_by_its_size():
    point, params = flow_point(0), weights()
    far = point._replace(velocity=1000 * point.velocity)
    loss, size = consistency_loss(network, params, far, 0.0, "exact")
    assert (size > 100).all()
    np.testing.assert_allclose(loss, (size / (size + 0.1)) ** 2, rtol=1e-5)


def test_the_share_of_the_derivative_rises_to_one():
    share = compiled(consistency.tangent_share, static_argnums=1)
    assert share(jnp.asarray(0), 0) == 1
    rising = [float(share(jnp.asarray(i), 4)) for i in range(8)]
    np.testing.assert_allclose(rising, [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("tangent", "forwards"), [("exact", 4), ("semi_continuous", 5), ("difference", 4)]
)
def test_nothing_is_differentiated_twice(tangent, forwards):
    """The matmuls of a gradient, in calls of the network: a value and its gradient are three."""
    point, params = flow_point(0), weights()

    def loss(params, point):
        return consistency.consistency_loss(network, params, point, 1.0, tangent)[0].mean()

    def count(function, *arguments):
        return count_traced(jax.make_jaxpr(function)(*arguments).jaxpr)

    once = count(network, params, point.x, point.times)
    assert count(jax.grad(loss), params, point) <= forwards * once
