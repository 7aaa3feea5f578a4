"""Data preparation: kept clips are right, and every dropped clip is listed with its reason."""

import csv
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from importlib.util import find_spec

import av
import numpy as np
import pytest
from kills import number_of_kills

pytest.importorskip("apache_beam", reason="needs the extra `prepare`: pip install '.[prepare]'")

from benchmarks import synthetic_videos
from ltx_jax import config
from ltx_jax.checkpoints import lock
from ltx_jax.config import (
    BucketConfig,
    DataConfig,
    DuplicatesConfig,
    PrepareConfig,
    StoreConfig,
    TextConfig,
)
from ltx_jax.data import dataset, inputs, video, writing
from ltx_jax.data.loader import Loader
from ltx_jax.prepare import __main__ as command
from ltx_jax.prepare import beam_pipeline, clip_table, examine, input_files
from ltx_jax.prepare.records import ClipRecord, Reason
from ltx_jax.world import render

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/prepare/clips.py")
CFG = PrepareConfig(store=StoreConfig(min_side=32, shard_megabytes=1))
SIZE = {"height": 90, "width": 160}


def examples(path):
    """Provenance, captions and file of every clip in a data set, by name."""
    records = dataset.DatasetReader(path)
    found = {}
    for i in range(len(records.index)):
        example = records[i]
        provenance = json.loads(example["provenance"])
        captions = [caption.decode() for caption in example["captions"]]
        found[provenance["name"]] = (provenance, captions, example["media"])
    assert len(found) == len(records.index)
    return found


