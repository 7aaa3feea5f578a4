"""Directories of diffusers: its classes load what we write, and we read what it writes."""

import dataclasses
import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import (
    FAMILIES,
    assert_bitwise,
    random_tensors,
    raw_config,
    read_all,
    write_official,
)
from quick import QUICK

from ltx_jax.checkpoints import (
    diffusers,
    diffusers_config,
    diffusers_vae,
    keys,
    official,
    official_config,
)
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import BlockConfig, SchedulerConfig, TransformerConfig, VAEConfig
from ltx_jax.diffusion import positions
from ltx_jax.models.transformer import Context, Transformer
from ltx_jax.models.vae import VideoVAE

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("diffusers")

torch.set_num_threads(1)  # these models are too small for more

# Both sides compute in float32, in another order; outputs are of order 1.
TOLERANCE = dict(rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """One checkpoint of every family, and the directory we wrote of it."""
    made = {}
    for family in FAMILIES:
        raw = raw_config(family, width=4)
        folder = tmp_path_factory.mktemp("family")
        path = write_official(folder / "a.safetensors", raw, random_tensors(raw), note="kept")
        ours = load_checkpoint(path)
        diffusers.write(folder / "out", ours)
        made[family] = (ours, folder / "out")
    return made


def strictly(kind, path):
    """Loads a class of diffusers, refusing everything that does not match."""
    model, info = kind.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def their_vae(vae, video, latents, timestep):
    """Moments and decoded video, channels last, and the noise maps that it drew."""
    drawn, randn = [], torch.randn
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:

        def record(*args, **kwargs):
            drawn.append(randn(*args, **kwargs))
            return drawn[-1]

        patch.setattr(torch, "randn", record)
        channels_first = torch.from_numpy(np.moveaxis(video, -1, 1).copy())
        posterior = vae.encode(channels_first).latent_dist
        time = None if timestep is None else torch.from_numpy(timestep)
        decoded = vae.decode(torch.from_numpy(np.moveaxis(latents, -1, 1).copy()), time).sample
    outputs = [np.moveaxis(x.numpy(), 1, -1) for x in (posterior.mean, posterior.logvar, decoded)]
    return outputs, [x.reshape(x.shape[-2:]).numpy() for x in drawn]


def our_vae(cfg, params, video, latents, timestep, drawn):
    model = VideoVAE(cfg)

    def noise(index, shape):
        assert drawn[index].shape == shape
        return jnp.asarray(drawn[index])

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(params, video, latents, timestep):
        variables = {"params": params}
        posterior = model.apply(variables, video, method="encode")
        decoded = model.apply(variables, latents, timestep, noise, method="decode")
        return [posterior.mean, posterior.logvar, decoded]

    return both(params, video, latents, timestep)


def assert_same_vae(cfg, params, path):
    rng = np.random.default_rng(0)
    vae = strictly(theirs.AutoencoderKLLTXVideo, path)
    assert vae.spatial_compression_ratio == cfg.spatial_factor
    assert vae.temporal_compression_ratio == cfg.temporal_factor
    frames = cfg.temporal_factor + 1
    size = cfg.spatial_factor
    video = rng.uniform(-1, 1, (1, frames, size, size, 3)).astype(np.float32)
    latents = rng.standard_normal((1, 2, 1, 1, cfg.latent_channels), dtype=np.float32)
    timestep = np.array([0.3], np.float32) if cfg.timestep_conditioning else None
    expected, drawn = their_vae(vae, video, latents, timestep)
    found = our_vae(cfg, params, video, latents, timestep, drawn)
    for ours, wanted in zip(found, expected, strict=True):
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(ours, wanted, **TOLERANCE)


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_the_vae_gives_the_same_output_in_diffusers(loaded, family):
    ours, path = loaded[family]
    assert_same_vae(ours.vae, ours.vae_params, path / "vae")
    vae = strictly(theirs.AutoencoderKLLTXVideo, path / "vae")
    np.testing.assert_array_equal(vae.latents_mean, ours.statistics.mean)
    np.testing.assert_array_equal(vae.latents_std, ours.statistics.std)


def assert_same_transformer(ours, path):
    cfg = ours.transformer
    rng = np.random.default_rng(0)
    grid = (2, 3, 4)
    latents = rng.standard_normal((2, 24, cfg.in_channels), dtype=np.float32)
    caption = rng.standard_normal((2, 5, cfg.caption_channels), dtype=np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], np.int32)
    time = rng.uniform(0, 1, (2, 24)).astype(np.float32)
    pixels = positions.pixel_coords(
        positions.latent_coords(grid), 8, 32, cfg.causal_temporal_positioning
    )
    at = positions.positions(pixels, 25.0)
    rope = positions.rope_tables(at, cfg)
    rope = jax.tree.map(lambda x: jnp.asarray(x).reshape(1, 24, -1), rope)
    apply = jax.jit(Transformer(cfg).apply, compiler_options=QUICK)
    velocity = apply(
        {"params": ours.transformer_params}, latents, time, Context(caption, mask, rope)
    )
    model = strictly(theirs.LTXVideoTransformer3DModel, path)
    coords = np.broadcast_to(np.asarray(at).reshape(24, 3).T, (2, 3, 24)).copy()
    with torch.no_grad():
        wanted = model(
            hidden_states=torch.from_numpy(latents),
            encoder_hidden_states=torch.from_numpy(caption),
            timestep=1000 * torch.from_numpy(time),
            encoder_attention_mask=torch.from_numpy(mask),
            video_coords=torch.from_numpy(coords),
            return_dict=False,
        )[0].numpy()
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(velocity, wanted, **TOLERANCE)


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["0.9.0", "0.9.5"])
def test_the_transformer_gives_the_same_output_in_diffusers(loaded, family):
    ours, path = loaded[family]
    assert_same_transformer(ours, path / "transformer")


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_of_ours_comes_back_whole(loaded, family, tmp_path):
    ours, path = loaded[family]
    back = load_checkpoint(path)
    assert (back.transformer, back.vae) == (ours.transformer, ours.vae)
    assert (back.scheduler, back.metadata) == (ours.scheduler, ours.metadata)
    assert back.allowed_inference_steps == ours.allowed_inference_steps
    official.write(tmp_path / "b.safetensors", back)
    found, metadata = read_all(tmp_path / "b.safetensors")
    official.write(tmp_path / "c.safetensors", dataclasses.replace(ours, tolerated={}))
    wanted, _ = read_all(tmp_path / "c.safetensors")
    assert_bitwise(found, wanted)
    assert metadata == ours.metadata


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["0.9.0", "0.9.1"])
def test_diffusers_own_converter_of_official_files_agrees(loaded, family, tmp_path):
    """The third family is told by a width that small models do not have; its names alone are
    compared with the converter, at released size, elsewhere."""
    from diffusers.loaders import single_file_utils

    ours, path = loaded[family]
    official.write(tmp_path / "a.safetensors", ours)
    values = {k: torch.from_numpy(v) for k, v in read_all(tmp_path / "a.safetensors")[0].items()}
    vae = single_file_utils.convert_ltx_vae_checkpoint_to_diffusers(dict(values))
    transformer = single_file_utils.convert_ltx_transformer_checkpoint_to_diffusers(dict(values))
    for converted, part in ((vae, "vae"), (transformer, "transformer")):
        written, _ = read_all(path / part / "diffusion_pytorch_model.safetensors")
        assert_bitwise(written, {name: value.numpy() for name, value in converted.items()})


