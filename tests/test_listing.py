"""Layouts of captioned media as people have them: each is read right, or what is wrong is named."""

import contextlib
import csv
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ltx_jax.config import BucketConfig, DataConfig
from ltx_jax.data import archives, folder, listing, probing, tables, video, writing
from ltx_jax.data.loader import Loader
from ltx_jax.prepare import input_files

CAPTIONS = {"a.mp4": "a red car", "b.mp4": "größer, “als”", "sub/c.png": "a picture"}


def picture(level: int = 100) -> np.ndarray:
    return np.full((32, 32, 3), level, np.uint8)


def write_media(root: Path) -> None:
    """Two clips and a picture, without captions; each has a grey level of its own."""
    for i, name in enumerate(CAPTIONS):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            writing.write_image(path, picture(40 * (i + 1)))
        else:
            writing.write_video(path, np.stack([picture(40 * (i + 1))] * 9), 24)


def write_csv(
    path: Path, rows: list[list], *, encoding: str = "utf-8", delimiter: str = ","
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))


def write_parquet(path: Path, columns: dict[str, list]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table(columns), path)


def write_hugging_face(root: Path, ending: str) -> None:
    write_media(root)
    names, texts = list(CAPTIONS), list(CAPTIONS.values())
    if ending == "csv":
        write_csv(root / "metadata.csv", [["file_name", "text"], *zip(names, texts, strict=True)])
    elif ending == "parquet":
        write_parquet(root / "metadata.parquet", {"file_name": names, "text": texts})
    else:
        lines = [{"file_name": n, "text": t} for n, t in zip(names, texts, strict=True)]
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def write_trainer(root: Path, ending: str) -> None:
    write_media(root)
    rows = [{"caption": text, "media_path": name} for name, text in CAPTIONS.items()]
    if ending == "csv":
        write_csv(root / "dataset.csv", [list(rows[0]), *(list(row.values()) for row in rows)])
    elif ending == "json":
        (root / "dataset.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    else:
        (root / "dataset.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def write_finetrainers(root: Path, names: tuple[str, str]) -> None:
    write_media(root / "videos")
    (root / names[0]).write_text("\n".join(CAPTIONS.values()) + "\n", encoding="utf-8")
    (root / names[1]).write_text("\n".join(f"videos/{name}" for name in CAPTIONS), encoding="utf-8")


def write_captions_folder(root: Path) -> None:
    write_media(root / "videos")
    for name, text in CAPTIONS.items():
        path = (root / "captions" / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def write_beside(root: Path, ending: str) -> None:
    write_media(root)
    for name, text in CAPTIONS.items():
        content = json.dumps({"caption": text, "seed": 1}) if ending == ".json" else text
        (root / name).with_suffix(ending).write_text(content, encoding="utf-8")


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_web_dataset(root: Path, ending: str) -> None:
    write_media(root / "loose")
    for i, (name, text) in enumerate(CAPTIONS.items()):
        content = (root / "loose" / name).read_bytes()
        described = json.dumps({"text": text, "seed": 1}) if ending == "json" else text
        files = {
            f"dir/{i:03}{Path(name).suffix}": content,
            f"dir/{i:03}.cls": b"7",
            f"dir/{i:03}.{ending}": described.encode(),
        }
        write_tar(root / f"{i:03}.tar", files)
    for name in CAPTIONS:
        (root / "loose" / name).unlink()


LAYOUTS = {
    **{f"metadata.{e}": (write_hugging_face, e) for e in ("csv", "jsonl", "parquet")},
    **{f"dataset.{e}": (write_trainer, e) for e in ("csv", "json", "jsonl")},
    "prompt.txt": (write_finetrainers, ("prompt.txt", "videos.txt")),
    "captions.txt": (write_finetrainers, ("captions.txt", "video.txt")),
    "captions/": (write_captions_folder,),
    **{f"beside{e}": (write_beside, e) for e in (".txt", ".caption", ".json", ".TXT")},
    **{f"tar of {e}": (write_web_dataset, e) for e in ("txt", "json")},
}


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    write, *arguments = LAYOUTS[request.param]
    write(tmp_path, *arguments)
    return tmp_path


def captions_of(media) -> list[tuple[str, ...]]:
    return [medium.captions for medium in media]


def test_a_layout_gives_every_medium_its_caption(layout, caplog):
    clips = folder.list_clips(layout)
    assert captions_of(clips) == [(text,) for text in CAPTIONS.values()]
    assert "left out" not in caplog.text
    _, facts = folder.check_clips(clips)
    assert [known.frames for known in facts] == [9, 9, 1]


def test_training_reads_a_layout(layout):
    data = DataConfig(source=str(layout), buckets=(BucketConfig(9, 32, 32, 2),))
    batch = Loader(data, (("none", 1.0),), 0).batch(0)
    levels = {"a red car": 40, "größer, “als”": 80}
    assert set(batch.captions) == set(levels)
    for caption, frames in zip(batch.captions, batch.frames, strict=True):
        assert abs(float(frames.mean()) - levels[caption]) < 3  # H.264 keeps a flat grey


def test_preparation_lists_a_layout_as_training_does(layout):
    for pattern in (str(layout), os.path.join(layout, "**", "*")):
        media = input_files.find([pattern])
        assert captions_of(media) == [(text,) for text in CAPTIONS.values()]
        assert [m.place for m in media] == [c.place for c in folder.list_clips(layout)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_are_read_as_spreadsheets_write_them(tmp_path, encoding, delimiter):
    write_media(tmp_path)
    rows = [["file_name", "caption"], *([n, f"{t}\r\nand more"] for n, t in CAPTIONS.items())]
    write_csv(tmp_path / "metadata.csv", rows, encoding=encoding, delimiter=delimiter)
    texts = captions_of(folder.list_clips(tmp_path))
    assert texts == [(f"{text} and more",) for text in CAPTIONS.values()]


def test_a_table_in_another_encoding_is_named(tmp_path):
    write_media(tmp_path)
    write_csv(
        tmp_path / "metadata.csv", [["file_name", "text"], ["a.mp4", "größer"]], encoding="cp1252"
    )
    with pytest.raises(ValueError, match=r"metadata.csv cannot be read as UTF-8 text.*save it as"):
        folder.list_clips(tmp_path)
    with pytest.raises(ValueError, match=r"metadata.csv cannot be read as UTF-8 text.*save it as"):
        folder.list_clips(tmp_path / "metadata.csv")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (" two\n lines ", ("two lines",)),
        (["one", None, "", "two", "one"], ("one", "two")),
        (None, "the caption of a.mp4 is null"),
        ("", "the caption of a.mp4 is empty"),
        ("\u2028", "the caption of a.mp4 is empty"),
        ([], "the caption of a.mp4 is empty"),
        ([None, " "], "the caption of a.mp4 is empty"),
        (5, "the caption of a.mp4 is a number: 5"),
        (float("nan"), "the caption of a.mp4 is a number: nan"),
        (["one", 5], "the caption of a.mp4 is a number: 5"),
        (True, "the caption of a.mp4 is a number"),
        ({"en": "one"}, "the caption of a.mp4 is no text"),
        ("\ud800", "the caption of a.mp4 holds half of a surrogate pair"),
    ],
)
def test_every_kind_of_value_of_a_caption_has_a_rule(tmp_path, caplog, value, expected):
    write_media(tmp_path)
    rows = [{"file_name": "a.mp4", "text": value}, {"file_name": "b.mp4", "text": "fine"}]
    (tmp_path / "metadata.json").write_text(json.dumps(rows))
    clips = {
        clip.place.name: clip.captions for clip in folder.list_clips(tmp_path / "metadata.json")
    }
    assert clips.pop("b.mp4") == ("fine",)
    if isinstance(expected, tuple):
        assert clips == {"a.mp4": expected}
    else:
        assert not clips
        assert f"metadata.json, row 1: {expected}" in caplog.text
        assert "1 of 2 clips are left out" in caplog.text


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"file_name": None, "text": "x"}, "line 2 has no path in the column of media"),
        ({"text": "x"}, "line 2 has no path"),
        ({"file_name": 5, "text": "x"}, "line 2 has '5', which is no path, in"),
        ({"file_name": "https://h/a.mp4", "text": "x"}, "names https://h/a.mp4: download it"),
        ({"file_name": "s3://b/a.mp4", "text": "x"}, "names s3://b/a.mp4: download it"),
        ({"file_name": "a\0.mp4", "text": "x"}, "a file with a null character"),
        ({"file_name": "gone.mp4", "text": "x"}, "there is no file .*gone.mp4"),
        (["a.mp4", "x"], "line 2 is no JSON object"),
        ("{", "line 2 is no JSON object"),
    ],
)
def test_a_row_that_names_no_clip_is_left_out_counted_and_named(tmp_path, caplog, line, reason):
    write_media(tmp_path)
    text = line if line == "{" else json.dumps(line)
    fine = json.dumps({"file_name": "b.mp4", "text": "fine"})
    (tmp_path / "clips.jsonl").write_text(f"{fine}\n{text}\n\n")
    clips, _ = folder.check_clips(folder.list_clips(tmp_path / "clips.jsonl"))
    assert [clip.place.name for clip in clips] == ["b.mp4"]
    assert caplog.text.count("1 of 2 clips are left out") == 1
    [message] = [r.message for r in caplog.records if r.message.startswith("left out")]
    assert pytest.importorskip("re").search(reason, message)


