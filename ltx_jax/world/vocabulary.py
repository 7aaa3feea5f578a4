"""What the captions of the procedural world name, as the vocabulary of a model trained on it."""

from collections.abc import Mapping, Sequence

from ltx_jax.vocabulary import Vocabulary
from ltx_jax.world import grammar
from ltx_jax.world.scenes import COLOURS, DIRECTIONS, MOTIONS, PANS, SHAPES, TEXTURES, TONES

_ABOUT = "A small model of a world of moving shapes, which runs on a CPU. It knows nothing else."
_EXAMPLES = (
    "a small red star moves left",
    "a large blue circle moves down quickly on a beige dotted background",
    "a green square moves right",
    "the yellow triangle grows slowly on a striped background",
    "a large pink star shrinks. the camera pans left",
)
# Words that no caption has, by the word that means the same.
_RELATED = {
    "small": "little tiny short mini",
    "large": "big huge giant great",
    "red": "crimson scarlet ruby",
    "orange": "amber tangerine",
    "yellow": "gold golden lemon",
    "green": "lime emerald olive",
    "cyan": "turquoise teal aqua",
    "blue": "navy azure sapphire",
    "purple": "violet lavender lilac indigo",
    "pink": "magenta rose fuchsia",
    "circle": "ball disc disk dot sphere sun moon",
    "square": "box cube block rectangle tile",
    "triangle": "pyramid arrow cone",
    "star": "starfish sparkle",
    "cross": "plus x",
    "ring": "donut doughnut hoop wheel torus",
    "still": "motionless static frozen waits",
    "orbit": "orbits circles revolves loops",
    "grow": "expands swells inflates enlarges",
    "shrink": "contracts deflates",
    "rotate": "twists whirls rolls",
    "slowly": "slow gently calmly",
    "quickly": "fast quick rapidly",
}


def vocabulary() -> Vocabulary:
    """What a prompt for a model of the procedural world can ask for."""
    moves = {motion: grammar.VERBS[motion][0][0] for motion in MOTIONS}
    return Vocabulary(
        about=_ABOUT,
        template="a {size} {colour} {shape} {motion} {pace} {background}. {camera}",
        parts={
            "shape": {"shapes": _phrases(SHAPES)},
            "colour": {"colours": _phrases(tuple(COLOURS))},
            "size": {"sizes": _phrases(("small", "large"))},
            "motion": {
                "directions": _phrases([moves[name] for name in DIRECTIONS]),
                "in place": {
                    phrase: _RELATED[name]
                    for name, phrase in moves.items()
                    if name not in DIRECTIONS
                },
            },
            "pace": {"paces": _phrases(tuple(grammar.ADVERBS.values()))},
            "background": _backgrounds(),
            "camera": {"camera": _phrases([f"the camera pans {way}" for way in PANS])},
        },
        words=grammar.words(),
        examples=_EXAMPLES,
    )


def _phrases(phrases: Sequence[str]) -> dict[str, str]:
    return {phrase: _RELATED.get(phrase, "") for phrase in phrases}


def _backgrounds() -> Mapping[str, Mapping[str, str]]:
    """Phrases by texture; a plain background is called by its tone alone."""
    grounds = {
        texture: [tone if texture == "plain" else f"{tone} {texture}" for tone in TONES]
        for texture in TEXTURES
    }
    return {
        texture: _phrases([f"on a {name} background" for name in names])
        for texture, names in grounds.items()
    }
