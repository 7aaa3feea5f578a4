"""Files and folders that appear complete or not at all."""

import contextlib
import functools
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.partial(\.[^.]*)?")
_LEFTOVER_AGE = 24 * 3600  # seconds without a change; whoever writes a file changes it


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path; the file written there replaces `path` if the block succeeds.

    The temporary path lies in the same folder, is unique to the call and has the ending of `path`.
    Missing folders are created. The content is flushed to the disk (fsync) before the file is
    renamed to `path`. After an error, the old file is unchanged and the temporary one is deleted.

    Raises:
      ValueError: if the file cannot be written. An OSError from the block is converted too, unless
        it names a file in another folder.
    """
    path = Path(path)
    with _naming(path):
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder", str(path))
        with _temporary(path) as temporary:
            yield temporary
            if temporary.exists():
                _flush(temporary)
                os.replace(temporary, path)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a new temporary folder, which becomes `path` if the block succeeds.

    `path` may already be an empty folder. Otherwise this works like `atomic_write`, except that
    files are flushed to the disk only if the block writes them with `atomic_write`.
    """
    path = Path(path)
    with _naming(path), _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary
        os.replace(temporary, path)


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text (UTF-8) as `atomic_write` does."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(path: str | os.PathLike) -> None:
    """Writes a file beside `path` and deletes it, so that a failure shows at once, not after hours.

    Raises:
      ValueError: if a file cannot be written there.
    """
    missing = [folder for folder in Path(path).parents if not folder.exists()]
    try:
        with atomic_write(path) as temporary:
            temporary.touch()
            temporary.unlink()
    finally:
        for folder in missing:  # the innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A path beside `path`; whatever is left there afterwards is deleted."""
    if path.parent.exists() and not path.parent.is_dir():
        raise NotADirectoryError(0, f"{path.parent} is a file, not a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        yield temporary
    finally:
        _delete(temporary)


def _delete(path: Path) -> None:
    """Deletes a file or a folder, as far as possible."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@functools.cache
def _sweep(folder: Path) -> None:
    """Deletes what killed processes have left in a folder; looks once in the life of a process."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            with contextlib.suppress(OSError):  # another process sweeps too
                changed = max(one.lstat().st_mtime for one in (path, *path.rglob("*")))
                if time.time() - changed > _LEFTOVER_AGE:
                    _delete(path)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns an OSError from writing `path` into a ValueError that names it."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str | bytes):
            about = Path(os.fsdecode(error.filename))
            if path.parent not in about.parents and about not in path.parents:
                raise
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error


def _flush(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
