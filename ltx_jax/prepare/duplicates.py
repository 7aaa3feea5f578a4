"""Near-duplicates over a whole set: perceptual hashes, compared only where some bits agree.

Two clips are compared if 16 neighbouring bits of 64 agree in one of their pictures; where d bits
differ, they do at any rate for d <= 3 in one picture, and nearly always for more, as there are
several.
"""

import itertools
from collections.abc import Iterable, Iterator

from ltx_jax.data.filters.hashes import distance
from ltx_jax.prepare.records import Clip

_BANDS = 4
_COMPARED = 50  # with so many at most of those that agree in a band: flat pictures all agree


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
