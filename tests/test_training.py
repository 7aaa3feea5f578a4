"""Steps, losses and times of both stages. Whole runs are in test_train.py."""

import dataclasses
import pathlib
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ltx_jax import config, sharding
from ltx_jax.checkpoints import runs
from ltx_jax.checkpoints.contents import Checkpoint
from ltx_jax.config import FlowConfig, MeshConfig, OptimConfig, VAELossConfig
from ltx_jax.data import folder, shapes, video
from ltx_jax.data.loader import Loader
from ltx_jax.models.vae import LatentStatistics, Posterior, VideoVAE
from ltx_jax.text import ByteTokenizer, tokenize
from ltx_jax.training import optim, state, transformer, vae

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
ONE = MeshConfig(data=1)
# The bit generators of random draws cost seconds at a higher level.
QUICK = {"xla_backend_optimization_level": 0}


def load(name, *overrides):
    return config.load(str(CONFIGS / f"shapes_tiny_{name}.py"), overrides)


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def one_device():
    return sharding.make_mesh(ONE, jax.devices()[:1])


def text(batch):
    ids = jnp.ones((batch, 3), jnp.int32)
    empty = {"empty_ids": jnp.zeros(3, jnp.int32), "empty_mask": jnp.ones(3, jnp.int32)}
    return {"ids": ids, "mask": ids, **empty}


def observe(cfg, *, batch=256, given=(), answer=None):
    """Runs the flow loss once; what the network saw, the data, and the loss per call."""
    data = jnp.asarray(draw(batch, 6, 2))
    condition = jnp.isin(jnp.arange(6), jnp.asarray(given, int))

    def run(data, key):
        seen = {}

        def velocity(params, x, times, ids, mask, rope):
            seen.update(x=x, times=times, ids=ids)
            exact = (x - data) / jnp.maximum(times, 1e-9)[..., None]
            return exact if answer is None else answer(exact, condition[None, :, None])

        loss, _ = transformer.flow_loss(
            velocity, None, data, condition, text(batch), None, key, cfg
        )
        return loss, seen

    loss, seen = jax.jit(run, compiler_options=QUICK)(data, jax.random.key(1))
    return float(loss), {name: np.asarray(value) for name, value in seen.items()}, data


def test_the_loss_is_zero_for_the_exact_velocity():
    """Fixes the sign and the time convention: t = 1 is noise, velocity points towards it."""
    loss, _, _ = observe(FlowConfig())
    assert loss < 1e-6  # float32 errors over the smallest time, 1e-3, squared
    loss, _, _ = observe(FlowConfig(), answer=lambda exact, _: -exact)
    assert loss > 1


def test_condition_tokens_carry_no_loss_and_a_time_of_their_own():
    cfg = FlowConfig(uniform_fraction=0.5)
    loss, seen, data = observe(
        cfg, given=(0, 1), answer=lambda exact, given: jnp.where(given, 1e6, exact)
    )
    assert loss < 1e-6
    own, t = seen["times"][:, 0], seen["times"][:, 2]
    np.testing.assert_array_equal(seen["times"][:, 1], own)
    np.testing.assert_array_equal(seen["times"][:, 2:], np.broadcast_to(t[:, None], (256, 4)))
    assert (own <= np.minimum(t, cfg.max_condition_time)).all()
    assert 0.4 < np.mean(own == 0) < 0.6  # 256 draws of a half
    assert own.max() > 0.2
    # Each token is noised to its own level; at time 0 it is the data.
    np.testing.assert_array_equal(seen["x"][own == 0, :2], np.asarray(data)[own == 0, :2])
    assert (seen["x"][own > 0.01, :2] != np.asarray(data)[own > 0.01, :2]).all()


def test_without_conditions_all_tokens_of_a_sample_share_its_time():
    _, seen, _ = observe(FlowConfig())
    assert (seen["times"] == seen["times"][:, :1]).all()
    assert len(np.unique(seen["times"][:, 0])) > 200


def test_dropped_captions_become_the_empty_one():
    for rate in (0.0, 0.25, 1.0):
        _, seen, _ = observe(FlowConfig(caption_dropout=rate))
        dropped = (seen["ids"] == 0).all(axis=1)
        assert ((seen["ids"] == 1).all(axis=1) | dropped).all()
        assert abs(dropped.mean() - rate) < 0.1  # 256 draws


