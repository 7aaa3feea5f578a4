"""Writes and reads the records of all clips, one file per shard, and the table of dropped clips."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ltx_jax.prepare.records import ClipRecord
from ltx_jax.runtime import files

_COLUMNS = ("source", "number", "start", "seconds", "reason", "detail")
_SCORES = ("motion", "text", "aesthetics")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write(path: Path, clips: Iterable[ClipRecord]) -> None:
    """Writes records as JSON lines, atomically."""
    with files.atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(clip.to_json())}\n" for clip in clips)


def read(path: Path) -> Iterator[ClipRecord]:
    """Yields the records of a file; none if the file does not exist."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from (ClipRecord.from_json(json.loads(line)) for line in file)


def write_dropped(path: Path, clips: Iterable[ClipRecord]) -> None:
    """Writes the dropped clips as CSV; a source that was dropped as a whole has number -1.

    Names that a spreadsheet would compute as formulas get a leading apostrophe.
    """
    columns = (*_COLUMNS, *_SCORES)
    with (
        files.atomic_write(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(columns)
        for clip in clips:
            if clip.reason:
                values = (getattr(clip, name) for name in columns)
                rows.writerow(map(_cell, values))


def _cell(value: str | float | int | None) -> str | float | int:
    is_formula = isinstance(value, str) and value.startswith(_FORMULA_STARTS)
    return f"'{value}" if is_formula else "" if value is None else value
