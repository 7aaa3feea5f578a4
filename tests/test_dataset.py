"""Data sets in ArrayRecord: rows are read as they were written, and a killed writer continues."""

import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ltx_jax.config import BucketConfig, DataConfig, SourceConfig
from ltx_jax.data import dataset, inputs, latent_cache, media, writing
from ltx_jax.data.loader import Loader, StoredLatents
from ltx_jax.data.sources import Encoding, Example
from ltx_jax.world import render

INDEX = np.dtype([("length", np.int32)])
TEXT = {"text": tfds.features.Text()}
ENCODING = Encoding(
    buckets=((9, 16, 16), (1, 32, 32)),
    vae="some/vae",
    vae_hash="0123",
    mean=(0.5, -1.0),
    std=(1.0, 2.0),
    text_encoder="some/t5",
    text_encoder_id="t5-45",
    tokenizer_id="t5",
    empty_embedding=((0.25, -3.0, 1.0),),
)


def hashes(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in pathlib.Path(folder).iterdir()
    }


def texts(start, count):
    return [({"text": f"text {i}"}, (i,)) for i in range(start, start + count)]


def start(folder, **description):
    return dataset.DatasetWriter(folder, "texts", TEXT, INDEX, {"made": [1, "two"]} | description)


def write(folder, lengths=(3, 2)):
    """A data set of texts, shard by shard."""
    shards = start(folder)
    for number, length in enumerate(lengths):
        if not shards.has(number):
            shards.write(number, texts(10 * number, length))
    shards.finish(len(lengths))


@pytest.fixture
def clips(tmp_path):
    """The same five clips, as a folder and as a data set."""
    folder, stored = tmp_path / "folder", tmp_path / "stored"
    folder.mkdir()
    rows = []
    for i in range(5):
        path = folder / f"{i}.mp4"
        clip = render.clip(i, num_frames=12, height=24, width=32)
        writing.write_video(path, clip.frames, 10 + i)
        path.with_suffix(".txt").write_text(f"clip {i}")
        medium = inputs.Stored(path.name, path.read_bytes())
        rows.append(dataset.clip_row(medium, [f"clip {i}"], {"source": "the world", "scene": i}))
    shards = dataset.DatasetWriter(stored, dataset.CLIPS, dataset.clip_features(), media.FACTS, {})
    shards.write(0, rows[:3])
    shards.write(1, rows[3:])
    shards.finish(2)
    return folder, stored


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float16)


def encoded(number, frames=2, keyframes=3, clips=1):
    """An example with latents; all arrays differ."""
    stored = StoredLatents(
        mean=draw(frames, 4, 4, 2, seed=number),
        logvar=draw(frames, 4, 4, 1, seed=number),
        keyframes=draw(keyframes, 4, 4, 3, seed=number),
        keyframe_numbers=np.arange(keyframes, dtype=np.int32) + number,
        clips=draw(clips, 2, 4, 4, 3, seed=number),
        clip_numbers=np.arange(clips, dtype=np.int32) + 8,
    )
    embedding = draw(number + 1, 3)
    return Example(f"größer {number}", 24.0, latents=stored, embedding=embedding)


def write_latents(folder, **changes):
    """Four videos and two pictures."""
    encoding = dataclasses.replace(ENCODING, **changes)
    width = None if encoding.text_encoder_id is None else 3
    shards = dataset.DatasetWriter(
        folder,
        latent_cache.KIND,
        latent_cache.latent_features(2, width),
        latent_cache.INDEX,
        dataclasses.asdict(encoding),
    )
    videos = [encoded(i) for i in range(4)]
    pictures = [encoded(i, frames=1, keyframes=0, clips=0) for i in (4, 5)]
    if width is None:
        videos, pictures = (
            [dataclasses.replace(example, embedding=None) for example in group]
            for group in (videos, pictures)
        )
    shards.write(0, [latent_cache.to_row(example, 0) for example in videos])
    shards.write(1, [latent_cache.to_row(example, 1) for example in pictures])
    shards.finish(2)
    return [*videos, *pictures]


