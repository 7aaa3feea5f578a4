"""The procedural world: the ground truth of a clip is checked against its pixels."""

import collections
import dataclasses
import hashlib
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest

from ltx_jax.world import grammar, render, scenes

GREY = scenes.Background("grey")


def figure(shape="circle", colour="red", motion="still", **changes) -> scenes.SceneObject:
    fields = {"size": 0.36, "x": 0.0, "y": 0.0, "rate": 0.2} | changes
    return scenes.SceneObject(shape, colour, motion, **fields)


def mask(frame: np.ndarray, colour: str) -> np.ndarray:
    """Pixels that are mostly of the colour; tones of backgrounds are further away than this."""
    difference = frame.astype(float) - render.COLOURS[colour]
    return np.sqrt((difference**2).sum(axis=-1)) < 60


def centroid(where: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(where)
    return rows.mean(), columns.mean()


def soft_centroid(frame: np.ndarray, colour: str, tone: str) -> tuple[float, float]:
    """Weighs pixels by how far they are from the background's tone to the colour."""
    rgb = np.array(render.COLOURS[colour], float)
    whole = np.linalg.norm(rgb - scenes.TONES[tone])
    closeness = 1 - np.linalg.norm(frame - rgb, axis=-1) / whole
    weight = np.clip((closeness - 0.3) / 0.6, 0, 1)  # textures reach 0.2
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]]
    return (weight * rows).sum() / weight.sum(), (weight * columns).sum() / weight.sum()


def wrapped(degrees: float, period: float) -> float:
    """The angle nearest to 0 that is the same for a shape that repeats every `period`."""
    return (degrees + period / 2) % period - period / 2


def test_a_clip_is_a_pure_function_of_seed_and_index():
    one, again = render.clip(5, seed=3), render.clip(5, seed=3)
    np.testing.assert_array_equal(one.frames, again.frames)
    assert (one.caption, one.scene) == (again.caption, again.scene)
    assert one.scene == render.scene(5, seed=3, seconds=25 / 24)
    assert one.frames.shape == (25, 128, 128, 3)
    assert one.frames.dtype == np.uint8
    for other in (render.clip(6, seed=3), render.clip(5, seed=4)):
        assert other.scene != one.scene


def test_scenes_stay_the_same_for_all_time():
    """Trained models and published metrics depend on them; a change would need a new world."""
    drawn = [
        render.scene(i, seed=1, split=split)
        for i in range(50)
        for split in ("all", "train", "held_out")
    ]
    text = "\n".join(
        f"{o.shape} {o.colour} {o.motion} {o.x:.3f} {o.y:.3f} {o.size:.3f} {o.rate:.3f} {s.pan} "
        f"{s.background.tone} {s.background.texture}"
        for s in drawn
        for o in s.objects
    )
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "b252427b51b5bb46"


def test_one_triple_in_ten_is_held_out_for_all_time():
    held_out = render.triples("held_out")
    assert len(held_out) == 61
    assert len(render.triples("all")) == 608
    assert set(held_out) | set(render.triples("train")) == set(render.triples("all"))
    assert not set(held_out) & set(render.triples("train"))
    assert all(render.is_held_out(*triple) for triple in held_out)
    text = "\n".join(sorted(" ".join(triple) for triple in held_out))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "57430dbf7fbc5ca5"


def test_training_shows_every_word_and_every_pair_of_words():
    """Otherwise held-out triples would ask for more than a new combination."""
    train = render.triples("train")
    for a, b in itertools.combinations(range(3), 2):
        pairs = {(triple[a], triple[b]) for triple in render.triples("all")}
        assert {(triple[a], triple[b]) for triple in train} == pairs
    for position, names in enumerate((render.SHAPES, render.COLOURS, render.MOTIONS)):
        assert {triple[position] for triple in render.triples("held_out")} == set(names)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_scenes_keep_to_their_split(split):
    drawn = [render.scene(i, split=split) for i in range(300)]
    for scene in drawn:
        for one in scene.objects:
            is_held_out = render.is_held_out(one.shape, one.colour, one.motion)
            assert is_held_out == (split == "held_out")
    counts = collections.Counter(len(scene.objects) for scene in drawn)
    assert 30 < counts[2] < 90  # a fifth of 300, give or take four deviations


