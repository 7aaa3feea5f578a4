"""Probes media, and stores the results for large sets, since probing reads every file whole.

A file with the size and modification time that it had before is not probed again, neither by the
next start of a run nor by its other processes. There is one small JSON file per folder or archive.
"""

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import PIL

from ltx_jax.data import decoding, frames, inputs, pictures, pixels, video
from ltx_jax.data.video import Facts
from ltx_jax.runtime import files

FOLDER = Path("~/.cache/ltx_jax/facts").expanduser()
_LONG = 5.0  # seconds of probing from which on the facts are kept

_Entries = dict[str, list[Any]]  # name -> size in bytes, modification time in ns, facts


def probe_all(places: Sequence[inputs.Place]) -> list[Facts | ValueError]:
    """The properties of media, or what is wrong with them, in their order."""
    begin = time.monotonic()
    stores = [_store(_container(place)) for place in places]
    stored = {store: _read(store) for store in set(stores)}

    def facts(place: inputs.Place, store: Path) -> Facts | ValueError:
        name, stamp = _stamp(place)
        entry = stored[store].get(name, [])
        if entry[:2] == stamp:
            return Facts(*entry[2:])
        try:
            result = video.probe(inputs.loaded(place))
        except ValueError as error:
            return error
        changed[store, name] = [*stamp, *result]
        return result

    changed: dict[tuple[Path, str], list[Any]] = {}
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(facts, places, stores))
    if time.monotonic() - begin > _LONG:
        for (store, name), entry in changed.items():
            stored[store][name] = entry
        for store in {store for store, _ in changed}:
            with contextlib.suppress(ValueError):  # where nothing can be written, nothing is kept
                files.atomic_write_text(store, json.dumps(stored[store]))
    return results


def _container(place: inputs.Place) -> Path:
    return place.archive if isinstance(place, inputs.Part) else place.parent


def _stamp(place: inputs.Place) -> tuple[str, list[int]]:
    """The name of a medium in its folder or archive, and what changes if its content does."""
    if isinstance(place, inputs.Part):
        name, file = f"{place.offset}+{place.size}", place.archive
    else:
        name, file = place.name, place
    try:
        status = os.stat(file)
    except OSError:
        return name, [-1, -1]
    return name, [status.st_size, status.st_mtime_ns]


@functools.lru_cache(4096)
def _store(container: Path) -> Path:
    """The JSON file for a folder or archive; another one for other versions of the readers."""
    key = f"{_version()} {os.path.realpath(container)}"
    return FOLDER / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.json"


@functools.cache
def _version() -> str:
    sources = [Path(module.__file__).read_bytes() for module in _READERS]
    libraries = f"{av.__version__} {PIL.__version__}"
    return hashlib.sha256(b"".join([*sources, libraries.encode()])).hexdigest()


_READERS: tuple[Any, ...] = (decoding, frames, inputs, pictures, pixels, video)


def _read(store: Path) -> _Entries:
    """The entries of a file; those that are not as `probe_all` writes them are left out."""
    try:
        content = json.loads(store.read_text(encoding="utf-8"))
        return {name: entry for name, entry in content.items() if _is_entry(entry)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _is_entry(entry: Any) -> bool:
    kinds = (int, int, int, int, int, float, float, bool)
    return isinstance(entry, list) and [type(value) for value in entry] == list(kinds)
