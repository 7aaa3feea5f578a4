"""What a scene of emoji contains, and how scenes are sampled.

Units are those of `ltx_jax.world.scenes`: seconds, and the picture's shorter side as the unit
of length, x to the right and y down from the middle of the picture.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Float64

from ltx_jax.emoji.catalogue import Catalogue, Entry, Split, split_of
from ltx_jax.world.scenes import DIRECTIONS

COLOURS = {
    "white": (252, 252, 252),
    "black": (18, 18, 20),
    "grey": (128, 128, 130),
    "red": (212, 40, 44),
    "orange": (245, 135, 30),
    "yellow": (250, 216, 48),
    "green": (40, 152, 70),
    "blue": (40, 84, 212),
    "purple": (124, 60, 176),
    "pink": (250, 160, 196),
    "magenta": (214, 50, 150),
    "brown": (110, 70, 44),
    "beige": (222, 204, 174),
    "cream": (255, 245, 208),
    "peach": (255, 186, 140),
    "lavender": (198, 178, 238),
    "sky blue": (124, 194, 240),
    "mint green": (165, 230, 194),
    "turquoise": (60, 210, 200),
    "teal": (20, 132, 138),
    "olive green": (120, 126, 50),
    "dark green": (16, 72, 46),
    "navy blue": (22, 32, 86),
    "maroon": (106, 20, 42),
}
KINDS = ("plain", "gradient", "floor", "striped", "checkered", "dotted", "cloudy")
_KIND_SHARES = (0.4, 0.18, 0.14, 0.07, 0.07, 0.07, 0.07)
# Direction of a gradient, in degrees clockwise from the right.
GRADIENTS = {"left to right": 0.0, "top to bottom": 90.0, "corner to corner": 45.0}
MOTIONS = (*DIRECTIONS, "still", "grow", "shrink", "sway", "spin")
# A moving camera moves emoji and background alike. Only backgrounds of `CAMERA_KINDS` show that.
CAMERAS = ("pan left", "pan right", "pan up", "pan down", "zoom in", "zoom out")
CAMERA_KINDS = ("checkered", "dotted", "cloudy")
PLAYBACKS = (0.5, 1.0, 2.0)  # speeds of the emoji's own animation
_PLAYBACK_SHARES = (0.1, 0.8, 0.1)

# Slow, normal and fast rates of each motion; a caption may say "slowly" or "quickly" for the outer
# two. Directions and pans: shorter sides per second; grow, shrink and zooms: change of log(size)
# per second; sway: swings per second; spin: degrees per second.
PACES = (
    {name: (0.07, 0.12, 0.19) for name in DIRECTIONS}
    | {"still": (0.0, 0.0, 0.0), "sway": (0.4, 0.7, 1.1), "spin": (18.0, 32.0, 50.0)}
    | {name: (0.12, 0.2, 0.3) for name in ("grow", "shrink")}
    | {name: (0.06, 0.1, 0.15) for name in CAMERAS if name.startswith("pan")}
    | {name: (0.1, 0.16, 0.24) for name in CAMERAS if name.startswith("zoom")}
)
_SWAY = 13.0  # degrees to either side
_SIZES = (0.5, 0.64, 0.8)  # longer side of the emoji's box: small, medium, large
_PAIR_SIZE = 0.42
_PAIR_MOTIONS = ("still", "up", "down", "sway", "spin", "grow", "shrink")
_MARGIN = 0.01  # least gap between an emoji and the edge
_PAIR_SHARE = 0.1  # share of scenes that have two emoji
_CLIP_STILLS, _PICTURE_STILLS = 0.15, 0.5  # shares of emoji without animation in clips and pictures

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Backdrop:
    """A background of one or two colours."""

    kind: str
    colours: tuple[str, ...]  # gradient: (from, to); floor: (wall, floor); else one
    direction: str = "left to right"  # of a gradient
    horizon: float = 0.0  # y of the far edge of a floor
    wavelength: float = 0.25  # of a texture, in shorter sides
    angle: float = 0.0  # of a texture, degrees
    seed: int = 0  # of a texture

    @property
    def key(self) -> str:
        """Identifies the background in `catalogue.split_of`."""
        return " ".join((self.kind, *self.colours))


@dataclasses.dataclass(frozen=True)
class Actor:
    """One emoji and its motion as a whole, apart from its own animation."""

    entry: Entry
    number: int  # of the entry in its catalogue
    motion: str
    size: float  # longer side of its box (`Entry.box`) at time 0
    x: float  # centre of the box at time 0
    y: float
    rate: float  # in the units of `PACES`; spin: positive is clockwise
    phase: int = 0  # frame of its animation at time 0
    playback: float = 1.0  # speed of its animation
    mirrored: bool = False

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width of the box at time 0."""
        top, left, bottom, right = self.entry.box
        longer = max(bottom - top, right - left)
        return self.size * (bottom - top) / longer, self.size * (right - left) / longer

    @property
    def size_class(self) -> Literal["small", "medium", "large"]:
        """The size class nearest to `size`."""
        nearest = min(range(3), key=lambda i: abs(self.size - _SIZES[i]))
        return ("small", "medium", "large")[nearest]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One emoji, or two side by side, in front of a backdrop.

    If the camera moves, the emoji stand still.
    """

    actors: tuple[Actor, ...]
    backdrop: Backdrop
    camera: str | None = None  # one of `CAMERAS`
    camera_rate: float = 0.0  # in the units of `PACES`

    def motion(self, actor: Actor) -> str:
        """The motion of an actor, or that of the camera if it moves."""
        return self.camera or actor.motion

    def pace(self, actor: Actor) -> Literal["slow", "normal", "fast"]:
        """The pace that captions name, nearest to the rate of an actor or of the camera."""
        motion, rate = self.motion(actor), self.camera_rate if self.camera else actor.rate
        if motion == "still":
            return "normal"
        nearest = min(range(3), key=lambda i: abs(abs(rate) - PACES[motion][i]))
        return ("slow", "normal", "fast")[nearest]

    def split(self, actor: Actor) -> Split:
        """The split of an actor in this scene."""
        return split_of(actor.entry, self.backdrop.key, self.motion(actor))


@dataclasses.dataclass(frozen=True)
class Path:
    """Position of an actor in the picture at some times."""

    x: Float64[np.ndarray, " t"]
    y: Float64[np.ndarray, " t"]
    scale: Float64[np.ndarray, " t"]  # relative to time 0
    angle: Float64[np.ndarray, " t"]  # degrees, clockwise


def view(
    scene: Scene, seconds: Float64[np.ndarray, " t"]
) -> tuple[Float64[np.ndarray, "t 2"], Float64[np.ndarray, " t"]]:
    """Centre (x, y) and magnification of the camera at times in seconds."""
    centre, zoom = np.zeros((len(seconds), 2)), np.ones(len(seconds))
    kind, _, way = (scene.camera or "").partition(" ")
    if kind == "pan":
        centre = scene.camera_rate * seconds[:, None] * np.array(DIRECTIONS[way])
    elif kind == "zoom":
        zoom = np.exp((1 if way == "in" else -1) * scene.camera_rate * seconds)
    return centre, zoom


def path(scene: Scene, actor: Actor, seconds: Float64[np.ndarray, " t"]) -> Path:
    """Centre, scale and angle of an actor in the picture at times in seconds."""
    zeros = np.zeros_like(seconds)
    x, y, scale, angle = (zeros + value for value in (actor.x, actor.y, 1.0, 0.0))
    if actor.motion in DIRECTIONS:
        dx, dy = DIRECTIONS[actor.motion]
        x, y = x + dx * actor.rate * seconds, y + dy * actor.rate * seconds
    elif actor.motion in ("grow", "shrink"):
        scale = np.exp((1 if actor.motion == "grow" else -1) * actor.rate * seconds)
    elif actor.motion == "sway":
        angle = _SWAY * np.sin(2 * math.pi * actor.rate * seconds)
    elif actor.motion == "spin":
        angle = actor.rate * seconds
    elif actor.motion != "still":
        raise ValueError(f"unknown motion {actor.motion!r}; known are {', '.join(MOTIONS)}")
    centre, zoom = view(scene, seconds)
    return Path((x - centre[:, 0]) * zoom, (y - centre[:, 1]) * zoom, scale * zoom, angle)


def sample_scene(
    rng: np.random.Generator,
    catalogue: Catalogue,
    *,
    split: Split = "train",
    seconds: float | int = 2.0,
    aspect: float | int = 1.0,
    animated: bool | None = None,
    num_actors: int | None = None,
) -> Scene:
    """Samples a scene whose emoji stay inside the picture.

    Args:
      rng: the only source of randomness.
      catalogue: the emoji.
      split: the split of every emoji in the scene.
      seconds: duration; 0 for a picture. An emoji that would leave the picture is slowed down, then
        made smaller.
      aspect: width over height of the picture.
      animated: whether the emoji have animations of their own; None samples both kinds.
      num_actors: 1 or 2; None gives 2 in a tenth of the scenes of "train", and 1 in all others.

    Raises:
      ValueError: if an argument is out of range, or the split holds no emoji of the kind.
    """
    if seconds < 0 or aspect <= 0 or num_actors not in (None, 1, 2):
        raise ValueError(
            f"seconds must be >= 0, aspect positive and num_actors 1, 2 or None, got {seconds}, "
            f"{aspect}, {num_actors}"
        )
    pair = num_actors == 2 or (
        num_actors is None and split == "train" and rng.random() < _PAIR_SHARE
    )
    while True:
        scene = _draw(rng, catalogue, split, seconds, aspect, animated, pair)
        if all(scene.split(actor) == split for actor in scene.actors):
            return scene


def _draw(
    rng: np.random.Generator,
    catalogue: Catalogue,
    split: Split,
    seconds: float | int,
    aspect: float | int,
    animated: bool | None,
    pair: bool,
) -> Scene:
    """A scene with emoji of the split; `sample_scene` checks the split of the combination."""
    backdrop = _sample_backdrop(rng)
    half = max(aspect, 1.0) / 2, max(1 / aspect, 1.0) / 2
    if pair:
        left, right = (-half[0], 0.0), (0.0, half[0])
        actors = []
        for half_picture in (left, right):
            number = _sample_entry(rng, catalogue, split, seconds, animated)
            motion = choose(rng, _PAIR_MOTIONS)
            alone = Scene((_actor(rng, catalogue, number, motion, _PAIR_SIZE),), backdrop)
            spans = half_picture, _span(half[1])
            actors += _place(rng, alone, seconds, spans).actors
        return Scene(tuple(actors), backdrop)
    number = _sample_entry(rng, catalogue, split, seconds, animated)
    motions = (*MOTIONS, *CAMERAS) if backdrop.kind in CAMERA_KINDS else MOTIONS
    motion = choose(rng, motions)
    size = choose(rng, _SIZES)
    if motion in ("grow", "shrink", "zoom in", "zoom out"):
        size = _SIZES[0] if motion in ("grow", "zoom in") else _SIZES[2]
    camera = motion if motion in CAMERAS else None
    actor = _actor(rng, catalogue, number, "still" if camera else motion, size)
    rate = choose(rng, PACES[camera]) if camera else 0.0
    scene = Scene((actor,), backdrop, camera, rate)
    return _place(rng, scene, seconds, (_span(half[0]), _span(half[1])))


def choose(
    rng: np.random.Generator, options: Sequence[_T], shares: Sequence[float] | None = None
) -> _T:
    """One of several options, with equal probabilities or with `shares`, which sum to 1."""
    # Only Generator.random is used, since numpy keeps its stream the same in all versions.
    spot = rng.random()
    if shares is None:
        return options[int(spot * len(options))]
    return options[min(int(np.searchsorted(np.cumsum(shares), spot)), len(options) - 1)]


def _span(half: float) -> tuple[float, float]:
    return -half, half


def _sample_entry(
    rng: np.random.Generator,
    catalogue: Catalogue,
    split: Split,
    seconds: float | int,
    animated: bool | None,
) -> int:
    """Samples an entry's number. All bases are equally likely, whatever their number of tones."""
    still = rng.random() < (_CLIP_STILLS if seconds > 0 else _PICTURE_STILLS)
    if animated is not None:
        still = not animated
    bases = catalogue.bases(split, not still)
    if not bases and animated is None:
        bases = catalogue.bases(split, still)
    if not bases:
        raise ValueError(f"the data set holds no emoji of the split {split!r}")
    return choose(rng, choose(rng, bases))


