"""ltx-export with adapters: merged into a checkpoint, extracted from two, exported from a run."""

import dataclasses
import pathlib
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_checkpoint
from safetensors.numpy import save_file
from test_adapter_files import random_changes, random_differences

from ltx_jax import export
from ltx_jax.checkpoints import (
    adapter_extraction,
    adapter_writing,
    adapters,
    keys,
    official,
    releases,
    tensors,
)
from ltx_jax.checkpoints.adapter_changes import Adapter, Difference, LowRank
from ltx_jax.checkpoints.adapter_metadata import Origin
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import TransformerConfig
from ltx_jax.runtime import sharding

DIFFERENCES = (".bias", "norm.weight", "scale_shift_table")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    tiny_checkpoint.write_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def cfg(base):
    return load_checkpoint(base).transformer


@pytest.fixture(scope="module")
def loras(base, cfg, tmp_path_factory):
    """Two adapters: one of everything, one of attention in another naming."""
    folder = tmp_path_factory.mktemp("loras")
    whole = random_changes(cfg) | random_differences(cfg, DIFFERENCES)
    adapter_writing.write(folder / "whole.safetensors", whole)
    some = {name: x for name, x in random_changes(cfg).items() if ".attn1.to_" in name}
    adapter_writing.write(folder / "some.safetensors", some, naming="diffusers")
    return [(folder / "whole.safetensors", 0.7), (folder / "some.safetensors", -0.4)]


def run(*arguments):
    return export.main([str(argument) for argument in arguments])


def as_dtype(path, kind, to):
    """A copy of a checkpoint with its matrices in another dtype."""
    file = tensors.open_file(path)
    values = {
        name: x.read().astype(kind) if len(x.shape) == 2 else x.read()
        for name, x in file.tensors.items()
    }
    pending = {name: tensors.pending(x) for name, x in values.items()}
    tensors.write_file(to, pending, {**file.metadata, "note": "kept"})
    return to


def read_file(path):
    return {name: x.read() for name, x in tensors.open_file(path).tensors.items()}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "float8_e4m3fn"])
def test_a_merged_checkpoint_is_the_one_loaded_with_the_adapters(
    base, cfg, loras, kind, tmp_path, capsys
):
    source = as_dtype(base, np.dtype(kind), tmp_path / "source.safetensors")
    merge = [f"{path}:{strength}" for path, strength in loras]
    out = tmp_path / "out"
    assert run(source, out, "--layouts", "official", "--merge", *merge) == 0, capsys.readouterr()
    loaded = load_checkpoint(source)
    read = [(adapters.read(path, cfg), strength) for path, strength in loras]
    expected = adapters.merge(loaded.transformer_params, cfg, read)
    before, after = read_file(source), read_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert value.dtype == before[name].dtype, name
        if not name.startswith("model.diffusion_model."):
            assert value.tobytes() == before[name].tobytes()
    merged = load_checkpoint(out)
    for x, y in zip(
        jax.tree.leaves(merged.transformer_params), jax.tree.leaves(expected), strict=True
    ):
        if y.dtype == "bfloat16" and kind == "float8_e4m3fn":  # the dtype of 8-bit parameters
            y = y.astype(jnp.float8_e4m3fn).astype(x.dtype)
        np.testing.assert_array_equal(x, y)
    metadata = tensors.open_file(out / "model.safetensors").metadata
    assert metadata["modelspec.merged_from"] == "whole.safetensors:0.7, some.safetensors:-0.4"
    assert metadata["note"] == "kept"


