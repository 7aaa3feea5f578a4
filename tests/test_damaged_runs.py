"""Damage of the steps that a run has saved: it is noticed, and the step before is used."""

import random
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_runs import as_shapes, begun, same, steps_of, transformer_run, vae_plus

from ltx_jax.checkpoints import checksums, runs
from ltx_jax.checkpoints.load import load_checkpoint


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    """A run of three steps, with arrays of several dtypes and shapes, and the latest of them."""
    path = tmp_path_factory.mktemp("three_steps")
    draw = np.random.default_rng(0)
    run = begun(path, keep=3)
    for step in (1, 2, 3):
        parts = {
            "params": {
                f"layer{i}": {
                    "kernel": jnp.asarray(draw.standard_normal((40, 30)), jnp.float32),
                    "bias": jnp.zeros(30, jnp.bfloat16),
                }
                for i in range(3)
            },
            "state": {"step": jnp.asarray(step), "mask": jnp.arange(300) % step == 0},
        }
        run.save(step, parts)
    run.close()
    return path, parts


def notices(caplog):
    return [one.getMessage() for one in caplog.records if one.name == runs.__name__]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["cut", "flipped", "deleted"])
def test_every_damage_of_the_newest_step_is_noticed(three_steps, kind, tmp_path, caplog):
    whole, parts = three_steps
    draw = random.Random(kind)
    shapes = {name: as_shapes(tree) for name, tree in parts.items()}
    files = sorted(p.relative_to(whole) for p in whole.glob("run/steps/3/**/*") if p.is_file())
    harmless = 0
    for number in range(30):
        path = tmp_path / str(number)
        shutil.copytree(whole, path)
        file = path / draw.choice(files)
        content = bytearray(file.read_bytes())
        if kind == "cut":
            file.write_bytes(content[: draw.randrange(len(content))])
        elif kind == "flipped":
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            file.write_bytes(content)
        else:
            file.unlink()
        run = begun(path, keep=3)
        caplog.clear()
        restored = run.restore(shapes)
        run.close()
        step = int(restored["state"]["step"])
        assert step in (2, 3), file
        if step == 3:  # Orbax keeps files that nothing reads, and fields that mean nothing
            assert same(restored, parts), file
            assert not notices(caplog)
            harmless += 1
            continue
        [notice] = notices(caplog)
        assert re.fullmatch(
            r"step 3 of .*run cannot be restored: .*; step 2 is used instead", notice
        )
        assert steps_of(path) == ["1", "2"]
        assert (path / "run/damaged/3").is_dir()
    assert harmless < 30


@pytest.mark.parametrize("number", range(30))
def test_a_flipped_bit_of_an_array_is_noticed(three_steps, number, tmp_path, caplog):
    """In the files that hold the arrays' content, found by their size."""
    whole, parts = three_steps
    draw = random.Random(number)
    shutil.copytree(whole, tmp_path / "copy")
    files = sorted(tmp_path.glob("copy/run/steps/3/*/ocdbt.process_0/d/*"))
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content) // 10, len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    run = begun(tmp_path / "copy", keep=3)
    restored = run.restore({name: as_shapes(tree) for name, tree in parts.items()})
    run.close()
    if int(restored["state"]["step"]) == 3:
        assert same(restored, parts)
    else:
        assert "step 2 is used instead" in caplog.text


def test_a_step_without_checksums_is_restored_as_before(three_steps, tmp_path, caplog):
    whole, parts = three_steps
    shutil.copytree(whole, tmp_path / "old")
    for folder in (tmp_path / "old").glob("run/steps/*/checksums"):
        shutil.rmtree(folder)
    run = begun(tmp_path / "old", keep=3)
    restored = run.restore({name: as_shapes(tree) for name, tree in parts.items()})
    run.close()
    assert same(restored, parts)
    assert not notices(caplog)


def test_a_run_of_which_no_step_is_whole_says_so(three_steps, tmp_path):
    whole, parts = three_steps
    shutil.copytree(whole, tmp_path / "copy")
    for file in (tmp_path / "copy").glob("run/steps/*/params/manifest.ocdbt"):
        file.write_bytes(b"")
    run = begun(tmp_path / "copy", keep=3)
    with pytest.raises(ValueError, match=r"^step 3 of .* cannot be .*; no earlier step is whole$"):
        run.restore({name: as_shapes(tree) for name, tree in parts.items()})
    run.close()
    assert steps_of(tmp_path / "copy") == ["1", "2", "3"]  # nothing is set aside in vain


def test_the_step_before_a_damaged_one_is_loaded(tmp_path, caplog):
    run = begun(tmp_path, keep=3)
    for step in (1, 2):
        moments = {"mean": jnp.full(4, step), "std": jnp.ones(4)}
        run.save(step, {"ema": vae_plus(step).vae_params, "statistics": moments})
    run.close()
    for file in (tmp_path / "run/steps/2/ema").glob("ocdbt.process_0/d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.metadata["step"] == "1"
    assert same(loaded.vae_params, vae_plus(1).vae_params)
    assert "step 1 is used instead" in caplog.text
    assert steps_of(tmp_path) == ["1", "2"]  # what is only read is left as it is
    with pytest.raises(ValueError, match=r"step 2 of .* cannot be restored"):
        load_checkpoint(tmp_path / "run/steps/2")


def test_a_damaged_vae_of_a_run_is_an_error_of_one_line(tmp_path):
    transformer_run(tmp_path, plus=0).close()
    weights = sorted((tmp_path / "run/vae/weights").glob("ocdbt.process_0/d/*"))
    file = max(weights, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"the VAE in .* cannot be restored"):
        runs.load_vae(tmp_path / "run")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_a_checksum_changes_with_every_bit_and_never_with_the_mesh(dtype, mesh):
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.integers(0, 2, (8, 12)), dtype)
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", "seq"))
    sums = checksums.checksums({"x": x})
    assert checksums.first_difference({"x": jax.device_put(x, where)}, sums) is None
    raw = np.asarray(x).view(np.uint8)
    for bit in range(1 if dtype == "bool" else 8):
        for place in draw.integers(0, raw.size, 5):
            changed = raw.copy()
            changed.reshape(-1)[place] ^= 1 << bit
            y = jnp.asarray(changed.view(np.asarray(x).dtype))
            assert checksums.first_difference({"x": y}, sums) == "['x']"
    swapped = x.at[0, 0].set(x[1, 1] + 1 if dtype != "bool" else ~x[1, 1])
    assert checksums.first_difference({"x": swapped}, sums) or (swapped == x).all()
