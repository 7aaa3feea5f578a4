"""Lists the clips and pictures of a source with their captions, whatever its layout.

A source is a folder, a table, or WebDataset archives. In a folder, captions are in tables, in files
beside the media, or in a folder `captions`; docs/training.md has the list of layouts.
"""

import dataclasses
import functools
import glob
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from ltx_jax.data import archives, captions, companions, inputs, tables
from ltx_jax.data.companions import Companions
from ltx_jax.data.tables import Columns

CLIPS = (
    *(".mp4", ".mkv", ".webm", ".mov", ".m4v", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".mts"),
    *(".m2ts", ".wmv", ".flv", ".3gp", ".ogv"),
)
ENDINGS = (
    *CLIPS,
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".avif"),
    *(".heic", ".heif"),
)
_COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst", ".zip")
_CAPTION_BYTES = 2**20  # limit of a caption in an archive

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Medium:
    """A clip or picture of a source, or an entry of the source that cannot be used.

    Attributes:
      place: its file, or its part of an archive. If `is_medium` is False, the file, table or
        archive in which something is wrong.
      captions: one or more; empty if there is none that can be used.
      problem: why it cannot be used, in a sentence that names the file; empty if it can.
      row: JSON with the other columns of its row in a table, or entries of its JSON.
      is_medium: whether it is a clip or picture at all.
      companions: its reference and its mask, if there are any.
    """

    place: inputs.Place
    captions: tuple[str, ...] = ()
    problem: str = ""
    row: str = "{}"
    is_medium: bool = True
    companions: Companions = Companions()


def is_source(path: str | os.PathLike) -> bool:
    """Whether a path is that of a table or an archive, or a pattern of archives."""
    return tables.is_table(Path(path)) or os.fspath(path).endswith(archives.ENDING)


def list_source(source: str | os.PathLike, columns: Columns = Columns()) -> tuple[Medium, ...]:
    """Lists the media of a source.

    Args:
      source: a folder, a table, a tar archive, or archives by a pattern: `data/{000..009}.tar`,
        `data/*.tar`.
      columns: the columns of tables, and keys of JSON, that are read.

    Returns:
      The media sorted by path, and whatever cannot be used in their place.

    Raises:
      ValueError: if there is no such source, or a table that it names cannot be read.
    """
    if os.path.isdir(source):
        return list_files(inputs.walk(source), columns)
    if not is_source(source):
        name = os.fspath(source)
        if name.endswith(_COMPRESSED):
            raise ValueError(f"{name} is compressed: decompress it, for clips are read at random")
        raise ValueError(
            f"{name} is not a folder, nor a table ({' '.join(tables.ENDINGS)}) or {archives.ENDING}"
        )
    paths = expand(os.fspath(source))
    if not paths:
        raise ValueError(f"there is no file {source}")
    for path in paths:
        inputs.check(path)
    return list_files(paths, columns, named=paths)


def expand(pattern: str) -> list[Path]:
    """The paths that braces and wildcards stand for; a path that exists stands for itself."""
    if os.path.exists(pattern):
        return [Path(pattern)]
    paths: list[Path] = []
    for text in archives.expand_braces(pattern):
        is_literal = os.path.exists(text) or not glob.has_magic(text)
        paths += [Path(text)] if is_literal else sorted(map(Path, glob.glob(text)))
    return paths


def list_files(
    paths: Iterable[Path],
    columns: Columns = Columns(),
    *,
    named: Collection[Path] = (),
    any_ending: bool = False,
) -> tuple[Medium, ...]:
    """Lists the media among files, with their captions.

    Args:
      paths: files and folders, among them tables and archives.
      columns: as in `list_source`.
      named: files that the user named: tables of any name. An error in one of them is raised.
      any_ending: take files of any ending for media, except caption files that belong to others.

    Raises:
      ValueError: if a named table or archive cannot be read.
    """
    files = sorted(set(paths))
    named = set(named)
    own = {path.with_suffix("") for path in files if path.suffix.lower() in ENDINGS}
    tabulated, lists = _tables(files, own, named)
    packed = [path for path in files if path.suffix == archives.ENDING and not path.is_dir()]
    others = set(files) - set(tabulated) - {path for pair in lists for path in pair} - set(packed)
    loose = sorted(path for path in others if any_ending or path.suffix.lower() in ENDINGS)

    rows = _Rows(columns)
    for table in tabulated:
        rows.read_table(table, is_named=table in named)
    for pair in lists:
        rows.read_lists(*pair)
    beside = captions.CaptionFiles(columns.captions)
    belonging = _belonging(loose, beside)
    media = rows.media([path for path in loose if path not in belonging], beside)
    media = _with_companions(media)
    if not any_ending:
        media += _with_unknown_endings(others, own)
    for archive in packed:
        if archive in named or not own:
            media += _packed(archive, columns)
        else:  # it may hold the same files
            problem = f"{archive} is skipped, as there are media beside it: name it as an input"
            media.append(Medium(archive, problem=problem, is_medium=False))
    return tuple(sorted(media, key=_order))