@pytest.mark.parametrize(("tokens", "mean"), [(1024, 0.95), (4096, 2.05), (30_000, 2.05)])
def test_times_are_logit_normal_between_their_percentiles(tokens, mean):
    cfg = FlowConfig(uniform_fraction=0.0)
    count = 100_000
    program = jax.jit(transformer.training_times, static_argnums=(1, 2, 3), compiler_options=QUICK)
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
    program = jax.jit(transformer.training_times, static_argnums=(1, 2, 3), compiler_options=QUICK)
    t = program(jax.random.key(0), 100_000, 4096, FlowConfig(uniform_fraction=1.0))
    np.testing.assert_allclose(np.quantile(t, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)


def test_positions_follow_the_frames_per_second_of_each_sample():
    cfg = load("transformer").model
    rates = jnp.asarray([12.0, 24.0])
    cos, _ = transformer.rope_of(cfg, (3, 2, 2), (2, 4), rates)
    slow, fast = np.asarray(cos)
    np.testing.assert_array_equal(slow[:4], fast[:4])  # both start at 0 s
    # Frames 0, 1 and 3 of a causal VAE: 3 / 12 s is as late as no frame at 24 per second.
    assert np.abs(slow[4:] - fast[4:]).max() > 1e-3
    alone, _ = transformer.rope_of(cfg, (3, 2, 2), (2, 4), rates[1:])
    np.testing.assert_array_equal(alone[0], fast)


def test_decode_times_are_uniform_with_a_clean_part():
    cfg = VAELossConfig(max_decode_time=0.2, clean_fraction=0.1)
    program = jax.jit(vae.decode_times, static_argnums=(1, 2), compiler_options=QUICK)
    t = np.asarray(program(jax.random.key(0), 20_000, cfg))
    assert abs(np.mean(t == 0) - 0.1) < 0.01
    np.testing.assert_allclose(
        np.quantile(t[t > 0], [0.25, 0.5, 0.75]), [0.05, 0.1, 0.15], atol=0.005
    )
    assert t.max() <= 0.2


def test_the_decoder_sees_latents_noised_in_normalised_space(keys):
    """The level is relative to each channel's own deviation, as in the sampler."""
    cfg = VAELossConfig(max_decode_time=1.0, clean_fraction=0.0)
    scale = jnp.asarray([0.01, 1.0, 100.0]).reshape(1, 1, 1, 1, 3)
    mean = jnp.asarray(draw(64, 2, 4, 4, 3)) * scale + 5 * scale

    def loss(key):
        seen = {}

        def apply(variables, x, *rest, method):
            if method == "encode":
                return Posterior(mean, jnp.full_like(mean, -30.0))
            seen.update(z=x, t=rest[0])
            return jnp.zeros((64, 1, 1, 1, 3))

        running = {"mean": jnp.mean(mean, (0, 1, 2, 3)), "square": jnp.mean(mean**2, (0, 1, 2, 3))}
        video = jnp.zeros((64, 1, 1, 1, 3))
        vae.vae_loss(apply, None, running, 10**6, video, key, cfg)
        return seen

    seen = jax.jit(loss, compiler_options=QUICK)(next(keys))
    noise = np.asarray((seen["z"] - mean) / scale)
    t = np.asarray(seen["t"])
    # z_t - z = t (noise - z_norm) deviation: of the order of t in every channel alike.
    size = noise.reshape(64, -1, 3).std(axis=1)
    np.testing.assert_allclose(size, np.broadcast_to((t * 2**0.5)[:, None], (64, 3)), rtol=0.6)
    assert np.corrcoef(size.mean(1), t)[0, 1] > 0.97


def test_running_statistics_are_those_of_the_data(keys):
    data = np.asarray([0.5, -2.0, 10.0]) + draw(200, 4, 2, 3, 3, 3) * np.asarray([1.0, 0.1, 5.0])
    running = vae.first_statistics(3)
    update = jax.jit(vae.update_statistics, static_argnums=3)
    for n, batch in enumerate(data.astype(np.float32)):
        running = update(running, jnp.asarray(batch), n, 0.99)
    found = vae.latent_statistics(running)
    # An average over about 100 batches of 72 values.
    np.testing.assert_allclose(found.mean, [0.5, -2.0, 10.0], atol=0.3)
    np.testing.assert_allclose(found.std, [1.0, 0.1, 5.0], rtol=0.1)


def quadratic(cfg, mesh):
    """A state with one matrix and one bias, its optimiser, and a step on given gradients."""
    tx = optim.make_optimizer(cfg, 100)
    planned = state.plan(
        lambda key: {"a": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}},
        tx,
        mesh,
        0,
        {"mean": jnp.zeros(2)},
    )

    @jax.jit
    def step(current, grads, loss):
        return state.apply_update(current, grads, tx, cfg.ema_decay, {"mean": jnp.ones(2)}, loss)

    return planned, step


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_that_is_not_finite_leaves_everything_but_the_count(name):
    planned, step = quadratic(OptimConfig(name=name, peak_lr=0.1, warmup_steps=0), one_device())
    grads = {"a": {"kernel": jnp.asarray(draw(4, 4)), "bias": jnp.asarray(draw(4))}}
    before, accepted = step(planned.make(), grads, jnp.float32(1))
    assert accepted
    broken = jax.tree.map(lambda x: x, grads)
    broken["a"]["bias"] = grads["a"]["bias"].at[1].set(jnp.nan)
    for gradient, loss in ((broken, 1.0), (grads, jnp.nan), (grads, jnp.inf)):
        after, accepted = step(before, gradient, jnp.float32(loss))
        assert not accepted
        assert int(after.step) == int(before.step) + 1
        same = dataclasses.replace(after, step=before.step)
        jax.tree.map(np.testing.assert_array_equal, same, before)
    after, accepted = step(before, grads, jnp.float32(1))
    assert accepted
    assert (np.asarray(after.params["a"]["kernel"]) != before.params["a"]["kernel"]).all()


