"""Settings that go to JSON and come back."""

import json
import pathlib

import pytest

from ltx_jax import config
from ltx_jax.config import SampleConfig, SamplingConfig, TrainTransformer

FOLDER = pathlib.Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.stem)
def test_every_config_comes_back_from_json(path):
    cfg = config.load(str(path))
    value = json.loads(json.dumps(config.dump(cfg)))
    value.pop("type", None)  # of configurations of runs
    assert config.build(type(cfg), value, "config") == cfg


@pytest.mark.parametrize("blocks", [(), (1, 2), ((), (1, 2)), ((3,),)])
def test_lists_of_blocks_keep_their_depth(blocks):
    value = json.loads(json.dumps({"skip_block_list": blocks}))
    assert config.build(SamplingConfig, value, "config").skip_block_list == blocks


def test_whole_numbers_become_real_where_the_field_is():
    cfg = config.build(SampleConfig, {"frame_rate": 25, "guidance_scale": 3, "seed": 1}, "config")
    assert [type(v) for v in (cfg.frame_rate, cfg.guidance_scale, cfg.seed)] == [float, float, int]


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (SamplingConfig, {"heigth": 1}, "config has no field 'heigth': did you mean 'height'"),
        (TrainTransformer, {"optim": 3}, r"config\.optim must be an object of settings, got 3"),
        (SampleConfig, {"conditioning_media_paths": "a"}, "must be a list, got 'a'"),
        (SamplingConfig, {"height": [1]}, "must be a plain value"),
        (SamplingConfig, {"height": 0}, "height must be positive, got 0"),
        (SamplingConfig, {"height": "tall"}, r"config\.height must be a whole number, got 'tall'"),
        (SamplingConfig, {"guidance_scale": "x"}, r"guidance_scale must be a number, got 'x'"),
        (SamplingConfig, {"stg_mode": "none"}, "stg_mode must be one of 'attention_values', "),
        (SampleConfig, {"dtype": "float8"}, "dtype must be one of 'float32', "),
        (SampleConfig, {"sheet": 1}, "sheet must be true or false, got 1"),
    ],
)
def test_what_does_not_fit_is_named(kind, value, message):
    with pytest.raises(ValueError, match=message):
        config.build(kind, value, "config")
