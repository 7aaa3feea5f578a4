"""What can happen in the procedural world: scenes, and how they are drawn at random.

A scene is described in time and space without frames or pixels: seconds, and the picture's shorter
side as the unit of length, x to the right and y down from the middle of the picture. Rendering and
captions are in `shapes.py` and `captions.py`.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (222, 36, 40),
    "orange": (250, 132, 12),
    "yellow": (248, 214, 28),
    "green": (36, 164, 60),
    "cyan": (32, 198, 214),
    "blue": (36, 72, 222),
    "purple": (134, 44, 196),
    "pink": (248, 88, 172),
}
# Unit vectors, x right and y down.
_D = math.sqrt(0.5)
DIRECTIONS = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up-left": (-_D, -_D),
    "up-right": (_D, -_D),
    "down-left": (-_D, _D),
    "down-right": (_D, _D),
}
MOTIONS = (*DIRECTIONS, "still", "orbit", "grow", "shrink", "rotate")
# Less saturated than any colour of an object, so that colour alone tells objects from background.
TONES = {
    "black": (26, 26, 29),
    "grey": (126, 127, 130),
    "white": (232, 232, 230),
    "brown": (98, 80, 68),
    "beige": (206, 192, 170),
    "slate": (70, 82, 96),
}
TEXTURES = ("plain", "shaded", "striped", "checkered", "dotted", "cloudy")
PAN_SPEED = 0.12  # shorter sides per second
PANS = ("left", "right", "up", "down")

Split = Literal["train", "held_out", "all"]
Triple = tuple[str, str, str]  # shape, colour, motion

# Speeds by motion for "slowly", no word, "quickly". Directions: shorter sides per second; orbit and
# rotate: degrees per second; grow and shrink: change of log(size) per second.
_PACES = (
    {name: (0.12, 0.19, 0.27) for name in DIRECTIONS}
    | {"still": (0.0, 0.0, 0.0), "orbit": (110.0, 150.0, 200.0), "rotate": (50.0, 80.0, 120.0)}
    | {"grow": (0.2, 0.32, 0.44), "shrink": (0.2, 0.32, 0.44)}
)
_SIZES = (0.30, 0.37, 0.44)  # small, no word, large
_ORBIT_RADIUS = 0.2
_GROWN, _SHRUNK = 0.8, 0.2  # bounds of a size that changes
_MARGIN = 0.01  # kept free between objects and the edge
# A star looks smaller than a circle as wide: the smallest circle around each, for equal looks.
_EXTENT = {
    "circle": 0.88,
    "square": 1.0,
    "triangle": 1.12,
    "star": 1.12,
    "cross": 1.0,
    "ring": 0.94,
}
_ROUND = ("circle", "ring")  # their rotation cannot be seen


@dataclasses.dataclass(frozen=True)
class Figure:
    """One object and its motion."""

    shape: str
    colour: str
    motion: str
    size: float  # at time 0: diameter of the smallest circle around it, in shorter sides
    x: float  # centre at time 0; of the orbit, for an orbit
    y: float
    # Directions: shorter sides per second. Orbit and rotate: degrees per second, positive is
    # clockwise. Grow and shrink: |d log(size) / dt|.
    rate: float
    phase: float = 0.0  # degrees clockwise at time 0: place on the orbit, or angle of a rotation

    @property
    def pace(self) -> Literal["slow", "normal", "fast"]:
        """The word class nearest to `rate`."""
        rates = _PACES[self.motion]
        nearest = min(range(3), key=lambda i: abs(abs(self.rate) - rates[i]))
        return "normal" if self.motion == "still" else ("slow", "normal", "fast")[nearest]

    @property
    def look(self) -> Literal["small", "medium", "large"]:
        """The word class nearest to `size`; what grows is small at first, what shrinks is large."""
        nominal = self.size / _EXTENT[self.shape]
        nearest = min(range(3), key=lambda i: abs(nominal - _SIZES[i]))
        return ("small", "medium", "large")[nearest]


@dataclasses.dataclass(frozen=True)
class Background:
    """A tone, and a texture of low contrast on it."""

    tone: str
    texture: str = "plain"
    wavelength: float = 0.25  # of the texture, in shorter sides
    angle: float = 0.0  # degrees
    seed: int = 0  # of the waves of clouds


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two objects before a background; everything that a clip shows but its sampling.

    Motions are as seen in the picture. `pan` moves the camera along with the objects: the
    background alone slides, the other way.
    """

    objects: tuple[Figure, ...]
    background: Background
    pan: str | None = None


