"""The sampling form of the transformer equals the stored one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from quick import compiled

from ltx_jax.config import ExecutionConfig, TransformerConfig
from ltx_jax.diffusion import positions
from ltx_jax.models.transformer import Context, Skip, TimeGroups, Transformer, example_inputs
from ltx_jax.models.transformer_fast import FastTransformer
from ltx_jax.models.transformer_fast_parameters import (
    LINEARS,
    UnsupportedParametersError,
    derive,
    quantize,
)
from ltx_jax.runtime import sharding

CFG = TransformerConfig(
    num_layers=3,
    num_attention_heads=4,
    attention_head_dim=16,
    in_channels=8,
    out_channels=8,
    caption_channels=32,
)
GRID = (3, 4, 5)
NETWORK = FastTransformer(CFG)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32))


@pytest.fixture(scope="module")
def params():
    """Every tensor drawn at random, gains and tables too."""
    init = Transformer(CFG).init
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), *example_inputs(CFG)))["params"]
    leaves, tree = jax.tree.flatten(sharding.unbox(shapes))

    def leaf(i, x):
        return draw(*x.shape, seed=i) / max(x.shape[-2] if x.ndim > 1 else 2, 2) ** 0.5

    return tree.unflatten([leaf(i, x) for i, x in enumerate(leaves)])


def inputs(per_token=False):
    """Tokens, times and a context."""
    coords = positions.pixel_coords(positions.latent_coords(GRID), 8, 32, True)
    n = coords.shape[0]
    t = jnp.asarray(np.random.default_rng(3).uniform(size=(2, n if per_token else 1)), jnp.float32)
    mask = jnp.arange(6)[None] < jnp.array([[6], [2]])
    rope = positions.rope_of(coords, 25.0, CFG)
    return draw(2, n, 8), t, Context(draw(2, 6, 32, seed=1), mask.astype(jnp.int32), rope)


def plain(params, arguments, skip=None, execution=ExecutionConfig()):
    return compiled(Transformer(CFG, execution).apply)({"params": params}, *arguments, skip)


def prepared(derived, arguments, network=NETWORK):
    x, t, context = arguments
    return x, t, network.context(derived, context)


def fast(params, arguments, skip=None, execution=ExecutionConfig(), maxima=None):
    network = FastTransformer(CFG, execution)

    @compiled
    def run(params, arguments, skip):
        derived = derive(params, CFG, execution)
        if maxima is not None:
            derived = quantize(derived, "float8", maxima)
        return network(derived, *prepared(derived, arguments, network), skip)

    return run(params, arguments, skip)


@pytest.mark.thorough
@pytest.mark.parametrize("per_token", [False, True])
def test_the_velocity_is_that_of_the_reference(params, per_token):
    arguments = inputs(per_token)
    want = plain(params, arguments)
    assert np.std(want) > 0.3
    # float32 rounding of outputs of order 1, over three layers.
    np.testing.assert_allclose(fast(params, arguments), want, rtol=0, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("count", [1, 3])
def test_groups_of_tokens_have_their_own_times(params, count):
    """Each embedded once, and every token modulated by its own; the last layer likewise."""
    x, _, context = inputs()
    times = jnp.array([[0.9, 0.0, 0.35]])[:, :count]
    group = jnp.asarray(np.random.default_rng(4).integers(0, count, x.shape[:2]))
    member = jnp.stack([jnp.argmax(group == i, axis=1) for i in range(count)], axis=1)
    every_token = jnp.take(times[0], group)
    grouped = context.replace(time_groups=TimeGroups(group, member))
    want = plain(params, (x, every_token, context))
    got = fast(params, (x, every_token, grouped))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    if count > 1:
        other = plain(params, (x, times[:, :1].repeat(2, 0), context))
        assert np.abs(other - want).max() > 0.1


@pytest.mark.thorough
@pytest.mark.parametrize(
    "mode", ["attention_values", "attention_skip", "residual", "transformer_block"]
)
def test_skipped_blocks_are_those_of_the_reference(params, mode):
    arguments, skip = inputs(), Skip(mode, jnp.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
    got, want = fast(params, arguments, skip), plain(params, arguments, skip)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    if mode != "residual":
        assert np.abs(got[1] - plain(params, arguments)[1]).max() > 1e-2


@pytest.mark.thorough
def test_eight_bits_stay_within_their_rounding(params):
    """e4m3 keeps 4 bits of a number: 2^-4 at most of each, some 1e-2 of a sum of many."""
    arguments = inputs()
    derived, maxima = derive(params, CFG), []
    NETWORK(derived, *prepared(derived, arguments), maxima=maxima)
    assert len(maxima) == CFG.num_layers
    maxima = jax.tree.map(float, maxima)
    want = np.asarray(plain(params, arguments))
    got = np.asarray(fast(params, arguments, maxima=maxima))
    error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
    assert 1e-3 < error < 0.1


@pytest.mark.thorough
def test_bfloat16_is_no_further_from_float32_than_the_reference_is(params):
    arguments = inputs()
    exact = np.asarray(plain(params, arguments))
    execution = ExecutionConfig(dtype="bfloat16")
    ours = np.abs(np.asarray(fast(params, arguments, execution=execution)) - exact).mean()
    reference = np.abs(np.asarray(plain(params, arguments, execution=execution)) - exact).mean()
    assert ours < 1.5 * reference


@pytest.mark.thorough
def test_whole_bytes_stay_within_their_rounding(params):
    """127 steps of each output's largest weight (some 3 sigma): 1/127 * 3 / sqrt(12) of each
    weight, and so 0.7 % of each product; half a percent is what the layers together were found to
    add, 2 % is asserted."""
    arguments = inputs()

    @compiled
    def run(params):
        small = quantize(derive(params, CFG), "int8")
        return NETWORK(small, *prepared(small, arguments))

    want, got = np.asarray(plain(params, arguments)), np.asarray(run(params))
    assert 1e-4 < np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) < 0.02


@pytest.mark.thorough
@pytest.mark.parametrize(("linears", "kind"), [("int8", "int8"), ("float8", "float8_e4m3fn")])
def test_the_large_matrices_take_one_byte_a_weight(params, linears, kind):
    maxima = [dict.fromkeys(LINEARS, 1.0)] * CFG.num_layers
    small = quantize(derive(params, CFG), linears, maxima if linears == "float8" else None)
    for layer in small["layers"]:
        assert all(layer[name]["kernel"].dtype == kind for name in LINEARS)
    assert small["layers"][0]["caption_k"]["kernel"].dtype == "float32"  # once a video


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float8_matrices_neither_grow_nor_shrink(dtype):
    """What rounding adds to a weight has no direction; a scale of two values would have one."""
    kernel = draw(128, 256)
    # In bfloat16 this scale lies halfway between two values.
    kernel = kernel * (1 + 2**-8) * 448 / jnp.max(jnp.abs(kernel))
    p = {"kernel": kernel.astype(dtype), "bias": jnp.zeros(256, dtype)}
    layer = quantize({"layers": ({"qkv": p},)}, "float8", [{"qkv": 1.0}])["layers"][0]["qkv"]
    given, made = (
        np.asarray(x, np.float64) for x in (p["kernel"].T, layer["kernel"].astype("float32"))
    )
    gain = (given * made).sum() / (given**2).sum() * float(layer["scale"])
    assert gain == pytest.approx(1, abs=1.5e-3)  # of small weights rounding takes a thousandth


@pytest.mark.thorough
def test_eight_bit_products_need_to_know_their_inputs(params):
    with pytest.raises(ValueError, match="input_maxima"):
        quantize(derive(params, CFG), "float8")


def changed(params, path, change):
    """The parameters with `change` of the leaf of a path; None takes it out."""
    params, (*path, last) = jax.tree.map(lambda x: x, params), path.split("/")
    branch = params
    for name in path:
        branch = branch[name]
    leaf = change(branch.get(last))
    branch.pop(last, None)
    branch.update({} if leaf is None else {last: leaf})
    return params


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        ("blocks/gate", lambda x: jnp.ones((3, 64)), "does not use the parameters blocks/gate"),
        ("camera", lambda x: jnp.ones((3, 64)), "does not use the parameters camera"),
        ("blocks/attn1/q_norm/scale", lambda x: None, "blocks/attn1/q_norm/scale is missing"),
        ("blocks/attn2/k_norm/scale", lambda x: x[:, :16], r"shape \(16,\), expected \(64,\)"),
        ("blocks/ff/linear_1/kernel", lambda x: jnp.tile(x, 2), r"blocks/ff/linear_1/kernel has"),
    ],
    ids=["block", "end", "missing", "norm of each head", "twice as wide"],
)
def test_parameters_of_another_network_are_refused_by_name(params, path, change, message):
    """Whatever is not read would be left out of the function without a word."""
    with pytest.raises(UnsupportedParametersError, match=message):
        derive(changed(params, path, change), CFG)


@pytest.mark.thorough
def test_biases_may_be_left_out(params):
    bare = params
    for name in ("attn1", "attn2"):
        for linear in ("to_q", "to_k", "to_v"):
            bare = changed(bare, f"blocks/{name}/{linear}/bias", lambda x: None)
    cfg = dataclasses.replace(CFG, attention_bias=False)
    want = compiled(Transformer(cfg).apply)({"params": bare}, *inputs())
    np.testing.assert_allclose(fast(bare, inputs()), want, rtol=0, atol=1e-4)


@pytest.mark.thorough
def test_a_conditioning_that_is_not_known_is_refused(params):
    """Not one that is not used."""

    @struct.dataclass
    class Wider(Context):
        camera: Any = None

    x, t, context = inputs()
    names = [field.name for field in dataclasses.fields(context)]
    context = Wider(**{name: getattr(context, name) for name in names})
    derived = derive(params, CFG)
    NETWORK(derived, *prepared(derived, (x, t, context)))
    with pytest.raises(ValueError, match="conditioning camera: sample with fast=False"):
        prepared(derived, (x, t, context.replace(camera=jnp.ones((2, 3)))))
