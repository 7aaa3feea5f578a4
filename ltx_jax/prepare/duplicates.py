"""Finds near-duplicates in a whole data set by perceptual hashes (locality-sensitive hashing).

Each hash of 64 bits is cut into four bands of 16 bits. Two clips are compared only if they agree in
a whole band of one of their frames. Hashes within 3 bits of each other are always compared; clips
that differ in more bits nearly always are, as each has several frames.
"""

import itertools
from collections.abc import Iterable, Iterator

from ltx_jax.data.filters.hashes import distance
from ltx_jax.prepare.records import ClipRecord

_BANDS = 4
_MAX_COMPARISONS = 50  # per clip and band, as the hashes of all flat pictures agree


def bands(clip: ClipRecord) -> Iterator[tuple[str, ClipRecord]]:
    """Yields the clip once under each band of its hashes, as (band, clip)."""
    width = 64 // _BANDS
    for place, value in enumerate(clip.hashes):
        for band in range(_BANDS):
            yield f"{place}.{band}.{value >> (band * width) & (1 << width) - 1:x}", clip


def pairs(
    clips: Iterable[ClipRecord], max_distance: float
) -> Iterator[tuple[ClipRecord, ClipRecord]]:
    """Near-duplicates among clips that agree in a band, as (better clip, other clip).

    Clips of the same shot are never duplicates of each other.

    Args:
      clips: the clips of one band.
      max_distance: the largest number of different bits per hash, on average over the frames.
    """
    ordered = sorted(clips, key=_rank)
    for i, one in enumerate(ordered):
        for other in ordered[i + 1 : i + 1 + _MAX_COMPARISONS]:
            if (one.source, one.shot) == (other.source, other.shot):
                continue
            if distance(one.hashes, other.hashes) <= max_distance:
                yield one, other


def _rank(clip: ClipRecord) -> tuple:
    """Sort key: larger pictures first, then longer clips, then by name."""
    return -clip.crop[2] * clip.crop[3], -round(clip.seconds, 1), clip.source, clip.number


def groups(duplicate_pairs: Iterable[tuple[ClipRecord, ClipRecord]]) -> dict[str, str]:
    """Maps the name of each clip to drop to the name of the best clip of its group (union-find)."""
    parent: dict[str, str] = {}
    clips: dict[str, ClipRecord] = {}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    duplicate_pairs = list(duplicate_pairs)
    for clip in itertools.chain.from_iterable(duplicate_pairs):
        parent[clip.name], clips[clip.name] = clip.name, clip
    for one, other in duplicate_pairs:
        parent[root(other.name)] = root(one.name)
    best: dict[str, ClipRecord] = {}
    for name, clip in clips.items():
        group = root(name)
        best[group] = min(best.get(group, clip), clip, key=_rank)
    return {name: best[root(name)].name for name in sorted(clips) if best[root(name)].name != name}
