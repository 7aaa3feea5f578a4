import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_checkpoint import random_parameters

from ltx_jax import config
from ltx_jax.checkpoints import lock, run_config, runs
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.load import load_checkpoint, own_settings
from ltx_jax.config import MeshConfig
from ltx_jax.models.transformer import Context, Transformer
from ltx_jax.models.vae import VideoVAE
from ltx_jax.runtime import sharding

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
TINY = str(ROOT / "configs/shapes_tiny_vae.py")


def tiny(path, **run):
    cfg = config.load(TINY)
    return dataclasses.replace(
        cfg, run=dataclasses.replace(cfg.run, output=str(path / "run"), **run)
    )


def begun(path, **settings):
    run = runs.Run(tiny(path, **settings))
    run.begin()
    return run


def steps_of(path):
    return sorted(p.name for p in (path / "run" / "steps").iterdir())


def as_shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_comes_back_from_its_file(path, tmp_path):
    cfg = config.load(str(path))
    run_config.write_config(tmp_path, cfg)
    assert run_config.read_config(tmp_path) == cfg
    assert run_config.is_run(tmp_path)


def test_fields_that_an_old_file_lacks_take_their_defaults(tmp_path):
    cfg = tiny(tmp_path)
    run_config.write_config(tmp_path, cfg)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    del content["config"]["run"]["keep"], content["config"]["loss"]
    file.write_text(json.dumps(content))
    assert run_config.read_config(tmp_path) == dataclasses.replace(cfg, loss=config.VAELossConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["config"]["run"].update(stpes=3),
            r"config\.run has no field 'stpes': did you mean 'steps'",
        ),
        (lambda c: c.update(type="Other"), "config.type must be one of TrainVAE"),
        (lambda c: c["config"].pop("model"), "no configuration of a run"),
        (lambda c: c["config"]["data"].update(height=0), "height must be positive"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(change, message, tmp_path):
    run_config.write_config(tmp_path, tiny(tmp_path))
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        run_config.read_config(tmp_path)


def test_a_run_says_how_it_is_sampled(tmp_path):
    cfg = config.load(str(ROOT / "configs/shapes_tiny_transformer.py"))
    sizes = (config.BucketConfig(9, 32, 48, 1), config.BucketConfig(1, 96, 96, 1))
    data = dataclasses.replace(cfg.data, buckets=sizes, frame_rates=(12.0, 30.0, 24.0))
    flow = dataclasses.replace(cfg.flow, caption_dropout=0.0)
    run_config.write_config(tmp_path, dataclasses.replace(cfg, data=data, flow=flow))
    own = own_settings(tmp_path)
    assert (own.num_frames, own.height, own.width, own.frame_rate) == (9, 32, 48, 24.0)
    assert own.guidance_scale == 1.0  # what is never dropped cannot be guided by
    assert cfg.sampling_settings().guidance_scale > 1
    assert config.load(str(ROOT / "configs/shapes_tiny_vae.py")).sampling_settings() is None


def test_a_folder_that_is_no_run_is_not_taken_for_one(tmp_path):
    assert not run_config.is_run(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "Other"}')
    assert not run_config.is_run(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert not run_config.is_run(tmp_path)


def test_a_run_keeps_the_last_steps_and_restores_the_latest(tmp_path):
    run = begun(tmp_path, keep=2)
    for step in (1, 2, 3):
        run.save(step, {"params": {"a": {"kernel": jnp.full((2, 3), step)}}})
    run.close()
    again = begun(tmp_path, keep=2)
    assert again.latest_step == 3
    shapes = as_shapes({"a": {"kernel": jnp.zeros((2, 3), int)}})
    restored = again.restore({"params": shapes})
    again.close()
    np.testing.assert_array_equal(restored["params"]["a"]["kernel"], np.full((2, 3), 3))
    assert steps_of(tmp_path) == ["2", "3"]


def test_a_run_keeps_the_best_steps_too_also_over_a_restart(tmp_path):
    settings = dict(keep=1, keep_best=2, save_every=1, validate_every=1)
    losses = {1: 0.5, 2: 0.1, 3: float("nan"), 4: 0.7, 5: 0.2, 6: None, 7: 0.6}
    run = begun(tmp_path, **settings)
    for step, loss in losses.items():
        if step == 5:
            run.close()
            run = begun(tmp_path, **settings)
        run.save(step, {"params": {"kernel": jnp.ones(3)}}, loss)
    run.close()
    assert steps_of(tmp_path) == ["2", "5", "7"]


def test_the_best_are_kept_only_where_every_save_has_been_validated():
    with pytest.raises(ValueError, match="save_every = 10 must be a multiple of validate_every"):
        config.RunConfig(keep_best=1, save_every=10, validate_every=4)


def test_arrays_may_be_given_away_while_they_are_being_saved(tmp_path):
    """Orbax writes in the background what the next step may overwrite."""
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    following = jax.jit(lambda x: x + 1, donate_argnums=0, out_shardings=where)
    value = np.random.default_rng(0).standard_normal((512, 512), np.float32)
    x = jax.device_put(value, where)
    run = begun(tmp_path)
    run.save(1, {"params": {"kernel": x}})
    for _ in range(20):
        x = following(x)
    jax.block_until_ready(x)
    run.wait()
    restored = run.restore({"params": as_shapes({"kernel": x})})["params"]["kernel"]
    run.close()
    np.testing.assert_array_equal(restored, value)


def test_a_run_is_restored_onto_another_mesh(tmp_path):
    value = np.arange(64.0, dtype=np.float32).reshape(8, 8)
    P = jax.sharding.PartitionSpec  # noqa: N806

    def place(mesh, *axes):
        return jax.device_put(value, jax.sharding.NamedSharding(mesh, P(*axes)))

    run = begun(tmp_path)
    first = sharding.make_mesh(MeshConfig(data=1, fsdp=8))
    run.save(1, {"params": {"kernel": place(first, "fsdp")}})
    run.wait()
    second = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    wanted = place(second, "tensor", "fsdp")
    restored = run.restore({"params": as_shapes({"kernel": wanted})})["params"]["kernel"]
    run.close()
    np.testing.assert_array_equal(restored, value)
    assert restored.sharding.is_equivalent_to(wanted.sharding, 2)


def test_a_save_that_was_cut_off_leaves_the_one_before(tmp_path):
    run = begun(tmp_path)
    run.save(1, {"params": {"kernel": jnp.ones(3)}})
    run.close()
    partial = tmp_path / "run" / "steps" / "2.orbax-checkpoint-tmp"
    (partial / "params").mkdir(parents=True)
    again = begun(tmp_path)
    assert again.latest_step == 1
    again.save(2, {"params": {"kernel": jnp.ones(3)}})
    again.close()
    assert steps_of(tmp_path) == ["1", "2"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], capture_output=True
    )
    if made.returncode:
        pytest.skip("needs the right to mount a file system")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_full_disk_leaves_the_step_before_and_says_so(small_disk):
    noise = np.random.default_rng(0).integers(0, 2**31, (2, 500_000), np.int32)  # 2 MB each
    run = begun(small_disk, keep=1)
    run.save(1, {"params": {"kernel": jnp.asarray(noise[0])}})
    run.wait()
    run.save(2, {"params": {"kernel": jnp.asarray(noise[1])}})
    with pytest.raises(ValueError, match=r"step 2 could not .*, step 1 is whole: the disk is full"):
        run.wait()
    assert steps_of(small_disk) == ["1"]  # nothing takes room that is of no use
    run.close()
    again = begun(small_disk, keep=1)
    found = again.restore({"params": as_shapes({"kernel": jnp.asarray(noise[0])})})
    again.close()
    np.testing.assert_array_equal(found["params"]["kernel"], noise[0])


def test_a_save_that_fails_is_noticed_without_waiting(tmp_path, monkeypatch):
    run = begun(tmp_path)

    def fail():
        raise OSError(28, "No space left on device")

    run.save(1, {"params": {"kernel": jnp.ones(3)}})
    run.wait()
    monkeypatch.setattr(run._manager, "wait_until_finished", fail)
    run.check()  # nothing is being saved
    run._saving = 2
    with pytest.raises(ValueError, match=r"step 2 could not be saved .* step 1 is whole"):
        run.check()
    monkeypatch.undo()
    run.close()


def test_arrays_of_another_shape_are_an_error_of_one_line(tmp_path):
    run = begun(tmp_path)
    run.save(1, {"params": {"kernel": jnp.ones((2, 3))}})
    run.wait()
    with pytest.raises(ValueError, match=r"step 1 of .* cannot be restored"):
        run.restore({"params": as_shapes({"kernel": jnp.ones((3, 3))})})
    run.close()


def test_a_run_is_written_by_one_process(tmp_path):
    run = begun(tmp_path)
    with pytest.raises(ValueError, match=f"is being written by process {os.getpid()} on"):
        runs.Run(tiny(tmp_path))
    run.close()
    begun(tmp_path).close()


def test_the_lock_of_a_process_that_died_is_taken_over(tmp_path):
    program = f"""
import time
from etils import epath
from ltx_jax.checkpoints.lock import Lock
held = Lock(epath.Path({str(tmp_path / "run")!r}))
print("held", flush=True)
time.sleep(600)
"""
    (tmp_path / "run").mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"is being written by process {other.pid} on"):
        runs.Run(tiny(tmp_path))
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert str(other.pid) in (tmp_path / "run/lock").read_text()
    begun(tmp_path).close()


