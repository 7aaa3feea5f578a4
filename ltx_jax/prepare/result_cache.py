"""A cache of the results of stages on disk, addressed by the content of their inputs.

A file gets its final name once it is complete. A run that was killed therefore continues with the
results that exist, and a later run with the same inputs and settings of a stage reuses them.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ltx_jax.runtime import files


def file_digest(path: str | os.PathLike) -> str:
    """Computes the SHA-256 of a file.

    Raises:
      OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_key(*parts: Any) -> str:
    """The name of a result that is determined by `parts`, which JSON can encode."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class ResultCache:
    """Files in one folder, each of them made once. Several processes may share the folder."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def file(self, stage: str, name: str, make: Callable[[Path], None]) -> Path:
        """Path of a stage's result; `make` writes it to a temporary path if it does not exist."""
        path = self.folder / stage / name[:2] / name
        if not path.exists():
            with files.atomic_write(path) as temporary:
                make(temporary)
        return path

    def json(self, stage: str, name: str, make: Callable[[], Any]) -> Any:
        """A stage's result that JSON can store: read from the cache, or computed by `make`."""

        def write(path: Path) -> None:
            path.write_text(json.dumps(make(), ensure_ascii=False), encoding="utf-8")

        return json.loads(self.file(stage, name, write).read_text(encoding="utf-8"))
