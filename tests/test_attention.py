"""Attention, compared with its definition in float64 and with PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ltx_jax.config import MeshConfig
from ltx_jax.models.attention import attention
from ltx_jax.runtime import sharding

# The second is large enough for the implementation that computes one head at a time.
SIZES = {"small": (7, 5), "large": (130, 150)}


def draw(n, m, dtype=jnp.float32, b=3, k=2, e=8):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((b, n, k, e))
    keys, values = rng.standard_normal((2, b, m, k, e))
    mask = np.arange(m) < np.array([[m], [m // 2], [0]])
    return [jnp.asarray(x, dtype) for x in (q, keys, values)], jnp.asarray(mask)


def definition(q, k, v, mask=None):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bnke,bmke->bknm", q, k) / np.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + (1 - np.asarray(mask, np.float64))[:, None, None] * -10_000
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bknm,bmke->bnke", weights, v)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_softmax_attention(size, masked):
    qkv, mask = draw(*size)
    mask = mask if masked else None
    got, want = jax.jit(attention)(*qkv, mask=mask), definition(*qkv, mask)
    np.testing.assert_allclose(got[:2], want[:2], rtol=0, atol=1e-6)
    # In the fully masked row, scores near -10000 are rounded to 1e-3.
    np.testing.assert_allclose(got[2], want[2], rtol=0, atol=1e-2 if masked else 1e-6)


def test_attention_matches_pytorch():
    torch = pytest.importorskip("torch")
    qkv, mask = draw(7, 5)
    theirs = [torch.from_numpy(np.array(x)).transpose(1, 2) for x in qkv]
    bias = torch.from_numpy(-10_000 * (1 - np.asarray(mask, np.float32)))[:, None, None]
    want = torch.nn.functional.scaled_dot_product_attention(*theirs, attn_mask=bias)
    got = attention(*qkv, mask=mask)
    np.testing.assert_allclose(got, want.transpose(1, 2), rtol=0, atol=1e-3)
    np.testing.assert_allclose(got[:2], want.transpose(1, 2)[:2], rtol=0, atol=1e-6)


def test_a_caption_that_is_masked_out_still_gives_a_mean_of_its_values():
    """As in the released model, the mask's bias is finite, so nothing is NaN."""
    qkv, mask = draw(7, 5)
    masked_out = attention(*qkv, mask=mask)[2]
    np.testing.assert_allclose(masked_out, attention(*qkv)[2], rtol=0, atol=1e-2)


@pytest.mark.parametrize("dtype", [bool, jnp.int32, jnp.float32])
def test_masks_of_every_type_mean_the_same(dtype):
    qkv, mask = draw(7, 5)
    got = attention(*qkv, mask=mask.astype(dtype))
    np.testing.assert_array_equal(got, attention(*qkv, mask=mask))


@pytest.mark.thorough
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_gradients_are_those_of_pytorch(size):
    torch = pytest.importorskip("torch")
    qkv, mask = draw(*size)
    weight = np.sin(np.arange(qkv[0].size, dtype=np.float32)).reshape(qkv[0].shape)
    theirs = [torch.from_numpy(np.array(x)).double().requires_grad_() for x in qkv]
    bias = torch.from_numpy(-10_000.0 * ~np.asarray(mask))[:, None, None]
    out = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in theirs), attn_mask=bias
    )
    (out.transpose(1, 2) * torch.from_numpy(weight)).sum().backward()

    def loss(q, k, v):
        return jnp.sum(weight * attention(q, k, v, mask=mask))

    program = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    assert ("scan" in str(program.trace(*qkv).jaxpr)) == (size == SIZES["large"])
    for got, want in zip(program(*qkv), theirs, strict=True):
        # Without the third sample, which is fully masked: its scores near -10000 are rounded to
        # 1e-3.
        np.testing.assert_allclose(got[:2], want.grad[:2], rtol=0, atol=1e-5)


MESHES = [dict(data=1, seq=8), dict(data=1, seq=4, tensor=2), dict(data=1, fsdp=2, seq=2, tensor=2)]


@pytest.mark.thorough
@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("is_self_attention", [True, False])
def test_tokens_and_heads_over_eight_devices_are_attended_to_as_on_one(sizes, is_self_attention):
    n = 136  # large enough, with all its keys, to compute one head at a time
    qkv, _ = draw(n, n, b=2, k=8)
    mask = jnp.arange(n)[None] < jnp.array([[n], [n - 5]])
    weight = jnp.sin(jnp.arange(qkv[0].size, dtype=jnp.float32)).reshape(qkv[0].shape)

    def run(q, k, v):
        out = attention(q, k, v, mask=mask, is_self_attention=is_self_attention)
        return jnp.sum(weight * out), out

    def program():
        return jax.jit(jax.grad(lambda *x: run(*x), argnums=(0, 1, 2), has_aux=True))

    want = program()(*qkv)
    split = sharding.make_mesh(MeshConfig(**sizes))
    with sharding.use_mesh(split):
        spread = program().lower(*qkv).compile()
        got = spread(*qkv)
    assert ("all-to-all" in spread.as_text()) == is_self_attention
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6 * np.abs(y).max())


