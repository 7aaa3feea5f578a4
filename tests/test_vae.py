"""The Video-VAE, compared with the official code and on its own."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import golden_state_dict
from vae_reference import (
    FAMILIES,
    TIMES,
    TOLERANCE,
    channels_last,
    compiled,
    decoder,
    drawn_parameters,
    encoder,
    initial_shapes,
    normal,
    our_parameters,
    res,
    shapes,
    tiny,
)

from ltx_jax.checkpoints.keys import vae_boxed
from ltx_jax.config import BlockConfig, ExecutionConfig, VAEConfig
from ltx_jax.models import vae
from ltx_jax.models.vae import LatentStatistics, Posterior, VideoVAE, key_noise
from ltx_jax.runtime import sharding

GOLDEN = pathlib.Path(__file__).parent / "golden" / "vae_unusual_tiny.npz"


def official_config(text):
    raw = json.loads(text)

    def blocks(entries):
        return tuple(
            BlockConfig(name, **(value if isinstance(value, dict) else {"num_layers": value}))
            for name, value in entries
        )

    fields = {field.name for field in dataclasses.fields(VAEConfig)}
    values = {key: value for key, value in raw.items() if key in fields}
    lists = ("encoder_blocks", "decoder_blocks")
    return VAEConfig(**{**values, **{name: blocks(values[name]) for name in lists}})


@pytest.mark.thorough
@pytest.mark.parametrize(
    "case",
    [
        "pixel_zeros_uniform",
        "group_reflect_per_channel_causal_time",
        "layer_circular_constant_time",
        "layer_replicate_per_channel_quant",
    ],
)
def test_blocks_norms_and_paddings_without_a_release_are_the_official_ones(case):
    """Attention, single-axis compressions and other options that no released checkpoint uses."""
    golden = np.load(GOLDEN)
    cfg = official_config(str(golden[f"{case}/config"]))
    params = our_parameters(golden_state_dict(json.loads(str(golden[f"{case}/shapes"]))))
    assert shapes(params) == shapes(initial_shapes(cfg))

    rng = np.random.default_rng(0)  # how the file was made
    video = rng.standard_normal((2, 3, 5, 16, 16), dtype=np.float32)
    latents = rng.standard_normal((2, 6, 2, 2, 2), dtype=np.float32)
    maps = tuple(normal(100 + i, *size) for i, size in enumerate([(8, 8)] * 4))

    posterior = encoder(cfg)(params, channels_last(video))
    for name in ("mean", "logvar"):
        expected = channels_last(golden[f"{case}/{name}"])
        np.testing.assert_allclose(getattr(posterior, name), expected, atol=TOLERANCE)
    decoded = decoder(cfg)(params, channels_last(latents), TIMES, maps)
    expected = channels_last(golden[f"{case}/decoded"])
    np.testing.assert_allclose(decoded, expected, atol=TOLERANCE)


def released(name):
    """A released config, built from the block table of its checkpoint."""
    up = BlockConfig("compress_all", multiplier=2, residual=True)
    first = [
        *(res(4), BlockConfig("compress_all"), BlockConfig("res_x_y"), res(3)),
        *(BlockConfig("compress_all"), BlockConfig("res_x_y"), res(3)),
        *(BlockConfig("compress_all"), res(3), res(4)),
    ]
    noisy = [block for n in (5, 6, 7) for block in (res(n, inject_noise=True), up)] + [res(8)]
    last = [
        *(res(4), BlockConfig("compress_space_res"), res(6), BlockConfig("compress_time_res")),
        *(res(6), BlockConfig("compress_all_res"), res(2), BlockConfig("compress_all_res"), res(2)),
    ]
    lists = {"0.9.0": (first, first), "0.9.1": (first, noisy), "0.9.5": (last, [res(5), up] * 3)}
    encoder_blocks, decoder_blocks = lists[name]
    if name == "0.9.5":
        decoder_blocks = [*decoder_blocks, res(5)]
    return VAEConfig(
        tuple(encoder_blocks), tuple(decoder_blocks), timestep_conditioning=name != "0.9.0"
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "tensors", "encoder_size", "decoder_size"),
    [
        ("0.9.0", 188, 180_404_353, 238_789_296),
        ("0.9.1", 292, 180_404_353, 754_572_081),
        ("0.9.5", 224, 694_098_881, 552_814_641),
    ],
)
def test_released_versions_have_the_official_parameters(name, tensors, encoder_size, decoder_size):
    cfg = released(name)
    assert (cfg.temporal_factor, cfg.spatial_factor) == (8, 32)
    tree = initial_shapes(cfg)
    assert len(jax.tree.leaves(tree)) == tensors
    sizes = {part: sum(leaf.size for leaf in jax.tree.leaves(tree[part])) for part in tree}
    assert sizes == {"encoder": encoder_size, "decoder": decoder_size}


SMALL = tiny(
    [res(1), BlockConfig("compress_all_res"), BlockConfig("compress_space")],
    [BlockConfig("compress_all", multiplier=2), res(1, inject_noise=True)],
    timestep_conditioning=True,
    patch_size=2,
)


@pytest.mark.thorough
def test_encoding_a_prefix_gives_the_prefix():
    strided = [BlockConfig("compress_space"), BlockConfig("compress_all_x_y")]
    residual = [BlockConfig("compress_time_res"), BlockConfig("compress_all_res")]
    cfg = tiny([*residual, BlockConfig("res_x_y"), *strided, res(1)], [], patch_size=1)
    params = {"encoder": drawn_parameters(cfg)["encoder"]}
    video = normal(0, 1, 17, 8, 16, 3)
    encode = encoder(cfg)
    whole = encode(params, video)
    for frames in (1, 9):
        prefix = encode(params, video[:, :frames])
        length = (frames - 1) // 8 + 1
        assert prefix.mean.shape[1] == length
        # float32 rounding: the number of frames may change how a convolution is split.
        np.testing.assert_allclose(prefix.mean, whole.mean[:, :length], atol=1e-5)
        np.testing.assert_allclose(prefix.logvar, whole.logvar[:, :length], atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["uniform", "per_channel", "constant", "none"])
def test_log_variance_modes(mode):
    cfg = tiny([BlockConfig("compress_all")], [], latent_log_var=mode)
    params = {"encoder": drawn_parameters(cfg)["encoder"]}
    features = params["encoder"]["conv_out"]["kernel"].shape[-1]
    assert features == {"uniform": 9, "per_channel": 16, "constant": 9, "none": 8}[mode]
    posterior = encoder(cfg)(params, normal(0, 1, 3, 16, 16, 3))
    assert posterior.mean.shape == posterior.logvar.shape == (1, 2, 2, 2, 8)
    spread = np.ptp(posterior.logvar, axis=-1)
    if mode == "per_channel":
        assert spread.min() > 1e-3
    else:
        assert spread.max() == 0
    if mode in ("constant", "none"):
        assert (np.asarray(posterior.logvar) == -30).all()


def test_a_posterior_clips_its_log_variance_and_samples():
    cfg = tiny([], [], latent_log_var="per_channel", patch_size=1)
    params = {"encoder": drawn_parameters(cfg)["encoder"]}
    bias = params["encoder"]["conv_out"]["bias"]
    params["encoder"]["conv_out"]["bias"] = bias.at[8].set(-1e3).at[9].set(1e3)
    posterior = encoder(cfg)(params, normal(0, 1, 1, 4, 4, 3))
    assert (np.asarray(posterior.logvar[..., 0]) == -30).all()
    assert (np.asarray(posterior.logvar[..., 1]) == 20).all()

    posterior = Posterior(
        mean=jnp.full((1, 1, 1, 1, 2), 3.0), logvar=jnp.full((1, 1, 1, 1, 2), np.log(4.0))
    )
    np.testing.assert_allclose(posterior.sample(jnp.full((1, 1, 1, 1, 2), -1.0)), 1.0, rtol=1e-6)
    assert posterior.mode() is posterior.mean


def test_statistics_normalize_per_channel():
    statistics = LatentStatistics(mean=jnp.array([1.0, -2.0]), std=jnp.array([2.0, 0.5]))
    z = jnp.array([[[5.0, -1.0]], [[1.0, 0.0]]])
    normalized = statistics.normalize(z)
    np.testing.assert_array_equal(normalized, [[[2.0, 2.0]], [[0.0, 4.0]]])
    np.testing.assert_array_equal(statistics.denormalize(normalized), z)
    assert statistics.normalize(z.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.thorough
def test_noise_of_a_sample_is_its_own(keys):
    batch = jnp.stack([next(keys) for _ in range(3)])
    together, alone = key_noise(batch), key_noise(batch[1])
    assert together(4, (2, 3)).shape == (3, 2, 3)
    np.testing.assert_array_equal(together(4, (2, 3))[1], alone(4, (2, 3)))
    assert np.abs(alone(4, (2, 3)) - alone(5, (2, 3))).max() > 0.1

    params = drawn_parameters(SMALL)
    latents = jnp.asarray(normal(0, 3, 1, 1, 2, 8))
    model = VideoVAE(SMALL)

    @compiled
    def decode(latents, key):
        time = jnp.full(latents.shape[0], 0.1)
        noise = key_noise(key)
        return model.apply({"params": params}, latents, time, noise, method="decode")

    # float32 rounding: the batch changes how a convolution is split.
    np.testing.assert_allclose(
        decode(latents, batch)[1:2], decode(latents[1:2], batch[1:2]), atol=1e-5
    )


def test_patches_have_the_official_order():
    x = normal(0, 2, 3, 4, 6, 3)
    patched = np.asarray(vae.patchify(jnp.asarray(x), 2))
    for channel, row, column in np.ndindex(3, 2, 2):
        np.testing.assert_array_equal(
            patched[..., (channel * 2 + column) * 2 + row], x[:, :, row::2, column::2, channel]
        )
    np.testing.assert_array_equal(vae.unpatchify(jnp.asarray(patched), 2), x)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 8, 32, 32, 3), "8 frames.*nearest are 1 and 9"),
        ((1, 27, 32, 32, 3), "27 frames.*nearest are 25 and 33"),
        ((1, 9, 40, 32, 3), "40 pixels high.*nearest are 32 and 64"),
        ((1, 9, 32, 16, 3), "16 pixels wide.*nearest are 32"),
        ((1, 9, 32, 32, 4), "4 channels.*takes 3"),
    ],
)
def test_videos_that_do_not_fit_are_refused(shape, message):
    model = VideoVAE(FAMILIES["0.9.5"][0])
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(encoder_blocks=(BlockConfig("attn_res_x"),)),
            "encoder has no block 'attn_res_x'.*_res",
        ),
        (
            dict(decoder_blocks=(BlockConfig("compress_all_res"),)),
            "decoder.*'compress_all_res'.*attn",
        ),
        (dict(norm_layer="batch_norm"), "batch_norm.*pixel_norm"),
        (dict(latent_log_var="learned"), "learned.*uniform"),
        (dict(use_quant_conv=True), "per_channel.*uniform"),
        (dict(norm_layer="group_norm"), "32 groups.*8 channels"),
        (
            dict(encoder_blocks=(BlockConfig("compress_all_res", multiplier=3),)),
            "8 channels into",
        ),
        (
            dict(decoder_blocks=(BlockConfig("compress_all", multiplier=3, residual=True),)),
            "24 channels into 8",
        ),
        (
            dict(decoder_blocks=(BlockConfig("attn_res_x", attention_head_dim=16),)),
            "attention_head_dim is 16, with 8 channels",
        ),
    ],
)
def test_configs_that_cannot_be_built_are_refused(change, message):
    cfg = tiny([], [])
    for name, value in change.items():  # past the types, as a file may hold anything
        object.__setattr__(cfg, name, value)
    with pytest.raises(ValueError, match=message):
        initial_shapes(cfg)


def test_a_decoder_says_what_it_lacks():
    model = VideoVAE(tiny([], [res(1)], timestep_conditioning=True))
    for latents, message in [((1, 1, 1, 1, 8), "timestep"), ((1, 1, 1, 1, 4), "4 channels.* 8")]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(
                functools.partial(model.init, method="decode"),
                jax.random.key(0),
                jnp.zeros(latents),
            )


@functools.cache
def step(cfg, execution=ExecutionConfig()):
    """Mean, log-variance, output, and gradients of a loss that depends on all of them."""
    video, params = jnp.asarray(normal(0, 2, 3, 16, 16, 3)), drawn_parameters(cfg)
    model = VideoVAE(cfg, execution)

    def loss(params):
        posterior = model.apply({"params": params}, video, method="encode")
        noise = key_noise(jax.random.key(0))
        time = jnp.asarray(TIMES)
        out = model.apply({"params": params}, posterior.mean, time, noise, method="decode")
        return jnp.mean(out**2) + jnp.mean(posterior.logvar), (posterior, out)

    return compiled(jax.grad(loss, has_aux=True))(params)


@pytest.mark.thorough
def test_recomputation_changes_no_gradient():
    expected, _ = step(SMALL)
    flat = jax.tree.leaves_with_path(expected)
    still = [jax.tree_util.keystr(path) for path, g in flat if not np.abs(g).max() > 0]
    assert still == ["['decoder']['timestep_scale_multiplier']"]  # a unit, not a weight
    changed, _ = step(SMALL, ExecutionConfig(remat="full"))
    for a, b in zip(jax.tree.leaves(changed), jax.tree.leaves(expected), strict=True):
        # The same operations, fused differently, in float32.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_recomputation_keeps_what_it_says():
    """ "dots" recomputes no convolution; "full" recomputes those that the backward pass needs."""
    params = drawn_parameters(SMALL)
    latents = jnp.zeros((1, 2, 4, 4, 8))

    def convolutions(remat):
        model = VideoVAE(SMALL, ExecutionConfig(remat=remat))

        def loss(params):
            return model.apply({"params": params}, latents, jnp.zeros(1), method="decode").sum()

        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("name=_convolve")

    assert 0 < convolutions("none") == convolutions("dots") < convolutions("full")


@pytest.mark.thorough
def test_one_device_equals_eight(mesh):
    params = drawn_parameters(SMALL)
    video, latents = jnp.asarray(normal(0, 2, 3, 16, 32, 3)), jnp.asarray(normal(1, 2, 2, 2, 4, 8))
    model = VideoVAE(SMALL)
    boxed = jax.eval_shape(model.init, jax.random.key(0), video)["params"]
    layout = sharding.shardings(boxed, mesh)
    large = layout["decoder"]["up_blocks_0"]["res_blocks_0"]["conv1"]["kernel"]
    assert "fsdp" in str(large.spec)
    spread = jax.device_put(params, layout)

    def both(params, video, latents):
        posterior = model.apply({"params": params}, video, method="encode")
        return posterior.mean, model.apply(
            {"params": params}, latents, jnp.asarray(TIMES), method="decode"
        )

    with sharding.use_mesh(mesh):
        many = compiled(both)(spread, video, latents)
    for a, b in zip(many, compiled(both)(params, video, latents), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # float32 rounding


@pytest.mark.thorough
def test_bfloat16_follows_float32():
    exact, (moments, video) = step(SMALL)
    rounded, (half_moments, half_video) = step(SMALL, ExecutionConfig(dtype="bfloat16"))
    for a, b in [(half_moments.mean, moments.mean), (half_video, video)]:
        assert a.dtype == jnp.float32
        # A dozen roundings to 8 bits, on outputs of order 1.
        np.testing.assert_allclose(a, b, atol=0.1)
        assert np.abs(a - b).max() > 1e-4  # it did compute in bfloat16
    for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(a - b) <= 0.1 * np.linalg.norm(b)


@pytest.mark.thorough
def test_float16_survives_activations_beyond_its_range():
    """Those of trained decoders reach 8e5. The norms make the outputs those of other scales."""
    params = jax.tree.map(lambda x: x, drawn_parameters(SMALL))
    for half in ("encoder", "decoder"):
        params[half]["conv_in"] = jax.tree.map(lambda x: 1e6 * x, params[half]["conv_in"])
    video, latents = jnp.asarray(normal(0, 2, 3, 16, 16, 3)), jnp.asarray(normal(1, 2, 2, 2, 2, 8))

    def both(execution):
        model = VideoVAE(SMALL, execution)

        def run(params):
            posterior = model.apply({"params": params}, video, method="encode")
            times = jnp.asarray(TIMES)
            return posterior.mean, model.apply({"params": params}, latents, times, method="decode")

        return compiled(run)(params)

    exact, rounded = both(ExecutionConfig()), both(ExecutionConfig(dtype="float16"))
    for a, b in zip(rounded, exact, strict=True):
        # bfloat16 or float32, whichever the device has: as above.
        np.testing.assert_allclose(a, b, atol=0.1)


@pytest.mark.thorough
def test_a_fresh_model_is_of_order_one_and_almost_deterministic(keys):
    """The initial parameters of training from scratch."""
    video = jnp.asarray(normal(0, 2, 3, 16, 16, 3))
    model = VideoVAE(SMALL)

    @compiled
    def start(key):
        params = sharding.unbox(model.init(key, video))["params"]
        posterior = model.apply({"params": params}, video, method="encode")
        time = jnp.zeros(2)
        return (
            params,
            posterior,
            model.apply({"params": params}, posterior.mean, time, method="decode"),
        )

    params, posterior, decoded = start(next(keys))
    assert 0.1 < float(posterior.mean.std()) < 2
    np.testing.assert_allclose(posterior.logvar, -7, atol=3)  # a deviation of about 0.03
    assert 0.1 < float(decoded.std()) < 2
    block = params["encoder"]["down_blocks_0"]["res_blocks_0"]
    ratio = block["conv2"]["kernel"].std() / block["conv1"]["kernel"].std()
    assert 0.2 < ratio < 0.4  # the second convolution of a residual block starts small


def test_parameters_are_stored_in_their_own_type():
    boxed = vae_boxed(SMALL, "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(boxed)} == {jnp.dtype("bfloat16")}
