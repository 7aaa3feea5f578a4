"""References and masks of clips: where they are found, how they are cut, and what is wrong."""

import json
import logging
import tarfile

import numpy as np
import pytest

from ltx_jax.config import BucketConfig, DataConfig
from ltx_jax.data import dataset, folder, inputs, listing, media, preprocessors, writing
from ltx_jax.data.loader import Loader, open_source

BUCKET = BucketConfig(9, 16, 16, 2)


def write_clip(path, level=0, frames=9, size=(32, 32), rate=24):
    """A clip whose pixels grow to the right, from frame to frame and with the level."""
    t, y, x = np.ogrid[:frames, : size[0], : size[1]]
    grey = (level + 3 * t + 0 * y + 2 * x).astype(np.uint8)
    writing.write_video(path, np.repeat(grey[..., None], 3, -1), rate, crf=0)
    return path


def white_right(path, size=(32, 32)):
    picture = np.zeros((*size, 3), np.uint8)
    picture[:, size[1] // 2 :] = 255
    writing.write_image(path, picture)
    return path


@pytest.fixture
def clips(tmp_path):
    """Three captioned clips: with reference and mask, with a reference, with nothing."""
    for i, name in enumerate("abc"):
        write_clip(tmp_path / f"{name}.mp4", 10 * i)
        (tmp_path / f"{name}.txt").write_text(f"clip {name}")
    write_clip(tmp_path / "a_reference.mp4", 100)
    write_clip(tmp_path / "b_reference.webm", 110)
    white_right(tmp_path / "a_mask.png")
    return tmp_path


def names(clips):
    return [
        (clip.place.name, *(None if x is None else x.name for x in clip.companions[:2]))
        for clip in clips
    ]


FOUND = [
    ("a.mp4", "a_reference.mp4", "a_mask.png"),
    ("b.mp4", "b_reference.webm", None),
    ("c.mp4", None, None),
]


def test_companions_lie_beside_their_clips_and_are_no_clips(clips, caplog):
    with caplog.at_level(logging.WARNING):
        assert names(folder.list_clips(clips)) == FOUND
    assert not caplog.text  # none is left out for want of a caption
    (clips / "b_reference.txt").write_text("a clip with a caption is a clip")
    listed = names(folder.list_clips(clips))
    assert ("b_reference.webm", None, None) in listed


def test_tables_name_companions(clips, tmp_path, caplog):
    (tmp_path / "refs").mkdir()
    write_clip(tmp_path / "refs" / "x.mp4")
    rows = [
        {"media_path": "a.mp4", "caption": "one", "reference_path": "refs/x.mp4"},
        {"media_path": "b.mp4", "caption": "two", "reference_path": None},
        {"media_path": "c.mp4", "caption": "three", "depth": "refs/x.mp4", "mask": "a_mask.png"},
    ]
    (tmp_path / "metadata.json").write_text(json.dumps(rows))
    table = tmp_path / "metadata.json"
    assert names(folder.list_clips(table)) == [
        ("a.mp4", "x.mp4", "a_mask.png"),
        ("b.mp4", "b_reference.webm", None),
        ("c.mp4", None, "a_mask.png"),
    ]
    columns = listing.Columns(reference="depth")
    assert names(folder.list_clips(table, columns))[2] == ("c.mp4", "x.mp4", "a_mask.png")
    rows[2]["mask"] = 7
    table.write_text(json.dumps(rows))
    with caplog.at_level(logging.WARNING):
        folder.list_clips(table, columns, needs=("mask",))
    assert "row 3 has '7', which is no path, in the column mask" in caplog.text


def test_samples_of_archives_hold_companions(clips, tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name, entry in [("a.mp4", "1.mp4"), ("a.txt", "1.txt"), ("b.mp4", "1.reference.mp4")]:
            tar.add(clips / name, entry)
        tar.add(clips / "a_mask.png", "1.mask.png")
    [clip] = folder.list_clips(tmp_path / "set.tar")
    assert [str(x).rpartition("/")[2] for x in (clip.place, *clip.companions[:2])] == [
        *("1.mp4", "1.reference.mp4", "1.mask.png"),
    ]


def test_clips_without_what_they_need_are_counted_and_named(clips, caplog):
    with caplog.at_level(logging.WARNING):
        assert names(folder.list_clips(clips, needs=("reference",))) == FOUND[:2]
    assert "c.mp4 has no reference: there is no file c_reference beside it, or a" in caplog.text
    assert "1 of 3 clips are left out" in caplog.text
    (clips / "a_mask.png").unlink()
    with pytest.raises(ValueError, match=r"none of 3 clips can be used; .*a.mp4 has no mask"):
        folder.list_clips(clips, needs=("mask",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(frames=8), "a_reference.mp4 has 8 frames and its clip 9: make them equally long"),
        (dict(rate=12), "has 12 frames per second and its clip 24: make them equally fast"),
        (dict(size=(32, 64)), "is 64 x 32 and its clip 32 x 32: make them of the same shape"),
    ],
)
def test_references_of_another_length_rate_or_shape_are_named(clips, changes, message, caplog):
    write_clip(clips / "a_reference.mp4", **changes)
    listed = folder.list_clips(clips, needs=("reference",))
    with caplog.at_level(logging.WARNING):
        good, _ = folder.check_clips(listed, ("reference",))
    assert [clip.place.name for clip in good] == ["b.mp4"]
    assert message in caplog.text
    (clips / "b_reference.webm").write_bytes(b"no video")
    with pytest.raises(ValueError, match="none of 2 clips can be used"):
        folder.check_clips(listed, ("reference",))


def test_a_reference_of_another_size_and_the_same_shape_is_scaled(clips):
    write_clip(clips / "a_reference.mp4", size=(64, 64))
    listed = folder.list_clips(clips, needs=("reference",))
    assert len(folder.check_clips(listed, ("reference",))[0]) == 2


def test_clip_reference_and_mask_are_cut_alike(clips):
    """At any place, time and mirroring, the reference is its clip, 40 levels brighter."""
    write_clip(clips / "a.mp4", 10, frames=20, size=(32, 64))
    write_clip(clips / "a_reference.mp4", 50, frames=20, size=(32, 64))
    white_right(clips / "a_mask.png", (32, 64))
    cfg = DataConfig(
        source=str(clips),
        buckets=(BUCKET,),
        reference="files",
        masks=True,
        random_start=True,
        random_crop=True,
        flip=True,
    )
    source = open_source(str(clips), cfg, 0)
    assert source.count(BUCKET) == 1
    seen = set()
    for i in range(12):
        example = source.example(BUCKET, 0, np.random.default_rng(i))
        difference = example.reference.astype(int) - example.frames
        assert np.abs(difference - 40).max() <= 4  # of two encoders
        columns = example.mask[0, 0]
        means = example.frames[0, 0, :, 0].astype(int)
        if 0 < columns.sum() < len(columns):  # white lies where the clip is brighter
            assert means[columns].min() > means[~columns].max() - 4
        assert (example.mask == example.mask[:1, :1]).all()
        seen.add((columns.sum(), bool(columns[0])))
    assert len(seen) > 3


def test_smaller_references_are_means_of_boxes(clips):
    whole, half = (
        open_source(
            str(clips),
            DataConfig(
                source=str(clips),
                buckets=(BUCKET,),
                reference="files",
                reference_downscale_factor=factor,
            ),
            0,
        ).example(BUCKET, 0, np.random.default_rng(0))
        for factor in (1, 2)
    )
    assert half.reference.shape == (9, 8, 8, 3)
    np.testing.assert_array_equal(half.frames, whole.frames)
    boxes = whole.reference.reshape(9, 8, 2, 8, 2, 3).mean(axis=(2, 4))
    np.testing.assert_array_equal(half.reference, np.rint(boxes))


@pytest.mark.parametrize("path", ["shapes", "folder"])
def test_edges_are_drawn_from_any_source(path, clips):
    path = str(clips) if path == "folder" else path
    cfg = DataConfig(source=path, buckets=(BUCKET,), reference="canny", flip=True)
    batch = Loader(cfg, (("none", 1.0),), seed=0).batch(3)
    assert batch.reference.shape == batch.frames.shape
    for frames, reference in zip(batch.frames, batch.reference, strict=True):
        np.testing.assert_array_equal(reference, preprocessors.canny(frames))


def test_sources_without_companions_are_refused(clips, tmp_path):
    cfg = DataConfig(source="shapes", reference="files", masks=True)
    with pytest.raises(ValueError, match="shapes is rendered, and has no reference and no masks"):
        open_source("shapes", cfg, 0)
    medium = inputs.Stored("a", (clips / "a.mp4").read_bytes())
    shards = dataset.DatasetWriter(
        tmp_path / "stored", dataset.CLIPS, dataset.clip_features(), media.FACTS, {}
    )
    shards.write(0, [dataset.clip_row(medium, ["a"], {})])
    shards.finish(1)
    with pytest.raises(ValueError, match="is a data set of clips, which holds no references:"):
        open_source(str(tmp_path / "stored"), DataConfig(reference="files"), 0)


def test_references_change_nothing_of_the_clips():
    plain, drawn = (
        Loader(DataConfig(buckets=(BUCKET,), reference=kind), (("none", 1.0),), seed=0).batch(0)
        for kind in ("none", "canny")
    )
    assert plain.reference is None
    np.testing.assert_array_equal(plain.frames, drawn.frames)
