"""Captions of scenes of emoji: varied sentences, each true to its scene."""

import itertools
import re

import numpy as np

from ltx_jax.emoji.catalogue import TONES, Entry
from ltx_jax.emoji.scenes import COLOURS, GRADIENTS, KINDS, Actor, Backdrop, Scene, choose
from ltx_jax.vocabulary import split_words
from ltx_jax.world.grammar import ADVERBS, SENSES, VERBS, WAYS, as_sentences

MAX_BYTES = 190  # longest caption; every caption fits into 192 tokens of a byte-level tokenizer

_MOVES = (("drifts", "drifting"), ("floats", "floating"))
VERBS_OF_EMOJI = {
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
CAMERA_MOVES = {
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
        behind = choose(rng, behind_phrases(scene.backdrop))
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
    verb, participle = choose(rng, VERBS_OF_EMOJI[actor.motion])
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
        subject = noun_phrase(entry, adjective)
    if detailed and entry.tags and rng.random() < 0.15:
        subject += f" ({', '.join(_some(rng, entry.tags, 2))})"
    return subject


def noun_phrase(entry: Entry, adjective: str = "") -> str:
    """An emoji's name as in a sentence: "a mage with dark skin tone", "sparkles".

    Args:
      entry: the emoji.
      adjective: what precedes the name; ends in a space, or is empty.
    """
    thing = entry.thing
    # "man: beard" is a man with a beard, but "kiss: woman, man" is no kiss with a woman.
    if entry.subgroup == "person":
        thing = thing.replace(": ", " with ")
    if entry.tone:
        thing += f" {'and' if ' with ' in thing else 'with'} {TONES[entry.tone]}"
    words = f"{adjective}{thing}"
    article = "" if _is_plural(entry.thing) or entry.thing[0].isupper() else _article(words)
    return f"{article}{words}"


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


def behind_phrases(backdrop: Backdrop) -> tuple[str, ...]:
    """All phrases for a background: "on a striped red background", "on a red background"."""
    first, last = (backdrop.colours * 2)[:2]
    on = f"on {_article(first)}{first} background"
    if backdrop.kind == "plain":
        return on, f"on {first}", f"in front of a plain {first} background"
    if backdrop.kind == "gradient":
        return (
            f"on a gradient from {first} to {last}",
            f"on a background that fades from {first} to {last}",
            f"on a {first} and {last} gradient {backdrop.direction}",
        )
    if backdrop.kind == "floor":
        return (
            f"with {_article(last)}{last} floor and {_article(first)}{first} wall",
            f"in front of {_article(first)}{first} wall with {_article(last)}{last} floor",
        )
    return f"on a {backdrop.kind} {first} background", on


def _camera(scene: Scene, rng: np.random.Generator) -> str:
    words = choose(rng, CAMERA_MOVES[scene.camera or ""])
    pace = scene.pace(scene.actors[0])
    return f"{words} {ADVERBS[pace]}" if pace in ADVERBS and rng.random() < 0.4 else words


def words() -> tuple[str, ...]:
    """Every word that can occur in a caption, except those of the emoji themselves, sorted."""
    phrases = [*COLOURS, *TONES, *ADVERBS.values(), *SENSES.values(), "small", "large"]
    phrases += [phrase for verbs in VERBS_OF_EMOJI.values() for pair in verbs for phrase in pair]
    phrases += [phrase for row in (*CAMERA_MOVES.values(), *_PLAYBACK.values()) for phrase in row]
    phrases += [*_ONE, *_ONE_BEHIND, *_RESTING, *_PICTURE, *_TWO, *_TWO_PICTURED]
    phrases += ["a", "an", "and", "with", "emoji of"]
    for kind, direction in itertools.product(KINDS, GRADIENTS):
        phrases += behind_phrases(Backdrop(kind, ("white", "black"), direction))
    return tuple(sorted(set(split_words(re.sub(r"{\w+}", " ", " ".join(phrases))))))