@dataclasses.dataclass(frozen=True)
class Path:
    """Where a figure is at some times, in the units of the scene."""

    x: Float64[np.ndarray, " t"]
    y: Float64[np.ndarray, " t"]
    size: Float64[np.ndarray, " t"]
    angle: Float64[np.ndarray, " t"]  # degrees, clockwise


def path(figure: Figure, seconds: Float64[np.ndarray, " t"]) -> Path:
    """Follows a figure: its centre, size and angle at the given times."""
    nothing = np.zeros_like(seconds)
    x, y, size, angle = (nothing + value for value in (figure.x, figure.y, figure.size, 0.0))
    if figure.motion in DIRECTIONS:
        dx, dy = DIRECTIONS[figure.motion]
        x, y = x + dx * figure.rate * seconds, y + dy * figure.rate * seconds
    elif figure.motion == "orbit":
        turn = np.deg2rad(figure.phase + figure.rate * seconds)
        x, y = x + _ORBIT_RADIUS * np.cos(turn), y + _ORBIT_RADIUS * np.sin(turn)
    elif figure.motion in ("grow", "shrink"):
        sign = 1 if figure.motion == "grow" else -1
        size = size * np.exp(sign * figure.rate * seconds)
    elif figure.motion == "rotate":
        angle = angle + figure.phase + figure.rate * seconds
    elif figure.motion != "still":
        check_motions([figure.motion])
    return Path(x, y, size, angle)


