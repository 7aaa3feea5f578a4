"""Captions of scenes of emoji: varied sentences, each true to its scene."""

import re

import numpy as np

from ltx_jax.emoji.catalogue import TONES, Entry
from ltx_jax.emoji.scenes import Actor, Backdrop, Scene, choose
from ltx_jax.world.grammar import ADVERBS, SENSES, VERBS, WAYS, as_sentences

MAX_BYTES = 190  # longest caption; every caption fits into 192 tokens of a byte-level tokenizer

_MOVES = (("drifts", "drifting"), ("floats", "floating"))
_VERBS = {
    **VERBS,
    **{
        motion: (*VERBS[motion], *((f"{verb} {way}", f"{form} {way}") for verb, form in _MOVES))
        for motion, (way, _) in WAYS.items()
    },
    # Not "does not move", since the emoji's own animation continues.
    "still": (
        ("stays in place", "staying in place"),
        ("stays where it is", "staying in one place"),
        ("does not move around", "not moving around"),
    ),
    "sway": (
        ("sways", "swaying"),
        ("sways from side to side", "swaying from side to side"),
        ("rocks to and fro", "rocking to and fro"),
    ),
    "spin": VERBS["rotate"],
}
_CAMERA = {
    **{f"pan {way}": (f"the camera pans {way}",) for way in ("left", "right", "up", "down")},
    "zoom in": ("the camera zooms in", "the camera comes closer"),
    "zoom out": ("the camera zooms out", "the camera moves away"),
}
_PLAYBACK = {0.5: ("in slow motion", "slowed down"), 2.0: ("sped up", "in fast motion")}

_ONE = (
    "{subject} {verb}{on}",
    "{subject} {verb}{on}",
    "{subject} {participle}{on}",
    "{subject}{on}, {participle}",
    "an animation of {subject} {participle}{on}",
    "a video of {subject}{on}, {participle}",
)
_ONE_BEHIND = ("{behind}, {subject} {verb}", "{subject}{on} {verb}")
_RESTING = ("{subject}{on}", "an animation of {subject}{on}", "there is {subject}{on}")
_PICTURE = ("{subject}{on}", "a picture of {subject}{on}", "there is {subject}{on}")
_TWO = (
    "{subject} {verb} and {other} {other_verb}{on}",
    "{subject} on the left {verb}, {other} on the right {other_verb}{on}",
    "{subject} {participle} next to {other} {other_participle}{on}",
    "on the left {subject} {participle}, on the right {other} {other_participle}{on}",
)
_TWO_PICTURED = (
    "{subject} and {other}{on}",
    "{subject} on the left, {other} on the right{on}",
    "{subject} next to {other}{on}",
)
_PLURALS = ("people", "men", "women", "children", "feet")


def caption(scene: Scene, rng: np.random.Generator, *, motion: bool = True) -> str:
    """Writes one of the many captions of a scene, in lower case or as sentences.

    The caption names every emoji, its skin tone and its motion, and sometimes size, pace,
    background, tags, and the speed of the animation.

    Args:
      scene: the scene to describe.
      rng: chooses the words.
      motion: False for a single frame, which shows no motion.
    """
    for detailed in (True, False):
        text = _sentence(scene, rng, motion, detailed)
        if len(text.encode()) <= MAX_BYTES:
            break
    return text


def _sentence(scene: Scene, rng: np.random.Generator, motion: bool, detailed: bool) -> str:
    parts = _parts(scene, scene.actors[0], rng, motion, detailed and len(scene.actors) == 1)
    parts |= {"on": "", "behind": ""}
    has_background = (detailed or len(scene.actors) == 1) and rng.random() < 0.8
    if has_background:
        behind = _behind(scene.backdrop, rng)
        parts |= {"on": f" {behind}", "behind": behind}
    if len(scene.actors) == 2:
        other = _parts(scene, scene.actors[1], rng, motion, False)
        parts |= {f"other_{name}": other[name] for name in ("verb", "participle")}
        parts["other"] = other["subject"]
        templates = _TWO if motion else _TWO_PICTURED
    elif not motion:
        templates = _PICTURE
    elif scene.camera or (scene.actors[0].motion == "still" and rng.random() < 0.5):
        templates = _RESTING
    else:
        templates = (*_ONE, *_ONE_BEHIND) if has_background else _ONE
    text = choose(rng, templates).format(**parts)
    if motion and scene.camera:
        text += choose(rng, (". ", ", ")) + _camera(scene, rng)
    playback = _PLAYBACK.get(scene.actors[0].playback)
    if motion and detailed and playback and len(scene.actors) == 1:
        text += f", {choose(rng, playback)}"
    if rng.random() < 0.4:
        text = as_sentences(text)
    return text


