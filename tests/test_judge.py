"""The judge on clips with known objects, and on clips that show no object it could recognise.

`ltx-evaluate judge` does the same on thousands of clips.
"""

import dataclasses

import cv2
import numpy as np
import pytest

from ltx_jax.evaluate import judge_accuracy
from ltx_jax.world import render
from ltx_jax.world.judge import DetectedObject, agreement, detect_objects
from ltx_jax.world.scenes import COLOURS, MOTIONS, SHAPES

SEED = 77
COLOUR = "green"


def truth(clip):
    return [(one.shape, one.colour, one.motion) for one in clip.scene.objects]


def triples_of(objects):
    return [(one.shape, one.colour, one.motion) for one in objects]


def draw(shape, x, y, radius, turn=0.0, size=96, fine=8):
    """Draws one shape with OpenCV, antialiased by averaging; `turn` in degrees clockwise."""
    picture = np.full((size * fine, size * fine, 3), 120, np.uint8)
    rgb, c, r = COLOURS[COLOUR], ((x + 0.5) * fine, (y + 0.5) * fine), radius * fine
    whole = tuple(round(v) for v in c)

    def fill(corners):
        corners = np.round(np.array(corners)).astype(np.int32)
        cv2.fillPoly(picture, [corners], rgb)

    def corners(count, first, *radii):
        """Corners around the centre, the first `first` degrees clockwise of the top."""
        for i in range(count):
            angle = np.radians(first + 360 * i / count - 90 + turn)
            part = r * radii[i % len(radii)]
            yield c[0] + part * np.cos(angle), c[1] + part * np.sin(angle)

    if shape in ("circle", "ring"):
        cv2.circle(picture, whole, round(r), rgb, -1)
        if shape == "ring":
            cv2.circle(picture, whole, round(0.55 * r), (120, 120, 120), -1)
    elif shape == "ellipse":
        cv2.ellipse(picture, whole, (round(1.4 * r), round(r)), 0, 0, 360, rgb, -1)
    elif shape == "cross":
        a, b = np.degrees(np.arcsin(0.33)), np.degrees(np.arccos(0.33))
        inner = 0.33 * 2**0.5
        ends = (np.array((-a, a)) + k for k in (0, 90, 180, 270))
        points = []
        for k, pair in enumerate(ends):
            points += [next(corners(1, angle, 1.0)) for angle in pair]
            points.append(next(corners(1, 90 * k + 45, inner)))
        assert a + b == pytest.approx(90)
        fill(points)
    elif shape == "star":
        fill(list(corners(10, 0, 1.0, 0.46)))
    else:
        count = {"triangle": 3, "square": 4, "pentagon": 5}[shape]
        fill(list(corners(count, 45 if shape == "square" else 0, 1.0)))
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_told_however_they_are_turned(shape):
    for turn in (0, 25, 70):
        frames = np.stack([draw(shape, 40, 50, 17, turn)] * 3)
        assert triples_of(detect_objects(frames, 24)) == [(shape, COLOUR, "still")]


@pytest.mark.parametrize("shape", ["pentagon", "ellipse"])
def test_other_shapes_have_no_name(shape):
    frames = np.stack([draw(shape, 40 + i, 50, 17) for i in range(9)])
    assert triples_of(detect_objects(frames, 24)) == [("none", COLOUR, "right")]


def square_clip(path, count=25):
    return np.stack([draw("square", *path(i / (count - 1))) for i in range(count)])


@pytest.mark.parametrize(
    ("path", "motion"),
    [
        (lambda t: (30 + 30 * t, 60, 14), "right"),
        (lambda t: (60 - 20 * t, 60 - 20 * t, 14), "up-left"),
        (lambda t: (48, 48, 14 + 8 * t), "grow"),
        (lambda t: (48, 48, 14, 60 * t), "rotate"),
        (lambda t: (48, 48, 14, -60 * t), "rotate"),
        (lambda t: (48 + 20 * np.cos(3 * t), 48 + 20 * np.sin(3 * t), 14), "orbit"),
        (lambda t: (30 + 30 * t**1.5, 60, 14), "right"),  # not at constant speed
        (lambda t: (48 + 0.7 * np.sin(50 * t), 48, 14), "still"),  # trembles
        (lambda t: (48 + 25 * np.sin(12 * t), 48, 14), "none"),  # back and forth
        (lambda t: (35 + 20 * t, 48, 14 + 7 * t), "none"),  # moves and grows
        (lambda t: (30 if t < 0.5 else 66, 48, 14), "none"),  # jumps
    ],
)
def test_motions_are_told_by_their_path(path, motion):
    assert triples_of(detect_objects(square_clip(path), 24)) == [("square", COLOUR, motion)]


def test_a_short_clip_needs_less_of_a_change():
    """The slow motions below cover in 9 frames a quarter of their way in a second and a half."""
    for path, motion in (
        (lambda t: (40 + 4 * t, 48, 14), "right"),
        (lambda t: (48, 48, 14 * np.exp(0.08 * t)), "grow"),
        (lambda t: (48, 48, 14, 20 * t), "rotate"),
    ):
        assert triples_of(detect_objects(square_clip(path, 9), 24)) == [("square", COLOUR, motion)]
        assert triples_of(detect_objects(square_clip(path, 37), 24)) == [
            ("square", COLOUR, "still")
        ]


