import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltx_jax import config, sharding
from ltx_jax.checkpoints import checkpoint, runs
from ltx_jax.config import MeshConfig

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
TINY = str(CONFIGS[0].parent / "shapes_tiny_vae.py")


def tiny(path, **run):
    cfg = config.load(TINY)
    return dataclasses.replace(
        cfg, run=dataclasses.replace(cfg.run, output=str(path / "run"), **run)
    )


def as_shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_comes_back_from_its_file(path, tmp_path):
    cfg = config.load(str(path))
    runs.write_config(tmp_path, cfg)
    assert runs.read_config(tmp_path) == cfg
    assert runs.is_run(tmp_path)


def test_fields_that_an_old_file_lacks_take_their_defaults(tmp_path):
    cfg = tiny(tmp_path)
    runs.write_config(tmp_path, cfg)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    del content["config"]["run"]["keep"], content["config"]["loss"]
    file.write_text(json.dumps(content))
    assert runs.read_config(tmp_path) == dataclasses.replace(cfg, loss=config.VAELossConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["config"]["run"].update(stpes=3), r"config\.run has no field 'stpes'"),
        (lambda c: c.update(type="Other"), "no configuration of a run"),
        (lambda c: c["config"].pop("model"), "no configuration of a run"),
        (lambda c: c["config"]["data"].update(height=0), "height must be positive"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(change, message, tmp_path):
    runs.write_config(tmp_path, tiny(tmp_path))
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        runs.read_config(tmp_path)


def test_a_folder_that_is_no_run_is_not_taken_for_one(tmp_path):
    assert not runs.is_run(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "Other"}')
    assert not runs.is_run(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert not runs.is_run(tmp_path)


def test_a_run_keeps_the_last_steps_and_restores_the_latest(tmp_path):
    run = runs.Run(tiny(tmp_path, keep=2))
    for step in (1, 2, 3):
        run.save(step, {"params": {"a": {"kernel": jnp.full((2, 3), step)}}})
    run.close()
    again = runs.Run(tiny(tmp_path, keep=2))
    assert again.latest_step == 3
    shapes = as_shapes({"a": {"kernel": jnp.zeros((2, 3), int)}})
    restored = again.restore({"params": shapes})
    again.close()
    np.testing.assert_array_equal(restored["params"]["a"]["kernel"], np.full((2, 3), 3))
    assert sorted(p.name for p in (tmp_path / "run" / "steps").iterdir()) == ["2", "3"]


def test_a_run_is_restored_onto_another_mesh(tmp_path):
    value = np.arange(64.0, dtype=np.float32).reshape(8, 8)
    P = jax.sharding.PartitionSpec  # noqa: N806

    def place(mesh, *axes):
        return jax.device_put(value, jax.sharding.NamedSharding(mesh, P(*axes)))

    run = runs.Run(tiny(tmp_path))
    first = sharding.make_mesh(MeshConfig(data=1, fsdp=8))
    run.save(1, {"params": {"kernel": place(first, "fsdp")}})
    second = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    wanted = place(second, "tensor", "fsdp")
    restored = run.restore({"params": as_shapes({"kernel": wanted})})["params"]["kernel"]
    run.close()
    np.testing.assert_array_equal(restored, value)
    assert restored.sharding.is_equivalent_to(wanted.sharding, 2)


def test_a_save_that_was_cut_off_leaves_the_one_before(tmp_path):
    run = runs.Run(tiny(tmp_path))
    run.save(1, {"params": {"kernel": jnp.ones(3)}})
    run.close()
    partial = tmp_path / "run" / "steps" / "2.orbax-checkpoint-tmp"
    partial.mkdir()
    (partial / "params").mkdir()
    again = runs.Run(tiny(tmp_path))
    assert again.latest_step == 1
    again.close()


def test_arrays_of_another_shape_are_an_error_of_one_line(tmp_path):
    run = runs.Run(tiny(tmp_path))
    run.save(1, {"params": {"kernel": jnp.ones((2, 3))}})
    with pytest.raises(ValueError, match=r"step 1 of .* cannot be restored"):
        run.restore({"params": as_shapes({"kernel": jnp.ones((3, 3))})})
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
    runs.Run(config.load(TINY, output)).close()
    runs.Run(config.load(TINY, [*output, "--run.steps", "99", "--mesh.fsdp", "2"])).close()
    with pytest.raises(ValueError, match=message):
        runs.Run(config.load(TINY, [*output, *change]))


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="not empty and no run"):
        runs.Run(tiny(tmp_path))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_run_without_a_step_says_so(tmp_path):
    runs.Run(tiny(tmp_path)).close()
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        checkpoint.load(tmp_path / "run")