def dropped(path):
    with open(path / "dropped.csv", encoding="utf-8", newline="") as file:
        return [(pathlib.Path(row["source"]).name, row) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Films with known ground truth: cuts, bars, a still, a copy; and a file that is no video."""
    made = synthetic_videos.VideoSet(tmp_path_factory.mktemp("raw"), 3, **SIZE)
    made.cut("cuts0", fades=False, flashes=False)
    made.bars("letterbox")
    made.take("still", moves=False)
    made.take("pan", moves=True)
    made.copy(made.films[-1], "enlarged")
    (made.folder / "broken.mp4").write_bytes(b"no video")
    return made


@pytest.fixture(scope="module")
def prepared(films, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "set"
    command.prepare(CFG, [str(films.folder)], output)
    return output


@pytest.mark.thorough
def test_clips_are_cut_cropped_and_stored_with_their_provenance(films, prepared):
    cuts, bars, _, pan, copy = films.films
    found = examples(prepared)
    starts = [known["start"] for known, *_ in found.values() if known["source"] == str(cuts.path)]
    for cut in cuts.cuts:
        assert min(abs(start - cut) for start in starts) < 0.1
    [(known, captions, content)] = [
        value for value in found.values() if value[0]["source"] == str(bars.path)
    ]
    top, bottom, _, _ = bars.bars
    assert abs(known["crop"][0] - top) <= 2
    assert abs(90 - bottom - known["crop"][0] - known["crop"][2]) <= 2
    facts = video.probe(inputs.Stored("clip", content))
    assert abs(facts.height - (90 - top - bottom)) <= 4
    assert facts.frame_rate == pytest.approx(known["source_rate"], rel=1e-3)
    assert facts.frames == pytest.approx(known["seconds"] * facts.frame_rate, abs=1)
    assert captions == ["synthetic video, letterbox"]
    assert known["motion"] > CFG.min_motion
    assert len(known["hashes"]) == 4
    # The larger one of a clip and its enlarged copy is kept.
    names = {known["source"] for known, *_ in found.values()}
    assert str(copy.path) in names
    assert str(pan.path) not in names


@pytest.mark.thorough
def test_pixels_are_those_of_the_source(films, prepared):
    """The stored frames are those of the shot; H.264 at crf 18 changes them by a few levels."""
    cuts = films.films[0]
    for known, _, content in examples(prepared).values():
        if known["source"] != str(cuts.path):
            continue
        stored, _ = video.read_video(inputs.Stored("clip", content))
        frames, _ = video.read_video(cuts.path, start=known["start"], num_frames=len(stored))
        top, left, height, width = known["crop"]
        kept = frames[:, top : top + height, left : left + width][:, : stored.shape[1]]
        assert np.abs(stored.astype(float) - kept[:, :, : stored.shape[2]]).mean() < 4


@pytest.mark.thorough
def test_what_is_dropped_is_named_with_its_reason(films, prepared):
    rows = dict(dropped(prepared))
    assert rows["broken.mp4"]["reason"] == "unusable file"
    assert rows[films.films[2].path.name]["reason"] == "no motion"
    assert float(rows[films.films[2].path.name]["motion"]) < CFG.min_motion
    assert rows[films.films[3].path.name]["reason"] == "duplicate"
    assert films.films[4].path.name in rows[films.films[3].path.name]["detail"]
    page = (prepared / "report.html").read_text()
    for text in ("Kept", "Dropped: no motion", "Dropped: duplicate", "threshold 0.45", "<svg"):
        assert text in page
    assert page.count("data:image/jpeg") >= 3


@pytest.mark.thorough
def test_the_loader_reads_what_was_written(prepared):
    data = DataConfig(source=str(prepared), buckets=(BucketConfig(9, 64, 96, 2),))
    batch = Loader(data, (("none", 1.0),), 0).batch(0)
    assert batch.frames.shape == (2, 9, 64, 96, 3)
    assert all(caption for caption in batch.captions)


def test_tables_and_archives_are_prepared_with_the_other_columns_of_their_rows(films, tmp_path):
    pan = films.films[3].path
    columns = {
        "file_name": [str(pan), "gone.mp4", "https://host/a.mp4"],
        "text": [["one", "two"], "three", "four"],
        "licence": ["CC0", None, ""],
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    with tarfile.open(tmp_path / "000.tar", "w") as tar:
        tar.add(pan, "a/0.mp4")
        (tmp_path / "0.json").write_text(json.dumps({"caption": "packed", "licence": "CC BY"}))
        tar.add(tmp_path / "0.json", "a/0.json")
    cfg = dataclasses.replace(CFG, duplicates=DuplicatesConfig(drop=False))
    inputs_of_run = [str(tmp_path / "mine.json"), str(tmp_path / "{000..000}.tar")]
    command.prepare(cfg, inputs_of_run, tmp_path / "set")
    archive = str(tmp_path / "000.tar/a/0.mp4")
    found = {
        known["source"]: (known, texts) for known, texts, _ in examples(tmp_path / "set").values()
    }
    assert {source: texts for source, (_, texts) in found.items()} == {
        str(pan): ["one", "two"],
        archive: ["packed"],
    }
    licences = [found[source][0]["row"] for source in (str(pan), archive)]
    assert licences == [{"licence": "CC0"}, {"licence": "CC BY"}]
    digests = {known["digest"] for known, _ in found.values()}
    assert digests == {hashlib.sha256(pan.read_bytes()).hexdigest()}
    rows = [(name, row["reason"], row["detail"]) for name, row in dropped(tmp_path / "set")]
    assert ("gone.mp4", "unusable file", "there is no such file") in rows
    [url] = [detail for name, _, detail in rows if name == "mine.json"]
    assert "row 3 names https://host/a.mp4: download it" in url


@pytest.mark.thorough
def test_a_caption_that_changed_is_noticed(films, tmp_path):
    pan = films.films[3].path
    for path in (pan, pan.with_suffix(".txt")):
        shutil.copy(path, tmp_path)
    command.prepare(CFG, [str(tmp_path / "*.mp4")], tmp_path / "set")
    (tmp_path / pan.with_suffix(".txt").name).write_text("another caption")
    with pytest.raises(ValueError, match=r"was begun with inputs_key = .*: choose another folder"):
        command.prepare(CFG, [str(tmp_path / "*.mp4")], tmp_path / "set")


@pytest.mark.thorough
def test_a_finished_set_is_left_alone(films, prepared):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    command.prepare(CFG, [str(films.folder)], prepared)
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before
    with pytest.raises(ValueError, match=r"settings\.min_motion = [\d.]+, and now it is null:"):
        command.prepare(dataclasses.replace(CFG, min_motion=None), [str(films.folder)], prepared)


@pytest.mark.thorough
def test_preparing_changes_no_setting_of_logging(films, prepared):
    logging.disable(logging.INFO)
    try:
        command.prepare(CFG, [str(films.folder)], prepared)
        assert logging.root.manager.disable == logging.INFO
        assert not logging.root.filters
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.thorough
def test_a_stopped_run_goes_on_without_doing_anything_twice(films, prepared, tmp_path, monkeypatch):
    calls, real = [], beam_pipeline.clip_video.write_clips

    def fail_the_second_time(path, clips, store):
        calls.append([clip.name for clip in clips])
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        real(path, clips, store)

    monkeypatch.setattr(beam_pipeline.clip_video, "write_clips", fail_the_second_time)
    with pytest.raises(BaseException):  # noqa: B017, PT011  (Beam wraps it)
        command.prepare(CFG, [str(films.folder)], tmp_path / "set")
    examined = []
    monkeypatch.setattr(beam_pipeline, "examine", lambda *given: examined.append(given))
    command.prepare(CFG, [str(films.folder)], tmp_path / "set")
    assert examined == []
    assert calls[0] not in calls[1:]
    assert examples(tmp_path / "set") == examples(prepared)
    assert dropped(tmp_path / "set") == dropped(prepared)


def write(path, frames, rate, *, codec="libx264", form="yuv420p", options=None, container=None):
    """Writes a file in any codec and pixel format."""
    with av.open(os.fspath(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = form
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=form)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def sound(path):
    with av.open(os.fspath(path), "w") as file:
        stream = file.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        file.mux([*stream.encode(frame), *stream.encode()])


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A folder with one unusual file of each kind."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(5)

    def frames(count, height=90, width=160, rate=25.0):
        found = synthetic_videos.take("pan", rng, count, height, width, rate)
        return [np.round(frame).astype(np.uint8) for frame in found]

    interlaced = {"codec": "mpeg2video", "options": {"flags": "+ildct+ilme"}}
    write(folder / "ten_bits.mp4", frames(40), 25, form="yuv420p10le")
    write(folder / "fast.mp4", frames(300, rate=240), 240)
    write(folder / "slow.mp4", frames(4, rate=1), 1)
    write(folder / "one_frame.mp4", frames(1), 25)
    write(folder / "alpha.mkv", frames(30), 25, codec="ffv1", form="bgra")
    write(folder / "interlaced.mkv", frames(30), 25, **interlaced)
    write(folder / "is_mkv.mp4", frames(40), 25, container="matroska")
    write(folder / "tiny.mp4", frames(30, 16, 24), 25)
    write(folder / "black.mp4", [np.zeros((90, 160, 3), np.uint8)] * 30, 25)
    big = frames(1, 540, 960)[0].repeat(8, 0).repeat(8, 1)
    moved = [np.roll(big, 240 * i, 1) for i in range(9)]
    write(folder / "big.mp4", moved, 8, codec="mpeg4", options={"qscale": "8"})
    writing.write_image(folder / "picture.png", frames(1)[0])
    (folder / "picture.png").rename(folder / "picture.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("a letter")
    sound(folder / "sound.m4a")
    write(folder / "cut_off.mp4", frames(60), 25)
    whole = (folder / "cut_off.mp4").read_bytes()
    (folder / "cut_off.mp4").write_bytes(whole[: len(whole) // 2])
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text(f"an odd file, {path.stem}")
    for name in ("no_caption", "latin", "blank"):
        write(folder / f"{name}.mp4", frames(40), 25)
    (folder / "latin.txt").write_bytes("gr\u00f6\u00dfer".encode("latin-1"))
    (folder / "blank.txt").write_text(" \n")
    (folder / "gone.txt").write_text("a file that is not there")
    names = sorted(str(path) for path in folder.iterdir() if path.suffix != ".txt")
    (folder / "list.txt").write_text("\n".join([*names, str(folder / "gone.mp4")]))
    return folder


@pytest.mark.thorough
def test_odd_files_are_handled_or_dropped_with_a_reason(odd, tmp_path):
    cfg = dataclasses.replace(CFG, text=TextConfig(max_share=None))
    command.prepare(cfg, [f"@{odd / 'list.txt'}"], tmp_path / "set")
    kept = {
        pathlib.Path(known["source"]).stem: content
        for known, _, content in examples(tmp_path / "set").values()
    }
    assert set(kept) == {"ten_bits", "fast", "is_mkv", "big"}
    facts = video.probe(inputs.Stored("fast", kept["fast"]))
    assert facts.frame_rate == pytest.approx(60, rel=1e-3)
    facts = video.probe(inputs.Stored("big", kept["big"]))
    assert (facts.height, facts.width) == (1080, 1920)
    reasons = {
        name.partition(".")[0]: (row["reason"], row["detail"])
        for name, row in dropped(tmp_path / "set")
    }
    expected = {
        "slow": ("frame rate too low", "1 frames per second, under 8"),
        "one_frame": ("too short", "0.04 s"),
        "alpha": ("unusable pictures", "transparent"),
        "interlaced": ("unusable pictures", "interlaced"),
        "tiny": ("picture too small", "24 x 16"),
        "black": ("no motion", "all of it is black"),
        "picture": ("unusable file", "it is a still image"),
        "empty": ("unusable file", "0 bytes"),
        "text": ("unusable file", "is not a video"),
        "sound": ("unusable file", "no video stream, only audio"),
        "cut_off": ("unusable file", "damaged"),
        "gone": ("unusable file", "there is no such file"),
        "no_caption": ("no caption", "there is no file no_caption.txt"),
        "latin": ("no caption", "cannot be read as UTF-8"),
        "blank": ("no caption", "is empty"),
    }
    for name, (reason, detail) in expected.items():
        found = reasons.pop(name)
        assert found[0] == reason, name
        assert detail in found[1], name
    assert not reasons


@pytest.mark.thorough
def test_what_must_not_be_read_is_named_in_the_table(films, tmp_path, monkeypatch):
    """A file and a whole folder without read permission, beside readable files."""
    raw, locked = tmp_path / "raw", tmp_path / "raw" / "locked"
    locked.mkdir(parents=True)
    pan = films.films[3].path
    for path in (pan, pan.with_suffix(".txt")):
        shutil.copy(path, raw)
    for place in (raw, locked):
        shutil.copy(films.films[1].path, place / "secret.mp4")
    (raw / "secret.mp4").chmod(0)
    locked.chmod(0)
    if os.access(locked, os.R_OK):  # root may read anything
        scan = os.scandir

        def refuse(path):
            if str(path).rstrip(os.sep) in (str(locked), str(raw / "secret.mp4")):
                raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", lambda path: refuse(path) or scan(path))
        digest = beam_pipeline.file_digest
        monkeypatch.setattr(beam_pipeline, "file_digest", lambda path: refuse(path) or digest(path))
    try:
        command.prepare(CFG, [str(raw)], tmp_path / "set")
        command.prepare(CFG, [str(raw / "**" / "*.mp4")], tmp_path / "pattern")
    finally:
        locked.chmod(0o700)
    for output in ("set", "pattern"):
        assert len(examples(tmp_path / output)) == 1
        rows = [(name, row["reason"], row["detail"]) for name, row in dropped(tmp_path / output)]
        told = ("unusable file", "it cannot be read: Permission denied")
        assert sorted(rows) == [("locked", *told), ("secret.mp4", *told)]


def test_a_name_with_brackets_is_no_pattern(tmp_path):
    """yt-dlp writes video ids in brackets, and a shell expands patterns to such names."""
    for name in ("talk [dQw4w9Wg].mp4", "clip 1.mp4", "clip [1].mp4"):
        (tmp_path / name).touch()
    for name in ("talk [dQw4w9Wg].mp4", "clip [1].mp4"):
        [medium] = input_files.find([str(tmp_path / name)])
        assert medium.place == tmp_path / name
    assert len(input_files.find([str(tmp_path / "*.mp4")])) == 3


@pytest.mark.thorough
def test_black_stretches_take_no_memory(tmp_path, monkeypatch):
    black = np.zeros((60, 90, 160, 3), np.uint8)
    moving = render.clip(0, num_frames=60, **SIZE, motions=["right"]).frames
    writing.write_video(tmp_path / "late.mp4", np.concatenate([black, moving]), 25)
    kept, add = [], examine._Samples.add

    def noted(samples, *arguments):
        add(samples, *arguments)
        kept.append(len(samples._samples))

    monkeypatch.setattr(examine._Samples, "add", noted)
    [clip] = examine.examine(tmp_path / "late.mp4", CFG)
    assert clip.start == pytest.approx(60 / 25, abs=0.1)
    assert not clip.reason
    assert max(kept[:60]) == 1


@pytest.mark.thorough
def test_a_caption_is_no_input_of_its_own(odd, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(beam_pipeline, "run", lambda plan, media, *how: found.extend(media))
    monkeypatch.setattr(beam_pipeline, "finish", lambda plan: None)
    command.prepare(CFG, [str(odd / "*")], tmp_path / "set")
    names = {medium.place.name for medium in found}
    assert "latin.mp4" in names
    assert "latin.txt" not in names
    assert "gone.txt" in names  # nothing lies beside it: it is looked at, and named as unusable


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "{tmp}/none/*.mp4"], "matches no file"),
        (["--input", "@{tmp}/none/list"], "there is no file {tmp}/none/list"),
        (["--input", "x", "--text.detector", "nowhere:f"], "nowhere:f is no MODULE:FUNCTION"),
        pytest.param(
            ["--input", "x", "--captions.model", "{tmp}/none"],
            "captioner {tmp}/none cannot be loaded",
            marks=pytest.mark.skipif(not find_spec("torch"), reason="models need torch"),
        ),
        (["--input", "x", "--latents", CONFIG], "not a TrainTransformer"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path, capsys, arguments, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert command.main([CONFIG, "--output", str(tmp_path / "set"), *arguments]) == 2
    assert message.format(tmp=tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.thorough
def test_nothing_left_is_said_and_the_table_is_there(films, tmp_path, capsys):
    arguments = ["--input", str(films.folder / "broken.mp4"), "--output", str(tmp_path / "set")]
    assert command.main([CONFIG, *arguments]) == 2
    assert "there is no example to store" in capsys.readouterr().err
    assert [name for name, _ in dropped(tmp_path / "set")] == ["broken.mp4"]


def start(films, output, *options):
    arguments = [CONFIG, "--input", str(films.folder), "--output", str(output)]
    settings = ["--store.min-side", "32", "--store.shard-megabytes", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "ltx_jax.prepare", *arguments, *settings, *options],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors.decode()[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_kill_9_loses_and_doubles_nothing(workers, films, prepared, tmp_path):
    begin = time.monotonic()
    finish(start(films, tmp_path / "whole", "--workers", workers))
    whole = time.monotonic() - begin
    rng = np.random.default_rng(0)
    for _ in range(number_of_kills(5)):
        process = start(films, tmp_path / "set", "--workers", workers)
        time.sleep(whole * rng.uniform(0.3, 1))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finish(start(films, tmp_path / "set", "--workers", workers))
    assert examples(tmp_path / "set") == examples(prepared) == examples(tmp_path / "whole")
    assert dropped(tmp_path / "set") == dropped(prepared)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_one_line_from_any_number_of_workers(workers, films, tmp_path):
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path / "disk")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        process = start(films, tmp_path / "disk/set", "--workers", workers)
        error = process.communicate(timeout=500)[1].decode()
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path / "disk")], check=True)
    assert process.returncode == 2
    assert "No space left" in error
    assert error.count("\n") == 1, error


@pytest.mark.slow
def test_any_runner_makes_the_same_set(films, prepared, tmp_path):
    finish(start(films, tmp_path / "two", "--workers", "2"))
    assert examples(tmp_path / "two") == examples(prepared)
    module = "apache_beam.runners.portability.local_job_service_main"
    service = subprocess.Popen(
        [sys.executable, "-m", module, "--port", "0", "--port_file", str(tmp_path / "port")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        waited = time.monotonic() + 60
        while not (tmp_path / "port").exists() and time.monotonic() < waited:
            time.sleep(0.1)
        endpoint = f"localhost:{(tmp_path / 'port').read_text().strip()}"
        options = ["--runner=PortableRunner", f"--job_endpoint={endpoint}"]
        finish(start(films, tmp_path / "portable", "--", *options, "--environment_type=LOOPBACK"))
    finally:
        service.terminate()
        service.wait()
    assert examples(tmp_path / "portable") == examples(prepared)
    assert dropped(tmp_path / "portable") == dropped(prepared)


def test_the_config_of_the_documentation_holds_the_defaults():
    assert config.load(CONFIG) == PrepareConfig()


def test_a_name_that_is_no_utf8_is_dropped_and_stops_nothing(films, tmp_path):
    shutil.copytree(films.folder, tmp_path / "raw")
    os.rename(tmp_path / "raw" / "broken.mp4", os.fsencode(tmp_path / "raw") + b"/\xff.mp4")
    (tmp_path / "raw" / "loop.mp4").symlink_to(tmp_path / "raw" / "loop.mp4")
    (tmp_path / "raw" / "circle").symlink_to(tmp_path / "raw")
    command.prepare(CFG, [str(tmp_path / "raw")], tmp_path / "set")
    reasons = {name: row["detail"] for name, row in dropped(tmp_path / "set")}
    assert reasons["\\xff.mp4"] == "its name is not UTF-8: rename it"
    assert "symbolic links" in reasons["loop.mp4"]
    assert len(examples(tmp_path / "set")) > 0


def test_a_changed_caption_is_noticed(films, tmp_path):
    for ending in (".mp4", ".txt"):
        shutil.copy(films.films[3].path.with_suffix(ending), tmp_path / f"pan{ending}")
    command.prepare(CFG, [str(tmp_path / "pan.mp4")], tmp_path / "set")
    command.prepare(CFG, [str(tmp_path / "pan.mp4")], tmp_path / "set")  # as it is
    (tmp_path / "pan.txt").write_text("another caption")
    with pytest.raises(ValueError, match="was begun with inputs_key = "):
        command.prepare(CFG, [str(tmp_path / "pan.mp4")], tmp_path / "set")


def test_two_runs_into_one_output_are_refused(films, tmp_path):
    (tmp_path / "set").mkdir()
    plan = beam_pipeline.PreparationPlan.make(
        CFG, input_files.find([str(films.folder)]), tmp_path / "set"
    )
    plan.open()
    with (
        lock.locked(tmp_path / "set", "--output"),
        pytest.raises(
            ValueError, match=f"set is being written by process {os.getpid()} .*--output"
        ),
    ):
        command.prepare(CFG, [str(films.folder)], tmp_path / "set")
    assert not (tmp_path / "set" / "lock").exists()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_the_table_is_a_formula(start, tmp_path):
    name = f"{start}cmd|' /C calc'!A0"
    clip = ClipRecord(source=name, number=-1, motion=-0.5).drop(Reason.FILE, name)
    clip_table.write_dropped(tmp_path / "dropped.csv", [clip])
    [(_, row)] = dropped(tmp_path)
    assert row["source"] == row["detail"] == f"'{name}"
    assert (row["number"], row["motion"]) == ("-1", "-0.5")  # numbers stay numbers


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_sentence(workers, films, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        with pytest.raises(ValueError, match=r"^cannot write .*No space left on device"):
            command.prepare(CFG, [str(films.folder)], disk / "set", workers=workers)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