def test_behind_an_address_the_last_to_come_holds_the_run(tmp_path, monkeypatch):
    """Nothing can be locked there; a path of files stands in for the address."""
    monkeypatch.setattr(lock, "is_address", lambda _: True)
    first = begun(tmp_path)
    first.save(1, {"params": {"kernel": jnp.ones(3)}})
    first.wait()
    second = begun(tmp_path)
    with pytest.raises(ValueError, match=f"process {os.getpid()} on .* has taken over"):
        first.save(2, {"params": {"kernel": jnp.ones(3)}})
    second.save(2, {"params": {"kernel": jnp.ones(3)}})
    second.close()
    first.close()


def test_an_address_that_cannot_be_written_is_refused():
    assert str(run_config.locate("gs://bucket/run")) == "gs://bucket/run"
    with pytest.raises(ValueError, match="s3://bucket/run: runs lie in folders and at gs://"):
        runs.Run(config.load(TINY, ["--run.output", "s3://bucket/run"]))


def test_nothing_is_left_of_a_run_that_did_not_begin(tmp_path):
    runs.Run(tiny(tmp_path)).close()
    assert not (tmp_path / "run").exists()


def test_a_run_that_died_as_it_began_begins_again(tmp_path):
    begun(tmp_path).close()
    (tmp_path / "run/config.json").unlink()
    (tmp_path / "run/steps").rmdir()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["lock"]
    run = begun(tmp_path)
    assert run.latest_step is None
    run.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--optim.peak-lr", "1.0"], r"optim\.peak_lr = 0\.006, and now it is 1\.0"),
        (["--data.height", "32"], r"data\.height = 16, and now it is 32"),
        (["--run.seed", "1"], r"run\.seed = 0, and now it is 1"),
    ],
)
def test_a_run_does_not_go_on_under_another_configuration(change, message, tmp_path):
    output = ["--run.output", str(tmp_path / "run")]
    run = runs.Run(config.load(TINY, output))
    run.begin()
    run.save(1, {"params": {"kernel": jnp.ones(3)}})
    run.close()
    free = ["--run.steps", "99", "--mesh.fsdp", "2", "--data.threads", "7", "--data.prefetch", "9"]
    free += ["--distributed.num-processes", "2", "--execution.remat", "full"]
    free += ["--execution.attention", "plain"]
    runs.Run(config.load(TINY, [*output, *free])).close()
    with pytest.raises(ValueError, match=message):
        runs.Run(config.load(TINY, [*output, *change]))


