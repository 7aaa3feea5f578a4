"""Files and folders that are written appear complete or not at all, whatever goes wrong."""

import contextlib
import errno
import os
import stat
import threading

import pytest

from ltx_jax.runtime import files

FULL = OSError(errno.ENOSPC, "No space left on device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_old_file_stays_until_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "new" / "clip.mp4"
    files.atomic_write_text(path, "old")
    flushed, fsync = [], os.fsync

    def record(handle):
        flushed.append(os.fstat(handle).st_size)
        assert path.read_text() == "old"
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    with files.atomic_write(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (path.parent, ".mp4")
        temporary.write_text("newer")
        assert path.read_text() == "old"
    assert flushed == [5]
    assert path.read_text() == "newer"
    assert names(path.parent) == ["clip.mp4"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        files.atomic_write_text(tmp_path / "a", "")
        with files.atomic_folder(tmp_path / "b"):
            pass
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [0o640, 0o750]


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), RuntimeError("out of luck")])
@pytest.mark.parametrize("write", [files.atomic_write, files.atomic_folder])
def test_an_error_leaves_what_was_there(tmp_path, write, error):
    folder = write is files.atomic_folder
    path = tmp_path / "out"
    path.mkdir() if folder else path.write_text("old")
    kind = ValueError if error is FULL else type(error)

    def fail():
        with write(path) as temporary:
            (temporary / "part" if folder else temporary).write_text("half")
            raise error

    with pytest.raises(kind, match="out: No space left" if error is FULL else None):
        fail()
    assert names(tmp_path) == ["out"]
    assert names(path) == [] if folder else path.read_text() == "old"


def test_a_folder_appears_with_all_that_is_in_it(tmp_path):
    with files.atomic_folder(tmp_path / "new" / "out") as temporary:
        files.atomic_write_text(temporary / "part" / "a", "a")
        assert names(tmp_path / "new") == [temporary.name]
    assert (tmp_path / "new/out/part/a").read_text() == "a"
    with (
        pytest.raises(ValueError, match=r"cannot write .*out: Directory not empty"),
        files.atomic_folder(tmp_path / "new" / "out"),
    ):
        pass
    assert names(tmp_path / "new") == ["out"]


def test_a_file_that_cannot_be_read_meanwhile_is_not_one_that_cannot_be_written(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="elsewhere"),
        files.atomic_write(tmp_path / "folder" / "a"),
    ):
        (tmp_path / "elsewhere").read_bytes()


def test_threads_that_write_one_file_do_not_meet(tmp_path):
    path, barrier = tmp_path / "a", threading.Barrier(4)

    def write(letter):
        with files.atomic_write(path) as temporary:
            barrier.wait()
            temporary.write_text(letter * 100_000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in {letter * 100_000 for letter in "abcd"}
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_killed_processes_left_is_swept_after_a_day(kind, tmp_path, monkeypatch):
    atomic = files.atomic_write if kind == "file" else files.atomic_folder
    with monkeypatch.context() as patch:
        patch.setattr(files, "_delete", lambda path: None)  # a killed process deletes nothing
        for name in ("old.mp4", "new.mp4"):
            with contextlib.suppress(KeyboardInterrupt), atomic(tmp_path / name) as temporary:
                (temporary if kind == "file" else temporary / "part").write_text("half")
                raise KeyboardInterrupt
    (tmp_path / ".hidden.mp4").touch()
    days_ago = 1e9
    for path in tmp_path.rglob("*"):
        if "new" not in str(path):
            os.utime(path, (days_ago, days_ago))
    files._sweep.cache_clear()
    files.atomic_write_text(tmp_path / "text.txt", "")
    left = names(tmp_path)
    assert [name.split(".")[1] for name in left] == ["hidden", "new", "txt"]
