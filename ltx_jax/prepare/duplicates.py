"""Near-duplicates over a whole set: perceptual hashes, compared only where some bits agree.

A clip has a hash of 64 bits for each of a few pictures spread over it: the signs of the lowest
frequencies, which encoders, scalers and colour corrections hardly change. Two clips are compared if
16 neighbouring bits agree in one of them; differing in d bits, they do at any rate for d <= 3 in
one picture, and nearly always for more, as there are several.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from ltx_jax.prepare.records import Clip

PLACES = (0.1, 0.37, 0.63, 0.9)  # of the pictures, as shares of the clip
_BANDS = 4
_COMPARED = 50  # with so many at most of those that agree in a band: flat pictures all agree


def hash_picture(picture: UInt8[np.ndarray, "h w"]) -> int:
    """64 bits of a grey picture."""
    small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    frequencies = cv2.dct(small)[:8, :8].ravel()
    frequencies[0] = 0.0  # brightness
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def distance(one: Sequence[int], other: Sequence[int]) -> float:
    """Bits that differ, on average over the pictures."""
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True)) / len(one)


def bands(clip: Clip) -> Iterator[tuple[str, Clip]]:
    """The clip under every band of its hashes; clips that share one are compared."""
    width = 64 // _BANDS
    for place, value in enumerate(clip.hashes):
        for band in range(_BANDS):
            yield f"{place}.{band}.{value >> (band * width) & (1 << width) - 1:x}", clip


def pairs(clips: Iterable[Clip], max_distance: float) -> Iterator[tuple[Clip, Clip]]:
    """Near-duplicates among clips that share a band, better one first.

    Clips of the same shot are not compared: they are parts of one thing.
    """
    ordered = sorted(clips, key=_rank)
    for i, one in enumerate(ordered):
        for other in ordered[i + 1 : i + 1 + _COMPARED]:
            if (one.source, one.shot) == (other.source, other.shot):
                continue
            if distance(one.hashes, other.hashes) <= max_distance:
                yield one, other


def _rank(clip: Clip) -> tuple:
    """Larger pictures come first, then longer clips, then by name."""
    return -clip.crop[2] * clip.crop[3], -round(clip.seconds, 1), clip.source, clip.number


def groups(found: Iterable[tuple[Clip, Clip]]) -> dict[str, str]:
    """Names of the clips to drop, and of the one that is kept of each group."""
    parent: dict[str, str] = {}
    clips: dict[str, Clip] = {}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    found = list(found)
    for clip in itertools.chain.from_iterable(found):
        parent[clip.name], clips[clip.name] = clip.name, clip
    for one, other in found:
        parent[root(other.name)] = root(one.name)
    best: dict[str, Clip] = {}
    for name, clip in clips.items():
        group = root(name)
        best[group] = min(best.get(group, clip), clip, key=_rank)
    return {name: best[root(name)].name for name in sorted(clips) if best[root(name)].name != name}
