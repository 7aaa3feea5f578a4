"""Training an adapter beside a frozen transformer, and what its run holds."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
import tiny_checkpoint
from quick import QUICK
from tiny_stages import QUICK_MESH, assert_eight_devices_train_as_one, one_device

from ltx_jax import export
from ltx_jax.checkpoints import adapter_writing, adapters
from ltx_jax.checkpoints.adapter_metadata import Origin
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import (
    AdapterConfig,
    DataConfig,
    FlowConfig,
    OptimConfig,
    RunConfig,
    TrainTransformer,
)
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.models import adapter as adapter_model
from ltx_jax.runtime import sharding
from ltx_jax.training import warm_start
from ltx_jax.training.loop import train
from ltx_jax.training.step import Trainer
from ltx_jax.training.transformer.stage import TransformerStage


@pytest.fixture(scope="module", autouse=True)
def quick():
    """These tests compile for longer than they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformerStage, "compiler_options", lambda self: QUICK)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint.write_exported(tmp_path_factory.mktemp("base"))


def config(folder, output, **adapter):
    return TrainTransformer(
        model=load_checkpoint(folder).transformer,
        vae=str(folder),
        captions="frozen",
        text_encoder_path=str(folder),
        max_caption_tokens=16,
        adapter=AdapterConfig(**{"rank": 4, "targets": ("all",), "base": "float32", **adapter}),
        flow=FlowConfig(first_frame_probability=0.0),
        data=DataConfig(num_frames=9, height=32, width=64, batch_size=8),
        optim=OptimConfig(peak_lr=1e-2, warmup_steps=0, ema_decay=0.9),
        run=RunConfig(
            output=str(output), init_from=str(folder), steps=4, save_every=2, tensorboard=False
        ),
    )


def steps(cfg, count):
    return dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, steps=count))


def quiet(line):
    pass


def check_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "lora"
    return output, train(config(folder, output, dropout=0.1), quiet)


def of_state(state):
    return state.params, state.ema, state.opt_state, state.updates


@pytest.mark.thorough
def test_only_the_adapter_is_trained_and_stored(folder, trained):
    output, state = trained
    assert set(state.params) == set(state.ema) == {"adapter"}
    count = sum(x.size for x in jax.tree.leaves(state.params))
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * count
    for _, layer in adapter_model.modules(state.params["adapter"]):
        assert np.abs(layer["up"]).max() > 0
    assert {path.name for path in output.iterdir()} == {"config.json", "base.json", "lock", "steps"}

    base, whole = load_checkpoint(folder), load_checkpoint(output)
    check_equal(whole.vae_params, base.vae_params)
    assert whole.text_encoder is not None
    adapter = adapters.read(output, base.transformer)
    merged = adapters.merge(base.transformer_params, base.transformer, [(adapter, 1.0)])
    check_equal(whole.transformer_params, merged)
    old, new = (x["blocks"]["ff"]["linear_1"] for x in (base.transformer_params, merged))
    check_equal(new["bias"], old["bias"])
    assert np.abs(new["kernel"] - old["kernel"]).max() > 1e-3
    pipe = LTXPipeline(base, dtype="float32")
    adapters.check(output)
    pipe.load_lora(output)
    check_equal(pipe.params, merged)
    assert adapter.metadata["ltx_jax.steps"] == whole.metadata["step"] == "4"
    earlier = load_checkpoint(output / "steps" / "2")
    assert earlier.metadata == {"run": "lora", "step": "2", "weights": "ema"}
    assert earlier.source_hash != whole.source_hash