@pytest.mark.thorough
def test_merging_into_an_exported_folder_keeps_its_other_parts(loras, tmp_path, capsys):
    source, out = tiny_checkpoint.write_exported(tmp_path / "source"), tmp_path / "out"
    arguments = ("--layouts", "official", "--merge", loras[0][0])
    assert run(source, out, *arguments) == 0, capsys.readouterr().err
    for name in ("settings.json", "text_encoder/model.safetensors"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert (out / "model.safetensors").read_bytes() != (source / "model.safetensors").read_bytes()


def test_a_merge_that_is_not_finite_leaves_no_file(base, cfg, tmp_path, capsys):
    source = as_dtype(base, np.float16, tmp_path / "source.safetensors")
    change = {"proj_out.weight": LowRank(np.full((1, 32), 300, "f"), np.full((8, 1), 300, "f"))}
    adapter_writing.write(tmp_path / "a.safetensors", change)
    out = tmp_path / "out"
    assert run(source, out, "--layouts", "official", "--merge", tmp_path / "a.safetensors") == 2
    assert "proj_out.weight with the adapters is not finite as float16" in capsys.readouterr().err
    assert not list(out.iterdir())
    source = as_dtype(base, ml_dtypes.float8_e4m3fn, tmp_path / "float8.safetensors")
    change = {"proj_out.weight": LowRank(np.full((1, 32), 30, "f"), np.full((8, 1), 30, "f"))}
    adapter_writing.write(tmp_path / "b.safetensors", change)
    assert run(source, out, "--layouts", "official", "--merge", tmp_path / "b.safetensors") == 2
    assert "too large for float8_e4m3fn" in capsys.readouterr().err


def test_parameters_left_in_the_file_are_those_that_are_loaded(base, tmp_path):
    folder = tiny_checkpoint.write_exported(tmp_path / "folder")
    for source in (base, folder):
        loaded, left = (load_checkpoint(source, in_memory=x) for x in (True, False))
        for name in ("transformer_params", "vae_params"):
            pairs = zip(
                keys.flat(getattr(left, name)), keys.flat(getattr(loaded, name)), strict=True
            )
            for (path, x), (other, y) in pairs:
                assert (path, x.shape, x.dtype) == (other, y.shape, y.dtype)
                assert not isinstance(x, jax.Array)
                np.testing.assert_array_equal(np.asarray(x), y)


def test_a_base_of_another_hash_is_named(base, cfg, tmp_path, caplog):
    loaded = load_checkpoint(base)
    change = {"proj_out.weight": LowRank(np.ones((1, 32), "f"), np.ones((8, 1), "f"))}
    for base_hash, warns in ((loaded.source_hash, False), ("f" * 64, True), ("", False)):
        caplog.clear()
        origin = Origin(base="a-fox", base_hash=base_hash)
        path = tmp_path / "a.safetensors"
        adapter_writing.write(path, change, metadata=origin.to_metadata())
        adapters.check_base(adapters.read(path, cfg), loaded)
        assert ("was made for a-fox (ffffffff)" in caplog.text) is warns
    with_vae = load_checkpoint(base, vae=base)
    assert with_vae.base_hash("transformer") == loaded.source_hash != with_vae.source_hash


@pytest.mark.parametrize(
    ("network", "base", "own", "difference"),
    [
        ("transformer", "2b-0.9.6-dev", "2b-0.9.6-distilled", None),
        ("transformer", "2b-0.9.1", "2b-0.9.5", "causal_temporal_positioning is False there and T"),
        ("transformer", "13b-0.9.8-dev", "2b-0.9.8-distilled", "num_layers is 48 there and 28"),
        ("vae", "2b-0.9.5", "13b-0.9.8-dev", None),
        ("vae", "2b-0.9.0", "2b-0.9.1", "decoder_blocks is"),
    ],
)
def test_a_base_of_another_version_is_refused(network, base, own, difference, caplog):
    """Also where shapes agree: the transformers of 0.9.1 and 0.9.5 have the same."""
    checkpoint = Checkpoint(
        transformer=releases.network(own, "transformer"),
        vae=releases.network(own, "vae"),
        source_hash="e" * 64,
    )
    metadata = Origin(base=base, base_hash="f" * 64).to_metadata(network)
    adapter = Adapter(pathlib.Path("a"), {}, metadata, network=network)
    if difference is None:
        adapters.check_base(adapter, checkpoint)
        assert f"was made for {base} (ffffffff), and this is another" in caplog.text
        return
    with pytest.raises(ValueError, match=f"made for {base}, another version .*: {difference}"):
        adapters.check_base(adapter, checkpoint)


def tuned_checkpoint(base, changes, to):
    """The base with changes at full strength, in float32."""
    loaded = load_checkpoint(base)
    adapter = adapters.Adapter(to, changes, {})
    params = adapters.merge(loaded.transformer_params, loaded.transformer, [(adapter, 1.0)])
    official.write(to, dataclasses.replace(loaded, transformer_params=params))
    return to


@pytest.mark.thorough
@pytest.mark.parametrize("how", [("--rank", "4"), ("--energy", "0.9999")])
@pytest.mark.parametrize("naming", ["comfy", "diffusers"])
def test_a_change_of_low_rank_is_recovered(base, cfg, how, naming, tmp_path, capsys):
    changes = random_changes(cfg)
    ends = DIFFERENCES if naming == "comfy" else ("to_q.bias", "net.2.bias")
    changes |= random_differences(cfg, ends)
    tuned = tuned_checkpoint(base, changes, tmp_path / "tuned.safetensors")
    out = tmp_path / "lora.safetensors"
    arguments = ("--extract_lora", base, *how, "--format", naming, "--trigger", "a fox")
    assert run(tuned, out, *arguments) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2] == f"{len(changes)} tensors differ; error 0.00% of the whole difference"
    adapter = adapters.read(out, cfg)
    if how[0] == "--energy":
        for name, change in adapter.changes.items():
            if isinstance(change, LowRank):
                assert len(change.down) == len(changes[name].down), name
    loaded, wanted = load_checkpoint(base), load_checkpoint(tuned)
    params = adapters.merge(loaded.transformer_params, cfg, [(adapter, 1.0)])
    leaves = zip(
        *(jax.tree.leaves(one) for one in (params, wanted.transformer_params)), strict=True
    )
    for x, y in leaves:
        np.testing.assert_allclose(x, y, atol=3e-6)
    origin = Origin.from_metadata(adapter.metadata)
    assert (origin.trigger, origin.base) == ("a fox", "base.safetensors")
    assert origin.base_hash == loaded.source_hash
    assert origin.rank == (4 if how[0] == "--rank" else None)
    assert adapter.metadata["ltx_jax.extracted_from"] == "tuned.safetensors"


