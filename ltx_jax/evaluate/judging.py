"""How far the judge itself can be trusted: on clips whose truth is known, and where nothing is."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.ndimage
from jaxtyping import UInt8

from ltx_jax.evaluate.report import Figure, share
from ltx_jax.evaluate.world import words
from ltx_jax.world import render
from ltx_jax.world.judge import Seen, agreement, judge
from ltx_jax.world.scenes import COLOURS, MOTIONS, SHAPES, Triple

_WORDS = {"shape": SHAPES, "colour": tuple(COLOURS), "motion": MOTIONS}
# Of objects that the judge has no name for.
_OTHER_COLOURS = ((255, 0, 255), (128, 255, 0), (0, 128, 128), (0, 0, 128), (120, 70, 20))


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the clips."""

    num_frames: int
    height: int
    width: int
    fps: float


def soften(frames: UInt8[np.ndarray, "t h w 3"], seed: int) -> UInt8[np.ndarray, "t h w 3"]:
    """Blurs and adds noise, as a reconstruction of about 30 dB does."""
    rng = np.random.default_rng(seed)
    values = scipy.ndimage.gaussian_filter(frames.astype(np.float32), (0, 1, 1, 0))
    values += rng.normal(scale=6, size=values.shape)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def figures(count: int, size: Size, seed: int) -> list[Figure]:
    """The judge's rights and wrongs on `count` clips as drawn and softened, and without objects."""
    drawn, softened, wanted = [], [], []
    for index in range(count):
        clip = render.clip(index, seed=seed, split="all", **dataclasses.asdict(size))
        drawn.append(judge(clip.frames, size.fps))
        softened.append(judge(soften(clip.frames, index), size.fps))
        wanted.append([(one.shape, one.colour, one.motion) for one in clip.scene.objects])
    found: list[Figure] = []
    for of, seen in (("drawn", drawn), ("softened", softened)):
        found += words(of, seen, wanted)
        found.append(share(of, "wrong captions rejected", _rejections(seen, wanted, seed)))
        found += _by_word(of, seen, wanted)
    found += [share("nothing seen", name, hits) for name, hits in _empty(count, size, seed).items()]
    return found


def _rejections(
    seen: Sequence[Sequence[Seen]], wanted: Sequence[list[Triple]], seed: int
) -> list[bool]:
    """Whether captions with one word of one object changed are found wrong."""
    rng = np.random.default_rng(seed)
    rejected = []
    for objects, truth in zip(seen, wanted, strict=True):
        for place, known in enumerate(_WORDS.values()):
            index = int(rng.integers(len(truth)))
            triple = list(truth[index])
            triple[place] = str(rng.choice([word for word in known if word != triple[place]]))
            wrong = [*truth[:index], (triple[0], triple[1], triple[2]), *truth[index + 1 :]]
            rejected.append(not agreement(objects, wrong).all)
    return rejected


def _by_word(
    of: str, seen: Sequence[Sequence[Seen]], wanted: Sequence[list[Triple]]
) -> list[Figure]:
    """How often each word is right: objects are known apart by their colours."""
    found: dict[tuple[str, str], list[bool]] = {}
    for objects, truth in zip(seen, wanted, strict=True):
        by_colour = {one.colour: one for one in objects}
        for triple in truth:
            one = by_colour.get(triple[1])
            for kind, word in zip(_WORDS, triple, strict=True):
                right = one is not None and getattr(one, kind) == word
                found.setdefault((kind, word), []).append(right)
    order = [(kind, word) for kind, known in _WORDS.items() for word in known]
    return [share(f"{of}, {key[0]}", key[1], found[key]) for key in order if key in found]


def _empty(count: int, size: Size, seed: int) -> dict[str, list[bool]]:
    """Whether nothing is seen in noise, flat colours, backgrounds and objects of other colours."""
    rng = np.random.default_rng(seed)
    shape = (size.num_frames, size.height, size.width, 3)
    found: dict[str, list[bool]] = {}

    def look(name: str, frames: np.ndarray) -> None:
        found.setdefault(name, []).append(not judge(frames, size.fps))

    for index in range(max(count // 4, 1)):
        look("noise", rng.integers(0, 256, shape, np.uint8))
        look("flat colours", np.broadcast_to(rng.integers(0, 256, 3, np.uint8), shape))
        scene = render.scene(index, seed=seed, seconds=size.num_frames / size.fps)
        bare = dataclasses.replace(scene, objects=())
        background = render.render(bare, size.num_frames, size.height, size.width, size.fps)
        look("backgrounds", background)
        drawn = render.render(scene, size.num_frames, size.height, size.width, size.fps)
        other = _OTHER_COLOURS[int(rng.integers(len(_OTHER_COLOURS)))]
        is_object = (drawn != background).any(axis=-1, keepdims=True)
        look("other colours", np.where(is_object, np.array(other, np.uint8), background))
    return found