@pytest.mark.thorough
@pytest.mark.parametrize("naming", ["comfy", "diffusers"])
def test_a_trained_adapter_is_exported_as_a_file(folder, trained, naming, tmp_path, capsys):
    out, cfg = tmp_path / "own.safetensors", load_checkpoint(folder).transformer
    options = ("--format", naming, "--trigger", "sks")
    assert export.main([str(trained[0]), str(out), *options]) == 0
    own, file = adapters.read(trained[0], cfg), adapters.read(out, cfg)
    assert file.changes.keys() == own.changes.keys()
    for name, change in own.changes.items():
        for part in ("down", "up", "scale"):
            np.testing.assert_array_equal(getattr(file.changes[name], part), getattr(change, part))
    assert file.metadata["modelspec.trigger_phrase"] == "sks"
    assert file.metadata["ltx_jax.base_hash"] == load_checkpoint(folder).base_hash("transformer")
    assert export.main([str(folder), str(tmp_path / "other.safetensors")]) == 2
    assert "no run that trains an adapter" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(folder, trained, tmp_path):
    cfg = config(folder, tmp_path / "lora", dropout=0.1)
    train(steps(cfg, 2), quiet)
    lines = []
    state = train(cfg, lines.append)
    assert any("continues after step 2" in line for line in lines)
    check_equal(of_state(state), of_state(trained[1]))


@pytest.mark.thorough
def test_another_base_is_named(folder, trained, tmp_path):
    output = tmp_path / "lora"
    shutil.copytree(trained[0], output)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    cfg = config(moved, output, dropout=0.1)
    cfg = dataclasses.replace(cfg, vae=str(folder), text_encoder_path=str(folder))
    assert train(cfg, quiet).step == 4  # the same files elsewhere are the same base

    file = moved / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"lora belongs to .*moved .* has been changed"):
        train(cfg, quiet)
    with pytest.raises(ValueError, match="has been changed"):
        load_checkpoint(output)


@pytest.mark.thorough
def test_eight_devices_train_as_one(folder):
    cfg = config(folder, "/none")
    cfg = dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, num_attention_heads=4, attention_head_dim=8),
        run=dataclasses.replace(cfg.run, init_settings=("num_attention", "attention_head")),
    )
    assert_eight_devices_train_as_one(lambda mesh: TransformerStage.open(cfg, mesh), QUICK_MESH)


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["int8", "float8", "bfloat16"])
def test_the_base_may_be_small_and_stays_as_it_is(folder, form):
    cfg = config(folder, "/none", base=form, targets=("attention",))
    mesh = one_device()
    stage = TransformerStage.open(cfg, mesh)
    trainer = Trainer(stage, compiler_options=QUICK)
    before = jax.device_get(trainer.frozen)
    kernel = before["transformer"]["blocks"]["ff"]["linear_1"]["kernel"]
    assert kernel.dtype.itemsize == (2 if form == "bfloat16" else 1)
    described = TransformerStage.describe(cfg, mesh).frozen["transformer"]
    for (path, x), y in zip(
        jax.tree.leaves_with_path(described),
        jax.tree.leaves(stage.frozen["transformer"]),
        strict=True,
    ):
        assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding), path
    state, norms = trainer.plan.make(), []
    with sharding.use_mesh(mesh):
        for batch in stage.batches(0, 3):
            state, metrics = trainer.step(state, batch)
            norms.append(float(metrics["grad_norm"]))
    assert metrics["rejected"] == 0
    assert min(norms) > 0
    check_equal(jax.device_get(trainer.frozen), before)


@pytest.mark.thorough
def test_validation_samples_the_base_with_the_adapter(folder, tmp_path):
    cfg = config(folder, tmp_path / "lora", targets=("attention",))
    run = dataclasses.replace(cfg.run, steps=1, validate_every=1, validation_clips=1)
    stage = TransformerStage.open(dataclasses.replace(cfg, run=run), one_device())
    state = Trainer(stage, compiler_options=QUICK).plan.make()
    fresh = stage.validate(state)
    assert len(fresh.videos) == 1

    def moved(path, x):
        return x + 0.2 if path[-1].key == "up" else x

    state = dataclasses.replace(state, ema=jax.tree.map_with_path(moved, state.ema))
    other = stage.validate(state)
    assert abs(other.scalars["val_loss"] - fresh.scalars["val_loss"]) > 1e-3
    [one], [two] = fresh.videos.values(), other.videos.values()
    assert np.abs(one.frames.astype(int) - two.frames).max() > 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {"init_from": None}}, "name its checkpoint with --run.init_from"),
        ({"captions": "train"}, "set captions to 'frozen'"),
        ({"run": {"init_redraw": ("ff",)}}, "init_redraw has no effect on the network of an ad"),
        ({"run": {"init_missing": ("adapter/",)}}, "has no effect without adapter.init_from"),
        ({"adapter": {"rank": 0}}, "adapter.targets has no effect without an adapter"),
    ],
)
def test_settings_that_contradict_an_adapter_are_refused(folder, changes, message):
    cfg = config(folder, "/none")
    for name, change in changes.items():
        if isinstance(change, dict):
            changes = {**changes, name: dataclasses.replace(getattr(cfg, name), **change)}
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(cfg, **changes)