def _actor(
    rng: np.random.Generator, catalogue: Catalogue, number: int, motion: str, size: float
) -> Actor:
    """An actor in the middle of the picture, with a random rate and phase."""
    entry = catalogue.entries[number]
    sign = choose(rng, (-1, 1)) if motion == "spin" else 1
    return Actor(
        entry,
        number,
        motion,
        size * (0.96 + 0.08 * rng.random()),
        0.0,
        0.0,
        rate=sign * choose(rng, PACES[motion]),
        phase=int(rng.random() * entry.frames),
        playback=choose(rng, PLAYBACKS, _PLAYBACK_SHARES) if entry.animated else 1.0,
        mirrored=rng.random() < 0.5 and entry.mirrors,
    )


def _place(
    rng: np.random.Generator,
    scene: Scene,
    seconds: float | int,
    spans: tuple[tuple[float, float], tuple[float, float]],
) -> Scene:
    """Moves the only actor of a scene to a random position within the spans (x, y)."""
    [actor] = scene.actors
    spots = rng.random(), rng.random()
    while True:
        ranges = _start_ranges(dataclasses.replace(scene, actors=(actor,)), seconds, spans)
        if all(low <= high for low, high in ranges):
            break
        motion = scene.motion(actor)
        rate = scene.camera_rate if scene.camera else actor.rate
        slower = [pace for pace in PACES[motion] if pace < 0.99 * abs(rate)]
        if not slower:
            actor = dataclasses.replace(actor, size=0.9 * actor.size)
        elif scene.camera:
            scene = dataclasses.replace(scene, camera_rate=slower[-1])
        else:
            actor = dataclasses.replace(actor, rate=math.copysign(slower[-1], rate))
    x, y = (low + spot * (high - low) for spot, (low, high) in zip(spots, ranges, strict=True))
    return dataclasses.replace(scene, actors=(dataclasses.replace(actor, x=x, y=y),))


