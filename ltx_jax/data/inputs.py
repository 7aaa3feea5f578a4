"""Files of users: checked before a library opens them, listed below a folder, read as text or
arrays."""

import codecs
import dataclasses
import io
import os
import re
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# What numpy raises for damaged files; RuntimeError is of encrypted archives.
_NO_ARRAYS = (
    *(ValueError, OSError, EOFError, SyntaxError, RuntimeError, KeyError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A media file in memory, and its name in messages."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A file that lies, uncompressed, in an archive: `size` bytes from `offset` on."""

    archive: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def read(self) -> bytes:
        """Reads its content.

        Raises:
          ValueError: if the archive cannot be read, or ends before the file does.
        """
        try:
            with open(self.archive, "rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise ValueError(f"{self.archive} cannot be read: {error.strerror}") from error
        if len(content) < self.size:
            raise ValueError(f"{self.archive} is cut off within {self.name}")
        return content


File = str | os.PathLike | Stored
Place = Path | Part


def loaded(place: str | os.PathLike | Part) -> File:
    """Makes what the readers of media open: reads a part of an archive into memory.

    Raises:
      ValueError: as `Part.read`.
    """
    return Stored(str(place), place.read()) if isinstance(place, Part) else place


def handle(path: File) -> str | io.BytesIO:
    """Makes what libraries open: a path, or a stream of the bytes of a file in memory."""
    return io.BytesIO(path.content) if isinstance(path, Stored) else os.fspath(path)


def split_start(path: str | os.PathLike) -> tuple[str, float]:
    """A path, and the seconds at which to begin: `clip.mp4@2.5s` is `clip.mp4` from 2.5 s on.

    A file that has the whole text as its name is taken as it is.
    """
    text = os.fspath(path)
    parts = re.fullmatch(r"(.+)@([0-9]+(?:\.[0-9]*)?)s", text)
    return (text, 0.0) if parts is None or os.path.exists(text) else (parts[1], float(parts[2]))


def head(path: File, size: int) -> bytes:
    """The first bytes of a file that `check` has passed."""
    if isinstance(path, Stored):
        return path.content[:size]
    with open(path, "rb") as file:
        return file.read(size)


def check(path: File) -> None:
    """Refuses a file that no reader should open.

    Raises:
      ValueError: if it is missing, a folder, a pipe, a device, unreadable or empty.
    """
    if not isinstance(path, Stored):
        check_regular(path)
    try:
        empty = not head(path, 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if empty:
        raise ValueError(f"{path} is empty (0 bytes)")


def check_regular(path: str | os.PathLike) -> None:
    """Refuses what is no regular file: opening a pipe may wait for ever.

    Raises:
      ValueError: if it is missing, a folder, a pipe or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a folder; a file is expected")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is a pipe or a device: copy its content into a file first")


def read_text(path: str | os.PathLike) -> str:
    """Reads UTF-8, with or without a byte-order mark, or UTF-16 with one; newlines become `\\n`.

    Raises:
      ValueError: naming the file, if there is none, or it holds another encoding.
    """
    check_regular(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    return decode_text(content, path)


def decode_text(content: bytes, name: str | os.PathLike | Part) -> str:
    """The text in the bytes of a file, as `read_text` reads it; `name` is for the message."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} cannot be read as UTF-8 text (byte {error.start} is {content[error.start]:#x})"
            ": save it as UTF-8"
        ) from error
    return re.sub("\r\n?", "\n", text)


def read_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a text file, without surrounding space; split at newlines alone.

    `str.splitlines` also splits at separators that belong to a text, such as U+2028 and tabs.

    Raises:
      ValueError: as `read_text`.
    """
    return [line.strip() for line in read_text(path).split("\n")]


def read_arrays(path: str | os.PathLike) -> np.ndarray | dict[str, np.ndarray]:
    """Reads the array of a .npy file, or those of a .npz file by name; nothing is unpickled.

    Raises:
      ValueError: naming the file, if there is none, or it is damaged or holds something else.
    """
    check_regular(path)
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            return file
        with file:
            return dict(file)
    except _NO_ARRAYS as error:
        raise ValueError(f"{path} is no .npy or .npz of numbers: {error}") from error


def walk(folder: str | os.PathLike) -> Iterator[Path]:
    """All files and folders below a folder, without hidden ones; the content of a folder once.

    Links to folders are followed, after the folders beside them, and never in a circle.
    """
    visited: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        identity = status.st_dev, status.st_ino
        if identity in visited:
            folders.clear()
            continue
        visited.add(identity)
        folders[:] = (name for name in folders if not name.startswith("."))
        folders.sort(key=lambda name: (os.path.islink(os.path.join(parent, name)), name))
        files = (name for name in names if not name.startswith("."))
        yield from (Path(parent, name) for name in [*folders, *sorted(files)])
