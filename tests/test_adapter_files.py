"""Adapters that are written: under the names that other programs read, and with what they say."""

import json

import diffusers_reference
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_checkpoint
from safetensors.numpy import load_file, save_file

from ltx_jax.checkpoints import adapter_writing, adapters, keys
from ltx_jax.checkpoints.adapter_changes import Difference, LowRank, Replacement
from ltx_jax.checkpoints.adapter_metadata import Origin
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import TransformerConfig
from ltx_jax.diffusion import positions
from ltx_jax.models.transformer import Context, Transformer

ORIGIN = Origin("a sks fox", "2b-0.9.6-dev", "ab" * 32, "foxes", 1500, 4)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    tiny_checkpoint.write_checkpoint(path)
    return load_checkpoint(path)


def stored_shapes(cfg):
    return keys.stored_shapes(keys.transformer_leaves(keys.transformer_boxed(cfg)))


def random_changes(cfg, dtype=np.float32):
    """Low-rank changes of all linear layers: ranks and scales differ."""
    draw = np.random.default_rng(0)

    def normal(*shape):
        return (draw.standard_normal(shape) / 6).astype(dtype)

    linears = {n: s for n, s in stored_shapes(cfg).items() if len(s) == 2 and n.endswith("weight")}
    return {
        name: LowRank(normal(4 - i % 2, into), normal(out, 4 - i % 2), (1.0, 0.5, 1.5)[i % 3])
        for i, (name, (out, into)) in enumerate(linears.items())
    }


def random_differences(cfg, ends):
    draw = np.random.default_rng(1)
    return {
        name: Difference(draw.standard_normal(shape).astype(np.float32) / 8)
        for name, shape in stored_shapes(cfg).items()
        if name.endswith(ends)
    }


def assert_same_changes(found, expected):
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        assert type(found[name]) is type(change)
        for x, y in zip(jax.tree.leaves(found[name]), jax.tree.leaves(change), strict=True):
            assert np.asarray(x).dtype == np.asarray(y).dtype, name
            np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("naming", ["comfy", "diffusers"])
def test_what_is_written_is_read_back_bit_for_bit(base, naming, dtype, tmp_path):
    changes = random_changes(base.transformer, dtype)
    ends = (".bias", "norm.weight", "scale_shift_table") if naming == "comfy" else ()
    if ends:
        changes |= random_differences(base.transformer, ends)
    path = tmp_path / "fox.safetensors"
    metadata = ORIGIN.to_metadata()
    adapter_writing.write(path, changes, naming=naming, metadata=metadata)
    adapter = adapters.read(path, base.transformer)
    assert_same_changes(adapter.changes, changes)
    assert Origin.from_metadata(adapter.metadata) == ORIGIN
    assert adapter.metadata["modelspec.trigger_phrase"] == "a sks fox"


def test_biases_under_diffusers_names(base, tmp_path):
    """Peft has one for all layers or for none, and scales it like the matrices."""
    changes = random_changes(base.transformer)
    biases = random_differences(base.transformer, ("to_q.bias", "net.2.bias"))
    path = tmp_path / "a.safetensors"
    adapter_writing.write(path, changes | biases, naming="diffusers")
    found = adapters.read(path, base.transformer).changes
    for name, change in found.items():
        if name.endswith(".bias"):
            expected = biases[name].difference if name in biases else 0
            np.testing.assert_allclose(change.scale * change.difference, expected, rtol=1e-6)
    assert biases.keys() < found.keys()


def comfy_targets(cfg):
    """What ComfyUI looks up in an adapter's file, and the tensor of the model that it changes.

    Facts of its public loader (comfy/lora.py: `model_lora_keys_unet`, `load_lora`;
    comfy/weight_adapter/lora.py), written down anew. The names of a model's tensors are the
    official ones below `diffusion_model.`. A weight is changed under its name without `.weight`,
    any other tensor under its whole name: by a pair `.lora_B.weight` (up) and `.lora_A.weight`
    (down), scaled by `.alpha` over the rank if there is one, or by `.diff`; `.diff_b` changes the
    bias beside the weight.
    """
    for name in stored_shapes(cfg):
        weight = f"diffusion_model.{name}"
        key = weight.removesuffix(".weight")
        yield weight, key, f"{weight.removesuffix('.weight')}.bias"


