"""Consistency models and distribution matching as methods of distillation."""

import contextlib
import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK
from test_flow_stage import filled
from test_teacher_paths import as_arrays, half_conditions, student, write
from test_train_command import check_equal
from tiny_stages import (
    QUICK_MESH,
    assert_eight_devices_train_as_one,
    descending,
    load,
    one_device,
    tiny_vae,
)

from ltx_jax.checkpoints import keys, runs
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import DistillationConfig, OptimConfig
from ltx_jax.diffusion.denoiser import Plain
from ltx_jax.diffusion.flow import add_noise
from ltx_jax.models.transformer import Skip
from ltx_jax.runtime import sharding
from ltx_jax.training.distillation import fake_score, teacher_losses
from ltx_jax.training.distillation.stage import DistillationStage
from ltx_jax.training.state import from_stored, to_stored
from ltx_jax.training.step import Trainer
from ltx_jax.training.transformer.sources import trained_captions

END = ("--distillation.target", "end", "--distillation.method")
METHODS = {
    "consistency": (*END, "consistency", "--distillation.tangent_warmup", "1"),
    "matching": (*END, "matching", "--distillation.fake_updates", "2"),
}


def teacher_of(cfg):
    """Random networks as a checkpoint."""

    def init(key):
        return {"transformer": Plain(cfg.model).init(key), **trained_captions(cfg).init(key)}

    params = filled(sharding.unbox(jax.eval_shape(init, jax.random.key(0))))
    text = cfg.text_encoder, params["text_encoder"], cfg.max_caption_tokens
    return Checkpoint(
        transformer=cfg.model, transformer_params=params["transformer"], text_encoder=text
    )


def opened(folder, method, *overrides, mesh=None):
    """A stage with 24 paths."""
    paths = ("--distillation.paths", str(folder))
    cfg = student(*METHODS[method], *paths, *overrides)
    if not any(folder.iterdir()):
        write(folder, [half_conditions(24)], cfg)
    mesh = mesh or one_device()
    return DistillationStage.open(cfg, mesh, vae=tiny_vae(), teacher=teacher_of(cfg))


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS)
def test_eight_devices_train_as_one(tmp_path, method):
    """With condition tokens at times of their own; four heads, which four devices can split."""
    heads = ("--model.num_attention_heads", "4", "--data.batch_size", "8")

    def open_stage(mesh):
        return opened(tmp_path, method, *heads, mesh=mesh)

    metrics = assert_eight_devices_train_as_one(open_stage, QUICK_MESH)
    assert metrics["conditioned"] == 0.5


def equal(tree, other):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, method):
    """Of four steps, the student takes part in the second and the last one in matching."""
    (tmp_path / "paths").mkdir()
    stage = opened(tmp_path / "paths", method, "--run.output", str(tmp_path / "run"))
    trainer = Trainer(stage, compiler_options=QUICK)

    def after(state, last):
        for batch in stage.batches(int(state.step), last):
            state, _ = trainer.step(state, batch)
        return state

    whole = jax.device_get(after(trainer.plan.make(), 4))
    with contextlib.closing(runs.Run(stage.cfg)) as run:
        run.begin(stage.vae)
        run.save(3, to_stored(after(trainer.plan.make(), 3)), None)
    with contextlib.closing(runs.Run(stage.cfg)) as run:
        state = from_stored(run.restore(to_stored(trainer.plan.shapes)))
    assert int(state.step) == 3
    check_equal(jax.device_get(after(state, 4)), whole)
    assert whole.opt_state.keys() == ({"main", "fake"} if method == "matching" else {"main"})


@pytest.mark.thorough
def test_the_student_rests_while_the_fake_score_learns(tmp_path):
    trainer = descending(opened(tmp_path, "matching"))
    state, states, metrics = trainer.plan.make(), [], []
    for batch in trainer.stage.batches(0, 2):
        states.append(jax.device_get(state))
        state, values = trainer.step(state, batch)
        metrics.append(jax.device_get(values))
    states.append(jax.device_get(state))
    student = [(x.params["transformer"], x.ema, x.opt_state["main"]) for x in states]
    fake = [(x.params["fake"], x.opt_state["fake"]) for x in states]
    assert equal(student[0], student[1])
    assert not equal(student[1], student[2])
    assert not equal(fake[0], fake[1])
    assert not equal(fake[1], fake[2])
    assert np.isnan(metrics[0]["matching"])
    assert metrics[1]["matching"] > 0
    # The steps in between are cheaper, and are counted so.
    [batch] = trainer.stage.batches(0, 1)
    assert trainer.work(batch, 1).flop < 0.7 * trainer.work(batch, 2).flop


def test_a_fake_score_starts_as_the_teacher_and_has_a_bias_per_step():
    boxed = keys.transformer_boxed(load("transformer").model)
    params = filled(sharding.unbox(boxed))
    fake = fake_score.with_steps(params, 3)
    for step in range(3):
        check_equal(fake_score.at_step(fake, jnp.asarray(step)), params)
    bias = fake["adaln_single"]["timestep_embedder"]["linear_2"]["bias"]
    assert bias.shape[0] == 3
    init = Plain(load("transformer").model).init
    boxed = jax.eval_shape(lambda key: fake_score.with_steps(init(key), 3), jax.random.key(0))
    layout = sharding.shardings(boxed, one_device())
    assert jax.tree.structure(layout) == jax.tree.structure(fake)


