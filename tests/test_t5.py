"""The T5 encoder, compared with transformers and on its own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from t5_reference import TINY, reference, run, save, torch
from transformers.models.t5.modeling_t5 import T5Attention

from ltx_jax.checkpoints import text_encoder_files
from ltx_jax.config import ExecutionConfig, MeshConfig, T5Config
from ltx_jax.models.t5 import T5Encoder, relative_buckets
from ltx_jax.runtime import sharding


@pytest.fixture(scope="module")
def model():
    return reference()


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    return save(model, tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def params(directory):
    return text_encoder_files.load_params(directory, TINY)


@functools.partial(jax.jit, static_argnames=("cfg", "execution"))
def encode(params, ids, mask, cfg=TINY, execution=ExecutionConfig()):
    return T5Encoder(cfg, execution).apply({"params": params}, ids, mask)


def draw_ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(3, TINY.vocab_size, shape).astype(np.int32)


def prefix_mask(lengths, length):
    return (np.arange(length) < np.array(lengths)[:, None]).astype(np.int32)


@pytest.mark.thorough
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20), (20, 300)])
def test_agrees_with_transformers_beyond_the_largest_distance(tmp_path, buckets, distance):
    cfg = dataclasses.replace(
        TINY, relative_attention_num_buckets=buckets, relative_attention_max_distance=distance
    )
    model = reference(cfg)
    params = text_encoder_files.load_params(save(model, tmp_path), cfg)
    ids, mask = draw_ids(3, 330), prefix_mask([330, 150, 7], 330)
    expected = run(model, ids, mask)
    assert 0.5 < expected.std() < 2
    # float32 rounding over 3 layers, summed in another order: measured 7e-6, and both have the same
    # distance from float64.
    np.testing.assert_allclose(encode(params, ids, mask, cfg), expected, atol=2e-5)


@pytest.mark.parametrize("buckets", [4, 6, 8, 16, 20, 32, 64, 128])
@pytest.mark.parametrize("distance", [33, 64, 100, 128, 512])
def test_buckets_are_those_of_transformers(buckets, distance):
    position = torch.arange(700)
    expected = T5Attention._relative_position_bucket(
        position[None, :] - position[:, None], True, buckets, distance
    )
    np.testing.assert_array_equal(relative_buckets(700, buckets, distance), expected.numpy())


@pytest.mark.parametrize(("buckets", "distance"), [(2, 128), (32, 8)])
def test_buckets_without_room_are_an_error(buckets, distance):
    with pytest.raises(ValueError, match=f"{buckets} relative position buckets up to .*{distance}"):
        relative_buckets(10, buckets, distance)


def test_tokens_and_mask_move_the_output(params):
    ids, mask = draw_ids(2, 12), prefix_mask([12, 5], 12)
    h = encode(params, ids, mask)
    other = ids.copy()
    other[:, 3] += 1
    assert np.abs(encode(params, other, mask) - h).max(axis=(1, 2)).min() > 1e-2
    # The second row alone has padding to hide.
    difference = np.abs(encode(params, ids, np.ones_like(mask)) - h)
    assert difference[1, :5].max() > 1e-2
    assert difference[0].max() == 0


def test_padding_does_not_change_the_embeddings_of_a_prompt(params):
    ids = draw_ids(2, 40)
    h = encode(params, ids, prefix_mask([40, 9], 40))
    alone = encode(params, ids[1:, :9], np.ones((1, 9), np.int32))
    np.testing.assert_allclose(h[1:, :9], alone, atol=1e-5)
    ids[1, 9:] = 0
    np.testing.assert_array_equal(encode(params, ids, prefix_mask([40, 9], 40))[1, :9], h[1, :9])


def test_bfloat16_stays_close_to_float32(params):
    ids, mask = draw_ids(2, 12), prefix_mask([12, 5], 12)
    h = encode(params, ids, mask, execution=ExecutionConfig(dtype="bfloat16"))
    assert h.dtype == jnp.bfloat16
    # 8 bits of mantissa through 3 layers with an unscaled softmax; a wrong operand is off by 1.
    assert np.abs(h.astype(np.float32) - encode(params, ids, mask)).max() < 0.15


@pytest.mark.thorough
def test_float16_survives_a_feed_forward_beyond_its_range(params):
    """The released weights do this to float16, so transformers keeps `wo` in float32."""
    params = jax.tree.map(lambda x: x, params)
    for name in ("wi_0", "wi_1"):
        kernel = params["blocks"]["ff"][name]["kernel"]
        params["blocks"]["ff"][name] = {"kernel": kernel * 300}
    ids, mask = draw_ids(1, 8), np.ones((1, 8), np.int32)
    expected = encode(params, ids, mask)
    h = encode(params, ids, mask, execution=ExecutionConfig(dtype="float16"))
    assert h.dtype == jnp.float16
    assert np.abs(h.astype(np.float32) - expected).max() < 0.05  # 11 bits of mantissa


@pytest.mark.thorough
def test_every_parameter_is_trained(params):
    ids, mask = draw_ids(2, 12), prefix_mask([12, 5], 12)
    target = jax.random.normal(jax.random.key(0), (2, 12, TINY.d_model))

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: jnp.mean((encode(p, ids, mask) - target) ** 2))(params)

    for path, leaf in jax.tree.leaves_with_path(gradient(params)):
        assert np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all()


@pytest.mark.thorough
def test_a_mesh_gives_the_embeddings_of_one_device(directory, params):
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    split = text_encoder_files.load_params(directory, TINY, mesh)
    assert split["blocks"]["ff"]["wo"]["kernel"].sharding.spec == P(None, "tensor", "fsdp")
    # 3 heads of 8 channels: the tensor axis divides the channels, but not the heads.
    assert split["blocks"]["attention"]["o"]["kernel"].sharding.spec == P(None, "tensor", "fsdp")
    ids, mask = draw_ids(4, 12), prefix_mask([12, 5, 1, 9], 12)
    with sharding.use_mesh(mesh):
        h = encode(split, ids, mask)
    # Sums in another order: rounding of float32.
    np.testing.assert_allclose(h, encode(params, ids, mask), atol=2e-5)


def test_every_large_parameter_of_xxl_is_sharded(mesh):
    cfg = T5Config()
    ids = jax.ShapeDtypeStruct((1, 256), jnp.int32)
    boxed = jax.eval_shape(T5Encoder(cfg).init, jax.random.key(0), ids, ids)["params"]
    leaves = jax.tree.leaves_with_path(sharding.unbox(boxed))
    for (path, leaf), layout in zip(
        leaves, jax.tree.leaves(sharding.shardings(boxed, mesh)), strict=True
    ):
        assert leaf.size < 2**20 or "fsdp" in str(layout.spec), jax.tree_util.keystr(path)


def test_shapes_of_xxl():
    cfg = T5Config()
    ids = jax.ShapeDtypeStruct((2, 256), jnp.int32)
    h, variables = jax.eval_shape(T5Encoder(cfg).init_with_output, jax.random.key(0), ids, ids)
    assert h.shape == (2, 256, 4096)
    params = sharding.unbox(variables["params"])
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    embedding = params["shared"]["embedding"]
    assert embedding.shape == (32_128, 4096)
    assert size - embedding.size == 4_630_714_368  # the "4.6B" of T5 v1.1 XXL's encoder
    assert params["relative_attention_bias"].shape == (32, 64)
    assert params["blocks"]["ff"]["wi_0"]["kernel"].shape == (24, 4096, 10_240)
    names = [name for leaf in text_encoder_files.parameter_leaves(cfg) for name in leaf.names]
    assert len(set(names)) == len(names) == 219
