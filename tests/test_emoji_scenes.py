"""Scenes of emoji: what is drawn moves as it says, and is what its caption says."""

import collections
import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
from emoji_files import circling, disc, entry

from ltx_jax.emoji import grammar, render, scenes
from ltx_jax.emoji.catalogue import (
    SPLITS,
    TONES,
    Catalogue,
    base_is_held_out,
    split_of,
    tone_is_held_out,
)
from ltx_jax.emoji.scenes import CAMERAS, COLOURS, MOTIONS, Actor, Backdrop, Scene
from ltx_jax.world.scenes import DIRECTIONS

SECONDS = 24 / 12
INK = (255, 0, 255)  # no background is near it
ONE = entry(box=(0.25, 0.25, 0.75, 0.75))
# A bar with a heavy end, so that its angle shows.
BAR = np.zeros((1, 64, 64, 4), np.uint8)
BAR[:, 28:36, 16:48] = (*INK, 255)
BAR[:, 22:42, 40:48] = (*INK, 255)
BARRED = entry(box=(0.25, 0.25, 0.75, 0.75))


def premultiplied(frames):
    frames = frames.copy()
    frames[..., :3] = np.round(frames[..., :3] * (frames[..., 3:] / 255))
    return frames


DISC = premultiplied(disc(INK, [(32, 32)], radius=15.5))


def surfers():
    """Women, men and persons surfing in all tones, and many animals without."""
    names = (("woman surfing", "-200d-2640"), ("man surfing", "-200d-2642"), ("person surfing", ""))
    people = [
        entry(
            f"1f3c4{f'-1f3f{tone + 10:x}' if tone else ''}{sign}",
            f"{thing}: {TONES[tone]}" if tone else thing,
            thing=thing,
            subgroup="person-sport",
            tone=tone,
            base=f"1f3c4{sign}",
            frames=24,
        )
        for thing, sign in names
        for tone in range(6)
    ]
    animals = [
        entry(f"{0x1F400 + i:x}", f"animal {chr(97 + i % 26)}{i}", frames=24 if i % 2 else 1)
        for i in range(80)
    ]
    return Catalogue([*people, *animals])


# Two frames, the first and the last of two seconds: as much as tests of scenes look at.
ENDS = {"num_frames": 2, "fps": 0.5}


def clips_of(catalogue, count, size=32, **settings):
    """Scenes with plain glyphs, and their captions."""
    settings = ENDS | settings
    glyph = premultiplied(circling(INK, 24))

    def artwork(number):
        return glyph[: catalogue.entries[number].frames]

    for index in range(count):
        yield render.clip(index, catalogue, artwork, height=size, width=size, **settings)


def draw(motion, rate, *, glyph=DISC, one=ONE, size=0.4, x=0.0, y=0.0, **changes):
    """One actor on plain white: an opacity (25, 96, 96) in [0, 1], measured in its own colour."""
    camera = motion if motion in CAMERAS else None
    actor = Actor(one, 0, "still" if camera else motion, size, x, y, rate, **changes)
    scene = Scene((actor,), Backdrop("plain", ("white",)), camera, rate if camera else 0.0)
    frames = render.render(scene, lambda number: glyph, 25, 96, 96, 12)
    return scene, (252 - frames[..., 1].astype(float)) / 252


def centroids(opacity):
    """Position in each frame: x and y in shorter sides from the middle."""
    places = (np.arange(96) + 0.5 - 48) / 96
    total = opacity.sum(axis=(1, 2))
    return (opacity.sum(axis=1) @ places) / total, (opacity.sum(axis=2) @ places) / total


@pytest.mark.parametrize("motion", DIRECTIONS)
def test_the_centre_goes_the_way_that_is_named(motion):
    start = [-0.12 * part for part in DIRECTIONS[motion]]
    _, opacity = draw(motion, 0.12, x=start[0], y=start[1])
    x, y = centroids(opacity)
    times = np.arange(25) / 12
    # A hundredth of a pixel: what rounding to whole levels leaves of a disc.
    for found, way, begin in zip((x, y), DIRECTIONS[motion], start, strict=True):
        np.testing.assert_allclose(found, begin + 0.12 * way * times, atol=2e-4)


