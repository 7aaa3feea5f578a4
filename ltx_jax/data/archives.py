"""WebDataset's tar archives, read where they lie: which samples they hold, at which offsets.

The files of a sample have a common name up to the first dot: `0001.mp4`, `0001.txt`, `0001.json`.
"""

import itertools
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from ltx_jax.data import inputs

ENDING = ".tar"
_MAX_NAMES = 100_000  # that braces may expand to


def expand_braces(text: str) -> list[str]:
    """Expands `{000..009}` and `{a,b}`, as shells do.

    Raises:
      ValueError: if there would be too many names.
    """
    parts: list[list[str]] = []
    for literal, braces in re.findall(r"([^{}]+|[{}](?![^{}]*\}))|\{([^{}]*)\}", text):
        parts.append([literal] if literal else _alternatives(braces, text))
    count = 1
    for part in parts:
        count *= len(part)
    if count > _MAX_NAMES:
        raise ValueError(f"{text} stands for {count} names, more than {_MAX_NAMES}")
    return ["".join(pieces) for pieces in itertools.product(*parts)]


def _alternatives(braces: str, text: str) -> list[str]:
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", braces)
    if bounds is None:
        return braces.split(",") if "," in braces else [f"{{{braces}}}"]
    first, last = (int(bound[:9]) for bound in bounds.groups())
    if abs(last - first) >= _MAX_NAMES:
        raise ValueError(f"{text} stands for more than {_MAX_NAMES} names")
    step = 1 if first <= last else -1
    width = len(bounds[1]) if bounds[1].startswith("0") else 0
    return [f"{number:0{width}}" for number in range(first, last + step, step)]


def samples(archive: Path) -> Iterator[tuple[str, dict[str, inputs.Part]]]:
    """Yields the samples of an archive in their order: name, and the files by their ending.

    Endings are in lower case: "mp4", "caption.txt".

    Raises:
      ValueError: naming the archive, if it is damaged or cut off, or a sample holds two files with
        one ending. All samples before that place have been yielded then.
    """
    found: dict[str, dict[str, inputs.Part]] = {}
    problem = ""
    try:
        for part in _parts(archive):
            folder, slash, name = part.name.rpartition("/")
            stem, _, ending = name.partition(".")
            if not stem or not ending:
                continue
            sample = found.setdefault(f"{folder}{slash}{stem}", {})
            if sample.setdefault(ending.lower(), part) is not part:
                problem = problem or f"{archive} holds {part.name} twice: the first is read"
    except ValueError as error:
        problem = str(error)
    yield from found.items()
    if problem:
        raise ValueError(problem)


def _parts(archive: Path) -> Iterator[inputs.Part]:
    """The regular files of an archive."""
    inputs.check(archive)
    size = archive.stat().st_size
    count = 0
    try:
        with tarfile.open(archive, "r:") as tar:
            while (member := tar.next()) is not None:
                # tarfile would keep a record of every file.
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                end = member.offset_data + member.size
                if member.size < 0 or end > size:
                    raise tarfile.ReadError("a file in it extends beyond its end")
                if member.isfile() and not member.issparse():
                    count += 1
                    yield inputs.Part(archive, member.name, member.offset_data, member.size)
            # tarfile takes anything that is not a header for the end of the archive.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("there is no header where one is expected")
            if tar.offset >= size:
                raise tarfile.ReadError("it has no end mark")
    except (tarfile.TarError, OSError) as error:
        kind = "is no uncompressed tar archive, or" if not count else "is cut off or"
        raise ValueError(f"{archive} {kind} damaged after {count} files: {error}") from error
