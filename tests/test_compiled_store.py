"""Executables on disk are reused, but only for the same call in the same environment."""

import functools
import gc
import os
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK

from ltx_jax.config import TransformerConfig
from ltx_jax.diffusion import sampler
from ltx_jax.diffusion.denoiser import Fast, Plain, TeaCache
from ltx_jax.diffusion.guidance import Branches
from ltx_jax.diffusion.noise import seeded
from ltx_jax.diffusion.solver import DPMSolverPP2M
from ltx_jax.runtime import compiled, compiled_store
from ltx_jax.runtime.compiled import Programs


@functools.partial(jax.jit, static_argnames="cfg", donate_argnames="x")
def scaled(x, noise, *, cfg):
    """A function from a pytree to a pytree."""
    return {"y": x * cfg.num_layers + noise.draw("initial", x.shape), "noise": noise}


CFG = TransformerConfig(num_layers=3)


def arguments():
    return jnp.ones((1, 5)), seeded(3, 1)


def programs_in(folder):
    """New programs that are stored in a folder; None: nowhere."""
    programs = Programs(QUICK)
    programs.folder = folder
    return programs


@pytest.fixture
def programs(tmp_path):
    return lambda: programs_in(tmp_path / "kept")


def refuse_to_compile(monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_, **__: pytest.fail("compiled"))


def test_what_was_compiled_once_is_read(programs, monkeypatch):
    want = programs()(scaled, *arguments(), cfg=CFG)
    refuse_to_compile(monkeypatch)
    x, noise = arguments()
    got = programs()(scaled, x, noise, cfg=CFG)
    np.testing.assert_array_equal(got["y"], want["y"])
    assert jax.random.key_data(got["noise"].keys).tolist() == (
        jax.random.key_data(noise.keys).tolist()
    )
    assert x.is_deleted()  # its memory was given away, as in the program compiled


def test_a_program_that_was_read_takes_its_own_results_without_being_read_again(programs):
    for _ in range(2):  # compiled and stored, then read
        calls = programs()
        x, noise = arguments()
        for _ in range(3):
            result = calls(scaled, x, noise, cfg=CFG)
            x, noise = result["y"], result["noise"]
        assert calls.count == 1


@pytest.mark.parametrize("change", ["shape", "dtype", "setting", "options", "code", "precision"])
def test_another_call_is_another_program(change, tmp_path, monkeypatch):
    x, noise = arguments()
    static, options = {"cfg": CFG}, QUICK

    def place():
        return compiled_store.executable_path(tmp_path, scaled, (x, noise), static, options)

    before = place()
    assert before == place()
    if change == "shape":
        x = jnp.ones((1, 6))
    elif change == "dtype":
        x = x.astype(jnp.bfloat16)
    elif change == "setting":
        static = {"cfg": TransformerConfig(num_layers=4)}
    elif change == "options":
        options = {}
    elif change == "code":
        monkeypatch.setattr(compiled_store, "_code", lambda: "another")
    if change == "precision":
        with jax.default_matmul_precision("highest"):
            assert place() != before
    else:
        assert place() != before


@pytest.mark.parametrize("form", [Plain, Fast, TeaCache])
def test_every_denoiser_has_a_description(form, tmp_path):
    static = dict(branches=Branches(True, False), mode=sampler.Mode())

    def place(cfg, **changes):
        call = (form(cfg), *arguments())
        settings = static | changes
        return compiled_store.executable_path(tmp_path, sampler.step, call, settings, QUICK)

    ours = place(CFG)
    assert ours is not None
    assert place(TransformerConfig(num_layers=4)) != ours
    assert place(CFG, mode=sampler.Mode(solver=DPMSolverPP2M())) != ours


def test_what_has_no_lasting_description_is_not_kept(tmp_path, mesh):
    number = 3

    def remembers(x):
        return x * number

    x = jnp.ones(3)
    assert compiled_store.executable_path(tmp_path, jax.jit(remembers), (x,), {}, {}) is None
    assert compiled_store.executable_path(tmp_path, scaled, (x,), {"cfg": object()}, {}) is None
    with jax.set_mesh(mesh):
        assert (
            compiled_store.executable_path(tmp_path, scaled, arguments(), {"cfg": CFG}, {}) is None
        )


