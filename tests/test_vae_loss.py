"""The loss of the VAE stage, and its adversarial term, on toy networks: one matmul a layer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import QUICK, compiled
from tiny_stages import load, one_device

from ltx_jax.config import VAELossConfig
from ltx_jax.models.vae import Posterior
from ltx_jax.pixels import from_bytes
from ltx_jax.training import losses, state, step
from ltx_jax.training.optim import MAIN, Optimizer
from ltx_jax.training.stage import Stage
from ltx_jax.training.vae import gan
from ltx_jax.training.vae import loss as vae_loss
from ltx_jax.training.vae.loss import Networks

FULL = VAELossConfig(
    mse_weight=0.3, dwt_weight=0.5, kl_weight=0.01, gan_weight=0.7, disc_start=0.0, dwt_levels=2
)


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def autoencoder(variables, x, *rest, method):
    layers = variables["params"]
    if method == "encode":
        mean = jnp.tanh(x @ layers["encoder"]["kernel"])
        return Posterior(mean, jnp.full_like(mean, -4.0))
    h = jnp.tanh(x @ layers["decoder"]["conv_in"]["kernel"])
    return h @ layers["decoder"]["conv_out"]["kernel"]


def discriminator(variables, x):
    layers = variables["params"]
    return (jnp.tanh(x @ layers["first"]["kernel"]) @ layers["last"]["kernel"])[..., 0]


NETWORKS = Networks(autoencoder, discriminator)


def parameters(kind="pair"):
    params = {
        "encoder": {"kernel": draw(3, 4)},
        "decoder": {"conv_in": {"kernel": draw(4, 5)}, "conv_out": {"kernel": draw(5, 3)}},
    }
    channels = 6 if kind == "pair" else 3
    return params, {"first": {"kernel": draw(channels, 8)}, "last": {"kernel": draw(8, 1)}}


def pixels(b=3, t=5):
    return np.random.default_rng(1).integers(0, 256, (b, t, 8, 8, 3), np.uint8)


def state_of(params, rival, updates=10):
    running = {"mean": jnp.zeros(4), "square": jnp.ones(4)}
    count = jnp.asarray(updates)
    both = {**params, "discriminator": rival}
    return state.TrainState(count, count, jnp.asarray(0), both, params, {}, running)


def loss(params, rival, cfg, *, key=None, updates=10, frames=None, networks=NETWORKS, start=0):
    current = state_of(params, rival, updates)
    batch = {"frames": jnp.asarray(pixels() if frames is None else frames)}
    key = jax.random.key(0) if key is None else key
    return vae_loss.vae_loss(networks, current.params, current, batch, {}, key, cfg, start)


def plain_loss(params, rival, cfg, scale):
    """The same sum, written out; what is differentiated through is left to JAX."""
    video = from_bytes(jnp.asarray(pixels()))
    running = state_of(params, rival).statistics
    done = vae_loss.autoencode(autoencoder, params, running, 10, video, jax.random.key(0), cfg)
    y = done.reconstruction
    rest = losses.pixel_loss(y, video, "l1") + 0.3 * losses.pixel_loss(y, video, "mse")
    rest += 0.5 * losses.dwt_loss(y, video, 2)
    if cfg.gan == "pair":
        a = discriminator({"params": rival}, jnp.concatenate([video, y], -1))
        b = discriminator({"params": rival}, jnp.concatenate([y, video], -1))
        generator = jnp.mean(jax.nn.softplus(a)) + jnp.mean(jax.nn.softplus(-b))
        other = jnp.mean(jax.nn.softplus(-a)) + jnp.mean(jax.nn.softplus(b))
    else:
        a, b = (discriminator({"params": rival}, x) for x in (video, y))
        generator = -jnp.mean(b)
        other = jnp.mean(jax.nn.relu(1 - a)) + jnp.mean(jax.nn.relu(1 + b))
    kl = losses.kl_loss(done.posterior.mean, done.posterior.logvar)
    total = rest + 0.01 * kl + 0.7 * scale * generator
    return total, (rest, generator, other)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["pair", "single"])
def test_gradients_are_those_of_the_plain_sum_of_the_terms(kind):
    """The adaptive weight included: the last layer's gradients, by differentiation of the whole."""
    cfg = dataclasses.replace(FULL, gan=kind)
    params, rival = parameters(kind)
    rival["last"]["kernel"] *= 40  # so sure of itself that its gradient has to be scaled down

    @compiled
    def expected(params, rival):
        def part(index):
            return jax.grad(lambda p: plain_loss(p, rival, cfg, 1.0)[1][index])(params)

        norms = [optax.tree.norm(part(i)["decoder"]["conv_out"]) for i in (0, 1)]
        scale = jnp.minimum(norms[0] / norms[1], 1.0)
        total, of_params = jax.value_and_grad(lambda p: plain_loss(p, rival, cfg, scale)[0])(params)
        of_rival = jax.grad(lambda r: plain_loss(params, r, cfg, scale)[1][2])(rival)
        return scale, total, of_params, of_rival

    @compiled
    def ours(params, rival):
        def both(p, r):
            value = loss(p, r, cfg)
            return value.loss + value.others["discriminator"], value

        (_, value), grads = jax.value_and_grad(both, (0, 1), has_aux=True)(params, rival)
        return value.metrics["gan_scale"], value.loss, *grads

    got, wanted = ours(params, rival), expected(params, rival)
    assert 0.01 < wanted[0] < 0.99  # the weight is neither off nor at its limit
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)  # float32, summed in another order


