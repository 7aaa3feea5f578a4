"""Operations counted against closed forms, and those of gradients against the gradients' own."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from ltx_jax.checkpoints import official_config
from ltx_jax.checkpoints.releases import RELEASED
from ltx_jax.config import ExecutionConfig, TransformerConfig
from ltx_jax.models.transformer import Context, Transformer
from ltx_jax.models.vae import VideoVAE
from ltx_jax.runtime import sharding
from ltx_jax.training.flops import count_flop, peak_flops


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


ROWS, SQUARE = shape(5, 8), shape(8, 8)
ONE = 2 * 5 * 8 * 8  # a product of the two
CONV = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_a_scan_counts_every_turn():
    def layers(x, w):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    assert count_flop(layers, ROWS, shape(3, 8, 8)) == 3 * ONE
    assert count_flop(lambda x: lax.fori_loop(0, 7, lambda i, x: x @ x, x), SQUARE) == 7 * 2 * 8**3


def test_a_convolution_counts_its_window_and_its_channels():
    def convolve(x, w, groups=1):
        return lax.conv_general_dilated(x, w, **CONV, feature_group_count=groups)

    one = 2 * (2 * 7 * 6 * 5) * (3 * 3 * 4)
    assert count_flop(convolve, shape(2, 7, 6, 4), shape(3, 3, 4, 5)) == one
    grouped = count_flop(lambda x, w: convolve(x, w, 2), shape(2, 7, 6, 4), shape(3, 3, 2, 6))
    assert grouped == 2 * (2 * 7 * 6 * 6) * (3 * 3 * 2)


def test_a_condition_counts_its_dearest_branch():
    def either(x, w):
        return lax.platform_dependent(x, w, cpu=lambda x, w: x @ w, default=jnp.matmul)

    def of_another_platform(x, w):
        twice = lambda x, w: x @ w @ w  # noqa: E731
        return lax.platform_dependent(x, w, tpu=twice, default=jnp.matmul)

    def maybe(go, x, w):
        return lax.cond(go, lambda: x @ w @ w, lambda: x @ w)

    assert count_flop(either, ROWS, SQUARE) == ONE
    assert count_flop(of_another_platform, ROWS, SQUARE) == ONE
    assert count_flop(maybe, shape(dtype=jnp.bool_), ROWS, SQUARE) == 2 * ONE


def test_what_nothing_depends_on_is_not_counted():
    def pull_back(x, w, g):
        return jax.vjp(jnp.matmul, x, w)[1](g)  # traced with its forward product

    assert count_flop(pull_back, ROWS, SQUARE, ROWS) == 2 * ONE
    assert count_flop(lambda *a: jax.jit(pull_back)(*a)[0], ROWS, SQUARE, ROWS) == ONE
    assert count_flop(jax.jit(lambda x, w: (x @ w, 1.0)), ROWS, SQUARE) == ONE  # a constant output


def test_the_gradient_of_a_strided_convolution_takes_two_more_of_it():
    def convolve(x, w):
        return lax.conv_general_dilated(x, w, **CONV | {"window_strides": (2, 2)})

    x, w = shape(2, 16, 16, 4), shape(3, 3, 4, 5)
    one = 2 * (2 * 8 * 8 * 5) * (3 * 3 * 4)
    gradient = jax.grad(lambda x, w: jnp.sum(convolve(x, w) ** 2), (0, 1))
    assert count_flop(gradient, x, w) == 3 * one


def test_a_loop_of_unknown_length_is_refused_if_it_holds_products():
    def loop(n, x):
        return lax.fori_loop(0, n, lambda i, x: jnp.tanh(x @ x), x)

    with pytest.raises(ValueError, match="unknown length"):
        count_flop(loop, shape(dtype=jnp.int32), SQUARE)
    assert count_flop(lambda n, x: lax.fori_loop(0, n, lambda i, x: x + 1, x), 3, SQUARE) == 0


@jax.custom_vjp
def own_gradient(x, w):
    return x @ w


own_gradient.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))


@jax.custom_jvp
def own_tangent(x, w):
    return x @ w


own_tangent.defjvp(lambda primals, tangents: (own_tangent(*primals), tangents[0] @ primals[1]))


@pytest.mark.parametrize("wrapped", [own_gradient, own_tangent, jax.jit(jnp.matmul)])
def test_products_inside_functions_with_rules_of_their_own_are_counted_once(wrapped):
    assert count_flop(wrapped, ROWS, SQUARE) == ONE
    assert count_flop(jax.checkpoint(wrapped), ROWS, SQUARE) == ONE


def test_shard_map_counts_all_devices_that_do_different_things(mesh):
    rows = P(("data", "fsdp", "seq"))
    split = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, P()), out_specs=rows)
    assert count_flop(split, shape(16, 8), SQUARE) == 2 * 16 * 8 * 8  # once: on `tensor` alike
    by_hand = jax.shard_map(
        jnp.matmul,
        mesh=mesh,
        in_specs=(P("seq"), P()),
        out_specs=P("seq"),
        axis_names={"seq"},
    )
    assert count_flop(by_hand, shape(16, 8), SQUARE) == 2 * 16 * 8 * 8


def loss(params, x):
    """A bit of everything, where every product's gradient is that of both of its factors."""
    h = own_gradient(x * params["scale"], params["first"])
    body = jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None))
    h, _ = lax.scan(body, h, params["layers"])
    h = lax.conv_general_dilated(h.reshape(1, 5, 2, 4), params["kernel"], **CONV)
    target = lax.stop_gradient(h.reshape(5, 8) @ params["first"])
    return jnp.sum((own_tangent(h.reshape(5, 8), lax.stop_gradient(params["first"])) - target) ** 2)