def is_held_out(shape: str, colour: str, motion: str) -> bool:
    """Whether training never shows this triple: a hash of the words, one in ten, for all time."""
    # The prefix was chosen so that exactly 61 of the 608 triples fall, spread over all words.
    digest = hashlib.sha256(f"2812 {shape} {colour} {motion}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 10 == 0


def triples(split: Split = "all") -> tuple[Triple, ...]:
    """All (shape, colour, motion) of a split. Round shapes do not rotate: nobody could tell.

    Raises:
      ValueError: if there is no such split.
    """
    if split not in _TRIPLES:
        raise ValueError(f"unknown split {split!r}; known are {', '.join(_TRIPLES)}")
    return _TRIPLES[split]


_ALL = tuple(
    triple
    for triple in itertools.product(SHAPES, COLOURS, MOTIONS)
    if not (triple[0] in _ROUND and triple[2] == "rotate")
)
_TRIPLES: dict[str, tuple[Triple, ...]] = {
    "all": _ALL,
    "train": tuple(triple for triple in _ALL if not is_held_out(*triple)),
    "held_out": tuple(triple for triple in _ALL if is_held_out(*triple)),
}


def sample_scene(
    rng: np.random.Generator,
    *,
    split: Split = "train",
    seconds: float | int = 1.0,
    aspect: float | int = 1.0,
    num_objects: int | None = None,
    motions: Sequence[str] = MOTIONS,
) -> Scene:
    """Draws a scene whose objects stay inside the picture for so many seconds.

    Args:
      rng: the only source of chance.
      split: "train" holds no held-out triple; in "held_out" every object is one.
      seconds: what does not fit is slowed down.
      aspect: width over height of the picture.
      num_objects: 1 or 2; None is 1, and 2 in a fifth of the scenes.
      motions: that objects may have.

    Raises:
      ValueError: if an argument is out of range, or nothing moves like that.
    """
    if seconds < 0 or aspect <= 0 or num_objects not in (None, 1, 2):
        raise ValueError(
            f"seconds must be >= 0, aspect positive and num_objects 1, 2 or None, "
            f"got {seconds}, {aspect}, {num_objects}"
        )
    half = max(aspect, 1.0) / 2, max(1 / aspect, 1.0) / 2
    known = _moving(split, tuple(motions))
    two = num_objects == 2 or (num_objects is None and rng.random() < 0.2)
    objects = (_sample_figure(rng, _choose(rng, known), seconds, half, two),)
    while two:
        first = _sample_figure(rng, _choose(rng, known), seconds, half, two)
        others = [t for t in known if t[0] != first.shape and t[1] != first.colour]
        objects = (first, _sample_figure(rng, _choose(rng, others), seconds, half, two))
        if not _collide(*objects, seconds):
            break
    return Scene(objects, *_sample_background(rng))


@functools.cache
def _moving(split: Split, motions: tuple[str, ...]) -> tuple[Triple, ...]:
    """The triples of a split with one of these motions."""
    check_motions(motions)
    return tuple(triple for triple in triples(split) if triple[2] in motions)


def check_motions(motions: Sequence[str]) -> None:
    """Refuses words that are no motion, and none at all.

    Raises:
      ValueError: naming the first.
    """
    for word in motions or ("",):
        if word not in MOTIONS:
            raise ValueError(f"unknown motion {word!r}; known are {', '.join(MOTIONS)}")


def _choose(rng: np.random.Generator, options):
    # Generator.random alone: its stream is the one that numpy keeps the same between versions.
    return options[int(rng.random() * len(options))]


def _sample_figure(
    rng: np.random.Generator,
    triple: Triple,
    seconds: float | int,
    half: tuple[float, float],
    small: bool,
) -> Figure:
    shape, colour, motion = triple
    nominal = _SIZES[0] if small else _choose(rng, _SIZES)
    if motion in ("grow", "shrink"):
        nominal = {"grow": 0.26, "shrink": 0.4 if small else 0.56}[motion]
    size = nominal * _EXTENT[shape] * (0.97 + 0.06 * rng.random())
    rate = _choose(rng, _PACES[motion])
    sign = _choose(rng, (-1, 1)) if motion in ("orbit", "rotate") else 1
    phase = 360 * rng.random() if motion in ("orbit", "rotate") else 0.0
    spots = rng.random(), rng.random()
    while True:
        figure = Figure(shape, colour, motion, size, 0.0, 0.0, sign * rate, phase)
        ranges, fits = _room(figure, seconds, half)
        if fits or rate < 1e-3:
            break
        slower = [pace for pace in _PACES[motion] if pace < rate]
        rate = slower[-1] if slower else 0.9 * rate
    x, y = (low + spot * (high - low) for spot, (low, high) in zip(spots, ranges, strict=True))
    return dataclasses.replace(figure, x=x, y=y)


def _room(
    figure: Figure, seconds: float | int, half: tuple[float, float]
) -> tuple[list[tuple[float, float]], bool]:
    """Where the centre may start on each axis, and whether there is such a place."""
    track = path(figure, np.linspace(0, seconds, 33))
    fits = track.size.min() >= _SHRUNK and track.size.max() <= _GROWN
    fits = fits or figure.motion not in ("grow", "shrink")
    ranges = []
    for centres, side in ((track.x, half[0]), (track.y, half[1])):
        low = _MARGIN - side - np.min(centres - track.size / 2)
        high = side - _MARGIN - np.max(centres + track.size / 2)
        fits = fits and low <= high
        ranges.append((float(low), float(high)) if low <= high else (float(low + high) / 2,) * 2)
    return ranges, bool(fits)


def _collide(one: Figure, other: Figure, seconds: float | int) -> bool:
    times = np.linspace(0, seconds, 33)
    a, b = path(one, times), path(other, times)
    gap = np.hypot(a.x - b.x, a.y - b.y) - (a.size + b.size) / 2
    return bool(gap.min() < _MARGIN)


def _sample_background(rng: np.random.Generator) -> tuple[Background, str | None]:
    tone, texture = _choose(rng, tuple(TONES)), _choose(rng, TEXTURES)
    background = Background(
        tone,
        texture,
        wavelength=0.2 + 0.12 * rng.random(),
        angle=_choose(rng, (0.0, 30.0, 45.0, 60.0, 90.0, 120.0, 135.0, 150.0)),
        seed=int(rng.random() * 2**31),
    )
    # A plain or shaded background would not show that it slides.
    pans = texture not in ("plain", "shaded") and rng.random() < 0.3
    return background, _choose(rng, PANS) if pans else None
