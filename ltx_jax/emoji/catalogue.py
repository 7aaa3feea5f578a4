"""The emoji of a data set, and the splits into which scenes of them fall."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from typing import Literal

FRAME_RATE = 12.0  # frames per second of the stored clips
TONES = (
    "",  # yellow, the emoji without a skin tone
    "light skin tone",
    "medium-light skin tone",
    "medium skin tone",
    "medium-dark skin tone",
    "dark skin tone",
)
# Training uses only "train". What it never shows: in "combinations", emoji, background and motion
# in these combinations, although each of the three occurs in training; in "tones", one skin tone of
# each emoji that has skin tones; in "bases", whole emoji with all their variants.
Split = Literal["train", "combinations", "tones", "bases"]
SPLITS: tuple[Split, ...] = ("train", "combinations", "tones", "bases")

# Subgroups that look right in a mirror: no hands, clocks, letters, flags, moons or signs.
_MIRRORED = (
    *("face-smiling", "face-affection", "face-hand", "face-neutral-skeptical", "face-unwell"),
    *("face-hat", "face-glasses", "face-concerned", "face-costume", "cat-face", "monkey-face"),
    *("person-gesture", "person-activity", "person-fantasy", "person-sport", "person-resting"),
    *("animal-mammal", "animal-bird", "animal-amphibian", "animal-reptile", "animal-marine"),
    *("animal-bug", "plant-flower", "plant-other", "food-fruit", "food-vegetable"),
)
_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
_TONE_SIGNS = range(0x1F3FB, 0x1F400)
_GENDER_SIGNS = (0x2640, 0x2642)
_GENDERED = {0x1F468: 0x1F9D1, 0x1F469: 0x1F9D1}  # man, woman: person
_JOINERS = (0x200D, 0xFE0F)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One emoji: its names in Unicode, and the extent of its clip."""

    hexcode: str  # code points in lower case, with hyphens, without variation selectors
    label: str  # "artist: dark skin tone"
    thing: str  # the label of its base: "artist"
    tags: tuple[str, ...]
    group: str  # "people-body"
    subgroup: str  # "person-role"
    tone: int  # index into TONES
    base: str  # hexcode of the same emoji without a skin tone
    frames: int  # of the clip; 1 for a picture
    # Smallest box around the visible pixels of all frames: top, left, bottom, right, as fractions
    # of the canvas.
    box: tuple[float, float, float, float]

    @property
    def animated(self) -> bool:
        """Whether the emoji is a clip and not a picture."""
        return self.frames > 1

    @property
    def mirrors(self) -> bool:
        """Whether the emoji may be shown mirrored: its name still fits the mirror image."""
        return self.subgroup in _MIRRORED and not _SIDES.search(self.label)

    @property
    def family(self) -> str:
        """A key shared by the emoji that differ only in skin tone or gender."""
        points = [int(point, 16) for point in self.base.split("-")]
        ignored = (*_TONE_SIGNS, *_GENDER_SIGNS, *_JOINERS)
        return "-".join(
            f"{_GENDERED.get(point, point):x}" for point in points if point not in ignored
        )


def _stable_hash(text: str) -> int:
    """A hash of 64 bits, the same in every process and version."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(entry: Entry, backdrop: str, motion: str) -> Split:
    """The split of a scene of one emoji; it depends only on names, not on the rest of a data set.

    Args:
      entry: the emoji.
      backdrop: key of its background (`scenes.Backdrop.key`).
      motion: its motion or the camera's (`scenes.Scene.motion`).
    """
    if base_is_held_out(entry):
        return "bases"
    if tone_is_held_out(entry):
        return "tones"
    is_combination = _stable_hash(f"combination {entry.base} {backdrop} {motion}") % 10 == 0
    return "combinations" if is_combination else "train"


def base_is_held_out(entry: Entry) -> bool:
    """Whether the family of an emoji belongs to the split "bases"."""
    # The number 372 was chosen so that these are exactly 40 of the 734 animated bases, spread over
    # the groups.
    return _stable_hash(f"base 372 {entry.family}") % 18 == 0


def tone_is_held_out(entry: Entry) -> bool:
    """Whether an emoji has the skin tone of its base that belongs to the split "tones"; never true
    for yellow emoji, which have no skin tone."""
    return entry.tone > 0 and entry.tone == 1 + _stable_hash(f"tone {entry.base}") % 5


class Catalogue:
    """The emoji of a data set, grouped by base for each split.

    Args:
      entries: in the order of the data set.

    Attributes:
      entries: the same, as a tuple.

    Raises:
      ValueError: if there are no entries.
    """

    def __init__(self, entries: Iterable[Entry]):
        self.entries = tuple(entries)
        if not self.entries:
            raise ValueError("a catalogue needs at least one emoji")
        self._bases = {
            (split, animated): _by_base(self.entries, split, animated)
            for split in SPLITS
            for animated in (True, False)
        }

    def bases(self, split: Split, animated: bool) -> tuple[tuple[int, ...], ...]:
        """Numbers of the entries that scenes of a split are sampled from, grouped by base.

        Args:
          split: "combinations" has the same emoji as "train".
          animated: True for clips, False for pictures.
        """
        return self._bases[split, animated]


def _by_base(
    entries: tuple[Entry, ...], split: Split, animated: bool
) -> tuple[tuple[int, ...], ...]:
    bases: dict[str, list[int]] = {}
    for number, entry in enumerate(entries):
        is_base, is_tone = base_is_held_out(entry), tone_is_held_out(entry)
        belongs = {"bases": is_base, "tones": is_tone and not is_base}
        if entry.animated == animated and belongs.get(split, not (is_base or is_tone)):
            bases.setdefault(entry.base, []).append(number)
    return tuple(map(tuple, bases.values()))