@pytest.mark.thorough
def test_a_run_without_a_step_begins_anew_under_another_configuration(tmp_path):
    """The first step may have run out of memory; the advice then is a smaller batch."""
    run = transformer_run(tmp_path, plus=0)
    run.close()
    run = transformer_run(tmp_path, plus=1, accumulate=2)
    assert run_config.read_config(tmp_path / "run").optim.accumulate == 2
    assert same(runs.load_vae(tmp_path / "run").vae_params, vae_plus(1).vae_params)
    run.save(1, {"params": {"kernel": jnp.ones(3)}})
    run.close()
    with pytest.raises(ValueError, match=r"optim\.accumulate = 2, and now it is 1"):
        transformer_run(tmp_path, plus=1)
    transformer_run(tmp_path, plus=0, accumulate=2).close()
    assert same(runs.load_vae(tmp_path / "run").vae_params, vae_plus(1).vae_params)


def vae_plus(number):
    """A VAE, with a number added to all of its weights."""
    vae = config.load(TINY).model
    weights = random_parameters(VideoVAE(vae), jnp.zeros((1, 5, 16, 16, 3)))
    return Checkpoint(vae=vae, vae_params=jax.tree.map(lambda x: x + np.float32(number), weights))


def transformer_run(path, plus, accumulate=1):
    """A run that has begun, on a VAE of its own."""
    cfg = config.load(str(ROOT / "configs/shapes_tiny_transformer.py"))
    optim = dataclasses.replace(cfg.optim, accumulate=accumulate)
    output = dataclasses.replace(cfg.run, output=str(path / "run"))
    run = runs.Run(dataclasses.replace(cfg, optim=optim, run=output))
    run.begin(vae_plus(plus))
    return run


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