def test_a_fixed_weight_is_left_alone():
    params, rival = parameters()
    cfg = dataclasses.replace(FULL, gan_adaptive=False)
    value = compiled(lambda p, r: loss(p, r, cfg))(params, rival)
    expected, _ = compiled(lambda p, r: plain_loss(p, r, cfg, 1.0))(params, rival)
    assert value.metrics["gan_scale"] == 1
    assert value.loss == pytest.approx(float(expected), rel=1e-5)


def test_the_adaptive_weight_is_a_ratio_of_norms_and_at_most_one():
    a, b = {"kernel": jnp.asarray([3.0, 4.0])}, {"kernel": jnp.asarray([0.0, 20.0])}
    assert gan.adaptive_scale(a, b) == pytest.approx(0.25)
    assert gan.adaptive_scale(b, a) == 1
    assert gan.adaptive_scale(a, {"kernel": jnp.zeros(2)}) == 1


@pytest.mark.thorough
def test_terms_of_weight_zero_are_no_part_of_the_program():
    params, rival = parameters()

    def traced(cfg):
        networks = NETWORKS if cfg.gan_weight else Networks(autoencoder)
        names = set()

        def value(params, rival):
            result = loss(params, rival, cfg, networks=networks)
            names.update(result.metrics)
            return result.loss

        return len(str(jax.make_jaxpr(value)(params, rival))), names

    game = {"gan", "gan_scale", "disc_loss", "disc_accuracy"}
    always = {"psnr", "latent_std_min", "latent_std_max", "dead_channels"}
    size, names = traced(FULL)
    assert names == {"pixel", "mse", "dwt", "kl"} | game | always
    for term in ("pixel", "mse", "dwt", "kl", "gan"):
        fewer, rest = traced(dataclasses.replace(FULL, **{f"{term}_weight": 0.0}))
        assert names - rest == (game if term == "gan" else {term})
        assert fewer < size
    nothing = {f"{term}_weight": 0.0 for term in ("pixel", "mse", "dwt", "kl", "gan")}
    assert traced(dataclasses.replace(FULL, **nothing))[1] == always


@pytest.mark.thorough
@pytest.mark.parametrize("frames", [1, 5])
def test_gradients_of_every_term_are_finite_at_one_frame_too(frames):
    """Also where the reconstruction is perfect. LPIPS has a test of its own."""
    weights = ("pixel_weight", "mse_weight", "dwt_weight")
    video = jnp.asarray(np.tanh(draw(2, frames, 8, 8, 3)))

    @compiled
    def each(y):
        def of(name):
            cfg = VAELossConfig(**(dict.fromkeys(weights, 0.0) | {name: 1.0}))
            return jax.grad(lambda y: vae_loss.reconstruction_loss(y, video, {}, cfg)[0])(y)

        return {name: of(name) for name in weights}

    for y in (video, video * 0.5):
        for name, gradient in each(y).items():
            assert np.isfinite(gradient).all(), name
            assert y is video or (np.asarray(gradient) != 0).any(), name
    for kind in ("pair", "single"):
        params, rival = parameters(kind)
        cfg = dataclasses.replace(FULL, gan=kind, dwt_levels=1)
        gradient = compiled(
            jax.grad(lambda p, r, cfg=cfg: loss(p, r, cfg, frames=pixels(t=frames)).loss, (0, 1))
        )(params, rival)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
        # What the generator lowers does not reach the discriminator's parameters.
        assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(gradient[1]))


def test_the_pair_is_judged_in_both_orders():
    video, other = (jnp.asarray(draw(2, 3, 4, 4, 3, seed=seed)) for seed in (1, 2))
    _, rival = parameters()
    first, second = gan.discriminate(discriminator, rival, video, other, "pair")
    alone = discriminator({"params": rival}, jnp.concatenate([video, other], -1))
    np.testing.assert_allclose(first, alone, rtol=1e-5)
    swapped = gan.discriminate(discriminator, rival, other, video, "pair")
    np.testing.assert_array_equal(swapped[0], second)
    np.testing.assert_array_equal(swapped[1], first)