def test_places_and_speeds_are_in_shorter_sides_and_seconds():
    (objects,) = detect_objects(square_clip(lambda t: (30.5 + 24 * t, 59.5, 14)), 12)
    assert objects.velocity == pytest.approx(24 / 96 / 2, abs=2e-3)  # a quarter in 24 frames
    assert objects.position[0] == pytest.approx((30.5 - 47.5) / 96 + 12j / 96, abs=2e-3)
    area = 2 * 14**2
    assert objects.size[0] == pytest.approx((4 * area / np.pi) ** 0.5 / 96, rel=0.02)
    np.testing.assert_allclose(objects.seconds, np.arange(25) / 12)


@pytest.mark.thorough
@pytest.mark.parametrize("soft", [False, True], ids=["drawn", "softened"])
def test_clips_of_the_world_are_told_right(soft):
    wrong = []
    for index in range(36):
        clip = render.clip(index, seed=SEED, split="all", height=96, width=96)
        frames = judge_accuracy.soften(clip.frames, index) if soft else clip.frames
        objects = detect_objects(frames, 24)
        if not agreement(objects, truth(clip)).all:
            wrong.append((index, triples_of(objects), truth(clip)))
    assert not wrong


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("num_frames", "height", "width", "fps"),
    [(25, 128, 96, 12.0), (49, 96, 160, 30.0), (25, 192, 192, 24.0), (97, 96, 96, 24.0)],
)
def test_other_sizes_lengths_and_rates_are_told_right(num_frames, height, width, fps):
    for index in range(6):
        size = dict(num_frames=num_frames, height=height, width=width, fps=fps)
        clip = render.clip(index, seed=SEED, split="all", **size)
        assert agreement(detect_objects(clip.frames, fps), truth(clip)).all, (index, clip.caption)


@pytest.mark.thorough
def test_a_softened_clip_is_as_bad_as_a_reconstruction_of_30_db():
    clip = render.clip(0, height=96, width=96)
    error = np.float64(judge_accuracy.soften(clip.frames, 0)) - np.float64(clip.frames)
    assert 28 < 10 * np.log10(255**2 / (error**2).mean()) < 33


def test_every_word_changed_in_a_caption_makes_it_wrong():
    clip = render.clip(3, seed=SEED, height=96, width=96, num_objects=1)
    objects, (triple,) = detect_objects(clip.frames, 24), truth(clip)
    assert agreement(objects, [triple]) == (True, True, True, True)
    for place, words in enumerate((SHAPES, tuple(COLOURS), MOTIONS)):
        for word in words:
            changed = (*triple[:place], word, *triple[place + 1 :])
            right = agreement(objects, [changed])
            assert right.all == (changed == triple)
            assert sum(right[:3]) == 3 - (changed != triple)


@pytest.mark.thorough
def test_nothing_is_seen_where_nothing_is():
    size = judge_accuracy.ClipSize(25, 96, 96, 24.0)
    for figure in judge_accuracy.accuracy(8, size, SEED):
        if figure.subject == "clips without objects":
            assert (figure.value, figure.count) == (100, 2), figure
    assert detect_objects(np.zeros((1, 96, 96, 3), np.uint8), 24) == ()
    flicker = render.clip(0, height=96, width=96).frames.copy()
    flicker[::3] = 120
    assert detect_objects(flicker, 24) == ()


def test_a_single_frame_has_no_motion():
    clip = render.clip(2, seed=SEED, height=96, width=96, num_objects=1, num_frames=1)
    (objects,), (triple,) = detect_objects(clip.frames, 1), truth(clip)
    assert triples_of([objects]) == [(*triple[:2], "none")]


def test_a_second_object_of_the_same_colour_is_seen():
    circle, star = draw("circle", 25, 48, 14), draw("star", 70, 48, 16)
    both = np.where((circle != 120).any(-1, keepdims=True), circle, star)
    objects = detect_objects(np.stack([both] * 5), 24)
    assert sorted(one.shape for one in objects) == ["circle", "star"]


def nothing(shape, colour, motion):
    empty = np.zeros(1)
    return DetectedObject(shape, colour, motion, empty, empty + 0j, empty, 0j)


def test_objects_are_paired_with_what_was_asked_for_whatever_their_order():
    expected = [("circle", "red", "up"), ("star", "blue", "still")]
    objects = [nothing("star", "blue", "still"), nothing("circle", "red", "down")]
    assert agreement(objects, expected) == (True, True, False, False)
    assert agreement(objects[:1], expected[1:]) == (True, True, True, True)
    # One object is missing; there is one too many; there are none.
    assert agreement(objects[:1], expected) == (False, False, False, False)
    assert agreement(objects, expected[1:]) == (True, True, True, False)
    assert agreement([], expected) == (False, False, False, False)


def test_the_background_may_slide():
    scene = render.scene(0, seed=5, num_objects=1)
    for pan in ("left", "up"):
        ground = dataclasses.replace(scene.background, texture="checkered")
        sliding = dataclasses.replace(scene, background=ground, pan=pan)
        objects = detect_objects(render.render(sliding, 25, 96, 96, 24), 24)
        figure = scene.objects[0]
        assert triples_of(objects) == [(figure.shape, figure.colour, figure.motion)]
