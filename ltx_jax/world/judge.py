"""The judge: recognises shapes, colours and motions in a clip of the procedural world.

It uses only classical computer vision on the pixels, and shares no code with any generative model.
Objects are the regions that are more saturated than the background. A region's colour has to be
close to one of the named colours. Its shape follows from its radial profile and the strength of its
rotational symmetries, its motion from the curve that fits its positions best. A shape or motion
that cannot be recognised is reported as "none".

The world contains no scenes that would be ambiguous in their pixels: round shapes do not rotate,
and the two objects of a scene differ in both shape and colour. An arc of less than 55 degrees
counts as a straight line; the slowest orbit covers 55 degrees in half a second.
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

# Orthonormal axes of the chroma plane, which is perpendicular to the grey axis of RGB.
_CHROMA = (np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])).astype(np.float32)
_GREYISH = 60.0  # largest chroma of a background pixel
_SATURATED = 45.0  # least chroma distance of an object's pixel from the background
_NEAR_COLOUR = 60.0  # largest RGB distance of an object from its named colour
_UNEVEN = 26.0  # largest median RGB distance of an object's pixels from their median colour
_MIN_AREA = 0.005  # least area of an object, in squares of the shorter side,
_MIN_SHARE = 0.25  # and as a fraction of the largest region of its colour
_MIN_PRESENCE = 0.75  # least fraction of the frames in which an object is visible

# Polar grid of a profile. The unit of the radii is the radius of the disc of the same area.
_RADII = np.linspace(0.05, 1.95, 20)
_ANGLES = np.arange(60) * (2 * math.pi / 60)
_HARMONICS = (0, 3, 4, 5, 6)
_SYMMETRY = {"square": 4, "triangle": 3, "star": 5, "cross": 4}
_STRETCHED = 1.25  # length / width above which a shape is "none"
_SOFTNESS = (0.0, 0.1, 0.2)  # blur of the reference shapes, in the unit of the radii
_NEAR_SHAPE = 0.2  # largest distance from a reference shape,
_NEARER_SHAPE = 0.6  # and as a fraction of the distance from the second nearest one

# Least changes that count as motion, over the whole clip; for clips under one second they are
# smaller, in proportion to the duration.
_MIN_SHIFT = 0.05  # shorter sides
_MIN_RESIZE = 0.1  # of log(size)
_MIN_TURN = 25.0  # degrees
_MAX_RATIO = 0.6  # second largest change / largest change; above it the motion is ambiguous
_MIN_ARC = math.radians(55)  # least arc of an orbit
_WOBBLE = 0.006  # RMS distance from a straight line that is still straight, in shorter sides
_MAX_RATE = 4 * math.pi  # fastest orbit, in radians per second


@dataclasses.dataclass(frozen=True)
class DetectedObject:
    """An object that the judge found in a clip.

    Shape and motion are "none" if they were not recognised. The unit of length is the shorter side
    of the picture; the origin is its middle, x to the right and y down.
    """

    shape: str
    colour: str
    motion: str
    seconds: Float64[np.ndarray, " n"]  # times of the frames that show the object
    position: Complex128[np.ndarray, " n"]  # x + iy
    size: Float64[np.ndarray, " n"]  # diameter of the disc of the same area
    velocity: complex  # slope of a straight line fitted to the positions, per second


class Agreement(NamedTuple):
    """Which kinds of words of a caption are right for a clip."""

    shape: bool
    colour: bool
    motion: bool
    all: bool  # all three are right, and so is the number of objects


def detect_objects(
    frames: UInt8[np.ndarray, "t h w 3"], fps: float | int
) -> tuple[DetectedObject, ...]:
    """Finds the objects of a clip, the largest first.

    Blank clips and noise have none. The motion in a clip of a single frame is "none".
    """
    blobs = [_blobs(frame) for frame in frames]
    unit = min(frames.shape[1:3])
    objects = []
    for colour in COLOURS:
        blobs_by_frame = [
            [blob for blob in frame_blobs if blob.colour == colour] for frame_blobs in blobs
        ]
        # The median number of blobs per frame is the number of objects.
        for _ in range(int(np.median([len(frame_blobs) for frame_blobs in blobs_by_frame]))):
            track = _follow(blobs_by_frame)
            if len(track) >= _MIN_PRESENCE * len(frames):
                objects.append(_describe(colour, track, fps, unit))
    return tuple(sorted(objects, key=lambda obj: -float(obj.size.mean())))


def agreement(objects: Sequence[DetectedObject], expected: Sequence[Triple]) -> Agreement:
    """Compares detected objects with the (shape, colour, motion) of each expected object.

    A kind of word is right if it is right for every object. Objects are paired in the
    way that makes the most words right.
    """
    pad = (None,) * (len(expected) - len(objects))
    best = Agreement(False, False, False, False)
    for order in itertools.permutations((*objects, *pad), len(expected)):
        pairs = list(zip(order, expected, strict=True))
        shape, colour, motion = (
            all(obj is not None and getattr(obj, word) == words[k] for obj, words in pairs)
            for k, word in enumerate(("shape", "colour", "motion"))
        )
        all_right = shape and colour and motion and len(objects) == len(expected)
        best = max(best, Agreement(shape, colour, motion, all_right), key=sum)
    return best


class _Blob(NamedTuple):
    """A region of one colour in one frame."""

    colour: str
    position: complex  # in pixels from the middle
    area: float  # in pixels
    stretch: float  # length / width
    profile: np.ndarray  # complex (radii, harmonics), of the region scaled to stretch 1


def _blobs(frame: np.ndarray) -> list[_Blob]:
    """Segments a frame into regions by colour."""
    pixels = frame.astype(np.float32)
    chroma = pixels @ _CHROMA.T
    background = chroma[np.linalg.norm(chroma, axis=-1) < _GREYISH]
    if not len(background):
        return []
    chroma -= np.median(background, axis=0)
    smooth = scipy.ndimage.uniform_filter(chroma, 3, axes=(0, 1))  # averages out pixel noise
    saturated = np.linalg.norm(smooth, axis=-1) > _SATURATED
    hue = np.argmax(smooth @ _hues().T, axis=-1)
    min_area = _MIN_AREA * min(frame.shape[:2]) ** 2
    counts = np.bincount(hue[saturated], minlength=len(COLOURS))
    blobs = []
    for k, (name, rgb) in enumerate(COLOURS.items()):
        if counts[k] < min_area:
            continue
        labels = _label(saturated & (hue == k))
        areas = np.bincount(labels.ravel())
        areas[0] = 0  # label 0 is the rest of the frame
        for label in np.flatnonzero(areas >= max(min_area, _MIN_SHARE * areas.max())):
            inside = labels == label
            core: np.ndarray = scipy.ndimage.binary_erosion(inside)
            core = core if core.any() else inside
            colour = np.median(pixels[core], axis=0)
            uneven = np.median(np.linalg.norm(pixels[core] - colour, axis=-1))
            if np.linalg.norm(colour - rgb) > _NEAR_COLOUR or uneven > _UNEVEN:
                continue
            full = np.median(chroma[core], axis=0)
            cover = chroma @ (full / (full @ full))  # fraction of each pixel that the object covers
            neighbourhood: np.ndarray = scipy.ndimage.binary_dilation(inside, iterations=2)
            cover[~neighbourhood] = 0
            blobs.append(_measure(name, cover))
    return blobs


def _label(mask: np.ndarray) -> np.ndarray:
    """Numbers the connected components of a mask from 1; 0 is outside the mask."""
    labels: Any = scipy.ndimage.label(mask)
    return labels[0]


@functools.cache
def _hues() -> np.ndarray:
    """Unit vectors of the named colours in the chroma plane."""
    chroma = np.array(list(COLOURS.values()), np.float32) @ _CHROMA.T
    return chroma / np.linalg.norm(chroma, axis=1, keepdims=True)


def _measure(colour: str, cover: np.ndarray) -> _Blob:
    """Measures area, centre and profile of the region with the given coverage per pixel (h, w)."""
    cover = np.clip(2 * cover - 0.5, 0, 1)  # sharpens the outline and removes noise outside it
    height, width = cover.shape
    area = float(cover.sum())
    x, y = np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2
    centre = np.array([cover.sum(0) @ x, cover.sum(1) @ y]) / area
    x, y = x - centre[0], y - centre[1]
    across, down = cover.sum(0) @ x**2, cover.sum(1) @ y**2
    both = y @ cover @ x
    spread, axes = np.linalg.eigh([[across, both], [both, down]])
    stretch = math.sqrt(spread[1] / spread[0])
    # Maps the unit circle to the ellipse with the region's area and stretch, in pixels.
    shape = axes * np.sqrt([1 / stretch, stretch]) @ axes.T * math.sqrt(area / math.pi)
    circle = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)])
    column, row = (shape @ circle)[:, None] * _RADII[:, None] + centre.reshape(2, 1, 1)
    grid = [row + (height - 1) / 2, column + (width - 1) / 2]
    polar = scipy.ndimage.map_coordinates(cover, grid, order=1)
    waves = np.exp(-1j * np.outer(_ANGLES, _HARMONICS)) / len(_ANGLES)
    return _Blob(colour, complex(*centre), area, stretch, polar @ waves)


def _follow(blobs_by_frame: list[list[_Blob]]) -> list[tuple[int, _Blob]]:
    """Takes one object's blobs out of the lists: the largest blob of the first frame that has any,
    then in each frame the blob nearest to the previous one. Returns (frame index, blob) pairs.
    """
    track: list[tuple[int, _Blob]] = []
    for index, blobs in enumerate(blobs_by_frame):
        if not blobs:
            continue
        if track:
            last = track[-1][1].position
            nearest = min(blobs, key=lambda blob, last=last: abs(blob.position - last))
        else:
            nearest = max(blobs, key=lambda blob: blob.area)
        blobs.remove(nearest)
        track.append((index, nearest))
    return track


def _describe(
    colour: str, track: list[tuple[int, _Blob]], fps: float | int, unit: int
) -> DetectedObject:
    """Classifies the shape and motion of one tracked object."""
    seconds = np.array([index for index, _ in track]) / fps
    position = np.array([blob.position for _, blob in track]) / unit
    size = np.sqrt(np.array([blob.area for _, blob in track]) * 4 / math.pi) / unit
    profiles = np.array([blob.profile for _, blob in track])
    is_stretched = np.median([blob.stretch for _, blob in track]) > _STRETCHED
    features = np.mean([_features(profile) for profile in profiles], axis=0)
    shape = NONE if is_stretched else _name_shape(features)
    velocity, motion = 0j, NONE
    if len(track) > 2:
        velocity = _line(seconds, position)[0]
        motion = _name_motion(seconds, position, np.log(size), _angles(profiles, shape))
    return DetectedObject(shape, colour, motion, seconds, position, size, velocity)


def _features(profile: np.ndarray) -> np.ndarray:
    """Rotation-invariant features of a profile, normalised to length 1 for a disc."""
    weights = np.sqrt(_RADII / _RADII[_RADII < 1].sum())
    return (weights[:, None] * np.abs(profile)).ravel()


def _name_shape(features: np.ndarray) -> str:
    """The nearest reference shape, or "none" if it is too far away or the choice is ambiguous."""
    distance = {
        name: min(float(np.linalg.norm(features - reference)) for reference in references)
        for name, references in _reference_features().items()
    }
    nearest, second = sorted(distance, key=lambda name: distance[name])[:2]
    limit = min(_NEAR_SHAPE, _NEARER_SHAPE * distance[second])
    return nearest if distance[nearest] < limit else NONE


@functools.cache
def _reference_features() -> dict[str, list[np.ndarray]]:
    """Features of the reference shapes, each at several degrees of blur."""
    scale = 60  # pixels
    y, x = np.mgrid[-100:101, -100:101] / scale
    references = {}
    for name, outlines in _outlines().items():
        mask = _inside(outlines, x, y)
        radius = math.sqrt(mask.sum() / math.pi)
        blurred = (scipy.ndimage.gaussian_filter(mask, radius * blur) for blur in _SOFTNESS)
        references[name] = [_features(_measure(name, cover).profile) for cover in blurred]
    return references


def _outlines() -> dict[str, list[np.ndarray]]:
    """Outlines of each shape as corners x + iy; a second outline is the edge of a hole."""

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
    """1.0 at points inside the outlines, 0.0 outside, by the even-odd rule."""
    odd = np.zeros(x.shape, bool)
    for corners in outlines:
        for a, b in zip(corners, np.roll(corners, -1), strict=True):
            if a.imag != b.imag:
                crossing = a.real + (y - a.imag) / (b.imag - a.imag) * (b.real - a.real)
                odd ^= ((a.imag > y) != (b.imag > y)) & (x < crossing)
    return odd.astype(np.float64)


def _angles(profiles: np.ndarray, shape: str) -> np.ndarray:
    """Rotation angle in each frame, in degrees clockwise; 0 for shapes that have none."""
    if shape not in _SYMMETRY:
        return np.zeros(len(profiles))
    order = _SYMMETRY[shape]
    wave = _RADII**2 @ profiles[:, :, _HARMONICS.index(order)].T
    return np.degrees(np.unwrap(-np.angle(wave))) / order


def _name_motion(
    seconds: np.ndarray, position: np.ndarray, log_size: np.ndarray, angles: np.ndarray
) -> str:
    """The motion with the largest change, in units of the least change that counts."""
    duration = seconds[-1] - seconds[0]
    velocity, residual = _line(seconds, position)
    name, shift = _direction(velocity), abs(velocity) * duration
    width, orbit_residual = _orbit(seconds, position)
    if residual > _WOBBLE and orbit_residual < residual / 2:
        name, shift, residual = "orbit", width, orbit_residual
    growth = _line(seconds, log_size)[0].real * duration
    turn = _line(seconds, angles)[0].real * duration
    changes = {
        name: shift / _MIN_SHIFT,
        "grow" if growth > 0 else "shrink": abs(growth) / _MIN_RESIZE,
        "rotate": abs(turn) / _MIN_TURN,
    }
    first, second = sorted(changes, key=lambda change: -changes[change])[:2]
    threshold = min(1.0, 1.2 * duration)
    if residual > _MIN_SHIFT / 2 or changes[second] > max(threshold, _MAX_RATIO * changes[first]):
        return NONE
    return first if changes[first] > threshold else "still"


def _line(seconds: np.ndarray, values: np.ndarray) -> tuple[complex, float]:
    """Slope of the least-squares line, and the root mean square of the residual."""
    slope, start = np.polyfit(seconds, values, 1)
    residual = np.abs(values - start - slope * seconds)
    return complex(slope), float(np.sqrt(np.mean(residual**2)))


def _orbit(seconds: np.ndarray, position: np.ndarray) -> tuple[float, float]:
    """Width of the best-fitting circular arc at constant speed, and the RMS of the residual."""
    duration = seconds[-1] - seconds[0]
    # Limits the turn per frame to a quarter: a faster one would be ambiguous (aliasing).
    max_turn = min(_MAX_RATE * duration, math.pi / 2 * (len(seconds) - 1))
    turns = np.arange(_MIN_ARC, max_turn, math.radians(5))
    if not len(turns):
        return 0.0, math.inf
    turns = np.concatenate([turns, -turns])
    waves = np.exp(1j * np.outer(turns, (seconds - seconds[0]) / duration))
    waves -= waves.mean(axis=1, keepdims=True)
    offset = position - position.mean()
    power = np.mean(np.abs(waves) ** 2, axis=1)
    radius = np.abs(waves.conj() @ offset) / len(offset) / power
    residual = np.sqrt(np.maximum(np.mean(np.abs(offset) ** 2) - radius**2 * power, 0))
    best = int(np.argmin(residual))
    width = 2 * radius[best] * math.sin(min(abs(turns[best]), math.pi) / 2)
    return float(width), float(residual[best])


def _direction(velocity: complex) -> str:
    """The nearest of the eight directions."""

    def along(name: str) -> float:
        x, y = DIRECTIONS[name]
        return velocity.real * x + velocity.imag * y

    return max(DIRECTIONS, key=along)
