"""ltx-export writes what PyTorch's side reads."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_checkpoint import CAPTION, SETTINGS, write_checkpoint, write_exported, write_text_encoder

from ltx_jax import LTXPipeline, export
from ltx_jax.checkpoints import diffusers, embedded_models
from ltx_jax.checkpoints.load import load_checkpoint, own_settings


@pytest.mark.thorough
def test_an_exported_checkpoint_is_the_same_file_and_a_diffusers_directory(tmp_path, capsys):
    write_checkpoint(tmp_path / "tiny.safetensors", with_vae=False)
    out = tmp_path / "out"
    assert export.main([str(tmp_path / "tiny.safetensors"), str(out)]) == 0, capsys.readouterr().err
    before, after = (
        load_file(p) for p in (tmp_path / "tiny.safetensors", out / "model.safetensors")
    )
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert diffusers.is_directory(out / "diffusers")
    config = json.loads((out / "diffusers/transformer/config.json").read_text())
    assert config["num_layers"] == 2


@pytest.mark.thorough
def test_what_diffusers_cannot_express_is_said_and_the_official_file_stays(
    tmp_path, capsys, caplog
):
    source = tmp_path / "tiny.safetensors"
    write_checkpoint(source)
    assert export.main([str(source), str(tmp_path / "out")]) == 0
    assert "no diffusers directory" in caplog.text
    assert "diffusers' decoder" in caplog.text
    both = ["--layouts", "official", "diffusers"]
    assert export.main([str(source), str(tmp_path / "asked"), *both]) == 2
    assert "model.safetensors written: diffusers' decoder" in capsys.readouterr().err
    for out in ("out", "asked"):
        assert [path.name for path in (tmp_path / out).iterdir()] == ["model.safetensors"]


def test_a_folder_that_holds_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "precious").touch()
    assert export.main(["anything", str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["missing.safetensors", "."])
def test_what_is_no_checkpoint_is_one_line(source, tmp_path, capsys):
    assert export.main([source, str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_an_exported_folder_is_a_checkpoint_with_its_text_encoder_and_settings(tmp_path, capsys):
    source, out = write_exported(tmp_path / "source"), tmp_path / "out"
    arguments = [str(source), str(out), "--dtype", "bfloat16", "--layouts", "official"]
    assert export.main(arguments) == 0, capsys.readouterr().err
    names = {"model.safetensors", "settings.json", "text_encoder", "tokenizer"}
    assert {path.name for path in out.iterdir()} == names
    before, after = load_checkpoint(source), load_checkpoint(out)
    assert after.settings == before.settings == SETTINGS == own_settings(out)
    (_, encoder, tokens), (_, wide, most) = after.text_encoder, before.text_encoder
    assert tokens == most
    for params in (after.transformer_params, after.vae_params, encoder):
        assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    for narrow, full in (
        (after.transformer_params, before.transformer_params),
        (after.vae_params, before.vae_params),
        (encoder, wide),
    ):
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), full)
        jax.tree.map(np.testing.assert_array_equal, narrow, rounded)
    np.testing.assert_array_equal(after.statistics.std, before.statistics.std)
    assert after.source_hash != before.source_hash


@pytest.mark.thorough
def test_settings_and_a_text_encoder_can_be_put_beside_a_file(tmp_path, capsys):
    write_checkpoint(tmp_path / "tiny.safetensors")
    write_text_encoder(tmp_path / "t5", CAPTION)
    settings = tmp_path / "settings.py"
    settings.write_text(
        "from ltx_jax.config import SampleConfig\n"
        "config = SampleConfig(checkpoint='a', num_frames=17, prompt='left out')\n"
    )
    out = tmp_path / "out"
    arguments = [str(tmp_path / "tiny.safetensors"), str(out), "--layouts", "official"]
    arguments += ["--text_encoder", str(tmp_path / "t5"), "--settings", str(settings)]
    assert export.main(arguments) == 0, capsys.readouterr().err
    pipe = LTXPipeline(load_checkpoint(out))
    assert pipe.options.num_frames == 17
    assert pipe.text_encoder is not None
    assert pipe.text_encoder.max_tokens == 16


@pytest.mark.thorough
def test_the_model_that_ships_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_models, "FOLDERS", tmp_path)
    monkeypatch.setattr(embedded_models, "DEFAULT", "shapes")
    with pytest.raises(ValueError, match=r"no model 'shapes' ships .*, but none at all: name one"):
        load_checkpoint("embedded")
    write_exported(tmp_path / "shapes")
    assert load_checkpoint("embedded").settings == own_settings("embedded") == SETTINGS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not readable as JSON"),
        ("[]", "holds no JSON object"),
        ('{"settings": {"heigth": 64}}', "has no field 'heigth': did you mean 'height'"),
    ],
)
def test_damaged_settings_are_named(tmp_path, content, message):
    folder = write_exported(tmp_path)
    (folder / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=f"settings.json.*{message}"):
        load_checkpoint(folder)
