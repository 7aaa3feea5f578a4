"""What is known of a clip on its way: one record, from the decoder to the table of dropped ones."""

import dataclasses
import enum
from typing import Any


class Reason(enum.StrEnum):
    """Why something is dropped."""

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
class Clip:
    """A part of a source, or all of it where it was dropped before it was cut."""

    source: str = ""  # its path
    digest: str = ""  # SHA-256 of the file
    number: int = -1  # in its source, from 0; -1: the source as a whole
    shot: int = -1
    start: float = 0.0  # seconds into the source
    seconds: float = 0.0
    height: int = 0  # of the source, as shown
    width: int = 0
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, height, width: what is kept of it
    source_rate: float = 0.0  # frames per second, on average
    frame_rate: float = 0.0  # as stored
    steady: bool = True  # the source shows all frames for as long
    motion: float | None = None  # percent of the diagonal per second
    hashes: tuple[int, ...] = ()  # 64 bits each, of pictures spread over the clip
    text: float | None = None  # share of the picture
    aesthetics: float | None = None
    # (origin, caption): of the file beside the source ("file"), or the name of a model.
    captions: tuple[tuple[str, str], ...] = ()
    reason: str = ""  # why it is dropped; empty: it is kept
    detail: str = ""
    file: str = ""  # of cut clips, and
    place: int = 0  # where in it

    @property
    def name(self) -> str:
        """Tells it from all others."""
        return f"{self.source}#{self.number}"

    def drop(self, reason: Reason, detail: str = "") -> "Clip":
        """The same, dropped, unless it is already."""
        if self.reason:
            return self
        return dataclasses.replace(self, reason=str(reason), detail=detail)

    @property
    def content(self) -> list[Any]:
        """What decides what its pixels are."""
        return [self.digest, self.start, self.seconds, self.crop]

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Clip":
        """The inverse of `to_json`."""

        def tuples(value: Any) -> Any:
            return tuple(map(tuples, value)) if isinstance(value, list) else value

        return cls(**{name: tuples(field) for name, field in value.items()})