def test_a_world_of_some_motions_has_no_others():
    rng = np.random.default_rng(0)
    drawn = [render.sample_scene(rng, motions=("rotate", "orbit")) for _ in range(200)]
    figures = [one for scene in drawn for one in scene.objects]
    assert {one.motion for one in figures} == {"rotate", "orbit"}
    assert {one.shape for one in figures} == set(render.SHAPES)
    assert not any(render.is_held_out(one.shape, one.colour, one.motion) for one in figures)


@pytest.mark.parametrize("num_objects", [1, 2])
def test_ground_truth_is_what_the_pixels_show(num_objects):
    for index in range(25):
        clip = render.clip(
            index, num_frames=7, height=96, width=112, fps=12, num_objects=num_objects
        )
        tracks = render.ground_truth(clip.scene, 7, 96, 112, 12)
        assert len(tracks) == num_objects
        for i, track in itertools.product(range(7), tracks):
            where = mask(clip.frames[i], track.colour)
            if num_objects == 1:
                tone = clip.scene.background.tone
                row, column = soft_centroid(clip.frames[i], track.colour, tone)
                allowed = 0.25  # a texture under the edge weighs a little
            else:
                row, column = centroid(where)
                allowed = 0.75  # whole pixels: half of one on each side of a straight edge
            assert abs(row - track.row[i]) < allowed
            assert abs(column - track.column[i]) < allowed
            rows, columns = np.nonzero(where)
            reach = np.hypot(rows - track.row[i], columns - track.column[i]).max()
            assert abs(2 * reach - track.size[i]) < 4  # of 30 and more: tips are thin
            if track.shape != "ring":
                centre = clip.frames[i][round(track.row[i]), round(track.column[i])]
                assert tuple(centre) == render.COLOURS[track.colour] == track.rgb


@pytest.mark.parametrize("shape", render.SHAPES)
def test_motion_is_smooth_below_a_pixel(shape):
    """Coverage-weighted centroids follow the truth closely; a jump of whole pixels would not."""
    scene = render.Scene((figure(shape, "red", "right", x=-0.2, y=0.013, rate=0.1),), GREY)
    frames = render.render(scene, 10, 96, 96, 24)
    (track,) = render.ground_truth(scene, 10, 96, 96, 24)
    grey, red = np.array(scenes.TONES["grey"], float), np.array(render.COLOURS["red"], float)
    cover = (frames - grey) @ (red - grey) / ((red - grey) @ (red - grey))
    rows, columns = np.mgrid[:96, :96]
    total = cover.sum(axis=(1, 2))
    # 8 bits round each of about 130 edge pixels by up to half a level: far below this.
    np.testing.assert_allclose((cover * columns).sum(axis=(1, 2)) / total, track.column, atol=0.05)
    np.testing.assert_allclose((cover * rows).sum(axis=(1, 2)) / total, track.row, atol=0.05)


@pytest.mark.parametrize("size", [(64, 64), (63, 81)])
def test_the_origin_of_scenes_is_the_middle_of_the_picture(size):
    frame = render.render(render.Scene((figure("cross"),), GREY), 1, *size, 24)[0]
    np.testing.assert_array_equal(frame, frame[::-1])
    np.testing.assert_array_equal(frame, frame[:, ::-1])


@pytest.mark.parametrize(("shape", "period"), [("triangle", 120), ("star", 72), ("square", 90)])
def test_angles_are_clockwise_degrees(shape, period):
    """The farthest pixel is a tip, which points up at angle 0 (a square's to a corner)."""
    scene = render.Scene((figure(shape, "blue", "rotate", size=0.8, rate=80.0, phase=10.0),), GREY)
    frames = render.render(scene, 13, 192, 192, 24)
    (track,) = render.ground_truth(scene, 13, 192, 192, 24)
    np.testing.assert_allclose(np.diff(track.angle), 80 / 24)
    for frame, angle in zip(frames, track.angle, strict=True):
        rows, columns = np.nonzero(mask(frame, "blue"))
        dy, dx = rows - 95.5, columns - 95.5
        tip = np.argmax(np.hypot(dx, dy))
        clockwise = np.degrees(np.arctan2(dx[tip], -dy[tip])) - (45 if shape == "square" else 0)
        assert abs(wrapped(clockwise - angle, period)) < 2  # a pixel is 0.8 degrees there