PARAMS = {
    "scale": shape(),
    "first": SQUARE,
    "layers": shape(3, 8, 8),
    "kernel": shape(3, 3, 4, 4),
}


def test_a_gradient_counts_each_product_once_more_for_each_factor_it_flows_through():
    kernel = 2 * (5 * 2 * 4) * (3 * 3 * 4)
    forward = ONE + 3 * ONE + kernel + ONE + ONE
    assert count_flop(loss, PARAMS, ROWS) == forward
    # The target takes no gradient, the last product one for its first factor alone.
    assert count_flop(loss, PARAMS, ROWS, gradient=0) == 3 * (4 * ONE + kernel) + ONE + 2 * ONE


def test_a_gradient_is_counted_as_jax_takes_it_where_nothing_is_computed_twice():
    def plain(params, x):
        h = jnp.tanh(x * params["scale"]) @ params["first"]
        h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, params["layers"])
        return jnp.sum(h @ h.T)

    params = {name: PARAMS[name] for name in ("scale", "first", "layers")}
    taken = count_flop(jax.value_and_grad(plain), params, ROWS)
    assert count_flop(plain, params, ROWS, gradient=0) == taken

    def deep(h, w):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, w)[0].sum()

    # What a loop carries depends on the parameters after its first turn alone: JAX, too, takes the
    # gradient of every turn.
    layers = (SQUARE, shape(3, 8, 8))
    taken = count_flop(jax.value_and_grad(deep, 1), *layers)
    assert count_flop(deep, *layers, gradient=1) == taken == 3 * 3 * 2 * 8**3
    again = jax.value_and_grad(jax.checkpoint(plain))
    assert count_flop(again, params, ROWS) > taken  # as executed


def test_attention_by_cudnn_is_counted_as_the_plain_form():
    """Traced only: there is no cuDNN on a CPU."""

    def attend(q, k, v, form):
        return jax.nn.dot_product_attention(q, k, v, implementation=form).sum()

    def cost(function, form):
        inputs = [shape(2, n, 4, 64, dtype=jnp.bfloat16) for n in (128, 256, 256)]
        return count_flop(lambda *x: function(*x, form), *inputs)

    one = 2 * 2 * 4 * 128 * 256 * 64
    known = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    with mock.patch(known, return_value=91200):
        assert cost(attend, "cudnn") == 2 * one
        assert cost(jax.value_and_grad(attend, (0, 1, 2)), "cudnn") == 2 * one + 5 * one
    assert cost(attend, "xla") == 2 * one


