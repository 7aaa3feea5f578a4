"""Configs are found by name or path; what is no config is refused unread, with the way out."""

import contextlib
import dataclasses
import json
import logging
import pathlib
import re

import pytest
import yaml

from ltx_jax import config
from ltx_jax.checkpoints.releases import RELEASED
from ltx_jax.config import SampleConfig, SamplingConfig, files, official_yaml

ROOT = pathlib.Path(__file__).parents[1]
RELEASES = {
    path.stem: cfg
    for path in sorted((ROOT / "configs/sample").glob("*.py"))
    if (cfg := config.load(str(path))).checkpoint
    in {file for release in RELEASED.values() for file in release.files}
}


def test_bare_names_are_unambiguous():
    stems = [path.stem for path in files.folder().rglob("*.py")]
    assert len(stems) == len(set(stems))


def test_a_config_is_found_by_name_and_by_path(tmp_path):
    path = ROOT / "configs/sample/ltxv_2b_0_9_6_dev.py"
    expected = config.load(str(path))
    with contextlib.chdir(tmp_path):
        for name in ("ltxv_2b_0_9_6_dev", "sample/ltxv_2b_0_9_6_dev", str(path), f"{path}:config"):
            assert config.load(name) == expected
            assert dataclasses.replace(config.load_sampling(name), config=None) == expected
        assert config.load("ltxv_2b") == config.load(str(ROOT / "configs/ltxv_2b.py"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ltxv_2c", r"there is no config 'ltxv_2c': did you mean 'ltxv_2b'\?"),
        ("sample/ltxv_2b_0_9_6", "did you mean 'sample/ltxv_2b_0_9_"),
        ("ltxv_2b_0.9.6_dev", r"there is no config .*: did you mean 'ltxv_2b_0_9_6_dev'\?"),
        ("elsewhere/ltxv_2b.py", r"there is no file elsewhere/ltxv_2b.py: did you mean 'ltxv_2b'"),
        ("qqqqqqqq", r"there is no config 'qqqqqqqq'$"),
    ],
)
def test_a_mistyped_name_is_refused_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        config.load(name)


@pytest.mark.parametrize("ending", [".txt", ".toml", "", ".yaml", ".json"])
def test_a_file_that_is_no_python_is_not_run(tmp_path, ending):
    file = tmp_path / f"settings{ending}"
    file.write_text(f"open({str(tmp_path / 'was run')!r}, 'w')\nconfig = 3\n")
    for read in (config.load, config.load_sampling):
        with pytest.raises(ValueError, match=f"settings{ending}"):
            read(str(file))
    assert not (tmp_path / "was run").exists()


def official(cfg: SampleConfig) -> dict:
    """Settings of ours as an official pipeline config has them."""

    def one_pass(options):
        names = {field.name for field in dataclasses.fields(SamplingConfig)}
        names &= set(official_yaml._PASS_KEYS)
        content = {name: getattr(options, name) for name in names}
        return {name: value for name, value in content.items() if value is not None}

    content = {
        "checkpoint_path": cfg.checkpoint,
        "text_encoder_model_name_or_path": cfg.text_encoder,
        "precision": "bfloat16",
        "sampler": "from_checkpoint",
        "prompt_enhancement_words_threshold": 120,
    }
    if cfg.second_pass is None:
        return content | {"pipeline_type": "base"} | one_pass(cfg)
    return content | {
        "pipeline_type": "multi-scale",
        "downscale_factor": cfg.downscale_factor,
        "spatial_upscaler_model_path": cfg.spatial_upscaler,
        "first_pass": one_pass(cfg),
        "second_pass": one_pass(cfg.second_pass),
    }


def written(folder: pathlib.Path, content: object) -> str:
    file = folder / "official.yaml"
    lists = yaml.SafeDumper
    lists.add_representer(tuple, lists.represent_list)
    file.write_text(yaml.dump(content, Dumper=lists))
    return str(file)


@pytest.mark.parametrize("name", RELEASES)
def test_an_official_pipeline_config_gives_the_settings_of_ours(name, tmp_path, caplog):
    file = written(tmp_path, official(RELEASES[name]))
    with caplog.at_level(logging.WARNING):
        cfg = config.load_sampling(file)
    assert dataclasses.replace(cfg, config=None) == RELEASES[name]
    assert "prompt_enhancement_words_threshold" in caplog.text


