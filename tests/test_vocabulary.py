"""What a model knows in words: unknown words of a prompt, what is nearest, phrases in prompts."""

import json

import numpy as np
import pytest
from emoji_files import entry
from test_emoji_scenes import surfers
from tiny_checkpoint import write_exported

from ltx_jax import vocabulary
from ltx_jax.checkpoints import hub, vocabulary_file
from ltx_jax.demo import prompt_words
from ltx_jax.emoji import grammar as emoji_grammar
from ltx_jax.emoji import scenes
from ltx_jax.emoji.catalogue import Catalogue, base_is_held_out
from ltx_jax.emoji.vocabulary import vocabulary as emoji_vocabulary
from ltx_jax.inference import make_videos
from ltx_jax.prepare import __main__ as prepare
from ltx_jax.vocabulary import Vocabulary
from ltx_jax.world import render
from ltx_jax.world.vocabulary import vocabulary as shapes_vocabulary

SHAPES = shapes_vocabulary()
SURFERS = surfers()
ZOO = Vocabulary(
    about="Animals.",
    template="{animal} {motion} {background}. {camera}",
    parts={
        "animal": {
            "mammals": {
                "a badger": "animal burrow wombat",
                "a koala": "marsupial wombat",
                "a fox": "",
            },
            "birds": {"an owl": "night combat", "ducks": "pond quack"},
            "fruit": {"a peach": "food"},
        },
        "motion": {"motions": {"moves left": "", "sways": "swings"}},
        "background": {"plain": {"on a peach background": "", "on a red background": "crimson"}},
        "camera": {"camera": {"the camera pans left": ""}},
    },
    words=(
        *("a", "an", "badger", "koala", "fox", "owl", "ducks", "peach", "moves", "move", "left"),
        *("sways", "on", "red", "background", "the", "camera", "pans"),
    ),
    examples=("a fox moves left",),
)


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("wombat", ("koala", "badger")),  # related, short names first
        ("foxes", ("fox",)),
        ("moving", ("move",)),
        ("badgre", ("badger",)),
        ("dadger", ()),  # hardly anybody mistypes the first letter; else a frog would be fog
        ("marsupail", ()),  # related words are too many to be compared by spelling
        ("marsupials", ("koala",)),
        ("crimson", ("on a red background",)),
        ("birds", ("owl", "ducks")),  # the name of a group
        ("zeppelin", ()),
    ],
)
def test_what_is_nearest_to_an_unknown_word(word, nearest):
    assert word in ZOO.unknown_words(word)
    assert ZOO.nearest(word) == nearest


def test_a_hint_is_one_line_and_empty_if_all_words_are_known():
    assert ZOO.hint("A fox moves left, on a peach background.") == ""
    hint = ZOO.hint("a Wombat, a wombat and a zeppelin")
    assert hint == (
        "the model does not know 'wombat' (nearest: 'koala', 'badger'), 'and', 'zeppelin'"
    )
    many = ZOO.hint(" ".join(f"word{i}" for i in range(400)))
    assert many.endswith("'word4', 395 more words")


def test_words_that_no_caption_of_shapes_has_are_named_once():
    assert SHAPES.unknown_words("A small red Dog moves left; 2 dogs, a dog!") == (
        "dog",
        "2",
        "dogs",
    )
    for index in range(200):
        assert SHAPES.unknown_words(render.clip(index, height=16, width=16).caption) == ()


def test_captions_of_emoji_have_no_unknown_words():
    known = emoji_vocabulary(SURFERS)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        scene = scenes.sample_scene(rng, SURFERS)
        text = emoji_grammar.caption(scene, rng, motion=seed % 4 > 0)
        assert known.unknown_words(text) == (), text


@pytest.mark.parametrize("make", [lambda: SHAPES, lambda: emoji_vocabulary(SURFERS)])
def test_all_that_can_be_asked_for_is_made_of_known_words(make):
    known = make()
    for phrase, *_ in known.phrases():
        assert known.unknown_words(phrase) == ()
    for example in known.examples:
        assert known.unknown_words(example) == ()


def test_examples_are_made_of_phrases_and_related_words_are_no_words_of_captions():
    for example in SHAPES.examples:
        assert {"shape", "motion"} <= prompt_words.spans(SHAPES, example).keys()
    for phrase, _, related in SHAPES.phrases():
        assert set(SHAPES.unknown_words(related)) == set(related.split()), phrase


def test_the_vocabulary_of_the_model_of_shapes_is_that_of_its_captions():
    """Else: ltx-prepare vocabulary shapes embedded:shapes"""
    file = hub.resolve("embedded:shapes") / vocabulary_file.NAME
    assert json.loads(file.read_text()) == json.loads(json.dumps(vocabulary.dump(SHAPES)))
    assert vocabulary_file.read("embedded:shapes") == SHAPES


def test_emoji_that_are_held_out_are_not_known():
    phrases = set(emoji_vocabulary(SURFERS).parts["emoji"]["animals & nature"])
    held_out = [one for one in SURFERS.entries if base_is_held_out(one)]
    assert 0 < len(held_out) < len(SURFERS.entries)
    for one in SURFERS.entries:
        if not one.tone:
            assert (emoji_grammar.noun_phrase(one) in phrases) is (one not in held_out)