@pytest.mark.thorough
def test_the_discriminator_rests_until_its_time():
    params, rival = parameters()

    def gradient(updates):
        def value(rival):
            result = loss(params, rival, FULL, updates=updates, start=7)
            return result.others["discriminator"], result

        return jax.grad(value, has_aux=True)(rival)

    program = compiled(gradient)
    grads, value = program(6)
    metrics = value.metrics
    assert np.isnan([metrics[name] for name in ("gan", "gan_scale", "disc_accuracy")]).all()
    assert value.others["discriminator"] == 0
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(grads))
    without = dataclasses.replace(FULL, gan_weight=0.0)
    alone = compiled(
        lambda: loss(params, rival, without, updates=6, networks=Networks(autoencoder))
    )
    assert value.loss == pytest.approx(float(alone().loss), rel=1e-6)
    grads, value = program(7)
    assert value.metrics["disc_loss"] == value.others["discriminator"] > 0
    assert 0 <= value.metrics["disc_accuracy"] <= 1
    assert all((np.asarray(x) != 0).any() for x in jax.tree.leaves(grads))


def test_kl_grows_from_its_start_to_its_weight():
    cfg = VAELossConfig(kl_weight=0.5, kl_start=3, kl_warmup=4)
    found = [float(vae_loss.kl_weight(n, cfg)) for n in range(9)]
    np.testing.assert_allclose(found, [0, 0, 0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5])
    assert [vae_loss.kl_weight(n, VAELossConfig(kl_weight=2.0)) for n in (0, 9)] == [2, 2]


class Toy(Stage):
    """The toy networks as a stage."""

    def __init__(self, cfg, optimizers, start, spoil):
        super().__init__(cfg, one_device())
        self._optimizers, self._start, self._spoil = optimizers, start, spoil

    def init(self, key):
        params, rival = parameters()
        return {**params, "discriminator": rival}

    def optimizers(self):
        return self._optimizers

    def first_statistics(self):
        return {"mean": jnp.zeros(4), "square": jnp.ones(4)}

    def loss(self, params, current, batch, frozen, key):
        args = params, current, batch, frozen, key
        return self._spoil(vae_loss.vae_loss(NETWORKS, *args, FULL, self._start))

    open = describe = abstract_batch = batches = tokens = validate = None


def contest(tx, disc_tx, *, start=0, spoil=lambda value: value):
    """The first state and the step of the toy networks."""
    optimizers = {
        MAIN: Optimizer(tx, ema_decay=0.9),
        "discriminator": Optimizer(disc_tx, start=start),
    }
    trainer = step.Trainer(Toy(load("vae"), optimizers, start, spoil), compiler_options=QUICK)
    return trainer.plan.make(), trainer.step


def equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def halves(current):
    """Parameters of the autoencoder, and of the discriminator."""
    groups = state.by_optimizer(current.params, current.opt_state)
    return groups[MAIN], groups["discriminator"]


@pytest.mark.thorough
def test_each_side_changes_nothing_of_the_other():
    batch = {"frames": jnp.asarray(pixels())}
    sides = {}
    for name, rates in {"rival": (0.0, 0.1), "generator": (0.1, 0.0), "both": (0.1, 0.1)}.items():
        current, take_step = contest(*(optax.sgd(rate) for rate in rates))
        before = jax.device_get(halves(current))
        new, metrics = take_step(current, batch)
        assert int(new.updates) == 1
        for old, after, rate in zip(before, halves(new), rates, strict=True):
            assert equal(old, after) == (rate == 0)
        assert metrics["grad_norm/discriminator"] > 0
        sides[name] = halves(new)
    # Each learns as if the other stood still: both look at the other's old parameters.
    assert equal(sides["both"][0], sides["generator"][0])
    assert equal(sides["both"][1], sides["rival"][1])


