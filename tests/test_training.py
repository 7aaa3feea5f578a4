"""Steps, losses and times of both stages. Whole runs are in test_train.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_stages import QUICK, load, one_device, tiny_vae

from ltx_jax import sharding
from ltx_jax.config import MeshConfig, VAELossConfig
from ltx_jax.models.vae import Posterior
from ltx_jax.training import state, transformer, vae


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


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
@pytest.mark.parametrize("name", ["vae"])
def test_eight_devices_train_as_one(name, monkeypatch, tmp_path):
    module = {"vae": vae, "transformer": transformer}[name]
    # Plain gradient descent: Adam would make a whole step of a rounding error near zero.
    monkeypatch.setattr(module, "make_optimizer", lambda *_: optax.sgd(0.1))
    monkeypatch.setattr(transformer.checkpoint, "load", lambda *_, **__: tiny_vae())
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
