"""Runs that start from a checkpoint: an official file, a diffusers folder, another run."""

import dataclasses
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_checkpoint import random_parameters

from ltx_jax import config
from ltx_jax.checkpoints import diffusers, official, runs
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import MeshConfig
from ltx_jax.models.transformer import Context, Transformer
from ltx_jax.models.vae import LatentStatistics, VideoVAE
from ltx_jax.runtime import sharding
from ltx_jax.training import warm_start
from ltx_jax.training.step import Trainer
from ltx_jax.training.transformer.stage import TransformerStage
from ltx_jax.training.vae.stage import VAEStage

pytestmark = pytest.mark.thorough

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def load(name, *overrides):
    return config.load(str(CONFIGS / f"shapes_tiny_{name}.py"), overrides)


def mesh_of(**shape):
    size = int(np.prod(list(shape.values())))
    return sharding.make_mesh(MeshConfig(**shape), jax.devices()[:size])


def check_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def begin(stage_class, cfg, mesh):
    """The stage of a configuration, and the state that its run begins with."""
    trainer = Trainer(stage_class.open(cfg, mesh))
    return trainer, warm_start.first_state(trainer.stage, trainer.plan)


@pytest.fixture(scope="module")
def source():
    """Tiny networks as one checkpoint, with statistics of its own."""
    cfg, model = load("transformer"), load("vae").model
    tokens, pairs = jnp.zeros((1, 4, 4)), jnp.zeros((1, 4, cfg.model.width // 2))
    caption = jnp.zeros((1, 3, cfg.model.caption_channels))
    arguments = (tokens, jnp.zeros((1, 1)), Context(caption, None, (pairs, pairs)))
    return Checkpoint(
        transformer=cfg.model,
        transformer_params=random_parameters(Transformer(cfg.model), *arguments),
        vae=model,
        vae_params=random_parameters(VideoVAE(model), jnp.zeros((1, 5, 16, 16, 3))),
        statistics=LatentStatistics(np.full(4, 0.5, "f"), np.full(4, 2.0, "f")),
    )


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    """The same in both layouts of files; diffusers has no class for this VAE."""
    folder = tmp_path_factory.mktemp("written")
    official.write(folder / "model.safetensors", source)
    diffusers.write(folder / "diffusers", dataclasses.replace(source, vae=None, vae_params=None))
    return folder


def test_a_vae_starts_from_a_file_with_its_statistics(source, written):
    mesh = mesh_of(data=2, fsdp=2)
    cfg = load("vae", "--run.init_from", str(written / "model.safetensors"))
    trainer, begun = begin(VAEStage, cfg, mesh)
    check_equal(begun.params, source.vae_params)
    check_equal(begun.ema, source.vae_params)
    for x, like in zip(*map(jax.tree.leaves, (begun, trainer.plan.shapes)), strict=True):
        assert x.sharding.is_equivalent_to(like.sharding, x.ndim)
    found = trainer.stage.latent_statistics(begun)
    np.testing.assert_allclose(found["mean"], 0.5)
    np.testing.assert_allclose(found["std"], 2.0)
    # The arrays may be given away and written over, whatever memory they came in.
    jax.jit(lambda x: jax.tree.map(lambda x: x + 1, x), donate_argnums=0)(begun)
    check_equal(load_checkpoint(written / "model.safetensors").vae_params, source.vae_params)


@pytest.mark.parametrize("kind", ["model.safetensors", "diffusers"])
def test_a_transformer_starts_from_a_file_and_draws_its_text_encoder(kind, source, written):
    first = ("transformer", "--vae", str(written / "model.safetensors"))
    runs = [
        begin(TransformerStage, load(*first, *more), mesh_of(data=1, fsdp=2))
        for more in ([], ["--run.init_from", str(written / kind)])
    ]
    begun = [state for _, state in runs]
    # Nothing else of the VAE's checkpoint is kept.
    vae = runs[0][0].stage.vae
    assert (vae.transformer, vae.transformer_params) == (None, None)
    check_equal(vae.vae_params, source.vae_params)
    check_equal(begun[1].params["transformer"], source.transformer_params)
    check_equal(begun[1].params["text_encoder"], begun[0].params["text_encoder"])


def test_a_run_starts_from_the_average_of_another_run(source, tmp_path):
    cfg = load("vae", "--run.output", str(tmp_path / "a"))
    run = runs.Run(cfg)
    run.begin()
    statistics = {"mean": source.statistics.mean, "std": source.statistics.std}
    run.save(3, {"ema": jax.tree.map(jnp.asarray, source.vae_params), "statistics": statistics})
    run.close()
    second = load("vae", "--run.init_from", str(tmp_path / "a"))
    trainer, begun = begin(VAEStage, second, mesh_of(data=2, fsdp=4))
    check_equal(begun.params, source.vae_params)
    assert int(begun.step) == 0
    np.testing.assert_allclose(trainer.stage.latent_statistics(begun)["std"], 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"decoder_base_channels": 16},
            r"conv_in/bias is \(\d+,\) in the checkpoint, \(\d+,\) in .* \d+ more tensors",
        ),
        ({"timestep_conditioning": False}, r"is \(\d+,\) in the checkpoint, absent in this run"),
        ({"spatial_padding_mode": "reflect"}, "spatial_padding_mode = 'zeros', and .* 'reflect'"),
    ],
)
def test_another_architecture_is_refused_with_what_differs(change, message, source, written):
    cfg = load("vae", "--run.init_from", str(written / "model.safetensors"))
    cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, **change))
    with pytest.raises(ValueError, match=message):
        begin(VAEStage, cfg, mesh_of(data=1))


