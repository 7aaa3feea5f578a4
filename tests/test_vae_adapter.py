"""Adapters of the VAE's decoder: their layers, their training, their files, their use."""

import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoint
from quick import QUICK
from safetensors.numpy import load_file, save_file
from tiny_stages import QUICK_MESH, assert_eight_devices_train_as_one, one_device

from ltx_jax import export
from ltx_jax.checkpoints import adapter_trees, adapters, keys
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import (
    AdapterConfig,
    BlockConfig,
    DataConfig,
    DiscriminatorConfig,
    OptimConfig,
    RunConfig,
    TrainVAE,
    VAEConfig,
    VAELossConfig,
)
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.models import adapter as adapter_model
from ltx_jax.models import convolution
from ltx_jax.models.vae import VideoVAE
from ltx_jax.runtime import sharding
from ltx_jax.training.loop import train
from ltx_jax.training.step import Trainer
from ltx_jax.training.vae.stage import VAEStage

# A decoder with every kind of layer: convolutions, those of one position, attention, time.
CFG = VAEConfig(
    encoder_blocks=(BlockConfig("compress_all"),),
    decoder_blocks=(
        BlockConfig("res_x_y", multiplier=2),
        BlockConfig("compress_all"),
        BlockConfig("attn_res_x", attention_head_dim=8, inject_noise=True),
    ),
    latent_channels=4,
    encoder_base_channels=8,
    decoder_base_channels=8,
    timestep_conditioning=True,
    spatial_padding_mode="replicate",
)
ALL = AdapterConfig(rank=4, targets=("all",))