def test_the_average_warms_up_as_the_formula_says():
    planned, step = quadratic(OptimConfig(ema_decay=0.3, peak_lr=0.1, warmup_steps=0), one_device())
    current = planned.make()
    expected = np.ones((4, 4))
    for n in range(4):
        grads = {"a": {"kernel": jnp.asarray(draw(4, 4, seed=n)), "bias": jnp.ones(4)}}
        current, _ = step(current, grads, jnp.float32(1))
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
    cfg = load("vae", "--model.decoder-base-channels", "64")
    frames = jnp.zeros((1, 5, 16, 16, 3))
    tx = optim.make_optimizer(cfg.optim, 10)
    planned = state.plan(lambda key: VideoVAE(cfg.model).init(key, frames)["params"], tx, mesh, 0)
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


@pytest.fixture(scope="module")
def tiny_vae():
    """The tiny VAE with fresh weights, as a checkpoint."""
    cfg = load("vae").model
    model = VideoVAE(cfg)
    video = jnp.zeros((1, 5, 16, 16, 3))
    init = jax.jit(
        lambda key: sharding.unbox(model.init(key, video))["params"], compiler_options=QUICK
    )
    channels = cfg.latent_channels
    statistics = LatentStatistics(jnp.zeros(channels), jnp.ones(channels))
    return Checkpoint(vae=cfg, vae_params=init(jax.random.key(0)), statistics=statistics)


def steps(stage, mesh, count):
    current = stage.plan.make()
    with sharding.use_mesh(mesh):
        for step in range(count):
            current, metrics = stage.step(current, next(stage.batches(step, step + 1)))
    return jax.device_get(current), float(metrics["loss"])


@pytest.fixture
def quick_steps(monkeypatch):
    """Compiles training steps at a low level: tests spend more on compiling than on running."""
    for module in (vae, transformer):
        monkeypatch.setattr(module, "make_step", lambda *args: state.make_step(*args[:3], QUICK))


@pytest.mark.usefixtures("quick_steps")
@pytest.mark.parametrize("name", ["vae", "transformer"])
def test_eight_devices_train_as_one(name, tiny_vae, monkeypatch, tmp_path):
    module = {"vae": vae, "transformer": transformer}[name]
    # Plain gradient descent: Adam would make a whole step of a rounding error near zero.
    monkeypatch.setattr(module, "make_optimizer", lambda *_: optax.sgd(0.1))
    monkeypatch.setattr(transformer.checkpoint, "load", lambda *_, **__: tiny_vae)
    cfg = load(name, "--run.output", str(tmp_path / "none"))
    shape = {"vae": dict(data=2, fsdp=4), "transformer": dict(data=1, fsdp=2, seq=2, tensor=2)}
    results = []
    for mesh in (one_device(), sharding.make_mesh(MeshConfig(**shape[name]))):
        results.append(steps(module.build(cfg, mesh), mesh, 3))
    (alone, loss), (together, other) = results
    assert loss == pytest.approx(other, rel=1e-5)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(alone.params))
    for path, x in jax.tree.leaves_with_path(alone.params):
        y = together.params
        for entry in path:
            y = y[entry.key]
        # Sums in another order, three times.
        np.testing.assert_allclose(
            y, x, atol=2e-6 * scale, rtol=1e-4, err_msg=jax.tree_util.keystr(path)
        )


