"""The part of the page that lists what a model knows, and says what it does not know."""

from typing import Any, NamedTuple

import gradio as gr  # pyright: ignore[reportMissingImports]  # the demo extra

from ltx_jax.demo import prompt_words
from ltx_jax.vocabulary import Vocabulary, short_name

CSS = """
#words .tab-container { gap: 0; }
#words .tab-container button { padding: 0 0.6rem; text-transform: capitalize; }
:is(.chips, .groups) .wrap { gap: 0.35rem; padding: 2px; }
.chips .wrap { max-height: 15rem; overflow-y: auto; align-content: flex-start; }
:is(.chips, .groups) label { position: relative; padding: 0.15rem 0.7rem; border-radius: 1rem; }
.groups label { padding: 0.1rem 0.5rem; border: 0; border-radius: 0.4rem; box-shadow: none;
  background: none; text-transform: capitalize; color: var(--neutral-500); }
.groups label.selected { background: var(--primary-50); color: var(--primary-600); }
:is(.chips, .groups) input { position: absolute; opacity: 0; width: 0; height: 0; }
:is(.chips, .groups) label span { margin-left: 0 !important; }
:is(.chips, .groups) label:focus-within { outline: 2px solid var(--primary-400); }
.find textarea, .find input { border: 1px solid var(--neutral-200) !important;
  border-radius: 1rem; }
#unknown { padding: 0 0.6rem; margin-bottom: -0.6rem; }
#unknown * { color: #b45309; }
"""
_MANY = 30  # phrases of a part, from which on they can be searched
_ARROW = " → "


class UnknownWords(NamedTuple):
    """Fields below the prompt: the words that the model does not know, and what to write in place
    of them; they are hidden if it knows all."""

    text: gr.Markdown
    suggestions: gr.Radio


def unknown_words(vocabulary: Vocabulary, prompt: gr.Textbox) -> UnknownWords:
    """The fields, in which a suggestion that is chosen replaces a word; `word_list` keeps them up
    to date."""
    text, suggestions = _unknown(vocabulary, str(prompt.value or ""))
    fields = UnknownWords(
        gr.Markdown(**text, elem_id="unknown"),
        gr.Radio(**suggestions, show_label=False, container=False, elem_classes="chips"),
    )
    fields.suggestions.input(
        lambda text, choice: prompt_words.replace_word(text, *choice.split(_ARROW)),
        [prompt, fields.suggestions],
        prompt,
        show_progress="hidden",
        api_visibility="private",
    )
    return fields


def _unknown(vocabulary: Vocabulary, prompt: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both fields show for a prompt."""
    replacements = vocabulary.replacements(prompt)
    pairs = [(word, name) for word, names in replacements.items() for name in names]
    *others, last = [f"“{word}”" for word in replacements] or [""]
    words = f"{', '.join(others)} and {last}" if others else last
    several = len(replacements) > 1
    choices = [
        (f"{word}{_ARROW}{name}" if several else name, f"{word}{_ARROW}{name}")
        for word, name in pairs
    ]
    text = f"The model does not know {words}.{' Nearest:' if pairs else ''}"
    return (
        dict(value=text, visible=bool(replacements)),
        dict(choices=choices, value=None, visible=bool(choices)),
    )


def word_list(vocabulary: Vocabulary, prompt: gr.Textbox, unknown: UnknownWords) -> None:
    """A tab for each part of the vocabulary; phrases that are chosen go into the prompt."""
    text = str(prompt.value or "")
    present = prompt_words.spans(vocabulary, text)
    chips = []
    with gr.Tabs(elem_id="words"):
        for part in vocabulary.parts:
            with gr.Tab(part):
                span = present.get(part)
                chips.append(_phrases(vocabulary, part, None if span is None else span.phrase))
                _connect(vocabulary, prompt, part, chips[-1])

    def show(text: str) -> list[Any]:
        """Updates what depends on the prompt, however it was changed."""
        present = prompt_words.spans(vocabulary, text or "")
        chosen = [present[part].phrase if part in present else "" for part in vocabulary.parts]
        return [*(gr.update(**shown) for shown in _unknown(vocabulary, text or "")), *chosen]

    prompt.change(
        show,
        prompt,
        [*unknown, *chips],
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )


def _phrases(vocabulary: Vocabulary, part: str, chosen: str | None) -> gr.Radio:
    """The phrases of a part, by groups if there are several, with a field to search for them if
    there are many."""
    groups = vocabulary.parts[part]
    # The group of the phrase in the prompt is shown first.
    holders = [name for name, phrases in groups.items() if chosen in phrases]
    first = (holders or list(groups))[0]
    bare: dict[str, Any] = dict(show_label=False, container=False)
    group = gr.Radio(
        list(groups), value=first, visible=len(groups) > 1, elem_classes="groups", **bare
    )
    search = gr.Textbox(
        placeholder="Find: a name or a keyword",
        visible=sum(map(len, groups.values())) > _MANY,
        elem_classes="find",
        **bare,
    )
    field = gr.Radio(
        _choices(vocabulary, part, list(groups[first])), value=chosen, elem_classes="chips", **bare
    )

    def show(name: str, text: str = "") -> Any:
        found = prompt_words.find(vocabulary, part, text) if text.strip() else list(groups[name])
        return gr.update(choices=_choices(vocabulary, part, found))

    quiet: dict[str, Any] = dict(show_progress="hidden", api_visibility="private")
    group.input(lambda name: show(name), group, field, **quiet)
    # Not `input`, which is sent before the new text arrives.
    search.change(show, [group, search], field, trigger_mode="always_last", **quiet)
    return field


def _choices(vocabulary: Vocabulary, part: str, phrases: list[str]) -> list[tuple[str, str]]:
    """Phrases as a field shows them, with one for none of them, except in the main part."""
    none = [] if part == next(iter(vocabulary.parts)) else [(f"no {part}", "")]
    return [*none, *((short_name(phrase), phrase) for phrase in phrases)]


def _connect(vocabulary: Vocabulary, prompt: gr.Textbox, part: str, field: gr.Radio) -> None:
    field.input(
        lambda text, phrase: prompt_words.choose(vocabulary, text or "", part, phrase or ""),
        [prompt, field],
        prompt,
        show_progress="hidden",
        api_visibility="private",
    )
