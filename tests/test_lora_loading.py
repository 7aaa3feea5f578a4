"""Adapters in a pipeline: what is read, kept in memory, and there again after an error."""

import os

import jax
import numpy as np
import pytest
from test_adapter_files import random_changes
from tiny_checkpoint import write_exported

from ltx_jax import LTXPipeline
from ltx_jax.checkpoints import adapter_writing, adapters, keys, tensors
from ltx_jax.checkpoints.adapter_metadata import Origin
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.diffusion.denoiser import Fast, Plain
from ltx_jax.inference.loras import Loras


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_exported(tmp_path_factory.mktemp("model"))


@pytest.fixture
def lora(folder, tmp_path):
    path = tmp_path / "lora.safetensors"
    adapter_writing.write(path, random_changes(load_checkpoint(folder).transformer))
    return path


@pytest.fixture
def read_names(monkeypatch):
    """Names of the tensors that are read from safetensors files."""
    names, read = [], tensors.StoredTensor.read

    def recording_read(tensor):
        names.append(tensor.name)
        return read(tensor)

    monkeypatch.setattr(tensors.StoredTensor, "read", recording_read)
    return names


@pytest.fixture
def pipe(folder):
    """A pipeline of the fast form, which keeps no stored parameters."""
    pipe = LTXPipeline.from_pretrained(folder, dtype="float32", fast=True)
    assert pipe.checkpoint.transformer_params is None
    return pipe


@pytest.mark.thorough
def test_a_merge_reads_the_transformer_alone_and_an_adapter_once(pipe, lora, read_names):
    pipe.load_lora(lora, 0.5)
    assert any("lora_A" in name for name in read_names)
    assert any(name.startswith("model.diffusion_model.") for name in read_names)
    assert not any(name.startswith("vae.") for name in read_names)
    read_names.clear()
    pipe.load_lora(lora, 1.0)
    assert not any("lora_" in name for name in read_names)
    pipe.unload_lora()
    pipe.load_lora(lora)
    os.utime(lora, ns=(0, 0))
    read_names.clear()
    pipe.load_lora(lora, 0.25)
    assert any("lora_A" in name for name in read_names)


def test_a_file_that_was_read_again_is_another_adapter(folder, lora):
    cfg = load_checkpoint(folder).transformer
    first, again = adapters.read(lora, cfg), adapters.read(lora, cfg)
    apart = ((first, 1.0),)
    loras = Loras(merged=((first, 1.0),), apart=apart)
    assert not Loras(merged=((again, 1.0),), apart=apart).differ_in_strength_alone(loras)
    assert Loras(loras.merged, ((first, 0.5),)).differ_in_strength_alone(loras)


@pytest.mark.thorough
def test_a_merge_takes_the_memory_of_loading(pipe, lora, monkeypatch):
    """While the new parameters are made, neither the old ones nor unmerged ones are there."""
    merge, checked = adapters.merge, []

    def checking_merge(params, *arguments, **options):
        assert pipe.params is None
        result = merge(params, *arguments, **options)
        checked.append({path: x.is_deleted() for path, x in keys.flat(params) if "kernel" in path})
        return result

    monkeypatch.setattr(adapters, "merge", checking_merge)
    pipe.load_lora(lora)
    assert len(checked) == 1
    assert all(checked[0].values())
    assert len(checked[0]) == 17


@pytest.mark.thorough
def test_parameters_that_a_pipeline_keeps_are_not_given_away(folder, lora):
    pipe = LTXPipeline.from_pretrained(folder, dtype="float32", fast=False)
    before = jax.tree.map(np.array, pipe.checkpoint.transformer_params)
    pipe.load_lora(lora)
    jax.tree.map(np.testing.assert_array_equal, before, pipe.checkpoint.transformer_params)


@pytest.mark.thorough
@pytest.mark.parametrize("fast", [False, True])
def test_after_an_error_the_adapters_are_those_before(folder, lora, fast, monkeypatch):
    pipe = LTXPipeline.from_pretrained(folder, dtype="float32", fast=fast)
    pipe.load_lora(lora, 0.5)
    before = pipe("a fox", output="latents")
    merge = adapters.merge

    def failing_merge(*arguments, **options):
        monkeypatch.setattr(adapters, "merge", merge)
        raise MemoryError("too little")

    monkeypatch.setattr(adapters, "merge", failing_merge)
    with pytest.raises(MemoryError, match="too little"):
        pipe.load_lora(lora, 1.0)
    assert [strength for _, strength in pipe.loras] == [0.5]
    np.testing.assert_array_equal(pipe("a fox", output="latents"), before)


def test_an_adapter_of_another_base_is_named(folder, tmp_path, caplog):
    pipe = LTXPipeline.from_pretrained(folder, dtype="float32", fast=False)
    changes = random_changes(pipe.transformer)
    for base_hash in (pipe.checkpoint.base_hash("transformer"), "f" * 64):
        metadata = Origin(base="a-fox", base_hash=base_hash).to_metadata()
        adapter_writing.write(tmp_path / "a.safetensors", changes, metadata=metadata)
        caplog.clear()
        pipe.load_lora(tmp_path / "a.safetensors")
        pipe.unload_lora()
        assert ("was made for a-fox" in caplog.text) is (base_hash == "f" * 64)


@pytest.mark.thorough
def test_an_adapter_kept_apart_leaves_the_fast_form_and_says_so(pipe, lora, caplog):
    def notices():
        return caplog.text.count("are computed by the plain form of the transformer")

    pipe.load_lora(lora)
    assert isinstance(pipe.denoiser, Fast)
    assert notices() == 0
    for strength in (1.0, 0.5):
        pipe.load_lora(lora, strength, merge=False)
        assert isinstance(pipe.denoiser, Plain)
        assert notices() == 1
    pipe.unload_lora()
    assert isinstance(pipe.denoiser, Fast)
