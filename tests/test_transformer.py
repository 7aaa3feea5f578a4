"""What the transformer promises, against the released arithmetic and on its own."""

import dataclasses
import json
import pathlib

import diffusers_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import golden_state_dict
from quick import QUICK

from ltx_jax.config import ExecutionConfig, TransformerConfig
from ltx_jax.diffusion import positions
from ltx_jax.models.transformer import AdaLNSingle, Context, Skip, Transformer, example_inputs
from ltx_jax.runtime import sharding

GOLDEN = pathlib.Path(__file__).parent / "golden" / "transformer_tiny.npz"
TINY = TransformerConfig(
    num_layers=3,
    num_attention_heads=4,
    attention_head_dim=16,
    in_channels=8,
    out_channels=8,
    caption_channels=32,
)
LARGE = TransformerConfig(num_layers=48, attention_head_dim=128)  # the released 13B
SMALLER = dataclasses.replace(TINY, num_layers=TINY.num_layers - 1)


def arguments(latents, timestep, caption, caption_mask, rope, skip=None):
    """Of `Transformer`, from the inputs that the tests change one by one."""
    return latents, timestep, Context(caption, caption_mask, rope), skip


def applying(cfg, execution=ExecutionConfig()):
    network = jax.jit(Transformer(cfg, execution).apply, compiler_options=QUICK)
    return lambda variables, **inputs: network(variables, *arguments(**inputs))


apply, apply_smaller = applying(TINY), applying(SMALLER)


def from_official(state, layers):
    """Our parameters from an official state dict."""
    renames = {
        ".emb.": ".",
        "to_out.0": "to_out",
        "net.0.proj": "linear_1",
        "net.2": "linear_2",
        "norm.weight": "norm.scale",
    }
    blocks, first = "transformer_blocks.", "transformer_blocks.0."
    stacked = {k: v for k, v in state.items() if not k.startswith(blocks)}
    for key in (k.removeprefix(first) for k in state if k.startswith(first)):
        stacked[f"blocks.{key}"] = np.stack([state[f"{blocks}{i}.{key}"] for i in range(layers)])
    params = {}
    for key, value in stacked.items():
        for old, new in renames.items():
            key = key.replace(old, new)
        if key.endswith("weight"):
            key, value = key.replace("weight", "kernel"), np.swapaxes(value, -1, -2)
        *path, leaf = key.split(".")
        branch = params
        for name in path:
            branch = branch.setdefault(name, {})
        branch[leaf] = value
    return params


@pytest.fixture(scope="module")
def golden():
    return {k: v if v.dtype.kind == "U" else jnp.asarray(v) for k, v in np.load(GOLDEN).items()}


@pytest.fixture(scope="module")
def variables(golden):
    state = golden_state_dict(json.loads(str(golden["shapes"])))
    return {"params": from_official(state, TINY.num_layers)}


def rope(fps=25.0, causal=True, cfg=TINY, grid=(3, 4, 5)):
    coords = positions.pixel_coords(positions.latent_coords(grid), 8, 32, causal)
    return positions.rope_tables(positions.positions(coords, fps), cfg)


@pytest.fixture(scope="module")
def inputs(golden):
    """Three samples of 60 tokens with their own times; the caption of the second is masked out."""
    return dict(
        latents=golden["tokens"],
        timestep=golden["t_token"],
        caption=golden["enc"],
        caption_mask=golden["enc_mask"],
        rope=rope(),
    )


def assert_close(got, want):
    """Equal to float32 rounding: outputs are of order 1, and 1e-5 is usual."""
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def assert_samples_close(got, want):
    """As `assert_close`; but the bias of -10000 rounds the scores of the second sample, whose
    caption is masked out altogether, to 1e-3."""
    assert_close(got[0], want[0])
    np.testing.assert_allclose(got[1], want[1], rtol=0, atol=3e-4)
    assert_close(got[2], want[2])


# --- The released arithmetic ---


def test_velocity_matches_the_released_code(golden, variables, inputs):
    got = apply(variables, **inputs)
    assert_samples_close(got, golden["out_token"])


def test_velocity_at_non_causal_positions_matches_the_released_code(golden, variables, inputs):
    got = apply(variables, **inputs | {"rope": rope(causal=False)})
    assert_samples_close(got, golden["out_token_noncausal"])