@pytest.mark.parametrize(
    ("camera", "way"), [(f"pan {way}", way) for way in ("left", "right", "up", "down")]
)
def test_a_panning_camera_moves_emoji_and_background_the_other_way_alike(camera, way):
    _, opacity = draw(camera, 0.1)
    x, y = centroids(opacity)
    for found, part in zip((x, y), DIRECTIONS[way], strict=True):
        np.testing.assert_allclose(found, -0.1 * part * np.arange(25) / 12, atol=2e-4)
    # Twelve frames at 0.125 sides a second are 12 pixels of 96 exactly.
    backdrop = Backdrop("cloudy", ("grey",), seed=5)
    scene = Scene((), backdrop, camera, 0.125)
    frames = render.render(scene, lambda number: DISC, 13, 96, 96, 12)
    shift = tuple(round(-12 * part) for part in DIRECTIONS[way][::-1])
    moved = np.roll(frames[0], shift, (0, 1))
    inner = slice(14, -14)
    np.testing.assert_allclose(frames[12][inner, inner], moved[inner, inner].astype(int), atol=1)
    assert np.abs(frames[12].astype(int) - frames[0]).mean() > 1


@pytest.mark.parametrize(("motion", "sign"), [("grow", 1), ("shrink", -1)])
def test_what_grows_or_shrinks_changes_its_area_in_place(motion, sign):
    _, opacity = draw(motion, 0.2, size=0.5)
    x, y = centroids(opacity)
    np.testing.assert_allclose([x, y], 0, atol=2e-4)
    area = opacity.sum(axis=(1, 2))
    np.testing.assert_allclose(area / area[0], np.exp(sign * 0.4 * np.arange(25) / 12), rtol=0.01)


@pytest.mark.parametrize(("camera", "sign"), [("zoom in", 1), ("zoom out", -1)])
def test_a_zoom_scales_the_emoji_and_its_place(camera, sign):
    _, opacity = draw(camera, 0.15, x=0.1, y=-0.05, size=0.3)
    factor = np.exp(sign * 0.15 * np.arange(25) / 12)
    x, y = centroids(opacity)
    np.testing.assert_allclose([x, y], [0.1 * factor, -0.05 * factor], atol=2e-4)
    area = opacity.sum(axis=(1, 2))
    np.testing.assert_allclose(area / area[0], factor**2, rtol=0.01)


def angles(opacity):
    """Angle of the bar in each frame, from its middle to its heavy end, in degrees clockwise."""
    rows, columns = np.mgrid[:96, :96] + 0.5 - 48.0
    middle = [(opacity * part).sum(axis=(1, 2)) for part in (columns, rows)]
    return np.degrees(np.arctan2(middle[1], middle[0]))


def test_spinning_turns_clockwise_at_its_rate():
    for rate in (32.0, -18.0):
        _, opacity = draw("spin", rate, glyph=BAR, one=BARRED, size=0.6)
        np.testing.assert_allclose(angles(opacity), rate * np.arange(25) / 12, atol=0.3)


def test_swaying_swings_to_both_sides_and_back():
    _, opacity = draw("sway", 0.75, glyph=BAR, one=BARRED, size=0.6)
    found = angles(opacity)
    swing = np.sin(2 * np.pi * 0.75 * np.arange(25) / 12)
    np.testing.assert_allclose(found, 13 * swing, atol=0.3)


def test_a_mirrored_emoji_is_the_mirror_image():
    for motion, rate in (("still", 0.0), ("spin", 32.0)):
        _, plain = draw(motion, rate, glyph=BAR, one=BARRED, size=0.6, x=0.1)
        _, mirrored = draw(motion, -rate, glyph=BAR, one=BARRED, size=0.6, x=-0.1, mirrored=True)
        np.testing.assert_allclose(mirrored, plain[:, :, ::-1], atol=1.5 / 252)


def test_only_what_a_mirror_leaves_true_is_mirrored():
    assert entry(subgroup="animal-mammal").mirrors
    for subgroup in ("hand-single-finger", "time", "alphanum", "country-flag", "sky-weather"):
        assert not entry(subgroup=subgroup).mirrors
    facing = entry(label="woman running facing right", subgroup="person-activity")
    assert not facing.mirrors
    catalogue = Catalogue([entry(frames=24), facing])
    mirrored = {
        clip.scene.actors[0].mirrored
        for clip in clips_of(catalogue, 60, num_actors=1)
        if clip.scene.actors[0].entry is facing
    }
    assert mirrored == {False}


