"""How much a clip moves, in percent of the picture's diagonal per second.

Points are followed by optical flow (Lucas and Kanade's, in pyramids). What all of them do together
is the camera: its path is smoothed, so that a pan counts and shake does not. What points do beside
the camera over a second is motion of things; noise makes points tremble but carries them nowhere.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

_WINDOW = 1.0  # seconds that points are followed for
_SMOOTH = 2.0  # and over which the camera's path is smoothed
_CELL = 32  # pixels: points are looked for in each, as details are not spread evenly
_POINTS = 5  # of a cell
_CORNER = 1e-5  # the least curvature of the picture about a point, as OpenCV counts it
_ALIKE = 0.1  # peak of the correlation of pictures that show the same
_FEWEST = 12  # points that say something
_BACK = 0.7  # pixels: a point that is followed there and back returns so near
_DRIFT = 4.0  # pixels that the steps of a point may have led it astray, at most
_TREMBLE = 0.3  # percent of the diagonal: what noise does to a point
_FARTHEST = 30.0  # percent of the diagonal: no point goes farther in a window
# A dissolve: the share of points that are still found, the least change, of 255, and how far from
# the mean of the others a picture lies, beside their difference.
_COHERENT = 0.8
_CHANGE = 3.0
_BEND = 0.2
_FADE = 3  # pictures on, nothing is left of what faded
_TYPICAL = 70  # percentile of the time that counts: some things move now and then


class _Window(NamedTuple):
    """What a second or less of a clip shows, in pixels."""

    things: float  # how far points went beside the camera, on average
    steps: Float[np.ndarray, "n 4"]  # of the camera: right, down, turn and zoom at the rim
    last: int  # number of the last picture
    fades: bool = False  # one thing into another, which says nothing of motion


def score(times: Sequence[float], pictures: Sequence[UInt8[np.ndarray, "h w"]]) -> float:
    """Motion of a clip.

    Args:
      times: of the pictures, in seconds.
      pictures: about ten a second, of luma, their longest side some 256 pixels.
    """
    if len(pictures) < 2:
        return 0.0
    diagonal = float(np.hypot(*pictures[0].shape))
    even = [_evened(picture) for picture in pictures]
    first, windows, speeds = 0, [], []
    while first < len(even) - 1:
        after = [i for i in range(first + 1, len(times)) if times[i] - times[first] >= _WINDOW]
        last = after[0] if after else len(times) - 1
        window = _follow(even[first:], last - first)
        if not window.fades:
            windows.append(window)
            seconds = times[first + window.last] - times[first]
            speeds += [window.things / seconds] * window.last
        first += window.last
    if not windows:
        return 0.0
    seconds = (times[-1] - times[0]) / (len(times) - 1)
    camera = _smoothed(np.concatenate([window.steps for window in windows]) / seconds, seconds)
    things = np.percentile(speeds, _TYPICAL)
    return float(100 / diagonal * (things + np.percentile(camera, _TYPICAL)))


def _evened(picture: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Blurred against noise, at one brightness and contrast, so that flicker is not motion."""
    smooth = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 1.2)
    mean, deviation = cv2.meanStdDev(smooth)
    scale = 48 / max(float(deviation[0, 0]), 4.0)
    return np.clip((smooth - mean[0, 0]) * scale + 128, 0, 255).astype(np.uint8)


def _follow(pictures: Sequence[UInt8[np.ndarray, "h w"]], count: int) -> _Window:
    """Follows points for so many steps, or until most are lost."""
    begun = _points(pictures[0])
    if len(begun) < _FEWEST:
        return _Window(0.0, np.zeros((count, 4)), count)
    now, steps = begun, []
    for i, (before, after) in enumerate(itertools.pairwise(pictures[: count + 1])):
        there, kept = _flow(before, after, now)
        if kept.mean() < _COHERENT and _fades(pictures, i):
            while _fades(pictures, i + 1):
                i += 1
            last = min(i + _FADE, len(pictures) - 1)
            return _Window(0.0, np.zeros((last, 4)), last, True)
        if kept.sum() < max(_FEWEST, 0.3 * len(begun)):
            if steps:  # begin anew from here
                break
            return _Window(0.0, _jump(before, after)[None], 1)
        begun, now, there = begun[kept], now[kept], there[kept]
        steps.append(_camera(now, there, pictures[0].shape))
        now = there
    now, moved = _straight(pictures[0], pictures[len(steps)], begun, now, np.array(steps))
    matrix = _similarity(begun, now)
    beside = np.linalg.norm(now - (begun @ matrix[:, :2].T + matrix[:, 2]), axis=1)
    tremble, farthest = np.array([_TREMBLE, _FARTHEST]) / 100 * np.hypot(*pictures[0].shape)
    things = np.clip(beside - tremble, 0, farthest).mean()
    return _Window(float(things), moved, len(steps))


