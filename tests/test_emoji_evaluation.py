"""ltx-evaluate emoji: the judge on scenes that are known, samples on disk, the table."""

import dataclasses
import json

import numpy as np
import pytest
from emoji_files import entry, write_set
from random_networks import write_random_efficientnet

from ltx_jax.checkpoints import perceptual
from ltx_jax.config import DataConfig
from ltx_jax.data.emoji import Emoji
from ltx_jax.emoji import render
from ltx_jax.emoji.scenes import CAMERAS, COLOURS, KINDS, MOTIONS, PACES, Actor, Backdrop, Scene
from ltx_jax.evaluate import emoji_benchmark, emoji_motion, emoji_objects, metric_table
from ltx_jax.evaluate.__main__ import main
from ltx_jax.evaluate.emoji_benchmark import EmojiBenchmark, SampledVideos
from ltx_jax.evaluate.emoji_retrieval import Embedder, Gallery
from ltx_jax.evaluate.emoji_table import EmojiModel, EmojiTable

FIGURE = entry(frames=1)


def figure(_):
    """A rectangle of smooth random colours, of which no turn looks like another."""
    rng = np.random.default_rng(5)
    coarse = rng.uniform(0, 255, (6, 6, 3)).repeat(8, 0).repeat(8, 1)
    glyph = np.zeros((1, 64, 64, 4), np.uint8)
    glyph[0, 8:56, 8:56, :3] = coarse
    glyph[0, 8:56, 8:56, 3] = 255
    glyph[0, 8:20, 8:40] = 0  # not symmetric either
    return glyph


def scene(motion="still", backdrop=None, size=0.5, x=0.0, y=0.0, pace=1):
    camera = motion if motion in CAMERAS else None
    own = "still" if camera else motion
    actor = Actor(FIGURE, 0, own, size, x, y, PACES[own][pace])
    backdrop = backdrop or Backdrop("cloudy" if camera else "plain", ("mint green",), seed=3)
    return Scene((actor,), backdrop, camera, PACES[motion][pace] if camera else 0.0)


def frames_of(one, num_frames=25):
    return render.render(one, figure, num_frames, 96, 96, 12.0)


BACKDROPS = {
    kind: Backdrop(kind, ("navy blue", "beige") if kind in ("gradient", "floor") else ("teal",))
    for kind in KINDS
}


@pytest.mark.parametrize("backdrop", BACKDROPS.values(), ids=BACKDROPS)
def test_the_emoji_is_found_on_every_background(backdrop):
    frames = frames_of(scene(backdrop=backdrop, x=0.1, y=-0.15), 3)
    found = emoji_objects.masks(frames, backdrop)
    box = emoji_objects.box(found[0])
    # The drawn part is 48 of 64 pixels of the canvas.
    assert box.side == pytest.approx(96 * 0.5 * 48 / 64, abs=3)
    assert (box.row, box.column) == pytest.approx((48 - 14.4, 48 + 9.6), abs=2)
    area = (48 * 48 - 12 * 32) / 64**2 * 0.25 * 96**2
    assert found[0].sum() == pytest.approx(area, rel=0.1)
    assert not emoji_objects.masks(np.full((1, 96, 96, 3), 90, np.uint8), backdrop).any()


@pytest.mark.parametrize("backdrop", BACKDROPS.values(), ids=BACKDROPS)
def test_a_background_is_right_in_its_colours_and_no_others(backdrop):
    frames = frames_of(scene(backdrop=backdrop), 2)
    found = emoji_objects.masks(frames, backdrop)
    assert emoji_objects.background_is_right(frames, found, backdrop)
    for other in COLOURS:
        if other not in backdrop.colours:
            wrong = dataclasses.replace(backdrop, colours=(other, *backdrop.colours[1:]))
            assert not emoji_objects.background_is_right(frames, found, wrong)
    if len(backdrop.colours) == 2:
        turned = dataclasses.replace(backdrop, colours=backdrop.colours[::-1])
        assert not emoji_objects.background_is_right(frames, found, turned)


def test_a_picture_full_of_emoji_has_no_background():
    frames = frames_of(scene(), 1)
    assert not emoji_objects.background_is_right(
        frames, np.ones((1, 96, 96), bool), BACKDROPS["plain"]
    )


