"""The file with a checkpoint's vocabulary: JSON beside its weights (`beside`).

FOLDER/vocabulary.json of a run, an export or a diffusers folder
FILE.vocabulary.json   of a file
"""

import json
from pathlib import Path

from etils import epath

from ltx_jax import config, vocabulary
from ltx_jax.checkpoints import beside
from ltx_jax.vocabulary import Vocabulary

NAME = "vocabulary.json"
_MAX_SIZE = 5_000_000  # characters; 1,500 emoji take 200,000


def read(path: str | Path) -> Vocabulary | None:
    """The vocabulary of a checkpoint; None if it has none.

    Raises:
      ValueError: if the file is damaged, or there is no such checkpoint.
    """
    file = beside.place(path, NAME)
    if not file.exists():
        return None
    text = file.read_text()
    if len(text) > _MAX_SIZE:
        raise ValueError(f"{file} has {len(text)} characters: {_MAX_SIZE} at most are read")
    return vocabulary.build(config.parse_json(text, str(file)), str(file))


def write(file: epath.Path | Path, words: Vocabulary) -> None:
    """Writes a vocabulary, on this machine whole or not at all."""
    text = json.dumps(vocabulary.dump(words), ensure_ascii=False, indent=1) + "\n"
    beside.write_text(file, text)
