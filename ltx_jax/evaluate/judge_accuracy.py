"""Accuracy of the judge itself, on rendered clips with known objects and on clips without any."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.ndimage
from jaxtyping import UInt8

from ltx_jax.evaluate.metric_table import MetricRow, percentage
from ltx_jax.evaluate.world_table import word_accuracy
from ltx_jax.world import render
from ltx_jax.world.judge import DetectedObject, agreement, detect_objects
from ltx_jax.world.scenes import COLOURS, MOTIONS, SHAPES, Triple

_WORDS = {"shape": SHAPES, "colour": tuple(COLOURS), "motion": MOTIONS}
# RGB of colours without a name in the procedural world.
_OTHER_COLOURS = ((255, 0, 255), (128, 255, 0), (0, 128, 128), (0, 0, 128), (120, 70, 20))


@dataclasses.dataclass(frozen=True)
class ClipSize:
    """Size, length and frame rate of the clips that the judge is measured on."""

    num_frames: int
    height: int
    width: int
    fps: float


def soften(frames: UInt8[np.ndarray, "t h w 3"], seed: int) -> UInt8[np.ndarray, "t h w 3"]:
    """Blurs a clip and adds noise, to a PSNR of about 30 dB, like a VAE's reconstruction."""
    rng = np.random.default_rng(seed)
    values = scipy.ndimage.gaussian_filter(frames.astype(np.float32), (0, 1, 1, 0))
    values += rng.normal(scale=6, size=values.shape)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def accuracy(count: int, size: ClipSize, seed: int) -> list[MetricRow]:
    """Measures the judge on `count` clips, rendered and softened, and on clips without objects."""
    rendered, softened, truths = [], [], []
    for index in range(count):
        clip = render.clip(index, seed=seed, split="all", **dataclasses.asdict(size))
        rendered.append(detect_objects(clip.frames, size.fps))
        softened.append(detect_objects(soften(clip.frames, index), size.fps))
        truths.append([(one.shape, one.colour, one.motion) for one in clip.scene.objects])
    rows: list[MetricRow] = []
    for subject, detections in (("drawn", rendered), ("softened", softened)):
        rows += word_accuracy(subject, detections, truths)
        rows.append(
            percentage(subject, "wrong captions rejected", _rejections(detections, truths, seed))
        )
        rows += _by_word(subject, detections, truths)
    rows += [
        percentage("clips without objects", name, hits)
        for name, hits in _empty(count, size, seed).items()
    ]
    return rows


def _rejections(
    detections: Sequence[Sequence[DetectedObject]], truths: Sequence[list[Triple]], seed: int
) -> list[bool]:
    """Whether the judge rejects captions in which one word of one object was changed."""
    rng = np.random.default_rng(seed)
    rejected = []
    for objects, truth in zip(detections, truths, strict=True):
        for place, words in enumerate(_WORDS.values()):
            index = int(rng.integers(len(truth)))
            triple = list(truth[index])
            triple[place] = str(rng.choice([word for word in words if word != triple[place]]))
            wrong = [*truth[:index], (triple[0], triple[1], triple[2]), *truth[index + 1 :]]
            rejected.append(not agreement(objects, wrong).all)
    return rejected


def _by_word(
    subject: str, detections: Sequence[Sequence[DetectedObject]], truths: Sequence[list[Triple]]
) -> list[MetricRow]:
    """How often each word is recognised. Objects are paired by colour, in which they differ."""
    outcomes: dict[tuple[str, str], list[bool]] = {}
    for objects, truth in zip(detections, truths, strict=True):
        by_colour = {obj.colour: obj for obj in objects}
        for triple in truth:
            obj = by_colour.get(triple[1])
            for kind, word in zip(_WORDS, triple, strict=True):
                right = obj is not None and getattr(obj, kind) == word
                outcomes.setdefault((kind, word), []).append(right)
    order = [(kind, word) for kind, words in _WORDS.items() for word in words]
    return [
        percentage(f"{subject}, {key[0]}", key[1], outcomes[key])
        for key in order
        if key in outcomes
    ]


def _empty(count: int, size: ClipSize, seed: int) -> dict[str, list[bool]]:
    """Whether the judge finds nothing in noise, flat colours, backgrounds and unnamed colours."""
    rng = np.random.default_rng(seed)
    shape = (size.num_frames, size.height, size.width, 3)
    outcomes: dict[str, list[bool]] = {}

    def check(name: str, clip: np.ndarray) -> None:
        outcomes.setdefault(name, []).append(not detect_objects(clip, size.fps))

    for index in range(max(count // 4, 1)):
        check("noise", rng.integers(0, 256, shape, np.uint8))
        check("flat colours", np.broadcast_to(rng.integers(0, 256, 3, np.uint8), shape))
        scene = render.scene(index, seed=seed, seconds=size.num_frames / size.fps)
        bare = dataclasses.replace(scene, objects=())
        background = render.render(bare, size.num_frames, size.height, size.width, size.fps)
        check("backgrounds", background)
        frames = render.render(scene, size.num_frames, size.height, size.width, size.fps)
        other = _OTHER_COLOURS[int(rng.integers(len(_OTHER_COLOURS)))]
        is_object = (frames != background).any(axis=-1, keepdims=True)
        check("other colours", np.where(is_object, np.array(other, np.uint8), background))
    return outcomes
