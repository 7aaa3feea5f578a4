"""Adapters in every public layout: each gives the weights that its arithmetic defines."""

import json

import diffusers_reference
import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_checkpoint
from safetensors.numpy import save_file

from ltx_jax.checkpoints import adapters, keys
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import TransformerConfig
from ltx_jax.runtime import sharding

RANK = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    tiny_checkpoint.write_checkpoint(path)
    return load_checkpoint(path)


@pytest.fixture
def draw():
    return np.random.default_rng(0)


def by_name(params, cfg):
    """Parameters by official name, (out, in), in float64."""
    result = {}
    for leaf in keys.transformer_leaves(keys.transformer_boxed(cfg)):
        value = params
        for part in leaf.path:
            value = value[part]
        for i, name in enumerate(leaf.names):
            layer = np.asarray(value[i] if leaf.stacked else value, np.float64)
            result[name] = leaf.to_stored(layer)
    return result


def linears(weights):
    return {
        name.removesuffix(".weight"): weight.shape
        for name, weight in weights.items()
        if weight.ndim == 2 and name.endswith(".weight")
    }


def diffusers_name(module):
    renamed = {"patchify_proj": "proj_in", "adaln_single": "time_embed", "q_norm": "norm_q"}
    return ".".join(renamed.get(part, part) for part in module.split("."))


def flat(module):
    return module.replace(".", "_")


def pairs(shapes, draw, rank=RANK):
    return {
        module: (
            draw.standard_normal((rank, into)).astype(np.float32) / into**0.5,
            draw.standard_normal((out, rank)).astype(np.float32),
        )
        for module, (out, into) in shapes.items()
    }


