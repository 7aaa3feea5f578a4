"""Files written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary name in the same folder; moves it to `path` when all went well.

    Missing folders are made.

    Raises:
      ValueError: if the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        if path.parent.exists() and not path.parent.is_dir():
            raise NotADirectoryError(0, f"{path.parent} is a file, not a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.exists():
            os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_writable(path: str | os.PathLike) -> None:
    """Tries a file in the folder of `path`, so that hours of work are not lost; leaves nothing.

    Raises:
      ValueError: if a file cannot be written there.
    """
    missing = [folder for folder in Path(path).parents if not folder.exists()]
    try:
        with whole(path) as temporary:
            temporary.touch()
            temporary.unlink()
    finally:
        for folder in missing:  # the innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()
