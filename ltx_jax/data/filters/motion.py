"""Measures how much a clip moves, in percent of the picture's diagonal per second.

Points are tracked by pyramidal Lucas-Kanade optical flow. The motion that most points have in
common is the camera's; its path is smoothed, so that pans count and shake does not. The motion of
points relative to the camera over a second is that of objects; noise makes points tremble, but does
not carry them away.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

_WINDOW = 1.0  # seconds over which points are tracked
_SMOOTH = 2.0  # seconds over which the camera's path is smoothed
_CELL = 32  # pixels; each cell gets points of its own, as details are spread unevenly
_POINTS = 5  # largest number of points per cell
_CORNER = 1e-5  # least corner strength of a point (OpenCV's cornerMinEigenVal)
_SAME_SCENE = 0.1  # least peak of the phase correlation of two frames of the same scene
_MIN_POINTS = 12  # fewer points give no reliable motion
_MAX_RETURN = 0.7  # pixels; largest distance of a point from its start if tracked forth and back
_DRIFT = 4.0  # pixels; largest accumulated error of a point's steps
_TREMBLE = 0.3  # percent of the diagonal; motion of a point that noise causes
_MAX_MOTION = 30.0  # percent of the diagonal; larger motions of a point in a window are clipped
# A dissolve loses many points, changes the frame, and has frames that are nearly the mean of their
# neighbours.
_COHERENT = 0.8  # fraction of points below which a dissolve is looked for
_CHANGE = 3.0  # least mean change between the neighbours, in grey levels of 255
_BEND = 0.2  # largest distance from their mean, relative to their change
_FADE = 3  # frames after the end of a dissolve until the old scene is gone
_TYPICAL = 70  # percentile of the speed over time, as some objects move only now and then


class _Window(NamedTuple):
    """Motion within a second or less of a clip, in pixels."""

    objects: float  # mean motion of points relative to the camera
    steps: Float[np.ndarray, "n 4"]  # camera motion: right, down, rotation and zoom at the rim
    last: int  # index of the last frame, counted from the first of the window
    fades: bool = False  # part of a dissolve, so its motion is unknown


def score(times: Sequence[float], pictures: Sequence[UInt8[np.ndarray, "h w"]]) -> float:
    """Measures the motion of a clip, in percent of the diagonal per second.

    Args:
      times: times of the frames, in seconds.
      pictures: luma of about ten frames per second, whose longest side is about 256 pixels.
    """
    if len(pictures) < 2:
        return 0.0
    diagonal = float(np.hypot(*pictures[0].shape))
    normalised = [_normalised(picture) for picture in pictures]
    first, windows, speeds = 0, [], []
    while first < len(normalised) - 1:
        after = [i for i in range(first + 1, len(times)) if times[i] - times[first] >= _WINDOW]
        last = after[0] if after else len(times) - 1
        window = _follow(normalised[first:], last - first)
        if not window.fades:
            windows.append(window)
            seconds = times[first + window.last] - times[first]
            speeds += [window.objects / seconds] * window.last
        first += window.last
    if not windows:
        return 0.0
    seconds = (times[-1] - times[0]) / (len(times) - 1)
    camera = _smoothed(np.concatenate([window.steps for window in windows]) / seconds, seconds)
    objects = np.percentile(speeds, _TYPICAL)
    return float(100 / diagonal * (objects + np.percentile(camera, _TYPICAL)))


def _normalised(picture: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Blurs a frame to reduce noise, and normalises its brightness and contrast against flicker."""
    smooth = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 1.2)
    mean, deviation = cv2.meanStdDev(smooth)
    scale = 48 / max(float(deviation[0, 0]), 4.0)
    return np.clip((smooth - mean[0, 0]) * scale + 128, 0, 255).astype(np.uint8)


def _follow(pictures: Sequence[UInt8[np.ndarray, "h w"]], count: int) -> _Window:
    """Tracks points for `count` steps, or until most of them are lost."""
    origins = _points(pictures[0])
    if len(origins) < _MIN_POINTS:
        return _Window(0.0, np.zeros((count, 4)), count)
    current, steps = origins, []
    for i, (previous, following) in enumerate(itertools.pairwise(pictures[: count + 1])):
        arrivals, is_tracked = _flow(previous, following, current)
        if is_tracked.mean() < _COHERENT and _fades(pictures, i):
            while _fades(pictures, i + 1):
                i += 1
            last = min(i + _FADE, len(pictures) - 1)
            return _Window(0.0, np.zeros((last, 4)), last, True)
        if is_tracked.sum() < max(_MIN_POINTS, 0.3 * len(origins)):
            if steps:  # a new window begins here
                break
            return _Window(0.0, _jump(previous, following)[None], 1)
        origins, current, arrivals = origins[is_tracked], current[is_tracked], arrivals[is_tracked]
        steps.append(_camera(current, arrivals, pictures[0].shape))
        current = arrivals
    current, camera_steps = _correct_drift(
        pictures[0], pictures[len(steps)], origins, current, np.array(steps)
    )
    matrix = _similarity(origins, current)
    relative = np.linalg.norm(current - (origins @ matrix[:, :2].T + matrix[:, 2]), axis=1)
    noise, limit = np.array([_TREMBLE, _MAX_MOTION]) / 100 * np.hypot(*pictures[0].shape)
    objects = np.clip(relative - noise, 0, limit).mean()
    return _Window(float(objects), camera_steps, len(steps))


