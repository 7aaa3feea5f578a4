"""Perceptual hashes: 64 bits, nearly equal for pictures that look the same."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

PLACES = (0.1, 0.37, 0.63, 0.9)  # position of the hashed frames, as a fraction of the clip


def hash_clip(pictures: Sequence[UInt8[np.ndarray, "h w"]]) -> tuple[int, ...]:
    """Hashes a few frames spread over a clip.

    Args:
      pictures: grey frames of the whole clip, evenly spaced.
    """
    places = (min(int(place * len(pictures)), len(pictures) - 1) for place in PLACES)
    return tuple(hash_picture(pictures[place]) for place in places)


def hash_picture(picture: UInt8[np.ndarray, "h w"]) -> int:
    """Hashes a grey picture to 64 bits: which of its 64 lowest DCT frequencies exceed their median.

    Re-encoding, scaling and colour correction hardly change them.
    """
    small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    frequencies = cv2.dct(small)[:8, :8].ravel()
    frequencies[0] = 0.0  # the mean brightness does not count
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def distance(one: Sequence[int], other: Sequence[int]) -> float:
    """Number of different bits per hash, on average over the frames."""
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True)) / len(one)
