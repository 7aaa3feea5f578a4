"""A run's configuration: as older versions wrote it, and what of it may change."""

import dataclasses
import json
import pathlib

import pytest

from ltx_jax.checkpoints import run_config
from ltx_jax.config import (
    DiscriminatorConfig,
    ExecutionConfig,
    T5Config,
    TrainTransformer,
    TrainVAE,
    TransformerConfig,
    VAEConfig,
)

# Written by the version before execution was apart from the networks.
OLDER = pathlib.Path(__file__).parent / "golden" / "older_runs"
HALF = ExecutionConfig(dtype="bfloat16")


def test_a_vae_run_of_an_older_version_is_read():
    cfg = run_config.read_config(OLDER / "vae")
    assert isinstance(cfg, TrainVAE)
    assert cfg.execution == cfg.disc_execution == HALF
    assert (cfg.model.latent_channels, cfg.model.timestep_conditioning) == (64, True)
    assert cfg.discriminator == DiscriminatorConfig(base_channels=32, max_channels=128, levels=3)


def test_a_transformer_run_of_an_older_version_is_read():
    cfg = run_config.read_config(OLDER / "transformer")
    assert isinstance(cfg, TrainTransformer)
    assert (cfg.execution, cfg.text_execution) == (HALF, ExecutionConfig())
    assert (cfg.model.in_channels, cfg.text_encoder.d_model) == (64, 64)
    vae = run_config.read_vae(OLDER / "transformer" / "vae")
    assert (vae.cfg, vae.execution) == (run_config.read_config(OLDER / "vae").model, HALF)


@pytest.mark.parametrize(
    ("network", "execution", "settings"),
    [
        ("model", "execution", {"attention": "plain", "remat": "attention", "dtype": "float16"}),
        ("model", "execution", {"param_dtype": "bfloat16"}),
        ("text_encoder", "text_execution", {"dtype": "bfloat16", "param_dtype": "float16"}),
    ],
)
def test_each_setting_of_execution_moves_to_where_it_is_now(network, execution, settings, tmp_path):
    content = json.loads((OLDER / "transformer" / "config.json").read_text())
    content["config"][network] |= settings
    (tmp_path / "config.json").write_text(json.dumps(content))
    cfg = run_config.read_config(tmp_path)
    before = run_config.read_config(OLDER / "transformer")
    moved = dataclasses.replace(getattr(before, execution), **settings)
    assert cfg == dataclasses.replace(before, **{execution: moved})


def test_settings_of_execution_in_a_newer_file_lie_in_one_place(tmp_path):
    run_config.write_config(tmp_path, run_config.read_config(OLDER / "transformer"))
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    assert "dtype" not in content["config"]["model"]
    content["config"]["model"]["dtype"] = "float32"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config\.model has no field 'dtype'"):
        run_config.read_config(tmp_path)


def test_a_vae_is_written_and_read_with_its_execution(tmp_path):
    vae = run_config.read_vae(OLDER / "transformer" / "vae")
    run_config.write_vae(tmp_path, vae)
    assert run_config.read_vae(tmp_path) == vae


def test_networks_hold_no_setting_of_execution():
    execution = {field.name for field in dataclasses.fields(ExecutionConfig)}
    for network in (TransformerConfig, VAEConfig, T5Config, DiscriminatorConfig):
        assert not execution & {field.name for field in dataclasses.fields(network)}


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("execution.attention", True),
        ("execution.remat", True),
        ("execution.dtype", False),
        ("execution.param_dtype", False),
        ("disc_execution.dtype", False),
        ("mesh.fsdp", True),
        ("run.steps", True),
        ("run.seed", False),
        ("data.threads", True),
        ("data.height", False),
        ("model.num_layers", False),
    ],
)
def test_what_may_change_when_a_run_goes_on(name, free):
    assert run_config.may_change(name) == free


def test_an_older_run_goes_on_with_another_attention(tmp_path):
    folder = run_config.locate(tmp_path)
    stored = run_config.read_config(OLDER / "transformer")
    plain = dataclasses.replace(stored.execution, attention="plain", remat="full")
    run_config.check_same(stored, dataclasses.replace(stored, execution=plain), folder)
    exact = dataclasses.replace(stored.execution, dtype="float32")
    with pytest.raises(ValueError, match=r"execution\.dtype = 'bfloat16', and now it is 'float32'"):
        run_config.check_same(stored, dataclasses.replace(stored, execution=exact), folder)
