"""What a model knows, in words: the things, motions and backgrounds that its captions name.

It is data beside the weights (`checkpoints.vocabulary_file`), so that the command line and the web
page can say what to ask for, and which words of a prompt mean nothing to the model.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ltx_jax.config.from_json import nearest as did_you_mean
from ltx_jax.config.from_json import shown

Parts = Mapping[str, Mapping[str, Mapping[str, str]]]

_SIMILAR = 0.8  # least similarity (`difflib`) of a mistyped word
_MAX_UNKNOWN = 5  # unknown words that a hint names, since it compares each with all words
_ENDINGS = (("ies", "y"), ("es", ""), ("s", ""), ("ing", ""), ("ing", "e"), ("ed", ""), ("ed", "e"))
_ARTICLE = re.compile(r"^(an?|the) ")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a model knows.

    Attributes:
      about: what the model is, in a sentence or two.
      template: a prompt with a placeholder for each part: "a {colour} {shape} {motion}".
      parts: for each part, the main one first, its phrases by group, each with related words that
        are separated by spaces; the model need not know these.
      words: all words of the model's captions, in lower case.
      examples: prompts to try, the best first.
    """

    about: str
    template: str
    parts: Parts
    words: tuple[str, ...]
    examples: tuple[str, ...] = ()

    def __post_init__(self):
        placeholders = re.findall(r"{([^{}]*)}", self.template)
        if sorted(placeholders) != sorted(self.parts):
            raise ValueError(
                f"template {shown(self.template)} must name each of these parts once: "
                f"{', '.join(self.parts)}"
            )
        for part, groups in self.parts.items():
            if not any(groups.values()):
                raise ValueError(f"the part {part!r} has no phrases")

    def phrases(self) -> Iterator[tuple[str, str, str]]:
        """All phrases, each with its group and its related words."""
        for groups in self.parts.values():
            for group, phrases in groups.items():
                for phrase, related in phrases.items():
                    yield phrase, group, related

    def with_examples(self, prompts: Iterable[str]) -> "Vocabulary":
        """The same with those prompts as examples whose words are all known."""
        known = tuple(prompt for prompt in prompts if not self.unknown_words(prompt))
        return dataclasses.replace(self, examples=known)

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """The words of a text that the model does not know, in lower case, each once."""
        unknown = (word for word in split_words(text) if word not in self._known)
        return tuple(dict.fromkeys(unknown))

    def nearest(self, word: str, count: int = 3) -> tuple[str, ...]:
        """What to write in place of a word that the model does not know.

        These are its singular or stem, and names that it is related to; or else words of names that
        begin with the same letter and are spelled alike.

        Args:
          word: in lower case.
          count: the largest number of suggestions.
        """
        forms = _forms(word)
        named, related = self._index
        suggestions = [form for form in forms[1:] if form in self._known]
        suggestions += [name for form in forms for name in related.get(form, ())]
        if not suggestions:
            suggestions = [name for form in forms for name in _similar(form, named)]
        return tuple(dict.fromkeys(suggestions))[:count]

    def hint(self, text: str) -> str:
        """One line that names the unknown words of a text and what is nearest to them; empty if all
        words are known."""
        replacements = self.replacements(text)
        listed = [_with_nearest(word, names) for word, names in replacements.items()]
        more = len(self.unknown_words(text)) - len(replacements)
        if more:
            listed.append(f"{more} more words")
        return f"the model does not know {', '.join(listed)}" if listed else ""

    def replacements(self, text: str) -> dict[str, tuple[str, ...]]:
        """The first unknown words of a text, each with what to write in its place."""
        return {word: self.nearest(word) for word in self.unknown_words(text)[:_MAX_UNKNOWN]}

    @functools.cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.words)

    @functools.cached_property
    def _index(self) -> tuple[frozenset[str], dict[str, list[str]]]:
        """The known words in names; and names by their related words and those of their group,
        short names first."""
        named: set[str] = set()
        related: dict[str, list[str]] = {}
        for phrase, group, others in sorted(self.phrases(), key=lambda p: len(short_name(p[0]))):
            named.update(_long_words(phrase))
            for word in _long_words(f"{others} {group}"):
                related.setdefault(word, []).append(short_name(phrase))
        return self._known & named, related


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W_]+", text.lower())


def short_name(phrase: str) -> str:
    """A phrase without its article."""
    return _ARTICLE.sub("", phrase)


def dump(vocabulary: Vocabulary) -> dict[str, Any]:
    """A vocabulary as JSON has it."""
    return dataclasses.asdict(vocabulary)


def build(content: Any, where: str) -> Vocabulary:
    """The inverse of `dump`.

    Args:
      content: a value from JSON.
      where: names it in errors.

    Raises:
      ValueError: if it is no vocabulary.
    """
    fields = {field.name for field in dataclasses.fields(Vocabulary)}
    content = _table(content, where)
    for name in content:
        if name not in fields:
            raise ValueError(f"{where} has no field {shown(name)}{did_you_mean(name, fields)}")
    for name in sorted(fields - {"examples"} - set(content)):
        raise ValueError(f"{where} has no {name}")
    parts = {
        part: {
            group: {
                phrase: _text(related, f"{where}: {shown(phrase)}")
                for phrase, related in _table(phrases, f"{where}: {shown(group)}").items()
            }
            for group, phrases in _table(groups, f"{where}: {shown(part)}").items()
        }
        for part, groups in _table(content["parts"], f"{where}: parts").items()
    }
    about, template = (_text(content[name], f"{where}: {name}") for name in ("about", "template"))
    words = _texts(content["words"], f"{where}: words")
    examples = _texts(content.get("examples", []), f"{where}: examples")
    try:
        return Vocabulary(about, template, parts, words, examples)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, got {shown(value)}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be text, got {shown(value)}")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list, got {shown(value)}")
    return tuple(_text(item, where) for item in value)


def _forms(word: str) -> list[str]:
    """A word, then what it may be without a plural or verb ending."""
    forms = [
        word.removesuffix(ending) + other for ending, other in _ENDINGS if word.endswith(ending)
    ]
    return [word, *(form for form in forms if len(form) > 2)]


def _similar(word: str, words: Iterable[str]) -> list[str]:
    candidates = sorted(other for other in words if other[0] == word[0])
    return difflib.get_close_matches(word, candidates, n=3, cutoff=_SIMILAR)


def _long_words(text: str) -> list[str]:
    """The words of a text that mean something: not articles and prepositions."""
    return [word for word in dict.fromkeys(split_words(text)) if len(word) > 2]


def _with_nearest(word: str, names: tuple[str, ...]) -> str:
    listed = ", ".join(f"'{name}'" for name in names)
    return f"'{word}' (nearest: {listed})" if names else f"'{word}'"