@pytest.mark.thorough
def test_each_step_that_is_kept_is_a_checkpoint(tmp_path):
    run = begun(tmp_path, keep=3)
    for step in (1, 2, 10):
        moments = {"mean": jnp.full(4, step), "std": jnp.ones(4)}
        run.save(step, {"ema": vae_plus(step).vae_params, "statistics": moments})
    run.close()
    for path, step in (("run", 10), ("run/steps/2", 2), ("run/steps/10", 10)):
        found = load_checkpoint(tmp_path / path)
        assert found.metadata["step"] == str(step)
        assert found.statistics.mean[0] == step
        assert same(found.vae_params, vae_plus(step).vae_params)
    with pytest.raises(ValueError, match=r"has no step 3: it keeps 1, 2, 10"):
        runs.load_run(tmp_path / "run/steps/3")


@pytest.mark.thorough
def test_a_run_whose_parameters_are_not_finite_is_not_loaded(tmp_path):
    def with_nan(tree):
        leaves, treedef = jax.tree.flatten(tree)
        return jax.tree.unflatten(
            treedef, [jnp.asarray(leaves[0]).at[(0,) * leaves[0].ndim].set(jnp.nan), *leaves[1:]]
        )

    whole = vae_plus(1)
    moments = {"mean": jnp.zeros(4), "std": jnp.ones(4)}
    run = begun(tmp_path, keep=3)
    run.save(1, {"ema": whole.vae_params, "statistics": moments})
    run.save(2, {"ema": with_nan(whole.vae_params), "statistics": moments})
    run.close()
    with pytest.raises(
        ValueError, match=r"^step 2 of .*run is damaged: \['ema'\].* holds NaN or inf"
    ):
        load_checkpoint(tmp_path / "run")
    assert same(load_checkpoint(tmp_path / "run/steps/1").vae_params, whole.vae_params)
    shutil.rmtree(tmp_path / "run")
    cfg = config.load(str(ROOT / "configs/shapes_tiny_transformer.py"))
    run_cfg = dataclasses.replace(cfg.run, output=str(tmp_path / "run"))
    run = runs.Run(dataclasses.replace(cfg, run=run_cfg))
    run.begin(dataclasses.replace(whole, vae_params=with_nan(whole.vae_params)))
    run.close()
    with pytest.raises(
        ValueError, match=r"^the VAE in .* is damaged: \['params'\].* holds NaN or inf"
    ):
        runs.load_vae(tmp_path / "run")


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="not empty and no run"):
        runs.Run(tiny(tmp_path))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.thorough
