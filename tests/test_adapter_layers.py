"""Adapters kept apart from the weights, and what a linear layer makes of them."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from tiny_checkpoint import CAPTION, CHANNELS, random_parameters

from ltx_jax.checkpoints import adapter_trees, adapters, keys
from ltx_jax.checkpoints.adapter_changes import Adapter, Difference, LowRank
from ltx_jax.config import AdapterConfig, ExecutionConfig, TransformerConfig
from ltx_jax.models import adapter, eight_bit, layers, transformer
from ltx_jax.models.transformer import Context, Transformer
from ltx_jax.runtime import sharding

CFG = TransformerConfig(
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=8,
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    caption_channels=CAPTION,
)
DRAW = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(DRAW.standard_normal(shape), jnp.float32)


INPUTS = (
    normal(2, 6, CHANNELS),
    jnp.array([[0.3], [0.8]]),
    Context(normal(2, 4, CAPTION), None, (jnp.cos(normal(1, 6, 8)), jnp.sin(normal(1, 6, 8)))),
)


@pytest.fixture(scope="module")
def params():
    return random_parameters(Transformer(CFG), *INPUTS)


def velocity(params, remat="none", dtype="float32"):
    network = Transformer(CFG, ExecutionConfig(remat=remat, dtype=dtype))
    return np.asarray(jax.jit(network.apply)({"params": params}, *INPUTS))


def fresh(cfg, seed=0):
    boxed = keys.transformer_boxed(CFG)
    return sharding.unbox(adapter.init(boxed, cfg, jax.random.key(seed), "float32"))


def filled(tree, seed=0):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: 0.3 * draw.standard_normal(x.shape).astype(np.float32), tree)


def loaded(seed, alpha=6.0, targets=("all",), rank=4):
    """An adapter of random values as a file would give it."""
    cfg = AdapterConfig(rank=rank, alpha=alpha, targets=targets)
    tree = filled(fresh(cfg), seed)
    return adapter_trees.named(tree, CFG, cfg.scale, Path(f"{seed}.safetensors"), {})


def test_without_an_adapter_the_program_is_that_of_flax(params, monkeypatch):
    def lowered():
        network = Transformer(CFG)
        gradient = jax.grad(lambda p: jnp.sum(network.apply({"params": p}, *INPUTS)))
        return jax.jit(gradient).lower(params).as_text()

    ours = lowered()

    def of_flax(features, axes, *, kernel_init=nn.initializers.xavier_uniform(), **options):
        return nn.Dense(
            features,
            kernel_init=layers.param(axes, kernel_init),
            bias_init=layers.param(axes[-1:], nn.initializers.zeros),
            dot_general=layers.dot_general,
            **options,
        )

    for module in (layers, transformer):
        monkeypatch.setattr(module, "dense", of_flax)
    jax.clear_caches()
    assert lowered() == ours


@pytest.mark.thorough
@pytest.mark.parametrize("remat", ["none", "dots", "full", "attention"])
def test_a_fresh_adapter_changes_no_bit(params, remat):
    for init in ("uniform", "normal"):
        tree = fresh(AdapterConfig(rank=4, targets=("all",), init=init))
        down = np.concatenate([x["down"].reshape(-1) for _, x in adapter.modules(tree)])
        assert down.std() > 0.05
        attached = adapter.attach(params, tree, scale=1.5)
        np.testing.assert_array_equal(velocity(attached, remat), velocity(params, remat))


@pytest.mark.thorough
def test_kept_apart_equals_merged(params):
    first, second = loaded(1), loaded(2, 2.0, ("ff", "patchify_proj"), rank=3)
    both = [(first, 0.7), (second, -0.4)]
    merged = velocity(adapters.merge(params, CFG, both))
    apart = velocity(adapter.attach(params, adapter_trees.beside(both, CFG)))
    assert np.abs(merged - velocity(params)).max() > 0.1
    np.testing.assert_allclose(apart, merged, atol=1e-5 * np.abs(merged).max())
    other_order = velocity(adapter.attach(params, adapter_trees.beside(both[::-1], CFG)))
    np.testing.assert_allclose(other_order, apart, atol=2e-6 * np.abs(merged).max())
    off = [(first, 0.0), (second, 0.0)]
    apart = velocity(adapter.attach(params, adapter_trees.beside(off, CFG)))
    np.testing.assert_array_equal(apart, velocity(params))


def test_an_adapter_of_some_blocks_is_padded_with_zeros(params):
    whole = loaded(1, targets=("attn1/to_q$",))
    names = [f"transformer_blocks.{i}.attn1.to_q.weight" for i in range(3)]
    assert sorted(whole.changes) == names
    narrow = LowRank(whole.changes[names[2]].down[:2], whole.changes[names[2]].up[:, :2], 3.0)
    part = Adapter(Path("part"), {names[0]: whole.changes[names[0]], names[2]: narrow}, {})
    tree = adapter_trees.beside([(part, 1.0)], CFG)
    merged = velocity(adapters.merge(params, CFG, [(part, 1.0)]))
    apart = velocity(adapter.attach(params, tree))
    np.testing.assert_allclose(apart, merged, atol=1e-5 * np.abs(merged).max())


def test_changes_that_cannot_be_kept_apart_are_refused_by_name():
    name = "transformer_blocks.0.attn1.to_q.bias"
    bias = Adapter(Path("own.safetensors"), {name: Difference(normal(16))}, {})
    with pytest.raises(ValueError, match=rf"own\.safetensors changes {name} by a Difference"):
        adapter_trees.beside([(bias, 1.0)], CFG)


MODELS = {
    "2B": (TransformerConfig(), {"attention": 448, "attention+feed-forward": 560, "all": 574}),
    "13B": (
        TransformerConfig(num_layers=48, attention_head_dim=128),
        {"attention": 768, "attention+feed-forward": 960, "all": 974},
    ),
}


@pytest.mark.parametrize("model", MODELS)
def test_the_presets_have_the_layers_of_released_adapters(model):
    cfg, counts = MODELS[model]
    linears = keys.stored_shapes(keys.transformer_leaves(keys.transformer_boxed(cfg)))
    linears = {name: x for name, x in linears.items() if len(x) == 2 and name.endswith(".weight")}
    assert counts["all"] == 2 * len(linears)
    for preset, count in counts.items():
        boxed = keys.adapter_boxed(cfg, AdapterConfig(rank=128, targets=(preset,)), "float32")
        shapes = {
            path: {name: x.shape for name, x in layer.items()}
            for path, layer in adapter.modules(sharding.unbox(boxed))
        }
        tensors = sum(2 * (x["down"][0] if len(x["down"]) == 3 else 1) for x in shapes.values())
        assert tensors == count
        for leaf in keys.transformer_leaves(keys.transformer_boxed(cfg)):
            if leaf.path[:-1] in shapes and leaf.path[-1] == "kernel":
                *stacked, inputs, outputs = leaf.shape
                assert shapes[leaf.path[:-1]] == {
                    "down": (*stacked, inputs, 128),
                    "up": (*stacked, 128, outputs),
                }


def test_ranks_and_targets_that_fit_nothing_are_refused():
    with pytest.raises(ValueError, match=r"adapter\.rank = 9 .*patchify_proj.* 8 inputs"):
        fresh(AdapterConfig(rank=9, targets=("all",)))
    with pytest.raises(ValueError, match=r"'attention_1' matches no layer; .*blocks/attn1/to_q"):
        fresh(AdapterConfig(rank=2, targets=("attention", "attention_1")))
    for settings, message in (
        ({"rank": -1}, "must not be negative, got -1"),
        ({"rank": 2, "dropout": 1.0}, r"must lie in \[0, 1\), got 1.0"),
        ({"rank": 2, "targets": ("(",)}, r"'\(' is not a regular expression"),
        ({"rank": 2, "targets": ()}, "targets is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            AdapterConfig(**settings)


def test_dropout_keeps_the_mean_and_differs_from_layer_to_layer(params):
    tree = filled(fresh(AdapterConfig(rank=4, targets=("attn1/to_q",))))

    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            options = dict(name="to_q", dtype="float32", param_dtype="float32")
            return layers.dense(16, (None, None), **options)(x)

    one = jax.tree.map(lambda x: x[0], params["blocks"]["attn1"]["to_q"])
    matrices = {n: x[0] for n, x in tree["blocks"]["attn1"]["to_q"].items()}

    def apply(key):
        attached = adapter.attach(
            {"to_q": one}, {"to_q": matrices}, scale=2.0, dropout=0.25, key=key
        )
        return One().apply({"params": attached}, INPUTS[0][:, :, :1] + jnp.ones((1, 1, 16)))

    whole = apply(None)
    drawn = jax.jit(jax.vmap(apply))(jax.random.split(jax.random.key(0), 4000))
    assert float(jnp.std(drawn, axis=0).min()) > 0.1
    error = np.abs(np.mean(drawn, 0) - whole).max()
    assert error < 5 * float(jnp.std(drawn, axis=0).max()) / 4000**0.5

    attached = adapter.attach(params, tree, dropout=0.25, key=jax.random.key(0))
    beside = attached["blocks"]["attn1"]["to_q"]["adapter"]
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(beside["key"]))}) == 3


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["int8", "float8"])
def test_a_network_in_eight_bits_computes_nearly_the_same(params, form):
    copied = jax.tree.map(jnp.asarray, params)
    small = eight_bit.quantized_blocks(copied, form)
    layer = small["blocks"]["attn1"]["to_q"]
    assert layer["kernel"].dtype.itemsize == 1
    assert layer["kernel_scale"].shape == (3, 16)
    exact, near = velocity(params), velocity(small)
    # 1/254 of a column's largest value, or 3 bits of mantissa.
    error = np.linalg.norm(near - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < {"int8": 0.01, "float8": 0.05}[form]

    def widened(tree):
        if not isinstance(tree, dict):
            return tree
        result = {name: widened(x) for name, x in tree.items() if name != "kernel_scale"}
        if "kernel_scale" in tree:
            kernel, scale = (np.asarray(tree[n], np.float32) for n in ("kernel", "kernel_scale"))
            result["kernel"] = kernel * scale[:, None]
        return result

    wide = widened(small)
    tree = filled(fresh(AdapterConfig(rank=4)))

    def loss(tree, base):
        network = Transformer(CFG)
        return jnp.sum(network.apply({"params": adapter.attach(base, tree)}, *INPUTS) ** 2)

    gradient = jax.jit(jax.grad(loss))
    got, want = gradient(tree, small), gradient(tree, wide)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), err_msg=str(path))


def test_the_gradient_keeps_a_kernel_in_eight_bits():
    kernel = jnp.asarray(normal(3, 16, 16))
    small = eight_bit.quantized_blocks({"blocks": {"to_q": {"kernel": kernel}}}, "int8")
    scale, small = small["blocks"]["to_q"]["kernel_scale"], small["blocks"]["to_q"]["kernel"]

    def chain(x):
        def body(x, layer):
            return layers._matmul_in_eight_bits(x, *layer), None

        return jnp.sum(jax.lax.scan(body, x, (small, scale))[0])

    _, residuals = jax.vjp(chain, normal(5, 16))
    kinds = {x.dtype for x in jax.tree.leaves(residuals) if x.shape == small.shape}
    assert kinds <= {jnp.dtype("int8")}


def test_an_adapter_is_sharded_as_its_kernel_or_else_by_its_rank(mesh):
    boxed = keys.adapter_boxed(
        dataclasses.replace(CFG, num_attention_heads=4), AdapterConfig(rank=4), "float32"
    )
    layout = sharding.shardings(boxed, mesh)["blocks"]["attn1"]
    assert layout["to_q"]["down"].spec == P(None, "fsdp", None)
    assert layout["to_q"]["up"].spec == P(None, "fsdp", "tensor")
    assert layout["to_out"]["down"].spec == P(None, "tensor", "fsdp")
    assert layout["to_out"]["up"].spec == P(None, None, "fsdp")