def test_a_device_holds_its_part_of_the_tokens_or_of_the_heads():
    """Self-attention gathers nothing, and each device computes the scores of some heads only."""
    n, heads = 256, 8
    split = sharding.make_mesh(MeshConfig(data=1, seq=8))
    where = NamedSharding(split, P(None, "seq"))
    q = jax.ShapeDtypeStruct((1, n, heads, 16), jnp.float32, sharding=where)
    with sharding.use_mesh(split):
        program = jax.jit(lambda *x: attention(*x, is_self_attention=True), out_shardings=where)
        compiled = program.lower(q, q, q).compile()
    assert "all-gather" not in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * 4 * n * n  # one of eight heads


@pytest.mark.parametrize("sizes", [dict(data=4, seq=2), dict(data=1, seq=2, tensor=4)], ids=str)
def test_heads_that_cannot_be_split_are_refused_with_the_way_out(sizes):
    qkv, _ = draw(8, 8, b=4, k=3)
    split = sharding.make_mesh(MeshConfig(**sizes))
    with (
        sharding.use_mesh(split),
        pytest.raises(ValueError, match=r"3 attention heads.*--mesh\.seq"),
    ):
        jax.eval_shape(lambda *x: attention(*x, is_self_attention=True), *qkv)


def test_scores_and_softmax_are_in_float32_whatever_the_input():
    """Close scores around 400, which bfloat16 rounds to multiples of 2."""
    q = jnp.full((1, 1, 1, 1), 20.0, jnp.bfloat16)
    k = jnp.array([20.0, 20.125], jnp.bfloat16).reshape(1, 2, 1, 1)
    v = jnp.array([0.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1)
    got = attention(q, k, v)
    assert got.dtype == jnp.bfloat16
    want = 1 / (1 + np.exp(-20 * 0.125))
    np.testing.assert_allclose(got.astype(np.float32).item(), want, rtol=2**-8)


def test_scores_are_not_kept_for_the_gradient():
    n = 1024
    q = jax.ShapeDtypeStruct((1, n, 8, 16), jnp.float32)
    gradient = jax.jit(jax.grad(lambda *qkv: jnp.sum(attention(*qkv) ** 2), argnums=(0, 1, 2)))
    used = gradient.lower(q, q, q).compile().memory_analysis().temp_size_in_bytes
    assert used < 5 * 4 * n * n, "more than the scores of a few of the eight heads"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("size", "masked", "parts"),
    [((128, 128), False, 1), ((130, 150), False, 1), ((130, 150), True, 2)],
    ids=str,
)
def test_the_kernel_for_tpus_attends_as_the_plain_form(size, masked, parts, monkeypatch):
    """Also its gradients. The kernel runs interpreted; padding of the last block has no effect."""
    monkeypatch.setattr("ltx_jax.models.attention._BLOCK", 128)
    monkeypatch.setattr("ltx_jax.models.attention._GRADIENT_BLOCKS", 2 // parts)
    make = splash_attention_kernel.make_splash_mha_single_device
    interpreted = functools.partial(make, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha_single_device", interpreted)
    qkv, _ = draw(*size, b=2)
    lengths = np.array([[size[1]], [size[1] // 2]])
    mask = jnp.asarray(np.arange(size[1]) < lengths) if masked else None
    weight = jnp.sin(jnp.arange(qkv[0].size, dtype=jnp.float32)).reshape(qkv[0].shape)

    def run(form):
        def loss(q, k, v):
            out = attention(q, k, v, mask=mask, form=form)
            return jnp.sum(weight * out), out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)

    computed, plain = (jax.tree.leaves(run(form)) for form in ("splash", "plain"))
    for got, want in zip(computed, plain, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)  # float32, sums in blocks


def test_the_kernel_for_tpus_is_what_a_mesh_of_tpus_gets():
    device = jax.sharding.AbstractDevice(device_kind="TPU v5", num_cores=2, platform="tpu")
    axes = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), axes, abstract_device=device)
    (q, k, v), _ = draw(7, 5)
    with jax.sharding.use_abstract_mesh(mesh):
        program = jax.make_jaxpr(lambda *x: attention(*x, form="auto"))(q, k, v)
    assert "pallas_call" in str(program)
