"""Finds the phrases of a vocabulary, and puts them into prompts that may be written by hand."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from ltx_jax.vocabulary import Vocabulary, short_name, split_words

_MAX_FOUND = 60


class Span(NamedTuple):
    """Where a phrase stands in a prompt."""

    phrase: str
    start: int
    end: int


def spans(vocabulary: Vocabulary, prompt: str) -> dict[str, Span]:
    """The phrases in a prompt, at most one for each part of the vocabulary.

    If phrases overlap, the longest counts: a peach background is no peach.
    """
    result: dict[str, Span] = {}
    matches = sorted(_matches(vocabulary, prompt), key=lambda match: match[1].start - match[1].end)
    for part, span in matches:
        free = all(span.end <= other.start or other.end <= span.start for other in result.values())
        if free and part not in result:
            result[part] = span
    return result


def _matches(vocabulary: Vocabulary, prompt: str) -> Iterator[tuple[str, Span]]:
    text = prompt.lower()
    for part, groups in vocabulary.parts.items():
        for phrases in groups.values():
            for phrase in phrases:
                name = short_name(phrase).lower()
                if name not in text:  # which is faster
                    continue
                article = r"(?:\b(?:an?|the) )?" if name != phrase.lower() else ""
                match = re.search(rf"{article}(?<!\w){re.escape(name)}(?!\w)", text)
                if match:
                    yield part, Span(phrase, *match.span())


def choose(vocabulary: Vocabulary, prompt: str, part: str, phrase: str) -> str:
    """Puts a phrase into a prompt.

    It takes the place of the phrase of the same part, or else the place that the template gives it
    between the phrases of other parts. Without phrases of the first part, what stands in its place
    is replaced.

    Args:
      vocabulary: has the phrase.
      prompt: an empty one stands for the first example.
      part: the part of the vocabulary that the phrase belongs to.
      phrase: an empty one takes the phrase of this part out.
    """
    if not prompt.strip() and phrase:
        prompt = vocabulary.examples[0] if vocabulary.examples else ""
    present = spans(vocabulary, prompt)
    if part in present:
        start, end = present[part][1:]
        return _tidy(prompt[:start] + phrase + prompt[end:])
    if not phrase:
        return prompt
    leads = {name: lead for lead, name in re.findall(r"([^{}]*){([^{}]*)}", vocabulary.template)}
    order = list(leads)
    before = [present[name] for name in order[: order.index(part)] if name in present]
    after = [present[name] for name in order[order.index(part) + 1 :] if name in present]
    if before:
        end = before[-1].end
        return _tidy(prompt[:end] + leads[part] + phrase + prompt[end:])
    start = min((span.start for span in after), default=len(prompt))
    if part == order[0]:
        return _tidy(f"{leads[part]}{phrase} {prompt[start:]}")
    return _tidy(f"{prompt[:start]}{phrase} {prompt[start:]}")


def replace_word(prompt: str, word: str, name: str) -> str:
    """A prompt with another name in place of a word."""
    pattern = rf"(?<![^\W_]){re.escape(word)}(?![^\W_])"
    return _tidy(re.sub(pattern, lambda _: name, prompt, flags=re.IGNORECASE))


def _tidy(text: str) -> str:
    """Without superfluous spaces and stops; with "an" before vowels alone."""
    text = re.sub(r"\s+", " ", text).replace(" .", ".").replace(" ,", ",")
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    text = re.sub(r"\b([Aa])n (?=[^\W\daeiouAEIO])", r"\1 ", text)
    return text.strip(" .,")


def find(vocabulary: Vocabulary, part: str, text: str) -> list[str]:
    """The phrases of a part that fit a search, the best first.

    Every word of the search must begin a word of the phrase, its group or its related words. If
    there is no such phrase, those count whose names are nearest to the words of the search.
    """
    wanted = split_words(text)
    ranked = []
    for group, phrases in vocabulary.parts[part].items():
        for phrase, related in phrases.items():
            named = split_words(short_name(phrase))
            others = split_words(f"{related} {group}")
            ranks = [_rank(word, named, others) for word in wanted]
            if None not in ranks:
                ranked.append((max(rank or 0 for rank in ranks), len(phrase), phrase))
    if ranked:
        return [phrase for *_, phrase in sorted(ranked)][:_MAX_FOUND]
    names = {name for word in wanted[:3] for name in vocabulary.nearest(word, _MAX_FOUND)}
    phrases = (phrase for group in vocabulary.parts[part].values() for phrase in group)
    return [phrase for phrase in phrases if short_name(phrase) in names][:_MAX_FOUND]


def _rank(word: str, named: list[str], others: list[str]) -> int | None:
    """How well a word of a search fits a phrase, 0 being best; None if it does not."""
    if named[:1] == [word]:
        return 0
    if any(name.startswith(word) for name in named):
        return 1
    return 2 if any(other.startswith(word) for other in others) else None