def _start_ranges(
    scene: Scene, seconds: float | int, spans: tuple[tuple[float, float], tuple[float, float]]
) -> list[tuple[float, float]]:
    """Range (first, last) of start positions of the centre on each axis; empty if first > last."""
    [actor] = scene.actors
    times = np.linspace(0, seconds, 33)
    track = path(scene, actor, times)
    _, zoom = view(scene, times)
    height, width = actor.extent
    cos, sin = (np.abs(f(np.deg2rad(track.angle))) for f in (np.cos, np.sin))
    ranges = []
    for centres, extent, (low, high) in (
        (track.x, cos * width + sin * height, spans[0]),
        (track.y, sin * width + cos * height, spans[1]),
    ):
        # The track starts in the middle. Another start shifts it by the same distance times zoom.
        reach = track.scale * extent / 2
        first = np.max((low + _MARGIN - centres + reach) / zoom)
        last = np.min((high - _MARGIN - centres - reach) / zoom)
        ranges.append((float(first), float(last)))
    return ranges


def _sample_backdrop(rng: np.random.Generator) -> Backdrop:
    kind = choose(rng, KINDS, _KIND_SHARES)
    first = choose(rng, tuple(COLOURS))
    colours: tuple[str, ...] = (first,)
    if kind in ("gradient", "floor"):
        colours = (first, choose(rng, [name for name in COLOURS if name != first]))
    return Backdrop(
        kind,
        colours,
        direction=choose(rng, tuple(GRADIENTS)),
        horizon=0.05 + 0.25 * rng.random(),
        wavelength=0.2 + 0.15 * rng.random(),
        angle=choose(rng, (0.0, 30.0, 45.0, 60.0, 90.0, 120.0, 135.0, 150.0)),
        seed=int(rng.random() * 2**31),
    )
