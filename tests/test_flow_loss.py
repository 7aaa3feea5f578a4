"""What the transformer gets in training and what it has to predict."""

import dataclasses
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import compiled

from ltx_jax.config import FlowConfig
from ltx_jax.diffusion import conditioning
from ltx_jax.diffusion.conditioning import Encoded
from ltx_jax.diffusion.noise import seeded
from ltx_jax.training import losses
from ltx_jax.training.transformer import loss as flow_loss
from ltx_jax.training.transformer.conditions import ConditionItem, Conditions
from ltx_jax.training.transformer.loss import Geometry

GEOMETRY = Geometry(temporal_factor=2, spatial_factor=4, causal=True)
GRID = (4, 2, 3)  # 7 frames of 8 x 12
ROW = GRID[1] * GRID[2]  # tokens of a latent frame
COUNT = GRID[0] * ROW
FEW = COUNT - 7  # of them, where some are dropped
BATCH = 64


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def item(length, choices, batch=BATCH):
    """Images or clips at one of several frames, another for each sample."""
    frames = np.random.default_rng(1).choice(choices, batch).astype(np.int32)
    return ConditionItem(draw(batch, length, *GRID[1:], 2, seed=length), frames)


def prefix(*lengths):
    return np.resize(np.asarray(lengths, np.int32), BATCH)


PATTERNS = {
    "none": Conditions(),
    "first_frame": Conditions(prefix(1)),
    "prefix": Conditions(prefix(3, 2, 1)),
    "keyframes": Conditions(prefix(1, 0), [item(1, [1, 4, 6]), item(1, [2, 3])]),
    "clip": Conditions(prefix(1, 0), [item(2, [2, 4])]),
}
EXTRA = {"none": 0, "first_frame": 0, "prefix": 0, "keyframes": 2 * ROW, "clip": 2 * ROW}


program = compiled(flow_loss.noise_batch, static_argnums=(3, 4, 5))


def show(given=Conditions(), cfg=FlowConfig(), kept=COUNT, data=None, batch=BATCH):
    """The data of a batch, and what is made of it."""
    data = draw(batch, *GRID, 2) if data is None else data
    shown = program(data, given, jax.random.key(1), cfg, GEOMETRY, kept)
    return data, jax.tree.map(np.asarray, shown)


