"""Scenes of the procedural world, and how they are sampled at random.

Scenes are independent of frames and pixels: time is in seconds, the unit of length is the shorter
side of the picture, and the origin is the middle of the picture, x to the right and y down.
`render.py` turns a scene into frames, `grammar.py` into a caption.
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
# Less saturated than any colour of an object: colour alone separates objects from the background.
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

# Speeds of each motion: slow, normal and fast. A caption may say "slowly" or "quickly" for the
# outer two. Directions: shorter sides per second; orbit and rotate: degrees per second; grow and
# shrink: change of log(size) per second.
SPEEDS = (
    {name: (0.12, 0.19, 0.27) for name in DIRECTIONS}
    | {"still": (0.0, 0.0, 0.0), "orbit": (110.0, 150.0, 200.0), "rotate": (50.0, 80.0, 120.0)}
    | {"grow": (0.2, 0.32, 0.44), "shrink": (0.2, 0.32, 0.44)}
)
_SIZES = (0.30, 0.37, 0.44)  # small, medium, large
_ORBIT_RADIUS = 0.2
_MAX_SIZE, _MIN_SIZE = 0.8, 0.2  # limits for objects that grow or shrink
_MARGIN = 0.01  # least gap between two objects, and between an object and the edge
# Diameter of the smallest circle around each shape, relative to a square, so that all shapes look
# equally large: a star looks smaller than a circle of the same diameter.
_EXTENT = {
    "circle": 0.88,
    "square": 1.0,
    "triangle": 1.12,
    "star": 1.12,
    "cross": 1.0,
    "ring": 0.94,
}
_ROUND = ("circle", "ring")  # a rotation of these cannot be seen


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object and its motion."""

    shape: str
    colour: str
    motion: str
    size: float  # at time 0: diameter of the smallest circle around it, in shorter sides
    x: float  # centre at time 0; for the motion "orbit", the centre of the orbit
    y: float
    # Speed. Directions: shorter sides per second. Orbit and rotate: degrees per second, positive is
    # clockwise. Grow and shrink: |d log(size) / dt|.
    rate: float
    phase: float = 0.0  # at time 0, in degrees clockwise: place on the orbit, or rotation angle

    @property
    def speed_class(self) -> Literal["slow", "normal", "fast"]:
        """The speed class nearest to `rate`."""
        rates = SPEEDS[self.motion]
        nearest = min(range(3), key=lambda i: abs(abs(self.rate) - rates[i]))
        return "normal" if self.motion == "still" else ("slow", "normal", "fast")[nearest]

    @property
    def size_class(self) -> Literal["small", "medium", "large"]:
        """The size class nearest to `size` at time 0; objects that grow start small."""
        nominal = self.size / _EXTENT[self.shape]
        nearest = min(range(3), key=lambda i: abs(nominal - _SIZES[i]))
        return ("small", "medium", "large")[nearest]


@dataclasses.dataclass(frozen=True)
class Background:
    """A grey or brownish tone with a low-contrast texture."""

    tone: str
    texture: str = "plain"
    wavelength: float = 0.25  # of the texture, in shorter sides
    angle: float = 0.0  # of the texture, in degrees
    seed: int = 0  # of the phases of the texture's waves (and of all waves of "cloudy")


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two objects in front of a background: all that a clip shows.

    Size, length and frame rate of a clip are arguments of the renderer. Motions are relative to the
    picture. `pan` is a camera movement in which the objects move along with the camera, so that
    only the background moves, in the opposite direction.
    """

    objects: tuple[SceneObject, ...]
    background: Background
    pan: str | None = None


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Place, size and angle of an object at each of t times, in the units of the scene."""

    x: Float64[np.ndarray, " t"]
    y: Float64[np.ndarray, " t"]
    size: Float64[np.ndarray, " t"]
    angle: Float64[np.ndarray, " t"]  # degrees, clockwise


def trajectory(obj: SceneObject, seconds: Float64[np.ndarray, " t"]) -> Trajectory:
    """Computes an object's centre, size and angle at the given times."""
    zeros = np.zeros_like(seconds)
    x, y, size, angle = (zeros + value for value in (obj.x, obj.y, obj.size, 0.0))
    if obj.motion in DIRECTIONS:
        dx, dy = DIRECTIONS[obj.motion]
        x, y = x + dx * obj.rate * seconds, y + dy * obj.rate * seconds
    elif obj.motion == "orbit":
        turn = np.deg2rad(obj.phase + obj.rate * seconds)
        x, y = x + _ORBIT_RADIUS * np.cos(turn), y + _ORBIT_RADIUS * np.sin(turn)
    elif obj.motion in ("grow", "shrink"):
        sign = 1 if obj.motion == "grow" else -1
        size = size * np.exp(sign * obj.rate * seconds)
    elif obj.motion == "rotate":
        angle = angle + obj.phase + obj.rate * seconds
    elif obj.motion != "still":
        check_motions([obj.motion])
    return Trajectory(x, y, size, angle)


