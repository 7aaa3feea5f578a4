"""How arrays are laid out over a mesh, and that every config's large ones are split."""

import contextlib
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from ltx_jax import config
from ltx_jax.checkpoints import run_config
from ltx_jax.config import MeshConfig, TrainTransformer, TransformerConfig
from ltx_jax.models.transformer import Context, Transformer
from ltx_jax.runtime import sharding
from ltx_jax.training.stage import stage_class
from ltx_jax.training.step import Trainer
from ltx_jax.training.transformer.stage import TransformerStage

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
CONFIGS = {path: config.load(str(path)) for path in sorted(FOLDER.glob("*.py"))}
# Elements: 4 MB in float32. Of all configs only biases, gains, tables and the first layer of the
# time embedding, which is no wider than its sinusoid, are smaller and whole.
LARGE = 2**20


def make(**sizes):
    return sharding.make_mesh(MeshConfig(**sizes))


def test_what_the_devices_of_an_axis_do_not_divide_stays_whole():
    mesh = make(data=2, fsdp=2, tensor=2)
    names = ("batch", "token", "act_heads")
    assert sharding.divisible_axes((8, 6, 4), names, mesh) == names
    assert sharding.divisible_axes((6, 6, 3), names, mesh) == (None, "token", None)
    assert sharding.spec(sharding.divisible_axes((4, 3), ("embed", "mlp"), mesh)) == P("fsdp", None)
    with pytest.raises(ValueError, match="tokn"):
        sharding.spec(sharding.divisible_axes((8,), ("tokn",), mesh))


def test_rows_are_not_split_down_to_one():
    mesh = make(data=2, seq=4)
    assert sharding.divisible_axes((8, 4), ("batch", "row"), mesh) == ("batch", None)
    assert sharding.divisible_axes((8, 8), ("batch", "row"), mesh) == ("batch", "row")


def test_heads_are_checked_against_seq_and_tensor_together():
    sharding.check_heads(8, make(data=1, seq=4, tensor=2))
    with pytest.raises(ValueError, match=r"^4 attention heads .* 8 devices .*--mesh\.tensor"):
        sharding.check_heads(4, make(data=1, seq=4, tensor=2))
    model = TransformerConfig(num_layers=1, num_attention_heads=4, attention_head_dim=8)
    cfg = TrainTransformer(model=model, vae="none", captions="cached")
    with pytest.raises(ValueError, match="4 attention heads"):
        TransformerStage.describe(cfg, make(data=1, seq=8))


@pytest.mark.thorough
@pytest.mark.parametrize("n", [15, 16])
@pytest.mark.parametrize("times", ["one", "each"])
def test_tokens_that_seq_does_not_divide_are_padded_and_unseen(n, times):
    cfg = TransformerConfig(
        num_layers=1,
        num_attention_heads=8,
        attention_head_dim=4,
        in_channels=4,
        out_channels=4,
        caption_channels=8,
    )
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    angles = normal(1, n, cfg.width // 2)
    inputs = (
        normal(2, n, 4),
        jnp.asarray(rng.uniform(size=(2, n if times == "each" else 1)), jnp.float32),
        Context(normal(2, 3, 8), None, (jnp.cos(angles), jnp.sin(angles))),
    )
    model = Transformer(cfg)
    boxed = jax.jit(lambda *x: sharding.unbox(model.init(jax.random.key(0), *x)))(*inputs)
    params = jax.tree.map(lambda x: x + 0.1 * normal(*x.shape), boxed)  # biases are zero at first
    want = jax.jit(lambda *x: model.apply(*x))(params, *inputs)
    with sharding.use_mesh(make(data=1, seq=8)):
        program = jax.jit(lambda *x: model.apply(*x)).lower(params, *inputs)
        got = program.compile()(params, *inputs)
    assert got.shape == (2, n, 4)
    assert f"2x{2 * 8}x{cfg.width}xf32" in program.as_text()  # sixteen tokens, two a device
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)  # sums in another order


def test_a_kernel_is_split_by_its_outputs_or_else_by_its_inputs():
    mesh, names = make(data=1, fsdp=8), (None, None, None, "conv_in", "conv_out")

    def found(*shape):
        boxed = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)
        return tuple(sharding.shardings(boxed, mesh).spec)

    assert found(3, 3, 3, 16, 24) == (None, None, None, None, "fsdp")
    assert found(3, 3, 3, 16, 9) == (None, None, None, "fsdp", None)
    assert found(3, 3, 3, 3, 9) == (None,) * 5


@pytest.mark.thorough
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_large_array_of_a_training_state_is_split(path, tmp_path):
    """Parameters, average, what the optimiser keeps (Muon's too) and the discriminator's."""
    cfg = CONFIGS[path]
    with contextlib.chdir(tmp_path):
        for other in CONFIGS.values():  # among them the run whose VAE this config names
            run_config.write_config(other.run.output, other)
        shapes = Trainer(stage_class(cfg).describe(cfg, make(data=1, fsdp=8))).plan.shapes
    whole = 0
    for name, x in jax.tree.leaves_with_path(shapes):
        devices = x.size // math.prod(x.sharding.shard_shape(x.shape))
        assert devices == 8 or (devices == 1 and x.size <= LARGE), (
            f"{jax.tree_util.keystr(name)} of {x.shape}"
        )
        whole += x.size * x.dtype.itemsize if devices == 1 else 0
    assert whole < 2**26  # 64 MB, of the 23 GB that a device has of the 13B model's state