# Signs of the displacement of the centre (right, down), written down independently.
WAYS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up-left": (-1, -1),
    "up-right": (1, -1),
    "down-left": (-1, 1),
    "down-right": (1, 1),
}


@pytest.mark.parametrize("motion", render.MOTIONS)
@pytest.mark.parametrize("fps", [12, 30])
def test_a_second_shows_the_motion_of_its_name(motion, fps):
    """In a slow clip too, and by its pixels alone."""
    rate = scenes.SPEEDS[motion][0]
    start = {"x": 0.1 * -WAYS[motion][0], "y": 0.1 * -WAYS[motion][1]} if motion in WAYS else {}
    scene = render.Scene((figure("cross", "green", motion, rate=rate, **start),), GREY)
    frames = render.render(scene, fps + 1, 96, 96, fps)
    masks = np.stack([mask(frame, "green") for frame in frames])
    centres = np.array([centroid(where) for where in masks])
    areas = masks.sum(axis=(1, 2)).astype(float)
    down, right = centres[-1] - centres[0]
    steady = np.ptp(areas) < 0.15 * areas.mean()  # pixels at the edge come and go
    if motion in WAYS:
        sign_right, sign_down = WAYS[motion]
        # 0.12 of 96 pixels, in each direction of a diagonal 0.7 of it.
        assert right * sign_right > 7.5 or (sign_right == 0 and abs(right) < 0.5)
        assert down * sign_down > 7.5 or (sign_down == 0 and abs(down) < 0.5)
        assert steady
    elif motion == "orbit":
        middle = centres.mean(axis=0)
        turns = np.unwrap(np.arctan2(*(centres - (47.5, 47.5)).T))
        assert np.ptp(turns) > np.radians(100)
        radii = np.hypot(*(centres - (47.5, 47.5)).T)
        np.testing.assert_allclose(radii, 0.2 * 96, atol=1)
        assert np.hypot(*(middle - 47.5)) < 0.2 * 96
        assert steady
    elif motion in ("grow", "shrink"):
        factor = areas[-1] / areas[0]
        assert factor > 1.4 if motion == "grow" else factor < 1 / 1.4
        assert np.ptp(centres, axis=0).max() < 0.5
    else:
        assert np.ptp(centres, axis=0).max() < 0.5
        assert steady
        changed = (masks[0] ^ masks[-1]).sum() / areas[0]
        assert changed > 0.15 if motion == "rotate" else changed == 0


@pytest.mark.parametrize("index", range(6))
def test_the_same_scene_at_another_rate_shows_the_same_motion(index):
    scene = render.scene(index, split="all")
    fine = render.render(scene, 25, 64, 64, 24)
    np.testing.assert_array_equal(render.render(scene, 13, 64, 64, 12), fine[::2])
    np.testing.assert_array_equal(render.render(scene, 9, 64, 64, 24), fine[:9])


@pytest.mark.parametrize("index", range(6))
def test_the_same_scene_at_another_size_shows_the_same_picture(index):
    scene = render.scene(index, split="all")
    small = render.render(scene, 5, 64, 64, 6).astype(float)
    large = render.render(scene, 5, 192, 192, 6).astype(float)
    shrunk = large.reshape(5, 64, 3, 64, 3, 3).mean(axis=(2, 4))
    # Edges differ by the corners that a pixel's coverage rounds off.
    assert np.abs(small - shrunk).mean() < 0.7
    assert np.abs(small - shrunk).max() < 70
    wide = render.render(scene, 5, 64, 96, 6)
    inner = np.abs(wide[:, :, 16:80].astype(float) - small)
    assert inner.mean() < 0.01  # float32 rounds a level here and there


