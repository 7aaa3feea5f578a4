"""Distillation as a stage of training: on several devices, resumed, and as a checkpoint."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_teacher_paths import half_conditions, random_paths, student, write
from test_train_command import QUICK, ROOT, TRANSFORMER, VAE, check_equal, finish
from tiny_stages import QUICK_MESH, assert_eight_devices_train_as_one, load, one_device, tiny_vae

from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.data.dataset import DatasetReader
from ltx_jax.diffusion import flow
from ltx_jax.training.distillation.stage import DistillationStage
from ltx_jax.training.transformer import sources

STUDENT = str(ROOT / "configs/shapes_tiny_distilled.py")


@pytest.mark.thorough
def test_eight_devices_train_as_one(tmp_path):
    """With condition tokens at times of their own; four heads, which four devices can split."""
    cfg = load(
        "distilled", "--model.num_attention_heads", "4", "--distillation.paths", str(tmp_path)
    )
    write(tmp_path, [half_conditions(24)], cfg)

    def open_stage(mesh):
        return DistillationStage.open(cfg, mesh, vae=tiny_vae())

    metrics = assert_eight_devices_train_as_one(open_stage, QUICK_MESH)
    assert metrics["conditioned"] == 0.5


def test_a_described_stage_has_the_batches_of_the_largest_conditions(tmp_path):
    cfg = student("--distillation.paths", str(tmp_path))
    write(tmp_path, [random_paths(16, tokens=32)], cfg)
    mesh = one_device()
    captions = sources.described_captions(cfg)
    stage = DistillationStage(cfg, mesh, tiny_vae(), captions)
    described = stage.abstract_batch(cfg.data.sizes[0])
    [batch] = DistillationStage.open(cfg, mesh, vae=tiny_vae()).batches(0, 1)
    assert jax.tree.structure(described) == jax.tree.structure(batch)
    shapes = jax.tree.map(lambda x: (x.ndim, x.dtype), batch)
    assert shapes == jax.tree.map(lambda x: (x.ndim, x.dtype), described)


@pytest.mark.parametrize(
    ("group", "changes", "message"),
    [
        ("flow", {"caption_dropout": 0.1}, "caption_dropout is 0.1"),
        ("flow", {"token_drop": 0.1}, "token_drop is 0.1"),
        ("flow", {"loss_frames": (0, 3)}, "loss_frames have no effect"),
        ("distillation", {"paths": ""}, "distillation.paths, and it is empty"),
        ("run", {"init_from": None}, "starts from its teacher"),
    ],
)
def test_settings_that_do_not_fit_a_student_are_refused(group, changes, message):
    cfg = student()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(cfg, **{group: dataclasses.replace(getattr(cfg, group), **changes)})


def encode(output, teacher, *more):
    command = [sys.executable, "-m", "ltx_jax.encode", STUDENT, "--output", str(output)]
    command += ["--examples", "24", "--shard_size", "8", "--distillation.teacher", teacher]
    command += ["--vae", teacher, *more]
    subprocess.run(command, check=True, cwd=ROOT, env=QUICK, stdout=subprocess.DEVNULL)


def rows(folder):
    reader = DatasetReader(folder)
    return [reader[i] for i in range(len(reader.index))]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run of the second stage, and paths of it."""
    folder = tmp_path_factory.mktemp("teacher")
    finish(VAE, folder / "vae", 2)
    finish(TRANSFORMER, folder / "teacher", 2, "--vae", str(folder / "vae"))
    encode(folder / "paths", str(folder / "teacher"))
    return folder


@pytest.mark.thorough
def test_paths_that_were_interrupted_are_the_same(teacher, tmp_path):
    """A process that wrote one of three shards, and then another one that writes the rest."""
    whole = rows(teacher / "paths")
    assert len(whole) == 24
    encode(tmp_path / "paths", str(teacher / "teacher"), "--worker", "1", "--workers", "3")
    assert len(list(pathlib.Path(tmp_path / "paths").glob("part-*.array_record"))) == 1
    encode(tmp_path / "paths", str(teacher / "teacher"))
    again = rows(tmp_path / "paths")
    for one, other in zip(whole, again, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.thorough
@pytest.mark.parametrize("target", ["next", "end"])
def test_a_student_resumes_bitwise_and_samples_without_options(teacher, tmp_path, target):
    settings = ("--vae", str(teacher / "teacher"), "--run.init_from", str(teacher / "teacher"))
    settings += ("--distillation.teacher", str(teacher / "teacher"))
    settings += ("--distillation.paths", str(teacher / "paths"), "--distillation.target", target)
    validated = ("--run.validate_every", "4", "--run.validation_clips", "1")
    said = finish(STUDENT, tmp_path / "whole", 4, *settings, *validated)
    assert "val_loss" in said
    finish(STUDENT, tmp_path / "broken", 2, *settings)
    assert "continues after step 2" in finish(STUDENT, tmp_path / "broken", 4, *settings)
    whole, broken, before = (
        load_checkpoint(path)
        for path in (tmp_path / "whole", tmp_path / "broken", teacher / "teacher")
    )
    check_equal(broken.transformer_params, whole.transformer_params)
    assert any(
        (x != y).any()
        for x, y in zip(
            jax.tree.leaves(whole.transformer_params),
            jax.tree.leaves(before.transformer_params),
            strict=True,
        )
    )
    # The schedule comes with the checkpoint.
    assert whole.allowed_inference_steps == (1.0, 0.5)
    options = whole.settings
    assert options.timesteps == (1.0, 0.5)
    assert options.guidance_scale == 1.0
    assert options.stochastic_sampling == (target == "end")
    with pytest.raises(ValueError, match="distilled for the times"):
        flow.inference_times(
            whole.scheduler, 32, num_inference_steps=3, allowed=whole.allowed_inference_steps
        )
    command = [sys.executable, str(ROOT / "sample.py"), "--checkpoint", str(tmp_path / "whole")]
    command += ["--prompt", "a red star", "--output_path", str(tmp_path / "a.gif")]
    subprocess.run(command, check=True, cwd=ROOT, env=QUICK, stdout=subprocess.DEVNULL)
    assert (tmp_path / "a.gif").exists()
    if target == "next":
        return
    # The judge takes the student's own steps, or some of them.
    for more, times in (((), [1.0, 0.5]), (("--timesteps", "1"), [1.0])):
        table = tmp_path / f"table{len(times)}"
        command = [sys.executable, "-m", "ltx_jax.evaluate", "shapes", "--rows", "seen", *more]
        command += ["--checkpoint", str(tmp_path / "whole"), "--prompts", "1"]
        command += ["--output", str(table)]
        subprocess.run(command, check=True, cwd=ROOT, env=QUICK, stdout=subprocess.DEVNULL)
        assert json.loads(table.with_suffix(".json").read_text())["settings"]["timesteps"] == times
