"""Tables of media and captions: CSV, JSON, JSON lines, Parquet, and pairs of text files."""

import csv
import io
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ltx_jax.data import captions, inputs

ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
# Names that the tables of data sets have: Hugging Face's folders of videos ("metadata"), and
# LTX-Video-Trainer ("dataset", "captions").
_STEMS = ("metadata", "dataset", "captions")
# finetrainers' pairs of text files: line i of one is the caption of the file in line i of the
# other.
_CAPTION_LISTS = ("prompt.txt", "prompts.txt", "caption.txt", "captions.txt")
_MEDIA_LISTS = ("videos.txt", "video.txt", "images.txt", "image.txt")
_MEDIA_COLUMNS = (
    *("file_name", "media_path", "video_path", "image_path", "video_file", "image_file"),
    *("video", "image", "media", "path", "file", "filename", "file_path", "filepath"),
)
_DELIMITERS = ",;\t"


class Columns(NamedTuple):
    """Names of the columns that are read; None: the usual ones."""

    media: str | None = None
    captions: str | None = None
    reference: str | None = None
    mask: str | None = None


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      where: its place in messages: "row 3".
      media: the value of the column of media.
      captions: the value of the column of captions; None if there is no such column.
      others: the other columns.
      problem: why the row cannot be read, if it cannot; continues a sentence.
    """

    where: str
    media: Any
    captions: Any
    others: dict[str, Any]
    problem: str = ""


def is_table(path: Path) -> bool:
    """Whether a file has the ending of a table."""
    return path.suffix.lower() in ENDINGS


def has_usual_name(path: Path) -> bool:
    """Whether a file in a folder of media is called as tables are: `metadata.csv`."""
    return is_table(path) and path.stem.lower() in _STEMS


def find_lists(names: Collection[str]) -> tuple[str, str] | None:
    """The files with the captions and with the paths, among the names of a folder's files."""
    lists = [
        next((name for name in usual if name in names), None)
        for usual in (_CAPTION_LISTS, _MEDIA_LISTS)
    ]
    return None if None in lists else (str(lists[0]), str(lists[1]))


def read_lists(captions_file: Path, media_file: Path) -> list[Row]:
    """Pairs the lines of two text files.

    Raises:
      ValueError: if one cannot be read, or they have different numbers of lines.
    """
    texts, paths = (_lines(file) for file in (captions_file, media_file))
    if len(texts) != len(paths):
        raise ValueError(
            f"{captions_file} has {len(texts)} lines and {media_file.name} {len(paths)}: line i of "
            "one must be the caption of the file in line i of the other"
        )
    pairs = enumerate(zip(paths, texts, strict=True), 1)
    return [Row(f"line {i}", path, text, {}) for i, (path, text) in pairs if path or text]


def _lines(file: Path) -> list[str]:
    lines = inputs.read_lines(file)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def read_table(path: Path, columns: Columns = Columns()) -> tuple[list[Row], str | None]:
    """Reads a table.

    Args:
      path: CSV (delimited by comma, semicolon or tab), JSON (a list of objects, or an object from
        paths to captions), JSON lines or Parquet.
      columns: the columns of media and captions.

    Returns:
      The rows, and the name of the column of captions, or None if there is none.

    Raises:
      ValueError: naming the file, if it cannot be read, or has no column of media, or not a column
        that `columns` names.
    """
    read = {".parquet": _parquet, ".json": _json, ".jsonl": _json_lines}
    names, content = read.get(path.suffix.lower(), _csv)(path, columns)
    media = captions.find_column(names, columns.media, _MEDIA_COLUMNS)
    text = captions.find_column(names, columns.captions, captions.COLUMNS)
    missing = columns.media if media is None else columns.captions if text is None else None
    if media is None or missing:
        kinds = missing or f"of media ({', '.join(_MEDIA_COLUMNS)})"
        raise ValueError(
            f"{path} has no column {kinds}, only {', '.join(names)[:200] or 'rows without any'}: "
            "set media_column or caption_column"
        )
    rows = []
    for where, fields, problem in content:
        others = {name: value for name, value in fields.items() if name not in (media, text)}
        caption = None if text is None else fields.get(text)
        rows.append(Row(where, fields.get(media), caption, others, problem))
    return rows, text