def test_a_checkpoint_without_the_network_is_refused(source, tmp_path):
    alone = tmp_path / "vae.safetensors"
    official.write(alone, dataclasses.replace(source, transformer=None, transformer_params=None))
    cfg = load("transformer", "--vae", str(alone), "--run.init_from", str(alone))
    with pytest.raises(ValueError, match="without a transformer"):
        begin(TransformerStage, cfg, mesh_of(data=1))


def test_weights_take_the_dtype_of_the_run(source, tmp_path):
    narrow = dataclasses.replace(
        source, vae_params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), source.vae_params)
    )
    official.write(tmp_path / "a.safetensors", narrow)
    cfg = load("vae", "--run.init_from", str(tmp_path / "a.safetensors"))
    params = begin(VAEStage, cfg, mesh_of(data=1))[1].params
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    check_equal(params, jax.tree.map(lambda x: x.astype(np.float32), narrow.vae_params))


def test_block_lists_are_compared_with_their_defaults_written_out(source, written):
    cfg = load("vae", "--run.init_from", str(written / "model.safetensors"))
    spelt = tuple(
        dataclasses.replace(b, multiplier=b.channel_multiplier) for b in cfg.model.encoder_blocks
    )
    assert spelt != cfg.model.encoder_blocks
    cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, encoder_blocks=spelt))
    check_equal(begin(VAEStage, cfg, mesh_of(data=1))[1].params, source.vae_params)


SCALE = "decoder/up_blocks_0/res_blocks_0/per_channel_scale1"


def noisy(cfg, inject):
    """The VAE's configuration with or without learned noise in its decoder."""
    blocks = tuple(
        dataclasses.replace(b, inject_noise=inject and b.name == "res_x")
        for b in cfg.model.decoder_blocks
    )
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, decoder_blocks=blocks))


def quiet_checkpoint(folder, source):
    """A file of the same VAE without learned noise."""
    params = jax.tree.map(lambda x: x, source.vae_params)
    names = [n for n, _ in warm_start.flat_tensors(params) if "per_channel_scale" in n]
    assert len(names) == 2
    for name in names:
        *path, last = name.split("/")
        node = params
        for part in path:
            node = node[part]
        del node[last]
    quiet = dataclasses.replace(
        source, vae=noisy(load("vae"), False).model, vae_params=params, names={}, dtypes={}
    )
    official.write(folder / "quiet.safetensors", quiet)
    return str(folder / "quiet.safetensors"), names


def test_tensors_that_a_checkpoint_may_lack_are_drawn_and_logged(source, tmp_path, caplog):
    path, names = quiet_checkpoint(tmp_path, source)
    allowed = ("--run.init_missing", "per_channel_scale", "--run.init_settings", "decoder_blocks")
    cfg = load("vae", "--run.init_from", path, *allowed)
    with caplog.at_level(logging.INFO):
        params = dict(warm_start.flat_tensors(begin(VAEStage, cfg, mesh_of(data=1))[1].params))
    stored = dict(warm_start.flat_tensors(source.vae_params))
    for name, x in params.items():
        if name in names:
            assert (np.asarray(x) == 0).all()  # as they are drawn
            shapes = f"absent in the checkpoint, {x.shape} in this run"
            assert f"{name}: initialised at random ({shapes})" in caplog.text
        else:
            np.testing.assert_array_equal(x, stored[name])
            assert name not in caplog.text
    assert "decoder_blocks = " in caplog.text


