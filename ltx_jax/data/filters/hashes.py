"""Perceptual hashes: pictures that look the same have nearly the same 64 bits."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

PLACES = (0.1, 0.37, 0.63, 0.9)  # of the pictures of a clip that are hashed, as shares of it


def hash_clip(pictures: Sequence[UInt8[np.ndarray, "h w"]]) -> tuple[int, ...]:
    """Hashes of a few grey pictures spread over a clip.

    Args:
      pictures: all of it, evenly spaced.
    """
    places = (min(int(place * len(pictures)), len(pictures) - 1) for place in PLACES)
    return tuple(hash_picture(pictures[place]) for place in places)


def hash_picture(picture: UInt8[np.ndarray, "h w"]) -> int:
    """64 bits of a grey picture: the signs of its lowest frequencies.

    Encoders, scalers and colour corrections hardly change them.
    """
    small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    frequencies = cv2.dct(small)[:8, :8].ravel()
    frequencies[0] = 0.0  # brightness
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def distance(one: Sequence[int], other: Sequence[int]) -> float:
    """Bits that differ, on average over the pictures."""
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True)) / len(one)
