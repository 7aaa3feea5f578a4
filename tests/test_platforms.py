"""The platform of a program, and that its compiler options give correct gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ltx_jax.config import ExecutionConfig, MeshConfig, TransformerConfig
from ltx_jax.models.transformer import Context, Transformer
from ltx_jax.runtime import platforms, sharding


def test_the_platform_is_that_of_the_mesh():
    assert platforms.platform() == "cpu"
    with sharding.use_mesh(sharding.make_mesh(MeshConfig())):
        assert platforms.platform() == "cpu"
    device = jax.sharding.AbstractDevice(device_kind="TPU v5", num_cores=2, platform="tpu")
    axes = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((4,), ("data",), axes, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert platforms.platform() == "tpu"
        assert platforms.preferred_dtype() == "bfloat16"


@pytest.mark.parametrize(
    ("flags", "onednn", "dtype"),
    [
        ("avx512f amx_tile", True, "float32"),
        ("sse amx_bf16", True, "bfloat16"),
        ("sse avx512_bf16", True, "float32"),
        ("amx_bf16 avx512_bf16", False, "float32"),
        (None, True, "float32"),  # where no file tells
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_amx(tmp_path, monkeypatch, flags, onednn, dtype):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {flags}\n")
    monkeypatch.setattr(platforms, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platforms, "HAS_ONEDNN", onednn)
    assert platforms.preferred_dtype() == dtype


@pytest.mark.thorough
@pytest.mark.skipif(not platforms.HAS_ONEDNN, reason="jaxlib has no oneDNN here")
@pytest.mark.parametrize("size", [(32, 144, 8), (32, 32, 32)], ids=str)
def test_a_transformers_gradients_in_bfloat16_are_those_of_float32_to_rounding(size):
    cfg = TransformerConfig(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=16,
        out_channels=16,
        caption_channels=16,
    )
    b, n, m = size  # the second: as many samples as keys
    keys = jax.random.split(jax.random.key(0), 5)
    x, target = jax.random.normal(keys[0], (2, b, n, cfg.in_channels))
    caption = jax.random.normal(keys[1], (b, m, cfg.caption_channels))
    rope = jnp.ones((1, n, cfg.width // 2)), jnp.zeros((1, n, cfg.width // 2))
    inputs = x, jnp.full((b, 1), 0.5), Context(caption, None, rope)
    init = jax.jit(lambda key: sharding.unbox(Transformer(cfg).init(key, *inputs)["params"]))
    params = init(keys[2])
    flat, unravel = ravel_pytree(params)
    params = unravel(flat + 0.05 * jax.random.normal(keys[3], flat.shape))  # no zeros

    def gradient(dtype):
        network = Transformer(cfg, ExecutionConfig(dtype=dtype))

        def loss(params):
            return jnp.mean((network.apply({"params": params}, *inputs) - target) ** 2)

        return jax.jit(jax.grad(loss), compiler_options=platforms.onednn_options())(params)

    def error(half, exact):
        return np.linalg.norm(half - exact) / np.linalg.norm(exact)

    errors = jax.tree.map(error, gradient("bfloat16"), gradient("float32"))
    assert max(jax.tree.leaves(errors)) < 2**-6  # of 8 bits, two are lost on the way
