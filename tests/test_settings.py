"""Settings refuse NaN and infinity, wherever they come from."""

import dataclasses
import json
import math
import re
import typing

import pytest

from ltx_jax import config


def with_floats() -> list[tuple[type, str]]:
    """Every field of every class of settings that holds floating-point numbers."""
    classes = filter(dataclasses.is_dataclass, (vars(config)[name] for name in config.__all__))
    return [
        (kind, field.name)
        for kind in classes
        for field in dataclasses.fields(kind)
        if re.search(r"\bfloat\b", str(typing.get_type_hints(kind)[field.name]))
    ]


REQUIRED = {
    config.BucketConfig: dict(num_frames=9, height=32, width=32, batch_size=1),
    config.SourceConfig: dict(path="shapes"),
    config.DistillationConfig: dict(teacher="embedded:shapes", paths="data/paths"),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("kind", "name"), with_floats(), ids=str)
def test_every_number_of_every_setting_is_finite(kind, name, value):
    hint = str(typing.get_type_hints(kind)[name])
    default = kind(**REQUIRED.get(kind, {}))
    values = [value] if hint.startswith("<class") or not hint.startswith("tuple") else []
    if "tuple" in hint:
        values.append((1.0, value, 1.0))
    for wrong in values:
        with pytest.raises(ValueError, match=f"{name} must be finite, got {value}"):
            dataclasses.replace(default, **{name: wrong})


def test_files_of_settings_are_checked_alike(tmp_path):
    (tmp_path / "video.json").write_text(json.dumps({"settings": {"guidance_scale": math.nan}}))
    (tmp_path / "official.yaml").write_text("guidance_scale: [1.0, .inf]\n")
    source = "from ltx_jax.config import SampleConfig\nconfig = SampleConfig({})\n"
    (tmp_path / "python.py").write_text(source.format("stg_scale=float('nan')"))
    for name in ("video.json", "official.yaml", "python.py"):
        message = r"scale must be finite, got (nan|inf)|JSON: NaN is no number"
        with pytest.raises(ValueError, match=message):
            config.load_sampling(str(tmp_path / name))
    (tmp_path / "train.py").write_text(source.format("frame_rate=1e9"))
    with pytest.raises(ValueError, match=r"frame_rate may be 1000 at most, got 1e\+09"):
        config.load_sampling(str(tmp_path / "train.py"))


def test_a_frame_rate_of_training_data_has_the_same_limit():
    for changes in (dict(frame_rates=(24.0, 1e9)), dict(resample=1e9)):
        with pytest.raises(ValueError, match="may be 1000 at most"):
            config.DataConfig(**changes)