PROMPTS = [
    # Takes the place of a phrase, whatever stands around it.
    ("a fox moves left", "animal", "an owl", "an owl moves left"),
    ("The fox moves left slowly", "animal", "an owl", "an owl moves left slowly"),
    ("a fox moves left", "motion", "sways", "a fox sways"),
    # A peach background is no peach.
    ("a fox on a peach background", "animal", "an owl", "an owl on a peach background"),
    ("a peach on a peach background", "animal", "ducks", "ducks on a peach background"),
    # The place that the template gives to a part.
    ("a fox on a red background", "motion", "sways", "a fox sways on a red background"),
    ("a fox", "camera", "the camera pans left", "a fox. the camera pans left"),
    ("sways", "animal", "a fox", "a fox sways"),
    ("a picture of a wombat on a red background", "animal", "a fox", "a fox on a red background"),
    ("a picture of a wombat", "animal", "a fox", "a fox"),
    # Taken out.
    ("a fox sways on a red background", "motion", "", "a fox on a red background"),
    ("a fox. the camera pans left", "camera", "", "a fox"),
    ("a fox", "motion", "", "a fox"),
    # An empty prompt is the first example.
    ("", "background", "on a red background", "a fox moves left on a red background"),
]


@pytest.mark.parametrize(("prompt", "part", "phrase", "result"), PROMPTS)
def test_a_phrase_finds_its_place_in_a_prompt(prompt, part, phrase, result):
    assert prompt_words.choose(ZOO, prompt, part, phrase) == result


def test_articles_fit_what_follows_them():
    text = prompt_words.choose(SHAPES, "a red star moves left", "colour", "orange")
    assert text == "an orange star moves left"
    assert prompt_words.choose(SHAPES, text, "size", "small") == "a small orange star moves left"
    text = prompt_words.choose(SHAPES, "A red star grows", "size", "large")
    assert text == "a large red star grows"


def test_every_phrase_of_shapes_can_be_chosen_and_found_again():
    for part, groups in SHAPES.parts.items():
        for phrase in (phrase for group in groups.values() for phrase in group):
            text = prompt_words.choose(SHAPES, SHAPES.examples[0], part, phrase)
            assert SHAPES.unknown_words(text) == ()
            assert prompt_words.spans(SHAPES, text)[part].phrase == phrase


def test_a_word_is_replaced_wherever_it_is_one():
    text = "A wombat moves, wombats too; WOMBAT!"
    assert prompt_words.replace_word(text, "wombat", "owl") == "An owl moves, wombats too; owl!"
    assert prompt_words.replace_word("a (b", "b", r"\1") == r"a (\1"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ow", ["an owl"]),
        ("night", ["an owl"]),
        ("mammal bur", ["a badger"]),
        ("wombat", ["a koala", "a badger"]),
        ("BIRD", ["ducks", "an owl"]),
        ("badgre", ["a badger"]),
        ("zeppelin", []),
    ],
)
def test_phrases_are_found_by_name_keyword_group_or_spelling(text, found):
    assert prompt_words.find(ZOO, "animal", text) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wrods": []}, "has no field 'wrods': did you mean 'words'"),
        ({"words": None}, "words must be a list, got None"),
        ({"words": [1]}, "words must be text, got 1"),
        ({"parts": {"animal": ["a fox"]}}, r"'animal' must be an object, got \['a fox'\]"),
        ({"parts": {"animal": {"birds": {"an owl": 1}}}}, "'an owl' must be text, got 1"),
        ({"parts": {**ZOO.parts, "motion": {}}}, "the part 'motion' has no phrases"),
        ({"template": "{animal} {motion.__class__}"}, "must name each of these parts once: animal"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, message):
    content = vocabulary.dump(ZOO) | change
    folder = write_exported(tmp_path)
    file = folder / vocabulary_file.NAME
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{file}.*{message}"):
        vocabulary_file.read(folder)
    del content["words"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{file} has no "):
        vocabulary_file.read(folder)


def test_it_is_written_beside_a_model_and_exported_with_it(tmp_path):
    from ltx_jax.export import export

    folder = write_exported(tmp_path / "model")
    assert vocabulary_file.read(folder) is None
    assert prepare.main(["vocabulary", "shapes", str(folder)]) == 0
    assert vocabulary_file.read(folder) == SHAPES
    written = export(str(folder), tmp_path / "out", layouts=["official"])
    assert tmp_path / "out" / vocabulary_file.NAME in written
    assert vocabulary_file.read(tmp_path / "out") == SHAPES
    file = folder / "model.safetensors"
    assert vocabulary_file.read(file) is None  # that of a file has its name
    vocabulary_file.write(file.with_name(f"{file.name}.{vocabulary_file.NAME}"), ZOO)
    assert vocabulary_file.read(file) == ZOO


def test_captions_without_a_grammar_are_refused(tmp_path, capsys):
    folder = write_exported(tmp_path / "model")
    assert prepare.main(["vocabulary", "clips", str(folder)]) == 2
    assert "captions of clips have no grammar: shapes and emoji:DIR" in capsys.readouterr().err


def test_the_command_line_names_unknown_words_once_and_only_then(tmp_path, capsys):
    folder = write_exported(tmp_path / "model")
    prompts = ["a wombat moves left", "a fox sways", "A Wombat"]
    make_videos.warn_of_words(str(folder), prompts)
    assert capsys.readouterr().err == "", "a model without a vocabulary"
    vocabulary_file.write(folder / vocabulary_file.NAME, ZOO)
    make_videos.warn_of_words(str(folder), prompts[1:2])
    assert capsys.readouterr().err == ""
    make_videos.warn_of_words(str(folder), prompts)
    line = "warning: the model does not know 'wombat' (nearest: 'koala', 'badger')\n"
    assert capsys.readouterr().err == line


def test_everyday_words_come_with_the_emoji_that_are_nearest():
    koala, fox = entry("1f428", "koala"), entry("1f98a", "fox")
    known = emoji_vocabulary(Catalogue([koala, fox]))
    assert known.nearest("wombat") == ("koala",)
    assert known.nearest("slyness") == ()
    assert known.unknown_words("a sly fox") == ()  # a keyword
