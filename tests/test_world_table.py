"""The table of the procedural world, asked of pipelines whose faults are known."""

import dataclasses

import numpy as np
import pytest

from ltx_jax.evaluate import world
from ltx_jax.world import render
from ltx_jax.world.scenes import DIRECTIONS

ALL = tuple(world.ROWS)


class Renderer:
    """A pipeline that draws the scene that a caption was written for; keeps what it was asked."""

    def __init__(self, monkeypatch):
        self.scenes = {}
        self.calls = []
        original = world.Bench.draw

        def draw(bench, *arguments, **options):
            found = original(bench, *arguments, **options)
            self.scenes.update({asked.caption: asked.scene for asked in found})
            return found

        monkeypatch.setattr(world.Bench, "draw", draw)

    def __call__(self, captions, options, *, conditions, first_sample):
        self.calls.append((options, conditions, first_sample))
        size = options.num_frames, options.height, options.width, options.frame_rate
        return np.stack([render.render(self.scenes[text], *size) for text in captions])


@pytest.fixture
def renderer(monkeypatch):
    return Renderer(monkeypatch)


def table(sample, rows, count=4, reconstruct=lambda frames: frames, **options):
    bench = world.Bench(sample, reconstruct, 8, batch_size=4).changed(**options)
    return {
        (figure.of, figure.name): figure
        for row in rows
        for figure in world.ROWS[row].measure(bench, count)
    }


def test_a_perfect_model_has_the_full_score_in_every_row(renderer):
    found = table(renderer, ALL)
    for (of, name), figure in found.items():
        if figure.unit == "%" and "shuffled" not in of and name != "differ":
            assert figure.value == 100, (of, name)
        if "PSNR" in name:
            assert figure.value == pytest.approx(100, abs=1e-3)  # of equal videos
    assert found["VAE, held-out scenes", "SSIM"].value == pytest.approx(1, abs=1e-5)
    assert found["two seeds", "differ"].value == 0  # this model knows no seeds
    assert found["extension", "change at the seam, of its own"].value == pytest.approx(1, abs=0.3)
    for rate in (12, 24, 30):
        speed = found[f"{rate} frames per second", "speed, of that asked for"]
        assert speed.value == pytest.approx(1, abs=0.03)


def test_captions_are_obeyed_by_chance_when_they_are_shuffled(renderer):
    found = table(renderer, ["shuffled"], count=20)
    for name in ("shape", "colour", "motion"):
        chance = found["shuffled captions, by chance", name]
        assert found["shuffled captions", name].value == chance.value < 40
    assert found["shuffled captions", "all"].value == 0


def test_noise_has_no_score_in_any_row():
    rng = np.random.default_rng(0)

    def noise(captions, options, **ignored):
        shape = len(captions), options.num_frames, options.height, options.width, 3
        return rng.integers(0, 256, shape, np.uint8)

    found = table(
        noise, ALL, count=2, reconstruct=lambda x: rng.integers(0, 256, x.shape, np.uint8)
    )
    for (of, name), figure in found.items():
        if "PSNR" in name:
            assert figure.value < 12
        elif figure.unit == "%" and name != "differ" and "seam" not in name:
            assert figure.value == 0 or "by chance" in of or "originals" in of, (of, name)
    assert found["two seeds", "differ"].value == 100


def test_a_model_that_ignores_the_frame_rate_is_found_out(renderer):
    def at_24(captions, options, **given):
        changed = dataclasses.replace(options, frame_rate=24.0)
        return renderer(captions, changed, **given)

    found = table(at_24, ["rates"])
    for rate, speed in ((12, 0.5), (24, 1.0), (30, 1.25)):
        of = f"{rate} frames per second"
        assert found[of, "speed, of that asked for"].value == pytest.approx(speed, abs=0.05)
        assert found[of, "speed right within 20%"].value == (100 if rate == 24 else 0)


def test_a_jump_at_the_seam_or_between_keyframes_is_found_out(renderer):
    def jumping(captions, options, **given):
        made = renderer(captions, options, **given)
        made[:, 9:] = np.roll(made[:, 9:], 8, axis=3)
        if len(given["conditions"]) == 2:
            made[:, :-1] = made[:, :1]  # stands, then is at the end
        return made

    found = table(jumping, ["extension", "keyframes"])
    assert found["extension", "seam at most 1.5 of it"].value == 0
    assert found["two keyframes", "moves between them"].value == 0


def test_only_what_follows_the_seam_counts_as_extended(renderer):
    def stopping(captions, options, **given):
        made = renderer(captions, options, **given)
        made[:, 9:] = made[:, 8:9]
        return made

    found = table(stopping, ["extension"])
    assert found["extension, after the seam", "motion"].value == 0
    assert found["extension, after the seam", "shape"].value == 100


def test_a_motion_that_a_model_cannot_do_is_named(renderer):
    """This one's objects neither turn nor, in its reconstructions, move along a circle."""

    def held(frames):
        return np.repeat(frames[:, :1], frames.shape[1], axis=1)

    def stiff(captions, options, **given):
        made = renderer(captions, options, **given)
        turns = [renderer.scenes[text].objects[0].motion == "rotate" for text in captions]
        return np.where(np.array(turns)[:, None, None, None, None], held(made), made)

    found = table(stiff, ["motions"], reconstruct=held)
    values = {name: figure.value for name, figure in found.items()}
    assert values["videos: rotate", "motion"] == values["videos: rotate", "all"] == 0
    for of in ("directions", "still, grow, shrink", "orbit"):
        assert values[f"videos: {of}", "all"] == 100
    assert values["reconstructions: orbit", "shape"] == 100
    assert values["reconstructions: orbit", "motion"] == 0


def test_rows_ask_for_what_they_measure(renderer, monkeypatch):
    monkeypatch.setattr(world, "judge", lambda frames, fps: ())
    rows = ["image", "extension", "keyframes", "steps", "seeds"]
    table(renderer, rows, count=6, seed=6)
    shown = [
        [(c.frame, c.media.shape[1]) for c in conditions] for _, conditions, _ in renderer.calls
    ]
    # 6 prompts, 4 at a time; the last batch is filled up.
    assert shown[:2] == [[(0, 1)]] * 2
    assert shown[2:4] == [[(0, 9)]] * 2
    assert shown[4:6] == [[(0, 1), (24, 1)]] * 2
    assert all(not conditions for conditions in shown[6:])
    steps = [options.num_inference_steps for options, _, _ in renderer.calls[6:14]]
    assert steps == [4, 4, 8, 8, 16, 16, 32, 32]
    assert {options.seed for options, _, _ in renderer.calls[14:]} == {6, 7}
    assert [first for *_, first in renderer.calls[:4]] == [0, 4, 0, 4]
    assert all(c.media.shape[0] == 4 for _, given, _ in renderer.calls for c in given)


def test_prompts_keep_to_their_split_and_are_no_training_clips():
    bench = world.Bench(lambda *_: None, lambda frames: frames, 8)
    for split in ("train", "held_out"):
        for asked in bench.draw(20, split):
            assert render.is_held_out(*asked.triples[0]) == (split == "held_out")
    paced = bench.draw(10, "train", motions=tuple(DIRECTIONS), paced=True)
    assert all("slowly" in asked.caption or "quickly" in asked.caption for asked in paced)
    assert bench.draw(3) == bench.draw(3)