# A place in a table, the fields there, and what is wrong with them.
_Fields = tuple[str, dict[str, Any], str]
# The names of a table's columns, as keys, and its rows.
_Content = tuple[dict[str, None], list[_Fields]]


def _csv(path: Path, columns: Columns) -> _Content:
    text = inputs.read_text(path)

    def has_media(delimiter: str) -> bool:
        header = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
        names = dict.fromkeys(name.strip() for name in header)
        return captions.find_column(names, columns.media, _MEDIA_COLUMNS) is not None

    rows, line = [], 0
    try:
        delimiter = next(filter(has_media, _DELIMITERS), _DELIMITERS[0])
        # Strict: an open quote would otherwise swallow the rest of the file.
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader, [])]
        line = reader.line_num
        for values in reader:
            line = reader.line_num
            problem = ""
            if len(values) != len(header):
                problem = (
                    f"has {len(values)} fields where the header has {len(header)}: put quotes "
                    "around captions that contain the delimiter"
                )
            if values:
                rows.append((f"line {line}", dict(zip(header, values, strict=False)), problem))
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV after line {line}: {error}") from error
    return dict.fromkeys(header), rows


def _json(path: Path, columns: Columns) -> _Content:
    content = captions.parse_json(inputs.read_text(path), path)
    if isinstance(content, dict) and all(isinstance(x, str | list) for x in content.values()):
        names = columns.media or _MEDIA_COLUMNS[0], columns.captions or captions.COLUMNS[0]
        content = [dict(zip(names, pair, strict=True)) for pair in content.items()]
    if not isinstance(content, list):
        raise ValueError(f"{path} holds neither a list of objects nor captions by path")
    return _objects(("row", number, value) for number, value in enumerate(content, 1))


def _json_lines(path: Path, columns: Columns) -> _Content:
    def parsed() -> Iterator[tuple[str, int, Any]]:
        for number, line in enumerate(inputs.read_lines(path), 1):
            if line:
                try:
                    yield "line", number, captions.parse_json(line, path)
                except ValueError:
                    yield "line", number, None

    return _objects(parsed())


def _objects(values: Iterable[tuple[str, int, Any]]) -> _Content:
    names: dict[str, None] = {}
    rows: list[_Fields] = []
    for kind, number, value in values:
        is_object = isinstance(value, dict)
        fields = value if is_object else {}
        names |= dict.fromkeys(fields)
        rows.append((f"{kind} {number}", fields, "" if is_object else "is no JSON object"))
    return names, rows


def _parquet(path: Path, columns: Columns) -> _Content:
    inputs.check(path)
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(
            f"{path} is a Parquet file, which needs pyarrow: pip install pyarrow, or save it as CSV"
        ) from error
    try:
        with parquet.ParquetFile(os.fspath(path)) as file:
            # Media that lie in the table itself would fill the memory.
            fields = list(file.schema_arrow)
            names = [field.name for field in fields if not _holds_bytes(field.type)]
            values = file.read(columns=names).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is no Parquet file, or damaged: {str(error)[:80]}") from error
    contents = dict.fromkeys(field.name for field in fields if field.name not in names)
    inside = captions.find_column(contents, columns.media, _MEDIA_COLUMNS)
    if inside and not captions.find_column(dict.fromkeys(names), columns.media, _MEDIA_COLUMNS):
        raise ValueError(
            f"{path} holds the media themselves, in its column {inside}: save them as files, and "
            "write a table with their paths"
        )
    rows = [(f"row {number}", fields, "") for number, fields in enumerate(values, 1)]
    return dict.fromkeys(names), rows


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    is_bytes = types.is_binary(kind) or types.is_large_binary(kind)
    return is_bytes or any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
