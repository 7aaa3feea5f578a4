"""The motion of an emoji as a whole, or of the camera, in a video, by optical flow.

An emoji's own animation moves too: limbs wave, faces turn. The judge therefore looks for what most
pixels do, over the whole clip, and is wrong where the animation itself drifts, grows or turns.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from ltx_jax.emoji.scenes import CAMERA_KINDS, PACES, Backdrop
from ltx_jax.evaluate.emoji_objects import Masks, box, grown
from ltx_jax.world.scenes import DIRECTIONS

_LEAST = 0.55  # of the slowest pace: less motion counts as none
_CAMERA_LEAST = 0.5  # the same for the camera
_SWAY_LEAST = 4.0  # degrees
_SWAY_FIT = 0.5  # least fraction of the angles' variance that a swing explains
_MIN_PIXELS = 12  # fewer pixels give no motion
_WINDOW = 11  # pixels over which flow is averaged
_CONTRAST, _FAINT = 32.0, 4.0  # deviation of stretched textures; of the faintest, in grey levels
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Track(NamedTuple):
    """Motion since the first frame, of what a mask shows."""

    x: Float[np.ndarray, " t"]  # right, in shorter sides of the picture
    y: Float[np.ndarray, " t"]  # down
    log_scale: Float[np.ndarray, " t"]
    angle: Float[np.ndarray, " t"]  # degrees, clockwise


def motion(
    frames: UInt8[np.ndarray, "t h w 3"], found: Masks, backdrop: Backdrop, frame_rate: float
) -> str:
    """One of `scenes.MOTIONS` or `scenes.CAMERAS`.

    Args:
      frames: a video of one emoji.
      found: the emoji's pixels, from `emoji_objects.masks`.
      backdrop: the background that the video should have; only some show a moving camera.
      frame_rate: frames per second.
    """
    seconds = (len(frames) - 1) / frame_rate
    greys = frames.astype(np.float32) @ _LUMA
    if backdrop.kind in CAMERA_KINDS:
        around = np.logical_not(grown(found, _WINDOW // 2))
        flows = _flows(_stretched(greys, around), 2 * _WINDOW)
        if camera := _camera(_track(flows, around), seconds):
            return camera
    return _actor(_track(_flows(greys, _WINDOW), found), found, seconds)


def _stretched(
    greys: Float32[np.ndarray, "t h w"], around: Bool[np.ndarray, "t h w"]
) -> Float32[np.ndarray, "t h w"]:
    """Gives faint textures the contrast that optical flow needs."""
    background = greys[around]
    if not background.size:
        return greys
    scale = _CONTRAST / max(float(background.std()), _FAINT)
    return (greys - np.median(background)) * scale + 128


def _camera(track: Track, seconds: float) -> str | None:
    """The camera's motion; None if it rests. What it shows moves the other way."""
    zoom = float(track.log_scale[-1])
    x, y = float(track.x[-1]), float(track.y[-1])
    if abs(zoom) > max(_CAMERA_LEAST * PACES["zoom in"][0] * seconds, math.hypot(x, y)):
        return "zoom in" if zoom > 0 else "zoom out"
    if max(abs(x), abs(y)) > _CAMERA_LEAST * PACES["pan left"][0] * seconds:
        way = ("left" if x > 0 else "right") if abs(x) > abs(y) else ("up" if y > 0 else "down")
        return f"pan {way}"
    return None


def _actor(track: Track, found: Masks, seconds: float) -> str:
    """The motion for which there is most evidence, in units of its slowest pace."""
    shift, log_scale = np.array([track.x[-1], track.y[-1]]), float(track.log_scale[-1])
    first, last = box(found[0]), box(found[-1])
    if first and last:  # the flow may lose a fast emoji, and boxes change with limbs: the mean
        unit = min(found.shape[1:])
        moved = np.array([last.column - first.column, last.row - first.row]) / unit
        shift = (shift + moved) / 2
        log_scale = (log_scale + math.log(last.side / first.side)) / 2
    amplitude, fit = _swing(track.angle, seconds)
    sways = amplitude > _SWAY_LEAST and fit > _SWAY_FIT
    evidence = {
        "shift": math.hypot(*shift) / (PACES["left"][0] * seconds),
        "scale": abs(log_scale) / (PACES["grow"][0] * seconds),
        "spin": 0.0 if sways else abs(track.angle[-1]) / (PACES["spin"][0] * seconds),
        "sway": fit * amplitude / (2 * _SWAY_LEAST) if sways else 0.0,
    }
    kind = max(evidence, key=lambda name: evidence[name])
    if kind == "sway":
        return kind
    if evidence[kind] < _LEAST:
        return "still"
    if kind == "shift":
        return max(DIRECTIONS, key=lambda name: float(np.dot(DIRECTIONS[name], shift)))
    if kind == "scale":
        return "grow" if log_scale > 0 else "shrink"
    return kind


