"""The update: optimisers, micro-batches, what is frozen, rejected steps, the average."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ltx_jax import config
from ltx_jax.config import MeshConfig, OptimConfig
from ltx_jax.models.vae import VideoVAE
from ltx_jax.runtime import sharding
from ltx_jax.training import batches, optim, state, step
from ltx_jax.training.optim import MAIN, Optimizer
from ltx_jax.training.stage import LossValue, Stage

TINY = str(pathlib.Path(__file__).parents[1] / "configs/shapes_tiny_vae.py")


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def one_device():
    return sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])


def quadratic(cfg, mesh):
    """A state with one matrix and one bias, and a step on given gradients."""
    optimizers = {MAIN: Optimizer.of(cfg, 100)}
    planned = state.plan_state(
        lambda key: {"a": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}},
        optimizers,
        mesh,
        0,
        {"mean": jnp.zeros(2)},
    )

    @jax.jit
    def take_step(current, grads, finite):
        new = step.advance(current, grads, optimizers, {"mean": jnp.ones(2)})
        return step.keep_if_finite(current, new, finite)

    return planned, take_step


class Regression(Stage):
    """Least squares, with weights that nothing trains."""

    frozen = {"weight": np.asarray([1.0, 2.0], np.float32)}  # noqa: RUF012

    def init(self, key):
        return {"a": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}, "b": {"bias": jnp.ones(2)}}

    def first_statistics(self):
        return {"mean": jnp.zeros(())}

    def loss(self, params, current, batch, frozen, key):
        error = batch["x"] @ params["a"]["kernel"] + params["a"]["bias"][None] - batch["y"]
        error = error * frozen["weight"][None] + params["b"]["bias"][None]
        few = jnp.where(batch["x"][0, 0] > 0, jnp.sum(error), jnp.nan)
        metrics = {"error": jnp.mean(jnp.abs(error)), "sometimes": few}
        return LossValue(jnp.mean(error**2), metrics, {"mean": jnp.mean(batch["x"])})

    open = describe = abstract_batch = batches = tokens = validate = None


def regression(cfg, mesh):
    """A trainer of least squares, and a batch."""
    whole = config.load(TINY, ["--data.batch_size", "16", "--run.steps", "100"])
    trainer = step.Trainer(Regression(dataclasses.replace(whole, optim=cfg), mesh))
    return trainer, batches.split_over(mesh, {"x": draw(16, 4), "y": draw(16, 2)})


def advanced(cfg, mesh):
    trainer, batch = regression(cfg, mesh)
    with sharding.use_mesh(mesh):
        return jax.device_get(trainer.step(trainer.plan.make(), batch))


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [{"data": 1}, {"data": 2, "fsdp": 2}])
def test_micro_batches_change_nothing_but_the_rounding(shape):
    size = int(np.prod(list(shape.values())))
    mesh = sharding.make_mesh(MeshConfig(**shape), jax.devices()[:size])
    cfg = OptimConfig(peak_lr=0.1, warmup_steps=0)
    whole, metrics = advanced(cfg, mesh)
    parts, others = advanced(dataclasses.replace(cfg, accumulate=4), mesh)
    # Sums of 16 float32 terms in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts, whole)
    for name in ("loss", "error", "grad_norm"):
        np.testing.assert_allclose(others[name], metrics[name], rtol=1e-5)


def test_a_metric_is_averaged_over_the_micro_batches_that_have_it():
    cfg = OptimConfig(peak_lr=0.1, warmup_steps=0, accumulate=4)
    _, metrics = advanced(cfg, one_device())
    x, y = draw(16, 4), draw(16, 2)
    error = (x @ np.ones((4, 2), np.float32) - y) * np.asarray([1, 2]) + 1
    sums = [error[i::4].sum() for i in range(4) if x[i, 0] > 0]
    assert 0 < len(sums) < 4
    np.testing.assert_allclose(metrics["sometimes"], np.mean(sums), rtol=1e-5)


def test_gradients_of_narrow_parameters_are_summed_in_float32():
    """In bfloat16 a sum of ones stops growing at 256."""
    mesh, count = one_device(), 1024
    params = {"kernel": jnp.ones(2, jnp.bfloat16)}

    def loss(params, current, batch, frozen, key):
        return LossValue(jnp.mean(batch @ params["kernel"].astype(jnp.float32)[:, None]))

    layout = jax.tree.map(lambda x: x.sharding, params)
    optimizers = {MAIN: Optimizer.of(OptimConfig(), 1)}
    batch = jnp.full((count, 2), 1.0)
    first = state.TrainState(0, 0, 0, params, params, opt_state={}, statistics={})
    with sharding.use_mesh(mesh):
        _, grads = jax.jit(
            lambda batch: step.gradients(
                *(loss, optimizers, params, first, batch, {}, jax.random.key(0)),
                micro_batches=count,
                layout=layout,
            )
        )(batch)
    assert grads["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(grads["kernel"].astype(np.float32), 1.0)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_what_is_frozen_stays_and_takes_no_memory(name):
    cfg = OptimConfig(name=name, peak_lr=0.1, warmup_steps=0, weight_decay=0.5, freeze=("a/ker",))
    mesh = one_device()
    trainer, batch = regression(cfg, mesh)
    planned = trainer.plan
    before = jax.device_get(planned.make())
    with sharding.use_mesh(mesh):
        after, metrics = jax.device_get(trainer.step(planned.make(), batch))
    np.testing.assert_array_equal(after.params["a"]["kernel"], before.params["a"]["kernel"])
    np.testing.assert_array_equal(after.ema["a"]["kernel"], before.params["a"]["kernel"])
    for part in ("a", "b"):
        assert (after.params[part]["bias"] != before.params[part]["bias"]).all()
    assert (4, 2) not in [x.shape for x in jax.tree.leaves(planned.shapes.opt_state)]
    # Clipping, too, goes by what is trained.
    free, others = advanced(dataclasses.replace(cfg, freeze=()), mesh)
    assert metrics["grad_norm"] < others["grad_norm"]
    assert (4, 2) in [x.shape for x in jax.tree.leaves(free.opt_state)]


@pytest.mark.parametrize(
    ("pattern", "message"), [("blocsk", "'blocsk' matches no parameter"), ("(", "is not a regular")]
)
def test_a_pattern_that_freezes_nothing_is_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        regression(OptimConfig(freeze=(pattern,)), one_device())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_first_moment_has_the_dtype_that_is_asked_for(name):
    cfg = OptimConfig(name=name, moment_dtype="bfloat16")
    planned = regression(cfg, one_device())[0].plan
    kinds = {
        jax.tree_util.keystr(path): x.dtype.name
        for path, x in jax.tree.leaves_with_path(planned.shapes.opt_state)
    }
    assert {kind for path, kind in kinds.items() if ".mu" in path} == {"bfloat16"}
    assert {kind for path, kind in kinds.items() if ".nu" in path} == {"float32"}


def test_a_batch_is_divided_over_devices_and_micro_batches():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    batches.check_batch_size(8, mesh, 2)
    with pytest.raises(ValueError, match=r"4 devices .* times the 2 micro-batches .* take 16"):
        batches.check_batch_size(12, mesh, 2)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_that_is_not_finite_leaves_everything_but_the_counts(name):
    mesh = one_device()
    trainer, batch = regression(OptimConfig(name=name, peak_lr=0.1, warmup_steps=0), mesh)
    broken = {**batch, "y": batch["y"].at[3, 1].set(jnp.nan)}
    huge = {**batch, "y": batch["y"].at[3, 1].set(1e30)}  # the loss overflows
    with sharding.use_mesh(mesh):
        before = jax.device_get(trainer.step(trainer.plan.make(), batch)[0])
        assert (int(before.step), int(before.updates), int(before.rejected)) == (1, 1, 0)
        current = jax.tree.map(jnp.copy, before)
        for n, bad in enumerate((broken, huge), 1):
            current, metrics = trainer.step(current, bad)
            assert not np.isfinite(metrics["loss"])
            assert (int(metrics["rejected"]), int(metrics["rejected_in_a_row"])) == (n, n)
        held = jax.device_get(current)
        assert int(held.step) == 3
        same = dataclasses.replace(held, step=before.step, rejected=before.rejected)
        jax.tree.map(np.testing.assert_array_equal, same, before)
        after, metrics = trainer.step(current, batch)
    assert (int(metrics["rejected"]), int(metrics["rejected_in_a_row"])) == (2, 0)
    assert int(after.updates) == 2
    assert (np.asarray(after.params["a"]["kernel"]) != before.params["a"]["kernel"]).all()


def test_the_average_warms_up_as_the_formula_says():
    planned, take_step = quadratic(
        OptimConfig(ema_decay=0.3, peak_lr=0.1, warmup_steps=0), one_device()
    )
    current = planned.make()
    expected = np.ones((4, 4))
    for n in range(4):
        grads = {"a": {"kernel": jnp.asarray(draw(4, 4, seed=n)), "bias": jnp.ones(4)}}
        current = take_step(current, grads, jnp.bool_(True))
        decay = min(0.3, (1 + n) / (10 + n))  # 0.1, 0.18, 0.25, then 0.3
        expected = decay * expected + (1 - decay) * np.asarray(current.params["a"]["kernel"])
        np.testing.assert_allclose(current.ema["a"]["kernel"], expected, rtol=1e-6)


def test_muon_orthogonalises_kernels_and_leaves_the_rest_to_adamw():
    cfg = OptimConfig(
        name="muon", peak_lr=1.0, warmup_steps=0, weight_decay=0.0, clip_norm=1e9, b1=0.9
    )
    tx = optim.make_optimizer(cfg, 10)
    params = {
        "conv": {"kernel": draw(3, 3, 3, 2, 256), "bias": draw(256)},
        "blocks": {"to_q": {"kernel": draw(2, 8, 8), "bias": draw(2, 8)}},
        "scale_shift_table": draw(6, 8),
    }
    params = jax.tree.map(jnp.asarray, params)
    grads = jax.tree.map(lambda x: x * 1e-3, params)
    updates, _ = jax.jit(lambda g: tx.update(g, tx.init(params), params))(grads)
    kernels = [
        *np.asarray(updates["blocks"]["to_q"]["kernel"]),
        *np.split(np.asarray(updates["conv"]["kernel"]).reshape(54, 256), 2, axis=1),
    ]
    for kernel in kernels:
        singular = np.linalg.svd(kernel / (0.2 * max(kernel.shape) ** 0.5), compute_uv=False)
        assert singular.min() > 0.4  # five Newton-Schulz steps bring them near 1, no nearer
        assert singular.max() < 1.4
    # The first step of Adam is the sign of the gradient, times what Nesterov's look ahead adds.
    ahead = 1 + 0.9 * (1 - 0.9) / (1 - 0.9**2)
    table = updates["scale_shift_table"]
    np.testing.assert_allclose(table, -ahead * np.sign(grads["scale_shift_table"]), rtol=1e-2)
    bias = updates["blocks"]["to_q"]["bias"]
    np.testing.assert_allclose(bias, -ahead * np.sign(grads["blocks"]["to_q"]["bias"]), rtol=1e-2)


def test_weight_decay_acts_on_kernels_alone():
    params = {"blocks": {"ff": {"kernel": jnp.ones((2, 4, 4)), "bias": jnp.ones((2, 4))}}}
    zero = jax.tree.map(jnp.zeros_like, params)
    for name in ("adamw", "muon"):
        cfg = OptimConfig(name=name, peak_lr=0.1, warmup_steps=0, weight_decay=0.5)
        tx = optim.make_optimizer(cfg, 10)
        updates, _ = jax.jit(lambda g, tx=tx: tx.update(g, tx.init(params), params))(zero)
        np.testing.assert_allclose(updates["blocks"]["ff"]["kernel"], -0.05, rtol=1e-5)
        assert (np.asarray(updates["blocks"]["ff"]["bias"]) == 0).all()


def test_the_learning_rate_warms_up_and_decays():
    linear = optim.make_schedule(
        OptimConfig(peak_lr=1.0, warmup_steps=10, decay="linear", decay_fraction=0.4), 100
    )
    found = [float(linear(step)) for step in (0, 5, 10, 60, 80, 100)]
    np.testing.assert_allclose(found, [1 / 11, 6 / 11, 1, 1, 0.5, 0], atol=1e-6)
    cosine = optim.make_schedule(OptimConfig(peak_lr=1.0, warmup_steps=0, decay="cosine"), 100)
    np.testing.assert_allclose([float(cosine(s)) for s in (0, 50, 100)], [1, 0.5, 0], atol=1e-6)
    constant = optim.make_schedule(OptimConfig(peak_lr=1.0, warmup_steps=3), 100)
    assert [float(constant(s)) for s in (3, 99)] == [1, 1]


def test_the_optimiser_lies_as_the_parameters_do():
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8))
    cfg = config.load(TINY, ["--model.decoder-base-channels", "64"])
    frames = jnp.zeros((1, 5, 16, 16, 3))
    optimizers = {MAIN: Optimizer.of(cfg.optim, 10)}
    planned = state.plan_state(
        lambda key: VideoVAE(cfg.model).init(key, frames)["params"], optimizers, mesh, 0
    )
    split = {
        jax.tree_util.keystr(path)
        for path, x in jax.tree.leaves_with_path(planned.shapes.params)
        if not x.sharding.is_fully_replicated
    }
    assert len(split) > 10
    seen, grouped = set(), 0
    for path, x in jax.tree.leaves_with_path(planned.shapes.opt_state):
        name = next((name for name in split if jax.tree_util.keystr(path).endswith(name)), None)
        if name is not None:
            assert not x.sharding.is_fully_replicated, jax.tree_util.keystr(path)
            seen.add(name)
            grouped += x.ndim == 6
    assert seen == split
    assert grouped  # the widest kernel, whose columns Muon takes in groups


def test_an_optimiser_may_take_part_in_every_third_update_alone():
    """Its parameters, state and average are those of a run with a third of the updates."""
    gradient = {"slow": jnp.ones(2), "quick": jnp.ones(2)}

    def run(count, every):
        optimizers = {
            MAIN: Optimizer(optax.adam(0.1), ema_decay=0.9, every=every),
            "quick": Optimizer(optax.adam(0.1)),
        }
        start = state.plan_state(
            lambda key: {"slow": jnp.zeros(2), "quick": jnp.zeros(2)}, optimizers, one_device(), 0
        )
        current = start.make()
        advance = jax.jit(lambda old: step.advance(old, gradient, optimizers, {}))
        history = []
        for _ in range(count + 1):
            slow = current.params["slow"], current.ema, current.opt_state[MAIN]
            history.append(jax.device_get((slow, current.params["quick"])))
            current = dataclasses.replace(advance(current), updates=current.updates + 1)
        return history

    always = [slow for slow, _ in run(2, 1)]
    thirds = run(7, 3)
    for count, (slow, quick) in enumerate(thirds):
        jax.tree.map(np.testing.assert_array_equal, slow, always[count // 3])
        np.testing.assert_allclose(quick, -0.1 * count, rtol=1e-5)
    assert (always[1][0] < always[0][0]).all()