def test_one_time_per_sample_matches_the_released_code(golden, variables, inputs):
    got = apply(variables, **inputs | {"timestep": golden["t_global"]})
    assert_samples_close(got, golden["out_global"])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("attention_values", "AttentionValues"),
        ("attention_skip", "AttentionSkip"),
        ("residual", "Residual"),
        ("transformer_block", "TransformerBlock"),
    ],
)
def test_skipped_blocks_match_the_released_code(golden, variables, inputs, mode, name):
    got = apply(
        variables,
        **inputs | {"timestep": golden["t_global"]},
        skip=Skip(mode, golden["skip_mask"]),
    )
    assert_samples_close(got, golden[f"out_stg_{name}"])
    moved = np.abs(got - golden["out_global"]).max(axis=(1, 2))
    assert moved[0] < 1e-4, "a row that skips nothing"
    assert moved[2] > 1e-2 or mode == "residual"


def test_time_modulation_matches_the_released_code(golden, variables):
    params = variables["params"]["adaln_single"]
    model = AdaLNSingle(TINY)
    modulation, embedded = model.apply({"params": params}, 1000 * golden["t_token"])
    assert_close(modulation.reshape(180, -1), golden["adaln_linear"])
    assert_close(embedded.reshape(180, -1), golden["adaln_embedded"])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("heads", "head_dim", "grid"),
    [(4, 16, (2, 3, 4)), (2, 24, (1, 1, 1))],
    ids=["4 channels do not rotate", "one token"],
)
def test_velocity_matches_diffusers(heads, head_dim, grid):
    torch = pytest.importorskip("torch")
    cfg = dataclasses.replace(
        TINY,
        num_layers=2,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        norm_eps=1e-2,  # large enough to tell the three epsilons apart
    )
    oracle = diffusers_reference.transformer(cfg, norm_eps=cfg.norm_eps)
    renames = {
        "proj_in": "patchify_proj",
        "time_embed": "adaln_single",
        "norm_q": "q_norm",
        "norm_k": "k_norm",
    }
    names = {}
    for key in oracle.state_dict():
        names[key] = key
        for theirs, official in renames.items():
            names[key] = names[key].replace(theirs, official)
    # Every tensor is drawn at random: gains, biases and tables too.
    state = golden_state_dict({names[k]: v.shape for k, v in oracle.state_dict().items()})
    for key in state:
        if ".to_q." in key or ".to_k." in key:
            state[key] *= 0.01  # so small that the epsilon of the norm after them shows
    oracle.load_state_dict({k: torch.from_numpy(state[names[k]]) for k in names}, assign=True)

    rng = np.random.default_rng(0)
    n = int(np.prod(grid))
    latents = rng.standard_normal((2, n, cfg.in_channels), dtype=np.float32)
    caption = rng.standard_normal((2, 5, cfg.caption_channels), dtype=np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.float32)
    time = rng.uniform(size=(2, n)).astype(np.float32)
    coords = positions.pixel_coords(positions.latent_coords(grid), 8, 32, causal=True)
    at = positions.positions(coords, 24.0)
    with torch.no_grad():
        want = oracle(
            torch.from_numpy(latents),
            torch.from_numpy(caption),
            torch.from_numpy(1000 * time),
            torch.from_numpy(mask),
            video_coords=torch.from_numpy(np.array(at)).T[None].expand(2, -1, -1),
        ).sample.numpy()

    params = from_official(state, cfg.num_layers)
    got = jax.jit(Transformer(cfg).apply, compiler_options=QUICK)(
        {"params": params}, latents, time, Context(caption, mask, positions.rope_tables(at, cfg))
    )
    assert 0.5 < want.std() < 5
    assert_close(got, want)


def test_biases_of_queries_keys_and_values_may_be_left_out():
    params = sharding.unbox(shapes(dataclasses.replace(TINY, attention_bias=False)))["params"]
    for name in ("attn1", "attn2"):
        biased = {k for k, layer in params["blocks"][name].items() if "bias" in layer}
        assert biased == {"to_out"}


@pytest.mark.parametrize(
    ("cfg", "count"),
    [(TransformerConfig(), 1_923_385_472), (LARGE, 13_042_569_344)],
    ids=["2B", "13B"],
)
def test_released_sizes_have_the_released_number_of_parameters(cfg, count):
    assert sum(x.size for x in jax.tree.leaves(sharding.unbox(shapes(cfg)))) == count


