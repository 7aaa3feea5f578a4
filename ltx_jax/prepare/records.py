"""The record that describes a clip in every stage of data preparation, whether kept or dropped."""

import dataclasses
import enum
from pathlib import Path
from typing import Any

from ltx_jax.data import inputs


class Reason(enum.StrEnum):
    """Why a clip or a file was dropped. The values appear in dropped.csv and in the report."""

    FILE = "unusable file"  # missing, empty, damaged, without a picture, ...
    PICTURES = "unusable pictures"  # interlaced, transparent, high dynamic range
    RATE = "frame rate too low"
    SMALL = "picture too small"
    SHORT = "too short"
    STILL = "no motion"
    DUPLICATE = "duplicate"
    TEXT = "text"
    AESTHETICS = "aesthetics"
    CAPTION = "no caption"


@dataclasses.dataclass(frozen=True)
class ClipRecord:
    """A clip: a time span of a source file, or the whole file if it was dropped before cutting.

    The field names are the keys of stored records and of a data set's provenance.
    """

    source: str = ""  # path of the file; for one in an archive, that of the archive and its name
    # Path of the archive, and the file's first byte and size in it; None outside of archives.
    part: tuple[str, int, int] | None = None
    row: str = "{}"  # JSON: other columns of the table that names the file
    digest: str = ""  # SHA-256 of the source file
    number: int = -1  # index of the clip in its source; -1: the whole source
    shot: int = -1  # index of the shot in its source
    start: float = 0.0  # seconds into the source
    seconds: float = 0.0
    height: int = 0  # of the source in pixels, after rotation
    width: int = 0
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, height, width, in source pixels
    source_rate: float = 0.0  # average frames per second of the source
    frame_rate: float = 0.0  # frames per second of the stored clip
    steady: bool = True  # the source has a constant frame rate
    motion: float | None = None  # percent of the diagonal per second
    hashes: tuple[int, ...] = ()  # perceptual hashes of frames spread over the clip, 64 bits each
    text: float | None = None  # fraction of the picture that text covers
    aesthetics: float | None = None
    # (origin, caption); the origin is "file" for a file of the user, else a model.
    captions: tuple[tuple[str, str], ...] = ()
    reason: str = ""  # a `Reason` if the clip was dropped; empty if it is kept
    detail: str = ""
    file: str = ""  # the file that contains the encoded clip, and
    place: int = 0  # the clip's index in that file

    @property
    def name(self) -> str:
        """A unique name of the clip."""
        return f"{self.source}#{self.number}"

    @classmethod
    def of(cls, place: inputs.Place, row: str = "{}") -> "ClipRecord":
        """The record of a whole source."""
        is_part = isinstance(place, inputs.Part)
        part = (str(place.archive), place.offset, place.size) if is_part else None
        return cls(source=str(place), part=part, row=row)

    def load(self) -> inputs.File:
        """The source, for the readers of media; one in an archive is read into memory.

        Raises:
          ValueError: if the archive cannot be read.
        """
        if self.part is None:
            return self.source
        archive, offset, size = self.part
        name = self.source.removeprefix(f"{archive}/")
        return inputs.loaded(inputs.Part(Path(archive), name, offset, size))

    def drop(self, reason: Reason, detail: str = "") -> "ClipRecord":
        """A copy marked as dropped; a clip that was dropped before keeps its first reason."""
        if self.reason:
            return self
        return dataclasses.replace(self, reason=str(reason), detail=detail)

    @property
    def content(self) -> list[Any]:
        """The fields that determine the clip's pixels, as part of a cache key."""
        return [self.digest, self.start, self.seconds, self.crop]

    def to_json(self) -> dict[str, Any]:
        """The record as a dict that JSON can store."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ClipRecord":
        """The inverse of `to_json`."""

        def tuples(value: Any) -> Any:
            return tuple(map(tuples, value)) if isinstance(value, list) else value

        return cls(**{name: tuples(field) for name, field in value.items()})
