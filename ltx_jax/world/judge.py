"""Says from pixels alone what a clip of the procedural world shows: shapes, colours, motions.

Classical vision, and no part of any generator: objects are what is more saturated than the
background; a colour has to lie near one of those that have a name; a shape is told by its radial
profile and the strength of its symmetries; a motion by what fits the track. What it cannot tell is
"none".

Some scenes nobody could tell apart by their pixels, and the world does not draw them: round shapes
do not rotate, and two objects of a scene have neither shape nor colour in common. A part of a
circle below 55 degrees passes for a straight line; the slowest orbit takes half a second for that.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Complex128, Float64, UInt8

from ltx_jax.world.scenes import COLOURS, DIRECTIONS, Triple

NONE = "none"

# Orthonormal axes of colour without lightness.
_CHROMA = (np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])).astype(np.float32)
_GREYISH = 60.0  # distance from grey in those axes up to which a pixel may be background
_SATURATED = 45.0  # distance from the background from which it may be an object
_NEAR_COLOUR = 60.0  # distance in RGB within which a colour has its name
_UNEVEN = 26.0  # distance in RGB that half of an object's pixels may have from its colour
_MIN_AREA = 0.005  # of an object, in squares of the shorter side,
_MIN_SHARE = 0.25  # and of the largest one of its colour
_PRESENT = 0.75  # share of the frames in which an object has to be seen

# Polar grid of a profile, in radii of the disc of the same area.
_RADII = np.linspace(0.05, 1.95, 20)
_ANGLES = np.arange(60) * (2 * math.pi / 60)
_HARMONICS = (0, 3, 4, 5, 6)
_SYMMETRY = {"square": 4, "triangle": 3, "star": 5, "cross": 4}
_STRETCHED = 1.25  # length over width up to which a shape keeps its name
_SOFTNESS = (0.0, 0.1, 0.2)  # of the outlines that shapes are compared with, in the same radii
_NEAR_SHAPE = 0.2  # distance within which a shape has its name,
_NEARER_SHAPE = 0.6  # if it is below this share of the distance to the next one

# The least changes over a clip that count; over less than a second they are those per second.
_MOVED = 0.05  # shorter sides
_RESIZED = 0.1  # of log(size)
_TURNED = 25.0  # degrees
_CLEAR = 0.6  # a second change above this share of the greatest leaves the motion unclear
_CURVED = math.radians(55)  # turn from which a path is part of a circle
_WOBBLE = 0.006  # distance from a straight path that is no curve, in shorter sides
_MAX_RATE = 4 * math.pi  # of an orbit, in radians per second


@dataclasses.dataclass(frozen=True)
class Seen:
    """One object. Shape and motion may be "none": they cannot be told.

    Lengths are in shorter sides of the picture, x to the right and y down from its middle.
    """

    shape: str
    colour: str
    motion: str
    seconds: Float64[np.ndarray, " n"]  # times at which it was seen
    position: Complex128[np.ndarray, " n"]  # x + iy
    size: Float64[np.ndarray, " n"]  # diameter of the disc of the same area
    velocity: complex  # along the straight line that fits best, per second


class Agreement(NamedTuple):
    """Which words about a clip are right."""

    shape: bool
    colour: bool
    motion: bool
    all: bool  # and that there are as many objects


def judge(frames: UInt8[np.ndarray, "t h w 3"], fps: float | int) -> tuple[Seen, ...]:
    """The objects of a clip, the largest first; none in blank clips and in noise.

    A single frame has no motion.
    """
    blobs = [_blobs(frame) for frame in frames]
    unit = min(frames.shape[1:3])
    seen = []
    for colour in COLOURS:
        left = [[blob for blob in found if blob.colour == colour] for found in blobs]
        # As many as most frames show.
        for _ in range(int(np.median([len(found) for found in left]))):
            track = _follow(left)
            if len(track) >= _PRESENT * len(frames):
                seen.append(_describe(colour, track, fps, unit))
    return tuple(sorted(seen, key=lambda one: -float(one.size.mean())))


def agreement(seen: Sequence[Seen], wanted: Sequence[Triple]) -> Agreement:
    """Compares what was seen with (shape, colour, motion) of each object that was asked for.

    A word is right if it is for every object; objects are paired so that most words are.
    """
    pad = (None,) * (len(wanted) - len(seen))
    best = Agreement(False, False, False, False)
    for order in itertools.permutations((*seen, *pad), len(wanted)):
        pairs = list(zip(order, wanted, strict=True))
        shape, colour, motion = (
            all(one is not None and getattr(one, word) == words[k] for one, words in pairs)
            for k, word in enumerate(("shape", "colour", "motion"))
        )
        every = shape and colour and motion and len(seen) == len(wanted)
        best = max(best, Agreement(shape, colour, motion, every), key=sum)
    return best


class _Blob(NamedTuple):
    """An object in one frame."""

    colour: str
    position: complex  # in pixels from the middle
    area: float  # in pixels
    stretch: float  # length over width
    profile: np.ndarray  # complex (radii, harmonics), with the stretch undone


def _blobs(frame: np.ndarray) -> list[_Blob]:
    """Finds the objects of a frame by their colour."""
    pixels = frame.astype(np.float32)
    chroma = pixels @ _CHROMA.T
    background = chroma[np.linalg.norm(chroma, axis=-1) < _GREYISH]
    if not len(background):
        return []
    chroma -= np.median(background, axis=0)
    smooth = scipy.ndimage.uniform_filter(chroma, 3, axes=(0, 1))  # less noisy than a pixel alone
    saturated = np.linalg.norm(smooth, axis=-1) > _SATURATED
    hue = np.argmax(smooth @ _hues().T, axis=-1)
    least = _MIN_AREA * min(frame.shape[:2]) ** 2
    counts = np.bincount(hue[saturated], minlength=len(COLOURS))
    found = []
    for k, (name, rgb) in enumerate(COLOURS.items()):
        if counts[k] < least:
            continue
        labels = _label(saturated & (hue == k))
        areas = np.bincount(labels.ravel())
        areas[0] = 0  # what lies outside
        for label in np.flatnonzero(areas >= max(least, _MIN_SHARE * areas.max())):
            inside = labels == label
            core: np.ndarray = scipy.ndimage.binary_erosion(inside)
            core = core if core.any() else inside
            colour = np.median(pixels[core], axis=0)
            uneven = np.median(np.linalg.norm(pixels[core] - colour, axis=-1))
            if np.linalg.norm(colour - rgb) > _NEAR_COLOUR or uneven > _UNEVEN:
                continue
            full = np.median(chroma[core], axis=0)
            cover = chroma @ (full / (full @ full))  # share of each pixel that is the object's
            near: np.ndarray = scipy.ndimage.binary_dilation(inside, iterations=2)
            cover[~near] = 0
            found.append(_measure(name, cover))
    return found


def _label(mask: np.ndarray) -> np.ndarray:
    """Numbers the connected parts of a mask from 1."""
    labels: Any = scipy.ndimage.label(mask)
    return labels[0]


@functools.cache
def _hues() -> np.ndarray:
    """Unit vectors of the colours in the axes of chroma."""
    chroma = np.array(list(COLOURS.values()), np.float32) @ _CHROMA.T
    return chroma / np.linalg.norm(chroma, axis=1, keepdims=True)


def _measure(colour: str, cover: np.ndarray) -> _Blob:
    """Area, centre and profile of what covers a frame."""
    cover = np.clip(2 * cover - 0.5, 0, 1)  # an outline half as soft, and no noise outside
    height, width = cover.shape
    area = float(cover.sum())
    x, y = np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2
    centre = np.array([cover.sum(0) @ x, cover.sum(1) @ y]) / area
    x, y = x - centre[0], y - centre[1]
    across, down = cover.sum(0) @ x**2, cover.sum(1) @ y**2
    both = y @ cover @ x
    spread, axes = np.linalg.eigh([[across, both], [both, down]])
    stretch = math.sqrt(spread[1] / spread[0])
    # From the unit circle to an ellipse as long, in pixels.
    shape = axes * np.sqrt([1 / stretch, stretch]) @ axes.T * math.sqrt(area / math.pi)
    circle = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)])
    column, row = (shape @ circle)[:, None] * _RADII[:, None] + centre.reshape(2, 1, 1)
    grid = [row + (height - 1) / 2, column + (width - 1) / 2]
    polar = scipy.ndimage.map_coordinates(cover, grid, order=1)
    waves = np.exp(-1j * np.outer(_ANGLES, _HARMONICS)) / len(_ANGLES)
    return _Blob(colour, complex(*centre), area, stretch, polar @ waves)


def _follow(left: list[list[_Blob]]) -> list[tuple[int, _Blob]]:
    """Takes one object out of the frames: the largest of the first, then always the nearest."""
    track: list[tuple[int, _Blob]] = []
    for index, found in enumerate(left):
        if not found:
            continue
        if track:
            last = track[-1][1].position
            chosen = min(found, key=lambda blob, last=last: abs(blob.position - last))
        else:
            chosen = max(found, key=lambda blob: blob.area)
        found.remove(chosen)
        track.append((index, chosen))
    return track


def _describe(colour: str, track: list[tuple[int, _Blob]], fps: float | int, unit: int) -> Seen:
    """Words for one object, from what was measured of it in every frame."""
    seconds = np.array([index for index, _ in track]) / fps
    position = np.array([blob.position for _, blob in track]) / unit
    size = np.sqrt(np.array([blob.area for _, blob in track]) * 4 / math.pi) / unit
    profiles = np.array([blob.profile for _, blob in track])
    stretched = np.median([blob.stretch for _, blob in track]) > _STRETCHED
    features = np.mean([_features(profile) for profile in profiles], axis=0)
    shape = NONE if stretched else _name_shape(features)
    velocity, motion = 0j, NONE
    if len(track) > 2:
        velocity = _line(seconds, position)[0]
        motion = _name_motion(seconds, position, np.log(size), _angles(profiles, shape))
    return Seen(shape, colour, motion, seconds, position, size, velocity)


def _features(profile: np.ndarray) -> np.ndarray:
    """What of a profile does not change when the shape turns; of length 1 for a disc."""
    weights = np.sqrt(_RADII / _RADII[_RADII < 1].sum())
    return (weights[:, None] * np.abs(profile)).ravel()


def _name_shape(features: np.ndarray) -> str:
    distance = {
        name: min(float(np.linalg.norm(features - ideal)) for ideal in ideals)
        for name, ideals in _ideals().items()
    }
    nearest, second = sorted(distance, key=lambda name: distance[name])[:2]
    limit = min(_NEAR_SHAPE, _NEARER_SHAPE * distance[second])
    return nearest if distance[nearest] < limit else NONE


@functools.cache
def _ideals() -> dict[str, list[np.ndarray]]:
    """Features of what the words mean, drawn sharp and soft from their outlines."""
    scale = 60  # pixels
    y, x = np.mgrid[-100:101, -100:101] / scale
    ideals = {}
    for name, outlines in _outlines().items():
        drawn = _inside(outlines, x, y)
        radius = math.sqrt(drawn.sum() / math.pi)
        soft = (scipy.ndimage.gaussian_filter(drawn, radius * part) for part in _SOFTNESS)
        ideals[name] = [_features(_measure(name, cover).profile) for cover in soft]
    return ideals


def _outlines() -> dict[str, list[np.ndarray]]:
    """Corners of each shape as complex numbers; what lies within two outlines is a hole."""

    def regular(count: int, radius: float = 1.0, turn: float = 0.0) -> np.ndarray:
        return radius * np.exp(1j * (2 * math.pi * np.arange(count) / count + turn))

    arm, reach = 0.33, math.sqrt(1 - 0.33**2)
    quarter = np.array([reach + arm * 1j, arm + arm * 1j, arm + reach * 1j])
    return {
        "circle": [regular(180)],
        "square": [regular(4)],
        "triangle": [regular(3)],
        "star": [np.stack([regular(5), regular(5, 0.46, math.pi / 5)], axis=1).ravel()],
        "cross": [np.concatenate([quarter * turn for turn in (1, 1j, -1, -1j)])],
        "ring": [regular(180), regular(180, 0.55)],
    }


def _inside(outlines: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1 at points whose ray to the right crosses the outlines an odd number of times, else 0."""
    odd = np.zeros(x.shape, bool)
    for corners in outlines:
        for a, b in zip(corners, np.roll(corners, -1), strict=True):
            if a.imag != b.imag:
                crossing = a.real + (y - a.imag) / (b.imag - a.imag) * (b.real - a.real)
                odd ^= ((a.imag > y) != (b.imag > y)) & (x < crossing)
    return odd.astype(np.float64)


