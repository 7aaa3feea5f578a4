"""The table of the procedural world, measured on fake pipelines with known faults."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
import pytest

from ltx_jax.evaluate import world_table
from ltx_jax.world import render
from ltx_jax.world.scenes import DIRECTIONS

ALL = tuple(world_table.ROWS)


class Benchmark(world_table.WorldBenchmark):
    """Remembers the scenes of the prompts that were drawn, by caption, for all tests."""

    scenes: ClassVar[dict[str, Any]] = {}

    def draw_prompts(self, *arguments, **options):
        prompts = super().draw_prompts(*arguments, **options)
        self.scenes.update({prompt.caption: prompt.scene for prompt in prompts})
        return prompts


class Renderer:
    """A perfect pipeline: it renders the scene of each caption. Records its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, captions, options, *, conditions, first_sample):
        self.calls.append((options, conditions, first_sample))
        size = options.num_frames, options.height, options.width, options.frame_rate
        return np.stack([render.render(Benchmark.scenes[text], *size) for text in captions])


@pytest.fixture
def renderer():
    return Renderer()


def table(sample, groups, count=4, reconstruct=lambda frames: frames, **options):
    benchmark = Benchmark(sample, reconstruct, 8, batch_size=4).with_options(**options)
    return {
        (row.subject, row.name): row
        for group in groups
        for row in world_table.ROWS[group].measure(benchmark, count)
    }


@pytest.mark.thorough
def test_a_perfect_model_has_the_full_score_in_every_row(renderer):
    rows = table(renderer, ALL)
    for (of, name), row in rows.items():
        if row.unit == "%" and "shuffled" not in of and name != "differ":
            assert row.value == 100, (of, name)
        if "PSNR" in name:
            assert row.value == pytest.approx(100, abs=1e-3)  # of equal videos
    assert rows["VAE, held-out scenes", "SSIM"].value == pytest.approx(1, abs=1e-5)
    assert rows["two seeds", "differ"].value == 0  # this model knows no seeds
    assert rows["extension", "change at the seam / elsewhere"].value == pytest.approx(1, abs=0.3)
    for rate in (12, 24, 30):
        speed = rows[f"{rate} frames per second", "speed / requested speed"]
        assert speed.value == pytest.approx(1, abs=0.03)


@pytest.mark.thorough
def test_captions_are_obeyed_by_chance_when_they_are_shuffled(renderer):
    rows = table(renderer, ["shuffled"], count=20)
    for name in ("shape", "colour", "motion"):
        chance = rows["shuffled captions, by chance", name]
        assert rows["shuffled captions", name].value == chance.value < 40
    assert rows["shuffled captions", "all"].value == 0


@pytest.mark.thorough
def test_noise_has_no_score_in_any_row():
    rng = np.random.default_rng(0)

    def noise(captions, options, **ignored):
        shape = len(captions), options.num_frames, options.height, options.width, 3
        return rng.integers(0, 256, shape, np.uint8)

    rows = table(noise, ALL, count=2, reconstruct=lambda x: rng.integers(0, 256, x.shape, np.uint8))
    for (of, name), row in rows.items():
        if "PSNR" in name:
            assert row.value < 12
        elif row.unit == "%" and name != "differ" and "seam" not in name:
            assert row.value == 0 or "by chance" in of or "originals" in of, (of, name)
    assert rows["two seeds", "differ"].value == 100


@pytest.mark.thorough
def test_a_model_that_ignores_the_frame_rate_is_found_out(renderer):
    def at_24(captions, options, **arguments):
        options_at_24 = dataclasses.replace(options, frame_rate=24.0)
        return renderer(captions, options_at_24, **arguments)

    rows = table(at_24, ["rates"])
    for rate, speed in ((12, 0.5), (24, 1.0), (30, 1.25)):
        of = f"{rate} frames per second"
        assert rows[of, "speed / requested speed"].value == pytest.approx(speed, abs=0.05)
        assert rows[of, "speed right within 20%"].value == (100 if rate == 24 else 0)


