"""Files of emoji become a data set, and the data set a source of training data."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from emoji_files import FILES, SIDE, circling, disc, webp, write_packages, write_set

from ltx_jax.config import BucketConfig, DataConfig
from ltx_jax.data import dataset
from ltx_jax.data.loader import Loader, open_source
from ltx_jax.data.sources import Source
from ltx_jax.evaluate import clip_reader
from ltx_jax.prepare import __main__ as command
from ltx_jax.prepare import emoji

ROOT = pathlib.Path(__file__).parents[1]
BUCKETS = (BucketConfig(9, 32, 32, 4, weight=0.6), BucketConfig(1, 32, 48, 4, weight=0.4))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("emoji"))


def records_of(source):
    records = dataset.DatasetReader(source.removeprefix("emoji:"))
    return [records[i] for i in range(len(records.index))]


def test_a_clip_shows_at_each_time_what_the_file_shows():
    levels = np.arange(1, 73, dtype=np.uint8)
    frames = np.full((72, 8, 8, 4), 255, np.uint8)
    frames[..., :3] = 3 * levels[:, None, None, None]
    clip = emoji.read_clip(webp(frames), 8)
    # 72 frames of 42 ms are 3.024 s: 37 beginnings of twelfths of a second.
    expected = 3 * levels[(np.arange(37) / 12 / 0.042 + 1e-3).astype(int)]
    np.testing.assert_array_equal(clip[:, 4, 4, 0], expected)
    durations = [500, 20, 20, 60, 400]
    clip = emoji.read_clip(webp(frames[:5], durations), 8)
    ends = np.cumsum(durations)
    shown = [int(np.searchsorted(ends, 1000 * i / 12 + 1e-3, side="right")) for i in range(12)]
    np.testing.assert_array_equal(clip[:, 4, 4, 0], 3 * levels[shown])


def test_a_picture_is_one_frame():
    assert emoji.read_clip(webp(disc((9, 9, 9), [(32, 32)])), 16).shape == (1, 16, 16, 4)


def test_edges_are_multiplied_by_alpha_and_take_nothing_from_hidden_colours():
    frames = disc((200, 100, 50), [(32, 32)])
    hidden = frames.copy()
    hidden[frames[..., 3] == 0] = (0, 255, 255, 0)
    clip = emoji.read_clip(webp(hidden), SIDE // 2)
    np.testing.assert_array_equal(clip, emoji.read_clip(webp(frames), SIDE // 2))
    assert (clip[..., :3] <= clip[..., 3:]).all()
    soft = clip[(clip[..., 3] > 32) & (clip[..., 3] < 224)].astype(float)
    assert len(soft) > 20
    for channel, value in enumerate((200, 100, 50)):
        # Four roundings to whole levels.
        np.testing.assert_allclose(soft[:, channel], value * soft[:, 3] / 255, atol=2)


def test_the_set_holds_what_has_a_name_and_is_no_picture_of_a_flag(source):
    found = {example["hexcode"].decode(): example for example in records_of(source)}
    names = {name.replace("-fe0f", "") for name in FILES} - {"1f1f3-1f1f4", "1f9ff"}
    assert set(found) == names
    surfer = found["1f3c4-1f3fe-200d-2640"]
    assert surfer["label"].decode() == "woman surfing: medium-dark skin tone"
    assert surfer["thing"].decode() == "woman surfing"
    assert [tag.decode() for tag in surfer["tags"]] == ["ocean", "waves"]
    assert (surfer["group"], surfer["subgroup"]) == (b"people-body", b"person-sport")
    assert (surfer["tone"], surfer["base"]) == (4, b"1f3c4-200d-2640")
    assert surfer["clip"].shape == (surfer["frames"], SIDE, SIDE, 4)
    provenance = json.loads(surfer["provenance"])
    assert provenance["file"].endswith("1f3c4-1f3fe-200d-2640-fe0f.webp")
    assert provenance["package"].startswith("@drawn/clips-")
    # The disc goes round the middle at a distance of 12, its radius is 14.
    np.testing.assert_allclose(surfer["box"], [6 / 64, 6 / 64, 58 / 64, 58 / 64], atol=1.5 / 64)


def test_preparation_goes_on_where_it_was_stopped(tmp_path, monkeypatch, source):
    monkeypatch.setattr(emoji, "_SHARD", 2)
    clips, names = write_packages(tmp_path)
    settings = {"size": SIDE, "packages": tmp_path, "clips": clips, "names": names}
    emoji.prepare(tmp_path / "whole", **settings)

    class KilledError(Exception): ...

    def stop(number, *_):
        read.append(number)
        if len(read) == 6:
            raise KilledError
        return real(number, *_)

    real, read = emoji.read_clip, []
    monkeypatch.setattr(emoji, "read_clip", stop)
    with pytest.raises(KilledError):
        emoji.prepare(tmp_path / "parts", **settings)
    done = sorted((tmp_path / "parts").glob("part-*.array_record"))
    assert 1 <= len(done) < 5
    read = [None] * 6
    emoji.prepare(tmp_path / "parts", **settings)
    assert len(read) - 6 == len(FILES) - 2 * len(done)  # no file is read again
    one, other = (records_of(str(tmp_path / name)) for name in ("whole", "parts"))
    assert len(one) == len(records_of(source))
    for a, b in zip(one, other, strict=True):
        assert a["hexcode"] == b["hexcode"]
        np.testing.assert_array_equal(a["clip"], b["clip"])
    emoji.prepare(tmp_path / "parts", **settings)  # of a finished one nothing is left to do
    with pytest.raises(ValueError, match="choose another folder"):
        emoji.prepare(tmp_path / "parts", **(settings | {"size": 32}))


@pytest.mark.slow
def test_preparation_survives_a_kill(tmp_path):
    clips, names = write_packages(tmp_path)
    program = (
        "import pathlib, sys, time; from ltx_jax.prepare import emoji; from emoji_files import *\n"
        "folder = pathlib.Path(sys.argv[1]); emoji._SHARD = 1; real = emoji.read_clip\n"
        "def slowly(*a):\n    time.sleep(0.3); return real(*a)\n"
        "emoji.read_clip = slowly\n"
        f"emoji.prepare(folder / 'set', size=64, packages=folder, clips={clips!r}, "
        f"names={names!r})\n"
    ).replace("Package(", "emoji.Package(")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    begun = [sys.executable, "-c", program, str(tmp_path)]
    process = subprocess.Popen(begun, env=environment)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "set").glob("part-*2.array_record")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "set/index.npy").exists()
    subprocess.run(begun, env=environment, check=True)
    emoji.prepare(tmp_path / "other", size=64, packages=tmp_path, clips=clips, names=names)
    one, other = (records_of(str(tmp_path / name)) for name in ("set", "other"))
    assert [a["hexcode"] for a in one] == [b["hexcode"] for b in other]
    assert all(np.array_equal(a["clip"], b["clip"]) for a, b in zip(one, other, strict=True))


def test_another_tarball_of_the_same_name_is_refused(tmp_path):
    clips, names = write_packages(tmp_path)
    path = tmp_path / clips[0].tarball
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"clips-0-1\.0\.0\.tgz has the hash sha512-.*delete"):
        emoji.prepare(tmp_path / "set", packages=tmp_path, clips=clips, names=names)


def test_what_npm_cannot_bring_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert command.main(["emoji", "--output", str(tmp_path / "set")]) == 2
    with pytest.raises(
        ValueError, match=r"npm, which fetches emojibase-data@17\.0\.0, is not installed"
    ):
        emoji.fetch(emoji.NAMES, tmp_path)


def test_npm_pack_is_asked_for_the_missing_package(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    _, names = write_packages(tmp_path / "there")
    script = tmp_path / "npm"
    script.write_text(
        f'#!/bin/sh\n[ "$1 $5" = "pack names@1.0.0" ] && '
        f'cp "{tmp_path}/there/{names.tarball}" "$4"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = emoji.fetch(names, tmp_path / "here")
    assert path.read_bytes() == (tmp_path / "there" / names.tarball).read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [names.tarball]
    with pytest.raises(ValueError, match=r"npm could not fetch other@1\.0\.0"):
        emoji.fetch(names._replace(name="other"), tmp_path / "here")


def test_the_source_is_one_without_end(source):
    cfg = DataConfig(source=source, buckets=BUCKETS, frame_rates=(12.0,))
    opened = open_source(source, cfg, 0)
    assert isinstance(opened, Source)
    assert [opened.count(bucket) for bucket in BUCKETS] == [None, None]


def test_a_batch_is_a_function_of_seed_and_step(source):
    cfg = DataConfig(source=source, buckets=BUCKETS, frame_rates=(12.0, 24.0))
    patterns = (("none", 1.0),)
    loader = Loader(cfg, patterns, 3)
    batches = list(loader.batches(0, 6))
    assert {batch.bucket for batch in batches} == set(BUCKETS)
    again = [Loader(cfg, patterns, 3).batch(step) for step in range(6)]
    for one, other in zip(batches, again, strict=True):
        assert one.captions == other.captions
        np.testing.assert_array_equal(one.frames, other.frames)
    captions = [caption for batch in batches for caption in batch.captions]
    assert len(set(captions)) > 20
    assert Loader(cfg, patterns, 4).batch(0).captions != batches[0].captions


def test_processes_draw_the_same(source):
    cfg = DataConfig(source=source, buckets=BUCKETS, frame_rates=(12.0,))
    patterns = (("none", 1.0),)
    parallel = dataclasses.replace(cfg, processes=1)
    drawn = list(Loader(parallel, patterns, 3).batches(2, 4))
    for step, batch in zip((2, 3), drawn, strict=True):
        np.testing.assert_array_equal(batch.frames, Loader(cfg, patterns, 3).batch(step).frames)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{source}@test", "no split 'test'; known are train, combinations, tones, bases"),
        ("emoji:{folder}/nothing", "is incomplete"),
    ],
)
def test_a_source_that_is_none_is_refused(source, tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        open_source(name.format(source=source, folder=tmp_path), DataConfig(), 0)


def test_evaluation_reads_clips_and_pictures_of_a_split(source):
    cut = clip_reader.ClipFormat(9, 32, 32, 8)
    clips = list(clip_reader.read_clips(f"{source}@combinations", cut, limit=2, skipped=[]))
    assert [clip.frames.shape for clip in clips] == [(9, 32, 32, 3)] * 2 + [(1, 32, 32, 3)] * 2
    assert {clip.frame_rate for clip in clips} == {12.0}
    assert len({clip.frames.tobytes() for clip in clips}) == 4


def test_every_frame_of_the_loop_differs():
    """What other tests rely on."""
    frames = circling((9, 9, 9))
    assert len({frame.tobytes() for frame in frames}) == len(frames)
