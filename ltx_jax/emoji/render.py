"""Renders scenes of emoji: RGBA clips moved over a background."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from ltx_jax.emoji import scenes
from ltx_jax.emoji.catalogue import FRAME_RATE, Catalogue, Split
from ltx_jax.emoji.grammar import caption
from ltx_jax.emoji.scenes import COLOURS, Actor, Backdrop, Path, Scene
from ltx_jax.world import textures

# Number of an entry -> its frames, premultiplied RGBA.
Artwork = Callable[[int], UInt8[np.ndarray, "f n n 4"]]

_SAMPLES = 2  # per pixel and axis, so that an emoji that is scaled down does not flicker
_CONTRAST = 11.0  # amplitude of textures, in grey levels


@dataclasses.dataclass(frozen=True)
class EmojiClip:
    """Frames with their caption and scene."""

    frames: UInt8[np.ndarray, "t h w 3"]
    caption: str
    scene: Scene


def clip(
    index: int,
    catalogue: Catalogue,
    artwork: Artwork,
    *,
    seed: int = 0,
    split: Split = "train",
    num_frames: int = 25,
    height: int = 96,
    width: int = 96,
    fps: float | int = FRAME_RATE,
    animated: bool | None = None,
    num_actors: int | None = None,
) -> EmojiClip:
    """Clip number `index` of a seed. The caption of a single frame names no motion.

    Args:
      index: number of the clip.
      catalogue: the emoji.
      artwork: number of an emoji in the catalogue -> its frames.
      seed: together with `index`, the only source of randomness.
      split: as in `scenes.sample_scene`.
      num_frames: number of frames.
      height: in pixels.
      width: in pixels.
      fps: frames per second.
      animated: as in `scenes.sample_scene`.
      num_actors: as in `scenes.sample_scene`.

    Raises:
      ValueError: if an argument is out of range, or the split has no such emoji.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be >= 0, got {seed} and {index}")
    rng = np.random.default_rng([seed, index])
    scene = scenes.sample_scene(
        rng,
        catalogue,
        split=split,
        seconds=(num_frames - 1) / fps,
        aspect=width / height,
        animated=animated,
        num_actors=num_actors,
    )
    text = caption(scene, rng, motion=num_frames > 1)
    return EmojiClip(render(scene, artwork, num_frames, height, width, fps), text, scene)


def render(
    scene: Scene, artwork: Artwork, num_frames: int, height: int, width: int, fps: float | int
) -> UInt8[np.ndarray, "{num_frames} {height} {width} 3"]:
    """Renders a scene from time 0 on, antialiased, with motion finer than a pixel."""
    if min(num_frames, height, width) <= 0 or not 0 < fps < math.inf:
        raise ValueError(
            f"num_frames, height, width and fps must be positive, got {num_frames}, {height}, "
            f"{width}, {fps}"
        )
    seconds = np.arange(num_frames) / fps
    canvas = _background(scene, seconds, height, width)
    for actor in scene.actors:
        glyphs = artwork(actor.number)
        path = scenes.path(scene, actor, seconds)
        for i, number in enumerate(frame_numbers(actor, seconds)):
            _paint(canvas[i], glyphs[number], actor, path, i)
    return np.clip(canvas + np.float32(0.5), 0, 255).astype(np.uint8)


def frame_numbers(actor: Actor, seconds: Float[np.ndarray, " t"]) -> list[int]:
    """Frames of the animation that an actor shows at times in seconds."""
    # A time at the beginning of a frame must not be rounded to the frame before.
    frames = np.floor(seconds * actor.playback * FRAME_RATE + 1e-6).astype(int)
    return ((actor.phase + frames) % actor.entry.frames).tolist()