def _correct_drift(
    first: np.ndarray, last: np.ndarray, origins: np.ndarray, current: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Corrects points and camera steps by comparing the first and the last frame directly.

    This removes the accumulated error of many small steps, whose result is the initial guess.
    """
    arrivals, is_tracked = _flow(first, last, origins, current)
    is_tracked &= np.linalg.norm(arrivals - current, axis=1) <= _DRIFT
    if is_tracked.sum() < _MIN_POINTS:
        return current, steps
    error = _camera(origins[is_tracked], arrivals[is_tracked], first.shape) - steps.sum(axis=0)
    return np.where(is_tracked[:, None], arrivals, current), steps + error / len(steps)


def _points(picture: UInt8[np.ndarray, "h w"]) -> np.ndarray:
    """Corners (n, 2) that can be tracked, from every part of the frame that has any."""
    strength = cv2.cornerMinEigenVal(picture, 5)
    corners_by_cell = []
    for top in range(0, picture.shape[0], _CELL):
        for left in range(0, picture.shape[1], _CELL):
            cell = np.ascontiguousarray(picture[top : top + _CELL, left : left + _CELL])
            corners = cv2.goodFeaturesToTrack(cell, _POINTS, qualityLevel=0.1, minDistance=5)
            if corners is not None:
                corners_by_cell.append(corners[:, 0] + (left, top))
    points = np.concatenate(corners_by_cell) if corners_by_cell else np.zeros((0, 2))
    x, y = points.T.astype(int)
    return points[strength[y, x] >= _CORNER].astype(np.float32)


def _flow(
    before: np.ndarray, after: np.ndarray, points: np.ndarray, guess: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tracks points from one frame to another: where they go, and which of them were found."""
    arrivals: Any = None
    origin: Any = None
    options: dict[str, Any] = {"winSize": (15, 15), "maxLevel": 3}
    if guess is not None:
        arrivals, origin = guess.copy(), points.copy()  # OpenCV overwrites them
        options |= {"maxLevel": 1, "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
    follow = cv2.calcOpticalFlowPyrLK
    arrivals, forward_status, _ = follow(before, after, points, arrivals, **options)
    back, backward_status, _ = follow(after, before, arrivals, origin, **options)
    returns = np.linalg.norm(back - points, axis=1) <= _MAX_RETURN
    inside = ((arrivals >= 0) & (arrivals < before.shape[::-1])).all(axis=1)
    return arrivals, (forward_status[:, 0] == 1) & (backward_status[:, 0] == 1) & returns & inside


def _fades(pictures: Sequence[np.ndarray], number: int) -> bool:
    """Whether frame `number` is part of a dissolve: nearby frames are means of their neighbours."""
    near = pictures[max(number - 1, 0) : number + 3]
    for first, middle, last in zip(near, near[1:], near[2:], strict=False):
        change = np.abs(last.astype(np.float32) - first).mean()
        bend = np.abs(middle - (last.astype(np.float32) + first) / 2).mean()
        if change > _CHANGE and bend < _BEND * change:
            return True
    return False


def _similarity(points: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The rotation, zoom and shift (2, 3) that fit most points (RANSAC)."""
    matrix, _ = cv2.estimateAffinePartial2D(points, there, ransacReprojThreshold=1.5)
    if matrix is None:
        shift = np.median(there - points, axis=0)
        return np.concatenate([np.eye(2), shift[:, None]], axis=1)
    return matrix


def _camera(points: np.ndarray, there: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Camera motion in pixels: shift of the centre, rotation and zoom at the rim."""
    matrix = _similarity(points, there)
    centre = np.array(shape[::-1]) / 2
    shift = matrix[:, :2] @ centre + matrix[:, 2] - centre
    rim = np.hypot(*shape) / 4  # about the mean distance of a pixel from the centre
    return np.array([*shift, matrix[1, 0] * rim, (matrix[0, 0] - 1) * rim])


def _jump(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Shift of the camera by phase correlation, for when points are lost; 0 for another scene."""
    window = cv2.createHanningWindow(before.shape[::-1], cv2.CV_32F)
    shift, alike = cv2.phaseCorrelate(before.astype(np.float32), after.astype(np.float32), window)
    return np.array([*shift, 0.0, 0.0]) * (alike >= _SAME_SCENE)


def _smoothed(speeds: Float[np.ndarray, "n 4"], seconds: float) -> Float[np.ndarray, " m"]:
    """Speed of the camera along its smoothed path. `seconds` is the time between steps."""
    size = int(np.clip(round(_SMOOTH / seconds), 1, len(speeds)))
    weights = np.hanning(size + 2)[1:-1]  # a box filter would keep more of the shake
    weights /= weights.sum()
    smooth = np.stack([np.convolve(column, weights, "valid") for column in speeds.T], axis=1)
    return np.linalg.norm(smooth, axis=1)