def _order(medium: Medium) -> tuple[Path, int]:
    place = medium.place
    return (place.archive, place.offset) if isinstance(place, inputs.Part) else (place, 0)


def _tables(
    files: Collection[Path], own: Collection[Path], named: Collection[Path]
) -> tuple[list[Path], list[tuple[Path, Path]]]:
    """The tables among files, and the pairs of text files; without captions of a single medium."""
    tabulated, names = [], defaultdict[Path, list[str]](list)
    for path in files:
        if path in named:
            tabulated += [path] if tables.is_table(path) else []
        elif path.with_suffix("") not in own:
            names[path.parent].append(path.name)
            tabulated += [path] if tables.has_usual_name(path) else []
    pairs = ((folder, tables.find_lists(names)) for folder, names in names.items())
    return tabulated, [(folder / pair[0], folder / pair[1]) for folder, pair in pairs if pair]


def _belonging(files: Collection[Path], beside: captions.CaptionFiles) -> set[Path]:
    """The caption files among `files` that belong to a medium among them."""
    media = [path for path in files if not captions.is_caption(path)]
    if len(media) == len(files):
        return set()
    return {file for path in media for file in beside.of(path)}


def _with_companions(media: Sequence[Medium]) -> list[Medium]:
    """The media with what lies beside them, without media that belong to others.

    A medium with a caption of its own belongs to none, whatever its name.
    """
    files = companions.CompanionFiles(ENDINGS)
    owners = {
        place.with_suffix("") for place in (x.place for x in media) if isinstance(place, Path)
    }
    listed = []
    for medium in media:
        if not medium.is_medium or not isinstance(medium.place, Path):
            listed.append(medium)
            continue
        belongs = companions.owner_of(medium.place)
        if not medium.captions and belongs is not None and belongs[0] in owners:
            continue
        beside, own = files.of(medium.place), medium.companions
        both = {kind: getattr(own, kind) or getattr(beside, kind) for kind in companions.KINDS}
        listed.append(dataclasses.replace(medium, companions=own._replace(**both)))
    return listed


def _with_unknown_endings(files: Collection[Path], own: Collection[Path]) -> list[Medium]:
    """Files with a caption beside them, but not with the ending of a clip or picture."""
    texts = {path for path in files if path.suffix.lower() in captions.ENDINGS[:2]}
    stems = {path.with_suffix("") for path in texts} - set(own)
    problem = f"has none of the endings of clips and pictures ({' '.join(ENDINGS)})"
    return [
        Medium(path, problem=f"{path} {problem}", is_medium=False)
        for path in files
        if path.with_suffix("") in stems and not captions.is_caption(path) and not path.is_dir()
    ]


class _Rows:
    """The media that tables name."""

    def __init__(self, columns: Columns):
        self._columns = columns
        self._by_key: dict[tuple[str, str], Medium] = {}
        self._unusable: list[Medium] = []
        self._repeated: list[str] = []
        self._real_folder = functools.cache(os.path.realpath)

    def read_table(self, table: Path, *, is_named: bool) -> None:
        try:
            rows, column = tables.read_table(table, self._columns)
        except ValueError as error:
            if is_named:
                raise
            self._unusable.append(Medium(table, problem=str(error), is_medium=False))
            return
        for row in rows:
            self._add(table, row, has_captions=column is not None)

    def read_lists(self, captions_file: Path, media_file: Path) -> None:
        try:
            rows = tables.read_lists(captions_file, media_file)
        except ValueError as error:
            self._unusable.append(Medium(captions_file, problem=str(error), is_medium=False))
            return
        for row in rows:
            self._add(media_file, row, has_captions=True)

    def _add(self, table: Path, row: tables.Row, *, has_captions: bool) -> None:
        where = f"{table}, {row.where}"
        try:
            if row.problem:
                raise ValueError(f"{where} {row.problem}")
            path = _path(table.parent, row.media, where)
        except ValueError as error:
            self._unusable.append(Medium(table, problem=str(error), is_medium=False))
            return
        texts, problem = (), ""
        if has_captions:
            try:
                texts = captions.from_value(row.captions)
            except ValueError as error:
                problem = f"{where}: the caption of {path.name} {error}"
        others = json.dumps(row.others, ensure_ascii=False, default=str)
        belonging = self._companions(table, row, where)
        key = self._key(path)
        if key in self._by_key:
            before = self._by_key[key]
            self._repeated.append(f"{path} ({where})")
            texts = tuple(dict.fromkeys((*before.captions, *texts)))
            path, problem, others = before.place, before.problem or problem, before.row
            belonging = before.companions
        problem = "" if texts else problem
        self._by_key[key] = Medium(path, texts, problem, others, companions=belonging)

    def _companions(self, table: Path, row: tables.Row, where: str) -> Companions:
        """The companions that a row names."""
        places: dict[str, Path] = {}
        problem = ""
        for kind in companions.KINDS:
            chosen = getattr(self._columns, kind)
            column = captions.find_column(row.others, chosen, companions.COLUMNS[kind])
            if column is None or row.others[column] in (None, ""):
                continue
            try:
                places[kind] = _path(table.parent, row.others[column], where, column)
            except ValueError as error:
                problem = str(error)
        return Companions(**places, problem=problem)

    def _key(self, path: Path) -> tuple[str, str]:
        """A key that is the same for all paths of a file."""
        return self._real_folder(path.parent), path.name

    def media(self, loose: Iterable[Path], beside: captions.CaptionFiles) -> list[Medium]:
        """All media: those of the tables, and loose files, whose captions lie beside them."""
        if self._repeated:
            _log.warning(
                "%d rows name a file again, and add their captions to it; the first: %s",
                len(self._repeated),
                self._repeated[0],
            )
        by_key = dict(self._by_key)
        for path in loose:
            key = self._key(path)
            by_key[key] = dataclasses.replace(by_key.get(key, Medium(path)), place=path)
        return self._unusable + [_completed(medium, beside) for medium in by_key.values()]


