"""Synthetic videos with known cuts, bars, motion and duplicates, to measure data preparation.

Scenes are textures at many scales, with shapes on them. A camera over them pans, zooms, shakes or
stands still, and things move. Everything is a pure function of a seed.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ltx_jax.data import video, writing

BARS = (
    *("letterbox", "thin letterbox", "pillarbox", "narrow pillarbox", "windowbox", "top alone"),
    *("left alone", "uneven letterbox", "subtitles", "logo", "grey noise", "dark scene"),
)
CLEAN = ("bright", "night", "horizon", "underexposed", "spotlight", "fade in")
STILL = ("still", "noise", "shake", "shake and noise", "flicker", "slides")
MOVING = ("pan", "zoom", "things", "small thing", "handheld", "noisy things")
COPIES = ("encoded", "halved", "enlarged", "graded", "letterboxed", "slower rate")


@dataclasses.dataclass(frozen=True)
class Film:
    """A video file, and what is true of it."""

    path: Path
    kind: str
    cuts: tuple[float, ...] = ()  # seconds
    bars: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right, in pixels
    moves: bool = True
    copy_of: Path | None = None


def plate(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A picture: a texture at all scales around one colour, and shapes."""
    base = rng.uniform(50, 190, 3)
    picture = np.broadcast_to(base, (height, width, 3)).astype(np.float32)
    size, strength = max(height, width), 45.0
    while size >= 4:
        grid = max(math.ceil(height / size), 1) + 1, max(math.ceil(width / size), 1) + 1
        noise = rng.normal(0, strength, (*grid, 3)) * (0.6, 0.6, 0.6)
        noise += rng.normal(0, strength, (*grid, 1)) * 0.6
        picture = picture + cv2.resize(
            noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
        size, strength = size // 2, strength * 0.72
    for _ in range(rng.integers(4, 12)):
        colour = rng.uniform(10, 245, 3).tolist()
        centre = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        axes = (int(rng.uniform(0.02, 0.15) * width), int(rng.uniform(0.02, 0.15) * width))
        mask = np.zeros((height, width), np.float32)
        if rng.random() < 0.5:
            cv2.ellipse(mask, centre, axes, rng.uniform(0, 180), 0, 360, 1.0, -1, cv2.LINE_AA)
        else:
            corner = centre[0] + axes[0] * 2, centre[1] + axes[1] * 2
            cv2.rectangle(mask, centre, corner, 1.0, -1)
        mask = mask[..., None] * 0.8
        picture = picture * (1 - mask) + np.array(colour, np.float32) * mask
    return np.clip(picture, 0, 255)


def take(
    kind: str, rng: np.random.Generator, count: int, height: int, width: int, rate: float
) -> Iterator[np.ndarray]:
    """Frames (h, w, 3) of one shot, float32 in [0, 255]."""
    margin = 3.0
    scene = plate(rng, int(height * margin), int(width * margin)).astype(np.uint8)
    noise = rng.standard_normal((height + 64, width + 64, 3), np.float32)
    angle, speed = rng.uniform(0, 2 * np.pi), 0.0
    zoom, grain = 0.0, rng.uniform(0.5, 2.0)
    shake, things = 0.0, []
    flicker = 0.0
    if kind in ("pan", "handheld"):
        speed = rng.uniform(0.04, 0.2)  # widths a second
    if kind == "zoom":
        zoom = rng.choice([-1, 1]) * rng.uniform(0.05, 0.15)
    if kind in ("shake", "shake and noise", "handheld"):
        shake = rng.uniform(0.002, 0.008)
    if kind in ("noise", "shake and noise", "noisy things"):
        grain = rng.uniform(5, 10)
    if kind == "flicker":
        flicker = rng.uniform(0.03, 0.1)
    if kind in ("things", "noisy things"):
        things = [_thing(rng, width, 0.07, 0.18) for _ in range(rng.integers(1, 4))]
    if kind == "small thing":
        things = [_thing(rng, width, 0.04, 0.07) for _ in range(2)]
    tremors = [(rng.uniform(1.5, 6), rng.uniform(0, 6.3), rng.normal(0, 1, 3)) for _ in range(4)]
    slides = [plate(rng, height, width) for _ in range(4)] if kind == "slides" else []
    hold, dissolve = rng.uniform(1.8, 2.6), rng.uniform(0.4, 0.7)
    for i in range(count):
        t = i / rate
        if slides:
            place, share = divmod(t, hold)
            now, after = slides[int(place) % 4], slides[int(place + 1) % 4]
            mix = np.clip((share - hold + dissolve) / dissolve, 0, 1)
            frame = now * (1 - mix) + after * mix
        else:
            way = speed * width * (t - count / rate / 2)
            centre = np.array([way * np.cos(angle), way * np.sin(angle)])
            tremor = sum(np.sin(2 * np.pi * f * t + phase) * d for f, phase, d in tremors)
            centre = centre + shake * width * np.asarray(tremor)[:2]
            turn = shake * 0.5 * np.asarray(tremor)[2]
            scale = math.exp(zoom * (t - count / rate / 2))
            frame = _view(scene, centre, turn, scale, height, width)
            for thing in things:
                frame = _laid(frame, thing, t)
        down, right = rng.integers(0, 64, 2)
        grains = noise[down : down + height, right : right + width]
        gain = np.float32(1 + flicker * np.sin(2 * np.pi * 2.3 * t))
        yield np.clip(frame * gain + grains * np.float32(grain), 0, 255)


def _thing(rng: np.random.Generator, width: int, least: float, most: float) -> dict:
    radius = int(rng.uniform(least, most) * width)
    return {
        "picture": plate(rng, 2 * radius, 2 * radius),
        "radius": radius,
        "start": rng.uniform(0, 1, 2),
        "speed": rng.choice([-1, 1], 2) * rng.uniform(0.12, 0.4, 2),  # of the frame, a second
    }


def _view(scene, centre, turn, scale, height, width) -> np.ndarray:
    middle = np.array(scene.shape[1::-1]) / 2 + centre
    c, s = np.cos(turn) / scale, np.sin(turn) / scale
    matrix = np.array([[c, -s, 0], [s, c, 0]])
    matrix[:, 2] = middle - matrix[:, :2] @ (width / 2, height / 2)
    return cv2.warpAffine(
        scene,
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )


def _laid(frame: np.ndarray, thing: dict, t: float) -> np.ndarray:
    """The frame with a thing drawn on it; the thing bounces off the edges."""
    height, width = frame.shape[:2]
    radius = thing["radius"]
    phase = (thing["start"] + thing["speed"] * t) % 2
    x, y = np.where(phase > 1, 2 - phase, phase) * (width, height)
    shift = np.array([[1, 0, x - radius], [0, 1, y - radius]], np.float32)
    picture = cv2.warpAffine(thing["picture"].astype(np.float32), shift, (width, height))
    mask = np.zeros((2 * radius, 2 * radius), np.float32)
    cv2.circle(mask, (radius, radius), radius - 1, 1.0, -1, cv2.LINE_AA)
    mask = cv2.warpAffine(mask, shift, (width, height))[..., None]
    return frame + (picture - frame) * mask


def barred(frame: np.ndarray, bars: tuple[int, int, int, int], level: float = 0.0) -> np.ndarray:
    """The frame with bars around it."""
    top, bottom, left, right = bars
    widths = (top, bottom), (left, right), (0, 0)
    return np.pad(frame, widths, constant_values=level)


class VideoSet:
    """Writes the films of one seed into a folder."""

    def __init__(self, folder: Path, seed: int, *, height: int = 180, width: int = 320):
        self.folder, self._rng = folder, np.random.default_rng([seed, 20])
        self._seed, self._size, self.films = seed, (height, width), []

    def write(self) -> list[Film]:
        """Writes about forty films, of all kinds."""
        for i in range(5):
            self.cut(f"cuts{i}", fades=i == 4, flashes=i == 3)
        for kind in BARS:
            self.bars(kind)
        for kind in CLEAN:
            self.clean(kind)
        for kind in STILL:
            self.take(kind, moves=False)
        for kind in MOVING:
            self.take(kind, moves=True)
        originals = [film for film in self.films if film.kind in MOVING]
        for film, kind in zip(originals, COPIES, strict=True):
            self.copy(film, kind)
        return self.films

    def _save(self, name: str, frames, rate: float, **truth) -> None:
        path = self.folder / f"{self._seed:03}_{name.replace(' ', '_')}.mp4"
        rounded = (np.round(frame).astype(np.uint8) for frame in frames)
        writing.write_video(
            path, rounded, rate, crf=int(self._rng.integers(18, 26)), repeatable=True
        )
        path.with_suffix(".txt").write_text(f"synthetic video, {name}")
        self.films.append(Film(path, name, **truth))

    def _rate(self) -> float:
        return float(self._rng.choice([24, 25, 30]))

    def cut(self, name: str, *, fades: bool, flashes: bool) -> None:
        """A film of several shots."""
        rate, rng = self._rate(), self._rng
        kinds = rng.choice([*MOVING, "pan", "things", "still"], rng.integers(4, 7))
        frames, cuts = [], []
        for number, kind in enumerate(kinds):
            shot = list(take(str(kind), rng, int(rate * rng.uniform(1.2, 2.6)), *self._size, rate))
            if flashes and number % 2:
                for i in range(len(shot) // 2, len(shot) // 2 + 2):
                    shot[i] = np.minimum(shot[i] * 0.3 + 180, 255)
            if fades:
                length = int(rate * 0.4)
                ramp = np.linspace(1, 0, length)
                for i in range(length):
                    shot[-length + i] = shot[-length + i] * ramp[i]
                    if number:
                        shot[i] = shot[i] * ramp[-1 - i]
            if number:
                cuts.append(len(frames) / rate)
            frames += shot
        self._save(name, frames, rate, cuts=tuple(cuts))

    def bars(self, kind: str) -> None:
        """A film with bars."""
        rng, rate = self._rng, self._rate()
        height, width = self._size
        first, second = (int(x) for x in rng.integers(12, 30, 2))
        wide, level, grain = int(rng.integers(30, 60)), 0.0, 0.0
        bars = {
            "thin letterbox": (int(rng.integers(4, 8)),) * 2 + (0, 0),
            "pillarbox": (0, 0, wide, wide),
            "narrow pillarbox": (0, 0, 100, 100),
            "windowbox": (first, first, wide, wide),
            "top alone": (first, 0, 0, 0),
            "left alone": (0, 0, first, 0),
            "uneven letterbox": (first, second, 0, 0),
            "subtitles": (first, 36, 0, 0),
            "logo": (36, first, 0, 0),
        }.get(kind, (first, first, 0, 0))
        if kind == "grey noise":
            level, grain = rng.uniform(10, 22), 1.5
        inner = height - bars[0] - bars[1], width - bars[2] - bars[3]
        frames = []
        shot = take(str(rng.choice(MOVING[:3])), rng, int(rate * 2), *inner, rate)
        for i, frame in enumerate(shot):
            if kind == "dark scene":
                frame = frame * np.linspace(0.12, 0.5, inner[0])[:, None, None]
            whole = barred(frame, bars, level) + rng.normal(0, 1, (*self._size, 3)) * grain
            whole = np.clip(whole, 0, 255).astype(np.uint8)
            if kind == "subtitles":
                words = ("somebody said so", "and then they left", "what did you see?")
                text = words[(i // int(rate)) % 3]
                cv2.putText(whole, text, (40, height - 12), 0, 0.7, (235, 235, 235), 2, cv2.LINE_AA)
            if kind == "logo":
                cv2.circle(whole, (width - 40, 18), 10, (200, 60, 60), -1, cv2.LINE_AA)
                cv2.putText(whole, "TV", (width - 90, 25), 0, 0.6, (220, 220, 220), 2, cv2.LINE_AA)
            frames.append(whole)
        self._save(kind, frames, rate, bars=bars)

    def clean(self, kind: str) -> None:
        """A film without bars in which some could be detected by mistake."""
        rng, rate = self._rng, self._rate()
        height, width = self._size
        count = int(rate * 2)
        y, x = np.mgrid[:height, :width]
        frames = []
        for i, frame in enumerate(take("pan", rng, count, height, width, rate)):
            if kind == "night":
                distance = np.hypot((y - height / 2) / height, (x - width / 2) / width)
                frame = frame * np.clip(0.9 - 1.4 * distance, 0.03, 1)[..., None]
            if kind == "horizon":
                sky = (y < height * 0.35)[..., None]
                frame = np.where(sky, frame * 0.06 + 4, frame * 0.8)
            if kind == "underexposed":
                frame = frame * 0.2
            if kind == "spotlight":
                lit = np.hypot((y - height * 0.6) / 60, (x - width * 0.4) / 70) < 1
                frame = frame * np.where(lit, 1.0, 0.05)[..., None]
            if kind == "fade in":
                frame = frame * min(0.15 + i / count * 2, 1)
            frames.append(frame)
        self._save(kind, frames, rate)

    def take(self, kind: str, *, moves: bool) -> None:
        """A film of one shot."""
        rate = self._rate()
        count = int(rate * self._rng.uniform(2, 5))
        self._save(kind, take(kind, self._rng, count, *self._size, rate), rate, moves=moves)

    def copy(self, film: Film, kind: str) -> None:
        """A changed copy of a film."""
        frames, rate = video.read_video(film.path)
        if kind == "slower rate":
            frames, rate = video.read_video(film.path, frame_rate=rate * 0.6)
        scale = {"halved": 0.75, "enlarged": 1.5}.get(kind, 1.0)
        copied = []
        for frame in frames:
            if scale != 1:
                frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            frame = frame.astype(np.float32)
            if kind == "graded":
                frame = frame * (1.1, 1.0, 0.9) + 8
            if kind == "letterboxed":
                frame = barred(frame, (20, 20, 0, 0))
            copied.append(np.clip(frame, 0, 255))
        path = self.folder / f"{self._seed:03}_copy_{film.path.stem}.mp4"
        rounded = np.stack(copied).round().astype(np.uint8)
        writing.write_video(path, rounded, rate, crf=32, repeatable=True)
        path.with_suffix(".txt").write_text(f"a copy, {kind}")
        bars = (20, 20, 0, 0) if kind == "letterboxed" else (0, 0, 0, 0)
        self.films.append(Film(path, kind, bars=bars, copy_of=film.path))