LAYOUTS = {
    "comfyui": ("diffusion_model.", str, ".lora_A.weight", ".lora_B.weight"),
    "trainer converted": ("diffusion_model.", diffusers_name, ".lora_A.weight", ".lora_B.weight"),
    "diffusers": ("transformer.", diffusers_name, ".lora_A.weight", ".lora_B.weight"),
    "old diffusers": ("transformer.", diffusers_name, ".lora.down.weight", ".lora.up.weight"),
    "peft": (
        "base_model.model.",
        diffusers_name,
        ".lora_A.default.weight",
        ".lora_B.default.weight",
    ),
    "simpletuner": (
        "transformer.base_model.model.",
        diffusers_name,
        ".lora_down.weight",
        ".lora_up.weight",
    ),
    "bare": ("", str, ".lora_A", ".lora_B"),
    "kohya": ("lora_unet_", flat, ".lora_down.weight", ".lora_up.weight"),
    "lycoris": ("lycoris_", flat, ".lora_down.weight", ".lora_up.weight"),
    "flat diffusers": (
        "lora_transformer_",
        lambda name: flat(diffusers_name(name)),
        ".lora_down.weight",
        ".lora_up.weight",
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_every_naming_of_lora_gives_the_sum(base, draw, tmp_path, layout, alpha):
    prefix, rename, down_end, up_end = LAYOUTS[layout]
    weights = by_name(base.transformer_params, base.transformer)
    stored, expected = {}, dict(weights)
    for module, (down, up) in pairs(linears(weights), draw).items():
        name = prefix + rename(module)
        stored |= {name + down_end: down, name + up_end: up}
        if alpha is not None:
            stored[f"{name}.alpha"] = np.array(alpha, np.float32)
        scale = 1.0 if alpha is None else alpha / RANK
        expected[f"{module}.weight"] = weights[f"{module}.weight"] + 0.75 * scale * np.float64(
            up
        ) @ np.float64(down)
    save_file(stored, tmp_path / "lora.safetensors")
    adapter = adapters.read(tmp_path / "lora.safetensors", base.transformer)
    merged = adapters.merge(base.transformer_params, base.transformer, [(adapter, 0.75)])
    _assert_equal(by_name(merged, base.transformer), expected)


def _assert_equal(got, expected):
    assert got.keys() == expected.keys()
    for name in got:
        # Weights of about 1 in float32.
        np.testing.assert_allclose(got[name], expected[name], atol=2e-6, err_msg=name)


def _read(folder, base, tensors, metadata=None):
    save_file(tensors, folder / "a.safetensors", metadata)
    return adapters.read(folder / "a.safetensors", base.transformer)


def test_alphas_of_metadata_and_of_peft_folders(base, draw, tmp_path):
    weights = by_name(base.transformer_params, base.transformer)
    modules = {m: s for m, s in linears(weights).items() if ".attn1.to_" in m}
    stored = {}
    for module, (down, up) in pairs(modules, draw).items():
        stored[f"transformer.{module}.lora_A.weight"] = down
        stored[f"transformer.{module}.lora_B.weight"] = up
    settings = {
        "r": RANK,
        "lora_alpha": 6,
        "alpha_pattern": {"^transformer_blocks.1.attn1.to_v": 12.0},
        "use_rslora": True,
    }
    prefixed = {f"transformer.{key}": value for key, value in settings.items()}
    by_metadata = _read(tmp_path, base, stored, {"lora_adapter_metadata": json.dumps(prefixed)})
    folder = tmp_path / "peft"
    folder.mkdir()
    save_file(stored, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    by_folder = adapters.read(folder, base.transformer)
    for adapter in (by_metadata, by_folder):
        for module in modules:
            alpha = 12.0 if module == "transformer_blocks.1.attn1.to_v" else 6.0
            change = adapter.changes[f"{module}.weight"]
            assert change.scale == pytest.approx(alpha / RANK**0.5)


@pytest.mark.thorough
def test_dora_scales_rows_or_columns_to_the_stored_norms(base, draw, tmp_path):
    weights = by_name(base.transformer_params, base.transformer)
    modules = [m for m in linears(weights) if ".attn" in m]
    stored, expected = {}, dict(weights)
    for i, (module, (down, up)) in enumerate(
        pairs({m: linears(weights)[m] for m in modules}, draw).items()
    ):
        name = f"diffusion_model.{module}"
        stored |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        new = weights[f"{module}.weight"] + np.float64(up) @ np.float64(down)
        axis = i % 2  # norms of columns, then of rows
        size = draw.uniform(0.5, 2, new.shape[1 - axis]).astype(np.float32)
        norm = np.linalg.norm(new, axis=axis)
        if axis:
            end, size = (".lora_magnitude_vector", size) if i % 4 == 1 else (".dora_scale", size)
            stored[name + end] = size if i % 4 == 1 else size[:, None]
            whole = new * (size / norm)[:, None]
        else:
            stored[f"{name}.dora_scale"] = size[None]
            whole = new * (size / norm)
        expected[f"{module}.weight"] = weights[f"{module}.weight"] + 0.5 * (
            whole - weights[f"{module}.weight"]
        )
    adapter = _read(tmp_path, base, stored)
    merged = adapters.merge(base.transformer_params, base.transformer, [(adapter, 0.5)])
    _assert_equal(by_name(merged, base.transformer), expected)


@pytest.mark.thorough
def test_products_differences_biases_and_replacements(base, draw, tmp_path):
    weights = by_name(base.transformer_params, base.transformer)

    def random(*shape):
        return draw.standard_normal(shape).astype(np.float32) / 4

    block, expected, stored = "transformer_blocks.1.", dict(weights), {}

    def change(name, value):
        expected[name] = weights[name] + 0.5 * np.float64(value)

    out, into = weights[f"{block}ff.net.2.weight"].shape
    a1, b1, a2, b2 = random(out, 2), random(2, into), random(out, 2), random(2, into)
    for end, value in (("w1_a", a1), ("w1_b", b1), ("w2_a", a2), ("w2_b", b2)):
        stored[f"diffusion_model.{block}ff.net.2.hada_{end}"] = value
    stored[f"diffusion_model.{block}ff.net.2.alpha"] = np.array(1.0, np.float32)
    change(f"{block}ff.net.2.weight", 0.5 * (a1 @ b1) * (a2 @ b2))

    out, into = weights[f"{block}attn1.to_q.weight"].shape
    small, left, right = random(2, 4), random(out // 2, 2), random(2, into // 4)
    name = f"diffusion_model.{block}attn1.to_q"
    stored |= {f"{name}.lokr_w1": small, f"{name}.lokr_w2_a": left, f"{name}.lokr_w2_b": right}
    stored[f"{name}.alpha"] = np.array(1.0, np.float32)
    change(f"{block}attn1.to_q.weight", 0.5 * np.kron(small, left @ right))
    name = f"diffusion_model.{block}attn1.to_k"
    whole = random(out // 2, into // 4)
    stored |= {f"{name}.lokr_w1": small, f"{name}.lokr_w2": whole}
    change(f"{block}attn1.to_k.weight", np.kron(small, whole))

    for tensor, key in (
        (f"{block}attn2.to_v.weight", f"{block}attn2.to_v.diff"),
        (f"{block}attn2.to_v.bias", f"{block}attn2.to_v.diff_b"),
        (f"{block}attn1.q_norm.weight", f"{block}attn1.q_norm.diff"),
        (f"{block}scale_shift_table", f"{block}scale_shift_table.diff"),
        ("scale_shift_table", "scale_shift_table.diff"),
    ):
        stored[f"diffusion_model.{key}"] = value = random(*weights[tensor].shape)
        change(tensor, value)
    stored["diffusion_model.proj_out.set_weight"] = new = random(*weights["proj_out.weight"].shape)
    expected["proj_out.weight"] = np.float64(new)
    down, up = random(RANK, into), random(out, RANK)
    name = f"transformer.{block}attn2.to_q"
    stored |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    stored[f"{name}.lora_B.bias"] = bias = random(out)
    change(f"{block}attn2.to_q.weight", np.float64(up) @ down)
    change(f"{block}attn2.to_q.bias", bias)

    adapter = _read(tmp_path, base, stored)
    merged = adapters.merge(base.transformer_params, base.transformer, [(adapter, 0.5)])
    _assert_equal(by_name(merged, base.transformer), expected)


@pytest.fixture
def lora(base, draw):
    """Tensors of a LoRA of all linear layers."""
    shapes = linears(by_name(base.transformer_params, base.transformer))
    return {
        f"diffusion_model.{module}.lora_{half}.weight": value
        for module, pair in pairs(shapes, draw).items()
        for half, value in zip("AB", pair, strict=True)
    }


@pytest.mark.thorough
def test_strength_zero_is_the_base_bit_for_bit_and_adapters_commute(base, lora, draw, tmp_path):
    first = _read(tmp_path, base, lora)
    other = {name: draw.standard_normal(x.shape).astype(np.float32) for name, x in lora.items()}
    second = _read(tmp_path, base, other)

    def merged(*loras):
        return by_name(
            adapters.merge(base.transformer_params, base.transformer, loras), base.transformer
        )

    unchanged, weights = merged((first, 0.0)), by_name(base.transformer_params, base.transformer)
    assert all(np.array_equal(unchanged[name], weights[name]) for name in weights)
    forward, backward = (
        merged(*order) for order in (((first, 0.5), (second, 2.0)), ((second, 2.0), (first, 0.5)))
    )
    for name in forward:
        np.testing.assert_allclose(forward[name], backward[name], atol=1e-5)


@pytest.mark.thorough
def test_a_bfloat16_weight_is_rounded_once(base, lora, tmp_path):
    adapter = _read(tmp_path, base, lora)
    narrow = jax.tree.map(lambda x: x.astype("bfloat16"), base.transformer_params)
    wide = jax.tree.map(lambda x: x.astype("float32"), narrow)
    loras = [(adapter, 0.3), (adapter, -0.1)]
    got = adapters.merge(narrow, base.transformer, loras)
    once = adapters.merge(wide, base.transformer, loras)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(once), strict=True):
        assert x.dtype == "bfloat16"
        np.testing.assert_array_equal(x, y.astype("bfloat16"))


@pytest.mark.parametrize(
    ("layers", "head_dim", "counts"), [(28, 64, (448, 560, 574)), (48, 128, (768, 960, 974))]
)
def test_the_released_models_have_the_layers_that_released_adapters_change(
    layers, head_dim, counts
):
    """Counts of tensors in public headers: attention; with feed-forward; every linear layer."""
    cfg = TransformerConfig(num_layers=layers, attention_head_dim=head_dim)
    leaves = keys.transformer_leaves(keys.transformer_boxed(cfg))
    modules = [
        name
        for leaf in leaves
        for name in leaf.names
        if len(leaf.stored_shape) == 2 and name.endswith(".weight")
    ]
    attention = [name for name in modules if ".attn" in name]
    blocks = [name for name in modules if ".attn" in name or ".ff." in name]
    assert tuple(2 * len(names) for names in (attention, blocks, modules)) == counts


@pytest.mark.thorough
def test_parameters_on_a_mesh_stay_where_they_are(base, lora, mesh, tmp_path):
    adapter = _read(tmp_path, base, lora)
    layout = sharding.shardings(keys.transformer_boxed(base.transformer), mesh)
    placed = jax.device_put(base.transformer_params, layout)
    merged = adapters.merge(placed, base.transformer, [(adapter, 0.5)])
    for old, new in zip(jax.tree.leaves(placed), jax.tree.leaves(merged), strict=True):
        assert new.sharding == old.sharding
    whole = adapters.merge(base.transformer_params, base.transformer, [(adapter, 0.5)])
    _assert_equal(by_name(merged, base.transformer), by_name(whole, base.transformer))


def test_an_adapter_rotated_for_8_bit_kernels_is_rotated_back(base, lora, tmp_path, caplog):
    plain = _read(tmp_path, base, lora)
    signs = np.array([[(-1.0) ** (i & j).bit_count() for i in range(128)] for j in range(128)])
    rotated, rounded = dict(lora), dict(lora)
    for name, value in lora.items():
        if ".transformer_blocks." in name and name.endswith("lora_A.weight"):
            n = value.shape[1]
            turn = signs[:n, :n] / n**0.5
            narrow = (value @ turn).astype(ml_dtypes.float8_e4m3fn).astype(ml_dtypes.bfloat16)
            rotated[name], rounded[name] = narrow, (narrow.astype(float) @ turn).astype(np.float32)
    got, expected = _read(tmp_path, base, rotated), _read(tmp_path, base, rounded)
    assert "is rotated back" in caplog.text
    for name, change in got.changes.items():
        np.testing.assert_allclose(change.down, expected.changes[name].down, atol=1e-6)
        # Eight bits round values of about 0.2 by a sixteenth at most.
        np.testing.assert_allclose(change.down, plain.changes[name].down, atol=0.1)


FIRST = "diffusion_model.transformer_blocks.0.attn1.to_q.lora_"
PROJ = "diffusion_model.proj_out.lora_"
DAMAGE = {
    "half a pair": (lambda t: t.pop(FIRST + "B.weight"), r"to_q\.lora_A\.weight lacks its other"),
    "ranks": (
        lambda t: t.update({FIRST + "A.weight": np.ones((RANK + 1, 32), np.float32)}),
        r"have no common rank",
    ),
    "width": (
        lambda t: t.update({FIRST + "A.weight": np.ones((RANK, 34), np.float32)}),
        r"another transformer: it changes .*to_q.weight as a tensor of shape \(32, 34\)",
    ),
    "layer": (
        lambda t: t.update({FIRST.replace("s.0.", "s.7.") + "A.weight": t[FIRST + "A.weight"]}),
        r"blocks\.7\..* a layer that this transformer lacks; the nearest layer is transformer_bl",
    ),
    "twice": (
        lambda t: t.update(
            {"lora_unet_transformer_blocks_0_attn1_to_q.lora_up.weight": t[FIRST + "B.weight"]}
        ),
        r"one layer twice",
    ),
    "NaN": (
        lambda t: t.update({FIRST + "B.weight": np.full((32, RANK), np.nan, np.float32)}),
        r"to_q\.lora_B\.weight is not finite",
    ),
    "kind": (
        lambda t: t.update({"diffusion_model.proj_out.oft_R.weight": np.ones(3, np.float32)}),
        r"kind that is not supported \(oft_R",
    ),
    "unknown": (
        lambda t: t.update({"diffusion_model.proj_out.weight": np.ones(3, np.float32)}),
        r"unknown key diffusion_model\.proj_out\.weight",
    ),
    "Wan": (
        lambda t: t.update(
            {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": t[FIRST + "A.weight"]}
        ),
        r"an adapter of Wan, not of LTX-Video",
    ),
    "LTX-2": (
        lambda t: t.update(
            {"diffusion_model.transformer_blocks.0.audio_attn1.to_q.lora_A.weight": np.ones(3, "f")}
        ),
        r"an adapter of LTX-2, not of LTX-Video",
    ),
    "Flux": (
        lambda t: t.update(
            {"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": np.ones(3, "f")}
        ),
        r"an adapter of Flux or HunyuanVideo, not of LTX-Video",
    ),
    "a bias alone": (
        lambda t: (
            t.update({"transformer.proj_out.lora_B.bias": t.pop(PROJ + "B.weight")[:, 0]})
            or t.pop(PROJ + "A.weight")
        ),
        r"lora_B\.bias lacks the change",
    ),
    "an alpha alone": (
        lambda t: t.update({"diffusion_model.scale_shift_table.alpha": np.ones((), "f")}),
        r"table\.alpha lacks the change",
    ),
    "several alphas": (
        lambda t: t.update({"diffusion_model.proj_out.alpha": np.ones(3, "f")}),
        r"proj_out\.alpha must be one number",
    ),
    "no rank": (
        lambda t: t.update(
            {PROJ + "A.weight": np.ones((0, 32), "f"), PROJ + "B.weight": np.ones((8, 0), "f")}
        ),
        r"have no common rank",
    ),
    "two biases": (
        lambda t: t.update(
            {
                "diffusion_model.proj_out.lora_B.bias": np.ones(8, "f"),
                "diffusion_model.proj_out.diff_b": np.ones(8, "f"),
            }
        ),
        r"changes proj_out in several ways",
    ),
    "magnitude": (
        lambda t: t.update({"diffusion_model.proj_out.dora_scale": np.ones((8, 2), "f")}),
        r"dora_scale has the shape \(8, 2\), and the layer \(8, 32\)",
    ),
    "LoHa": (
        lambda t: t.update(
            {
                f"diffusion_model.scale_shift_table.hada_w{i}_{x}": np.ones((2, 3), "f")
                for i in (1, 2)
                for x in "ab"
            }
        ),
        r"have no common rank",
    ),
}


def test_settings_of_another_rank_or_without_sense_are_refused(base, lora, tmp_path):
    for settings, message in (
        ({"r": RANK + 1}, rf"has the rank {RANK}, and lora_adapter_metadata of .* says {RANK + 1}"),
        ({"r": RANK, "rank_pattern": {"^proj_out": 7}}, r"change of proj_out has the rank"),
        ({"lora_alpha": float("nan")}, r"cannot be read: nan is no finite number"),
        ({"alpha_pattern": {"(": 1}}, r"cannot be read"),
        ({"r": [3]}, r"cannot be read"),
    ):
        text = json.dumps({f"transformer.{key}": value for key, value in settings.items()})
        with pytest.raises(ValueError, match=message):
            _read(tmp_path, base, lora, {"lora_adapter_metadata": text})


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_does_not_fit_is_refused_by_name(base, lora, tmp_path, kind):
    damage, message = DAMAGE[kind]
    damage(lora)
    with pytest.raises(ValueError, match=message):
        _read(tmp_path, base, lora)


@pytest.mark.thorough
def test_diffusers_merges_a_lora_of_peft_to_the_same_outputs(base, tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    cfg = base.transformer
    network = diffusers_reference.transformer(cfg)
    weights = by_name(base.transformer_params, cfg)
    network.load_state_dict(
        {keys.diffusers_transformer_name(n): torch.tensor(x).float() for n, x in weights.items()}
    )
    torch.manual_seed(0)
    network.add_adapter(
        peft.LoraConfig(
            r=4,
            lora_alpha=6,
            init_lora_weights=False,
            target_modules=["to_q", "to_v", "to_out.0", "proj_in", "net.2"],
        )
    )
    network.save_lora_adapter(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    network.fuse_lora(lora_scale=0.8)
    fused = {
        name.replace(".base_layer", ""): value
        for name, value in network.state_dict().items()
        if "lora_" not in name
    }
    adapter = adapters.read(tmp_path / "pytorch_lora_weights.safetensors", cfg)
    # Without the metadata that pipelines write, diffusers' scale stands in no file.
    scale = 6 / 4 if not adapter.metadata.get("lora_adapter_metadata") else 1.0
    merged = by_name(adapters.merge(base.transformer_params, cfg, [(adapter, 0.8 * scale)]), cfg)
    for name in weights:
        theirs = fused[keys.diffusers_transformer_name(name)].double().numpy()
        np.testing.assert_allclose(merged[name], theirs, atol=2e-6, err_msg=name)


@pytest.mark.thorough
def test_the_pipeline_changes_strengths_without_compiling(lora, tmp_path):
    folder = tiny_checkpoint.write_exported(tmp_path / "model")
    from ltx_jax import LTXPipeline

    save_file(lora, tmp_path / "lora.safetensors")
    for fast in (False, True):
        pipe = LTXPipeline.from_pretrained(folder, dtype="float32", fast=fast)
        plain = pipe("a fox", output="latents")
        pipe.load_lora(tmp_path / "lora.safetensors", 0.5)
        half = pipe("a fox", output="latents")
        assert pipe.timings["compile"] == 0
        pipe.load_lora(tmp_path / "lora.safetensors", 1.0)
        whole = pipe("a fox", output="latents")
        assert [strength for _, strength in pipe.loras] == [1.0]
        assert min(abs(half - plain).max(), abs(whole - half).max()) > 1e-3
        pipe.load_lora(tmp_path / "lora.safetensors", 0.0)
        np.testing.assert_array_equal(pipe("a fox", output="latents"), plain)
        pipe.unload_lora()
        np.testing.assert_array_equal(pipe("a fox", output="latents"), plain)
        with pytest.raises(ValueError, match=r"lora\.safetensors is not loaded; loaded: none"):
            pipe.unload_lora(tmp_path / "lora.safetensors")


@pytest.mark.thorough
def test_strengths_of_adapters_kept_apart_are_data(lora, tmp_path):
    folder = tiny_checkpoint.write_exported(tmp_path / "model")
    from ltx_jax import LTXPipeline

    file, other = tmp_path / "lora.safetensors", tmp_path / "other.safetensors"
    save_file(lora, file)
    save_file({name: x[..., ::-1].copy() for name, x in lora.items()}, other)
    pipe = LTXPipeline.from_pretrained(folder, dtype="float32")

    def sample():
        return pipe("a fox", output="latents")

    plain = sample()
    pipe.load_loras([(file, 0.5), (other, -0.3)])
    merged = sample()
    pipe.unload_lora()
    pipe.load_loras([(file, 1.0), (other, 1.0)], merge=False)
    sample()
    kernels = pipe.params["blocks"]["attn1"]["to_q"]["kernel"]
    for path in (file, other):
        path.unlink()  # what is loaded is not read again
    pipe.load_loras([(file, 0.5), (other, -0.3)], merge=False)
    assert pipe.params["blocks"]["attn1"]["to_q"]["kernel"] is kernels
    apart = sample()
    assert pipe.timings["compile"] == 0
    assert [strength for _, strength in pipe.loras] == [0.5, -0.3]
    assert np.abs(merged - plain).max() > 1e-2
    np.testing.assert_allclose(apart, merged, atol=1e-5 * np.abs(merged).max())
    pipe.load_loras([(file, 0.0), (other, 0.0)], merge=False)
    np.testing.assert_array_equal(sample(), plain)
    pipe.unload_lora()
    np.testing.assert_array_equal(sample(), plain)

    save_file(lora, file)
    small = LTXPipeline.from_pretrained(folder, dtype="float32", linears="int8")
    with pytest.raises(ValueError, match="int8 linears need merged adapters"):
        small.load_lora(file, merge=False)


def test_strengths_on_the_command_line(tmp_path):
    from ltx_jax.inference.arguments import split_lora

    named = tmp_path / "a:0.5"
    for file in (tmp_path / "a", named):
        file.touch()
    assert split_lora(str(tmp_path / "a")) == (str(tmp_path / "a"), 1.0)
    assert split_lora(f"{tmp_path / 'a'}:-0.25") == (str(tmp_path / "a"), -0.25)
    assert split_lora(str(named)) == (str(named), 1.0)
    assert split_lora(f"{named}:2") == (str(named), 2.0)
    for text, message in (
        (":1", "no file"),
        ("b:1", "no file"),
        (f"{tmp_path / 'a'}:nan", "number"),
    ):
        with pytest.raises(ValueError, match=message):
            split_lora(text)


@pytest.mark.parametrize(
    "words", [["--lora", "a:1", "--seed", "1", "--lora", "b", "c"], ["--lora=a:1", "--lora=b", "c"]]
)
def test_the_option_is_given_once_or_several_times(words):
    from ltx_jax import sample

    assert sample.parse(["--checkpoint", "x", *words]).lora == ("a:1", "b", "c")
