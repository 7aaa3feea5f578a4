"""What captions of emoji name, as the vocabulary of a model trained on a data set of them."""

import dataclasses
from collections.abc import Mapping

from ltx_jax.emoji import grammar
from ltx_jax.emoji.catalogue import TONES, Catalogue, Entry
from ltx_jax.emoji.related import RELATED
from ltx_jax.emoji.scenes import COLOURS, KINDS, MOTIONS, Backdrop
from ltx_jax.vocabulary import Vocabulary, short_name, split_words
from ltx_jax.world.scenes import DIRECTIONS

_ABOUT = (
    "A small model of animated emoji, which runs on a CPU. It knows the emoji below, their names "
    "and their keywords, and nothing else."
)
# Prompts to try, as far as the data set has their emoji.
_EXAMPLES = (
    "a fox moves right on a sky blue background",
    "a rocket moves up quickly on a navy blue background",
    "a ghost sways on a gradient from purple to black",
    "an octopus drifts left on a turquoise background",
    "a mage with dark skin tone stays in place on a dotted lavender background",
    "a birthday cake grows on a pink background",
    "a panda spins slowly with a green floor and a sky blue wall",
)
_PAIR = 7  # a gradient or a floor is suggested for each colour and the one that many places later


def vocabulary(catalogue: Catalogue) -> Vocabulary:
    """What a prompt for a model that was trained on the split "train" can ask for.

    Args:
      catalogue: the emoji of the data set.
    """
    entries = [
        catalogue.entries[number]
        for animated in (True, False)
        for base in catalogue.bases("train", animated)
        for number in base
    ]
    names = [text for entry in entries for text in (entry.label, entry.thing, *entry.tags)]
    moves = {motion: grammar.VERBS_OF_EMOJI[motion][0][0] for motion in MOTIONS}
    whole = Vocabulary(
        about=_ABOUT,
        template="{emoji} {skin tone} {motion} {pace} {background}. {camera}",
        parts={
            "emoji": _emoji(entries),
            "background": {kind: _backgrounds(kind) for kind in KINDS},
            "motion": {
                "directions": {moves[name]: "" for name in DIRECTIONS},
                "in place": {moves[name]: "" for name in MOTIONS if name not in DIRECTIONS},
            },
            "pace": {"paces": dict.fromkeys(grammar.ADVERBS.values(), "")},
            "camera": {"camera": {phrases[0]: "" for phrases in grammar.CAMERA_MOVES.values()}},
            "skin tone": {"people and hands": {f"with {tone}": "" for tone in TONES if tone}},
        },
        words=tuple(sorted({*split_words(" ".join(names)), *grammar.words()})),
    )
    return whole.with_examples(_EXAMPLES)


def _emoji(entries: list[Entry]) -> Mapping[str, Mapping[str, str]]:
    """The emoji by group, those of a subgroup together, with their keywords; their skin tones are
    named apart."""
    groups: dict[str, dict[str, str]] = {}
    for entry in sorted(entries, key=lambda entry: (entry.group, entry.subgroup)):
        phrase = grammar.noun_phrase(dataclasses.replace(entry, tone=0))
        related = RELATED.get(short_name(phrase), "")
        keywords = split_words(" ".join((*entry.tags, entry.subgroup, related)))
        group = groups.setdefault(entry.group.replace("-", " & "), {})
        group[phrase] = " ".join(dict.fromkeys(keywords))
    return groups


def _backgrounds(kind: str) -> dict[str, str]:
    names = tuple(COLOURS)
    pairs = zip(names, names[_PAIR:] + names[:_PAIR], strict=True)
    colours = list(pairs) if kind in ("gradient", "floor") else [(name,) for name in names]
    return {grammar.behind_phrases(Backdrop(kind, pair))[0]: "" for pair in colours}