def test_clips_of_a_folder_are_encoded_once_and_keep_their_rate(tiny_vae, monkeypatch, tmp_path):
    monkeypatch.setattr(transformer.checkpoint, "load", lambda *_, **__: tiny_vae)
    clips = [shapes.clip(i, num_frames=5, height=16, width=16) for i in range(3)]
    for i, clip in enumerate(clips):
        video.write_video(tmp_path / f"{i}.mp4", clip.frames, fps=10 * (i + 1))
        (tmp_path / f"{i}.txt").write_text(f"clip {i}")
    cfg = load("transformer", "--data.source", str(tmp_path), "--data.batch-size", "4")
    mesh = one_device()
    stage = transformer.build(cfg, mesh)
    loader = Loader(cfg.data, (("none", 1.0),), cfg.run.seed)

    for step in range(3):
        batch = next(stage.batches(step, step + 1))
        chosen = [index for _, index in loader.plan(step).rows]
        np.testing.assert_allclose(batch["frame_rate"], [10 * (i + 1) for i in chosen])
        ids, mask = tokenize(ByteTokenizer(), [f"clip {i}" for i in chosen], 32)
        np.testing.assert_array_equal(batch["ids"], ids)
        np.testing.assert_array_equal(batch["mask"], mask)
        np.testing.assert_array_equal(batch["mean"], next(stage.batches(step, step + 1))["mean"])
    frames, _ = folder.load_clip(tmp_path / "1.mp4", 5, 16, 16)
    encode = jax.jit(
        lambda params, x: VideoVAE(tiny_vae.vae).apply({"params": params}, x, method="encode")
    )
    expected = encode(tiny_vae.vae_params, vae.to_float(jnp.asarray(frames[None]))).mean[0]
    row = [index for _, index in loader.plan(0).rows].index(1)
    found = np.asarray(next(stage.batches(0, 0 + 1))["mean"])[row]
    np.testing.assert_allclose(found, expected, atol=1e-5)  # a batch of four, and of one


def test_the_first_frame_is_given_in_its_share_of_the_batches():
    cfg = FlowConfig(first_frame_probability=0.3)
    masks = np.stack([transformer._first_frame(cfg, (3, 2, 2), 0, step) for step in range(1000)])
    given = masks.any(axis=1)
    assert abs(given.mean() - 0.3) < 0.05
    assert (masks[given] == (np.arange(12) < 4)).all()
    # A picture is never given whole: nothing would be left to learn.
    assert not any(transformer._first_frame(cfg, (1, 2, 2), 0, step).any() for step in range(50))


def test_a_run_goes_on_with_the_vae_it_began_with(tiny_vae, monkeypatch, tmp_path):
    cfg = load("transformer", "--run.output", str(tmp_path / "run"))
    run = runs.Run(cfg)
    run.write_vae(tiny_vae)
    run.close()

    def gone(*_, **__):
        raise ValueError("the VAE's own run is gone")

    monkeypatch.setattr(transformer.checkpoint, "load", gone)
    stage = transformer.build(cfg, one_device())
    jax.tree.map(np.testing.assert_array_equal, stage.vae.vae_params, tiny_vae.vae_params)
    other = load("transformer", "--run.output", str(tmp_path / "other"))
    with pytest.raises(ValueError, match="is gone"):
        transformer.build(other, one_device())


def test_networks_that_do_not_fit_the_vae_are_refused(tiny_vae, monkeypatch):
    monkeypatch.setattr(transformer.checkpoint, "load", lambda *_, **__: tiny_vae)
    cfg = load("transformer", "--model.in-channels", "8")
    with pytest.raises(ValueError, match=r"4 latent channels and model\.in_channels is 8"):
        transformer.build(cfg, one_device())
    monkeypatch.setattr(transformer.checkpoint, "load", lambda *_, **__: Checkpoint())
    with pytest.raises(ValueError, match="holds no VAE"):
        transformer.build(load("transformer"), one_device())


@pytest.mark.usefixtures("quick_steps")
def test_the_vae_learns_a_clip_by_heart():
    mesh = one_device()
    cfg = load("vae", "--optim.peak-lr", "0.02", "--run.steps", "60")
    stage = vae.build(cfg, mesh)
    current, batch = stage.plan.make(), next(stage.batches(0, 0 + 1))
    losses = []
    with sharding.use_mesh(mesh):
        for _ in range(60):
            current, metrics = stage.step(current, batch)
            losses.append(float(metrics["pixel"]))
    assert np.mean(losses[-5:]) < 0.25 * losses[0]
    assert int(current.updates) == 60
