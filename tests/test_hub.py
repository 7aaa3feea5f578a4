"""Names of repositories where a path would do; no network."""

import contextlib

import huggingface_hub.constants
import huggingface_hub.errors
import pytest
from checkpoint_files import random_tensors, raw_config, write_official

from ltx_jax.checkpoints import hub
from ltx_jax.checkpoints.load import load_checkpoint


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network, and an empty cache: its folder."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached(cache, repository):
    """The folder of a repository's files in the cache."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    return folder / "snapshots" / commit


def test_what_exists_is_taken_as_it_is(tmp_path):
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(str(tmp_path)) == tmp_path


def test_offline_a_missing_file_says_what_to_download_and_where_to_put_it(offline):
    name = "Lightricks/LTX-Video/ltxv-2b-0.9.6-dev-04-25.safetensors"
    with pytest.raises(ValueError, match="cannot be reached") as error:
        load_checkpoint(name)
    message = str(error.value)
    file = name.rpartition("/")[2]
    assert f"hf download Lightricks/LTX-Video {file} --local-dir DIR" in message
    assert f"give DIR/{file} as the path" in message


def test_offline_a_missing_repository_says_what_to_download(offline):
    with pytest.raises(ValueError, match="cannot be reached") as error:
        load_checkpoint("some-org/a-model")
    assert "hf download some-org/a-model" in str(error.value)
    assert "--include 'vae/*.safetensors'" in str(error.value)


def test_a_file_in_the_cache_is_loaded_offline(offline):
    raw = raw_config("0.9.0")
    raw.pop("transformer")
    folder = cached(offline, "org/repo")
    write_official(folder / "small.safetensors", raw, random_tensors(raw))
    loaded = load_checkpoint("org/repo/small.safetensors")
    assert loaded.vae is not None


def test_a_directory_in_the_cache_is_found_offline(offline):
    folder = cached(offline, "org/repo")
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text("{}")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    assert hub.resolve("org/repo") == folder
    with pytest.raises(ValueError, match=r"_class_name is missing|is empty"):
        load_checkpoint("org/repo")


def test_a_repository_without_such_files_says_to_name_one(offline):
    cached(offline, "org/single-files")
    with pytest.raises(ValueError, match=r"org/single-files/FILE\.safetensors"):
        load_checkpoint("org/single-files")


@pytest.mark.parametrize(
    "name", ["nowhere.safetensors", "nowhere/a.safetensors", "/a/b", "./a/b", "a/b?", "nowhere"]
)
def test_what_can_be_no_repository_is_a_missing_path(name):
    with pytest.raises(ValueError, match=r"does not exist\. Give a file, a folder"):
        hub.resolve(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/two_clip", r"does not exist \(did you mean runs/two_clips\?\)"),
        ("runs/two_clips/model.safetensors", "does not exist"),
        ("runs/other/model.gguf", "does not exist"),
        ("models/ltxv/0.9.6", "does not exist"),
        ("models/ltxv.gguf", "does not exist"),
        ("models/ltxv/config.yaml", "does not exist"),
    ],
)
def test_nothing_is_asked_of_the_hub_for_what_looks_like_a_path(
    tmp_path, monkeypatch, name, message
):
    (tmp_path / "runs" / "two_clips").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with contextlib.chdir(tmp_path), pytest.raises(ValueError, match=message):
        hub.resolve(name)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "neither a local path nor a public Hugging Face repository"),
        ("GatedRepoError", "is gated: accept its terms"),
        ("EntryNotFoundError", "has no file b.safetensors"),
        ("HfHubHTTPError", "cannot be reached.*hf download"),
    ],
)
def test_every_refusal_has_its_own_message(monkeypatch, error, message):
    kind = getattr(huggingface_hub.errors, error)

    def refuse(*_, **__):
        raise kind.__new__(kind, "no")  # its constructor wants a response

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(ValueError, match=message):
        hub.resolve("org/repo/b.safetensors")