def test_the_loop_goes_round_from_its_phase_at_its_speed():
    def numbers(phase, playback):
        actor = Actor(entry(frames=5), 0, "still", 0.5, 0.0, 0.0, 0.0, phase, playback)
        return render.frame_numbers(actor, np.arange(8) / 12)

    assert numbers(0, 1.0) == [0, 1, 2, 3, 4, 0, 1, 2]
    assert numbers(3, 2.0) == [3, 0, 2, 4, 1, 3, 0, 2]
    assert numbers(4, 0.5) == [4, 4, 0, 0, 1, 1, 2, 2]


def test_an_emoji_lies_over_the_background_exactly_as_its_alpha_says():
    rng = np.random.default_rng(0)
    canvas = rng.integers(0, 256, (20, 20, 3)).astype(np.float32)
    straight, alpha = rng.random((20, 20, 3)), rng.random((20, 20, 1))
    alpha[:2], alpha[2:4] = 0, 1
    layer = np.concatenate([255 * straight * alpha, 255 * alpha], axis=-1)
    expected = canvas.astype(np.float64) * (1 - alpha) + 255 * straight * alpha
    found = canvas.copy()
    render.over(found, layer.astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(found[:2], canvas[:2])


def test_half_of_a_see_through_emoji_is_the_background():
    glyph = np.empty((1, 32, 32, 4), np.uint8)
    glyph[:] = (100, 20, 0, 128)  # multiplied: of (199, 40, 0)
    actor = Actor(entry(), 0, "still", 0.5, 0.0, 0.0, 0.0)
    for colour in ("white", "navy blue"):
        scene = Scene((actor,), Backdrop("plain", (colour,)))
        frame = render.render(scene, lambda number: glyph, 1, 64, 64, 12)[0]
        behind = np.array(COLOURS[colour])
        np.testing.assert_array_equal(frame[:12], np.broadcast_to(behind, (12, 64, 3)))
        expected = np.array([100, 20, 0]) + behind * (1 - 128 / 255)
        np.testing.assert_allclose(frame[24:40, 24:40], expected + np.zeros((16, 16, 1)), atol=0.5)


def test_colours_of_backgrounds_are_told_apart():
    values = np.array(list(COLOURS.values()), float)
    gaps = np.linalg.norm(values[:, None] - values[None], axis=-1) + 1e9 * np.eye(len(values))
    assert gaps.min() > 40


def test_nothing_but_seed_and_index_decides_a_clip():
    catalogue = surfers()
    first, again = (list(clips_of(catalogue, 12)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert (one.caption, one.scene) == (other.caption, other.scene)
        np.testing.assert_array_equal(one.frames, other.frames)
    assert len({clip.frames.tobytes() for clip in first}) == 12
    assert next(clips_of(catalogue, 1, seed=1)).scene != first[0].scene


def test_emoji_stay_inside_the_picture():
    for clip in clips_of(surfers(), 300, size=8):
        times = np.arange(25) / 12
        for actor in clip.scene.actors:
            path = scenes.path(clip.scene, actor, times)
            height, width = actor.extent
            turn = np.radians(path.angle)
            cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
            for centre, extent in (
                (path.x, cos * width + sin * height),
                (path.y, sin * width + cos * height),
            ):
                assert (np.abs(centre) + path.scale * extent / 2).max() < 0.5


@pytest.mark.thorough
def test_two_emoji_share_a_tenth_of_the_scenes_side_by_side():
    pairs = [clip.scene for clip in clips_of(surfers(), 600, size=8) if len(clip.scene.actors) == 2]
    assert 35 <= len(pairs) <= 90
    for scene in pairs:
        left, right = (scenes.path(scene, one, np.arange(25) / 12).x for one in scene.actors)
        assert left.max() < 0 < right.min()


@pytest.mark.thorough
def test_bases_are_drawn_alike_whatever_the_number_of_their_tones():
    catalogue = surfers()
    drawn = [clip.scene.actors[0].entry for clip in clips_of(catalogue, 1500, 8, num_actors=1)]
    moving = collections.Counter(one.base for one in drawn if one.animated)
    bases = len(catalogue.bases("train", animated=True))
    share = sum(moving.values()) / bases
    for base in ("1f3c4-200d-2640", "1f3c4"):
        assert 0.5 * share < moving[base] < 1.7 * share
    assert 0.1 < sum(not one.animated for one in drawn) / len(drawn) < 0.2


@pytest.mark.thorough
def test_every_scene_belongs_to_one_split_and_none_of_training_is_held_out():
    catalogue = surfers()
    seen = {}
    for split in SPLITS:
        found = set()
        for clip in clips_of(catalogue, 150, size=8, split=split):
            for actor in clip.scene.actors:
                motion = clip.scene.motion(actor)
                assert split_of(actor.entry, clip.scene.backdrop.key, motion) == split
                found.add((actor.entry.hexcode, clip.scene.backdrop.key, motion))
        seen[split] = found
    for one, other in itertools.combinations(SPLITS, 2):
        assert not seen[one] & seen[other]
    codes = {split: {code for code, *_ in seen[split]} for split in SPLITS}
    assert not (codes["train"] | codes["combinations"]) & (codes["tones"] | codes["bases"])
    assert not codes["tones"] & codes["bases"]


def test_one_tone_of_every_base_is_held_out_and_never_the_yellow_one():
    catalogue = surfers()
    held = collections.defaultdict(list)
    for one in catalogue.entries:
        if one.tone or one.base.startswith("1f3c4"):
            held[one.base].append((one.tone, tone_is_held_out(one)))
    assert len(held) == 3
    for tones in held.values():
        assert dict(tones)[0] is False
        assert sum(out for _, out in tones) == 1


def test_siblings_in_tone_and_gender_are_held_out_together():
    catalogue = surfers()
    families = collections.defaultdict(set)
    for one in catalogue.entries:
        families[one.family].add(base_is_held_out(one))
    assert all(len(held) == 1 for held in families.values())
    assert {one.family for one in catalogue.entries if "surf" in one.label} == {"1f3c4"}
    firefighters = [
        entry(f"1f9d1{tone}-200d-1f692", base=f"{who}-200d-1f692").family
        for who, tone in (("1f9d1", ""), ("1f468", "-1f3fb"), ("1f469", ""))
    ]
    assert set(firefighters) == {"1f9d1-1f692"}


def test_the_splits_are_these_for_all_time():
    held = ("1f438", "1f9a7", "1f525", "1f98a", "1f6f6", "1f9dc", "1f600", "1f680")
    found = [base_is_held_out(entry(code)) for code in held]
    assert found == [True, True, False, False, True, True, False, False]
    number = sum(
        split_of(ONE, f"plain {colour}", motion) == "combinations"
        for colour in COLOURS
        for motion in MOTIONS
    )
    assert 20 <= number <= 50  # a tenth of 312


def test_a_split_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no emoji of the split 'bases'"):
        next(clips_of(Catalogue([entry("1f98a")]), 1, split="bases"))
    with pytest.raises(ValueError, match="at least one emoji"):
        Catalogue([])


# Captions.


def described(count, **settings):
    for clip in clips_of(surfers(), count, size=8, **settings):
        yield clip.scene, clip.caption.lower()


@pytest.mark.thorough
def test_captions_name_emoji_tone_and_motion():
    for scene, text in described(600):
        for actor in scene.actors:
            one = actor.entry
            # By name, as a label, or by three of its tags.
            assert one.thing in text or sum(tag in text for tag in one.tags) == 3
            if one.tone:
                said = [tone for tone in TONES[1:] if tone in text]
                assert TONES[one.tone] in said
        motions = {scene.motion(actor) for actor in scene.actors} - {"still"}
        words = {
            "grow": ("grow", "larger", "bigger"),
            "shrink": ("shrink", "smaller"),
            "sway": ("sway", "rock"),
            "spin": ("spin", "turn", "rotat"),
            "zoom in": ("zooms in", "comes closer"),
            "zoom out": ("zooms out", "moves away"),
        } | {way: (way.split("-")[0], way.split("-")[-1]) for way in DIRECTIONS}
        for motion in motions:
            options = words.get(motion, (motion.removeprefix("pan "),))
            assert any(word in text for word in options), (motion, text)
            if motion in DIRECTIONS:
                assert all(word in text for word in motion.split("-"))
        for motion, options in words.items():
            # No other motion is named; "left" and "right" are places too in scenes of two.
            if motion not in motions and motion not in DIRECTIONS and "rock" not in text:
                assert not any(f" {word}" in text for word in options if word != "turn"), text


@pytest.mark.thorough
def test_captions_name_the_background_that_is_there():
    named = 0
    longest_first = sorted(COLOURS, key=len, reverse=True)
    colours = rf"\b({'|'.join(longest_first)})\b"
    for scene, text in described(600, num_actors=1):
        backdrop = scene.backdrop
        said = set(re.findall(colours, text))
        assert said in (set(), set(backdrop.colours)), text
        named += bool(said)
        kinds = {"striped", "checkered", "dotted", "cloudy", "floor", "gradient"}
        assert {kind for kind in kinds if kind in text} <= {backdrop.kind}
    assert 400 < named < 550


@pytest.mark.thorough
def test_captions_name_size_pace_and_sense_only_where_they_are_so():
    said = collections.Counter()
    for scene, text in described(900, num_actors=1):
        [actor] = scene.actors
        moving = scene.motion(actor)
        for word in ("small ", "large "):
            if word in text:
                assert actor.size_class == word.strip()
                assert moving not in ("grow", "shrink", "zoom in", "zoom out")
                said[word] += 1
        for word, pace in (("slowly", "slow"), ("quickly", "fast")):
            if word in text:
                assert scene.pace(actor) == pace
                said[word] += 1
        if "clockwise" in text:
            assert ("counterclockwise" in text) == (actor.rate < 0)
            said["clockwise"] += 1
        slow = any(words in text for words in ("slow motion", "slowed down"))
        fast = any(words in text for words in ("sped up", "fast motion"))
        assert (slow, fast) == (actor.playback == 0.5, actor.playback == 2.0)
    assert min(said[word] for word in ("small ", "large ", "slowly", "quickly", "clockwise")) > 5


def test_the_median_of_a_plain_background_is_its_colour():
    for clip in clips_of(surfers(), 40, num_actors=1):
        if clip.scene.backdrop.kind == "plain" and clip.scene.actors[0].size < 0.6:
            median = np.median(clip.frames.reshape(-1, 3), axis=0)
            np.testing.assert_array_equal(median, COLOURS[clip.scene.backdrop.colours[0]])


def test_captions_of_pictures_name_no_motion():
    for scene, text in described(200, num_frames=1):
        assert scene.actors
        for word in (
            "moving",
            "travel",
            "drift",
            "sway",
            "grow",
            "camera",
            "slow",
            "sped",
            "animation",
        ):
            assert word not in text


@pytest.mark.thorough
def test_captions_fit_a_byte_tokenizer():
    long = entry(
        label="person with a very long label: medium-light skin tone",
        thing="person with a very long label",
        tone=2,
        tags=("a" * 40, "b" * 40, "c" * 40),
        frames=24,
    )
    for clip in clips_of(Catalogue([long, dataclasses.replace(long, hexcode="1f600")]), 400, 8):
        assert len(clip.caption.encode()) <= grammar.MAX_BYTES


def test_words_for_one_and_for_many():
    rng = np.random.default_rng(0)

    def subjects(thing, **changes):
        one = entry(label=thing, thing=thing, tags=(), **changes)
        return {grammar._subject(one, rng, "medium", True) for _ in range(80)}

    assert "an owl" in subjects("owl")
    assert "sparkles" in subjects("sparkles")
    assert not any(
        words.startswith("a s") for words in subjects("sparkles") if "emoji" not in words
    )
    assert "a bus" in subjects("bus")
    assert "Santa Claus" in subjects("Santa Claus")
    assert "a man with beard" in subjects("man: beard", subgroup="person")
    toned = dict(label="artist: dark skin tone", tone=5)
    one = entry(thing="artist", tags=(), **toned)
    found = {grammar._subject(one, rng, "medium", True) for _ in range(80)}
    assert {"an artist with dark skin tone", "artist: dark skin tone"} <= found


def test_the_area_of_an_emoji_is_as_large_as_its_size_says():
    for size in (0.3, 0.6, 0.9):
        _, opacity = draw("still", 0.0, size=size)
        # The disc of diameter 31 lies in a box of 32.
        expected = math.pi / 4 * (size * 96 * 31 / 32) ** 2
        assert opacity[0].sum() == pytest.approx(expected, rel=0.01)