def check_example(example, expected):
    for name in ("caption", "frame_rate"):
        assert getattr(example, name) == getattr(expected, name)
    np.testing.assert_array_equal(example.embedding, expected.embedding)
    for field in dataclasses.fields(StoredLatents):
        found, wanted = (getattr(e.latents, field.name) for e in (example, expected))
        if wanted is None:
            assert found is None
            continue
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


LATENTS = DataConfig(
    buckets=(BucketConfig(9, 16, 16, 2), BucketConfig(1, 32, 32, 2)), source="replaced"
)


def load(cfg, seed=0):
    return Loader(cfg, (("none", 1.0),), seed)


def test_examples_come_back_in_order_over_all_shards(tmp_path):
    write(tmp_path / "set", (3, 0, 2))  # a shard may turn out empty
    records = dataset.DatasetReader(tmp_path / "set")
    assert [records[i]["text"] for i in range(5)] == [
        f"text {i}".encode() for i in (0, 1, 2, 20, 21)
    ]
    assert records.index["length"].tolist() == [0, 1, 2, 20, 21]
    assert records.description["made"] == [1, "two"]
    assert dataset.kind_of(tmp_path / "set") == "texts"
    assert dataset.kind_of(tmp_path) is None
    empty = start(tmp_path / "empty")
    empty.write(0, [])
    with pytest.raises(ValueError, match="there is no example"):
        empty.finish(1)


