"""Results of stages on disk, by the content of what they were made from.

A file has its name when it is complete: a run that was killed starts anew and takes what is there,
and whatever made the same thing before, with the same settings, need not be done again.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any


def digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file.

    Raises:
      OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key(*parts: Any) -> str:
    """A name for what is made from `parts`, of JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Shelf:
    """Files of one folder, made once each; any number of processes may share it."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def file(self, stage: str, name: str, make: Callable[[Path], None]) -> Path:
        """The file of a stage, which `make` writes to a path of its own if it is not there."""
        path = self.folder / stage / name[:2] / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{name}.{secrets.token_hex(4)}")
            try:
                make(temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        return path

    def json(self, stage: str, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, of JSON."""

        def write(path: Path) -> None:
            path.write_text(json.dumps(make(), ensure_ascii=False), encoding="utf-8")

        return json.loads(self.file(stage, name, write).read_text(encoding="utf-8"))
