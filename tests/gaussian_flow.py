"""The rectified flow of a Gaussian in closed form, for tests of distillation.

Data are N(m, S), so that samples at time t are N((1 - t) m, C), C = (1 - t)^2 S + t^2 I.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Gaussian(NamedTuple):
    """Mean m (d,) and covariance S (d, d) of the data."""

    mean: jax.Array
    covariance: jax.Array

    def at(self, t):
        """Mean and covariance of samples at time t."""
        identity = jnp.eye(len(self.mean))
        return (1 - t) * self.mean, (1 - t) ** 2 * self.covariance + t**2 * identity

    def velocity(self, x, t):
        """E(noise - data | x) at time t, for x (d,)."""
        mean, covariance = self.at(t)
        gain = t * jnp.eye(len(x)) - (1 - t) * self.covariance
        return -self.mean + gain @ jnp.linalg.solve(covariance, x - mean)

    def flow(self, x, t, r):
        """The point at time r of the flow through x (d,) at time t."""
        # C has the eigenvectors of S at all times.
        variances, basis = jnp.linalg.eigh(self.covariance)
        before, after = ((1 - s) ** 2 * variances + s**2 for s in (t, r))
        turned = basis.T @ (x - (1 - t) * self.mean)
        return (1 - r) * self.mean + basis @ (jnp.sqrt(after / before) * turned)

    def average_velocity(self, x, t, r):
        """(x - flow(x, t, r)) / (t - r)."""
        return (x - self.flow(x, t, r)) / (t - r)

    def conditional(self, x, t, index):
        """The data of coordinate 0, given the value x of coordinate `index` at time t."""
        spread = (1 - t) ** 2 * self.covariance[index, index] + t**2
        shared = (1 - t) * self.covariance[0, index]
        mean = self.mean[0] + shared / spread * (x - (1 - t) * self.mean[index])
        variance = self.covariance[0, 0] - shared**2 / spread
        return Gaussian(mean[None], variance[None, None])


def correlated(seed, size):
    """A Gaussian whose coordinates are correlated, with standard deviations from 0.3 to 1."""
    keys = jax.random.split(jax.random.key(seed), 3)
    basis, _ = jnp.linalg.qr(jax.random.normal(keys[0], (size, size)))
    deviations = jax.random.uniform(keys[1], (size,), minval=0.3)
    return Gaussian(jax.random.normal(keys[2], (size,)), (basis * deviations[None] ** 2) @ basis.T)