def test_objects_stay_inside_and_apart_for_the_time_asked_for():
    for seconds, aspect in ((0.83, 1.0), (2.08, 1.0), (5.0, 1.5), (5.0, 0.6)):
        height, width = (100, round(100 * aspect)) if aspect >= 1 else (round(100 / aspect), 100)
        frames = round(seconds * 12) + 1
        for i in range(60):
            scene = render.scene(i, seed=7, seconds=seconds, aspect=width / height)
            tracks = render.ground_truth(scene, frames, height, width, 12)
            for track in tracks:
                assert (track.row - track.size / 2).min() > -1
                assert (track.column - track.size / 2).min() > -1
                assert (track.row + track.size / 2).max() < height
                assert (track.column + track.size / 2).max() < width
                assert track.size.min() >= 17  # of 100: shapes can be told apart
            if len(tracks) == 2:
                a, b = tracks
                gaps = np.hypot(a.row - b.row, a.column - b.column) - (a.size + b.size) / 2
                assert gaps.min() > 0
                assert a.colour != b.colour
                assert a.shape != b.shape


def test_speeds_do_not_depend_on_the_length_of_short_clips():
    """So that 25 frames at 12, 24 or 30 per second show the same pixels per second."""
    for i in range(200):
        short = render.scene(i, seconds=25 / 30, num_objects=1).objects[0]
        long = render.scene(i, seconds=25 / 12, num_objects=1).objects[0]
        if short.motion in WAYS and not (
            short.size_class == "large" and short.speed_class == "fast"
        ):
            assert short.rate == long.rate


def test_objects_partly_outside_are_cut():
    for x, y in ((-0.5, -0.5), (0.5, 0.2), (0.0, 0.49), (3.0, 0.0)):
        scene = render.Scene((figure("square", "red", "still", x=x, y=y),), GREY)
        wide = render.render(scene, 1, 64, 64, 24)[0]
        side = 0.36 / np.sqrt(2) * 64
        rows = np.clip([32 + 64 * y - side / 2, 32 + 64 * y + side / 2], 0, 64)
        columns = np.clip([32 + 64 * x - side / 2, 32 + 64 * x + side / 2], 0, 64)
        expected = np.ptp(rows) * np.ptp(columns)
        assert abs(mask(wide, "red").sum() - expected) <= 34  # half a pixel around


def test_pans_slide_the_background_the_other_way():
    for pan, (dx, dy) in {"left": (1, 0), "right": (-1, 0), "up": (0, 1), "down": (0, -1)}.items():
        background = scenes.Background("grey", "checkered", wavelength=0.4, angle=30.0, seed=4)
        scene = render.Scene((figure(x=9.0),), background, pan)  # no object in sight
        # A second at 100 pixels: 12 pixels.
        first, last = render.render(scene, 2, 100, 100, 1).astype(float)
        moved = np.roll(first, (12 * dy, 12 * dx), axis=(0, 1))
        inner = np.s_[14:-14, 14:-14]
        assert np.abs(last - moved)[inner].mean() < 0.1
        assert np.abs(last - first)[inner].mean() > 3


@pytest.mark.parametrize("texture", scenes.TEXTURES)
def test_backgrounds_are_of_low_contrast_and_unlike_any_object(texture):
    spread = []
    for tone, seed in itertools.product(scenes.TONES, range(3)):
        background = scenes.Background(tone, texture, angle=30.0, seed=seed)
        frame = render.render(render.Scene((figure(x=9.0),), background), 1, 96, 96, 24)[0]
        spread.append(frame.std(axis=(0, 1)).max())
        assert np.abs(frame.astype(float) - scenes.TONES[tone]).max() <= 19
        assert not any(mask(frame, colour).any() for colour in render.COLOURS)
    if texture == "plain":
        assert max(spread) == 0
    else:
        assert min(spread) > 2.5