def res(n):
    return BlockConfig("res_x", n)


def up(multiplier=None, residual=False):
    return BlockConfig("compress_all", multiplier=multiplier, residual=residual)


DOWN = BlockConfig("compress_all")
WIDEN = BlockConfig("res_x_y")
ODD = {  # encoder, decoder (in the order of the encoder, as in the files), conditioned
    "no residual blocks": ((DOWN, WIDEN), (up(),), False),
    "nothing at all": ((), (), False),
    "ends in a change of width": ((res(1), DOWN, WIDEN), (res(1), WIDEN, up(), res(1)), False),
    "two of everything": (
        (res(1), res(2), DOWN, DOWN, WIDEN, WIDEN, res(1), res(1)),
        (res(1), res(1), up(), up(), WIDEN, WIDEN, res(1), res(2)),
        False,
    ),
    "old and new": (
        (res(1), DOWN, WIDEN, BlockConfig("compress_time_res", multiplier=1), res(1), DOWN, WIDEN),
        (res(1), up(2, True), WIDEN, res(1), up(4)),
        False,
    ),
    "factors": (
        (res(1), BlockConfig("compress_space_res", multiplier=4), DOWN, res(1)),
        (res(1), up(4, True), BlockConfig("res_x", 2, inject_noise=True), up(1), res(1)),
        True,
    ),
}