def _angles(profiles: np.ndarray, shape: str) -> np.ndarray:
    """How a shape has turned in each frame, in degrees clockwise; 0 if nobody could tell."""
    if shape not in _SYMMETRY:
        return np.zeros(len(profiles))
    order = _SYMMETRY[shape]
    wave = _RADII**2 @ profiles[:, :, _HARMONICS.index(order)].T
    return np.degrees(np.unwrap(-np.angle(wave))) / order


def _name_motion(
    seconds: np.ndarray, position: np.ndarray, log_size: np.ndarray, angles: np.ndarray
) -> str:
    """The motion that changes the object most, measured by the least changes that count."""
    duration = seconds[-1] - seconds[0]
    velocity, rest = _line(seconds, position)
    name, way = _direction(velocity), abs(velocity) * duration
    width, rest_of_orbit = _orbit(seconds, position)
    if rest > _WOBBLE and rest_of_orbit < rest / 2:
        name, way, rest = "orbit", width, rest_of_orbit
    grown = _line(seconds, log_size)[0].real * duration
    turned = _line(seconds, angles)[0].real * duration
    changes = {
        name: way / _MOVED,
        "grow" if grown > 0 else "shrink": abs(grown) / _RESIZED,
        "rotate": abs(turned) / _TURNED,
    }
    first, second = sorted(changes, key=lambda change: -changes[change])[:2]
    least = min(1.0, 1.2 * duration)
    if rest > _MOVED / 2 or changes[second] > max(least, _CLEAR * changes[first]):
        return NONE
    return first if changes[first] > least else "still"


