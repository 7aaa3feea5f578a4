"""python -m ltx_jax.export writes what PyTorch's side reads."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_checkpoint import write_checkpoint

from ltx_jax import export
from ltx_jax.checkpoints import diffusers


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


def test_what_diffusers_cannot_express_is_said_and_the_official_file_stays(tmp_path, capsys):
    write_checkpoint(tmp_path / "tiny.safetensors")
    assert export.main([str(tmp_path / "tiny.safetensors"), str(tmp_path / "out")]) == 2
    assert "diffusers' decoder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]


def test_a_folder_that_holds_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "precious").touch()
    assert export.main(["anything", str(tmp_path)]) == 2
    assert "no empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["missing.safetensors", "."])
def test_what_is_no_checkpoint_is_one_line(source, tmp_path, capsys):
    assert export.main([source, str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