def random_params(shapes):
    rng = np.random.default_rng(0)
    leaves, treedef = jax.tree.flatten(shapes)
    values = [
        (rng.standard_normal(x.shape) / max(1, np.prod(x.shape[:-1])) ** 0.5).astype(np.float32)
        if x.ndim
        else np.float32(1000).reshape(())
        for x in leaves
    ]
    return jax.tree.unflatten(treedef, values)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", list(ODD))
def test_any_list_of_blocks_that_diffusers_has_gives_the_same_output(kind, tmp_path):
    from ltx_jax.runtime import sharding

    encoder, decoder, conditioned = ODD[kind]
    cfg = VAEConfig(
        encoder,
        decoder,
        latent_channels=4,
        encoder_base_channels=4,
        decoder_base_channels=8,
        patch_size=2,
        timestep_conditioning=conditioned,
        causal_decoder=kind == "factors",
    )
    params = random_params(sharding.unbox(keys.vae_boxed(cfg)))
    diffusers.write(tmp_path / "out", Checkpoint(vae=cfg, vae_params=params))
    back = load_checkpoint(tmp_path / "out")
    assert back.vae == cfg
    jax.tree.map(np.testing.assert_array_equal, back.vae_params, params)
    assert_same_encoding(cfg, params, tmp_path / "out" / "vae")


def assert_same_encoding(cfg, params, path):
    """Encoder and decoder need not undo each other here."""
    vae = strictly(theirs.AutoencoderKLLTXVideo, path)
    rng = np.random.default_rng(1)
    video = rng.uniform(-1, 1, (1, 9, 16, 16, 3)).astype(np.float32)
    latents = rng.standard_normal((1, 2, 1, 2, 4), dtype=np.float32)
    timestep = np.array([0.3], np.float32) if cfg.timestep_conditioning else None
    expected, drawn = their_vae(vae, video, latents, timestep)
    for ours, wanted in zip(
        our_vae(cfg, params, video, latents, timestep, drawn), expected, strict=True
    ):
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(ours / scale, wanted / scale, **TOLERANCE)


def their_checkpoint(tmp_path, **vae):
    """Models of diffusers with random weights, saved by diffusers."""
    torch.manual_seed(0)
    transformer = theirs.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=12,
    )
    defaults = dict(
        latent_channels=4,
        block_out_channels=(8, 16, 32),
        down_block_types=("LTXVideo095DownBlock3D",) * 2,
        decoder_block_out_channels=(16, 32),
        layers_per_block=(1, 2, 1),
        decoder_layers_per_block=(1, 0, 2),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(True, False, False),
        downsample_type=("spatial", "temporal"),
        upsample_residual=(True, False),
        upsample_factor=(2, 2),
        timestep_conditioning=True,
    )
    model = theirs.AutoencoderKLLTXVideo(**(defaults | vae))
    for part, module in (("transformer", transformer), ("vae", model)):
        for parameter in module.parameters():
            if parameter.ndim:
                torch.nn.init.normal_(parameter, std=0.2)
        module.save_pretrained(tmp_path / part, max_shard_size="40KB")
    return transformer, model


@pytest.mark.thorough
def test_what_diffusers_saves_comes_back_to_diffusers_bitwise(tmp_path):
    transformer, vae = their_checkpoint(tmp_path / "in")
    shards = list((tmp_path / "in" / "transformer").glob("*.safetensors"))
    assert len(shards) > 1
    ours = load_checkpoint(tmp_path / "in")
    assert ours.transformer.causal_temporal_positioning  # this VAE is of the family that came then
    assert ours.metadata == {}
    # By way of the official layout, sharded again on the way out.
    official.write(tmp_path / "a.safetensors", ours)
    again = load_checkpoint(tmp_path / "a.safetensors")
    diffusers.write(tmp_path / "out", again, max_shard_bytes=50_000)
    assert len(list((tmp_path / "out" / "vae").glob("*.safetensors"))) > 1
    for kind, part, model in (
        (theirs.LTXVideoTransformer3DModel, "transformer", transformer),
        (theirs.AutoencoderKLLTXVideo, "vae", vae),
    ):
        found = strictly(kind, tmp_path / "out" / part).state_dict()
        wanted = {name: value.numpy() for name, value in model.state_dict().items()}
        assert_bitwise({name: value.numpy() for name, value in found.items()}, wanted)
    ratios = dict(spatial_compression_ratio=8, temporal_compression_ratio=2)
    vae.register_to_config(**ratios)
    assert_same_encoding(ours.vae, ours.vae_params, tmp_path / "out" / "vae")