def test_a_caption_with_an_unquoted_comma_is_not_cut_short(tmp_path, caplog):
    write_media(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.mp4,a car, red\nb.mp4,fine\n")
    [clip] = folder.list_clips(tmp_path / "metadata.csv")
    assert clip.captions == ("fine",)
    assert "line 2 has 3 fields where the header has 2: put quotes around" in caplog.text
    (tmp_path / "metadata.csv").write_text('file_name,text\na.mp4,"open\nb.mp4,fine\n')
    with pytest.raises(ValueError, match=r"metadata.csv is no CSV after line 1"):
        folder.list_clips(tmp_path / "metadata.csv")


def test_tables_may_name_files_anywhere_and_by_windows_paths(tmp_path):
    write_media(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    rows = [
        ["file_name", "text"],
        [str(tmp_path / "elsewhere" / "a.mp4"), "absolute"],
        ["../elsewhere/b.mp4", "above"],
        ["..\\elsewhere\\sub\\c.png", "backslashes"],
    ]
    write_csv(tmp_path / "data" / "mine.csv", rows)
    clips, _ = folder.check_clips(folder.list_clips(tmp_path / "data" / "mine.csv"))
    assert sorted(captions_of(clips)) == [("above",), ("absolute",), ("backslashes",)]


def test_a_file_that_is_named_twice_is_one_example_with_both_captions(tmp_path, caplog):
    write_media(tmp_path)
    rows = [
        ["file_name", "text"],
        ["a.mp4", "one"],
        [str(tmp_path / "a.mp4"), "two"],
        ["./a.mp4", "one"],
        ["sub/../b.mp4", "three"],
        ["sub/c.png", "four"],
    ]
    write_csv(tmp_path / "metadata.csv", rows)
    for source in (tmp_path, "."):
        caplog.clear()
        with contextlib.chdir(tmp_path):
            clips = folder.list_clips(source)
        assert captions_of(clips) == [("one", "two"), ("three",), ("four",)]
        assert "2 rows name a file again, and add their captions to it" in caplog.text


def test_media_inside_a_table_or_an_archive_that_it_names_are_refused_in_a_sentence(tmp_path):
    inside = {"video": [{"bytes": b"mp4", "path": "a.mp4"}], "text": ["a"]}
    write_parquet(tmp_path / "mine.parquet", inside)
    with pytest.raises(
        ValueError, match=r"mine.parquet holds the media themselves, in its column vi"
    ):
        listing.list_source(tmp_path / "mine.parquet")
    write_tar(tmp_path / "000.tar", {"a.mp4": b"mp4"})
    (tmp_path / "mine.csv").write_text("file_name,text\n000.tar/a.mp4,a\n")
    [medium] = listing.list_source(tmp_path / "mine.csv")
    assert "mine.csv, line 2 names 000.tar/a.mp4, which lies in an archive" in medium.problem


def test_columns_are_chosen_by_name(tmp_path):
    write_media(tmp_path)
    names = {"clip": ["a.mp4"], "Text": ["usual"], "long": ["chosen"], "stars": [5]}
    write_parquet(tmp_path / "mine.parquet", names)
    columns = tables.Columns("clip", "long")
    [medium] = listing.list_source(tmp_path / "mine.parquet", columns)
    assert medium.captions == ("chosen",)
    assert json.loads(medium.row) == {"Text": "usual", "stars": 5}
    [medium] = listing.list_source(tmp_path / "mine.parquet", tables.Columns("clip"))
    assert medium.captions == ("usual",)
    for wrong in (tables.Columns(), tables.Columns("clip", "short"), tables.Columns("video")):
        with pytest.raises(
            ValueError, match=r"mine.parquet has no column .*clip, Text, long, stars"
        ):
            listing.list_source(tmp_path / "mine.parquet", wrong)
    (tmp_path / "a.json").write_text(json.dumps({"long": "from JSON", "caption": "usual"}))
    data = DataConfig(source=str(tmp_path), num_frames=9, height=32, width=32, batch_size=1)
    for column, expected in ((None, "usual"), ("long", "from JSON")):
        cfg = DataConfig(**{**vars(data), "caption_column": column})
        assert Loader(cfg, (("none", 1.0),), 0).batch(0).captions == (expected,)


def test_captions_of_a_table_come_first_and_those_beside_fill_gaps(tmp_path, caplog):
    write_beside(tmp_path, ".txt")
    write_csv(tmp_path / "metadata.csv", [["file_name", "text"], ["a.mp4", "table"], ["b.mp4", ""]])
    texts = captions_of(folder.list_clips(tmp_path))
    assert texts == [("table",), (CAPTIONS["b.mp4"],), (CAPTIONS["sub/c.png"],)]
    (tmp_path / "b.txt").unlink()
    assert len(folder.list_clips(tmp_path)) == 2
    assert "metadata.csv, line 3: the caption of b.mp4 is empty" in caplog.text


def test_what_only_looks_like_a_table_spoils_nothing(tmp_path, caplog):
    write_beside(tmp_path, ".txt")
    (tmp_path / "metadata.json").write_text('{"info": {"year": 2020}}')
    (tmp_path / "dataset.csv").write_text("x,y\n1,2\n")
    assert len(folder.list_clips(tmp_path)) == 3
    assert "metadata.json holds neither a list of objects nor captions by path" in caplog.text
    assert "dataset.csv has no column of media" in caplog.text


def test_lists_of_different_lengths_are_not_paired(tmp_path, caplog):
    write_finetrainers(tmp_path, ("prompt.txt", "videos.txt"))
    with open(tmp_path / "prompt.txt", "a") as file:
        file.write("one more\n")
    with pytest.raises(
        ValueError, match=r"none of 4 clips.*prompt.txt has 4 lines and videos.txt 3"
    ):
        folder.list_clips(tmp_path)


def test_damaged_tables_are_one_sentence(tmp_path):
    pytest.importorskip("pyarrow")
    for name, content in (
        ("a.parquet", b"PAR1" + bytes(40)),
        ("b.parquet", b""),
        ("c.json", b"[" * 100_000),
        ("d.json", b"{"),
        ("e.csv", b""),
        ("f.jsonl", b"[]\n"),
        ("g.csv", b"file_name,text\n"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            folder.list_clips(tmp_path / name)
    with pytest.raises(ValueError, match=r"there is no file .*h.csv"):
        folder.list_clips(tmp_path / "h.csv")


def test_parquet_without_its_reader_is_refused_with_a_way_out(tmp_path, monkeypatch):
    write_hugging_face(tmp_path, "parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs pyarrow: pip install pyarrow"):
        folder.list_clips(tmp_path / "metadata.parquet")


def test_archives_are_named_by_braces_and_wildcards(tmp_path):
    write_web_dataset(tmp_path, "txt")
    (tmp_path / "README.md").write_text("no medium")
    assert sum(bool(medium.captions) for medium in input_files.find([str(tmp_path)])) == 3
    for pattern, count in (
        ("{000..002}.tar", 3),
        ("{000..001}.tar", 2),
        ("*.tar", 3),
        ("001.tar", 1),
    ):
        assert len(folder.list_clips(os.path.join(tmp_path, pattern))) == count
        assert len(input_files.find([os.path.join(tmp_path, pattern)])) == count
    with pytest.raises(ValueError, match=r"there is no file .*003.tar"):
        folder.list_clips(f"{tmp_path}/{{000..003}}.tar")
    with pytest.raises(ValueError, match=r"more than 100000"):
        folder.list_clips(f"{tmp_path}/{{0..999999999999}}.tar")
    assert archives.expand_braces("{08..10}-{a,b}.tar") == [
        f"{i}-{letter}.tar" for i in ("08", "09", "10") for letter in "ab"
    ]
    assert archives.expand_braces("a{b}c{.tar") == ["a{b}c{.tar"]


def test_what_is_wrong_in_an_archive_is_named_and_the_rest_is_read(tmp_path, caplog):
    write_media(tmp_path)
    clip = (tmp_path / "a.mp4").read_bytes()
    files = {
        "0.mp4": clip, "0.txt": b"fine", "0.jpg": b"a cover", "1.mp4": clip, "2.mp4": clip,
        "2.txt": b"", "3.a.mp4": clip, "3.b.mp4": clip, "3.txt": b"two clips",
    }  # fmt: skip
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "a.tar", files)
    whole = (tmp_path / "tars" / "a.tar").read_bytes()
    end = 512 * 3 + -(-len(clip) // 512) * 512  # of the second file, 0.txt
    (tmp_path / "tars" / "cut.tar").write_bytes(whole[: end + 514])
    (tmp_path / "tars" / "spoilt.tar").write_bytes(whole[:end] + b"?" * 512 + whole[end + 512 :])
    (tmp_path / "tars" / "unended.tar").write_bytes(whole[:end])
    clips = folder.list_clips(tmp_path / "tars")
    assert [str(clip.place)[len(str(tmp_path)) :] for clip in clips] == [
        f"/tars/{name}.tar/0.mp4" for name in ("a", "cut", "spoilt", "unended")
    ]
    for reason in (
        "a.tar/1 has no caption",
        "a.tar/2.txt is empty",
        "a.tar/3 holds 3.a.mp4 and 3.b.mp4: one is expected",
        "cut.tar is cut off or damaged after 2 files",
        "spoilt.tar is cut off or damaged after 2 files: there is no header",
        "unended.tar is cut off or damaged after 2 files: it has no end mark",
    ):
        assert reason in caplog.text


def test_archives_beside_their_unpacked_files_are_not_read_twice(tmp_path, caplog):
    write_beside(tmp_path, ".txt")
    write_tar(tmp_path / "all.tar", {"a.mp4": (tmp_path / "a.mp4").read_bytes(), "a.txt": b"again"})
    assert len(folder.list_clips(tmp_path)) == 3
    assert "all.tar is skipped, as there are media beside it: name it as an input" in caplog.text
    assert len(folder.list_clips(tmp_path / "all.tar")) == 1


def test_compressed_archives_are_refused_with_a_way_out(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"?")
    with pytest.raises(ValueError, match=r"a.tar.gz is compressed: decompress it"):
        folder.list_clips(tmp_path / "a.tar.gz")
    with tarfile.open(tmp_path / "b.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    with pytest.raises(ValueError, match=r"b.tar is no uncompressed tar archive"):
        folder.list_clips(tmp_path / "b.tar")


@pytest.mark.parametrize("layout", ["beside.txt", "tar of txt"], indirect=True)
def test_media_are_probed_again_only_where_they_changed(layout, tmp_path, monkeypatch):
    store, probed, probe = tmp_path / "store", [], video.probe
    monkeypatch.setattr(probing, "FOLDER", store)
    monkeypatch.setattr(probing, "_LONG", 0.0)
    monkeypatch.setattr(video, "probe", lambda path: probed.append(str(path)) or probe(path))
    probing._store.cache_clear()
    clips = folder.list_clips(layout)
    first = folder.check_clips(clips)
    assert len(probed) == 3
    assert folder.check_clips(clips) == first
    assert len(probed) == 3
    place = clips[0].place
    file = place if isinstance(place, Path) else place.archive
    os.utime(file, (1, 1))
    assert folder.check_clips(clips) == first
    assert len(probed) == 4
    for junk in ("", "[]", '{"a.mp4": [1]}', '{"a.mp4": null}', "[" * 100_000):
        for kept in store.iterdir():
            kept.write_text(junk)
        assert folder.check_clips(clips) == first
    file.write_bytes(file.read_bytes()[:600])
    for _ in range(2):
        assert len(folder.check_clips(clips)[0]) == 2
    probing._store.cache_clear()


@pytest.mark.thorough
def test_batches_from_archives_are_the_same_in_processes_and_later_on(tmp_path):
    names = [f"{i:02}" for i in range(6)]
    for i, name in enumerate(names):
        writing.write_video(tmp_path / "clip.mp4", np.stack([picture(30 * (i + 1))] * 9), 24)
        clip = (tmp_path / "clip.mp4").read_bytes()
        write_tar(tmp_path / f"{name}.tar", {f"{name}.mp4": clip, f"{name}.txt": name.encode()})
    data = DataConfig(
        source=f"{tmp_path}/{{00..05}}.tar", num_frames=9, height=32, width=32, batch_size=2
    )
    whole = list(Loader(data, (("none", 1.0),), 1).batches(0, 6))
    assert {caption for batch in whole for caption in batch.captions} == set(names)
    in_processes = DataConfig(**{**vars(data), "processes": 2})
    for cfg, first in ((data, 3), (in_processes, 0)):
        for batch, expected in zip(
            Loader(cfg, (("none", 1.0),), 1).batches(first, 6), whole[first:], strict=True
        ):
            assert batch.captions == expected.captions
            np.testing.assert_array_equal(batch.frames, expected.frames)
