"""Weight files of every public layout: loaded, sampled, exported and loaded again.

What a layout means is computed by its writer (`weight_layouts`). Loading must give these values
exactly, and everything after it what an official file with these values gives.
"""

import itertools
import json
import logging

import jax
import numpy as np
import pytest
from checkpoint_files import random_tensors, raw_config, write_official
from quick import QUICK

pytest.importorskip("torch")
pytest.importorskip("gguf")

import safetensors.torch
import torch
import weight_layouts as layouts

from ltx_jax.checkpoints.load import load_checkpoint, load_upsampler
from ltx_jax.config import SamplingConfig
from ltx_jax.export import export
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.runtime.compiled import Programs

pytestmark = pytest.mark.usefixtures("no_type_checks")

OPTIONS = SamplingConfig(
    height=32,
    width=32,
    num_frames=9,
    num_inference_steps=2,
    guidance_scale=1.0,
    stg_scale=0.0,
    image_cond_noise_scale=0.0,
)
CAPTION = dict(
    prompt_embeds=np.random.default_rng(0).standard_normal((1, 3, layouts.CAPTION), np.float32),
    prompt_mask=np.ones((1, 3), np.int32),
)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A small VAE of 0.9.5's kind with its configuration, in a file of its own."""
    raw = {"vae": raw_config("0.9.5")["vae"]}
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    return write_official(path, raw, random_tensors(raw))


@pytest.fixture(scope="module", params=list(layouts.SIZES))
def base(request):
    """A size and its weights."""
    return request.param, layouts.base(request.param)


@pytest.fixture(scope="module")
def programs():
    """The compiled programs of all tests."""
    return Programs(QUICK)


def official(folder, size, values):
    """An official file, float32, with these values."""
    path = folder / "expected.safetensors"
    tensors = {name: torch.tensor(value) for name, value in values.items()}
    layouts.save(path, tensors, layouts.OFFICIAL, config=json.dumps(layouts.config(size)))
    return path


def assert_same(ours, theirs, tolerance=0):
    """The same configurations, and the same bits in every parameter if there is no tolerance."""
    assert ours.transformer == theirs.transformer
    assert ours.scheduler == theirs.scheduler
    assert jax.tree.structure(ours.transformer_params) == jax.tree.structure(
        theirs.transformer_params
    )
    for (path, a), b in zip(
        jax.tree.leaves_with_path(ours.transformer_params),
        jax.tree.leaves(theirs.transformer_params),
        strict=True,
    ):
        assert a.dtype == b.dtype, path
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(
            a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=str(path)
        )