def decaying(shape, seed=0):
    """A matrix whose singular values fall like those of fine-tuned weights: 1, 2^-0.6, ..."""
    draw = np.random.default_rng(seed)
    u, _, v = np.linalg.svd(draw.standard_normal(shape), full_matrices=False)
    return ((u * np.arange(1, min(shape) + 1) ** -0.6) @ v).astype(np.float32)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (512, 384)])
@pytest.mark.parametrize("rank", [1, 8, 40, 150])
def test_the_product_is_as_close_as_numpys_best_one(shape, rank):
    """Large ranks are computed exactly, small ones from a sketch, whose loss is below 0.1%."""
    matrix = decaying(shape)
    u, s, v = np.linalg.svd(np.float64(matrix), full_matrices=False)
    best = np.linalg.norm((u[:, :rank] * s[:rank]) @ v[:rank] - matrix)
    up, down = adapter_extraction.low_rank(jnp.asarray(matrix), rank, None)
    assert (up.shape, down.shape) == ((shape[0], rank), (rank, shape[1]))
    error = np.linalg.norm(np.float64(up) @ np.float64(down) - matrix)
    assert best * (1 - 1e-4) < error < best * 1.001
    np.testing.assert_allclose(np.linalg.norm(up, axis=0), np.sqrt(s[:rank]), rtol=0.05)


