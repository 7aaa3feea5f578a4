"""The loader: seed and step alone determine the examples of a batch."""

import collections
import dataclasses
import multiprocessing
import pathlib
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from ltx_jax.config import BucketConfig, DataConfig, SourceConfig
from ltx_jax.data import writing
from ltx_jax.data.loader import Loader
from ltx_jax.data.order import Order, WeightedChoices, shuffled

ROOT = pathlib.Path(__file__).parents[1]
PATTERNS = (("none", 0.6), ("first_frame", 0.3), ("keyframes", 0.1))
BUCKETS = (
    BucketConfig(9, 16, 16, 8, weight=0.5),
    BucketConfig(17, 16, 32, 4, weight=0.3),
    BucketConfig(1, 32, 32, 16, weight=0.2),
)
WORLD = DataConfig(buckets=BUCKETS, frame_rates=(12.0, 24.0))


def load(cfg=WORLD, seed=3, patterns=PATTERNS, **process):
    return Loader(cfg, patterns, seed, **process)


def check_same(batch, other):
    assert (batch.bucket, batch.pattern) == (other.bucket, other.pattern)
    assert batch.captions == other.captions
    np.testing.assert_array_equal(batch.frame_rate, other.frame_rate)
    np.testing.assert_array_equal(batch.frames, other.frames)


def write_clip(folder, name, *, frames=12, height=16, width=16, level=None, fps=10):
    """A clip whose frame i has the grey level 8 (i + 1), or whose frames all have one level."""
    levels = np.full(frames, level) if level else 8 * np.arange(1, frames + 1)
    pixels = np.broadcast_to(
        levels.astype(np.uint8)[:, None, None, None], (frames, height, width, 3)
    )
    folder.mkdir(exist_ok=True)
    writing.write_video(folder / f"{name}.mp4", pixels, fps)
    (folder / f"{name}.txt").write_text(name)


@pytest.fixture
def clips(tmp_path):
    """Twelve clips with different captions."""
    for i in range(12):
        write_clip(tmp_path / "clips", f"{i:02}", level=20 * (i + 1))
    return DataConfig(
        source=str(tmp_path / "clips"), num_frames=5, height=16, width=16, batch_size=4
    )


@pytest.fixture
def mixed(clips):
    """The config of two sources, the world and the clips, with several buckets."""
    sources = (SourceConfig(clips.source, 3.0), SourceConfig("shapes", 1.0))
    buckets = (BucketConfig(9, 16, 16, 8), BucketConfig(5, 16, 24, 4), BucketConfig(1, 24, 24, 8))
    return DataConfig(mix=sources, buckets=buckets, random_start=True, random_crop=True)


def test_batches_have_the_size_of_their_bucket():
    loader = load()
    seen = set()
    for batch in loader.batches(0, 20):
        size = batch.bucket
        assert batch.frames.shape == (size.batch_size, size.num_frames, size.height, size.width, 3)
        assert batch.frame_rate.shape == (size.batch_size,)
        assert len(batch.captions) == size.batch_size
        assert size in BUCKETS
        seen.add(size)
    assert seen == set(BUCKETS)


@pytest.mark.thorough
def test_buckets_and_patterns_come_in_their_shares():
    order = Order(WORLD, [[None]] * 3, PATTERNS, 0)
    plans = [order.plan(step) for step in range(10_000)]
    buckets = np.array([plan.bucket for plan in plans])
    for number, size in enumerate(BUCKETS):
        # Over the whole run, and over any part of it.
        assert np.mean(buckets == number) == pytest.approx(size.weight, rel=0.02)
        assert np.mean(buckets[5000:5500] == number) == pytest.approx(size.weight, rel=0.05)
        patterns = [plan.pattern for plan in plans if plan.bucket == number]
        if size.num_frames == 1:  # a picture is never given whole
            assert set(patterns) == {"none"}
            continue
        for pattern, share in PATTERNS:
            assert np.mean([p == pattern for p in patterns]) == pytest.approx(share, rel=0.02)