def test_a_run_without_a_text_encoder_of_its_own_is_a_checkpoint_without_one(tmp_path):
    cfg = config.load(str(ROOT / "configs/shapes_tiny_transformer.py"))
    run_cfg = dataclasses.replace(cfg.run, output=str(tmp_path / "run"))
    cfg = dataclasses.replace(cfg, captions="cached", run=run_cfg)
    tokens, pairs = jnp.zeros((1, 4, 4)), jnp.zeros((1, 4, cfg.model.width // 2))
    caption = jnp.zeros((1, 3, cfg.model.caption_channels))
    arguments = (tokens, jnp.zeros((1, 1)), Context(caption, None, (pairs, pairs)))
    params = random_parameters(Transformer(cfg.model), *arguments)
    vae = config.load(TINY).model
    run = runs.Run(cfg)
    weights = random_parameters(VideoVAE(vae), jnp.zeros((1, 5, 16, 16, 3)))
    run.begin(Checkpoint(vae=vae, vae_params=weights))
    run.save(1, {"ema": {"transformer": params}})
    run.close()
    found = load_checkpoint(tmp_path / "run")
    assert found.text_encoder is None
    jax.tree.map(np.testing.assert_array_equal, found.transformer_params, params)


def test_a_run_without_a_step_says_so(tmp_path):
    begun(tmp_path).close()
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        load_checkpoint(tmp_path / "run")
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        runs.restore(tiny(tmp_path), {})


@pytest.mark.parametrize("how", ["renamed", "deleted", "replaced"])
def test_a_run_whose_folder_is_gone_is_not_written_again(how, tmp_path):
    run = begun(tmp_path)
    run.save(1, {"params": {"kernel": jnp.ones(3)}})
    run.wait()
    if how == "deleted":
        shutil.rmtree(tmp_path / "run")
    else:
        (tmp_path / "run").rename(tmp_path / "moved")
    if how == "replaced":
        shutil.copytree(tmp_path / "moved", tmp_path / "run")
    with pytest.raises(ValueError, match=r"run has been moved or deleted: this run stops"):
        run.save(2, {"params": {"kernel": jnp.ones(3)}})
    run.close()
    if how == "replaced":
        assert steps_of(tmp_path) == ["1"]
    else:
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("follows", [True, False])
def test_a_run_that_is_renamed_during_a_save_leaves_nothing_at_its_old_place(
    follows, tmp_path, monkeypatch, capfd
):
    if not follows:  # as where open folders have no path: the save makes the old place anew
        monkeypatch.setattr(lock, "_DESCRIPTORS", str(tmp_path / "nowhere"))
    noise = np.random.default_rng(0).standard_normal((40, 500, 500), np.float32)
    arrays = {"params": {str(i): jnp.asarray(x) for i, x in enumerate(noise)}}
    run = begun(tmp_path)
    run.save(1, arrays)
    run.wait()
    run.save(2, arrays)
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"run has been moved or deleted: this run stops"):
        run.wait()
    run.close()
    assert not (tmp_path / "run").exists()
    if follows:
        assert "Traceback" not in capfd.readouterr().err
        (tmp_path / "moved").rename(tmp_path / "run")
        run = begun(tmp_path)
        assert run.latest_step == 2
        restored = run.restore({"params": as_shapes(arrays["params"])})
        assert same(restored, arrays)
        run.close()


def test_a_full_disk_is_one_line_and_no_traceback_of_a_thread(small_disk, capfd):
    noise = np.random.default_rng(0).integers(0, 2**31, (2, 500_000), np.int32)  # 2 MB each
    run = begun(small_disk, keep=1)
    run.save(1, {"params": {"kernel": jnp.asarray(noise[0])}})
    run.save(2, {"params": {"kernel": jnp.asarray(noise[1])}})
    with pytest.raises(ValueError, match="the disk is full"):
        run.wait()
    run.close()
    assert "Traceback" not in capfd.readouterr().err