def _straight(
    before: np.ndarray, after: np.ndarray, begun: np.ndarray, now: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where points are, and what the camera did, by the first and the last picture alone.

    Small errors of many steps add up; those of one comparison do not. The steps say where to look.
    """
    there, kept = _flow(before, after, begun, now)
    kept &= np.linalg.norm(there - now, axis=1) <= _DRIFT
    if kept.sum() < _FEWEST:
        return now, steps
    missed = _camera(begun[kept], there[kept], before.shape) - steps.sum(axis=0)
    return np.where(kept[:, None], there, now), steps + missed / len(steps)


def _points(picture: UInt8[np.ndarray, "h w"]) -> np.ndarray:
    """Corners that can be followed (n, 2), some in every part of the picture that has any."""
    strength = cv2.cornerMinEigenVal(picture, 5)
    found = []
    for top in range(0, picture.shape[0], _CELL):
        for left in range(0, picture.shape[1], _CELL):
            cell = np.ascontiguousarray(picture[top : top + _CELL, left : left + _CELL])
            corners = cv2.goodFeaturesToTrack(cell, _POINTS, qualityLevel=0.1, minDistance=5)
            if corners is not None:
                found.append(corners[:, 0] + (left, top))
    points = np.concatenate(found) if found else np.zeros((0, 2))
    x, y = points.T.astype(int)
    return points[strength[y, x] >= _CORNER].astype(np.float32)


def _flow(
    before: np.ndarray, after: np.ndarray, points: np.ndarray, guess: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Where points go, perhaps near to a guess, and which of them were found."""
    there: Any = None
    origin: Any = None
    options: dict[str, Any] = {"winSize": (15, 15), "maxLevel": 3}
    if guess is not None:
        there, origin = guess.copy(), points.copy()  # they are written to
        options |= {"maxLevel": 1, "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
    follow = cv2.calcOpticalFlowPyrLK
    there, found, _ = follow(before, after, points, there, **options)
    back, found_back, _ = follow(after, before, there, origin, **options)
    near = np.linalg.norm(back - points, axis=1) <= _BACK
    inside = ((there >= 0) & (there < before.shape[::-1])).all(axis=1)
    return there, (found[:, 0] == 1) & (found_back[:, 0] == 1) & near & inside


def _fades(pictures: Sequence[np.ndarray], number: int) -> bool:
    """Whether one thing fades into another: a picture thereabouts is the mean of its neighbours."""
    near = pictures[max(number - 1, 0) : number + 3]
    for first, middle, last in zip(near, near[1:], near[2:], strict=False):
        change = np.abs(last.astype(np.float32) - first).mean()
        bend = np.abs(middle - (last.astype(np.float32) + first) / 2).mean()
        if change > _CHANGE and bend < _BEND * change:
            return True
    return False


def _similarity(points: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The turn, zoom and shift (2, 3) that most points follow."""
    matrix, _ = cv2.estimateAffinePartial2D(points, there, ransacReprojThreshold=1.5)
    if matrix is None:
        shift = np.median(there - points, axis=0)
        return np.concatenate([np.eye(2), shift[:, None]], axis=1)
    return matrix


def _camera(points: np.ndarray, there: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """What the picture's centre and its rim do, in pixels."""
    matrix = _similarity(points, there)
    centre = np.array(shape[::-1]) / 2
    shift = matrix[:, :2] @ centre + matrix[:, 2] - centre
    rim = np.hypot(*shape) / 4  # the mean distance from the centre, about
    return np.array([*shift, matrix[1, 0] * rim, (matrix[0, 0] - 1) * rim])


def _jump(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """What the camera did where points were lost, if the pictures show the same."""
    window = cv2.createHanningWindow(before.shape[::-1], cv2.CV_32F)
    shift, alike = cv2.phaseCorrelate(before.astype(np.float32), after.astype(np.float32), window)
    return np.array([*shift, 0.0, 0.0]) * (alike >= _ALIKE)


def _smoothed(speeds: Float[np.ndarray, "n 4"], seconds: float) -> Float[np.ndarray, " m"]:
    """The camera's speed along its smoothed path; `seconds` lie between its steps."""
    size = int(np.clip(round(_SMOOTH / seconds), 1, len(speeds)))
    weights = np.hanning(size + 2)[1:-1]  # a box would let more of the shake pass
    weights /= weights.sum()
    smooth = np.stack([np.convolve(column, weights, "valid") for column in speeds.T], axis=1)
    return np.linalg.norm(smooth, axis=1)