@pytest.mark.thorough
@pytest.mark.parametrize("layout", layouts.LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_layout_means_what_its_writer_stored(tmp_path, base, vae, programs, layout):
    size, values = base
    written = layout(tmp_path, size, values)
    expected = official(tmp_path, size, written.values)

    for dtype in ("bfloat16", "float32"):
        loaded = load_checkpoint(written.path, vae=vae, dtype=dtype)
        theirs = load_checkpoint(expected, vae=vae, dtype=dtype)
        # Values that differ in float32 may round to neighbours in bfloat16.
        rounding = 2**-8 if dtype == "bfloat16" else written.tolerance
        assert_same(loaded, theirs, rounding if written.tolerance else 0)
        assert loaded.vae is not None

    sampled = []
    for checkpoint in (loaded, theirs):
        pipe = LTXPipeline(checkpoint, dtype="float32")
        pipe.programs = programs  # compiled once for all layouts of a size
        sampled.append(pipe(None, OPTIONS, embeddings=CAPTION, output="latents"))
    np.testing.assert_allclose(*sampled, rtol=0, atol=100 * written.tolerance)
    assert np.isfinite(sampled[0]).all()
    assert sampled[0].std() > 0.1

    export(str(written.path), tmp_path / "out", vae=str(vae), dtype="float32", layouts=["official"])
    again = load_checkpoint(tmp_path / "out")
    assert_same(again, loaded)
    jax.tree.map(np.testing.assert_array_equal, again.vae_params, loaded.vae_params)


@pytest.mark.parametrize(
    ("layout", "step"),
    [
        (layouts.bf16, 0),
        (layouts.fp8_official, 2**-4),  # half of a mantissa of three bits
        (layouts.fp8_e5m2, 2**-3),
        (layouts.scaled_comfy, 2**-4),
        (layouts.diffusers_fp16, 0),  # eight bits of bfloat16 fit into eleven
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_format_rounds_no_more_than_its_bits(tmp_path, layout, step):
    """Relative to each value, or to the smallest normal number where a value lies below it."""
    values = layouts.base("2b")
    written = layout(tmp_path, "2b", values)
    for name, value in filter(lambda item: layouts.is_matrix(item[0]), values.items()):
        scale = np.abs(value).max() / 448 if layout is layouts.scaled_comfy else 1
        smallest = {layouts.diffusers_fp16: 2.0**-14, layouts.fp8_e5m2: 2.0**-14}.get(
            layout, 2.0**-6
        )
        bound = max(step, 2**-11) * np.maximum(np.abs(value), smallest * scale)
        assert (np.abs(written.values[name] - value) <= bound * (1 + 1e-6)).all(), name


@pytest.mark.parametrize(
    "kind",
    [
        *("Q4_K", "Q5_0"),
        *(
            pytest.param(kind, marks=pytest.mark.thorough)
            for kind in ("Q2_K", "Q3_K", "Q5_K", "Q6_K", "Q4_1", "Q5_1")
        ),
    ],
)
def test_gguf_blocks_of_every_usual_kind_are_read(tmp_path, kind):
    """Random blocks, whose meaning the package gguf computes from their bytes."""
    import gguf

    values = layouts.base("2b")
    chosen = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[chosen]
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path=tmp_path / "ltxv.gguf", arch="ltxv")
    meaning = {}
    for name, value in values.items():
        if layouts.is_matrix(name) and value.shape[1] % 256 == 0:
            shape = (len(value), value.shape[1] // block * block_bytes)
            data = draw.integers(0, 4, shape, np.uint8)  # small exponents, no NaN
            writer.add_tensor(name, data, raw_dtype=chosen)
            value = gguf.quants.dequantize(data, chosen)
        else:
            writer.add_tensor(name, value)
        meaning[name] = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = load_checkpoint(tmp_path / "ltxv.gguf", dtype="float32")
    assert_same(loaded, load_checkpoint(official(tmp_path, "2b", meaning)))


def test_plain_fp8_is_written_again_as_it_was(tmp_path, base):
    size, values = base
    written = layouts.fp8_official(tmp_path, size, values)
    export(str(written.path), tmp_path / "out", layouts=["official"])
    theirs = safetensors.torch.load_file(written.path)
    ours = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize(
    ("name", "causal", "steps"),
    [
        ("ltx-video-2b-v0.9.safetensors", False, None),
        ("ltx-video-2b-v0.9.1.safetensors", False, None),
        ("ltxv-2b-0.9.6-dev-fp8.safetensors", True, None),
        ("ltxv-2b-0.9.8-distilled.safetensors", True, 8),
        ("something.safetensors", True, None),
    ],
)
def test_what_shapes_cannot_tell_is_said(tmp_path, caplog, name, causal, steps):
    values = layouts.base("2b")
    path = layouts.bare(tmp_path, "2b", values).path.rename(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        loaded = load_checkpoint(path)
    assert loaded.transformer.causal_temporal_positioning == causal
    assert loaded.scheduler.shifting == (None if causal else "SD3")
    times = loaded.allowed_inference_steps
    assert (None if times is None else len(times)) == steps
    [message] = [record.getMessage() for record in caplog.records]
    assert f"{name} holds no config" in message
    assert "28 layers" in message
    assert ("0.9.5 or later" if causal else "0.9 or 0.9.1") in message
    assert ("distilled, with its fixed times" if steps else "not distilled") in message


def test_the_vae_beside_tells_early_versions_from_later_ones(tmp_path):
    path = layouts.bare(tmp_path, "2b", layouts.base("2b")).path
    raw = {"vae": raw_config("0.9.1")["vae"]}
    beside = write_official(tmp_path / "vae.safetensors", raw, random_tensors(raw))
    assert not load_checkpoint(path, vae=beside).transformer.causal_temporal_positioning
    assert load_checkpoint(path).transformer.causal_temporal_positioning


@pytest.mark.parametrize(
    ("family", "prefix"),
    [
        ("0.9.1", ""),
        *(
            pytest.param(*case, marks=pytest.mark.thorough)
            for case in itertools.product(("0.9.0", "0.9.1", "0.9.5"), ("", "vae."))
            if case != ("0.9.1", "")
        ),
    ],
)
def test_a_vae_without_a_config_is_known_by_its_tensors(tmp_path, caplog, family, prefix):
    from ltx_jax.checkpoints import official_config, releases

    version = {"0.9.5": "2b-0.9.6-dev"}.get(family, f"2b-{family}")
    changes = {"encoder_base_channels": 8, "decoder_base_channels": 8, "latent_channels": 16}
    raw = {"vae": releases.RELEASED[version].config["vae"] | changes}
    values = {n.replace("vae.", prefix, 1): v for n, v in random_tensors(raw).items()}
    safetensors.numpy.save_file(values, tmp_path / "vae.safetensors")
    loaded = load_checkpoint(tmp_path / "vae.safetensors")
    assert loaded.vae == official_config.vae(raw["vae"])
    assert loaded.transformer is None
    assert f"is taken as that of {family}" in caplog.text
    stored = values[f"{prefix}encoder.conv_in.conv.weight"]
    kernel = loaded.vae_params["encoder"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(kernel, np.einsum("oithw->thwio", stored))


@pytest.mark.thorough
def test_sampling_from_the_command_line_takes_parts(tmp_path, vae, capsys):
    from ltx_jax import sample

    written = layouts.gguf_q8_0(tmp_path, "2b", layouts.base("2b"))
    np.savez(tmp_path / "caption.npz", **CAPTION)
    arguments = ["--checkpoint", str(written.path), "--vae", str(vae)]
    arguments += ["--embeddings", str(tmp_path / "caption.npz"), "--dtype", "float32"]
    arguments += ["--height", "32", "--width", "32", "--num_frames", "9", "--stg_scale", "0"]
    arguments += ["--num_inference_steps", "2", "--guidance_scale", "1"]
    arguments += ["--save_latents", str(tmp_path / "latents.npy")]
    assert sample.main(arguments) == 0, capsys.readouterr().err
    pipe = LTXPipeline.from_pretrained(written.path, vae=vae, dtype="float32")
    expected = pipe(None, OPTIONS, embeddings=CAPTION, output="latents")
    np.testing.assert_array_equal(np.load(tmp_path / "latents.npy"), expected)
    assert sample.main([*arguments[:2], *arguments[4:]]) == 2
    assert "this one has no VAE: name one with --vae" in capsys.readouterr().err


def test_an_upsampler_saved_by_diffusers_is_that_of_the_official_file(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel

    assert diffusers.__version__
    config = dict(in_channels=8, mid_channels=32, num_blocks_per_stage=1, dims=3)
    model = LTXLatentUpsamplerModel(**config)
    model.save_pretrained(tmp_path / "pipeline" / "latent_upsampler")
    text = json.dumps({"_class_name": "LatentUpsampler", **config, "spatial_upsample": True})
    safetensors.torch.save_file(model.state_dict(), tmp_path / "a.safetensors", {"config": text})
    theirs = load_upsampler(tmp_path / "a.safetensors")
    for place in ("pipeline", "pipeline/latent_upsampler"):
        cfg, params = load_upsampler(tmp_path / place)
        assert cfg == theirs[0]
        jax.tree.map(np.testing.assert_array_equal, params, theirs[1])
        with pytest.raises(ValueError, match="pass it as --spatial_upscaler"):
            load_checkpoint(tmp_path / place)


def test_of_several_variants_one_is_read_and_none_has_to_be_removed(tmp_path, caplog):
    values = layouts.base("2b")
    folder = layouts.diffusers_fp16(tmp_path, "2b", values).path
    half = load_checkpoint(folder, dtype="float32")
    first = min((folder / "transformer").glob("*.safetensors"))
    tensors = safetensors.torch.load_file(first)
    (folder / "transformer" / "diffusion_pytorch_model.other.safetensors").write_bytes(b"")
    assert_same(load_checkpoint(folder, dtype="float32"), half)
    assert "['fp16', 'other']: fp16 is read" in caplog.text
    assert tensors  # the shards are untouched
    first.unlink()
    with pytest.raises(ValueError, match=r"lacks .*fp16-00001.*index.fp16.json lists: fetch"):
        load_checkpoint(folder)


def test_nan_in_a_small_tensor_is_noticed_when_it_is_loaded(tmp_path):
    values = layouts.base("2b")
    name = "transformer_blocks.3.attn1.q_norm.weight"
    values[name] = np.where(np.arange(layouts.WIDTH) == 5, np.nan, values[name]).astype(np.float32)
    path = layouts.bf16(tmp_path, "2b", values).path
    with pytest.raises(ValueError, match=rf"is damaged: .*{name} holds NaN or infinity"):
        load_checkpoint(path)


FOREIGN = {
    "diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight": "is a LoRA or another adapter",
    "lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight": "is a LoRA or another adapter",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "T5 text encoder: pass it as --text_encoder",
    "enc.blk.0.attn_q.weight": "T5 text encoder: pass it as --text_encoder",
    "initial_conv.weight": "latent upsampler: pass it as --spatial_upscaler",
    "model.diffusion_model.audio_patchify_proj.weight": "an LTX-2 model",
    "blocks.0.self_attn.q.weight": "a Wan model",
    "text_model.encoder.layers.0.mlp.fc1.weight": "a CLIP text encoder",
    "something.weight": "it holds something.weight|no matrix",
}


@pytest.mark.parametrize(("name", "message"), FOREIGN.items())
def test_a_file_of_another_kind_is_named(tmp_path, name, message):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({name: np.zeros((4, 4), np.float32)}, path)
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"to_nowhere.weight_scale": np.float32(1)}, "scales a weight that the file lacks"),
        (
            {"transformer_blocks.0.attn1.to_q.weight_scale_2": np.float32(1)},
            "in an unsupported way",
        ),
        (
            {"transformer_blocks.0.attn1.to_q.weight_scale": np.ones((64, 4), np.float32)},
            r"has shape \(64, 4\), expected one number or \(64,\)",
        ),
        (
            {"transformer_blocks.0.attn1.to_q.weight_scale": np.float32("nan")},
            "weight_scale holds NaN",
        ),
        (
            {
                "transformer_blocks.0.attn1.to_q.comfy_quant": np.frombuffer(
                    b'{"format": "nvfp4"}', np.uint8
                )
            },
            "format 'nvfp4', supported: float8_e4m3fn, float8_e5m2",
        ),
    ],
)
def test_a_quantisation_that_is_not_read_is_named(tmp_path, extra, message):
    path = layouts.fp8_e5m2(tmp_path, "2b", layouts.base("2b")).path
    tensors = safetensors.torch.load_file(path)
    tensors |= {name: torch.tensor(value) for name, value in extra.items()}
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path)


def test_without_the_package_gguf_an_error_says_how_to_install_it(tmp_path, monkeypatch):
    from ltx_jax.checkpoints import gguf_files

    path = layouts.gguf_q8_0(tmp_path, "2b", layouts.base("2b")).path
    gguf_files._gguf.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ValueError, match=r"which the package gguf reads: pip install"):
        load_checkpoint(path)
