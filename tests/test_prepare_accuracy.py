"""Cuts, bars, motion and copies are found in synthetic films with known ground truth."""

import pytest

pytest.importorskip("scenedetect", reason="needs the extra `prepare`: pip install '.[prepare]'")

import numpy as np

from benchmarks import preparation, synthetic_videos
from ltx_jax.config import PrepareConfig, StoreConfig
from ltx_jax.data.filters import bars, hashes, motion
from ltx_jax.prepare import duplicates
from ltx_jax.prepare.records import ClipRecord

CFG = PrepareConfig(store=StoreConfig(min_side=64))


@pytest.mark.thorough
def test_a_few_films_are_seen_as_they_are(tmp_path):
    films = synthetic_videos.VideoSet(tmp_path, 1, height=120, width=208)
    films.cut("cuts3", fades=False, flashes=True)
    for kind in ("pillarbox", "uneven letterbox"):
        films.bars(kind)
    films.clean("night")
    for kind in ("shake", "slides"):
        films.take(kind, moves=False)
    films.take("things", moves=True)
    films.copy(films.films[-1], "graded")
    accuracy = preparation.measure([films.films], CFG)
    assert accuracy.wrong == []
    assert accuracy.cuts["hit"] == len(films.films[0].cuts)


@pytest.mark.slow
def test_videos_of_seeds_that_no_threshold_has_seen(tmp_path):
    """82 films; docs/preparation.md has the results of all ten seeds."""
    sets = [synthetic_videos.VideoSet(tmp_path, seed).write() for seed in (100, 101)]
    figures = preparation.measure(sets, PrepareConfig()).metrics()
    assert figures["cuts F1"] >= 0.95, figures
    assert figures["bars within 2 pixels"] >= 0.95, figures  # one of 26 may miss
    assert figures["bars invented"] == 0, figures
    assert figures["stills caught"] == 1, figures
    assert figures["moving dropped"] == 0, figures
    assert figures["copies found"] >= 0.9, figures  # one of 12 may miss
    assert figures["false copies"] <= 0.01, figures


@pytest.mark.thorough
def test_motion_is_counted_per_second_whatever_the_frame_rate():
    """A texture moves by whole pixels, 24 per second; points that are lost add a small error."""
    scene = synthetic_videos.plate(np.random.default_rng(0), 144, 600).mean(axis=2).astype(np.uint8)
    for rate in (8.0, 12.0):
        times = (np.arange(int(3 * rate)) / rate).tolist()
        places = [round(24 * time) for time in times]
        pictures = [np.ascontiguousarray(scene[:, x : x + 256]) for x in places]
        assert motion.score(times, pictures) == pytest.approx(2400 / np.hypot(144, 256), rel=0.15)
        assert motion.score(times, pictures[:1] * len(times)) < 0.01


def test_bars_are_cut_off_to_the_pixel_and_a_dark_picture_is_left_alone():
    rng = np.random.default_rng(1)
    pictures = [
        synthetic_videos.plate(rng, 80, 160).mean(axis=2).astype(np.uint8) for _ in range(2)
    ]
    barred = [np.pad(picture, ((20, 0), (7, 33))) for picture in pictures]
    assert bars.find_picture(barred) == (20, 7, 80, 160)
    assert bars.find_picture(pictures) == (0, 0, 80, 160)
    assert bars.find_picture([np.zeros((90, 160), np.uint8)]) == (0, 0, 90, 160)
    faint = [np.pad(picture // 40 + 4, ((20, 20), (0, 0))) for picture in pictures]
    assert bars.find_picture(faint) == (20, 0, 80, 160)


@pytest.mark.thorough
def test_the_best_of_a_group_is_kept_and_parts_of_one_shot_are_no_copies():
    def clip(source, number, height, value, shot=0):
        return ClipRecord(
            source=source, number=number, shot=shot, crop=(0, 0, height, 100), hashes=(value,) * 4
        )

    small, large = clip("a", 0, 90, 0b1011), clip("b", 0, 180, 0b1001)
    third = clip("c", 0, 90, 0b1000)
    pairs = duplicates.pairs([small, large, third], 2.0)
    assert duplicates.groups(pairs) == {"a#0": "b#0", "c#0": "b#0"}
    assert list(duplicates.pairs([clip("a", 0, 90, 7), clip("a", 1, 90, 7)], 2.0)) == []
    assert hashes.distance((0b1011, 0), (0b1000, 0)) == 1.0
