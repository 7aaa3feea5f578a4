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
        path a line. Captions and hidden files are left out.

    Raises:
      ValueError: if one of them names no file.
    """
    found: set[str] = set()
    for text in inputs:
        if text.startswith("@"):
            paths = _listed(text[1:])
        elif os.path.isdir(text):
            paths = glob.glob(os.path.join(glob.escape(text), "**"), recursive=True)
        else:
            paths = glob.glob(text, recursive=True)
        files = {path for path in paths if text.startswith("@") or os.path.isfile(path)}
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


def _listed(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the list {path} cannot be read as UTF-8 text: {error}") from error
    return [line.strip() for line in lines if line.strip()]


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