def test_colours_and_tones_are_far_apart():
    colours = np.array(list(render.COLOURS.values()), float)
    tones = np.array(list(scenes.TONES.values()), float)
    for a, b in [*itertools.combinations(colours, 2), *itertools.product(colours, tones)]:
        assert np.linalg.norm(a - b) > 75
    for a, b in itertools.combinations(tones, 2):
        assert np.linalg.norm(a - b) > 35


def looks_like(cv2, where: np.ndarray) -> str:
    """Names a shape by its hole, its corners and how much of its hull and circle it fills."""
    contours, tree = cv2.findContours(where.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if (tree[0][:, 3] >= 0).any():
        return "ring"
    outline = max(contours, key=cv2.contourArea)
    hull = cv2.contourArea(outline) / cv2.contourArea(cv2.convexHull(outline))
    circle = cv2.contourArea(outline) / (np.pi * cv2.minEnclosingCircle(outline)[1] ** 2)
    if hull < 0.9:
        return "star" if hull < 0.675 else "cross"
    return "triangle" if circle < 0.53 else "square" if circle < 0.77 else "circle"


def test_shapes_can_be_told_apart_by_classical_vision():
    cv2 = pytest.importorskip("cv2")
    wrong = []
    for i in range(150):
        scene = render.scene(i, split="all", num_objects=1)
        frame = render.render(scene, 1, 96, 96, 24)[0]
        name = looks_like(cv2, mask(frame, scene.objects[0].colour))
        if name != scene.objects[0].shape:
            wrong.append((scene.objects[0].shape, name))
    assert not wrong


# An independent grammar: the motion that a sentence describes, by its words.
MOTION_PATTERNS = {
    "up-left": r"\bup and (to the )?left",
    "up-right": r"\bup and (to the )?right",
    "down-left": r"\bdown and (to the )?left",
    "down-right": r"\bdown and (to the )?right",
    "orbit": r"\bcircle( (counter)?clockwise)?( slowly| quickly)?( on|\.|,|$)",
    "rotate": r"\b(rotat|spin|turn)",
    "grow": r"\b(gr[eo]w|larger|bigger)",
    "shrink": r"\b(shrink|smaller)",
    "still": r"\b(still|not mov|rest|does not move)",
    "up": r"\bup(wards)?\b",
    "down": r"\bdown(wards)?\b",
    "left": r"\bleft\b",
    "right": r"\bright\b",
}


def described_motion(text: str) -> str:
    text = re.sub(r"[.,] the camera pans \w+", "", text.lower())
    text = re.sub(r"(an?|the) (small |large )?\w+ circle", "", text)
    return next(motion for motion, pattern in MOTION_PATTERNS.items() if re.search(pattern, text))


def test_captions_tell_shape_colour_and_motion():
    for i in range(400):
        clip = render.clip(i, split="all", num_objects=1, height=16, width=16, num_frames=2)
        (one,) = clip.scene.objects
        text = clip.caption.lower()
        assert f"{one.colour} {one.shape}" in text
        assert described_motion(text) == one.motion, clip.caption
        assert not any(f" {colour} " in text for colour in render.COLOURS if colour != one.colour)


def test_captions_of_two_objects_tell_both():
    for i in range(200):
        clip = render.clip(i, num_objects=2, height=16, width=16, num_frames=2)
        first, second = re.split(r" and (?=an? )| while |\. ", clip.caption.lower(), maxsplit=1)
        for one, text in zip(clip.scene.objects, (first, second), strict=True):
            assert f"{one.colour} {one.shape}" in text
            assert described_motion(text) == one.motion, clip.caption


def test_what_captions_add_is_true():
    counts = collections.Counter()
    for i in range(800):
        scene = render.scene(i, seed=2, split="all", num_objects=1)
        text = render.caption(scene, np.random.default_rng(i)).lower()
        (one,) = scene.objects
        tracks = render.ground_truth(scene, 2, 100, 100, 1)
        if "small " in text or "large " in text:
            assert ("small " in text) == (tracks[0].size[0] < 36)
            counts["size"] += 1
        if "slowly" in text or "quickly" in text:
            lowest, _, highest = scenes.SPEEDS[one.motion]
            assert abs(one.rate) == (lowest if "slowly" in text else highest)
            counts["pace"] += 1
        if "clockwise" in text:
            assert ("counterclockwise" in text) == (one.rate < 0)
            counts["sense"] += 1
        if "background" in text:
            assert scene.background.tone in text
            named = [texture for texture in scenes.TEXTURES if texture in text]
            assert named in ([], [scene.background.texture])
            counts["background"] += 1
        if "camera" in text:
            assert f"the camera pans {scene.pan}" in text
            counts["pan"] += 1
    assert min(counts.values()) > 15
    assert len(counts) == 5


def test_captions_are_varied_short_and_made_of_known_words():
    texts = []
    for i in range(1000):
        scene = render.scene(i, split="all")
        rng = np.random.default_rng(i)
        texts += [render.caption(scene, rng, motion=j > 0) for j in range(5)]
    assert len(set(texts)) > 3500
    assert max(len(text.encode()) for text in texts) <= grammar.MAX_BYTES
    used = {word for text in texts for word in re.findall("[a-z]+", text.lower())}
    assert used == set(render.words())
    assert list(render.words()) == sorted(render.words())
    assert any(text[0].isupper() and text.endswith(".") for text in texts)
    assert not any(re.search(r"\ba [aeo]|\ban [^aeo]|  |\{", text) for text in texts)


def test_the_longest_captions_fit_the_tokenizer():
    longest = max(map(len, render.SHAPES)), max(map(len, render.COLOURS))
    shape = next(name for name in render.SHAPES if len(name) == longest[0])
    colour = next(name for name in render.COLOURS if len(name) == longest[1])
    ground = scenes.Background("beige", "checkered")
    for motion, pan, count in itertools.product(render.MOTIONS, (None, "right"), (1, 2)):
        one = figure(shape, colour, motion, size=0.49, rate=-scenes.SPEEDS[motion][2])
        scene = render.Scene((one,) * count, ground, pan)
        texts = [render.caption(scene, np.random.default_rng(i)) for i in range(150)]
        assert max(len(text.encode()) for text in texts) <= grammar.MAX_BYTES


def test_a_picture_has_a_caption_without_motion():
    for i in range(100):
        clip = render.clip(i, num_frames=1, height=32, width=32)
        assert clip.frames.shape == (1, 32, 32, 3)
        for one in clip.scene.objects:
            assert f"{one.colour} {one.shape}" in clip.caption.lower()
        with pytest.raises(StopIteration):
            described_motion(clip.caption)


def test_bad_arguments_are_errors_that_name_them():
    scene = render.scene(0)
    for wrong in ((0, 64, 64, 24), (9, 0, 64, 24), (9, 64, -1, 24), (9, 64, 64, 0)):
        with pytest.raises(ValueError, match="must be positive, got"):
            render.render(scene, *wrong)
    with pytest.raises(ValueError, match=r"must be >= 0, got 0 and -1"):
        render.scene(-1)
    with pytest.raises(ValueError, match="num_objects 1, 2 or None"):
        render.scene(0, num_objects=3)
    with pytest.raises(ValueError, match="unknown motion 'jump'"):
        render.render(render.Scene((figure(motion="jump"),), GREY), 1, 32, 32, 24)
    for wrong in ((), ("rotate", "")):
        with pytest.raises(ValueError, match="unknown motion ''; the motions are left"):
            render.clip(0, motions=wrong)
    with pytest.raises(dataclasses.FrozenInstanceError):
        scene.pan = "left"


def test_the_world_needs_numpy_and_jaxtyping_alone():
    """A machine that trains on it may have no video library, and workers need no jax."""
    blocked = ("av", "PIL", "tyro", "flax", "transformers", "tensorflow")
    code = f"import sys; [sys.modules.__setitem__(name, None) for name in {blocked}]; "
    code += "from ltx_jax.world import render; render.clip(0); print('jax' in sys.modules)"
    code += "; render.triples('test')"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "False"
    assert "ValueError: unknown split 'test'; the splits are all, train, held_out" in result.stderr
