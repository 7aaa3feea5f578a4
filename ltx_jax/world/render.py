"""Renderer of the procedural world: seeded clips with captions and exact ground truth.

    clip(34).frames    uint8 (25, 128, 128, 3)
    clip(34).caption   "a small orange triangle stays still"

A clip is a pure function of (seed, index). The same scene at another size or frame rate shows the
same motion. `scenes.py` defines what a scene contains, `grammar.py` writes its captions. This needs
only numpy.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, UInt8

from ltx_jax.world import scenes, textures
from ltx_jax.world.grammar import caption, words
from ltx_jax.world.scenes import (
    COLOURS,
    MOTIONS,
    SHAPES,
    Scene,
    SceneObject,
    Split,
    is_held_out,
    sample_scene,
    triples,
)

__all__ = [
    "COLOURS",
    "MOTIONS",
    "SHAPES",
    "Scene",
    "Track",
    "WorldClip",
    "caption",
    "clip",
    "ground_truth",
    "is_held_out",
    "render",
    "sample_scene",
    "scene",
    "triples",
    "words",
]

_CONTRAST = 12.0  # amplitude of textures, in grey levels
_CHUNK = 2**19  # pixels drawn at once; fits into a core's cache


@dataclasses.dataclass(frozen=True)
class Track:
    """Ground truth of one object, frame by frame, in pixels."""

    shape: str
    colour: str
    motion: str
    rgb: tuple[int, int, int]
    row: Float64[np.ndarray, " t"]  # of the object's centre; 0 is the middle of the first pixel
    column: Float64[np.ndarray, " t"]
    size: Float64[np.ndarray, " t"]  # diameter of the smallest circle around the object
    angle: Float64[np.ndarray, " t"]  # degrees, clockwise; 0 is upright


@dataclasses.dataclass(frozen=True)
class WorldClip:
    """A rendered clip, its caption and its scene."""

    frames: UInt8[np.ndarray, "t h w 3"]
    caption: str
    scene: Scene


def scene(
    index: int | np.integer,
    *,
    seed: int = 0,
    split: Split = "train",
    seconds: float | int = 1.0,
    aspect: float | int = 1.0,
    num_objects: int | None = None,
) -> Scene:
    """Scene `index` of the world with this seed; see `sample_scene` for the other arguments."""
    return sample_scene(
        _rng(seed, index), split=split, seconds=seconds, aspect=aspect, num_objects=num_objects
    )


def clip(
    index: int | np.integer,
    *,
    seed: int = 0,
    split: Split = "train",
    num_frames: int = 25,
    height: int = 128,
    width: int = 128,
    fps: float | int = 24.0,
    num_objects: int | None = None,
    motions: Sequence[str] = MOTIONS,
) -> WorldClip:
    """Clip `index` of the world with this seed; the caption of a single frame names no motion."""
    _check(num_frames, height, width, fps)
    rng = _rng(seed, index)
    scene = sample_scene(
        rng,
        split=split,
        seconds=num_frames / fps,
        aspect=width / height,
        num_objects=num_objects,
        motions=motions,
    )
    text = caption(scene, rng, motion=num_frames > 1)
    return WorldClip(render(scene, num_frames, height, width, fps), text, scene)


def _rng(seed: int, index: int | np.integer) -> np.random.Generator:
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be >= 0, got {seed} and {index}")
    return np.random.default_rng([seed, int(index)])


def _check(num_frames: int, height: int, width: int, fps: float | int) -> None:
    if min(num_frames, height, width) <= 0 or not 0 < fps < math.inf:
        raise ValueError(
            f"num_frames, height, width and fps must be positive, got {num_frames}, {height}, "
            f"{width}, {fps}"
        )


def ground_truth(
    scene: Scene, num_frames: int, height: int, width: int, fps: float | int
) -> tuple[Track, ...]:
    """Exact tracks of the objects in the frames that `render` draws with the same arguments."""
    _check(num_frames, height, width, fps)
    unit = min(height, width)
    tracks = []
    for obj in scene.objects:
        path = scenes.trajectory(obj, np.arange(num_frames) / fps)
        tracks.append(
            Track(
                obj.shape,
                obj.colour,
                obj.motion,
                COLOURS[obj.colour],
                row=path.y * unit + (height - 1) / 2,
                column=path.x * unit + (width - 1) / 2,
                size=path.size * unit,
                angle=path.angle,
            )
        )
    return tuple(tracks)


def render(
    scene: Scene, num_frames: int, height: int, width: int, fps: float | int
) -> UInt8[np.ndarray, "{num_frames} {height} {width} 3"]:
    """Draws a scene from time 0 on, antialiased, so that motion is smooth at subpixel scale."""
    _check(num_frames, height, width, fps)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    _draw_background(frames, scene, fps)
    tracks = ground_truth(scene, num_frames, height, width, fps)
    for obj, track in zip(scene.objects, tracks, strict=True):
        _draw_object(frames, obj, track)
    return frames


# Signed distances to the outline of each upright shape, negative inside, x to the right and y down.
# The unit is the radius of the smallest circle around the shape. They are exact near the outline
# only.


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - 1


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - 0.775) - 0.225


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(math.sqrt(0.5))


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    slanted = np.float32(math.sqrt(0.75)) * np.abs(x) - 0.5 * y
    return np.maximum(slanted, y) - np.float32(0.5)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    arm, reach = np.float32(0.33), np.float32(math.sqrt(1 - 0.33**2))
    return np.maximum(np.maximum(x, y) - reach, np.minimum(x, y) - arm)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Five mirrored sectors: fold the plane into the one from a tip (angle 0) to a notch (36 deg).
    sector = math.radians(72)
    angle = np.arctan2(x, -y)
    angle = np.abs(angle - sector * np.round(angle / np.float32(sector)))
    radius = np.sqrt(x * x + y * y)
    notch = 0.46
    edge_x, edge_y = notch * math.cos(sector / 2) - 1, notch * math.sin(sector / 2)
    length = math.hypot(edge_x, edge_y)
    across = (radius * np.cos(angle) - 1) * np.float32(edge_y / length)
    return across - radius * np.sin(angle) * np.float32(edge_x / length)


_DISTANCE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}


def _draw_object(frames: np.ndarray, obj: SceneObject, track: Track) -> None:
    """Draws an object into the frames, within its bounding box."""
    side = math.ceil(track.size.max()) + 3
    step = max(_CHUNK // side**2, 1)
    for begin in range(0, len(frames), step):
        chunk = slice(begin, begin + step)
        top = np.floor(track.row[chunk] - side / 2 + 1).astype(int)
        left = np.floor(track.column[chunk] - side / 2 + 1).astype(int)
        radius = (track.size[chunk, None, None] / 2).astype(np.float32)
        offsets = np.arange(side)
        y = (top[:, None] + offsets - track.row[chunk, None]).astype(np.float32)[:, :, None]
        x = (left[:, None] + offsets - track.column[chunk, None]).astype(np.float32)[:, None, :]
        if obj.motion == "rotate":
            turn = np.deg2rad(track.angle[chunk, None, None])
            cos, sin = np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)
            x, y = cos * x + sin * y, cos * y - sin * x
        distance = _DISTANCE[obj.shape](x / radius, y / radius) * radius
        coverage = np.clip(0.5 - distance, 0, 1)
        for frame, cover, i, j in zip(
            frames[chunk], coverage, top.tolist(), left.tolist(), strict=True
        ):
            _blend(frame, cover, i, j, track.rgb)


def _blend(
    frame: np.ndarray, coverage: np.ndarray, top: int, left: int, rgb: tuple[int, int, int]
) -> None:
    """Blends `rgb` into the frame by `coverage`, clipping the box at the edges of the picture."""
    height, width = frame.shape[:2]
    rows = slice(max(top, 0), max(min(top + len(coverage), height), 0))
    columns = slice(max(left, 0), max(min(left + len(coverage), width), 0))
    cover = coverage[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left, None
    ]
    box = frame[rows, columns]
    box[:] = box + cover * (np.asarray(rgb, np.float32) - box) + np.float32(0.5)


def _draw_background(frames: np.ndarray, scene: Scene, fps: float | int) -> None:
    """Fills the frames with the background, which is computed once unless the camera pans."""
    num_frames, height, width = frames.shape[:3]
    ground = scene.background
    tone = np.asarray(scenes.TONES[ground.tone], np.float32)
    if ground.texture == "plain":
        frames[:] = tone.astype(np.uint8)
        return
    unit = min(height, width)
    y = ((np.arange(height) + 0.5 - height / 2) / unit)[:, None]
    x = ((np.arange(width) + 0.5 - width / 2) / unit)[None, :]
    waves, phases = textures.waves(ground.texture, ground.wavelength, ground.angle, ground.seed)
    theta = waves[:, 0, None, None] * x + waves[:, 1, None, None] * y + phases[:, None, None]
    cos, sin = np.cos(theta).astype(np.float32), np.sin(theta).astype(np.float32)
    velocity = np.zeros(2)
    if scene.pan is not None:
        velocity = scenes.PAN_SPEED * np.array(scenes.DIRECTIONS[scene.pan])
    for i in range(num_frames if scene.pan is not None else 1):
        slide = (waves @ velocity * (i / fps))[:, None, None].astype(np.float32)
        # Computes cos(theta + slide) by the addition theorem, without a cosine per pixel and frame.
        levels = textures.LEVELS[ground.texture](cos * np.cos(slide) - sin * np.sin(slide))
        frames[i] = (_CONTRAST * levels)[..., None] + tone + np.float32(0.5)
    if scene.pan is None:
        frames[1:] = frames[0]