def test_the_first_releases_config_without_decoder_lists_is_understood():
    raw = {
        "_class_name": "AutoencoderKLLTXVideo",
        "_diffusers_version": "0.32.0.dev0",
        "block_out_channels": [128, 256, 512, 512],
        "decoder_causal": False,
        "encoder_causal": True,
        "in_channels": 3,
        "latent_channels": 128,
        "layers_per_block": [4, 3, 3, 3, 4],
        "out_channels": 3,
        "patch_size": 4,
        "patch_size_t": 1,
        "resnet_norm_eps": 1e-06,
        "scaling_factor": 1.0,
        "spatio_temporal_scaling": [True, True, True, False],
    }
    cfg, names = diffusers_vae.vae(raw, "config.json")
    released = official_config.vae(raw_config("0.9.0")["vae"])
    assert [b.name for b in cfg.encoder_blocks] == [b.name for b in released.encoder_blocks]
    assert [b.name for b in cfg.decoder_blocks] == [b.name for b in released.decoder_blocks]
    assert names["decoder.up_blocks.7"] == "decoder.up_blocks.3.conv_in"
    assert names["encoder.down_blocks.9"] == "encoder.mid_block"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("pipeline", "family", "causal"),
    [
        ("LTXPipeline", "0.9.0", False),
        (None, "0.9.1", False),
        ("LTXConditionPipeline", "0.9.0", True),
        (None, "0.9.5", True),
    ],
)
def test_causal_positions_are_told_by_the_pipeline_or_the_vae(
    loaded, tmp_path, pipeline, family, causal
):
    """Where config.json is all there is: in folders that were not written here."""
    ours, _ = loaded[family]
    path = tmp_path / "out"
    diffusers.write(path, ours)
    for part in ("transformer", "vae"):
        file = path / part / "diffusion_pytorch_model.safetensors"
        values, metadata = read_all(file)
        assert metadata.keys() == {"config", "format", "note"}
        import safetensors.numpy

        safetensors.numpy.save_file(values, file, {"format": "pt"})
    (path / "model_index.json").unlink()
    if pipeline:
        (path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    assert load_checkpoint(path).transformer.causal_temporal_positioning == causal


@pytest.mark.thorough
def test_a_pipeline_of_diffusers_takes_the_directory(loaded):
    for family, kind in (("0.9.0", theirs.LTXPipeline), ("0.9.5", theirs.LTXConditionPipeline)):
        pipe = theirs.DiffusionPipeline.from_pretrained(
            loaded[family][1], text_encoder=None, tokenizer=None
        )
        assert type(pipe) is kind


@pytest.mark.parametrize(
    "cfg",
    [
        SchedulerConfig(shifting="SD3", target_shift_terminal=0.1),
        SchedulerConfig(shifting="SD3"),
        SchedulerConfig(sampler="LinearQuadratic"),
        SchedulerConfig(sampler="Uniform"),
        SchedulerConfig(sampler="Constant", shift=0.75),
    ],
)
def test_schedulers_survive_the_form_of_diffusers(cfg):
    raw = diffusers_config.dump_scheduler(cfg)
    theirs.FlowMatchEulerDiscreteScheduler.from_config(raw)
    pipeline = "LTXPipeline" if cfg.sampler == "Uniform" else None
    back = diffusers_config.scheduler(json.loads(json.dumps(raw)), "x", pipeline)
    if cfg.shift is not None:
        assert back.shift == pytest.approx(cfg.shift)
        back = dataclasses.replace(back, shift=cfg.shift)
    assert back == cfg


VAE = VAEConfig((res(1), DOWN, res(1)), (res(1), up(), res(1)))
INEXPRESSIBLE = [
    (dict(norm_layer="group_norm"), "norm_layer"),
    (dict(latent_log_var="per_channel"), "latent_log_var"),
    (dict(spatial_padding_mode="replicate"), "spatial_padding_mode"),
    (dict(use_quant_conv=True, latent_log_var="none"), "latent_log_var|use_quant_conv"),
    (dict(encoder_blocks=(res(1), BlockConfig("compress_time"), res(1))), "compress_time"),
    (dict(encoder_blocks=(res(1), BlockConfig("compress_all_x_y"))), "compress_all_x_y"),
    (dict(decoder_blocks=(res(1), BlockConfig("compress_space"), res(1))), "compress_space"),
    (dict(decoder_blocks=(BlockConfig("attn_res_x", 1, attention_head_dim=4),)), "attn_res_x"),
    (
        dict(decoder_blocks=(res(1), WIDEN, res(1)), timestep_conditioning=True),
        "res_x_y with timestep_conditioning",
    ),
    (
        dict(decoder_blocks=(res(1), BlockConfig("res_x_y", inject_noise=True), res(1))),
        "res_x_y with inject_noise",
    ),
    (dict(decoder_blocks=(up(), res(1)), timestep_conditioning=True), "res_x before and after"),
]


@pytest.mark.parametrize(("change", "message"), INEXPRESSIBLE)
def test_what_diffusers_cannot_express_is_named(change, message):
    with pytest.raises(ValueError, match=f"diffusers.*({message})"):
        diffusers_vae.dump_vae(dataclasses.replace(VAE, **change))


def test_transformers_and_schedulers_that_diffusers_cannot_express_are_named():
    cfg = TransformerConfig(positional_embedding_max_pos=(10.0, 64.0, 64.0))
    with pytest.raises(ValueError, match="cannot express positional_embedding_max_pos"):
        diffusers_config.dump_transformer(cfg)
    with pytest.raises(ValueError, match="SimpleDiffusion"):
        diffusers_config.dump_scheduler(SchedulerConfig(shifting="SimpleDiffusion"))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("transformer", "qk_norm", "layer_norm"),
        ("transformer", "patch_size_t", 2),
        ("transformer", "cross_attention_dim", 99),
        ("transformer", "_class_name", "LTX2VideoTransformer3DModel"),
        ("transformer", "num_layers", "two"),
        ("vae", "encoder_causal", False),
        ("vae", "patch_size_t", 2),
        ("vae", "down_block_types", ["LTXVideo2DownBlock3D"] * 4),
        ("vae", "_class_name", "AutoencoderKL"),
        ("scheduler", "use_karras_sigmas", True),
        ("scheduler", "max_shift", 3.0),
    ],
)
def test_a_value_that_we_do_not_have_is_named(loaded, tmp_path, part, key, value):
    _, path = loaded["0.9.0"]
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    raw = json.loads((path / part / name).read_text()) | {key: value}
    read = {
        "transformer": diffusers_config.transformer,
        "vae": diffusers_vae.vae,
        "scheduler": lambda raw, where: diffusers_config.scheduler(raw, where, None),
    }[part]
    with pytest.raises(ValueError, match=f"somewhere.*{key}"):
        read(raw, "somewhere")