@pytest.mark.parametrize("with_differences", [False, True])
def test_comfyui_finds_every_tensor_and_computes_the_same_weights(base, with_differences, tmp_path):
    changes = random_changes(base.transformer)
    if with_differences:
        ends = (".bias", "norm.weight", "scale_shift_table")
        changes |= random_differences(base.transformer, ends)
    adapter_writing.write(tmp_path / "a.safetensors", changes)
    stored = load_file(tmp_path / "a.safetensors")
    found, used = {}, set()
    for weight, key, bias in comfy_targets(base.transformer):
        up, down = (f"{key}.lora_{half}.weight" for half in "BA")
        if up in stored:
            alpha = stored.get(f"{key}.alpha", np.float32(len(stored[down])))
            found[weight] = alpha / len(stored[down]) * np.float64(stored[up]) @ stored[down]
            used |= {up, down, f"{key}.alpha"} & stored.keys()
        for end, name in ((".diff", weight), (".diff_b", bias)):
            if key + end in stored:
                found[name] = stored[key + end]
                used.add(key + end)
    assert used == stored.keys()
    assert found.keys() == {f"diffusion_model.{name}" for name in changes}
    for name, change in changes.items():
        zero = jnp.zeros(stored_shapes(base.transformer)[name])
        expected = change(zero, 1.0)
        np.testing.assert_allclose(found[f"diffusion_model.{name}"], expected, atol=2e-6)


GRID = (2, 2, 3)


@pytest.fixture(scope="module")
def inputs(base):
    """Arguments of the network on both sides."""
    cfg, draw = base.transformer, np.random.default_rng(2)
    latents = draw.standard_normal((1, 12, cfg.in_channels), dtype=np.float32)
    caption = draw.standard_normal((1, 5, cfg.caption_channels), dtype=np.float32)
    pixels = positions.pixel_coords(positions.latent_coords(GRID), 8, 32, False)
    return latents, caption, np.asarray(positions.positions(pixels, 25.0)).reshape(12, 3)


def our_velocity(cfg, params, inputs):
    latents, caption, at = inputs
    rope = jax.tree.map(
        lambda x: jnp.asarray(x).reshape(1, 12, -1), positions.rope_tables(jnp.asarray(at), cfg)
    )
    context = Context(caption, np.ones((1, 5), np.int32), rope)
    apply = jax.jit(Transformer(cfg).apply)
    return apply({"params": params}, latents, np.full((1, 1), 0.4, "f"), context)


def diffusers_network(base):
    torch = pytest.importorskip("torch")
    cfg = base.transformer
    network = diffusers_reference.transformer(cfg)
    weights = {}
    for leaf in keys.transformer_leaves(keys.transformer_boxed(cfg)):
        value = base.transformer_params
        for part in leaf.path:
            value = value[part]
        for i, name in enumerate(leaf.names):
            array = np.array(leaf.to_stored(np.asarray(value[i] if leaf.stacked else value)))
            weights[keys.diffusers_transformer_name(name)] = torch.from_numpy(array)
    network.load_state_dict(weights)
    return network


def their_velocity(network, inputs):
    torch = pytest.importorskip("torch")
    latents, caption, at = (torch.from_numpy(np.array(x)) for x in inputs)
    with torch.no_grad():
        return network(
            hidden_states=latents,
            encoder_hidden_states=caption,
            timestep=torch.full((1, 12), 400.0),
            encoder_attention_mask=torch.ones((1, 5), dtype=torch.int64),
            video_coords=at.T[None],
            return_dict=False,
        )[0].numpy()


@pytest.mark.thorough
@pytest.mark.parametrize("with_biases", [False, True])
def test_diffusers_pipeline_loads_it_and_computes_the_same(base, inputs, with_biases, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    changes = random_changes(base.transformer)
    if with_biases:
        changes |= random_differences(base.transformer, ("to_q.bias", "net.2.bias"))
    path = tmp_path / "a.safetensors"
    metadata = ORIGIN.to_metadata()
    adapter_writing.write(path, changes, naming="diffusers", metadata=metadata)
    network = diffusers_network(base)
    plain = their_velocity(network, inputs)
    loader = diffusers.LTXPipeline
    state, settings = loader.lora_state_dict(path, return_lora_metadata=True)
    loader.load_lora_into_transformer(state, network, adapter_name="fox", metadata=settings)
    stored = load_file(path)
    loaded = {n.replace(".fox", "") for n in network.state_dict() if ".lora_" in n}
    assert loaded == {name.removeprefix("transformer.") for name in stored}
    adapter = adapters.read(path, base.transformer)
    for strength in (1.0, 0.3):
        network.set_adapters(["fox"], [strength])
        merged = adapters.merge(base.transformer_params, base.transformer, [(adapter, strength)])
        ours = our_velocity(base.transformer, merged, inputs)
        wanted = their_velocity(network, inputs)
        assert np.abs(wanted - plain).max() > 0.05
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4)