@pytest.mark.thorough
def test_the_discriminator_is_untouched_before_its_time():
    current, take_step = contest(optax.sgd(0.1), optax.adam(0.1), start=1)
    batch = {"frames": jnp.asarray(pixels())}
    before = jax.device_get(current)
    new, _ = take_step(current, batch)
    after = jax.device_get(new)
    for tree in ("params", "opt_state"):
        assert equal(*(getattr(x, tree)["discriminator"] for x in (before, after)))
    assert not equal(halves(after)[0], halves(before)[0])
    later, _ = take_step(new, batch)
    assert not equal(halves(later)[1], halves(after)[1])
    assert int(later.opt_state["discriminator"][0].count) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_a_discriminator_that_is_not_finite_rejects_the_whole_step(part):
    @jax.custom_vjp
    def broken(x):
        return x

    broken.defvjp(lambda x: (x, None), lambda _, g: (g * jnp.nan,))

    def spoil(value):
        own = value.others["discriminator"]
        own = own * jnp.inf if part == "loss" else broken(own)
        return dataclasses.replace(value, others={"discriminator": own})

    current, take_step = contest(optax.adam(0.1), optax.adam(0.1), spoil=spoil)
    before = jax.device_get(current)
    new, metrics = take_step(current, {"frames": jnp.asarray(pixels())})
    assert np.isfinite(metrics["loss"])
    assert (int(new.step), int(new.updates), int(new.rejected)) == (1, 0, 1)
    counts = dict(step=before.step, rejected=before.rejected)
    assert equal(dataclasses.replace(new, **counts), before)


@pytest.mark.thorough
def test_micro_batches_are_averaged_for_the_discriminator_too():
    """Its gradient is linear in them where the noise is the same: none, here."""
    frames = jnp.asarray(np.concatenate([pixels(2), 255 - pixels(2)]))
    cfg = dataclasses.replace(FULL, max_decode_time=0.0)

    def still(variables, x, *rest, method):  # no noise: the mode is what is decoded
        if method == "encode":
            mean = autoencoder(variables, x, method=method).mean
            return Posterior(mean, jnp.full_like(mean, -60.0))
        return autoencoder(variables, x, *rest, method=method)

    params, rival = parameters()
    both = {**params, "discriminator": rival}
    layout = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), both)
    optimizers = {MAIN: Optimizer(optax.sgd(0.1)), "discriminator": Optimizer(optax.sgd(0.1))}
    # Statistics at rest, so that both halves are normalised alike.
    value = functools.partial(
        vae_loss.vae_loss,
        Networks(still, discriminator),
        cfg=dataclasses.replace(cfg, gan_adaptive=False, statistics_decay=1.0),
    )
    current = state_of(params, rival, updates=10**9)
    results = {}
    for n in (1, 2):
        run = compiled(
            lambda p, n=n: step.gradients(
                *(value, optimizers, p, current, {"frames": frames}, {}, jax.random.key(0)),
                micro_batches=n,
                layout=layout,
            )
        )
        result, grads = run(both)
        results[n] = result.loss, result.metrics["disc_accuracy"], result.others, grads
    for x, y in zip(jax.tree.leaves(results[1]), jax.tree.leaves(results[2]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_decode_times_are_uniform_with_a_clean_part():
    cfg = VAELossConfig(max_decode_time=0.2, clean_fraction=0.1)
    program = compiled(vae_loss.decode_times, static_argnums=(1, 2))
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

    def run(key):
        seen = {}

        def apply(variables, x, *rest, method):
            if method == "encode":
                return Posterior(mean, jnp.full_like(mean, -30.0))
            seen.update(z=x, t=rest[0])
            return jnp.zeros((64, 1, 1, 1, 3))

        running = {"mean": jnp.mean(mean, (0, 1, 2, 3)), "square": jnp.mean(mean**2, (0, 1, 2, 3))}
        params, video = {"decoder": {"conv_out": {}}}, jnp.zeros((64, 1, 1, 1, 3))
        vae_loss.autoencode(apply, params, running, 10**6, video, key, cfg)
        return seen

    seen = compiled(run)(next(keys))
    noise = np.asarray((seen["z"] - mean) / scale)
    t = np.asarray(seen["t"])
    # z_t - z = t (noise - z_norm) deviation: of the order of t in every channel alike.
    size = noise.reshape(64, -1, 3).std(axis=1)
    np.testing.assert_allclose(size, np.broadcast_to((t * 2**0.5)[:, None], (64, 3)), rtol=0.6)
    assert np.corrcoef(size.mean(1), t)[0, 1] > 0.97


def test_running_statistics_are_those_of_the_data():
    data = np.asarray([0.5, -2.0, 10.0]) + draw(200, 4, 2, 3, 3, 3) * np.asarray([1.0, 0.1, 5.0])
    running = vae_loss.first_statistics(3)
    update = compiled(vae_loss.update_statistics, static_argnums=3)
    for n, batch in enumerate(data.astype(np.float32)):
        running = update(running, jnp.asarray(batch), n, 0.99)
    found = vae_loss.latent_statistics(running)
    # An average over about 100 batches of 72 values.
    np.testing.assert_allclose(found.mean, [0.5, -2.0, 10.0], atol=0.3)
    np.testing.assert_allclose(found.std, [1.0, 0.1, 5.0], rtol=0.1)
