"""Requests outside of what the released models saw give one line of warning, with numbers."""

import dataclasses
import pathlib

import golden_traces
import pytest

from ltx_jax import config
from ltx_jax.config import SamplingConfig, TransformerConfig
from ltx_jax.inference import trained_range
from ltx_jax.inference.pipeline import LTXPipeline

ROOT = pathlib.Path(__file__).parents[1]
FIRST = TransformerConfig()  # 2B, of 0.9.0 and 0.9.1
LATER = dataclasses.replace(FIRST, causal_temporal_positioning=True)
CONFIGS = [path.stem for path in (ROOT / "configs/sample").glob("ltxv_*.py")]
LARGE = dataclasses.replace(LATER, num_layers=48, attention_head_dim=128)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(height=720, width=1280, num_frames=257), "28.9K latents (trained on 12K at most)"),
        (
            dict(height=736, width=1280, num_frames=9),
            "1280 x 736 pixels (trained on 1280 x 720 at most)",
        ),
        (dict(height=256, width=256, num_frames=265), "265 frames (trained on 257 at most)"),
        (dict(frame_rate=10.0), "10 frames per second (trained mostly on 24 to 30)"),
        (dict(frame_rate=60.0), "60 frames per second"),
        (dict(height=1280, width=704, num_frames=25), "a portrait format, 704 x 1280"),
    ],
)
def test_what_lies_outside_is_said_once_with_its_number_and_limit(caplog, changes, reason):
    options = dataclasses.replace(SamplingConfig(), **changes)
    trained_range.warn_of_range(options, FIRST)
    [message] = [record.message for record in caplog.records]
    assert reason in message
    assert message.count(";") == 0
    caplog.clear()
    trained_range.warn_of_range(dataclasses.replace(options, range_warning=False), FIRST)
    for other in ({"num_layers": 4}, {"attention_head_dim": 32}):
        trained_range.warn_of_range(options, dataclasses.replace(FIRST, **other))
    assert not caplog.records


def test_several_reasons_are_one_line(caplog):
    options = SamplingConfig(height=1088, width=1920, num_frames=521, frame_rate=5.0)
    trained_range.warn_of_range(options, LARGE)
    [message] = [record.message for record in caplog.records]
    assert message.count(";") == 3


def test_portraits_are_common_to_the_later_versions(caplog):
    trained_range.warn_of_range(SamplingConfig(height=1216, width=704), LATER)
    assert not caplog.records


@pytest.mark.parametrize("name", CONFIGS)
def test_the_settings_of_the_releases_lie_inside(caplog, name):
    for shape in (FIRST, LARGE):
        trained_range.warn_of_range(config.load_sampling(name), shape)
    assert not caplog.records


def test_a_picture_has_no_frame_rate(caplog):
    trained_range.warn_of_range(SamplingConfig(num_frames=1, frame_rate=1.0), FIRST)
    assert not caplog.records


def test_the_pipeline_warns(caplog, monkeypatch):
    pipe = LTXPipeline(golden_traces.checkpoint(), dtype="float32")
    monkeypatch.setattr(trained_range, "_is_released", lambda transformer: True)
    for changes, count in (({}, 1), ({"range_warning": False}, 0)):
        caplog.clear()
        with pytest.raises(ValueError, match="there is nothing to sample"):
            pipe(height=64, width=96, num_frames=9, frame_rate=5.0, **changes)
        assert caplog.text.count("5 frames per second") == count