PUBLIC = {  # tensors in the headers of released adapters
    "0.9.7-distilled-lora128": (48, 128, lambda name: True, 974),
    "canny, detailer": (48, 128, lambda name: ".attn" in name or ".ff." in name, 960),
    "depth, pose": (48, 24, lambda name: ".attn" in name, 768),
    "2B, every layer": (28, 128, lambda name: True, 574),
}
# The linear layers of a block and those outside (transformer3d.py, attention.py upstream).
BLOCK = {
    *(f"attn{i}.{part}" for i in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")),
    *("ff.net.0.proj", "ff.net.2"),
}
ENDS = {
    *("patchify_proj", "proj_out", "adaln_single.linear"),
    *(f"adaln_single.emb.timestep_embedder.linear_{i}" for i in (1, 2)),
    *(f"caption_projection.linear_{i}" for i in (1, 2)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("naming", ["comfy", "diffusers"])
@pytest.mark.parametrize("which", PUBLIC)
def test_released_adapters_are_written_key_by_key(which, naming, tmp_path):
    """At released sizes; the matrices are views of one number, so that they take no memory."""
    layers, rank, is_changed, count = PUBLIC[which]
    width = {48: 4096, 28: 2048}[layers]
    cfg = TransformerConfig(num_layers=layers, attention_head_dim=width // 32)
    one = np.ones((), ml_dtypes.bfloat16)
    changes = {
        name: LowRank(np.broadcast_to(one, (rank, into)), np.broadcast_to(one, (out, rank)))
        for name, (out, into) in (
            (name, shape)
            for name, shape in stored_shapes(cfg).items()
            if len(shape) == 2 and name.endswith(".weight") and is_changed(name)
        )
    }
    entries, metadata = adapter_writing.entries(changes, naming)
    blocks = [f"transformer_blocks.{i}.{part}" for i in range(layers) for part in BLOCK]
    modules = {name for name in (*blocks, *ENDS) if is_changed(name)}
    if naming == "diffusers":
        renamed = {"patchify_proj": "proj_in", "adaln_single": "time_embed"}
        modules = {".".join(renamed.get(p, p) for p in name.split(".")) for name in modules}
        assert json.loads(metadata["lora_adapter_metadata"])["transformer.r"] == rank
    prefix = {"comfy": "diffusion_model.", "diffusers": "transformer."}[naming]
    expected = {f"{prefix}{name}.lora_{half}.weight" for name in modules for half in "AB"}
    assert entries.keys() == expected
    assert len(entries) == count
    up, down = (entries[f"{prefix}transformer_blocks.7.attn2.to_k.lora_{x}.weight"] for x in "BA")
    assert (up.shape, down.shape) == ((width, rank), (rank, width))


def test_what_cannot_be_written_is_refused(base, tmp_path):
    changes, path = random_changes(base.transformer), tmp_path / "a.safetensors"
    norm = "transformer_blocks.0.attn1.q_norm.weight"
    differences = random_differences(base.transformer, ("q_norm.weight",))
    with pytest.raises(ValueError, match=r"diffusers' names have no key for .*q_norm\.weight"):
        adapter_writing.write(path, changes | differences, naming="diffusers")
    with pytest.raises(ValueError, match=r"q_norm\.weight is a Replacement"):
        adapter_writing.write(path, {norm: Replacement(np.ones(32, np.float32))})
    with pytest.raises(ValueError, match=r"nothing to write"):
        adapter_writing.write(path, {})
    up = changes["proj_out.weight"].up
    up[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"proj_out\.lora_B\.weight is not finite \(as float16\)"):
        adapter_writing.write(path, changes, dtype="float16")
    assert not path.exists()


def test_alphas_are_those_of_the_first_pattern_that_ends_a_name(base, tmp_path):
    """As in peft, where a pattern may be the end of a module's name."""
    changes = {n: c for n, c in random_changes(base.transformer).items() if ".attn1.to_" in n}
    settings = {"lora_alpha": 4, "alpha_pattern": {"to_q": 8, "attn1.to_[qk]": 2, "to_ou": 1}}
    stored = {}
    for name, change in changes.items():
        key = f"transformer.{name.removesuffix('.weight')}"
        stored |= {f"{key}.lora_A.weight": change.down, f"{key}.lora_B.weight": change.up}
    text = json.dumps({f"transformer.{key}": value for key, value in settings.items()})
    save_file(stored, tmp_path / "a.safetensors", {"lora_adapter_metadata": text})
    found = adapters.read(tmp_path / "a.safetensors", base.transformer).changes
    for name, change in found.items():
        alpha = {"to_q": 8, "to_k": 2}.get(name.split(".")[3], 4)
        assert change.scale == alpha / len(change.down), name