def is_held_out(shape: str, colour: str, motion: str) -> bool:
    """Whether this triple is excluded from training.

    A hash of the three words decides, so the split never changes; one triple in ten is held out.
    """
    # The prefix was chosen so that exactly 61 of the 608 triples are held out, spread over all
    # words.
    digest = hashlib.sha256(f"2812 {shape} {colour} {motion}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 10 == 0


def triples(split: Split = "all") -> tuple[Triple, ...]:
    """All (shape, colour, motion) triples of a split.

    Circles and rings never rotate, as that could not be seen.

    Raises:
      ValueError: if there is no such split.
    """
    if split not in _TRIPLES:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(_TRIPLES)}")
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
    """Samples a scene whose objects stay inside the picture for the given duration.

    Args:
      rng: the only source of randomness.
      split: "train" has no held-out triple; in "held_out" every object is a held-out triple.
      seconds: duration; objects that would leave the picture are slowed down.
      aspect: width / height of the picture.
      num_objects: 1 or 2; None gives 2 in a fifth of the scenes and 1 in the others.
      motions: the motions to choose from.

    Raises:
      ValueError: if an argument is out of range, or a motion is unknown.
    """
    if seconds < 0 or aspect <= 0 or num_objects not in (None, 1, 2):
        raise ValueError(
            f"seconds must be >= 0, aspect positive and num_objects 1, 2 or None, "
            f"got {seconds}, {aspect}, {num_objects}"
        )
    half_extent = max(aspect, 1.0) / 2, max(1 / aspect, 1.0) / 2
    candidates = _triples_with_motions(split, tuple(motions))
    two = num_objects == 2 or (num_objects is None and rng.random() < 0.2)
    objects = (_sample_object(rng, _choose(rng, candidates), seconds, half_extent, two),)
    while two:
        first = _sample_object(rng, _choose(rng, candidates), seconds, half_extent, two)
        others = [t for t in candidates if t[0] != first.shape and t[1] != first.colour]
        objects = (first, _sample_object(rng, _choose(rng, others), seconds, half_extent, two))
        if not _collide(*objects, seconds):
            break
    return Scene(objects, *_sample_background(rng))


@functools.cache
def _triples_with_motions(split: Split, motions: tuple[str, ...]) -> tuple[Triple, ...]:
    """The triples of a split whose motion is one of `motions`."""
    check_motions(motions)
    return tuple(triple for triple in triples(split) if triple[2] in motions)


def check_motions(motions: Sequence[str]) -> None:
    """Checks a list of motions.

    Raises:
      ValueError: if the list is empty or a word is not a motion; the message names the word.
    """
    for word in motions or ("",):
        if word not in MOTIONS:
            raise ValueError(f"unknown motion {word!r}; the motions are {', '.join(MOTIONS)}")


def _choose(rng: np.random.Generator, options):
    # Only Generator.random is used, since numpy keeps its stream the same in all versions.
    return options[int(rng.random() * len(options))]


def _sample_object(
    rng: np.random.Generator,
    triple: Triple,
    seconds: float | int,
    half_extent: tuple[float, float],
    is_small: bool,
) -> SceneObject:
    """Samples an object's size, speed and place; slows it down until it stays in the picture."""
    shape, colour, motion = triple
    nominal = _SIZES[0] if is_small else _choose(rng, _SIZES)
    if motion in ("grow", "shrink"):
        nominal = {"grow": 0.26, "shrink": 0.4 if is_small else 0.56}[motion]
    size = nominal * _EXTENT[shape] * (0.97 + 0.06 * rng.random())
    rate = _choose(rng, SPEEDS[motion])
    sign = _choose(rng, (-1, 1)) if motion in ("orbit", "rotate") else 1
    phase = 360 * rng.random() if motion in ("orbit", "rotate") else 0.0
    fractions = rng.random(), rng.random()
    while True:
        obj = SceneObject(shape, colour, motion, size, 0.0, 0.0, sign * rate, phase)
        ranges, fits = _start_ranges(obj, seconds, half_extent)
        if fits or rate < 1e-3:
            break
        slower = [speed for speed in SPEEDS[motion] if speed < rate]
        rate = slower[-1] if slower else 0.9 * rate
    x, y = (
        low + fraction * (high - low)
        for fraction, (low, high) in zip(fractions, ranges, strict=True)
    )
    return dataclasses.replace(obj, x=x, y=y)


def _start_ranges(
    obj: SceneObject, seconds: float | int, half_extent: tuple[float, float]
) -> tuple[list[tuple[float, float]], bool]:
    """Range of start positions of the centre on each axis, and whether the object fits at all."""
    path = trajectory(obj, np.linspace(0, seconds, 33))
    fits = path.size.min() >= _MIN_SIZE and path.size.max() <= _MAX_SIZE
    fits = fits or obj.motion not in ("grow", "shrink")
    ranges = []
    for centres, side in ((path.x, half_extent[0]), (path.y, half_extent[1])):
        low = _MARGIN - side - np.min(centres - path.size / 2)
        high = side - _MARGIN - np.max(centres + path.size / 2)
        fits = fits and low <= high
        ranges.append((float(low), float(high)) if low <= high else (float(low + high) / 2,) * 2)
    return ranges, bool(fits)


def _collide(one: SceneObject, other: SceneObject, seconds: float | int) -> bool:
    """Whether the circles around two objects ever come closer than the margin."""
    times = np.linspace(0, seconds, 33)
    a, b = trajectory(one, times), trajectory(other, times)
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
    # The movement of a plain or shaded background would not be visible.
    has_pan = texture not in ("plain", "shaded") and rng.random() < 0.3
    return background, _choose(rng, PANS) if has_pan else None