def test_a_damaged_file_is_compiled_again(programs, tmp_path):
    want = programs()(scaled, *arguments(), cfg=CFG)
    (path,) = (tmp_path / "kept").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert compiled_store.load(path) is None
    got = programs()(scaled, *arguments(), cfg=CFG)
    np.testing.assert_array_equal(got["y"], want["y"])
    assert compiled_store.load(path) is not None  # and mended


def test_a_place_that_cannot_be_written_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    assert programs_in(tmp_path / "file" / "kept")(scaled, *arguments(), cfg=CFG)["y"].shape == (
        1,
        5,
    )


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("who", ["group", "others", "owner"])
def test_what_another_user_may_write_is_not_read(what, who, programs, tmp_path, monkeypatch):
    want = programs()(scaled, *arguments(), cfg=CFG)
    (path,) = (tmp_path / "kept").iterdir()
    monkeypatch.setattr(compiled_store.pickle, "loads", lambda _: pytest.fail("unpickled"))
    if who == "owner":
        status = os.stat(path if what == "file" else path.parent)
        monkeypatch.setattr(os, "getuid", lambda: status.st_uid + 1)
    else:
        place = path if what == "file" else path.parent
        place.chmod(place.stat().st_mode | {"group": 0o020, "others": 0o002}[who])
    got = programs()(scaled, *arguments(), cfg=CFG)
    np.testing.assert_array_equal(got["y"], want["y"])


def test_a_folder_that_another_user_may_write_is_not_used(tmp_path, capsys):
    assert compiled_store.own_folder(tmp_path / "a" / "kept") == tmp_path / "a" / "kept"
    assert (tmp_path / "a" / "kept").stat().st_mode & 0o777 == 0o700
    (tmp_path / "a" / "kept").chmod(0o777)
    assert compiled_store.own_folder(tmp_path / "a" / "kept") is None
    assert f"not stored in {tmp_path / 'a' / 'kept'}, where another user" in capsys.readouterr().err


def test_files_are_for_the_user_alone_under_any_umask(programs, tmp_path):
    before = os.umask(0o002)
    try:
        compiled_store.own_folder(tmp_path / "kept")
        programs()(scaled, *arguments(), cfg=CFG)
    finally:
        os.umask(before)
    (path,) = (tmp_path / "kept").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert compiled_store.load(path) is not None


def test_the_least_recently_used_files_make_room(programs, tmp_path, monkeypatch):
    for size in (5, 6):
        programs()(scaled, jnp.ones((1, size)), seeded(3, 1), cfg=CFG)
    old, new = sorted((tmp_path / "kept").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    programs()(scaled, jnp.ones((1, 5)), seeded(3, 1), cfg=CFG)  # read: used last
    os.utime(new, (0, 0))
    monkeypatch.setattr(compiled_store, "_MAX_BYTES", 2.5 * old.stat().st_size)
    programs()(scaled, jnp.ones((1, 7)), seeded(3, 1), cfg=CFG)
    left = set((tmp_path / "kept").iterdir())
    assert old in left
    assert new not in left
    assert len(left) == 2


@pytest.mark.thorough
def test_programs_that_were_called_long_ago_are_forgotten(monkeypatch):
    monkeypatch.setattr(compiled, "_MAX_PROGRAMS", 4)
    programs, kept = programs_in(None), []
    for size in range(1, 9):
        programs(scaled, jnp.ones((1, size)), seeded(3, 1), cfg=CFG)
        programs(scaled, jnp.ones((1, 1)), seeded(3, 1), cfg=CFG)  # called again and again
        kept += [weakref.ref(x) for x in programs._compiled.values()]
    assert programs.count == 8  # the first was never compiled again
    gc.collect()
    assert len({id(x()) for x in kept if x() is not None}) == len(programs._compiled) <= 4
