"""Raw files: which there are, and the captions beside them."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

_CAPTION = ".txt"


def find(inputs: Sequence[str]) -> tuple[str, ...]:
    """Files, sorted by path.

    Args:
      inputs: patterns (`raw/**/*.mp4`), folders, files, or lists of files: `@list.txt`, with one
        path a line. Captions and hidden files are left out; folders that must not be read are
        named, so that they are not missed in silence.

    Raises:
      ValueError: if one of them names no file.
    """
    found: set[str] = set()
    for text in inputs:
        files = _listed(text[1:]) if text.startswith("@") else _matching(text)
        if not files:
            raise ValueError(f"--input {text} names no file: quote patterns, and look at the path")
        found |= files
    stems = {stem for stem, ending in map(os.path.splitext, found) if ending != _CAPTION}
    media = sorted(
        path
        for path, (stem, ending) in zip(found, map(os.path.splitext, found), strict=True)
        if ending != _CAPTION or stem not in stems
    )
    if not media:
        raise ValueError(f"--input {' '.join(inputs)} names captions alone, no video")
    return tuple(media)


def _listed(path: str) -> set[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the list {path} cannot be read as UTF-8 text: {error}") from error
    return {line.strip() for line in lines if line.strip()}


def _matching(text: str) -> set[str]:
    """A file, those of a folder or a pattern; folders among them that must not be looked into."""
    if os.path.isfile(text):  # its name may hold brackets, as yt-dlp's do
        return {text}
    pattern = os.path.join(glob.escape(text), "**", "*") if os.path.isdir(text) else text
    files = {path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path)}
    folders = glob.glob(os.path.join(os.path.dirname(pattern) or ".", ""), recursive=True)
    return files | {folder.rstrip(os.sep) for folder in folders if not _is_open(folder)}


def _is_open(folder: str) -> bool:
    try:
        os.scandir(folder).close()
    except OSError:
        return False
    return True


def size(path: str) -> int:
    """Bytes of a file; -1 if there is none."""
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def caption(path: str) -> tuple[str, str]:
    """The caption beside a file, and what is wrong with it where there is none."""
    file = Path(path).with_suffix(_CAPTION)
    try:
        text = " ".join(file.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return "", f"there is no file {file.name} beside it"
    except (OSError, UnicodeDecodeError) as error:
        return "", f"{file.name} cannot be read as UTF-8 text: {error}"
    return text, "" if text else f"{file.name} is empty"