def test_a_run_begins_with_the_student_it_names_and_the_teacher_as_fake_score(tmp_path):
    stage = opened(tmp_path, "matching")
    named = teacher_of(stage.cfg)
    doubled = jax.tree.map(lambda x: 2 * x, named.transformer_params)
    params = stage.initial_weights(dataclasses.replace(named, transformer_params=doubled)).params
    check_equal(params["transformer"], doubled)
    check_equal(fake_score.at_step(params["fake"], jnp.asarray(1)), named.transformer_params)
    wanted = sharding.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, wanted)


@pytest.mark.thorough
def test_the_teacher_is_guided_as_in_sampling(tmp_path):
    """By the negative caption, and by the caption with a block skipped."""
    options = ("--distillation.guidance_scale", "2.5", "--distillation.rescaling_scale", "1")
    options += ("--distillation.stg_scale", "0.5", "--distillation.skip_block_list", "0")
    stage = opened(tmp_path, "consistency", *options)
    [batch] = stage.batches(0, 1)
    params = as_arrays(stage.frozen["teacher"])
    x = jnp.asarray(batch["states"][:, 0], jnp.float32)
    times = jnp.minimum(0.6, batch["own_times"])
    model, layers = stage.model, stage.cfg.model.num_layers

    def velocity(captions, skip=None):
        context = model.context(params, {**batch, "captions": captions}, batch["coords"])
        return model.denoiser(params["transformer"], x, times, context, skip)[0]

    @jax.jit
    def both():
        rows = stage._teacher.contexts(params, batch).rows
        text, empty = velocity(batch["captions"]), velocity(batch["empty"])
        skip = Skip("attention_values", jnp.ones((layers, len(x))).at[0].set(0))
        perturbed = velocity(batch["captions"], skip)
        by_hand = empty + 2.5 * (text - empty) + 0.5 * (text - perturbed)
        return stage._teacher.velocity(params, rows, x, times), by_hand, text

    guided, by_hand, text = both()
    np.testing.assert_allclose(guided, by_hand, atol=1e-4)
    assert np.abs(guided - text).max() > 0.01


def test_noised_tokens_of_conditions_are_at_most_at_their_own_time():
    """Free tokens get new noise; a condition follows the straight line from its noised state."""
    rng = np.random.default_rng(0)
    states = rng.standard_normal((2, 3, 3, 4)).astype(np.float16)
    states[:, -1, 2] = states[:, 0, 2]  # a condition without noise
    own = np.array([[1, 0.2, 0], [1, 0.2, 0]], np.float32)
    ends = teacher_losses._Ends.of({"states": states, "own_times": own})
    np.testing.assert_array_equal(ends.free, [[1, 0, 0]] * 2)
    data, noise = (jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32) for _ in range(2))
    x, times = ends.noised(data, noise, jnp.asarray([0.6, 0.05]))
    np.testing.assert_allclose(times, [[0.6, 0.2, 0], [0.05, 0.05, 0]], atol=1e-7)
    first, last = (states[:, i].astype(np.float32) for i in (0, -1))
    np.testing.assert_allclose(x[:, 0], add_noise(data, noise, jnp.asarray([0.6, 0.05]))[:, 0])
    np.testing.assert_allclose(x[0, 1], first[0, 1], atol=1e-6)
    np.testing.assert_allclose(x[1, 1], 0.75 * last[1, 1] + 0.25 * first[1, 1], atol=1e-6)
    np.testing.assert_allclose(x[:, 2], first[:, 2], atol=1e-6)


def test_fused_attention_gives_way_to_the_tangent_with_a_notice(tmp_path, caplog):
    fused = ("--execution.attention", "cudnn")
    with caplog.at_level(logging.WARNING):
        stage = opened(tmp_path, "consistency", *fused)
    assert "'plain' instead of 'cudnn'" in caplog.text
    assert stage._forward_mode.denoiser.execution.attention == "plain"
    assert stage.model.denoiser.execution.attention == "cudnn"  # the teacher keeps it
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        stage = opened(tmp_path, "consistency", *fused, "--distillation.tangent", "difference")
        opened(tmp_path, "consistency")
        opened(tmp_path, "matching", *fused)
    assert "plain" not in caplog.text
    assert stage._forward_mode.denoiser.execution.attention == "cudnn"


def test_the_teacher_must_be_that_of_the_paths(tmp_path):
    stage = opened(tmp_path, "consistency")
    stage._paths.description["teacher_hash"] = "of another"
    with pytest.raises(ValueError, match="other weights than the teacher of the paths"):
        DistillationStage.open(
            stage.cfg, stage.mesh, loader=stage._paths, vae=tiny_vae(), teacher=Checkpoint()
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "matching", "target": "next"}, 'distillation.target to "end"'),
        ({"tangent": "exact"}, "tangent has no effect"),
        ({"fake_updates": 3}, "fake_updates has no effect"),
        ({"method": "matching", "fake_updates": 0}, "must be positive"),
        ({"method": "consistency", "tangent_warmup": -1}, "must not be negative"),
    ],
)
def test_settings_of_another_method_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DistillationConfig(**{"teacher": "a", "paths": "b", "target": "end", **fields})


@pytest.mark.parametrize(
    ("method", "optimiser", "message"),
    [
        ("consistency", OptimConfig(peak_lr=1.0), "fake_optim has no effect"),
        ("matching", OptimConfig(accumulate=2), "fake_optim.accumulate"),
    ],
)
def test_settings_of_an_optimiser_that_does_nothing_are_refused(method, optimiser, message):
    cfg = student(*METHODS[method])
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(cfg, fake_optim=optimiser)