def _swing(angle: Float[np.ndarray, " t"], seconds: float) -> tuple[float, float]:
    """Amplitude in degrees of the best swing from rest, and the variance that it explains."""
    times, best = np.linspace(0, seconds, len(angle)), (0.0, 0.0)
    for rate in PACES["sway"]:
        swing = np.sin(2 * math.pi * rate * times)
        system = np.stack([swing, np.ones_like(times), times], axis=1)
        amplitude = float(np.linalg.lstsq(system, angle, rcond=None)[0][0])
        rest = angle - amplitude * swing
        fit = 1 - float(rest.var() / max(angle.var(), 1e-9))
        best = max(best, (fit, abs(amplitude)))
    fit, amplitude = best
    return amplitude, fit


def _flows(greys: Float32[np.ndarray, "t h w"], window: int) -> list[np.ndarray]:
    """Flow (h, w, 2) in pixels from each frame to the next."""
    try:
        import cv2
    except ImportError as error:
        raise ValueError("optical flow needs OpenCV: pip install '.[evaluate]'") from error
    options = {"pyr_scale": 0.5, "levels": 3, "winsize": window, "iterations": 3}
    options |= {"poly_n": 5, "poly_sigma": 1.1, "flags": 0}
    pictures = np.clip(greys, 0, 255).astype(np.uint8)
    return [
        cv2.calcOpticalFlowFarneback(before, after, None, **options)  # pyright: ignore
        for before, after in itertools.pairwise(pictures)
    ]


def _track(flows: list[np.ndarray], found: Bool[np.ndarray, "t h w"]) -> Track:
    """Adds up, from frame to frame, the similarity transform that most pixels share."""
    unit = min(found.shape[1:])
    steps = np.zeros((len(found), 4))
    for i, flow in enumerate(flows):
        rows, columns = np.nonzero(found[i])
        if len(rows) >= _MIN_PIXELS:
            places = np.stack([columns, rows], axis=1).astype(np.float64)
            steps[i + 1] = _similarity(places, flow[rows, columns].astype(np.float64))
    x, y, log_scale, angle = np.cumsum(steps, axis=0).T
    return Track(x / unit, y / unit, log_scale, np.rad2deg(angle))


def _similarity(
    places: Float[np.ndarray, "n 2"], flow: Float[np.ndarray, "n 2"]
) -> tuple[float, float, float, float]:
    """Shift of the centre, log(scale) and angle in radians; outliers, such as limbs, weigh
    little."""
    x, y = (places - places.mean(axis=0)).T
    ones, zeros = np.ones_like(x), np.zeros_like(x)
    system = np.concatenate(
        [np.stack([ones, zeros, x, -y], axis=1), np.stack([zeros, ones, y, x], axis=1)]
    )
    target, weight, solution = flow.T.reshape(-1), np.ones(len(x)), np.zeros(4)
    for _ in range(6):
        # Normal equations: thousands of rows, four unknowns.
        weighted = system * np.concatenate([weight, weight])[:, None]
        solution = np.linalg.solve(weighted.T @ system + 1e-9 * np.eye(4), weighted.T @ target)
        distance = np.hypot(*(target - system @ solution).reshape(2, -1))
        weight = 1 / (distance + max(float(np.median(distance)), 0.02)) ** 2
    shift_x, shift_y, scale, turn = solution.tolist()
    return shift_x, shift_y, math.log(math.hypot(1 + scale, turn)), math.atan2(turn, 1 + scale)
