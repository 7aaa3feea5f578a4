"""The models that ship: their names, and that everything about one is in its folder."""

import dataclasses
import pathlib
import re

import pytest
from tiny_checkpoint import write_exported

from ltx_jax import sample
from ltx_jax.checkpoints import embedded_models, hub, vocabulary_file
from ltx_jax.checkpoints.load import load_checkpoint, own_settings
from ltx_jax.training.frozen_vae import stored_configuration

ROOT = pathlib.Path(__file__).parents[1]
LARGEST = 64_000_000  # bytes of one model
LARGEST_TOGETHER = 90_000_000  # the wheel stays below 100 MB
OWN = dict(height=64, width=64, num_frames=25, frame_rate=12.0, num_inference_steps=7)


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_each_model_has_a_card_settings_and_a_vocabulary_and_all_fit_into_the_wheel():
    sizes = []
    for name in embedded_models.names():
        folder = hub.resolve(f"embedded:{name}")
        card = (folder / embedded_models.CARD).read_text()
        assert "FILL IN" not in card
        assert own_settings(f"embedded:{name}") is not None
        assert vocabulary_file.read(f"embedded:{name}") is not None
        sizes.append(size(folder))
        assert sizes[-1] <= LARGEST
    assert sum(sizes) <= LARGEST_TOGETHER
    assert hub.resolve("embedded") == hub.resolve(embedded_models.full_name("embedded"))


def test_all_names_of_models_in_the_repository_are_full():
    """So that nothing that depends on one model changes when "embedded" names another."""
    folders = ("configs", "docs", "benchmarks", "examples", "ltx_jax/assets")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    for path in files:
        if path.suffix in (".py", ".md", ".diff"):
            short = re.search(r"\"embedded\"|(--\S+|ltx-\S+) embedded\b(?!:)", path.read_text())
            assert short is None, f"{path}: {short}"


def test_an_unknown_name_is_refused_with_those_that_exist(tmp_path, capsys):
    for open_model in (hub.resolve, load_checkpoint, own_settings, stored_configuration):
        with pytest.raises(ValueError, match=r"no model 'shape' ships .*embedded:shapes"):
            open_model("embedded:shape")
    for name in ("embedded:", "embedded:..", "embedded:shapes/text_encoder"):
        with pytest.raises(ValueError, match="no model"):
            hub.resolve(name)
    arguments = ["--checkpoint", "embedded:shape", "--output_path", str(tmp_path / "a.mp4")]
    assert sample.main([*arguments, "--prompt", "a star"]) == 2
    assert "embedded:shapes" in capsys.readouterr().err


@pytest.fixture
def moons(tmp_path, monkeypatch):
    """A second model beside the one of shapes, with settings of its own."""
    write_exported(tmp_path / "moons", **OWN)
    write_exported(tmp_path / "shapes")
    monkeypatch.setattr(embedded_models, "FOLDERS", tmp_path)
    monkeypatch.setattr(embedded_models, "DEFAULT", "shapes")
    return tmp_path / "moons"


@pytest.mark.thorough
def test_a_folder_is_a_model_with_its_own_settings(moons):
    assert embedded_models.names() == ("moons", "shapes")
    model = load_checkpoint("embedded:moons")
    assert model.settings == own_settings("embedded:moons")
    cfg = sample.parse(["--checkpoint", "embedded:moons", "--prompt", "a moon"])
    for name, value in OWN.items():
        assert getattr(cfg, name) == value
    assert stored_configuration("embedded:moons") == model.vae


@pytest.mark.thorough
def test_the_default_is_one_constant(moons, monkeypatch):
    assert sample.parse(["--prompt", "a moon"]).height != OWN["height"]
    monkeypatch.setattr(embedded_models, "DEFAULT", "moons")
    cfg = sample.parse(["--prompt", "a moon"])
    assert {name: getattr(cfg, name) for name in OWN} == OWN
    assert hub.resolve("embedded") == moons


def test_what_is_stored_names_the_model_in_full(moons, monkeypatch):
    from ltx_jax.inference import outputs

    cfg = sample.parse(["--prompt", "a moon"])
    (item,) = outputs.planned_videos(cfg, 1)
    assert outputs.settings_of(cfg, item).checkpoint == "embedded:shapes"
    monkeypatch.setattr(embedded_models, "DEFAULT", "moons")
    assert outputs.settings_of(cfg, item).checkpoint == "embedded:moons"
    assert embedded_models.full_name("runs/embedded") == "runs/embedded"


def test_make_sample_suits_the_default_model():
    """Its options are those of configs/sample/shapes.py, for whichever model is the default; its
    prompt, here and in the README, is of words that this model knows."""
    makefile = (ROOT / "Makefile").read_text()
    (line,) = re.findall(r"ltx-sample (.*) --prompt", makefile)
    options = sample.parse([*line.split(), "--checkpoint", "embedded:shapes"])
    shapes = sample.parse(["--config", str(ROOT / "configs/sample/shapes.py")])
    assert options == dataclasses.replace(shapes, config=None)
    prompts = re.findall(r"PROMPT \?= (.*)", makefile)
    prompts += re.findall(r"make sample PROMPT=\"(.*)\"", (ROOT / "README.md").read_text())
    assert len(prompts) == 2
    known = vocabulary_file.read("embedded")
    assert known is not None
    assert known.hint(" ".join(prompts)) == ""
