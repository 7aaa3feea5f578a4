"""Captions of the procedural world: sentences that name shape, colour and motion of each object."""

import re

import numpy as np

from ltx_jax.world.scenes import COLOURS, PANS, SHAPES, TEXTURES, TONES, Scene, SceneObject

MAX_BYTES = 120  # longest caption; every caption fits into 128 tokens of a byte-level tokenizer

_MOVES = (
    ("moves", "moving"),
    ("slides", "sliding"),
    ("glides", "gliding"),
    ("travels", "travelling"),
)
WAYS = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
    "up-left": ("up and left", "up and to the left"),
    "up-right": ("up and right", "up and to the right"),
    "down-left": ("down and left", "down and to the left"),
    "down-right": ("down and right", "down and to the right"),
}
# Finite verb and participle of each motion: "it moves left", "a star moving left".
VERBS = {
    motion: tuple((f"{verb} {way}", f"{form} {way}") for verb, form in _MOVES for way in ways)
    for motion, ways in WAYS.items()
} | {
    "still": (
        ("stays still", "staying still"),
        ("stands still", "standing still"),
        ("does not move", "not moving"),
        ("rests in place", "resting in place"),
    ),
    "orbit": (
        ("moves in a circle", "moving in a circle"),
        ("travels in a circle", "travelling in a circle"),
        ("goes round in a circle", "going round in a circle"),
    ),
    "grow": (
        ("grows", "growing"),
        ("gets larger", "getting larger"),
        ("becomes bigger", "becoming bigger"),
    ),
    "shrink": (
        ("shrinks", "shrinking"),
        ("gets smaller", "getting smaller"),
        ("becomes smaller", "becoming smaller"),
    ),
    "rotate": (
        ("rotates", "rotating"),
        ("spins in place", "spinning in place"),
        ("turns around its centre", "turning around its centre"),
    ),
}
SENSES = {1: "clockwise", -1: "counterclockwise"}
ADVERBS = {"slow": "slowly", "fast": "quickly"}
_SIZE_WORDS = {"small": "small", "large": "large"}
_PAN = "the camera pans {pan}"
_ON = "on a {ground} background"

_ONE = (
    "{subject} {verb}{on}",
    "{subject} {verb}{on}",
    "{subject} {participle}{on}",
    "the {short} {verb}{on}",
    "there is {subject}{on}. it {verb}",
    "a video of {subject} {participle}{on}",
)
_ONE_BEHIND = ("{behind}, {subject} {verb}", "{behind}, {subject} {verb}")
_TWO = (
    "{subject} {verb} and {other} {other_verb}",
    "{subject} {verb} while {other} {other_verb}",
    "{subject} {participle} and {other} {other_participle}",
    "{subject} {verb}. {other} {other_verb}",
)
_PICTURE = ("{subject}{on}", "a picture of {subject}{on}", "there is {subject}{on}")
_TWO_PICTURED = ("{subject} and {other}", "a picture of {subject} and {other}")


def caption(scene: Scene, rng: np.random.Generator, *, motion: bool = True) -> str:
    """Writes a random caption of a scene, in lower case or as capitalised sentences.

    Shape, colour and motion of every object are always named. Size, speed, sense of rotation,
    background and camera movement are named in some captions only.

    Args:
      scene: the scene to describe.
      rng: chooses the words.
      motion: False leaves all motion out, for a clip of a single frame.
    """
    parts = _parts(scene.objects[0], rng, detailed=len(scene.objects) == 1)
    pan = ""
    if len(scene.objects) == 2:
        other = _parts(scene.objects[1], rng, detailed=False)
        parts |= {"other": other["subject"]} | {
            f"other_{name}": other[name] for name in ("verb", "participle")
        }
        templates = _TWO if motion else _TWO_PICTURED
    else:
        templates = _ONE if motion else _PICTURE
        if motion and scene.pan and rng.random() < 0.8:
            pan = _PAN.format(pan=scene.pan)
        elif rng.random() < 0.5:
            behind = _ON.format(ground=_ground(scene, rng))
            parts |= {"on": f" {behind}", "behind": behind}
            templates = templates + _ONE_BEHIND if motion else templates
    text = _choose(rng, templates).format(**parts)
    if pan:
        text += _choose(rng, (". ", ", ")) + pan
    if rng.random() < 0.5:
        text = as_sentences(text)
    return text


def as_sentences(text: str) -> str:
    """A caption in lower case with capitals and a full stop."""
    return re.sub(r"(^|\. )([a-z])", lambda match: match[1] + match[2].upper(), text) + "."


def _parts(obj: SceneObject, rng: np.random.Generator, detailed: bool) -> dict[str, str]:
    """Phrases for one object. Speed and sense of rotation are named only if `detailed`."""
    short = f"{obj.colour} {obj.shape}"
    subject = short
    if obj.size_class in _SIZE_WORDS and rng.random() < 0.5:
        subject = f"{_SIZE_WORDS[obj.size_class]} {short}"
    verb, participle = _choose(rng, VERBS[obj.motion])
    if detailed and obj.motion in ("orbit", "rotate") and rng.random() < 0.5:
        sense = SENSES[1 if obj.rate > 0 else -1]
        verb, participle = f"{verb} {sense}", f"{participle} {sense}"
    if detailed and obj.speed_class in ADVERBS and rng.random() < 0.5:
        adverb = ADVERBS[obj.speed_class]
        if rng.random() < 0.5:
            verb, participle = f"{adverb} {verb}", f"{adverb} {participle}"
        else:
            verb, participle = f"{verb} {adverb}", f"{participle} {adverb}"
    article = "an" if subject[0] in "aeiou" else "a"
    return {
        "subject": f"{article} {subject}",
        "short": short,
        "verb": verb,
        "participle": participle,
        "on": "",
        "behind": "",
    }


def _ground(scene: Scene, rng: np.random.Generator) -> str:
    background = scene.background
    if background.texture == "plain":
        return _choose(rng, (background.tone, f"plain {background.tone}"))
    return _choose(rng, (background.tone, f"{background.tone} {background.texture}"))


def _choose(rng: np.random.Generator, options):
    return options[int(rng.random() * len(options))]


def words() -> tuple[str, ...]:
    """Every word that can occur in a caption, in lower case, sorted."""
    phrases = [*SHAPES, *COLOURS, *TONES, *TEXTURES, *PANS, *_SIZE_WORDS.values()]
    phrases += [*SENSES.values(), *ADVERBS.values(), _PAN, _ON, "an"]
    phrases += [phrase for verbs in VERBS.values() for pair in verbs for phrase in pair]
    phrases += [*_ONE, *_ONE_BEHIND, *_TWO, *_PICTURE, *_TWO_PICTURED]
    text = re.sub(r"{\w+}", " ", " ".join(phrases))
    return tuple(sorted(set(re.findall("[a-z]+", text))))