PLAIN = ExecutionConfig(attention="plain")


def transformer_forward(cfg, n, execution=PLAIN, captions=256):
    model = Transformer(cfg, execution)
    context = Context(
        shape(1, captions, cfg.caption_channels),
        shape(1, captions, dtype=jnp.int32),
        (shape(1, n, cfg.width // 2),) * 2,
    )
    inputs = shape(1, n, cfg.in_channels), shape(1, 1), context
    params = jax.eval_shape(lambda *x: sharding.unbox(model.init(jax.random.key(0), *x)), *inputs)
    return model.apply, params, *inputs


# TFLOP of linear layers, self-attention, cross-attention and the captions' keys and values.
FORWARDS = [
    ("2B", {}, 6144, (20.20, 8.66, 0.36, 0.120)),
    ("2B", {}, 13376, (43.98, 41.04, 0.79, 0.120)),
    ("13B", {"num_layers": 48, "attention_head_dim": 128}, 6144, (138.54, 29.69, 1.24, 0.825)),
]


@pytest.mark.parametrize(("name", "sizes", "n", "parts"), FORWARDS)
def test_the_transformers_forward_is_the_sum_of_its_parts(name, sizes, n, parts):
    cfg = TransformerConfig(**sizes)
    width, layers, captions = cfg.width, cfg.num_layers, cfg.caption_channels
    blocks = layers * (28 * width**2 * n + 4 * n**2 * width + 4 * n * 256 * width)
    of_captions = layers * 2 * 2 * 256 * width**2
    once = 2 * 256 * (captions + width) * width + 2 * (256 + 7 * width) * width
    ends = 2 * n * 2 * cfg.in_channels * width
    counted = count_flop(*transformer_forward(cfg, n))
    assert counted == blocks + of_captions + once + ends
    # The parts are rounded to 0.01 TFLOP; what is done once per clip is about 0.013.
    assert counted / 1e12 == pytest.approx(sum(parts), abs=0.1)


def test_training_the_transformer_takes_three_forwards():
    execution = ExecutionConfig(attention="plain", remat="full")
    forward, params, *inputs = transformer_forward(TransformerConfig(), 6144, execution)
    once = count_flop(forward, params, *inputs)
    # Only the inputs themselves take no gradient.
    assert count_flop(forward, params, *inputs, gradient=0) == pytest.approx(3 * once, rel=1e-3)


# TFLOP at 121 frames of 512x768, counted for another implementation layer by layer.
VAES = [("2b-0.9.0", "decode", 41.5), ("2b-0.9.5", "decode", 60.2), ("2b-0.9.5", "encode", 139.7)]


@pytest.mark.thorough
@pytest.mark.parametrize(("version", "method", "tflop"), VAES)
def test_the_vaes_forward_is_that_of_the_released_one(version, method, tflop):
    cfg = official_config.vae(RELEASED[version].config["vae"])
    model = VideoVAE(cfg)
    side, frames = cfg.spatial_factor, cfg.temporal_factor + 1
    small = shape(1, frames, side, side, 3)
    params = jax.eval_shape(lambda x: sharding.unbox(model.init(jax.random.key(0), x)), small)
    if method == "encode":
        inputs = (shape(1, 121, 512, 768, 3),)
    else:
        inputs = (shape(1, 16, 16, 24, cfg.latent_channels), shape(1))

    def run(params, *inputs):
        return model.apply(params, *inputs, method=method)

    assert count_flop(run, params, *inputs) / 1e12 == pytest.approx(tflop, rel=0.005)


def test_peaks_are_those_of_the_device_kind():
    kinds = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H200": 989e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "TPU v4": 275e12,
        "TPU v5 lite": 197e12,
        "TPU v5e": 197e12,
        "TPU v5": 459e12,
        "TPU v5p": 459e12,
        "TPU v6 lite": 918e12,
        "TPU v6e": 918e12,
        "cpu": None,
    }
    assert {kind: peak_flops(kind) for kind in kinds} == kinds
