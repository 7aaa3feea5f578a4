"""Captions of the procedural world: varied sentences that name shape, colour and motion."""

import re

import numpy as np

from ltx_jax.world.scenes import COLOURS, PANS, SHAPES, TEXTURES, TONES, Figure, Scene

MAX_BYTES = 120  # of any caption, so that a byte-level tokenizer of 128 tokens holds them all

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
# As a sentence tells it and as a participle: "it moves left", "a star moving left".
_VERBS = {
    motion: tuple((f"{verb} {way}", f"{doing} {way}") for verb, doing in _MOVES for way in ways)
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
_SENSES = {1: "clockwise", -1: "counterclockwise"}
_ADVERBS = {"slow": "slowly", "fast": "quickly"}
_SIZE_WORDS = {"small": "small", "large": "large"}
_PAN = "the camera pans {pan}"
_ON = "on a {ground} background"

_ONE = (
    "{subject} {tells}{on}",
    "{subject} {tells}{on}",
    "{subject} {doing}{on}",
    "the {bare} {tells}{on}",
    "there is {subject}{on}. it {tells}",
    "a video of {subject} {doing}{on}",
)
_ONE_BEHIND = ("{behind}, {subject} {tells}", "{behind}, {subject} {tells}")
_TWO = (
    "{subject} {tells} and {other} {other_tells}",
    "{subject} {tells} while {other} {other_tells}",
    "{subject} {doing} and {other} {other_doing}",
    "{subject} {tells}. {other} {other_tells}",
)
_PICTURE = ("{subject}{on}", "a picture of {subject}{on}", "there is {subject}{on}")
_TWO_PICTURED = ("{subject} and {other}", "a picture of {subject} and {other}")


def caption(scene: Scene, rng: np.random.Generator, *, motion: bool = True) -> str:
    """Writes one of the many captions of a scene, in lower case or as sentences.

    Shape, colour and motion of every object are named. Size, speed, sense of rotation, background
    and camera are named now and then, and then they are right.

    Args:
      scene: what to describe.
      rng: chooses the words.
      motion: False for a single frame, where nothing can be seen to move.
    """
    parts = _parts(scene.objects[0], rng, detailed=len(scene.objects) == 1)
    pan = ""
    if len(scene.objects) == 2:
        other = _parts(scene.objects[1], rng, detailed=False)
        parts |= {"other": other["subject"]} | {
            f"other_{name}": other[name] for name in ("tells", "doing")
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
        text = re.sub(r"(^|\. )([a-z])", lambda found: found[1] + found[2].upper(), text) + "."
    return text


def _parts(figure: Figure, rng: np.random.Generator, detailed: bool) -> dict[str, str]:
    """Phrases for one object. Without details only shape, colour and motion."""
    bare = f"{figure.colour} {figure.shape}"
    subject = bare
    if figure.look in _SIZE_WORDS and rng.random() < 0.5:
        subject = f"{_SIZE_WORDS[figure.look]} {bare}"
    tells, doing = _choose(rng, _VERBS[figure.motion])
    if detailed and figure.motion in ("orbit", "rotate") and rng.random() < 0.5:
        sense = _SENSES[1 if figure.rate > 0 else -1]
        tells, doing = f"{tells} {sense}", f"{doing} {sense}"
    if detailed and figure.pace in _ADVERBS and rng.random() < 0.5:
        adverb = _ADVERBS[figure.pace]
        if rng.random() < 0.5:
            tells, doing = f"{adverb} {tells}", f"{adverb} {doing}"
        else:
            tells, doing = f"{tells} {adverb}", f"{doing} {adverb}"
    article = "an" if subject[0] in "aeiou" else "a"
    return {
        "subject": f"{article} {subject}",
        "bare": bare,
        "tells": tells,
        "doing": doing,
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
    """Every word that captions are made of, in lower case, sorted."""
    phrases = [*SHAPES, *COLOURS, *TONES, *TEXTURES, *PANS, *_SIZE_WORDS.values()]
    phrases += [*_SENSES.values(), *_ADVERBS.values(), _PAN, _ON, "an"]
    phrases += [phrase for verbs in _VERBS.values() for pair in verbs for phrase in pair]
    phrases += [*_ONE, *_ONE_BEHIND, *_TWO, *_PICTURE, *_TWO_PICTURED]
    text = re.sub(r"{\w+}", " ", " ".join(phrases))
    return tuple(sorted(set(re.findall("[a-z]+", text))))


def vocabulary() -> dict[str, tuple[str, ...]]:
    """What can be asked for, by kind: the words, and one phrase for each motion."""
    return {
        "shapes": SHAPES,
        "colours": tuple(COLOURS),
        "motions": tuple(verbs[0][0] for verbs in _VERBS.values()),
        "sizes": tuple(_SIZE_WORDS.values()),
        "paces": tuple(_ADVERBS.values()),
        "backgrounds": (*TONES, *TEXTURES),
    }


def unknown_words(text: str) -> tuple[str, ...]:
    """The words of a text that no caption is made of, in lower case, each once."""
    known = set(words())
    found = re.findall(r"[^\W_]+", text.lower())
    return tuple(dict.fromkeys(word for word in found if word not in known))