@pytest.mark.thorough
def test_a_jump_at_the_seam_or_between_keyframes_is_found_out(renderer):
    def jumping(captions, options, **arguments):
        videos = renderer(captions, options, **arguments)
        videos[:, 9:] = np.roll(videos[:, 9:], 8, axis=3)
        if len(arguments["conditions"]) == 2:
            videos[:, :-1] = videos[:, :1]  # stands, then is at the end
        return videos

    rows = table(jumping, ["extension", "keyframes"])
    assert rows["extension", "seam / elsewhere at most 1.5"].value == 0
    assert rows["two keyframes", "moves between them"].value == 0


@pytest.mark.thorough
def test_only_what_follows_the_seam_counts_as_extended(renderer):
    def stopping(captions, options, **arguments):
        videos = renderer(captions, options, **arguments)
        videos[:, 9:] = videos[:, 8:9]
        return videos

    rows = table(stopping, ["extension"])
    assert rows["extension, after the seam", "motion"].value == 0
    assert rows["extension, after the seam", "shape"].value == 100


@pytest.mark.thorough
def test_a_motion_that_a_model_cannot_do_is_named(renderer):
    """The objects of this fake neither rotate nor, in its reconstructions, move along a circle."""

    def frozen(frames):
        return np.repeat(frames[:, :1], frames.shape[1], axis=1)

    def stiff(captions, options, **arguments):
        videos = renderer(captions, options, **arguments)
        turns = [Benchmark.scenes[text].objects[0].motion == "rotate" for text in captions]
        return np.where(np.array(turns)[:, None, None, None, None], frozen(videos), videos)

    rows = table(stiff, ["motions"], reconstruct=frozen)
    values = {name: row.value for name, row in rows.items()}
    assert values["videos: rotate", "motion"] == values["videos: rotate", "all"] == 0
    for of in ("directions", "still, grow, shrink", "orbit"):
        assert values[f"videos: {of}", "all"] == 100
    assert values["reconstructions: orbit", "shape"] == 100
    assert values["reconstructions: orbit", "motion"] == 0


@pytest.mark.thorough
def test_rows_ask_for_what_they_measure(renderer, monkeypatch):
    monkeypatch.setattr(world_table, "detect_objects", lambda frames, fps: ())
    rows = ["image", "extension", "keyframes", "steps", "seeds"]
    table(renderer, rows, count=6, seed=6)
    condition_frames = [
        [(c.frame, c.media.shape[1]) for c in conditions] for _, conditions, _ in renderer.calls
    ]
    # 6 prompts, 4 at a time; the last batch is filled up.
    assert condition_frames[:2] == [[(0, 1)]] * 2
    assert condition_frames[2:4] == [[(0, 9)]] * 2
    assert condition_frames[4:6] == [[(0, 1), (24, 1)]] * 2
    assert all(not conditions for conditions in condition_frames[6:])
    steps = [options.num_inference_steps for options, _, _ in renderer.calls[6:14]]
    assert steps == [4, 4, 8, 8, 16, 16, 32, 32]
    assert {options.seed for options, _, _ in renderer.calls[14:]} == {6, 7}
    assert [first for *_, first in renderer.calls[:4]] == [0, 4, 0, 4]
    assert all(c.media.shape[0] == 4 for _, conditions, _ in renderer.calls for c in conditions)


def test_prompts_keep_to_their_split_and_are_no_training_clips():
    benchmark = world_table.WorldBenchmark(lambda *_: None, lambda frames: frames, 8)
    for split in ("train", "held_out"):
        for prompt in benchmark.draw_prompts(20, split):
            assert render.is_held_out(*prompt.triples[0]) == (split == "held_out")
    paced = benchmark.draw_prompts(10, "train", motions=tuple(DIRECTIONS), paced=True)
    assert all("slowly" in prompt.caption or "quickly" in prompt.caption for prompt in paced)
    assert benchmark.draw_prompts(3) == benchmark.draw_prompts(3)
