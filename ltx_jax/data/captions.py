"""Captions: values of tables and JSON, and files beside the media."""

import functools
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltx_jax.data import inputs

COLUMNS = ("caption", "captions", "text", "prompt", "description")  # the usual names, best first
ENDINGS = (".txt", ".caption", ".json")  # of files beside the media, best first
_SIBLING = "captions"  # a folder beside that of the media: captions/a.txt for videos/a.mp4


def from_value(value: Any) -> tuple[str, ...]:
    """The captions that a value stands for, each on one line.

    A text is one caption. A list holds several, of which training draws one each time; empty texts
    and nulls in it are passed over.

    Raises:
      ValueError: if no caption is left, or an entry is neither text nor null; the message continues
        a sentence: "is a number: 5".
    """
    values = value if isinstance(value, list | tuple) else [value]
    for one in values:
        if one is not None and not isinstance(one, str):
            kind = "a number" if isinstance(one, int | float) else "no text"
            raise ValueError(f"is {kind}: {str(one)[:40]}")
        if any("\ud800" <= letter <= "\udfff" for letter in one or ""):
            raise ValueError("holds half of a surrogate pair, which is no text")
    texts = [" ".join((one or "").split()) for one in values]
    captions = tuple(dict.fromkeys(text for text in texts if text))
    if not captions:
        raise ValueError("is null" if value is None else "is empty")
    return captions


def find_column(names: Mapping[str, Any], chosen: str | None, usual: tuple[str, ...]) -> str | None:
    """The chosen column, or the first of the usual ones, ignoring case; None if there is none."""
    if chosen is not None:
        return chosen if chosen in names else None
    by_lower_case = {name.lower(): name for name in names}
    return next((by_lower_case[name] for name in usual if name in by_lower_case), None)


def from_json(text: str, name: Any, column: str | None) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The captions in a JSON object that describes one medium, and its other entries.

    Args:
      text: the JSON.
      name: name of its file, for messages.
      column: the key of the captions; None: the first of the usual ones.

    Raises:
      ValueError: naming the file, if there is none, or the text is no JSON object.
    """
    fields = parse_json(text, name)
    if not isinstance(fields, dict):
        raise ValueError(f"{name} holds no JSON object")
    key = find_column(fields, column, COLUMNS)
    if key is None:
        raise ValueError(f"{name} has no entry {column or ' or '.join(COLUMNS)}")
    try:
        return from_value(fields.pop(key)), fields
    except ValueError as error:
        raise ValueError(f"the entry {key} of {name} {error}") from error


def parse_json(text: str, name: Any) -> Any:
    """Parses JSON.

    Raises:
      ValueError: naming the file, if it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON: {str(error)[:80]}") from error


class CaptionFiles:
    """Finds and reads the caption files of media; every folder is listed once."""

    def __init__(self, column: str | None = None):
        self._column = column
        self._by_stem = functools.cache(_by_stem)
        self._is_folder = functools.cache(os.path.isdir)

    def of(self, path: Path) -> list[Path]:
        """The caption files of a medium, best first.

        They lie beside it, or at the same place in a folder `captions` beside one of its folders.
        """
        folders = [path.parent]
        for parent in path.parents:
            sibling = parent.parent / _SIBLING
            if parent.name and self._is_folder(sibling):
                folders.append(sibling / path.parent.relative_to(parent))
        return [f / name for f in folders for name in self._by_stem(f).get(path.stem, [])]

    def read(self, path: Path) -> tuple[str, ...]:
        """The captions of a medium.

        Raises:
          ValueError: naming the file, if there is none, or none in it, or it cannot be read.
        """
        file = next(iter(self.of(path)), None)
        if file is None:
            name = path.with_suffix(ENDINGS[0]).name
            raise ValueError(f"{path} has no caption: there is no file {name} beside it")
        text = inputs.read_text(file)
        if file.suffix.lower() == ".json":
            return from_json(text, file, self._column)[0]
        try:
            return from_value(text)
        except ValueError as error:
            raise ValueError(
                f"{file} {error}; the caption of {path.name} is expected in it"
            ) from error


def is_caption(path: Path) -> bool:
    """Whether a file has the ending of captions."""
    return path.suffix.lower() in ENDINGS


def _by_stem(folder: Path) -> dict[str, list[str]]:
    """Names of a folder's caption files by their stem, best first; empty if it cannot be read."""
    names = defaultdict[str, list[str]](list)
    try:
        files = [path for path in map(Path, os.listdir(folder)) if is_caption(path)]
    except OSError:
        files = []
    for path in sorted(files, key=lambda path: (ENDINGS.index(path.suffix.lower()), path.name)):
        names[path.stem].append(path.name)
    return names
