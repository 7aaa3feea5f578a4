"""Finds the raw video files of a run, with their captions."""

import fnmatch
import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ltx_jax.data import inputs as user_files
from ltx_jax.data import listing


def find(
    inputs: Sequence[str], columns: listing.Columns = listing.Columns()
) -> tuple[listing.Medium, ...]:
    """Lists the input files with their captions, sorted by path.

    Args:
      inputs: patterns (`raw/**/*.mp4`), folders, files, tables, archives or lists of files
        (`@list.txt`, with one path per line).
      columns: the columns of tables that are read.

    Returns:
      The media, without the files of their captions and hidden files. Folders that cannot be read
      are included, so that they appear as unusable in the table of dropped files; so are names that
      are not UTF-8, with escapes.

    Raises:
      ValueError: if one of the inputs matches no file, or a table cannot be read.
    """
    paths: set[Path] = set()
    named: set[Path] = set()
    for text in inputs:
        files = _listed(text[1:]) if text.startswith("@") else _matching(text)
        if not files:
            raise ValueError(f"--input {text} matches no file: quote patterns, and check the path")
        paths |= files
        if listing.is_source(text):
            named |= files
    media = listing.list_files(paths, columns, named=named, any_ending=True)
    if not media:
        raise ValueError(f"--input {' '.join(inputs)} matches caption files only, no video")
    return tuple(map(_with_utf8_name, media))


def _with_utf8_name(medium: listing.Medium) -> listing.Medium:
    """A medium as it is, or, if its name is not UTF-8, one that cannot be used."""
    name = str(medium.place)
    printable = os.fsencode(name).decode("utf-8", "backslashreplace")
    if printable == name:
        return medium
    problem = "its name is not UTF-8: rename it"
    return listing.Medium(Path(printable), problem=problem, is_medium=False)


def _listed(path: str) -> set[Path]:
    """The paths in a list file."""
    return {Path(line) for line in user_files.read_lines(path) if line}


def _matching(text: str) -> set[Path]:
    """Files that match a path, folder or pattern, and the folders that cannot be read."""
    if os.path.isfile(text):  # first, as names from yt-dlp contain brackets
        return {Path(text)}
    if os.path.isdir(text):
        paths = {Path(text), *user_files.walk(text)}
    elif "**" in Path(text).parts:
        paths = _matching_below(text)
    elif listing.is_source(text):
        paths = {path for path in listing.expand(text) if path.exists()}
    else:
        folders = map(Path, glob.glob(os.path.join(os.path.dirname(text) or ".", "")))
        paths = {*map(Path, glob.glob(text)), *folders}
    return {path for path in paths if not os.path.isdir(path) or not _is_readable(path)}


def _matching_below(text: str) -> set[Path]:
    """Paths that match a pattern with `**`, and all folders; `glob` follows links in circles."""
    parts = Path(text).parts
    depth = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root, patterns = Path(*parts[:depth]), parts[depth:]
    return {
        path
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


def _is_readable(folder: Path) -> bool:
    """Whether the folder can be listed."""
    try:
        os.scandir(folder).close()
    except OSError:
        return False
    return True


def size(place: user_files.Place) -> int:
    """Size of a file in bytes; -1 if it does not exist."""
    if isinstance(place, user_files.Part):
        return place.size
    try:
        return os.path.getsize(place)
    except OSError:
        return -1
