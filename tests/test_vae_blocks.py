"""The Video-VAE's building blocks, each against a few lines of torch or of loops."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from vae_reference import tiny

from ltx_jax.config import ExecutionConfig
from ltx_jax.models import vae_blocks

torch = pytest.importorskip("torch")
tf = torch.nn.functional

# Sums of at most a few hundred float32 products of order 1, in another order.
TOLERANCE = 1e-5
FLOAT32 = ExecutionConfig()


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def to_torch(x):
    return torch.tensor(np.moveaxis(x, -1, 1).copy())


def from_torch(x):
    return np.moveaxis(x.numpy(), 1, -1)


@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect", "circular"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_convolutions_pad_space_by_mode_and_time_by_repetition(mode, causal, stride):
    cfg = tiny([], [], spatial_padding_mode=mode)
    x, kernel, bias = normal(0, 2, 5, 4, 6, 3), 0.2 * normal(1, 3, 3, 3, 3, 4), normal(2, 4)
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    module = vae_blocks.Conv(cfg, FLOAT32, 4, causal, stride)
    ours = module.apply({"params": params}, jnp.asarray(x))

    last = [] if causal else [x[:, -1:]]
    repeated = np.concatenate([x[:, :1]] * (2 if causal else 1) + [x, *last], axis=1)
    padded = tf.pad(
        to_torch(repeated), (1, 1, 1, 1, 0, 0), mode="constant" if mode == "zeros" else mode
    )
    weight = torch.tensor(kernel.transpose(4, 3, 0, 1, 2).copy())
    theirs = tf.conv3d(padded, weight, torch.tensor(bias), stride)
    np.testing.assert_allclose(ours, from_torch(theirs), atol=TOLERANCE)


@pytest.mark.parametrize("norm_layer", ["pixel_norm", "group_norm", "layer_norm"])
def test_norms_are_those_of_torch(norm_layer):
    x, scale, bias = 3 * normal(0, 2, 3, 4, 5, 64) + 1, normal(1, 64), normal(2, 64)
    cfg = tiny([], [], norm_layer=norm_layer)
    params = {} if norm_layer == "pixel_norm" else {"scale": jnp.asarray(scale), "bias": bias}
    ours = vae_blocks.make_norm(cfg, FLOAT32, "norm1").apply({"params": params}, jnp.asarray(x))

    weights = torch.tensor(scale), torch.tensor(bias)
    match norm_layer:
        case "pixel_norm":
            theirs = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-8)
        case "group_norm":
            theirs = from_torch(tf.group_norm(to_torch(x), 32, *weights, eps=1e-6))
        case "layer_norm":
            theirs = tf.layer_norm(torch.tensor(x), (64,), *weights, eps=1e-6).numpy()
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


def test_norms_take_their_statistics_in_float32():
    """The squares of these values overflow float16, and bfloat16 is too coarse for their mean."""
    x = normal(0, 1, 2, 3, 4, 64) + 300
    for norm_layer in ("pixel_norm", "layer_norm"):
        norm = vae_blocks.make_norm(tiny([], [], norm_layer=norm_layer), FLOAT32, "norm1")
        params = (
            {} if norm_layer == "pixel_norm" else {"scale": jnp.ones(64), "bias": jnp.zeros(64)}
        )
        half = norm.apply({"params": params}, jnp.asarray(x, jnp.float16))
        exact = norm.apply({"params": params}, jnp.asarray(x, jnp.float16).astype(jnp.float32))
        assert half.dtype == jnp.float16
        np.testing.assert_allclose(half, exact, atol=2e-3)  # one rounding of values below 4


@pytest.mark.parametrize("stride", [(2, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 3)])
def test_space_to_depth_has_the_official_order_and_an_inverse(stride):
    st, sh, sw = stride
    x = normal(0, 2, 2 * st, 3 * sh, 2 * sw, 3)
    deep = np.asarray(vae_blocks.space_to_depth(jnp.asarray(x), stride))
    assert deep.shape == (2, 2, 3, 2, 3 * st * sh * sw)
    for c, t, h, w in itertools.product(range(3), range(st), range(sh), range(sw)):
        channel = ((c * st + t) * sh + h) * sw + w
        np.testing.assert_array_equal(deep[..., channel], x[:, t::st, h::sh, w::sw, c])
    np.testing.assert_array_equal(vae_blocks.depth_to_space(jnp.asarray(deep), stride), x)


def conv_params(seed, inputs, outputs):
    kernel, bias = 0.2 * normal(seed, 3, 3, 3, inputs, outputs), normal(seed + 1, outputs)
    return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}


@pytest.mark.thorough
@pytest.mark.parametrize("stride", [(2, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_downsampling_averages_groups_of_consecutive_channels_beside_the_convolution(stride):
    cfg, size = tiny([], []), int(np.prod(stride))
    x = jnp.asarray(normal(0, 2, 5 if stride[0] == 2 else 3, 4, 6, 4))
    params = conv_params(1, 4, 8 // size)
    ours = vae_blocks.Downsample(cfg, FLOAT32, 8, stride).apply({"params": {"conv": params}}, x)

    if stride[0] == 2:
        x = jnp.concatenate([x[:, :1], x], axis=1)
    main = vae_blocks.Conv(cfg, FLOAT32, 8 // size, True).apply({"params": params}, x)
    skip = np.asarray(vae_blocks.space_to_depth(x, stride))
    group = 4 * size // 8
    means = [skip[..., i * group : (i + 1) * group].mean(-1) for i in range(8)]
    expected = vae_blocks.space_to_depth(main, stride) + np.stack(means, axis=-1)
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("stride", "multiplier", "residual"),
    [((2, 1, 1), 1, False), ((1, 2, 2), 1, False), ((2, 2, 2), 4, False), ((2, 2, 2), 2, True)],
)
def test_upsampling_drops_the_first_frame_and_repeats_all_channels(stride, multiplier, residual):
    cfg, size = tiny([], []), int(np.prod(stride))
    x = jnp.asarray(normal(0, 2, 3, 2, 3, 16))
    params = conv_params(1, 16, size * 16 // multiplier)
    module = vae_blocks.Upsample(cfg, FLOAT32, 16 // multiplier, stride, residual)
    ours = module.apply({"params": {"conv": params}}, x)

    main = vae_blocks.Conv(cfg, FLOAT32, size * 16 // multiplier, False).apply(
        {"params": params}, x
    )
    expected = np.asarray(vae_blocks.depth_to_space(main, stride))
    if residual:
        skip = np.asarray(vae_blocks.depth_to_space(x, stride))
        expected = expected + np.concatenate([skip] * (8 // multiplier), axis=-1)
    expected = expected[:, 1:] if stride[0] == 2 else expected
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)
    assert ours.shape == (
        2,
        5 if stride[0] == 2 else 3,
        2 * stride[1],
        3 * stride[2],
        16 // multiplier,
    )


def test_noise_maps_serve_all_frames_and_one_or_all_samples():
    cfg = tiny([], [])
    block = vae_blocks.ResBlock(cfg, FLOAT32, 4, True, inject_noise=True)
    x = jnp.asarray(normal(0, 2, 3, 4, 5, 4))
    zero = {"kernel": jnp.zeros((3, 3, 3, 4, 4)), "bias": jnp.zeros(4)}
    scales = {f"per_channel_scale{i}": jnp.asarray(normal(i, 4)) for i in (1, 2)}
    params = {"params": {"conv1": zero, "conv2": zero, **scales}}
    first, second = normal(3, 4, 5), normal(4, 2, 4, 5)
    # The convolutions are zero, so that only the second map is added to the input.
    added = block.apply(params, x, None, (jnp.asarray(first), jnp.asarray(second))) - x
    expected = second[:, None, :, :, None] * np.asarray(scales["per_channel_scale2"])
    np.testing.assert_allclose(added, np.broadcast_to(expected, x.shape), atol=1e-6)
    added = block.apply(params, x, None, (jnp.asarray(first), jnp.asarray(first))) - x
    np.testing.assert_allclose(added[0], added[1], atol=1e-6)
    assert np.abs(added).max() > 0.1