@pytest.mark.thorough
def test_sources_are_mixed_by_their_weights(tmp_path):
    cfg = DataConfig(mix=(SourceConfig("a", 7.0), SourceConfig("b", 2.0), SourceConfig("c", 1.0)))
    order = Order(cfg, [[5, None, 3]], PATTERNS, 0)
    sources = [source for step in range(1250) for source, _ in order.plan(step).rows]
    shares = np.bincount(sources) / len(sources)
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], rtol=0.02)
    # The weight of a source without examples for a bucket goes to the others.
    order = Order(cfg, [[5, None, 0]], PATTERNS, 0)
    sources = [source for step in range(1250) for source, _ in order.plan(step).rows]
    np.testing.assert_allclose(np.bincount(sources) / len(sources), [7 / 9, 2 / 9], rtol=0.02)


def test_a_world_may_have_some_motions_alone():
    cfg = DataConfig("shapes:rotate,orbit", num_frames=9, height=16, width=16)
    captions = [caption for step in range(4) for caption in load(cfg).batch(step).captions]
    assert all(re.search("rotat|turn|spin|circle", caption) for caption in captions)
    with pytest.raises(ValueError, match="unknown motion 'fly'; the motions are left"):
        load(DataConfig("shapes:orbit,fly"))


def test_choices_are_counted_rightly_from_anywhere():
    """The closed form, compared with counting."""
    weights = (0.31, 0.0, 0.02, 1.7)
    shares = WeightedChoices(weights, (4, 2))
    options, ranks = shares.choose(0, 3000)
    counted = [np.sum(options[:i] == option) for i, option in enumerate(options)]
    np.testing.assert_array_equal(ranks, counted)
    for first in (1, 17, 2500):
        there = shares.choose(first, 100)
        np.testing.assert_array_equal(there[0], options[first : first + 100])
        np.testing.assert_array_equal(there[1], ranks[first : first + 100])
    assert 1 not in options
    with pytest.raises(ValueError, match="weights must not all be 0"):
        WeightedChoices((0.0, 0.0), (0,))


def test_every_epoch_is_another_permutation():
    cfg = DataConfig(batch_size=4)
    order = Order(cfg, [[6]], PATTERNS, 3)
    chosen = [index for step in range(6) for _, index in order.plan(step).rows]
    epochs = [chosen[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other = Order(cfg, [[6]], PATTERNS, 4)
    assert [index for step in range(6) for _, index in other.plan(step).rows] != chosen


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17, 1000])
def test_orders_are_permutations_without_a_favourite(count):
    epochs = max(2000 // count, 3)
    read = [shuffled(rank, count, (1, 2)) for rank in range(epochs * count)]
    orders = np.array(read).reshape(epochs, count)
    np.testing.assert_array_equal(np.sort(orders), np.broadcast_to(np.arange(count), orders.shape))
    if count in (5, 16, 17):  # every item is as often at every place, and after every other
        places = np.stack([np.bincount(column, minlength=count) for column in orders.T])
        expected = epochs / count
        assert ((places - expected) ** 2 / expected).sum() < count**2 + 5 * (2 * count**2) ** 0.5
        neighbours = np.zeros((count, count))
        np.add.at(neighbours, (orders[:, :-1], orders[:, 1:]), 1)
        assert (np.diag(neighbours) == 0).all()
        pairs = neighbours[~np.eye(count, dtype=bool)]
        expected = epochs / count
        assert ((pairs - expected) ** 2 / expected).sum() < len(pairs) + 5 * (2 * len(pairs)) ** 0.5
    # Neighbours in the data are not neighbours in the order either.
    if count == 1000:
        assert np.mean(np.abs(np.diff(orders)) == 1) < 0.01  # 2 in 1000 by chance


@pytest.mark.thorough
def test_processes_together_see_the_batch_of_one(mixed):
    for step in (0, 1, 2, 3, 1000):
        whole = load(mixed).batch(step)
        for count in (2, 4):
            parts = [
                load(mixed, process_index=i, process_count=count).batch(step) for i in range(count)
            ]
            assert {part.bucket for part in parts} == {whole.bucket}
            joined = dataclasses.replace(
                whole,
                captions=sum((part.captions for part in parts), ()),
                frame_rate=np.concatenate([part.frame_rate for part in parts]),
                frames=np.concatenate([part.frames for part in parts]),
            )
            check_same(joined, whole)


@pytest.mark.thorough
def test_a_run_that_goes_on_sees_what_it_would_have_seen(mixed):
    whole = list(load(mixed).batches(0, 12))
    for first in (5, 11):
        for batch, expected in zip(load(mixed).batches(first, 12), whole[first:], strict=True):
            check_same(batch, expected)
    for step in (0, 7):
        check_same(load(mixed).batch(step), whole[step])
    assert any(
        (a.frames != b.frames).any()
        for a, b in zip(load(mixed, seed=4).batches(0, 3), whole[:3], strict=True)
        if a.bucket == b.bucket
    )


@pytest.mark.thorough
@pytest.mark.parametrize("grain", [True, False], ids=["grain", "threads"])
@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (5, 3)])
def test_reading_ahead_changes_nothing(mixed, monkeypatch, grain, threads, prefetch):
    loader = load(mixed)
    expected = [loader.batch(step) for step in range(6)]
    if not grain:
        monkeypatch.setitem(sys.modules, "grain", None)  # as where it is not installed
    cfg = dataclasses.replace(mixed, threads=threads, prefetch=prefetch)
    for batch, wanted in zip(load(cfg).batches(0, 6), expected, strict=True):
        check_same(batch, wanted)


