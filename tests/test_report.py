"""What a run says: the line of the log, and what is in TensorBoard's files and W&B's."""

import dataclasses
import io
import math
import re
import struct
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image, ImageSequence
from tiny_stages import load

from ltx_jax.training import report
from ltx_jax.training.report import Reporter, animate
from ltx_jax.training.stage import LoggedVideo, Validation
from ltx_jax.training.step import Work


@pytest.fixture
def clock():
    """A clock that the test moves: clock[0] is its time in seconds."""
    return [100.0]


def reporter(tmp_path, lines, clock, first=0, **settings):
    cfg = load("vae")
    settings = dict(tensorboard=False, steps=100, log_every=2) | settings
    cfg = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, **settings))
    return Reporter(cfg, epath.Path(tmp_path / "run"), first, lines.append, lambda: clock[0])


def take(reporter, clock, steps, *, seconds, waited=0.0, work=Work(50, 2e9), **figures):
    for done in steps:
        clock[0] += seconds
        metrics = {"loss": 0.5, "rejected": 0, "rejected_in_a_row": 0, **figures}
        reporter.step(done, metrics, work, waited)


def test_the_line_says_how_fast_it_goes_and_how_long_it_will(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(report, "peak_flops", lambda kind: 1e9)
    monkeypatch.setattr(report.jax, "devices", lambda: [type("D", (), {"device_kind": "x"})()] * 8)
    lines = []
    run = reporter(tmp_path, lines, clock, steps=1000, log_every=10)
    take(run, clock, [1], seconds=60.0)  # compiles
    take(run, clock, range(2, 11), seconds=0.5, waited=0.1, psnr=20.0)
    assert lines[0] == "step 1/1000  loss 0.5"
    # 2e9 operations in half a second, of 8 devices of 1e9 a second.
    assert lines[1] == (
        "step 10/1000  loss 0.5  psnr 20  2 steps/s  100 tokens/s  MFU 50.0%  data 20%  8:15 left"
    )


def test_what_is_done_between_steps_is_not_their_time(tmp_path, clock):
    lines = []
    run = reporter(tmp_path, lines, clock)
    take(run, clock, [1], seconds=1.0)
    with run.pause():
        clock[0] += 1000
    take(run, clock, [2], seconds=0.25)
    assert "4 steps/s" in lines[1]
    assert "MFU" not in lines[1]  # of a device that is not known


def test_a_figure_without_a_value_is_left_out_and_rejections_are_told(tmp_path, clock):
    lines = []
    run = reporter(tmp_path, lines, clock)
    nan = math.nan
    take(run, clock, [1], seconds=1.0, loss=nan, gan=nan, grad_norm=2.0, rejected=3, **{"a/b": 1.0})
    assert lines == ["step 1/100  loss nan  grad_norm 2  rejected 3 steps (not finite)"]


def test_figures_are_fetched_only_for_the_steps_that_are_reported(tmp_path, clock):
    class Costly:
        fetched = 0

        def __array__(self, *_, **__):
            Costly.fetched += 1
            return np.asarray(0.5)

    run = reporter(tmp_path, [], clock, log_every=10)
    take(run, clock, range(1, 21), seconds=1.0, costly=Costly())
    assert Costly.fetched <= 3  # steps 1, 10 and 20


def test_only_the_first_process_writes(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(report, "is_first", lambda: False)
    run = reporter(tmp_path, [], clock, tensorboard=True, wandb="project")
    take(run, clock, [1, 2], seconds=1.0)
    run.close()
    assert not (tmp_path / "run").exists()


def events(folder):
    """What is in a TensorBoard file, by its own framing: length, checksum, event, checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    [file] = folder.glob("events.*")
    data, start, found = file.read_bytes(), 0, []
    while start < len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        found.append(event_pb2.Event.FromString(data[start + 12 : start + 12 + length]))
        start += length + 16
    return found


def video(frames=5, colours=7):
    """A clip of few colours, which a GIF keeps exactly."""
    palette = np.random.default_rng(0).integers(0, 255, (colours, 3), np.uint8)
    chosen = np.random.default_rng(1).integers(0, colours, (frames, 12, 20))
    return LoggedVideo(palette[chosen], 10.0)


def decoded(data):
    image = Image.open(io.BytesIO(data))
    return image, np.stack([np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(image)])


def test_a_clip_becomes_a_gif_of_the_same_frames_at_its_own_rate():
    clip = video()
    image, frames = decoded(animate(clip))
    assert (image.format, image.info["duration"], image.info["loop"]) == ("GIF", 100, 0)
    np.testing.assert_array_equal(frames, clip.frames)


def test_a_single_frame_becomes_a_png():
    clip = LoggedVideo(np.random.default_rng(0).integers(0, 255, (1, 8, 8, 3), np.uint8), 24.0)
    image, frames = decoded(animate(clip))
    assert image.format == "PNG"
    np.testing.assert_array_equal(frames, clip.frames)


def test_tensorboard_has_the_figures_the_videos_and_the_histograms(tmp_path, clock):
    run = reporter(tmp_path, [], clock, first=6, tensorboard=True)
    take(run, clock, [7, 8], seconds=0.5, nothing=math.nan, **{"grad_norm/encoder": 3.0})
    clip = video()
    stds = np.array([0.5, 1.0, 2.0])
    run.validation(
        8, Validation({"val_loss": 0.25}, {"sample 0: a red circle": clip}, {"latent_std": stds})
    )
    run.close()
    found = events(tmp_path / "run/tensorboard")
    # What was written after the checkpoint that the run goes on from is done again.
    assert [e.step for e in found if e.session_log.status] == [7]
    values = {(e.step, v.tag): v for e in found for v in e.summary.value}
    scalars = {key: v.simple_value for key, v in values.items() if v.HasField("simple_value")}
    assert scalars[7, "train/loss"] == 0.5
    assert scalars[8, "train/grad_norm/encoder"] == 3.0
    assert scalars[8, "speed/steps_per_second"] == 2.0
    assert scalars[8, "validation/loss"] == 0.25
    assert not any("nothing" in tag for _, tag in scalars)
    image = values[8, "validation/sample 0: a red circle"].image
    assert (image.height, image.width, image.colorspace) == (12, 20, 3)
    np.testing.assert_array_equal(decoded(image.encoded_image_string)[1], clip.frames)
    histogram = values[8, "validation/latent_std"].histo
    assert (histogram.num, histogram.min, histogram.max) == (3, 0.5, 2.0)
    assert (histogram.sum, histogram.sum_squares) == (stds.sum(), (stds**2).sum())


def test_a_run_without_tensorboardx_says_so_in_one_line(tmp_path, clock, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    lines = []
    run = reporter(tmp_path, lines, clock, tensorboard=True)
    assert lines == ["TensorBoard is off: it needs tensorboardX, which is not installed"]
    take(run, clock, [1, 2], seconds=1.0)
    run.close()


def test_weights_and_biases_that_is_not_installed_is_refused(monkeypatch):
    cfg = load("vae", "--run.wandb", "project")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        report.check_installed(cfg)
    report.check_installed(load("vae"))


def test_weights_and_biases_takes_the_same_and_goes_on_with_its_own_run(
    tmp_path, clock, monkeypatch
):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    (tmp_path / "run").mkdir()
    logged, identities = [], []
    for first in (0, 2):
        run = reporter(tmp_path, [], clock, first=first, wandb="project")
        identities.append(wandb.run.id)
        monkeypatch.setattr(wandb.run, "log", logged.append)
        take(run, clock, [first + 1, first + 2], seconds=0.5)
        found = Validation({"val_loss": 0.25}, {"sample": video()}, {"std": np.arange(3.0)})
        run.validation(first + 2, found)
        run.close()
    assert identities[0] == identities[1]
    assert {"train/loss": 0.5, "step": 4}.items() <= logged[-5].items()
    assert logged[-3] == {"validation/loss": 0.25, "step": 4}
    assert isinstance(logged[-2]["validation/sample"], wandb.Video)
    assert isinstance(logged[-1]["validation/std"], wandb.Histogram)
    assert re.search("offline-run", " ".join(p.name for p in (tmp_path / "wandb").iterdir()))