def shapes(cfg, execution=ExecutionConfig()):
    """The parameters' shapes, with their axes; takes no memory."""

    init = Transformer(cfg, execution).init
    return jax.eval_shape(lambda: init(jax.random.key(0), *example_inputs(cfg)))


# --- What follows from what ---


def test_every_input_moves_the_velocity(golden, variables, inputs):
    """A network that ignored one of them could still pass for close to right."""
    changes = {
        "latents": 1.1 * inputs["latents"],
        "timestep": 0.9 * inputs["timestep"],
        "caption": 1.1 * inputs["caption"],
        "caption_mask": np.roll(inputs["caption_mask"], 1, axis=1),
        "rope": rope(fps=24.0),
    }
    want = apply(variables, **inputs)
    for name, value in changes.items():
        moved = np.abs(apply(variables, **inputs | {name: value}) - want).max(axis=(1, 2))
        # The second sample's caption is masked out, whichever way the mask is rolled.
        rows = moved[[0, 2]] if name == "caption_mask" else moved
        assert rows.max() > 1e-2, name


def test_every_parameter_moves_the_velocity(variables, inputs):
    want = apply(variables, **inputs)
    leaves, tree = jax.tree.flatten(variables)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(variables)]
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        changed = list(leaves)
        changed[i] = leaves[i] + 0.3 * rng.standard_normal(leaves[i].shape, dtype=np.float32)
        got = apply(jax.tree.unflatten(tree, changed), **inputs)
        assert np.abs(got - want).max() > 1e-2, name


def test_padding_tokens_of_the_caption_are_ignored(variables, inputs):
    mask = np.arange(7) < np.array([[7], [4], [1]])
    garbage = np.where(mask[..., None], inputs["caption"], 1e3)
    want = apply(variables, **inputs | {"caption_mask": mask})
    got = apply(variables, **inputs | {"caption_mask": mask, "caption": garbage})
    np.testing.assert_array_equal(got, want)


def test_no_caption_mask_means_that_every_token_counts(variables, inputs):
    ones = apply(variables, **inputs | {"caption_mask": np.ones((3, 7), bool)})
    none = apply(variables, **inputs | {"caption_mask": None})
    np.testing.assert_allclose(none, ones, rtol=0, atol=1e-6)


def test_samples_of_a_batch_do_not_see_each_other(variables, inputs):
    other = inputs | {
        "latents": inputs["latents"].at[1:].add(1),
        "caption": inputs["caption"].at[1:].add(1),
    }
    got, want = apply(variables, **other), apply(variables, **inputs)
    np.testing.assert_array_equal(got[0], want[0])


def test_order_of_tokens_is_in_their_positions_alone(variables, inputs):
    order = np.random.default_rng(0).permutation(60)
    shuffled = inputs | {
        "latents": inputs["latents"][:, order],
        "timestep": inputs["timestep"][:, order],
        "rope": tuple(table[:, order] for table in inputs["rope"]),
    }
    want = apply(variables, **inputs)[:, order]
    # The sums over keys run in another order, which a masked-out caption does not see.
    assert_samples_close(apply(variables, **shuffled), want)


def test_one_time_per_sample_is_that_time_at_every_token(golden, variables, inputs):
    once = apply(variables, **inputs | {"timestep": golden["t_global"]})
    every = np.repeat(golden["t_global"], 60, axis=1)
    assert_samples_close(apply(variables, **inputs | {"timestep": every}), once)


@pytest.mark.thorough
@pytest.mark.parametrize("layer", range(TINY.num_layers))
def test_skipping_a_block_equals_a_network_without_it(variables, inputs, layer):
    """So the scan runs each layer once, in order, on parameters of its own."""
    mask = np.ones((TINY.num_layers, 3), np.float32)
    mask[layer] = 0
    got = apply(variables, **inputs, skip=Skip("transformer_block", mask))
    params = variables["params"]
    rest = jax.tree.map(lambda x: np.delete(x, layer, axis=0), params["blocks"])
    want = apply_smaller({"params": params | {"blocks": rest}}, **inputs)
    assert_samples_close(got, want)


# --- How it is computed ---