@pytest.mark.thorough
@pytest.mark.parametrize("pace", [0, 2], ids=["slow", "fast"])
@pytest.mark.parametrize("motion", [*MOTIONS, *CAMERAS])
def test_every_motion_is_recognised(motion, pace):
    one = scene(motion, pace=pace)
    frames = frames_of(one)
    found = emoji_objects.masks(frames, one.backdrop)
    assert emoji_motion.motion(frames, found, one.backdrop, 12.0) == motion


def test_a_video_without_an_emoji_stands_still():
    frames, nothing = np.full((5, 96, 96, 3), 90, np.uint8), np.zeros((5, 96, 96), bool)
    for backdrop in BACKDROPS.values():
        assert emoji_motion.motion(frames, nothing, backdrop, 12.0) == "still"


def test_loop_closure_is_the_nearest_return_after_the_farthest_look():
    def closure(*places):
        return emoji_benchmark.loop_closure(np.array(places, np.float32)[:, None])

    assert closure(0, 3, 4, 2, 1) == pytest.approx(0.25)
    assert closure(0, 1, 2, 3) == 1
    assert closure(0, 5, 0, 9) == 1
    assert closure(2, 2, 2) == 1


def test_a_bootstrapped_interval_is_that_of_a_mean():
    values = np.random.default_rng(1).normal(3, 2, 400)
    row = metric_table.bootstrapped("a", "b", lambda numbers: float(values[numbers].mean()), 400)
    expected = metric_table.mean("a", "b", values)
    assert row.value == pytest.approx(expected.value)
    assert row.low == pytest.approx(expected.low, abs=0.06)
    assert row.high == pytest.approx(expected.high, abs=0.06)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A drawn data set, and random weights of EfficientNet."""
    path = tmp_path_factory.mktemp("emoji")
    write_set(path)
    write_random_efficientnet(path / perceptual.EFFICIENTNET)
    return path


@pytest.fixture(scope="module")
def benchmark(folder):
    source = Emoji(f"emoji:{folder / 'set'}", DataConfig(), 0)
    embed = Embedder(perceptual.read_efficientnet(folder / perceptual.EFFICIENTNET))
    gallery = Gallery.make(source.catalogue, source.artwork, embed, folder / "gallery.npz")
    return EmojiBenchmark(source.catalogue, source.artwork, embed, gallery)


def test_prompts_depend_on_nothing_and_belong_to_their_split(benchmark):
    prompts = benchmark.draw_prompts(6, "combinations")
    again = benchmark.draw_prompts(3, "combinations", first=3)
    assert [(p.caption, p.scene) for p in prompts[3:]] == [(p.caption, p.scene) for p in again]
    for prompt in prompts:
        assert prompt.scene.split(prompt.scene.actors[0]) == "combinations"
        assert prompt.entry.animated
        assert "emoji of " not in prompt.caption.lower()
    assert len({prompt.names_background for prompt in benchmark.draw_prompts(30, "tones")}) == 2


@pytest.mark.thorough
def test_the_judge_recognises_real_clips_and_a_stored_gallery_is_the_same(benchmark, folder):
    prompts = benchmark.draw_prompts(8, "combinations") + benchmark.draw_prompts(4, "tones")
    verdicts = [benchmark.judge(benchmark.render(prompt), prompt) for prompt in prompts]
    assert all(verdict.emoji and verdict.family for verdict in verdicts)
    tones = [v.tone for p, v in zip(prompts, verdicts, strict=True) if p.entry.label != "fox"]
    assert len(tones) >= 5
    assert all(tones)
    assert {v.background for v in verdicts} <= {True, None}
    other = next(p for p in prompts if p.entry.base != prompts[0].entry.base)
    assert not benchmark.judge(benchmark.render(other), prompts[0]).emoji
    stored = Gallery.make(
        benchmark.catalogue,
        lambda _: pytest.fail("it is drawn again"),
        benchmark.embed,
        folder / "gallery.npz",
    )
    np.testing.assert_array_equal(stored._poses.features, benchmark.gallery._poses.features)


class Renderer:
    """Stands for a pipeline: renders the scene of each caption."""

    def __init__(self, benchmark, prompts):
        self.videos = {prompt.caption: benchmark.render(prompt) for prompt in prompts}
        self.calls = []

    def __call__(self, captions, options, *, conditions, first_sample):
        self.calls.append((list(captions), len(conditions), first_sample))
        return np.stack([self.videos[caption] for caption in captions])


def test_samples_are_kept_and_not_sampled_again(benchmark, tmp_path):
    prompts = benchmark.draw_prompts(5, "combinations")
    captions = [prompt.caption for prompt in prompts]
    sample = Renderer(benchmark, prompts)
    store = SampledVideos(sample, benchmark.options, tmp_path / "samples", batch_size=2)
    store.open("a hash")
    videos = store.videos("combinations", captions)
    first = [next(videos) for _ in range(2)]  # interrupted after the first batch
    assert [call[2] for call in sample.calls] == [0]
    again = list(store.videos("combinations", captions))
    assert [call[2] for call in sample.calls] == [0, 2, 4]
    assert sample.calls[-1][0] == [captions[4]] * 2  # padded: one program for all batches
    np.testing.assert_array_equal(again[:2], first)
    np.testing.assert_array_equal(again, [sample.videos[caption] for caption in captions])
    with pytest.raises(ValueError, match=r"0000\.npz shows another caption"):
        list(store.videos("combinations", captions[::-1]))
    store.open("a hash")
    with pytest.raises(ValueError, match="samples of another model or of other settings"):
        store.open("another hash")
    slower = dataclasses.replace(benchmark.options, num_inference_steps=99)
    with pytest.raises(ValueError, match="samples of another model or of other settings"):
        dataclasses.replace(store, options=slower).open("a hash")


@pytest.mark.thorough
def test_the_table_of_a_perfect_model(benchmark, tmp_path):
    """Its samples are the real clips; its VAE makes everything black."""
    prompts = benchmark.draw_prompts(4, "combinations")
    samples = SampledVideos(Renderer(benchmark, prompts), benchmark.options, tmp_path / "samples")
    training = np.stack([benchmark.whole(benchmark.render(p)).mean(axis=0) for p in prompts[:2]])
    table = EmojiTable(benchmark, training, EmojiModel(samples, lambda frames: 0 * frames))
    rows = {(row.subject, row.name): row for row in table.rows("combinations", 4)}
    value = {key: row.value for key, row in rows.items()}
    for name in ("emoji", "background", "motion of the whole", "all"):
        own = value["combinations: samples", name]
        assert own == value["combinations: real", name]
    assert value["combinations: samples", "emoji"] == 100
    assert value["combinations: reconstructions", "emoji"] < 100
    assert value["combinations: samples of other captions", "all"] < 100
    assert value["combinations: samples", "feature distance"] == pytest.approx(0, abs=1e-6)
    assert value["combinations: other real clips", "feature distance"] > 0
    black = value["combinations: reconstructions", "feature distance"]
    assert black > value["combinations: other real clips", "feature distance"]
    # Half of the clips are training clips.
    nearest = "distance to the nearest training clip, median"
    assert (
        0
        < value["combinations: samples", nearest]
        < value["combinations: reconstructions", nearest]
    )
    assert EmojiTable(benchmark, training).rows("image", 4) == []


@pytest.mark.thorough
def test_image_to_video_compares_first_and_last_frames(benchmark, tmp_path, monkeypatch):
    draw = EmojiBenchmark.draw_prompts  # the drawn set has no held-out base
    monkeypatch.setattr(
        EmojiBenchmark, "draw_prompts", lambda self, count, _: draw(self, count, "combinations")
    )
    prompts = benchmark.draw_prompts(3, "bases")
    sample = Renderer(benchmark, prompts)
    samples = SampledVideos(sample, benchmark.options, tmp_path / "samples")
    table = EmojiTable(benchmark, np.zeros((2, 3), "f"), EmojiModel(samples, lambda x: x))
    ratio, emoji, moves = table.rows("image", 3)
    assert sample.calls[0][1] == 1
    assert (ratio.value, emoji.value, moves.value) == (100, 100, 100)


@pytest.mark.thorough
def test_the_command_measures_the_judge_without_a_model(folder, tmp_path, capsys):
    arguments = ["emoji", "--data", f"emoji:{folder / 'set'}", "--networks", str(folder)]
    arguments += ["--output", str(tmp_path / "table"), "--prompts", "3", "--num_frames", "9"]
    assert main([*arguments, "--training_clips", "2", "--parts", "combinations", "image"]) == 0
    content = json.loads((tmp_path / "table.json").read_text())
    value = {(row["of"], row["name"]): row["value"] for row in content["figures"]}
    assert value["combinations: real", "emoji"] == 100
    assert ("combinations: samples", "emoji") not in value
    assert main([*arguments, "--parts", "nothing"]) == 2
    assert "there is no nothing; known: combinations tones bases image" in capsys.readouterr().err
    assert main([*arguments, "--networks", str(tmp_path)]) == 2
    assert "ltx-prepare networks" in capsys.readouterr().err