@pytest.mark.thorough
def test_processes_change_nothing(mixed):
    loader = load(mixed)
    expected = [loader.batch(step) for step in range(2, 7)]
    cfg = dataclasses.replace(mixed, processes=2, prefetch=1)
    for batch, wanted in zip(load(cfg).batches(2, 7), expected, strict=True):
        check_same(batch, wanted)


@pytest.mark.thorough
def test_processes_of_an_iterator_that_is_left_early_are_gone_and_so_is_their_memory():
    program = """
import multiprocessing
from ltx_jax.config import DataConfig
from ltx_jax.data.loader import Loader
if __name__ == "__main__":
    cfg = DataConfig(num_frames=5, height=16, width=16, batch_size=2, processes=2)
    next(batches := Loader(cfg, (("none", 1.0),), 0).batches(0, 10_000))
    print(len(multiprocessing.active_children()))
    batches.close()
    print(len(multiprocessing.active_children()))
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.split() == ["2", "0"]
    assert result.stderr == ""  # where Python would name memory that was left


@pytest.mark.thorough
def test_a_process_that_dies_is_told_of():
    batches = load(dataclasses.replace(WORLD, processes=1)).batches(0, 10_000)
    next(batches)
    [child] = multiprocessing.active_children()
    child.kill()
    with pytest.raises(ChildProcessError, match=r"use fewer --data\.processes"):
        collections.deque(batches, maxlen=0)
    assert multiprocessing.active_children() == []


@pytest.mark.thorough
def test_processes_count_what_they_replace_and_pass_errors_on(tmp_path):
    for i in range(40):
        write_clip(tmp_path, f"{i:02}")
    cfg = DataConfig(source=str(tmp_path), num_frames=5, height=16, width=16, batch_size=4)
    loader = load(dataclasses.replace(cfg, processes=1, prefetch=1))
    order = [batch.captions for batch in load(cfg).batches(0, 20)]
    batches = loader.batches(0, 20)
    next(batches)  # so that the process has seen all clips whole
    late = order[9][0]  # of the last batch of an epoch
    (tmp_path / f"{late}.mp4").write_bytes(b"broken")
    lost = 0
    for batch, expected in zip(batches, order[1:], strict=True):
        lost += sum(a != b for a, b in zip(batch.captions, expected, strict=True))
    assert loader.replaced == lost == 2  # in two epochs
    for path in tmp_path.glob("*.mp4"):
        path.unlink()
    with pytest.raises(ValueError, match="holds no clip"):
        next(loader.batches(0, 1))


@pytest.mark.thorough
def test_processes_end_with_their_parent():
    program = """