def data_at(data, coords):
    """The data of every token, found by its coordinates."""
    frame = -(-coords[..., 0] // GEOMETRY.temporal_factor)  # the first latent is one frame alone
    row, column = (coords[..., i] // GEOMETRY.spatial_factor for i in (1, 2))
    return data[np.arange(len(data))[:, None], frame, row, column]


def answered(shown, answer):
    """The loss of a network that answers so."""
    return float(jnp.mean(error_of(jax.tree.map(jnp.asarray, shown), jnp.asarray(answer))))


def error_of(shown, answer):
    return losses.velocity_loss(answer, shown.target, shown.weight)


@pytest.mark.thorough
@pytest.mark.parametrize("kept", [COUNT, FEW])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_exact_velocity_has_no_loss_whatever_is_said_of_conditions(pattern, kept):
    """Fixes the sign and the time convention: t = 1 is noise, velocity points towards it."""
    data, shown = show(PATTERNS[pattern], kept=kept)
    times = np.broadcast_to(shown.times, shown.weight.shape)[..., None]
    is_free = shown.weight[..., None] == 1
    exact = (shown.tokens - data_at(data, shown.coords)) / np.maximum(times, 1e-9)
    # float32 errors over the smallest time, 1e-3, squared
    assert answered(shown, np.where(is_free, exact, 1e6)) < 1e-6
    assert answered(shown, np.where(is_free, -exact, 1e6)) > 1


@pytest.mark.thorough
@pytest.mark.parametrize("pattern", PATTERNS)
def test_tokens_lie_as_the_sampler_lays_them(pattern):
    """Tokens, coordinates and mask of every pattern, of a sample whose conditions are at time 0."""
    given = PATTERNS[pattern]
    data, shown = show(given)
    clean = (shown.times.min(axis=1) == 0) & (given.prefix is None or given.prefix > 0)
    i = 0 if pattern == "none" else int(clean.argmax())
    conditions = [
        Encoded(jnp.asarray(videos[i : i + 1]), 1.0, int(frames[i]))
        for videos, frames in given.items
    ]
    if given.prefix is not None:
        conditions.append(Encoded(jnp.asarray(data[i : i + 1, : given.prefix[i]]), 1.0, 0))

    @compiled
    def lay_out(start):
        return conditioning.prepare(start, conditions, seeded(0, 1), **dataclasses.asdict(GEOMETRY))

    prepared = lay_out(jnp.zeros((1, *GRID, 2)))
    np.testing.assert_array_equal(shown.coords[i], prepared.coords)
    mask = np.asarray(prepared.strength[0]) if conditions else np.zeros(COUNT)
    np.testing.assert_array_equal(shown.weight[i], 1 - mask)
    tokens = np.asarray(prepared.tokens[0])
    np.testing.assert_array_equal(shown.tokens[i][mask == 1], tokens[mask == 1])
    times = np.broadcast_to(shown.times[i], mask.shape)
    np.testing.assert_array_equal(times, np.where(mask == 1, 0, shown.time[i]))


@pytest.mark.thorough
def test_extra_tokens_have_the_positions_of_the_frames_they_show():
    given = PATTERNS["clip"]
    _, shown = show(given)
    start = given.items[0][1]
    # A clip's own first latent is one frame, and its second begins with the frame after it.
    np.testing.assert_array_equal(shown.coords[:, 0, 0], start)
    np.testing.assert_array_equal(shown.coords[:, ROW, 0], start + 1)
    for i in (1, 2):
        np.testing.assert_array_equal(
            shown.coords[:, :ROW, i], shown.coords[:, 2 * ROW : 3 * ROW, i]
        )


@pytest.mark.parametrize("pattern", ["prefix", "keyframes", "clip"])
def test_condition_tokens_have_a_time_of_their_own(pattern):
    cfg, given = FlowConfig(), PATTERNS[pattern]
    data, shown = show(given, cfg)
    t = shown.time
    is_given = shown.weight == 0
    rows = np.flatnonzero(is_given.any(axis=1))
    own = np.array([shown.times[i][is_given[i]][0] for i in rows])
    for i, time in zip(rows, own, strict=True):
        assert (shown.times[i][is_given[i]] == time).all()
        assert (shown.times[i][~is_given[i]] == t[i]).all()
    assert (own <= np.minimum(t[rows], cfg.max_condition_time)).all()
    assert 0.25 < np.mean(own == 0) < 0.75  # up to 64 draws of a half
    assert own.max() > 0.15
    # Each is noised to its own level; at time 0 it is the data.
    videos = [
        np.broadcast_to(v.reshape(BATCH, -1, 2), (BATCH, v[0].size // 2, 2)) for v, _ in given.items
    ]
    truth = np.concatenate([*videos, data.reshape(BATCH, -1, 2)], axis=1)
    off = np.abs(shown.tokens - truth).max(axis=-1)
    for i, time in zip(rows, own, strict=True):
        assert (off[i][is_given[i]] > 0).all() == (time > 0)
        assert off[i][is_given[i]].max() < 12 * time + 1e-6  # |noise - data| of some 30 normals


def test_without_conditions_a_sample_has_one_time():
    _, shown = show(batch=256)
    assert shown.times.shape == (256, 1)
    np.testing.assert_array_equal(shown.times[:, 0], shown.time)
    assert len(np.unique(shown.time)) > 200


@pytest.mark.thorough
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_dropped_token_changes_nothing_for_the_others(pattern):
    given, kept, extra = PATTERNS[pattern], FEW, EXTRA[pattern]
    data, whole = show(given)
    _, part = show(given, kept=kept)
    n = extra + kept
    assert part.tokens.shape[1] == part.coords.shape[1] == part.weight.shape[1] == n
    for i in range(BATCH):
        at = [tuple(x) for x in whole.coords[i, extra:]]
        index = [at.index(tuple(x)) for x in part.coords[i, extra:]]
        assert index == sorted(set(index))
        index = [*range(extra), *(extra + np.array(index))]
        for name in ("tokens", "coords", "target", "weight"):
            np.testing.assert_array_equal(getattr(part, name)[i], getattr(whole, name)[i][index])
        if whole.times.shape[1] > 1:
            np.testing.assert_array_equal(part.times[i], whole.times[i][index])
    seen = {tuple(x) for x in part.coords[0, extra:]} ^ {tuple(x) for x in part.coords[1, extra:]}
    assert seen  # samples lose different ones

    # What the data are at dropped tokens is never seen.
    keeps = np.zeros((BATCH, *GRID), bool)
    frame = -(-part.coords[:, extra:, 0] // 2)
    keeps[
        np.arange(BATCH)[:, None],
        frame,
        part.coords[:, extra:, 1] // 4,
        part.coords[:, extra:, 2] // 4,
    ] = True
    _, other = show(given, kept=kept, data=np.where(keeps[..., None], data, 1e6).astype(np.float32))
    jax.tree.map(np.testing.assert_array_equal, other, part)


def test_buckets_drop_tokens_until_their_steps_are_as_large():
    keep = flow_loss.kept_tokens
    assert keep([(1000, 4), (500, 8)], 0.0) == (1000, 500)
    assert keep([(1000, 4)], 0.2) == (800,)
    # 3600 and 3300 tokens a step come down to 80 % of 4000, 2000 stay.
    assert keep([(1000, 4), (900, 4), (330, 10), (200, 10)], 0.2) == (800, 800, 320, 200)
    for count in (1, 7, 385, 12_000):
        for share in (0.0, 0.05, 0.2, 0.9):
            (kept,) = keep([(count, 3)], share)
            assert kept == count or kept % 8 == 0
            assert count * (1 - share) <= kept < count * (1 - share) + 8


def test_the_loss_is_reported_by_the_time():
    time = jnp.asarray([0.0, 0.19, 0.21, 1.0, 0.99])
    loss = jnp.asarray([1.0, 2.0, 3.0, 4.0, 6.0])
    found = {name: float(value) for name, value in flow_loss.by_time(loss, time).items()}
    assert list(found) == [f"loss_at/{t}" for t in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert [found["loss_at/0.1"], found["loss_at/0.3"], found["loss_at/0.9"]] == [1.5, 3.0, 5.0]
    assert np.isnan([found["loss_at/0.5"], found["loss_at/0.7"]]).all()  # nothing to say


@pytest.mark.thorough
def test_an_empty_bin_of_the_time_leaves_the_gradient_finite():
    shown = jax.tree.map(jnp.asarray, show(batch=4)[1])

    def loss(answer):
        per_sample = error_of(shown, answer)
        return jnp.mean(per_sample), flow_loss.by_time(per_sample, shown.time)

    gradient = compiled(jax.grad(loss, has_aux=True))
    assert np.isfinite(gradient(jnp.zeros(shown.target.shape))[0]).all()


@pytest.mark.parametrize(("tokens", "mean"), [(1024, 0.95), (4096, 2.05), (30_000, 2.05)])
def test_times_are_logit_normal_between_their_percentiles(tokens, mean):
    cfg = FlowConfig(uniform_fraction=0.0)
    count = 100_000
    program = compiled(flow_loss.training_times, static_argnums=(1, 2, 3))
    t = np.asarray(program(jax.random.key(0), count, tokens, cfg), np.float64)
    assert t.min() == pytest.approx(cfg.min_time)
    assert t.max() == 1
    # The clipped mass lies on the ends: 0.5 % and 0.1 %, within four deviations.
    assert abs(np.mean(t <= cfg.min_time * 1.0001) - 0.005) < 4 * (0.005 / count) ** 0.5
    assert abs(np.mean(t == 1) - 0.001) < 4 * (0.001 / count) ** 0.5
    normal = NormalDist(mean)

    def expected(share):
        low, high, at = (1 / (1 + np.exp(-normal.inv_cdf(p))) for p in (0.005, 0.999, share))
        return (at - low) / (high - low) * (1 - cfg.min_time) + cfg.min_time

    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert abs(np.quantile(t, share) - expected(share)) < 0.01  # 100,000 draws


def test_a_part_of_the_times_is_uniform():
    program = compiled(flow_loss.training_times, static_argnums=(1, 2, 3))
    t = program(jax.random.key(0), 100_000, 4096, FlowConfig(uniform_fraction=1.0))
    np.testing.assert_allclose(np.quantile(t, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)
