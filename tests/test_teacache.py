"""Steps that reuse what the layers added, against TeaCache written out in numpy."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from quick import compiled
from test_transformer_fast import CFG, NETWORK, draw, inputs, params, prepared  # noqa: F401

from ltx_jax.models import teacache
from ltx_jax.models.transformer_fast_parameters import derive

# As published for LTX-Video, highest power first.
POLYNOMIAL = np.poly1d(
    [2.14700694e01, -1.28016453e01, 2.31279151e00, 7.92487521e-01, 9.69274326e-03]
)


@pytest.fixture(scope="module")
def derived(params):  # noqa: F811
    return compiled(derive, static_argnames="cfg")(params, cfg=CFG)


@pytest.fixture(scope="module")
def run(derived):
    """Velocities of steps that all start from given tokens, and how often the layers ran."""
    context = prepared(derived, inputs())[2]
    step = compiled(
        lambda x, t, *rest: teacache.velocity(NETWORK, derived, x, t, context, None, *rest)
    )

    def steps(latents, times, threshold, last=-1):
        cache, out = teacache.empty(NETWORK, *latents[0].shape[:2]), []
        for i, (x, t) in enumerate(zip(latents, times, strict=True)):
            call = (x, jnp.full((2, 1), t), cache)
            v, cache = step(*call, jnp.asarray(threshold), jnp.asarray(i == last))
            out.append((np.asarray(v), cache))
        return out

    return steps


@pytest.fixture(scope="module")
def path():
    """Ten short steps, as random weights turn small changes into large ones, and their times."""
    a, b = draw(2, 60, 8, seed=5), draw(2, 60, 8, seed=6)
    times = np.linspace(1, 0.995, 10, dtype=np.float32)
    return [t * a + (1 - t) * b for t in times], times


@pytest.fixture(scope="module")
def exact(derived):
    context = prepared(derived, inputs())[2]
    return compiled(lambda x, t: NETWORK(derived, x, jnp.full((2, 1), t), context))


@pytest.mark.thorough
def test_a_threshold_of_zero_computes_every_step(exact, run, path):
    for (got, _), x, t in zip(run(*path, 0.0), *path, strict=True):
        np.testing.assert_allclose(got, exact(x, t), rtol=0, atol=1e-5)


@pytest.mark.thorough
def test_steps_are_left_out_as_published(derived, exact, run, path):
    """The oracle adds up the published polynomial of relative L1 changes, and starts again."""
    (latents, times), context = path, prepared(derived, inputs())[2]
    threshold, total, before, computed = 0.15, 0.0, None, []
    for x, t in zip(latents, times, strict=True):
        h, embedded = NETWORK.embed(derived, x, jnp.full((2, 1), t), context)
        seen = np.asarray(NETWORK.first_input(derived, h, embedded), np.float64)
        if before is not None:
            change = np.abs(seen - before).mean((1, 2)) / np.abs(before).mean((1, 2))
            total += max(POLYNOMIAL(change))
        due = before is None or total >= threshold
        total, before = (0.0 if due else total), seen
        computed.append(due)
    assert 3 <= sum(computed) <= 5, computed  # or nothing is shown
    made = run(latents, times, threshold)
    updates = [np.asarray(kept.update) for _, kept in made]
    fresh = [True] + [not np.array_equal(a, b) for a, b in itertools.pairwise(updates)]
    assert fresh == computed
    for (got, kept), x, t, due in zip(made, latents, times, computed, strict=True):
        if due:
            want = exact(x, t)
        else:
            h, embedded = NETWORK.embed(derived, x, jnp.full((2, 1), t), context)
            want = NETWORK.project(derived, h + kept.update, embedded)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.thorough
def test_the_last_step_is_computed_whatever_the_threshold(exact, run, path):
    (latents, times), end = path, len(path[1]) - 1
    got = run(latents, times, 1e9, last=end)[end][0]
    np.testing.assert_allclose(got, exact(latents[end], times[end]), rtol=0, atol=1e-5)
    reused = run(latents, times, 1e9)[end][0]
    assert np.abs(reused - got).max() > 1e-3


@pytest.mark.thorough
def test_one_sample_that_changes_makes_all_compute(run, path):
    """Else what one prompt gets would be left to the mean of its batch."""
    latents, times = path
    busy = [jnp.stack([x[0], draw(60, 8, seed=i)]) for i, x in enumerate(latents)]

    def computed(latents):
        updates = [np.asarray(kept.update) for _, kept in run(latents, times, 0.15)]
        return sum(not np.array_equal(a, b) for a, b in itertools.pairwise(updates))

    assert computed(latents) < computed(busy) == 9


@pytest.mark.thorough
def test_tokens_of_references_do_not_count(derived):
    """Else each of these, which never change, would make every change look smaller."""
    context, references = prepared(derived, inputs())[2], 20
    still = draw(2, references, 8, seed=5)
    first, second = (
        jnp.concatenate([still, draw(2, 60 - references, 8, seed=seed)], axis=1) for seed in (6, 7)
    )
    times = jnp.where(jnp.arange(60) < references, 0.0, 0.9)[None].repeat(2, 0)

    @compiled
    def inner(x):
        return NETWORK.first_input(derived, *NETWORK.embed(derived, x, times, context))

    @compiled
    def step(x, cache):
        limit, last = jnp.asarray(1e9), jnp.asarray(False)
        arguments = (derived, x, times, context, None, cache, limit, last)
        return teacache.velocity(NETWORK, *arguments, references=references)[1]

    cache = step(first, teacache.empty(NETWORK, 2, 60))
    before, after = (np.asarray(inner(x), np.float64)[:, references:] for x in (first, second))
    change = np.abs(after - before).mean((1, 2)) / np.abs(before).mean((1, 2))
    got = float(step(second, cache).change)
    assert got == pytest.approx(max(POLYNOMIAL(change)), rel=1e-4)