import dataclasses, multiprocessing, os, signal
from ltx_jax.config import DataConfig
from ltx_jax.data.loader import Loader
if __name__ == "__main__":
    cfg = DataConfig(num_frames=5, height=16, width=16, batch_size=2, processes=2)
    next(batches := Loader(cfg, (("none", 1.0),), 0).batches(0, 100_000))
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    children = [int(number) for number in result.stdout.split()]
    assert len(children) == 2
    deadline = time.monotonic() + 20
    while alive := [child for child in children if pathlib.Path(f"/proc/{child}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


@pytest.mark.thorough
@pytest.mark.parametrize("grain", [True, False], ids=["grain", "threads"])
def test_an_iterator_that_is_left_early_leaves_no_threads(monkeypatch, grain):
    if not grain:
        monkeypatch.setitem(sys.modules, "grain", None)
    others = set(threading.enumerate())
    batches = load().batches(0, 10_000)
    next(batches)
    readers = set(threading.enumerate()) - others
    assert readers
    batches.close()
    for thread in readers:
        thread.join(timeout=10)
        assert not thread.is_alive()


@pytest.mark.thorough
@pytest.mark.parametrize("left", [0, 1000])
@pytest.mark.parametrize("grain", [True, False], ids=["grain", "threads"])
def test_a_process_ends_though_an_iterator_is_left_open(grain, left):
    program = f"""
import sys
{"" if grain else "sys.modules['grain'] = None"}
from ltx_jax.config import DataConfig
from ltx_jax.data.loader import Loader
cfg = DataConfig(num_frames=5, height=16, width=16, batch_size=2)
batches = Loader(cfg, (("none", 1.0),), 0).batches(0, 1 + {left})
print(*next(batches).frames.shape)
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=40,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_clips_that_break_later_are_replaced_counted_and_named(clips, caplog):
    whole = list(load(clips).batches(0, 9))
    loader, alone = load(clips), load(clips)
    broken = pathlib.Path(clips.source) / "07.mp4"
    broken.write_bytes(broken.read_bytes()[:300])  # after the clips were checked
    lost = 0
    for step, (batch, expected) in enumerate(zip(loader.batches(0, 9), whole, strict=True)):
        check_same(batch, alone.batch(step))  # also where the order of reading is another
        for caption, old in zip(batch.captions, expected.captions, strict=True):
            assert (caption != old) == (old == "07")
            lost += old == "07"
    assert lost == 3  # epochs of twelve, 36 examples
    assert loader.replaced == alone.replaced == lost
    assert "07.mp4" in caplog.text
    gone = load(clips)
    for path in pathlib.Path(clips.source).glob("*.mp4"):
        path.unlink()
    with pytest.raises(
        ValueError, match=r"8 examples in a row cannot be read; .* there is no file"
    ):
        gone.batch(0)


def test_a_clip_fits_where_it_is_long_enough_and_little_is_cut_off(tmp_path, caplog):
    write_clip(tmp_path, "short", frames=6)
    write_clip(tmp_path, "long", frames=20)
    write_clip(tmp_path, "wide", frames=20, width=64)
    writing.write_image(tmp_path / "picture.png", np.zeros((16, 16, 3), np.uint8))
    (tmp_path / "picture.txt").write_text("picture")
    square, wide = BucketConfig(9, 16, 16, 2), BucketConfig(17, 16, 48, 2)
    single = BucketConfig(1, 16, 16, 2)

    def seen(buckets, **settings):
        loader = load(DataConfig(source=str(tmp_path), buckets=buckets, **settings))
        found = {size: set() for size in buckets}
        for step in range(12):
            batch = loader.batch(step)
            found[batch.bucket].update(batch.captions)
        return list(found.values())

    assert seen((square,)) == [{"long"}]
    assert "short.mp4 is too short: 6 frames, and 9 are needed" in caplog.text
    assert (
        "wide.mp4 is 64 x 16: every bucket cuts off more than max_crop = 0.5 of it" in caplog.text
    )
    assert "3 of 4 clips are left out" in caplog.text
    assert seen((square, wide)) == [{"long"}, {"wide"}]
    assert seen((square, wide), max_crop=0.8) == [{"long", "wide"}, {"long", "wide"}]
    # At twice the rate a clip has twice the frames.
    assert seen((square,), resample=20.0) == [{"long", "short"}]
    # Buckets of one frame take pictures, or clips if there are no pictures.
    assert seen((square, single)) == [{"long"}, {"picture"}]
    (tmp_path / "picture.png").unlink()
    assert seen((square, single)) == [{"long"}, {"long", "short"}]
    with pytest.raises(ValueError, match=r"none of 3 clips can be used; the first: .*too short"):
        load(DataConfig(source=str(tmp_path), num_frames=25, height=16, width=16))
    with pytest.raises(ValueError, match=r"no example of .* fits the bucket 25 x 16 x 16"):
        seen((square, BucketConfig(25, 16, 16, 2)))


def test_clips_are_cut_from_the_start_and_the_centre_unless_told_otherwise(tmp_path):
    write_clip(tmp_path, "a", frames=20)
    pixels = np.zeros((12, 16, 48, 3), np.uint8)
    pixels[:] = np.arange(48, dtype=np.uint8)[:, None] * 5
    cfg = DataConfig(source=str(tmp_path), num_frames=5, height=16, width=16, batch_size=1)

    def firsts(**settings):
        loader = load(dataclasses.replace(cfg, **settings))
        batches = [loader.batch(step).frames[0] for step in range(30)]
        # Frame i has the level 8 (i + 1); H.264 preserves flat levels to within 2.
        levels = np.array([batch.mean(axis=(1, 2, 3)) for batch in batches]) / 8 - 1
        np.testing.assert_allclose(np.diff(levels), 1, atol=0.5)
        return set(np.round(levels[:, 0]).astype(int).tolist())

    assert firsts() == {0}
    starts = firsts(random_start=True)
    assert len(starts) > 8
    assert min(starts) >= 0
    assert max(starts) <= 15

    writing.write_video(tmp_path / "a.mp4", pixels, 10)

    def columns(**settings):
        loader = load(dataclasses.replace(cfg, max_crop=0.7, **settings))
        found = [loader.batch(step).frames[0].mean(axis=(0, 1, 3)) for step in range(30)]
        slope = np.array([np.polyfit(np.arange(16), row, 1)[0] for row in found])
        left = np.array([row[0] for row in found]) / 5
        return left, slope

    left, slope = columns()
    np.testing.assert_allclose(left, 16, atol=1)
    np.testing.assert_allclose(slope, 5, atol=0.5)  # never mirrored
    left, slope = columns(random_crop=True)
    assert left.min() > -1
    assert left.max() < 33
    assert np.ptp(left) > 20
    np.testing.assert_allclose(slope, 5, atol=0.5)
    left, slope = columns(flip=True)
    assert 5 < np.sum(slope < 0) < 25  # 30 draws of a half
    np.testing.assert_allclose(np.abs(slope), 5, atol=0.5)


def test_clips_are_resampled_by_time_and_their_rate_travels_with_them(tmp_path):
    write_clip(tmp_path, "a", frames=20, fps=10)
    write_clip(tmp_path, "b", frames=20, fps=20)
    cfg = DataConfig(source=str(tmp_path), num_frames=5, height=16, width=16, batch_size=2)
    batch = load(cfg).batch(0)
    assert dict(zip(batch.captions, batch.frame_rate.tolist(), strict=True)) == {"a": 10, "b": 20}
    batch = load(dataclasses.replace(cfg, resample=5.0)).batch(0)
    assert batch.frame_rate.tolist() == [5, 5]
    for caption, frames in zip(batch.captions, batch.frames, strict=True):
        step = {"a": 2, "b": 4}[caption]
        levels = 8 * (1 + step * np.arange(5))
        np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), levels, atol=2)


def test_the_world_deals_its_clips_to_the_buckets():
    cfg = DataConfig(
        buckets=(BucketConfig(5, 16, 16, 8), BucketConfig(5, 24, 16, 8)), frame_rates=(12.0, 30.0)
    )
    batches = list(load(cfg).batches(0, 8))
    assert len({batch.bucket for batch in batches}) == 2
    captions = [caption for batch in batches for caption in batch.captions]
    assert len(set(captions)) > 60  # two of 64 may read alike
    rates = np.concatenate([batch.frame_rate for batch in batches])
    assert set(rates.tolist()) == {12, 30}
    assert 16 < np.sum(rates == 12) < 48  # 64 draws of a half


def test_a_batch_that_cannot_be_shared_is_refused():
    cfg = DataConfig(batch_size=6)
    with pytest.raises(ValueError, match="a batch of 6 cannot be split over 4 processes"):
        load(cfg, process_count=4)


@pytest.mark.thorough
def test_the_world_needs_numpy_alone():
    program = """
import sys
for name in ("av", "grain", "tensorflow_datasets", "array_record", "PIL", "jax"):
    sys.modules[name] = None
from ltx_jax.config import DataConfig
from ltx_jax.data.loader import Loader
cfg = DataConfig(num_frames=5, height=16, width=16, batch_size=2)
print(*next(Loader(cfg, (("none", 1.0),), 0).batches(0, 1)).frames.shape)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.stdout.split() == ["2", "5", "16", "16", "3"], result.stderr