@pytest.fixture(scope="module", autouse=True)
def quick():
    """These tests compile for longer than they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VAEStage, "compiler_options", lambda self: QUICK)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint.write_exported(tmp_path_factory.mktemp("base"))


def config(folder, output, **adapter):
    return TrainVAE(
        model=load_checkpoint(folder).vae,
        loss=VAELossConfig(mse_weight=1.0, gan_weight=0.1, disc_start=0.0, kl_weight=1e-3),
        discriminator=DiscriminatorConfig(base_channels=4, levels=2),
        adapter=AdapterConfig(**{"rank": 4, "targets": ("all",), "base": "float32", **adapter}),
        data=DataConfig(num_frames=9, height=32, width=32, batch_size=8),
        optim=OptimConfig(peak_lr=1e-2, warmup_steps=0, ema_decay=0.9),
        run=RunConfig(
            output=str(output), init_from=str(folder), steps=4, save_every=2, tensorboard=False
        ),
    )


def quiet(line):
    pass


def check_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def fresh(cfg, adapter_cfg, dtype="float32"):
    boxed = keys.adaptable_boxed(cfg)
    adapter = adapter_model.init(boxed, adapter_cfg, jax.random.key(1), dtype)
    return sharding.unbox(adapter)


def moved(adapter):
    """An adapter whose `up` is not zero."""
    draw = np.random.default_rng(0)

    def move(path, x):
        step = draw.standard_normal(x.shape) / 8 if path[-1].key == "up" else 0
        return np.asarray(x + step, np.float32)

    return jax.tree.map_with_path(move, adapter)


@pytest.fixture(scope="module")
def decoded():
    """Decodes with parameters, always the same latents."""
    model = VideoVAE(CFG)
    z = jax.random.normal(jax.random.key(0), (2, 2, 4, 6, CFG.latent_channels))
    times = jnp.asarray([0.0, 0.1])

    def decode(params):
        def noise(index, shape):
            return jax.random.normal(jax.random.fold_in(jax.random.key(3), index), shape)

        return model.apply({"params": params}, z, times, noise, method="decode")

    params = tiny_checkpoint.random_parameters(model, jnp.zeros((1, 3, 16, 16, 3)))
    # As training and sampling compile it: without XLA's optimisations a sum that is compiled into
    # another loop may be rounded differently.
    return jax.jit(decode, compiler_options=convolution.compiler_options()), params


@pytest.mark.thorough
def test_a_fresh_adapter_changes_no_bit(decoded):
    decode, params = decoded
    adapter = fresh(CFG, ALL)
    layers = {"/".join(path) for path, _ in adapter_model.modules(adapter)}
    assert layers == {
        "/".join(path) for path in adapter_model.kernels(params) if path[0] == "decoder"
    }
    assert any("conv_shortcut" in name for name in layers)
    assert any("attention_blocks_0/to_q" in name for name in layers)
    assert any("time_embedder" in name for name in layers)
    down = adapter["decoder"]["conv_in"]["down"]
    assert down.shape == (3, 3, 3, 4, 4)
    np.testing.assert_array_equal(decode(adapter_model.attach(params, adapter)), decode(params))


@pytest.mark.thorough
def test_merged_equals_apart(decoded):
    decode, params = decoded
    tree = moved(fresh(CFG, ALL))
    apart = decode(adapter_model.attach(params, tree, scale=0.75))
    adapter = adapter_trees.named(tree, CFG, 0.75, pathlib.Path("here"), {})
    merged = decode(adapters.merge(params, CFG, [(adapter, 1.0)]))
    largest = float(np.abs(decode(params)).max())
    assert np.abs(np.asarray(merged) - decode(params)).max() > 0.05 * largest
    np.testing.assert_allclose(merged, apart, atol=1e-5 * largest)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "style"
    return output, train(config(folder, output, dropout=0.1), quiet)


@pytest.mark.thorough
def test_only_the_adapter_is_trained_and_stored(folder, trained):
    output, state = trained
    assert set(state.params) == {"adapter", "discriminator"}
    assert set(state.ema) == {"adapter"}
    for _, layer in adapter_model.modules(state.params["adapter"]):
        assert np.abs(layer["up"]).max() > 0
    assert {path.name for path in output.iterdir()} == {"config.json", "base.json", "lock", "steps"}
    assert not (output / "steps" / "4" / "statistics").exists()

    base, whole = load_checkpoint(folder), load_checkpoint(output)
    for name in ("transformer_params", "statistics", "text_encoder", "settings"):
        check_equal(getattr(whole, name), getattr(base, name))
    check_equal(whole.vae_params["encoder"], base.vae_params["encoder"])
    adapter = adapters.read(output, base.transformer, base.vae)
    assert adapter.network == "vae"
    assert adapter.metadata["modelspec.architecture"] == "ltx-video-vae/lora"
    merged = adapters.merge(base.vae_params, base.vae, [(adapter, 1.0)])
    check_equal(whole.vae_params, merged)
    old, new = (x["decoder"]["conv_in"] for x in (base.vae_params, merged))
    check_equal(new["bias"], old["bias"])
    assert np.abs(new["kernel"] - old["kernel"]).max() > 1e-4
    assert load_checkpoint(output, networks=("transformer",)).vae is None
    alone = load_checkpoint(output, networks=("vae",))
    assert alone.transformer is None
    check_equal(alone.vae_params, merged)


@pytest.mark.thorough
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(folder, trained, tmp_path):
    cfg = config(folder, tmp_path / "style", dropout=0.1)
    train(dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, steps=2)), quiet)
    lines = []
    state = train(cfg, lines.append)
    assert any("continues after step 2" in line for line in lines)
    check_equal(state, trained[1])


@pytest.mark.thorough
def test_statistics_and_encoder_stay_those_of_the_base(folder, tmp_path):
    cfg = config(folder, tmp_path / "style")
    stage = VAEStage.open(cfg, one_device())
    trainer = Trainer(stage, compiler_options=QUICK)
    before, state = jax.device_get(trainer.frozen), trainer.plan.make()
    first = jax.device_get(state.statistics)
    with sharding.use_mesh(one_device()):
        for batch in stage.batches(0, 3):
            state, metrics = trainer.step(state, batch)
    assert metrics["rejected"] == 0
    check_equal(jax.device_get(state.statistics), first)
    check_equal(jax.device_get(trainer.frozen), before)
    described = VAEStage.describe(cfg, one_device()).frozen["vae"]
    for x, y in zip(jax.tree.leaves(described), jax.tree.leaves(stage.frozen["vae"]), strict=True):
        assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding)


@pytest.mark.thorough
def test_validation_decodes_with_the_adapter(folder, tmp_path):
    cfg = config(folder, tmp_path / "style")
    run = dataclasses.replace(cfg.run, validate_every=1, validation_clips=1)
    stage = VAEStage.open(dataclasses.replace(cfg, run=run), one_device())
    state = Trainer(stage, compiler_options=QUICK).plan.make()
    before = stage.validate(state).scalars["val_pixel"]
    state = dataclasses.replace(state, ema={"adapter": moved(state.ema["adapter"])})
    assert abs(stage.validate(state).scalars["val_pixel"] - before) > 1e-4


@pytest.mark.thorough
def test_eight_devices_train_as_one(folder):
    cfg = config(folder, "/none")
    loss = dataclasses.replace(cfg.loss, gan_weight=0.0)
    cfg = dataclasses.replace(cfg, loss=loss)
    assert_eight_devices_train_as_one(lambda mesh: VAEStage.open(cfg, mesh), QUICK_MESH)


@pytest.mark.thorough
def test_a_run_and_its_file_change_a_pipeline_alike(folder, trained, tmp_path, capsys):
    out = tmp_path / "style.safetensors"
    assert export.main([str(trained[0]), str(out), "--trigger", "sks"]) == 0
    stored = load_file(out)
    name = "vae.decoder.conv_in.conv.lora_"
    assert stored[f"{name}A.weight"].shape == (4, 8, 3, 3, 3)
    assert stored[f"{name}B.weight"].shape[1:] == (4, 1, 1, 1)
    pipe = LTXPipeline.from_pretrained(folder, dtype="float32", fast=False)
    latents, before = pipe("a fox", output="latents"), pipe("a fox")
    params = pipe.params
    for path in (trained[0], out):
        pipe.load_lora(path, 2.0)
        assert [strength for _, strength in pipe.loras] == [2.0]
        check_equal(pipe("a fox", output="latents"), latents)
        changed = pipe("a fox")
        assert np.abs(changed.astype(int) - before).max() > 3
        pipe.load_lora(path, 0.0)
        check_equal(pipe("a fox"), before)
        pipe.unload_lora(path)
        assert not pipe.loras
        check_equal(pipe("a fox"), before)
    assert pipe.params is params  # the transformer was not touched
    pipe.load_lora(out, 2.0)
    check_equal(pipe("a fox"), changed)

    merged = tmp_path / "merged"
    assert export.main([str(folder), str(merged), "--merge", f"{out}:2"]) == 0, capsys.readouterr()
    check_equal(load_checkpoint(merged).vae_params, pipe.checkpoint.vae_params)
    check_equal(
        load_checkpoint(merged).transformer_params, load_checkpoint(folder).transformer_params
    )
    assert export.main([str(trained[0]), str(tmp_path / "b.safetensors"), "--format", "diffusers"])
    assert "diffusers has no names for adapters of a VAE" in capsys.readouterr().err


@pytest.mark.thorough
def test_another_base_is_named(folder, trained, tmp_path):
    output, moved_base = tmp_path / "style", tmp_path / "moved"
    shutil.copytree(trained[0], output)
    shutil.copytree(folder, moved_base)
    file = moved_base / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"style belongs to .*moved .* has been changed"):
        train(config(moved_base, output, dropout=0.1), quiet)


def test_what_does_not_fit_is_named(folder, tmp_path):
    base, path = load_checkpoint(folder), tmp_path / "a.safetensors"
    down, up = np.ones((2, 8, 3, 3, 3), "f"), np.ones((8, 2, 1, 1, 1), "f")

    def read(module, a=down, b=up, vae=base.vae):
        pair = {f"vae.{module}.lora_A.weight": a, f"vae.{module}.lora_B.weight": b}
        save_file(pair, path)
        return adapters.read(path, base.transformer, vae)

    assert set(read("decoder.conv_in.conv").changes) == {"decoder.conv_in.conv.weight"}
    with pytest.raises(ValueError, match="that this VAE's decoder lacks; the nearest layer is dec"):
        read("decoder.conv_im.conv")
    with pytest.raises(ValueError, match="a layer that this VAE's decoder lacks"):
        read("encoder.conv_in.conv")
    with pytest.raises(ValueError, match=r"for another VAE: it changes decoder.*\(8, 9, 3, 3, 3"):
        read("decoder.conv_in.conv", np.ones((2, 9, 3, 3, 3), "f"))
    with pytest.raises(ValueError, match="have no common rank"):
        read("decoder.conv_in.conv", b=np.ones((8, 3, 1, 1, 1), "f"))
    with pytest.raises(ValueError, match="is an adapter of a VAE, and there is none to change"):
        read("decoder.conv_in.conv", vae=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {"init_from": None}}, "name its checkpoint with --run.init_from"),
        ({"adapter": {"base": "int8"}}, "adapter.base 'int8' is for transformers"),
        ({"adapter": {"rank": 0}}, "adapter.base has no effect without an adapter"),
    ],
)
def test_settings_that_contradict_an_adapter_are_refused(folder, changes, message):
    cfg = config(folder, "/none")
    replaced = {name: dataclasses.replace(getattr(cfg, name), **x) for name, x in changes.items()}
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(cfg, **replaced)


def test_the_encoder_is_no_target(folder):
    cfg = config(folder, "/none", targets=("encoder",))
    with pytest.raises(ValueError, match="'encoder' matches no layer; layers are decoder/conv_in"):
        Trainer(VAEStage.describe(cfg, one_device()))
