"""As a fine-tuner goes: a folder of videos, a data set, latents, a run, weights for diffusers."""

import numpy as np
import pytest

pytest.importorskip("apache_beam", reason="needs the extra `prepare`: pip install '.[prepare]'")
pytest.importorskip("diffusers")

import jax
from checkpoint_files import random_tensors, raw_config, write_official
from test_diffusers_layout import assert_same_transformer, assert_same_vae
from tiny_checkpoint import write_text_encoder

from benchmarks import synthetic_videos
from ltx_jax import encode, export
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.data import dataset
from ltx_jax.prepare import __main__ as prepare
from ltx_jax.train import main as train

# Of the released 2B model but for its widths and depths.
CONFIG = """
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import (
    BucketConfig, DataConfig, OptimConfig, PrepareConfig, RunConfig, StoreConfig, TrainTransformer
)

training = TrainTransformer(
    model=load_checkpoint({base!r}).transformer,
    vae={base!r},
    captions="cached",
    text_encoder_path={t5!r},
    max_caption_tokens=16,
    data=DataConfig(buckets=(BucketConfig(17, 64, 96, 8),)),
    optim=OptimConfig(peak_lr=1e-2, warmup_steps=1),
    run=RunConfig(init_from={base!r}, steps=3, save_every=3, log_every=1, tensorboard=False),
)
preparation = PrepareConfig(store=StoreConfig(min_side=64))
with_latents = PrepareConfig(store=StoreConfig(min_side=64), latents={config!r} + ":training")
"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Three videos with captions, and one without."""
    made = synthetic_videos.VideoSet(tmp_path_factory.mktemp("raw"), 6, height=96, width=160)
    for kind in ("pan", "zoom", "things"):
        made.take(kind, moves=True)
    made.films[-1].path.with_suffix(".txt").unlink()
    return made.folder


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """A tiny checkpoint in the official layout, a T5 for it, and a file of configs on them."""
    folder = tmp_path_factory.mktemp("base")
    official = raw_config("0.9.5", width=8)
    base = write_official(folder / "base.safetensors", official, random_tensors(official))
    write_text_encoder(folder / "t5", official["transformer"]["caption_channels"])
    file = folder / "configs.py"
    file.write_text(CONFIG.format(base=str(base), t5=str(folder / "t5"), config=str(file)))
    return file


def done(status, capsys):
    assert status == 0, capsys.readouterr().err


@pytest.mark.slow
def test_raw_videos_become_weights_that_diffusers_loads(raw, config_file, tmp_path, capsys):
    clips, latents, run, out = (str(tmp_path / name) for name in ("clips", "latents", "run", "out"))
    preparation, training = f"{config_file}:preparation", f"{config_file}:training"
    done(prepare.main([preparation, "--input", str(raw), "--output", clips]), capsys)
    done(encode.main([training, "--data.source", clips, "--output", latents]), capsys)
    done(train([training, "--data.source", latents, "--run.output", run]), capsys)
    assert "step 3" in capsys.readouterr().out
    done(export.main([run, out]), capsys)

    tuned, base = (
        load_checkpoint(run),
        load_checkpoint(str(config_file.parent / "base.safetensors")),
    )
    weights = (jax.tree.leaves(loaded.transformer_params) for loaded in (tuned, base))
    assert max(np.abs(a - b).max() for a, b in zip(*weights, strict=True)) > 1e-3
    assert_same_transformer(tuned, tmp_path / "out/diffusers/transformer")
    assert_same_vae(tuned.vae, tuned.vae_params, tmp_path / "out/diffusers/vae")


@pytest.mark.slow
def test_latents_are_a_stage_that_goes_on_where_it_was_stopped(
    raw, config_file, tmp_path, capsys, monkeypatch
):
    """The same latents as those of the command, from a run that was killed while it made them."""
    arguments = ["--input", str(raw), "--output", str(tmp_path / "clips")]
    write, written = dataset.DatasetWriter.write, []

    def stop(made, number, rows):
        if made._kind == "latents":
            written.append(number)
            raise KeyboardInterrupt
        write(made, number, rows)

    with monkeypatch.context() as patch:
        patch.setattr(dataset.DatasetWriter, "write", stop)
        assert prepare.main([f"{config_file}:with_latents", *arguments]) == 130
    finished = (tmp_path / "clips/report.html").stat().st_mtime_ns
    done(prepare.main([f"{config_file}:with_latents", *arguments]), capsys)
    assert (tmp_path / "clips/report.html").stat().st_mtime_ns == finished
    assert written == [0]
    source = ["--data.source", str(tmp_path / "clips")]
    command = [f"{config_file}:training", *source, "--output", str(tmp_path / "latents")]
    done(encode.main(command), capsys)
    found, wanted = (
        dataset.DatasetReader(tmp_path / name) for name in ("clips/latents", "latents")
    )
    assert len(found.index) == len(wanted.index) == 2
    jax.tree.map(np.testing.assert_array_equal, found[1], wanted[1])
