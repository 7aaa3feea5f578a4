"""Finds the raw video files of a run, and reads the captions beside them."""

import fnmatch
import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ltx_jax.data import inputs as user_files


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
    stems = {os.path.splitext(path)[0] for path in paths if not user_files.is_caption(path)}
    media = sorted(
        path
        for path in paths
        if not user_files.is_caption(path) or os.path.splitext(path)[0] not in stems
    )
    if not media:
        raise ValueError(f"--input {' '.join(inputs)} matches caption files only, no video")
    return tuple(media)


def _listed(path: str) -> set[str]:
    """The paths in a list file."""
    return {line for line in user_files.read_lines(path) if line}


def _matching(text: str) -> set[str]:
    """Files that match a path, folder or pattern, and the folders that cannot be read."""
    if os.path.isfile(text):  # first, as names from yt-dlp contain brackets
        return {text}
    if os.path.isdir(text):
        paths = {text, *map(str, user_files.walk(text))}
    elif "**" in Path(text).parts:
        paths = _matching_below(text)
    else:
        folders = glob.glob(os.path.join(os.path.dirname(text) or ".", ""))
        paths = {*glob.glob(text), *(folder.rstrip(os.sep) for folder in folders)}
    return {path for path in paths if not os.path.isdir(path) or not _is_readable(path)}


def _matching_below(text: str) -> set[str]:
    """Paths that match a pattern with `**`, and all folders; `glob` follows links in circles."""
    parts = Path(text).parts
    depth = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root, patterns = Path(*parts[:depth]), parts[depth:]
    return {
        str(path)
        for path in [root, *user_files.walk(root)]
        if path.is_dir() or _matches(path.relative_to(root).parts, patterns)
    }


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_matches(parts[i:], patterns[1:]) for i in range(len(parts) + 1))
    fits = bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0])
    return fits and _matches(parts[1:], patterns[1:])


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
    try:
        return user_files.read_caption(path), ""
    except ValueError as error:
        return "", str(error).replace(os.path.join(os.path.dirname(path), ""), "")