def _line(seconds: np.ndarray, values: np.ndarray) -> tuple[complex, float]:
    """Slope of the line that fits best, and the root mean square of what is left."""
    slope, start = np.polyfit(seconds, values, 1)
    rest = np.abs(values - start - slope * seconds)
    return complex(slope), float(np.sqrt(np.mean(rest**2)))


def _orbit(seconds: np.ndarray, position: np.ndarray) -> tuple[float, float]:
    """Width of the arc at constant speed that fits best, and what it leaves, as of `_line`."""
    duration = seconds[-1] - seconds[0]
    # No faster than frames can tell.
    most = min(_MAX_RATE * duration, math.pi / 2 * (len(seconds) - 1))
    turns = np.arange(_CURVED, most, math.radians(5))
    if not len(turns):
        return 0.0, math.inf
    turns = np.concatenate([turns, -turns])
    waves = np.exp(1j * np.outer(turns, (seconds - seconds[0]) / duration))
    waves -= waves.mean(axis=1, keepdims=True)
    offset = position - position.mean()
    power = np.mean(np.abs(waves) ** 2, axis=1)
    radius = np.abs(waves.conj() @ offset) / len(offset) / power
    rest = np.sqrt(np.maximum(np.mean(np.abs(offset) ** 2) - radius**2 * power, 0))
    best = int(np.argmin(rest))
    width = 2 * radius[best] * math.sin(min(abs(turns[best]), math.pi) / 2)
    return float(width), float(rest[best])


def _direction(velocity: complex) -> str:
    """The nearest of the eight."""

    def along(name: str) -> float:
        x, y = DIRECTIONS[name]
        return velocity.real * x + velocity.imag * y

    return max(DIRECTIONS, key=along)
