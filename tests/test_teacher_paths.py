"""A teacher's paths: what they are, and how they are stored."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_flow_stage import filled, shapes_of
from tiny_stages import load, one_device, tiny_vae

from ltx_jax.data import dataset, path_cache
from ltx_jax.data.path_cache import Path, PathLoader
from ltx_jax.diffusion.positions import rope_of
from ltx_jax.models.transformer import Context
from ltx_jax.training.distillation import paths as teacher_paths
from ltx_jax.training.distillation.paths import PathSampler, described, teacher_times
from ltx_jax.training.transformer.stage import TransformerStage

ONE = one_device()
FIRST_FRAMES = ("--flow.first_frame_probability", "1")
KEYFRAMES = ("--flow.first_frame_probability", "0", "--flow.keyframes_probability", "1")


def student(*overrides):
    """The tiny student, of the sizes that its teacher has in the tests of the second stage."""
    return load("distilled", "--data.batch_size", "4", *overrides)


def as_arrays(tree):
    return jax.tree.map(jnp.asarray, tree)


def sampler_of(cfg):
    """The paths of random networks."""
    stage = TransformerStage.open(cfg, ONE, vae=tiny_vae())
    params = as_arrays(filled(shapes_of(stage)))
    return PathSampler(cfg, stage, params), stage, params


def guided_states(cfg, stage, params, path):
    """The path's states by a plain loop: Euler's method, two calls of the network per step."""
    model = stage.model

    def velocity(x, times, caption):
        read = model.captions.read((caption,), None, np.zeros(1, bool), as_arrays)
        embedded, mask = model.captions.embed(params, read)
        rate = jnp.full(1, path.frame_rate)
        rope = rope_of(jnp.asarray(path.coords[None]), rate, cfg.model)
        return model.velocity(params, x, times, Context(embedded, mask, rope))

    velocity = jax.jit(velocity, static_argnums=2)
    count = path.states.shape[1]
    own = np.broadcast_to(path.own_times, (count,))[None]
    times = [*teacher_times(cfg.distillation, cfg.scheduler, 32), 0.0]
    x, states = jnp.asarray(path.states[:1].astype(np.float32)), []
    for t, r in itertools.pairwise(times):
        if any(abs(t - time) < 1e-6 for time in cfg.distillation.times):
            states.append(x[0])
        here = jnp.minimum(t, own)
        # A condition does not move until the time has fallen to its own.
        there = jnp.where(t <= own, jnp.minimum(r, own), here)
        text, empty = (velocity(x, here, caption) for caption in (path.caption, ""))
        guided = empty + cfg.distillation.guidance_scale * (text - empty)
        x = x - (here - there)[..., None] * guided
    return np.stack([*states, x[0]])


@pytest.mark.thorough
@pytest.mark.parametrize("conditions", [FIRST_FRAMES, KEYFRAMES], ids=["first frame", "keyframes"])
def test_a_path_is_the_guided_flow_of_the_teacher(conditions):
    cfg = student(*conditions, "--flow.max_condition_time", "0.9")
    sampler, stage, params = sampler_of(cfg)
    made = sampler.paths(3)
    assert len(made) == 4
    [batch] = stage._loader.batches(3, 4)
    assert tuple(path.caption for path in made) == batch.captions
    for path in made[:2]:
        assert path.states.dtype == np.float16
        assert path.states.shape[0] == 3  # at 1, at 0.5, at 0
        held = path.own_times < 1
        assert held.any()
        assert not held.all()
        # Conditions move only once the time has fallen to their own.
        later = np.concatenate([cfg.distillation.times, [0]])[:, None]
        still = held[None] & (later >= path.own_times)
        first = np.broadcast_to(path.states[:1], path.states.shape)
        np.testing.assert_array_equal(path.states[still], first[still])
        want = guided_states(cfg, stage, params, path)
        # Half precision of the states, once at the start and once when they are stored.
        np.testing.assert_allclose(path.states, want, atol=0.02, rtol=2e-3)


def test_the_teacher_stops_at_the_times_of_the_student():
    cfg = student("--distillation.times", "1.0", "0.7", "--distillation.teacher_steps", "4")
    times = teacher_times(cfg.distillation, cfg.scheduler, 32)
    np.testing.assert_allclose(times, [1.0, 0.75, 0.7, 0.5, 0.25])
    cfg = student("--distillation.times", "1.0", "0.5004", "--distillation.teacher_steps", "4")
    times = teacher_times(cfg.distillation, cfg.scheduler, 32)
    np.testing.assert_allclose(times, [1.0, 0.75, 0.5004, 0.25])  # not twice the same time


def random_paths(count, tokens=6, own=1):
    rng = np.random.default_rng(tokens)
    states = rng.standard_normal((count, 3, tokens, 4)).astype(np.float16)
    coords = rng.integers(0, 99, (count, tokens, 3), dtype=np.int32)
    return [
        Path(f"clip {i}", 24.0, states[i], np.full(own, 1 - i / 64, np.float32), coords[i])
        for i in range(count)
    ]


def half_conditions(count):
    """Paths of 32 tokens, of which every other one belongs to a condition with a little noise."""
    own = np.where(np.arange(32) % 2, 0.2, 1).astype(np.float32)
    return [dataclasses.replace(path, own_times=own) for path in random_paths(count, tokens=32)]


def write(folder, groups, cfg):
    features = path_cache.path_features(None)
    writer = dataset.DatasetWriter(
        folder, path_cache.KIND, features, path_cache.INDEX, described(cfg)
    )
    writer.write(0, [path_cache.to_row(path, 0) for group in groups for path in group])
    writer.finish(1)


def same(one, other):
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_batches_depend_on_the_step_alone_and_hold_paths_of_one_kind(tmp_path):
    cfg = student()
    groups = [random_paths(40), random_paths(24, own=6), random_paths(8, tokens=9)]
    write(tmp_path / "paths", groups, cfg)
    by_caption = [{path.caption: path for path in group} for group in groups]

    def loader(**part):
        return PathLoader(tmp_path / "paths", cfg.data.sizes, 0, 8, **part)

    whole = list(loader().batches(0, 64))
    halves = [list(loader(process_index=i, process_count=2).batches(5, 64)) for i in (0, 1)]
    used, counts = [set(), set(), set()], [0, 0, 0]
    for step, batch in enumerate(whole):
        shape = batch.states.shape[2], batch.own_times.shape[1]
        kind = [(6, 1), (6, 6), (9, 1)].index(shape)
        counts[kind] += 1
        used[kind] |= set(batch.captions)
        for i, caption in enumerate(batch.captions):
            path = by_caption[kind][caption]
            for name in ("states", "own_times", "coords"):
                np.testing.assert_array_equal(getattr(batch, name)[i], getattr(path, name))
        if step >= 5:
            first, second = halves[0][step - 5], halves[1][step - 5]
            assert first.captions + second.captions == batch.captions
    np.testing.assert_allclose(counts, [32, 24, 8], atol=2)  # in proportion to 40 - 8, 24 and 8
    held_out = {caption for batch in loader().held_out() for caption in batch.captions}
    assert len(held_out) == 8
    assert used[0] == set(by_caption[0]) - held_out
    assert used[1:] == [set(by_caption[1]), set(by_caption[2])]


def test_paths_for_another_student_are_refused(tmp_path):
    cfg = student()
    write(tmp_path, [random_paths(16)], cfg)
    loader = PathLoader(tmp_path, cfg.data.sizes, 0, 8)
    teacher_paths.check_described(cfg, loader.description)
    more = ("--run.seed", "3", "--data.batch_size", "8", "--distillation.target", "end")
    teacher_paths.check_described(student(*more), loader.description)
    for change, message in (
        (("--distillation.guidance_scale", "2"), "guidance_scale = 3.0, and this run has 2.0"),
        (("--distillation.times", "1.0", "0.4"), r"times = \[1.0, 0.5\]"),
        (("--data.num_frames", "9"), r"\(5, 16, 16\).* buckets of this run are others"),
    ):
        with pytest.raises(ValueError, match=message):
            teacher_paths.check_described(student(*change), loader.description)
    with pytest.raises(ValueError, match="16 paths of one kind, and held_out is 16"):
        PathLoader(tmp_path, cfg.data.sizes, 0, 16)