def test_tfds_opens_a_data_set_without_tensorflow(clips):
    program = f"""
import sys
import tensorflow_datasets as tfds
source = tfds.builder_from_directory({str(clips[1])!r}).as_data_source("train")
example = source[4]
print(len(source), example["captions"][0].decode(), len(example["media"]), example["provenance"])
assert "tensorflow" not in sys.modules
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    count, word, number, length, provenance = result.stdout.split(maxsplit=4)
    assert (count, word, number) == ("5", "clip", "4"), result.stderr
    assert int(length) == (clips[0] / "4.mp4").stat().st_size
    known = json.loads(provenance.strip()[2:-1])  # bytes, as Python prints them
    assert known == {"name": "4.mp4", "source": "the world", "scene": 4}


def test_a_killed_writer_goes_on_to_the_same_files(tmp_path, monkeypatch):
    write(tmp_path / "whole")

    def killed():
        yield from texts(10, 1)
        raise KeyboardInterrupt

    folder = tmp_path / "killed"
    shards = start(folder)
    shards.write(0, texts(0, 3))
    written = (folder / "part-00000.array_record").stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt):
        shards.write(1, killed())
    assert not start(folder).has(1)
    with pytest.raises(ValueError, match="killed is incomplete: run the command"):
        dataset.DatasetReader(folder)

    # A second time, while `finish` joins the shards.
    monkeypatch.setattr(tfds.folder_dataset, "write_metadata", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(folder)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="killed is incomplete"):
        dataset.DatasetReader(folder)
    write_rest = start(folder)
    assert not write_rest.complete
    write_rest.finish(2)
    assert hashes(folder) == hashes(tmp_path / "whole")
    assert (folder / "texts-train.array_record-00000-of-00002").stat().st_mtime_ns == written
    assert start(folder).complete


def test_another_data_set_is_not_written_over(tmp_path):
    write(tmp_path / "set")
    with pytest.raises(ValueError, match=r"was begun with made = \[1, \"two\"\], and now it is 3"):
        start(tmp_path / "set", made=3)
    with pytest.raises(ValueError, match="was begun with more = null, and now it is 1"):
        start(tmp_path / "set", more=1)
    deep = {"same": list(range(99)), "inner": {"rate": 0.5}}
    start(tmp_path / "deep", settings=deep)
    with pytest.raises(ValueError, match=r"settings\.inner\.rate = 0\.5, and now it is 0\.25:"):
        start(tmp_path / "deep", settings=deep | {"inner": {"rate": 0.25}})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is neither empty nor a data set"):
        start(tmp_path)


def test_damage_is_said(tmp_path, clips):
    folder = tmp_path / "set"
    write(folder)
    np.save(folder / "index.npy", np.zeros(4, INDEX))
    with pytest.raises(ValueError, match="set is damaged: it has 5 examples, and its index has 4"):
        dataset.DatasetReader(folder)
    (folder / "ltx_jax.json").write_text("{}")
    with pytest.raises(ValueError, match=r"ltx_jax.json does not describe a data set"):
        dataset.kind_of(folder)

    # A damaged record is replaced by another example, like a damaged clip.
    loader = load(DataConfig(source=str(clips[1]), num_frames=9, height=24, width=32, batch_size=5))
    [file] = clips[1].glob("*-00001-of-*")
    file.unlink()
    batch = loader.batch(0)
    assert loader.replaced >= 2
    assert set(batch.captions) <= {"clip 0", "clip 1", "clip 2"}


def test_a_data_set_of_clips_trains_as_the_folder_they_came_from(clips):
    for settings in ({}, {"random_start": True, "random_crop": True, "resample": 8.0}):
        size = {"num_frames": 5, "height": 16, "width": 16, "batch_size": 3}
        folder, stored = (
            load(DataConfig(source=str(path), **size, **settings)).batches(0, 4) for path in clips
        )
        for batch, expected in zip(stored, folder, strict=True):
            assert batch.captions == expected.captions
            np.testing.assert_array_equal(batch.frames, expected.frames)
            np.testing.assert_array_equal(batch.frame_rate, expected.frame_rate)


def test_one_of_several_captions_is_drawn_each_time(tmp_path, clips):
    medium = inputs.Stored("0", (clips[0] / "0.mp4").read_bytes())
    shards = dataset.DatasetWriter(
        tmp_path / "set", dataset.CLIPS, dataset.clip_features(), media.FACTS, {}
    )
    shards.write(0, [dataset.clip_row(medium, ["one", "two", "three"], {})])
    shards.finish(1)
    loader = load(DataConfig(source=str(tmp_path / "set"), num_frames=5, height=16, width=16))
    seen = [caption for step in range(8) for caption in loader.batch(step).captions]
    assert len(seen) == 64
    assert all(seen.count(caption) > 8 for caption in ("one", "two", "three"))
    with pytest.raises(ValueError, match="0 has no caption"):
        dataset.clip_row(medium, [], {})


def test_latents_come_back_to_the_bit(tmp_path):
    written = write_latents(tmp_path / "set")
    records = dataset.DatasetReader(tmp_path / "set")
    for number, expected in enumerate(written):
        check_example(latent_cache.from_row(records[number]), expected)
    loader = load(dataclasses.replace(LATENTS, source=str(tmp_path / "set")))
    assert loader.encoding == ENCODING
    np.testing.assert_array_equal(loader.encoding.empty, [[0.25, -3, 1]])
    assert loader.encoding.empty.dtype == np.float16
    seen = set()
    for batch in loader.batches(0, 6):
        assert batch.frames is None
        videos = batch.bucket.num_frames > 1
        for row, caption in enumerate(batch.captions):
            number = int(caption.split()[1])
            assert (number < 4) == videos
            stored = dataclasses.asdict(batch.latents)
            assert stored.pop("reference") is None
            of_row = StoredLatents(**{name: array[row] for name, array in stored.items()})
            rate, embedding = float(batch.frame_rate[row]), batch.embeddings[row]
            found = Example(caption, rate, latents=of_row, embedding=embedding)
            check_example(found, written[number])
            seen.add(number)
    assert seen == set(range(6))


def test_latents_without_embeddings_leave_the_captions_to_the_run(tmp_path):
    nothing = dict.fromkeys(("text_encoder", "text_encoder_id", "tokenizer_id", "empty_embedding"))
    write_latents(tmp_path / "set", **nothing)
    loader = load(dataclasses.replace(LATENTS, source=str(tmp_path / "set")))
    batch = loader.batch(0)
    assert batch.embeddings is None
    assert batch.captions[0].startswith("größer")
    assert loader.encoding.empty is None


def test_sources_that_do_not_go_together_are_refused(tmp_path):
    write_latents(tmp_path / "one")
    write_latents(tmp_path / "two")
    write_latents(tmp_path / "vae", vae="other/vae", vae_hash="4567")
    write_latents(tmp_path / "text", text_encoder="other/t5", text_encoder_id="t5-67")

    def mixed(*names):
        sources = (str(tmp_path / name) if name != "shapes" else name for name in names)
        return load(dataclasses.replace(LATENTS, mix=tuple(map(SourceConfig, sources))))

    assert len(set(mixed("one", "two").plan(0).rows)) == 2
    with pytest.raises(
        ValueError, match=r"one and shapes cannot be .* one contains pixels, the other lat"
    ):
        mixed("one", "shapes")
    with pytest.raises(ValueError, match=r"VAEs some/vae \(0123\) and other/vae \(4567\)"):
        mixed("one", "vae")
    with pytest.raises(ValueError, match=r"some/t5 \(t5-45\) and other/t5 \(t5-67\)"):
        mixed("one", "text")
    other = DataConfig(source=str(tmp_path / "one"), num_frames=17, height=16, width=16)
    with pytest.raises(
        ValueError,
        match=r"one contains latents of 9 x 16 x 16, 1 x 32 x 32, but the b.* 17 x 16 x 16",
    ):
        load(other)
    buckets = (*LATENTS.buckets, BucketConfig(17, 16, 16, 2))
    with pytest.raises(ValueError, match=r"no example of .*one fits the bucket 17 x 16 x 16"):
        load(dataclasses.replace(LATENTS, source=str(tmp_path / "one"), buckets=buckets))


def cut(path, length):
    content = path.read_bytes()
    path.write_bytes(content[:length])


@pytest.mark.parametrize(
    "name", ["dataset_info.json", "features.json", "index.npy", "ltx_jax.json"]
)
@pytest.mark.parametrize("length", [0, 40, None])
def test_a_damaged_file_of_facts_is_one_line(name, length, tmp_path):
    write(tmp_path / "set")
    if length is None and name != "index.npy":  # without an index it is incomplete
        (tmp_path / "set" / name).unlink()
    else:
        cut(tmp_path / "set" / name, length or 0)
    with pytest.raises(
        ValueError, match=r"set(/ltx_jax.json)? (is damaged|does not describe)"
    ) as no:
        dataset.DatasetReader(tmp_path / "set")
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("how", ["deleted", "empty", "half", "one byte less"])
def test_a_missing_or_cut_off_shard_is_noticed_when_the_set_is_opened(how, tmp_path):
    write(tmp_path / "set")
    file = sorted(tmp_path.glob("set/*array_record*"))[-1]
    size = file.stat().st_size
    if how == "deleted":
        file.unlink()
    else:
        cut(file, {"empty": 0, "half": size // 2, "one byte less": size - 1}[how])
    with pytest.raises(ValueError, match=f"set is damaged: {file.name} ") as no:
        dataset.DatasetReader(tmp_path / "set")
    assert "\n" not in str(no.value)


def test_data_sets_of_other_versions_are_refused(tmp_path):
    write(tmp_path / "set")
    file = tmp_path / "set" / "dataset_info.json"
    text = file.read_text()
    file.write_text(text.replace('"1.0.0"', '"2.0.0"'))
    with pytest.raises(ValueError, match=r"dataset_info.json has the version 2\.0\.0"):
        dataset.DatasetReader(tmp_path / "set")
    file.write_text(text)
    description = tmp_path / "set" / "ltx_jax.json"
    content = json.loads(description.read_text())
    for version, fits in ((dataset.VERSION, True), (dataset.VERSION + 1, False), ("x", False)):
        description.write_text(json.dumps({**content, "version": version}))
        if fits:
            dataset.DatasetReader(tmp_path / "set")
            continue
        with pytest.raises(ValueError, match=f"set is a data set of version {version!r}, and at"):
            dataset.DatasetReader(tmp_path / "set")


def test_the_index_of_another_kind_is_refused(tmp_path):
    write(tmp_path / "set")
    with pytest.raises(ValueError, match=r"index\.npy is not the index of such a data set"):
        dataset.DatasetReader(tmp_path / "set", np.dtype([("bucket", np.int32)]))


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    from array_record.python import array_record_module

    def full(self, content):
        raise RuntimeError("write() failed: No space left on device; writing part")

    monkeypatch.setattr(array_record_module.ArrayRecordWriter, "write", full)
    with pytest.raises(ValueError, match=r"cannot write .*part-00000\.array_record: .*No space"):
        start(tmp_path / "set").write(0, texts(0, 3))