@pytest.mark.thorough
def test_remat_changes_memory_not_values(variables, inputs):
    def compiled(remat):
        model = Transformer(TINY, ExecutionConfig(remat=remat))
        grad = jax.value_and_grad(lambda v, x: jnp.mean(model.apply(v, *arguments(**x)) ** 2))
        return jax.jit(grad).lower(variables, inputs).compile(compiler_options=QUICK)

    functions = [compiled(remat) for remat in ("none", "dots", "full", "attention")]
    memory = [f.memory_analysis().temp_size_in_bytes for f in functions]
    assert memory[0] > memory[1] > memory[2]
    assert memory[0] > memory[3] > memory[2]
    none, *others = (f(variables, inputs) for f in functions)
    for other in others:
        # Gradients of order 0.1, in float32.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), other, none
        )


@pytest.mark.thorough
def test_remat_attention_recomputes_all_but_attention(variables, inputs, monkeypatch):
    @jax.custom_vjp  # as the fused kernels are: what they save for the gradient has no name
    def fused(q, k, v):
        return jnp.cosh(q) * (k.mean(1, keepdims=True) + v.mean(1, keepdims=True))

    fused.defvjp(lambda *heads: (fused.fun(*heads), heads), lambda saved, grad: (grad,) * 3)

    def attention(q, k, v, *, mask, form, is_self_attention):
        return fused(q, k, v) if is_self_attention else jnp.tanh(q)

    monkeypatch.setattr("ltx_jax.models.transformer.attention", attention)

    def calls(remat):
        model = Transformer(TINY, ExecutionConfig(remat=remat))
        gradient = jax.grad(lambda v, x: jnp.mean(model.apply(v, *arguments(**x)) ** 2))
        return str(jax.make_jaxpr(gradient)(variables, inputs)).count(" cosh ")

    assert (calls("none"), calls("attention"), calls("full")) == (1, 1, 2)


@pytest.mark.thorough
def test_one_device_equals_eight(variables, inputs, mesh):
    want = apply(variables, **inputs)
    layout = sharding.shardings(shapes(TINY), mesh)
    with sharding.use_mesh(mesh):
        # A new function: jit's cache does not know of the mesh.
        sharded = jax.jit(lambda v, x: Transformer(TINY).apply(v, *arguments(**x)))
        got = sharded(jax.device_put(variables, layout), inputs)
    assert len(got.sharding.device_set) == 8
    assert_samples_close(got, want)


@pytest.mark.parametrize("cfg", [TransformerConfig(), LARGE], ids=["2B", "13B"])
def test_every_large_parameter_is_sharded(mesh, cfg):
    boxed = shapes(cfg)
    layouts = jax.tree.leaves(sharding.shardings(boxed, mesh))
    flat = jax.tree.leaves_with_path(sharding.unbox(boxed))
    for (path, x), layout in zip(flat, layouts, strict=True):
        name = jax.tree_util.keystr(path)
        assert x.size <= 2**20 or "fsdp" in str(layout.spec), name
        if "blocks" in name and name.endswith("['kernel']"):
            assert layout.num_devices // mesh.shape["seq"] == x.size // np.prod(
                layout.shard_shape(x.shape)
            ), f"{name} is not split over tensor"


def test_a_misspelt_axis_is_an_error(mesh):
    with pytest.raises(ValueError, match="tokn"):
        sharding.spec(("batch", "tokn"))
    with sharding.use_mesh(mesh), pytest.raises(ValueError, match="did not match a rule"):
        jax.jit(lambda x: sharding.constrain(x, "batch", "tokn"))(jnp.ones((4, 4)))


@pytest.mark.thorough
def test_bfloat16_stays_close(variables, inputs):
    execution = ExecutionConfig(dtype="bfloat16", param_dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(shapes(TINY, execution))} == {jnp.dtype("bfloat16")}
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    got = applying(TINY, execution)(halved, **inputs)
    want = apply(variables, **inputs)
    assert got.dtype == jnp.float32
    # Eight bits of mantissa are 0.4 %; three layers of them add up to about 1 %.
    error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
    assert 0 < error < 0.02


# --- Bad input ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": np.zeros((3, 60, 9), np.float32)}, "the latents have 9 channels"),
        ({"caption": np.zeros((3, 7, 33), np.float32)}, "embeddings are 33 wide"),
        ({"rope": (np.zeros((1, 60, 64), np.float32),) * 2}, "tables hold 64 pairs"),
        ({"skip": Skip("attention_skip", np.ones((2, 3), np.float32))}, "skip mask has shape"),
    ],
    ids=["latents", "caption", "rope", "skip"],
)
def test_inputs_that_do_not_fit_are_named(variables, inputs, change, message):
    with pytest.raises(ValueError, match=message):
        apply(variables, **inputs | change)