def _parts(
    scene: Scene, actor: Actor, rng: np.random.Generator, motion: bool, detailed: bool
) -> dict[str, str]:
    """Phrases for one emoji: its name and motion, with more details if `detailed`."""
    verb, participle = choose(rng, _VERBS[actor.motion])
    if detailed and actor.motion == "spin" and rng.random() < 0.6:
        sense = SENSES[1 if actor.rate > 0 else -1]
        verb, participle = f"{verb} {sense}", f"{participle} {sense}"
    pace = scene.pace(actor)
    if detailed and not scene.camera and pace in ADVERBS and rng.random() < 0.5:
        verb, participle = f"{verb} {ADVERBS[pace]}", f"{participle} {ADVERBS[pace]}"
    # An emoji whose size changes is called neither small nor large.
    keeps_size = actor.motion not in ("grow", "shrink") and not (scene.camera or "").startswith(
        "zoom"
    )
    size = (
        actor.size_class
        if detailed and (keeps_size or not motion) and rng.random() < 0.4
        else "medium"
    )
    if _is_plural(actor.entry.thing):
        verb = participle  # "sparkles drifting left", as "drifts" would be wrong
    return {
        "subject": _subject(actor.entry, rng, size, detailed),
        "verb": verb,
        "participle": participle,
    }


def _subject(entry: Entry, rng: np.random.Generator, size: str, detailed: bool) -> str:
    """The name of an emoji: a phrase, its label or, in a few captions, only its tags."""
    adjective = "" if size == "medium" else f"{size} "
    spot = rng.random()
    if detailed and spot < 0.05 and len(entry.tags) >= 3:
        tags = ", ".join(_some(rng, entry.tags, 3))
        tone = f", {TONES[entry.tone]}" if entry.tone else ""
        return f"{_article(f'{adjective}emoji')}{adjective}emoji of {tags}{tone}"
    if spot < 0.3:
        words = f"{adjective}{entry.label}"
        subject = words if rng.random() < 0.5 else f"{_article(words)}{words} emoji"
    else:
        thing = entry.thing
        # "man: beard" is a man with a beard, but "kiss: woman, man" is no kiss with a woman.
        if entry.subgroup == "person":
            thing = thing.replace(": ", " with ")
        if entry.tone:
            thing += f" {'and' if ' with ' in thing else 'with'} {TONES[entry.tone]}"
        words = f"{adjective}{thing}"
        article = "" if _is_plural(entry.thing) or entry.thing[0].isupper() else _article(words)
        subject = f"{article}{words}"
    if detailed and entry.tags and rng.random() < 0.15:
        subject += f" ({', '.join(_some(rng, entry.tags, 2))})"
    return subject


def _is_plural(thing: str) -> bool:
    """Whether a name is a plural, by the last word before a colon, a comma or a preposition."""
    head = re.split(r":|,| with | of | in | on | holding | at ", thing)[0].split()[-1].lower()
    return head in _PLURALS or (head.endswith("s") and not head.endswith(("ss", "us", "is")))


def _article(words: str) -> str:
    return "an " if words[0] in "aeiouAEIO" else "a "


def _some(rng: np.random.Generator, items: tuple[str, ...], count: int) -> list[str]:
    """`count` different items, or all, in random order."""
    rest = list(items)
    return [rest.pop(int(rng.random() * len(rest))) for _ in range(min(count, len(rest)))]


def _behind(backdrop: Backdrop, rng: np.random.Generator) -> str:
    first, last = (backdrop.colours * 2)[:2]
    options = (
        f"on a {backdrop.kind} {first} background",
        f"on {_article(first)}{first} background",
    )
    if backdrop.kind == "plain":
        options = (*options[1:], f"on {first}", f"in front of a plain {first} background")
    elif backdrop.kind == "gradient":
        options = (
            f"on a gradient from {first} to {last}",
            f"on a background that fades from {first} to {last}",
            f"on a {first} and {last} gradient {backdrop.direction}",
        )
    elif backdrop.kind == "floor":
        options = (
            f"with {_article(last)}{last} floor and {_article(first)}{first} wall",
            f"in front of {_article(first)}{first} wall with {_article(last)}{last} floor",
        )
    return choose(rng, options)


def _camera(scene: Scene, rng: np.random.Generator) -> str:
    words = choose(rng, _CAMERA[scene.camera or ""])
    pace = scene.pace(scene.actors[0])
    return f"{words} {ADVERBS[pace]}" if pace in ADVERBS and rng.random() < 0.4 else words
