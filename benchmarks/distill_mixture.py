"""What each objective of distillation makes of a mixture of six Gaussians in the plane:

  python -m benchmarks.distill_mixture                  # some minutes on one core
  python -m benchmarks.distill_mixture --updates 20     # whether it runs

The teacher is the exact velocity, so that the objectives are compared without errors of a network
that was trained before. Students are small networks with equal numbers of updates (a third for
distribution matching, whose updates cost six times as much). Consistency models start from a
network that learned the teacher's velocity, distribution matching from one that learned its paths.
The table has, for 1, 2 and 4 steps,

- the sliced Wasserstein distance of 20,000 samples to as many of the data. That of two draws of the
  data is the floor;
- the largest error of a Gaussian's share of the samples;
- the distance of a sample to the end of the teacher's path from the same noise, as a root mean
  square (which is no error of distribution matching: it is free to map noises to other data).
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ltx_jax.config import FlowConfig
from ltx_jax.diffusion.flow import add_noise, data_of, euler_step, stochastic_step
from ltx_jax.models.layers import sinusoidal_embedding
from ltx_jax.training.distillation import consistency
from ltx_jax.training.distillation import distribution_matching as matching
from ltx_jax.training.distillation.consistency import FlowPoint, Tangent
from ltx_jax.training.losses import velocity_loss
from ltx_jax.training.transformer.loss import training_times

ANGLES = np.arange(6) * np.pi / 3
MEANS = 1.5 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
SHARES = np.array([0.25, 0.2, 0.2, 0.15, 0.1, 0.1])
DEVIATION = 0.1  # of each Gaussian

STEPS = {1: (1.0,), 2: (1.0, 0.934), 4: (1.0, 0.934, 0.853, 0.609)}  # times of a student
PATH_STEPS, KEPT = 64, 4  # Euler steps of a stored path; every fourth point is stored
BATCH, WIDTH = 512, 128
SAMPLES, DIRECTIONS = 20_000, 64
FAKE_PER_STUDENT = 5

Params = dict[str, Any]
# (parameters, x (b, 1, 2), times (b, 1)) -> velocity
Network = Callable[[Any, jax.Array, jax.Array], jax.Array]


def draw_data(key: jax.Array, count: int) -> jax.Array:
    """Samples (b, 1, 2) of the mixture."""
    which, noise = jax.random.split(key)
    index = jax.random.choice(which, len(MEANS), (count,), p=jnp.asarray(SHARES))
    return jnp.asarray(MEANS)[index][:, None] + DEVIATION * jax.random.normal(noise, (count, 1, 2))


def teacher(x: jax.Array, times: jax.Array) -> jax.Array:
    """The exact velocity of the mixture."""
    t = times[..., None, None]
    variance = (1 - t) ** 2 * DEVIATION**2 + t**2
    gap = x[:, :, None] - (1 - t) * jnp.asarray(MEANS)[None, None]
    logs = jnp.log(jnp.asarray(SHARES)) - jnp.sum(gap**2, -1) / (2 * variance[..., 0])
    own = -jnp.asarray(MEANS) + (t - (1 - t) * DEVIATION**2) / variance * gap
    return jnp.sum(jax.nn.softmax(logs)[..., None] * own, axis=2)


def smooth(times: jax.Array) -> jax.Array:
    """Features of times without high frequencies."""
    angles = times[..., None] * jnp.pi * jnp.asarray([0.5, 1.0, 2.0, 4.0])
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rippled(times: jax.Array) -> jax.Array:
    """The features of the video transformer: sinusoids of 1000 t."""
    return sinusoidal_embedding(1000 * times)[..., ::8]


def make_network(features: Callable[[jax.Array], jax.Array], further: int = 0) -> tuple[Any, Any]:
    """A network of x, times and `further` inputs, which have no effect at first: functions that
    initialise and apply it."""
    size = 2 + features(jnp.zeros((1, 1))).shape[-1]

    def init(key: jax.Array) -> Params:
        sizes, keys = [size, WIDTH, WIDTH, WIDTH, 2], jax.random.split(key, 4)
        layers = [
            (jax.random.normal(k, (a, b)) * a**-0.5, jnp.zeros(b))
            for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]
        return {"layers": layers, "further": jnp.zeros((further, WIDTH))}

    def apply(params: Params, x: jax.Array, times: jax.Array, more: Any = None) -> jax.Array:
        h = jnp.concatenate([x, features(times)], axis=-1)
        for i, (kernel, bias) in enumerate(params["layers"]):
            h = h @ kernel + bias
            if i == 0 and more is not None:
                h += more @ params["further"]
            if i < 3:
                h = jax.nn.silu(h)
        return h

    return init, apply


# (parameters, key, share of the updates that are done) -> loss; it draws its batch from the key
Loss = Callable[[Params, jax.Array, jax.Array], jax.Array]


def train(loss: Loss, params: Params, updates: int) -> Params:
    """Adam with a learning rate that falls linearly."""
    tx = optax.adam(optax.linear_schedule(1e-3, 0.0, updates), b2=0.99)

    @jax.jit
    def run(params: Params) -> Params:
        def one(carry: Any, i: jax.Array) -> Any:
            params, state = carry
            key = jax.random.fold_in(jax.random.key(1), i)
            gradient = jax.grad(loss)(params, key, i / updates)
            change, state = tx.update(gradient, state)
            return (optax.apply_updates(params, change), state), None

        return jax.lax.scan(one, (params, tx.init(params)), jnp.arange(updates))[0][0]

    return run(params)


ONES = jnp.ones((BATCH, 1))


def draw_times(key: jax.Array, density: FlowConfig) -> jax.Array:
    """Times (b, 1) as in the training of the transformer."""
    return training_times(key, BATCH, density.min_tokens, density)[:, None]


def draw_point(key: jax.Array, density: FlowConfig) -> tuple[jax.Array, jax.Array]:
    """Noised data (b, 1, 2), and their times (b, 1)."""
    keys = jax.random.split(key, 3)
    times = draw_times(keys[0], density)
    noise = jax.random.normal(keys[1], (BATCH, 1, 2))
    return add_noise(draw_data(keys[2], BATCH), noise, times), times


def guided(network: Network, density: FlowConfig) -> Loss:
    """Regression on the teacher's velocity."""

    def loss(params: Params, key: jax.Array, done: jax.Array) -> jax.Array:
        x, times = draw_point(key, density)
        return velocity_loss(network(params, x, times), teacher(x, times), ONES).mean()

    return loss