@pytest.mark.parametrize("energy", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("shape", [(300, 200), (384, 512)])
def test_the_energy_decides_the_rank(shape, energy):
    matrix = decaying(shape, 1)
    squares = np.square(np.linalg.svd(np.float64(matrix), compute_uv=False))
    wanted = int(np.searchsorted(np.cumsum(squares), energy * squares.sum())) + 1
    up, down = adapter_extraction.low_rank(jnp.asarray(matrix), None, energy)
    assert len(down) == pytest.approx(wanted, abs=max(1, wanted // 50))
    held = 1 - (np.linalg.norm(np.float64(up) @ np.float64(down) - matrix) ** 2 / squares.sum())
    assert held >= energy - 1e-3


def test_the_error_of_each_tensor_is_that_of_what_is_stored(base, cfg, tmp_path):
    draw = np.random.default_rng(3)
    name = "transformer_blocks.1.ff.net.2.weight"
    shape = keys.stored_shapes(keys.transformer_leaves(keys.transformer_boxed(cfg)))[name]
    changes = {name: Difference(draw.standard_normal(shape).astype(np.float32))}
    tuned = tuned_checkpoint(base, changes, tmp_path / "tuned.safetensors")
    models = [load_checkpoint(path, in_memory=False) for path in (base, tuned)]
    (one,) = adapter_extraction.extract(*models, rank=5, dtype="bfloat16")
    assert one.name == name
    assert one.change.up.dtype == "bfloat16"
    product = np.float64(one.change.up) @ np.float64(one.change.down)
    lacking = changes[name].difference - product
    assert one.error == pytest.approx(np.linalg.norm(lacking), rel=1e-4)
    assert one.size == pytest.approx(np.linalg.norm(changes[name].difference), rel=1e-4)


def test_what_cannot_be_extracted_is_one_line(base, cfg, tmp_path, capsys):
    norms = random_differences(cfg, ("q_norm.weight",))
    tuned = tuned_checkpoint(base, norms, tmp_path / "tuned.safetensors")
    out = tmp_path / "a.safetensors"
    (tmp_path / "there.safetensors").touch()
    rank = ("--rank", "2")
    for source, to, arguments, message in (
        (base, out, rank, "equal: there is nothing to extract"),
        (tuned, out, (*rank, "--format", "diffusers"), "have no key for the change of"),
        (tuned, tmp_path / "a", rank, "an adapter is one file"),
        (tuned, tmp_path / "there.safetensors", rank, "exists: choose another"),
        (tuned, out, (), "give a rank above 0 or an energy"),
        (tuned, out, (*rank, "--energy", "0.5"), "give a rank above 0 or an energy"),
        (tuned, out, ("--energy", "1.5"), "give a rank above 0 or an energy"),
        (tuned, out, ("--energy", "0"), "give a rank above 0 or an energy"),
        (tuned, out, ("--rank", "0"), "give a rank above 0 or an energy"),
        (tuned, out, ("--rank", "2", "--energy", "2"), "give a rank above 0 or an energy"),
        (tuned, out, (*rank, "--settings", "x"), "--settings is no option of adapters"),
    ):
        assert run(source, to, "--extract_lora", base, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not out.exists()
    for arguments, message in (
        (rank, "--rank is for --extract_lora BASE"),
        ((*rank, "--format", "comfy"), "--rank is for --extract_lora BASE"),
        (("--format", "comfy"), "is no run that trains an adapter"),
    ):
        assert run(base, tmp_path / "b.safetensors", *arguments) == 2
        assert message in capsys.readouterr().err


def test_transformers_of_two_sizes_are_named(base, tmp_path, capsys):
    other = tmp_path / "other.safetensors"
    file = tensors.open_file(base)
    text = file.metadata["config"].replace('"num_layers": 2', '"num_layers": 1')
    assert text != file.metadata["config"]
    values = {n: x.read() for n, x in file.tensors.items() if "transformer_blocks.1." not in n}
    save_file(values, other, {"config": text})
    out = tmp_path / "a.safetensors"
    assert run(other, out, "--extract_lora", base, "--rank", "2") == 2
    assert "of different sizes: transformer_blocks.1." in capsys.readouterr().err


@pytest.mark.thorough
def test_merging_and_extracting_hold_one_tensor_at_a_time(tmp_path, capsys):
    """A model of 67 MB whose largest matrix has 1 MB. Only what numpy allocates is traced: that is
    what holds the parameters of a checkpoint that is loaded on a CPU."""
    cfg = TransformerConfig(
        num_layers=16,
        num_attention_heads=8,
        attention_head_dim=32,
        in_channels=8,
        out_channels=8,
        caption_channels=16,
    )
    boxed = keys.transformer_boxed(cfg)
    params = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), sharding.unbox(boxed))
    source, tuned = tmp_path / "base.safetensors", tmp_path / "tuned"
    official.write(source, Checkpoint(transformer=cfg, transformer_params=params))
    size = source.stat().st_size
    assert size > 60e6
    del params
    name = "transformer_blocks.3.ff.net.0.proj.weight"
    change = LowRank(np.ones((2, 256), "f"), np.ones((1024, 2), "f"))
    adapter_writing.write(tmp_path / "a.safetensors", {name: change})
    merge = (source, tuned, "--layouts", "official", "--merge", tmp_path / "a.safetensors")
    extract = (tuned, tmp_path / "b.safetensors", "--extract_lora", source, "--rank", "2")
    for arguments in (merge, extract):
        tracemalloc.start()
        try:
            assert run(*arguments) == 0, capsys.readouterr().err
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < size / 4
    (found,) = adapters.read(tmp_path / "b.safetensors", cfg).changes.items()
    assert found[0] == name
    # Rounding of the decomposition in float32, relative to the norm of the matrix.
    assert np.linalg.norm(found[1].up @ found[1].down - 2.0) < 1e-5 * 2 * (1024 * 256) ** 0.5