def test_a_broken_directory_says_what_is_wrong(tmp_path):
    their_checkpoint(tmp_path)
    config = tmp_path / "vae" / "config.json"
    text = config.read_text()
    config.write_text(json.dumps(json.loads(text) | {"upsample_factor": [2, 1]}))
    with pytest.raises(ValueError, match=r"vae/config.json: decoder_block_out_channels changes"):
        load_checkpoint(tmp_path)
    config.write_text(json.dumps(json.loads(text) | {"layers_per_block": [1]}))
    with pytest.raises(ValueError, match=r"vae/config.json: its lists of blocks do not fit"):
        load_checkpoint(tmp_path)
    config.write_text(json.dumps(json.loads(text) | {"latent_channels": 5}))
    with pytest.raises(ValueError, match=r"encoder.conv_out.conv.weight has shape"):
        load_checkpoint(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"vae/config.json is not readable as JSON"):
        load_checkpoint(tmp_path)
    config.write_text(text)
    shard = max((tmp_path / "transformer").glob("*.safetensors"))
    shard.rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"lacks .*which .*index.json lists"):
        load_checkpoint(tmp_path)
    (tmp_path / "gone").rename(shard)
    with pytest.raises(ValueError, match="one part of a diffusers folder, give"):
        load_checkpoint(tmp_path / "vae")
    for file in (tmp_path / "transformer").glob("*.safetensors*"):
        file.unlink()
    (tmp_path / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="only pickles"):
        load_checkpoint(tmp_path)


@pytest.mark.thorough
def test_writing_fails_whole(loaded, tmp_path, monkeypatch):
    ours, path = loaded["0.9.0"]
    with pytest.raises(ValueError, match="exists and is no empty folder"):
        diffusers.write(path, ours)
    wrong = dataclasses.replace(ours.vae, spatial_padding_mode="reflect")
    with pytest.raises(ValueError, match="cannot express"):
        diffusers.write(tmp_path / "out", dataclasses.replace(ours, vae=wrong))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"cannot write .*: No space left"):
        diffusers.write(tmp_path / "out", ours)
    assert list(tmp_path.iterdir()) == []