class Paths(NamedTuple):
    """Points of the teacher's paths (s, b, 1, 2), the last of which is the end; their times."""

    points: jax.Array
    times: jax.Array


@functools.partial(jax.jit, static_argnums=(1, 2))
def make_paths(noise: jax.Array, steps: int = PATH_STEPS, kept: int = KEPT) -> Paths:
    """Euler steps of the teacher from noise to data."""
    times = 1 - jnp.arange(steps + 1) / steps

    def step(x: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        t, target = (jnp.broadcast_to(times[j], (len(x), 1)) for j in (i, i + 1))
        moved = euler_step(x, teacher(x, t), t, target)
        return moved, moved

    _, rest = jax.lax.scan(step, noise, jnp.arange(steps))
    return Paths(jnp.concatenate([noise[None], rest])[::kept], times[::kept])


def trajectory(network: Network, paths: Paths) -> Loss:
    """Regression on the ends of stored paths; a quarter of the points are noise."""

    def loss(params: Params, key: jax.Array, done: jax.Array) -> jax.Array:
        which, when, first = jax.random.split(key, 3)
        row = jax.random.randint(which, (BATCH,), 0, paths.points.shape[1])
        k = jax.random.randint(when, (BATCH,), 0, len(paths.times) - 1)
        k = jnp.where(jax.random.uniform(first, (BATCH,)) < 0.25, 0, k)
        x, times = paths.points[k, row], paths.times[k][:, None]
        data = data_of(x, network(params, x, times), times)
        return velocity_loss(data, paths.points[-1, row], ONES).mean()

    return loss


def warmed(done: jax.Array) -> jax.Array:
    """The share of the tangent, which grows in the first third of the updates."""
    return jnp.minimum(3 * done, 1.0)


def consistent(network: Network, tangent: Tangent, density: FlowConfig) -> Loss:
    """A consistency model: r = 0."""

    def loss(params: Params, key: jax.Array, done: jax.Array) -> jax.Array:
        x, times = draw_point(key, density)
        point = FlowPoint(x, times, times, teacher(x, times), ONES)
        return consistency.consistency_loss(network, params, point, warmed(done), tangent)[0].mean()

    return loss


def mean_flow(network: Callable[..., jax.Array], density: FlowConfig) -> Loss:
    """A map from any time to any other: a quarter to the same time, a quarter to 0."""

    def loss(params: Params, key: jax.Array, done: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)
        x, times = draw_point(keys[0], density)
        r, kind = (
            jnp.minimum(draw_times(keys[1], density), times),
            jax.random.uniform(keys[2], (BATCH, 1)),
        )
        r = jnp.where(kind < 0.25, times, jnp.where(kind < 0.5, 0.0, r))
        point = FlowPoint(x, times, times - r, teacher(x, times), ONES)
        student = lambda params, x, t: network(params, x, t, r[..., None])  # noqa: E731
        return consistency.consistency_loss(student, params, point, warmed(done), "exact")[0].mean()

    return loss


class Matching(NamedTuple):
    """A variant of distribution matching: the student's steps, whether the fake score gets their
    index, and whether all samples of a batch take the same number of steps."""

    times: tuple[float, ...]
    knows_step: bool = True
    one_step_per_batch: bool = True


def match(
    variant: Matching,
    networks: tuple[Network, Callable[..., jax.Array]],
    student: Params,
    fake: Params,
    updates: int,
) -> Params:
    """Trains a student by distribution matching, with five updates of the fake score each."""
    apply, apply_fake = networks
    times, count = jnp.asarray(variant.times), len(variant.times)
    rate = optax.linear_schedule(5e-4, 0.0, updates)
    tx = optax.adam(rate, b1=0.0, b2=0.99)
    fake_tx = optax.adam(lambda n: 2 * rate(n // FAKE_PER_STUDENT), b1=0.0, b2=0.99)

    def outputs(params: Params, key: jax.Array) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, 5)
        shape = () if variant.one_step_per_batch else (BATCH,)
        last = jnp.broadcast_to(jax.random.randint(keys[0], shape, 0, count), (BATCH,))
        start, noise = (jax.random.normal(k, (BATCH, 1, 2)) for k in keys[1:3])
        draw = lambda i: jax.random.normal(jax.random.fold_in(keys[3], i), start.shape)  # noqa: E731
        data = matching.rollout(apply, params, start, ONES, times, last, draw)
        s = matching.comparison_times(keys[4], BATCH)[:, None]
        told = jax.nn.one_hot(last, count)[:, None] * variant.knows_step
        return data, noise, add_noise(jax.lax.stop_gradient(data), noise, s), s, told

    def fake_loss(fake: Params, student: Params, key: jax.Array) -> jax.Array:
        data, noise, x, s, told = outputs(student, key)
        return matching.fake_loss(apply_fake(fake, x, s, told), data, noise, ONES).mean()

    def student_loss(student: Params, fake: Params, key: jax.Array) -> jax.Array:
        data, _, x, s, told = outputs(student, key)
        velocities = apply_fake(fake, x, s, told), teacher(x, s)
        return matching.matching_loss(data, x, s, *velocities, ONES).mean()

    @jax.jit
    def run(student: Params, fake: Params) -> Params:
        def one(carry: Any, i: jax.Array) -> Any:
            student, fake, state, fake_state = carry
            keys = jax.random.split(jax.random.fold_in(jax.random.key(2), i), 1 + FAKE_PER_STUDENT)
            for key in keys[1:]:
                change, fake_state = fake_tx.update(
                    jax.grad(fake_loss)(fake, student, key), fake_state
                )
                fake = optax.apply_updates(fake, change)
            change, state = tx.update(jax.grad(student_loss)(student, fake, keys[0]), state)
            return (optax.apply_updates(student, change), fake, state, fake_state), None

        first = student, fake, tx.init(student), fake_tx.init(fake)
        return jax.lax.scan(one, first, jnp.arange(updates))[0][0]

    return run(student, fake)


def sample(
    velocity: Callable[..., jax.Array], noise: jax.Array, times: tuple[float, ...], kind: str
) -> jax.Array:
    """Samples with noise between steps ("data"), or with Euler steps of a velocity or a map."""
    x = noise
    for i, (t, target) in enumerate(zip(times, (*times[1:], 0.0), strict=True)):
        at, after = (jnp.full((len(x), 1), s) for s in (t, target))
        if kind == "map":
            x = euler_step(x, velocity(x, at, after[..., None]), at, after)
        elif kind == "velocity":
            x = euler_step(x, velocity(x, at), at, after)
        else:
            fresh = jax.random.normal(jax.random.fold_in(jax.random.key(3), i), x.shape)
            x = stochastic_step(x, velocity(x, at), at, after, fresh)
    return x


def sliced_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The sliced Wasserstein-2 distance of two sets of points (n, 2) of equal size."""
    angles = np.arange(DIRECTIONS) * np.pi / DIRECTIONS
    lines = np.stack([np.cos(angles), np.sin(angles)])
    return float(np.sqrt(np.mean((np.sort(a @ lines, 0) - np.sort(b @ lines, 0)) ** 2)))


class Judge:
    """Compares samples with the data, and with the ends of the teacher's paths."""

    def __init__(self) -> None:
        self.noise = jax.random.normal(jax.random.key(4), (SAMPLES, 1, 2))
        keys = jax.random.split(jax.random.key(5))
        self.data, other = (np.asarray(draw_data(key, SAMPLES)[:, 0]) for key in keys)
        self.ends = np.asarray(make_paths(self.noise, 512, 512).points[-1][:, 0])
        self.floor = sliced_distance(self.data, other)

    def metrics(self, samples: jax.Array) -> dict[str, float]:
        """Of samples from `self.noise`."""
        points = np.asarray(samples)[:, 0]
        nearest = np.argmin(np.sum((points[:, None] - MEANS[None]) ** 2, -1), axis=1)
        shares = np.bincount(nearest, minlength=len(MEANS)) / SAMPLES
        return {
            "distance": sliced_distance(points, self.data),
            "share_error": float(np.abs(shares - SHARES).max()),
            "to_teacher": float(np.sqrt(np.mean(np.sum((points - self.ends) ** 2, -1)))),
        }


def measure(updates: int, density: FlowConfig) -> tuple[list[dict[str, Any]], float]:
    """The rows of the table, and the floor of the distance."""
    judge, rows = Judge(), []

    def add(name: str, velocity: Any, counts: tuple[int, ...] = (1, 2, 4), kind: str = "data"):
        draw = functools.partial(jax.jit, static_argnums=(0, 2, 3))(sample)
        row: dict[str, Any] = {"student": name}
        for count in counts:
            even = tuple(1 - np.arange(count) / count)
            times = even if kind == "velocity" else STEPS[count]
            row[str(count)] = judge.metrics(draw(velocity, judge.noise, times, kind))
        rows.append(row)
        print(_line(row), flush=True)

    add("teacher, Euler", teacher, (1, 2, 4, 8, 50), "velocity")

    (init, net), (rippled_init, rippled_net) = make_network(smooth), make_network(rippled)
    learned = train(guided(net, density), init(jax.random.key(0)), updates)
    with_ripples = train(guided(rippled_net, density), rippled_init(jax.random.key(0)), updates)
    add("velocity", functools.partial(net, learned), kind="velocity")

    paths = make_paths(jax.random.normal(jax.random.key(6), (SAMPLES, 1, 2)))
    on_paths = train(trajectory(net, paths), learned, updates)
    add("trajectory", functools.partial(net, on_paths))

    for tangent in ("exact", "semi_continuous", "difference"):
        params = train(consistent(net, tangent, density), learned, updates)
        add(f"consistency, {tangent}", functools.partial(net, params))
        params = train(consistent(rippled_net, tangent, density), with_ripples, updates)
        add(f"consistency, {tangent}, sinusoids of 1000 t", functools.partial(rippled_net, params))
    params = train(consistent(net, "semi_continuous", density), on_paths, updates)
    add("consistency, semi_continuous, from trajectory", functools.partial(net, params))

    _, map_net = make_network(smooth, 1)
    params = train(
        mean_flow(map_net, density), {**learned, "further": jnp.zeros((1, WIDTH))}, updates
    )
    add("mean flow", functools.partial(map_net, params), kind="map")

    variants = {
        "of 1 step": Matching(STEPS[1]),
        "of 4, step untold": Matching(STEPS[4], knows_step=False),
        "of 4, step untold, drawn per sample": Matching(STEPS[4], False, False),
        "of 4": Matching(STEPS[4]),
        "of 4, step drawn per sample": Matching(STEPS[4], True, False),
    }
    for name, variant in variants.items():
        count = len(variant.times)
        _, fake_net = make_network(smooth, count)
        fake = {**learned, "further": jnp.zeros((count, WIDTH))}
        params = match(variant, (net, fake_net), on_paths, fake, updates // 3)
        add(f"distribution matching, {name}", functools.partial(net, params), (count,))
    return rows, judge.floor


def _line(row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    cells = []
    for count in ("1", "2", "4", "8", "50"):
        found = row.get(count)
        cells.append(
            f"{found['distance']:.3f} / {found['share_error']:.3f} / {found['to_teacher']:.2f}"
            if found
            else ""
        )
    return f"| {row['student']} | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distill_mixture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--updates", type=int, default=3000, help="of every student")
    parser.add_argument(
        "--min_shift",
        type=float,
        default=0.0,
        help="mean of the logit-normal density of times; that of the video transformer is 0.95",
    )
    out = Path(__file__).parent / "results" / "distill_mixture"
    parser.add_argument("--out", type=Path, default=out, help="path without its ending")
    options = parser.parse_args(arguments)
    density = FlowConfig(min_shift=options.min_shift)
    rows, floor = measure(options.updates, density)
    facts = {
        "updates": options.updates,
        "min_shift": options.min_shift,
        "floor": floor,
        "jax": jax.__version__,
    }
    options.out.with_suffix(".json").write_text(
        json.dumps({"facts": facts, "rows": rows}, indent=1)
    )
    text = [
        "# Distillation of a mixture of Gaussians\n",
        "Sliced Wasserstein distance / largest error of a share / distance to the teacher's end.\n",
        "| student | 1 step | 2 steps | 4 steps | 8 steps | 50 steps |",
        "| --- | --- | --- | --- | --- | --- |",
        *map(_line, rows),
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
    ]
    options.out.with_suffix(".md").write_text("\n".join(text) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