def _completed(medium: Medium, beside: captions.CaptionFiles) -> Medium:
    """Adds the captions that lie beside a medium, if a table has none for it."""
    if medium.captions:
        return medium
    assert isinstance(medium.place, Path)
    try:
        return dataclasses.replace(medium, captions=beside.read(medium.place), problem="")
    except ValueError as error:
        return dataclasses.replace(medium, problem=medium.problem or str(error))


def _path(folder: Path, value: object, where: str, column: str = "of media") -> Path:
    """The path that a table's entry means, relative to the table's folder.

    Absolute paths and `..` are allowed: a table names the files of its owner.
    """
    if not isinstance(value, str) or not value.strip():
        kind = (
            "no path" if value is None or value == "" else f"{str(value)[:40]!r}, which is no path,"
        )
        raise ValueError(f"{where} has {kind} in the column {column}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", value):
        raise ValueError(
            f"{where} names {value[:200]}: download it, and write the path of the file"
        )
    if "\0" in value:
        raise ValueError(f"{where} names a file with a null character")
    path = folder / value.strip()
    if any(p.suffix == archives.ENDING and p.is_file() for p in path.parents):
        raise ValueError(
            f"{where} names {value[:200]}, which lies in an archive: unpack it, or name the "
            "archive as the source, with the captions in it"
        )
    if "\\" in value and not path.exists():
        path = folder / value.strip().replace("\\", "/")  # of a table from Windows
    return path


def _packed(archive: Path, columns: Columns) -> Iterator[Medium]:
    """The samples of an archive that hold a medium."""
    try:
        for name, files in archives.samples(archive):
            belonging: dict[str, inputs.Part] = {}
            media = []
            for ending, part in files.items():
                kind = ending.partition(".")[0]
                if not f".{ending}".endswith(ENDINGS):
                    continue
                if kind in companions.KINDS and "." in ending:
                    belonging.setdefault(kind, part)
                else:
                    media.append(part)
            clips = [part for part in media if part.name.lower().endswith(CLIPS)]
            best = clips or media
            if len(best) > 1:
                problem = f"{archive}/{name} holds {' and '.join(part.name for part in best)}"
                yield Medium(archive, problem=f"{problem}: one is expected", is_medium=False)
            elif best:
                try:
                    texts, others = _packed_captions(f"{archive}/{name}", files, columns.captions)
                    row = json.dumps(others, ensure_ascii=False)
                    yield Medium(
                        best[0], texts, row=row, companions=Companions()._replace(**belonging)
                    )
                except ValueError as error:
                    yield Medium(best[0], problem=str(error))
    except ValueError as error:
        yield Medium(archive, problem=str(error), is_medium=False)


def _packed_captions(
    name: str, files: dict[str, inputs.Part], column: str | None
) -> tuple[tuple[str, ...], dict[str, object]]:
    """The captions of a sample, and the other entries of its JSON.

    A text file comes before JSON, unless a key of JSON is chosen.
    """

    def text(part: inputs.Part) -> str:
        if part.size > _CAPTION_BYTES:
            raise ValueError(f"{part} is too large for a caption ({part.size} bytes)")
        return inputs.decode_text(part.read(), part)

    by_ending = {f".{ending}".rpartition(".")[2]: part for ending, part in files.items()}
    plain = next((by_ending[end] for end in ("txt", "caption", "text") if end in by_ending), None)
    described = by_ending.get("json")
    if plain is not None and (described is None or column is None):
        try:
            return captions.from_value(text(plain)), {}
        except ValueError as error:
            raise ValueError(f"{plain} {error}") from error
    if described is None:
        raise ValueError(f"{name} has no caption: there is no .txt or .json with it")
    return captions.from_json(text(described), described, column)
