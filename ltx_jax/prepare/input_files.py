"""Finds the raw video files of a run, and reads the captions beside them."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

_CAPTION = ".txt"


def find(inputs: Sequence[str]) -> tuple[str, ...]:
    """Lists the input files, sorted by path.

    Args:
      inputs: patterns (`raw/**/*.mp4`), folders, files, or lists of files (`@list.txt`, with one
        path per line).

    Returns:
      The paths, without caption files (.txt beside a file of the same stem) and hidden files.
      Folders that cannot be read are included, so that they appear as unusable in the table of
      dropped files.

    Raises:
      ValueError: if one of the inputs matches no file.
    """
    paths: set[str] = set()
    for text in inputs:
        files = _listed(text[1:]) if text.startswith("@") else _matching(text)
        if not files:
            raise ValueError(f"--input {text} matches no file: quote patterns, and check the path")
        paths |= files
    stems = {stem for stem, ending in map(os.path.splitext, paths) if ending != _CAPTION}
    media = sorted(
        path
        for path, (stem, ending) in zip(paths, map(os.path.splitext, paths), strict=True)
        if ending != _CAPTION or stem not in stems
    )
    if not media:
        raise ValueError(f"--input {' '.join(inputs)} matches caption files only, no video")
    return tuple(media)


def _listed(path: str) -> set[str]:
    """The paths in a list file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the list {path} cannot be read as UTF-8 text: {error}") from error
    return {line.strip() for line in lines if line.strip()}


def _matching(text: str) -> set[str]:
    """Files that match a path, folder or pattern, and the folders that cannot be read."""
    if os.path.isfile(text):  # first, as names from yt-dlp contain brackets
        return {text}
    pattern = os.path.join(glob.escape(text), "**", "*") if os.path.isdir(text) else text
    files = {path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path)}
    folders = glob.glob(os.path.join(os.path.dirname(pattern) or ".", ""), recursive=True)
    return files | {folder.rstrip(os.sep) for folder in folders if not _is_readable(folder)}


def _is_readable(folder: str) -> bool:
    """Whether the folder can be listed."""
    try:
        os.scandir(folder).close()
    except OSError:
        return False
    return True


def size(path: str) -> int:
    """Size of a file in bytes; -1 if it does not exist."""
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def caption(path: str) -> tuple[str, str]:
    """Reads the caption beside a file: (caption, "") or, if there is none, ("", error message)."""
    file = Path(path).with_suffix(_CAPTION)
    try:
        text = " ".join(file.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return "", f"there is no file {file.name} beside it"
    except (OSError, UnicodeDecodeError) as error:
        return "", f"{file.name} cannot be read as UTF-8 text: {error}"
    return text, "" if text else f"{file.name} is empty"