def test_tensors_of_a_checkpoint_may_be_left_out(source, written, caplog):
    path = str(written / "model.safetensors")
    allowed = ("--run.init_extra", "per_channel_scale", "--run.init_settings", "decoder_blocks")
    cfg = noisy(load("vae", "--run.init_from", path, *allowed), False)
    with caplog.at_level(logging.INFO):
        params = dict(warm_start.flat_tensors(begin(VAEStage, cfg, mesh_of(data=1))[1].params))
    stored = dict(warm_start.flat_tensors(source.vae_params))
    assert len(stored) == len(params) + 2
    for name in stored:
        if name in params:
            np.testing.assert_array_equal(params[name], stored[name])
        else:
            assert f"{name}: left out" in caplog.text


@pytest.mark.parametrize("channels", [8, 16])
def test_tensors_are_drawn_again_whatever_their_shape(channels, source, written, caplog):
    path = str(written / "model.safetensors")
    wide = "decoder" if channels == 16 else "decoder/conv_out/kernel"
    cfg = load("vae", "--run.init_from", path, "--run.init_redraw", wide)
    if channels == 16:
        settings = ("decoder_base_channels",)
        run = dataclasses.replace(cfg.run, init_settings=settings)
        model = dataclasses.replace(cfg.model, decoder_base_channels=channels)
        cfg = dataclasses.replace(cfg, run=run, model=model)
    with caplog.at_level(logging.INFO):
        trainer, begun = begin(VAEStage, cfg, mesh_of(data=1))
    fresh = dict(warm_start.flat_tensors(trainer.plan.make().params))
    stored = dict(warm_start.flat_tensors(source.vae_params))
    drawn = 0
    for name, x in warm_start.flat_tensors(begun.params):
        again = name.startswith(wide)
        drawn += again
        np.testing.assert_array_equal(x, (fresh if again else stored)[name])
        assert (f"{name}: initialised at random" in caplog.text) == again
    assert drawn == (1 if channels == 8 else len([n for n in fresh if n.startswith("decoder")]))


def test_a_vae_of_other_latent_channels_begins_with_its_own_statistics(written):
    layers = (r"encoder/conv_out/.*", r"decoder/conv_in/.*")
    cfg = load("vae", "--run.init_from", str(written / "model.safetensors"))
    channels = cfg.model.latent_channels * 2
    run = dataclasses.replace(cfg.run, init_redraw=layers, init_settings=("latent_channels",))
    model = dataclasses.replace(cfg.model, latent_channels=channels)
    cfg = dataclasses.replace(cfg, run=run, model=model)
    _, begun = begin(VAEStage, cfg, mesh_of(data=1))
    assert {x.shape for x in jax.tree.leaves(begun.statistics)} == {(channels,)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), f"{SCALE} is absent in the checkpoint, .*--run.init_missing"),
        (("--run.init_missing", "scale1"), "scale2 is absent in the checkpoint"),
        (("--run.init_missing", "per_channel_scale"), "init_settings decoder_blocks allows it"),
        (
            ("--run.init_missing", "conv_in"),
            "'conv_in' matches no tensor that the checkpoint lacks",
        ),
        (("--run.init_extra", "scale"), "init_extra: 'scale' matches no tensor that this run"),
        (("--run.init_redraw", "nothing"), "init_redraw: 'nothing' matches no tensor"),
        (("--run.init_redraw", "("), r"init_redraw: '\(' is not a regular"),
        (
            ("--run.init_missing", "per_channel_scale", "--run.init_settings", "heads"),
            "init_settings: 'heads' matches no setting",
        ),
    ],
)
def test_what_no_option_names_is_refused(options, message, source, tmp_path):
    path, _ = quiet_checkpoint(tmp_path, source)
    with pytest.raises(ValueError, match=message):
        begin(VAEStage, load("vae", "--run.init_from", path, *options), mesh_of(data=1))


def test_what_may_differ_from_no_checkpoint_is_refused():
    with pytest.raises(ValueError, match=r"--run.init_redraw has no effect without --run.init_fro"):
        begin(VAEStage, load("vae", "--run.init_redraw", "decoder"), mesh_of(data=1))