def _paint(
    canvas: Float32[np.ndarray, "h w 3"],
    glyph: UInt8[np.ndarray, "n n 4"],
    actor: Actor,
    path: Path,
    i: int,
) -> None:
    """Composites frame `i` of an actor onto the picture."""
    height, width = canvas.shape[:2]
    unit, side = min(height, width), len(glyph)
    top, left, bottom, right = (side * edge for edge in actor.entry.box)
    scale = actor.size * path.scale[i] * unit / max(bottom - top, right - left)
    column, row = path.x[i] * unit + width / 2, path.y[i] * unit + height / 2
    angle = math.radians(path.angle[i])
    cos, sin = math.cos(angle), math.sin(angle)
    # A margin of two pixels: faint pixels may lie outside the box.
    x_reach = (abs(cos) * (right - left) + abs(sin) * (bottom - top)) / 2 * scale + 2
    y_reach = (abs(sin) * (right - left) + abs(cos) * (bottom - top)) / 2 * scale + 2
    x0, y0 = max(math.floor(column - x_reach), 0), max(math.floor(row - y_reach), 0)
    x1, y1 = min(math.ceil(column + x_reach), width), min(math.ceil(row + y_reach), height)
    if x0 >= x1 or y0 >= y1:
        return
    # The affine map from samples in this part of the picture to pixels of the glyph.
    flip = -1 if actor.mirrored else 1
    step = 1 / (_SAMPLES * scale)
    a, b, d, e = flip * cos * step, flip * sin * step, -sin * step, cos * step
    dx, dy = (column - x0) * _SAMPLES, (row - y0) * _SAMPLES
    c = (left + right) / 2 - a * dx - b * dy
    f = (top + bottom) / 2 - d * dx - e * dy
    size = (x1 - x0) * _SAMPLES, (y1 - y0) * _SAMPLES
    image = Image.frombuffer("RGBa", (side, side), glyph.tobytes(), "raw", "RGBa", 0, 1)
    samples = image.transform(
        size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(samples, np.float32).reshape(y1 - y0, _SAMPLES, x1 - x0, _SAMPLES, 4)
    over(canvas[y0:y1, x0:x1], pixels.mean(axis=(1, 3)))


def over(canvas: Float32[np.ndarray, "h w 3"], layer: Float32[np.ndarray, "h w 4"]) -> None:
    """Composites premultiplied RGBA onto a picture in place; values are in [0, 255]."""
    canvas *= 1 - layer[..., 3:] / 255
    canvas += layer[..., :3]


def _background(
    scene: Scene, seconds: Float[np.ndarray, " t"], height: int, width: int
) -> Float32[np.ndarray, "t {height} {width} 3"]:
    """The frames without actors, computed once if the camera does not move."""
    unit = min(height, width)
    y = ((np.arange(height) + 0.5 - height / 2) / unit)[:, None]
    x = ((np.arange(width) + 0.5 - width / 2) / unit)[None, :]
    centres, zooms = scenes.view(scene, seconds if scene.camera else seconds[:1])
    frames = np.stack(
        [
            _backdrop(scene.backdrop, x / zoom + centre[0], y / zoom + centre[1], 1 / (unit * zoom))
            for centre, zoom in zip(centres, zooms, strict=True)
        ]
    )
    return frames if scene.camera else np.repeat(frames, len(seconds), axis=0)


def _backdrop(
    backdrop: Backdrop, x: np.ndarray, y: np.ndarray, pixel: float
) -> Float32[np.ndarray, "h w 3"]:
    """Colours at x (1, w) and y (h, 1) in the scene, where a pixel is `pixel` wide."""
    first, last = (np.array(COLOURS[name], np.float32) for name in (backdrop.colours * 2)[:2])
    share = np.zeros(np.broadcast_shapes(x.shape, y.shape))  # of the second colour
    shade = np.zeros_like(share)
    if backdrop.kind == "gradient":
        angle = math.radians(scenes.GRADIENTS[backdrop.direction])
        along = x * math.cos(angle) + y * math.sin(angle)
        low, high = along.min(), along.max()
        share = np.broadcast_to((along - low) / max(high - low, 1e-9), share.shape)
    elif backdrop.kind == "floor":
        share = share + np.clip((y - backdrop.horizon) / pixel + 0.5, 0, 1)
    elif backdrop.kind != "plain":
        waves, phases = textures.waves(
            backdrop.kind, backdrop.wavelength, backdrop.angle, backdrop.seed
        )
        theta = waves[:, 0, None, None] * x + waves[:, 1, None, None] * y
        cosines = np.cos((theta + phases[:, None, None]).astype(np.float32))
        shade = _CONTRAST * textures.LEVELS[backdrop.kind](cosines)
    mixed = first + share[..., None].astype(np.float32) * (last - first)
    return np.clip(mixed + shade[..., None].astype(np.float32), 0, 255)
