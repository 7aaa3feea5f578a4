"""Companions of a clip: its reference, and the mask that marks a part of it.

They lie beside it (`clip_reference.mp4`, `clip_mask.png` for `clip.mp4`), in columns of its table
(`reference_path`, `mask_path`), or in its sample of an archive (`0001.reference.mp4`).
"""

import functools
import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ltx_jax.data import inputs

Kind = Literal["reference", "mask"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Usual columns of tables; LTX-Video-Trainer's is "reference_path".
COLUMNS: dict[Kind, tuple[str, ...]] = {
    kind: tuple(f"{kind}{end}" for end in ("_path", "", "_file", "_file_name", "_video", "_media"))
    for kind in KINDS
}


class Companions(NamedTuple):
    """The companions of a medium; `problem` says why one that is named cannot be used."""

    reference: inputs.Place | None = None
    mask: inputs.Place | None = None
    problem: str = ""

    def missing(self, owner: inputs.Place, kinds: Collection[Kind]) -> str:
        """Why `owner` lacks a companion of one of the kinds, in a sentence; empty if it has all."""
        for kind in kinds:
            if getattr(self, kind) is None:
                where = f"{Path(str(owner)).stem}_{kind} beside it, or a column {COLUMNS[kind][0]}"
                return self.problem or f"{owner} has no {kind}: there is no file {where}"
        return ""


def owner_of(path: Path) -> tuple[Path, Kind] | None:
    """The path, without its ending, of the medium that a file would belong to by its name."""
    for kind in KINDS:
        stem = path.stem.removesuffix(f"_{kind}")
        if stem and stem != path.stem:
            return path.with_name(stem), kind
    return None


class CompanionFiles:
    """Finds the companions that lie beside media; every folder is listed once.

    Args:
      endings: those of media, in lower case.
    """

    def __init__(self, endings: Collection[str]):
        self._endings = endings
        self._by_owner = functools.cache(self._list)

    def of(self, path: Path) -> Companions:
        """The companions beside a medium."""
        return Companions()._replace(**self._by_owner(path.parent).get(path.stem, {}))

    def _list(self, folder: Path) -> Mapping[str, dict[str, inputs.Place]]:
        found = defaultdict[str, dict[str, inputs.Place]](dict)
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            names = []
        for path in map(folder.joinpath, names):
            belongs = owner_of(path)
            if belongs is not None and path.suffix.lower() in self._endings:
                found[belongs[0].name].setdefault(belongs[1], path)
        return found