def test_what_stands_outside_the_passes_holds_for_both_and_official_defaults_fill_gaps(tmp_path):
    content = official(RELEASES["ltxv_13b_0_9_8_dev"])
    content |= {"stg_mode": "STG_R", "first_pass": {"stg_scale": 0}, "second_pass": {}}
    cfg = config.load_sampling(written(tmp_path, content | {"decode_timestep": 0.1}))
    assert cfg.second_pass is not None
    for options in (cfg, cfg.second_pass):
        assert options.stg_mode == "residual"
        assert options.decode_timestep == 0.1
        assert (options.num_inference_steps, options.guidance_scale) == (20, 4.5)
        assert options.decode_noise_scale is None
    assert (cfg.stg_scale, cfg.second_pass.stg_scale) == (0.0, 1.0)
    content["precision"] = "float8_e4m3fn"
    assert config.load_sampling(written(tmp_path, content)).linears == "float8"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scael": 3}, "unknown key 'guidance_scael': did you mean 'guidance_scale'?"),
        ({"second_pass": {"zzz": 3}}, "second_pass has an unknown key 'zzz'"),
        ({"second_pass": [1]}, "second_pass must hold keys"),
        ({"pipeline_type": "base"}, "one pass (base) and has first_pass, second_pass, downscale"),
        ({"pipeline_type": "other"}, "base or multi-scale, got 'other'"),
        ({"sampler": "uniform"}, "sampler 'uniform' is not supported"),
        ({"precision": "mixed_precision"}, "precision 'mixed_precision' is not supported"),
        ({"second_pass": {"stg_mode": "stg_x"}}, "stg_mode must be one of attention_values, "),
        (
            {"first_pass": {"decode_timestep": "early"}},
            "decode_timestep must be a number, got 'early'",
        ),
        (
            {"second_pass": {"stochastic_sampling": 1}},
            "stochastic_sampling must be true or false, got 1",
        ),
    ],
)
def test_what_an_official_config_cannot_say_here_is_refused_by_name(tmp_path, changes, message):
    file = written(tmp_path, official(RELEASES["ltxv_13b_0_9_8_dev"]) | changes)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        config.load_sampling(file)
    assert file in str(error.value)


def test_a_config_for_two_passes_names_what_it_lacks(tmp_path):
    content = {"pipeline_type": "multi-scale", "checkpoint_path": "a", "first_pass": {}}
    lacking = "second_pass, downscale_factor, spatial_upscaler_model_path"
    with pytest.raises(ValueError, match=f"lacks {lacking}"):
        config.load_sampling(written(tmp_path, content))


@pytest.mark.parametrize("text", ["a: [1", "- a\n- b\n", "", "\x00"])
def test_a_broken_yaml_is_refused_with_its_name(tmp_path, text):
    (tmp_path / "broken.yml").write_text(text)
    with pytest.raises(ValueError, match=r"broken\.yml"):
        config.load_sampling(str(tmp_path / "broken.yml"))


@pytest.mark.parametrize("ending", [".json", ".yaml"])
def test_deep_nesting_and_long_values_are_refused_in_one_short_message(tmp_path, ending):
    file = tmp_path / f"settings{ending}"
    file.write_text("[" * 5000)
    with pytest.raises(ValueError, match="is not readable as"):
        config.load_sampling(str(file))
    settings = {"stochastic_sampling": "x" * 10_000}
    file.write_text(json.dumps({"settings": settings} if ending == ".json" else settings))
    with pytest.raises(ValueError, match="must be true or false, got 'xxx") as error:
        config.load_sampling(str(file))
    assert len(str(error.value)) < 500


def test_a_value_where_an_object_or_a_list_belongs_is_refused(tmp_path):
    file = tmp_path / "settings.json"
    for name, message in (("second_pass", "an object"), ("conditioning_media_paths", "a list")):
        file.write_text(json.dumps({"settings": {name: 3}}))
        with pytest.raises(ValueError, match=message):
            config.load_sampling(str(file))


@pytest.mark.parametrize("ending", [".json", ".yaml"])
def test_a_byte_order_mark_belongs_to_no_setting(tmp_path, ending):
    file = tmp_path / f"settings{ending}"
    settings = {"guidance_scale": 2.5}
    text = json.dumps({"settings": settings} if ending == ".json" else settings)
    file.write_text(text, encoding="utf-8-sig")
    assert config.load_sampling(str(file)).guidance_scale == 2.5


@pytest.mark.parametrize(
    "words",
    [
        "--run.init_extra a b --run.steps 5 --run.init_redraw c",
        "--run.init_extra a --run.steps 4 --run.init-extra=b --run.init_redraw c --run.steps 5",
        "--run.init_extra=a --run.init_redraw=c --run.init_extra b --run.steps=5",
    ],
)
def test_options_of_several_values_may_be_repeated(words):
    run = config.load("shapes_tiny_vae", words.split()).run
    assert (run.init_extra, run.init_redraw, run.steps) == (("a", "b"), ("c",), 5)
