"""An adapter that is trained to follow references: its run, its metadata, and sampling with it."""

import dataclasses

import numpy as np
import pytest
import tiny_checkpoint
from test_adapter_training import check_equal, config, of_state, quick, quiet, steps  # noqa: F401

from ltx_jax import Reference, export
from ltx_jax.checkpoints import adapters
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import DataConfig
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.training.loop import train

pytestmark = pytest.mark.thorough


def test_an_adapter_learns_to_follow_and_says_how_small_its_references_are(tmp_path):
    """Edges of half the size, in a run that is resumed and validated, also from first frames."""
    folder = tiny_checkpoint.write_exported(tmp_path / "base")
    data = DataConfig(
        num_frames=9,
        height=64,
        width=64,
        batch_size=8,
        reference="canny",
        reference_downscale_factor=2,
    )

    def settings(name):
        cfg = dataclasses.replace(config(folder, tmp_path / name), data=data)
        validation = dict(validate_every=4, validation_clips=1, validation_first_frames=True)
        return dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, **validation))

    lines = []
    whole = train(settings("whole"), lines.append)
    assert any("val_loss" in line for line in lines)
    train(steps(settings("broken"), 2), quiet)
    check_equal(of_state(train(settings("broken"), quiet)), of_state(whole))

    base = load_checkpoint(folder)
    adapter = adapters.read(tmp_path / "whole", base.transformer)
    own = tmp_path / "own.safetensors"
    assert export.main([str(tmp_path / "whole"), str(own)]) == 0
    for one in (adapter, adapters.read(own, base.transformer)):
        assert one.metadata["reference_downscale_factor"] == "2"
    pipe = LTXPipeline(base, dtype="float32")
    clip = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), np.uint8)
    options = dict(height=64, width=64, num_frames=9, guidance_scale=1.0)
    conditions = [Reference(clip, preprocessor="canny")]

    def tokens():
        start = pipe.prepare("a star", conditions=conditions, **options)
        return start.inputs.start.shape[1]

    assert tokens() == 8 + 8
    pipe.load_lora(tmp_path / "whole")
    assert tokens() == 2 + 8
    followed = pipe("a star", conditions=conditions, output="latents", **options)
    alone = pipe("a star", output="latents", **options)
    assert np.abs(followed - alone).max() > 1e-3