@pytest.mark.thorough
def test_a_base_of_another_architecture_is_refused(folder):
    cfg = config(folder, "/none")
    wide = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, num_layers=3))
    with pytest.raises(ValueError, match="has another architecture: transformer/blocks"):
        TransformerStage.open(wide, one_device())


def start_of(cfg, **run):
    """The adapter that a run begins with."""
    cfg = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, **run))
    stage = TransformerStage.open(cfg, one_device())
    return warm_start.first_state(stage, Trainer(stage).plan).params["adapter"]


@pytest.mark.thorough
@pytest.mark.parametrize("naming", ["run", "comfy", "diffusers"])
def test_training_begins_with_an_adapter(folder, trained, naming, tmp_path):
    path, state = trained[0], trained[1]
    if naming != "run":
        path = tmp_path / "own.safetensors"
        assert export.main([str(trained[0]), str(path), "--format", naming]) == 0
    check_equal(start_of(config(folder, "/none", init_from=str(path))), state.ema["adapter"])
    # The same change with another factor: alpha / rank is 1 in the file and 1/2 here.
    halved = start_of(config(folder, "/none", init_from=str(path), alpha=2.0))
    kernel = state.ema["adapter"]["blocks"]["attn1"]["to_q"]
    check_equal(halved["blocks"]["attn1"]["to_q"]["down"], kernel["down"])
    check_equal(halved["blocks"]["attn1"]["to_q"]["up"], 2 * kernel["up"])


@pytest.mark.thorough
def test_an_adapter_to_begin_with_must_fit(folder, trained, tmp_path):
    path = str(trained[0])
    with pytest.raises(ValueError, match=r"with rank 4, and adapter\.rank is 2: make them"):
        start_of(config(folder, "/none", init_from=path, rank=2))
    some = tmp_path / "some.safetensors"
    read = adapters.read(path, load_checkpoint(folder).transformer)
    attention = {name: x for name, x in read.changes.items() if ".attn" in name}
    adapter_writing.write(some, attention, metadata=read.metadata)
    cfg = config(folder, "/none", init_from=str(some))
    with pytest.raises(ValueError, match=r"adapter/.* is absent in the checkpoint"):
        start_of(cfg)
    grown = start_of(cfg, init_missing=("adapter/(?!blocks/attn)",))
    check_equal(grown["blocks"]["attn1"], trained[1].ema["adapter"]["blocks"]["attn1"])
    assert not np.asarray(grown["blocks"]["ff"]["linear_1"]["up"]).any()
    narrow = config(folder, "/none", init_from=path, targets=("attention",))
    with pytest.raises(ValueError, match=r"adapter/.* absent in this run"):
        start_of(narrow)
    part = {name: x for name, x in attention.items() if "transformer_blocks.0" in name}
    adapter_writing.write(tmp_path / "part.safetensors", part)
    one = config(folder, "/none", init_from=str(tmp_path / "part.safetensors"))
    with pytest.raises(ValueError, match=r"in some blocks and lacks transformer_blocks\.1"):
        start_of(one)
    origin = Origin(base="2b-0.9.1", base_hash="f" * 64).to_metadata()
    adapter_writing.write(tmp_path / "other.safetensors", dict(read.changes), metadata=origin)
    other = config(folder, "/none", init_from=str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match=r"was made for 2b-0\.9\.1, another version"):
        start_of(other)


@pytest.mark.thorough
def test_a_begun_run_does_not_read_its_first_adapter_again(folder, trained, tmp_path):
    first = tmp_path / "first"
    shutil.copytree(trained[0], first)
    cfg = config(folder, tmp_path / "lora", init_from=str(first))
    train(steps(cfg, 1), quiet)
    shutil.rmtree(first)
    assert train(steps(cfg, 2), quiet).step == 2
