"""Runs that start from a checkpoint: an official file, a diffusers folder, another run."""

import dataclasses
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
from ltx_jax.training import initial, transformer, vae

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def load(name, *overrides):
    return config.load(str(CONFIGS / f"shapes_tiny_{name}.py"), overrides)


def mesh_of(**shape):
    size = int(np.prod(list(shape.values())))
    return sharding.make_mesh(MeshConfig(**shape), jax.devices()[:size])


def check_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


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
    stage = vae.build(cfg, mesh)
    begun = stage.plan.make()
    check_equal(begun.params, source.vae_params)
    check_equal(begun.ema, source.vae_params)
    for x, like in zip(*map(jax.tree.leaves, (begun, stage.plan.shapes)), strict=True):
        assert x.sharding.is_equivalent_to(like.sharding, x.ndim)
    found = stage.statistics(begun)
    np.testing.assert_allclose(found["mean"], 0.5)
    np.testing.assert_allclose(found["std"], 2.0)
    # The arrays may be given away and written over, whatever memory they came in.
    jax.jit(lambda x: jax.tree.map(lambda x: x + 1, x), donate_argnums=0)(begun)
    check_equal(load_checkpoint(written / "model.safetensors").vae_params, source.vae_params)


@pytest.mark.parametrize("kind", ["model.safetensors", "diffusers"])
def test_a_transformer_starts_from_a_file_and_draws_its_text_encoder(kind, source, written):
    first = ("transformer", "--vae", str(written / "model.safetensors"))
    begun = [
        transformer.build(load(*first, *more), mesh_of(data=1, fsdp=2)).plan.make()
        for more in ([], ["--run.init_from", str(written / kind)])
    ]
    check_equal(begun[1].params["transformer"], source.transformer_params)
    check_equal(begun[1].params["text_encoder"], begun[0].params["text_encoder"])


def test_a_run_starts_from_the_average_of_another_run(source, tmp_path):
    cfg = load("vae", "--run.output", str(tmp_path / "a"))
    run = runs.Run(cfg)
    run.begin()
    statistics = {"mean": source.statistics.mean, "std": source.statistics.std}
    run.save(3, {"ema": jax.tree.map(jnp.asarray, source.vae_params), "statistics": statistics})
    run.close()
    stage = vae.build(load("vae", "--run.init_from", str(tmp_path / "a")), mesh_of(data=2, fsdp=4))
    begun = stage.plan.make()
    check_equal(begun.params, source.vae_params)
    assert int(begun.step) == 0
    np.testing.assert_allclose(stage.statistics(begun)["std"], 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"decoder_base_channels": 16},
            r"decoder/conv_in/bias is \(\d+,\) there, \(\d+,\) here; .* and \d+ more tensors",
        ),
        ({"timestep_conditioning": False}, r"is \(\d+,\) there, absent here"),
        ({"spatial_padding_mode": "reflect"}, "spatial_padding_mode = 'zeros', and .* 'reflect'"),
    ],
)
def test_another_architecture_is_refused_with_what_differs(change, message, source, written):
    cfg = load("vae", "--run.init_from", str(written / "model.safetensors"))
    cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, **change))
    with pytest.raises(ValueError, match=message):
        vae.build(cfg, mesh_of(data=1)).plan.make()


def test_a_checkpoint_without_the_network_is_refused(source, tmp_path):
    alone = tmp_path / "vae.safetensors"
    official.write(alone, dataclasses.replace(source, transformer=None, transformer_params=None))
    cfg = load("transformer", "--vae", str(alone), "--run.init_from", str(alone))
    with pytest.raises(ValueError, match="without a transformer"):
        transformer.build(cfg, mesh_of(data=1)).plan.make()


def test_weights_take_the_dtype_of_the_run(source, tmp_path):
    narrow = dataclasses.replace(
        source, vae_params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), source.vae_params)
    )
    official.write(tmp_path / "a.safetensors", narrow)
    begun = vae.build(
        load("vae", "--run.init_from", str(tmp_path / "a.safetensors")), mesh_of(data=1)
    )
    params = begun.plan.make().params
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    check_equal(params, jax.tree.map(lambda x: x.astype(np.float32), narrow.vae_params))


def test_block_lists_are_compared_with_their_defaults_written_out():
    cfg = load("vae").model
    spelt = tuple(
        dataclasses.replace(b, multiplier=b.channel_multiplier) for b in cfg.encoder_blocks
    )
    initial._check_settings("x", dataclasses.replace(cfg, encoder_blocks=spelt), cfg)
