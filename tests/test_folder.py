import os
import re

import av
import numpy as np
import pytest
from PIL import Image

from ltx_jax.data import folder, writing


def grey(count: int) -> np.ndarray:
    levels = 8 * np.arange(1, count + 1, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, 48, 64, 3)).copy()


@pytest.fixture
def clips(tmp_path):
    """Two clips and a picture, captioned, and files that are none of these."""
    (tmp_path / "sub").mkdir()
    writing.write_video(tmp_path / "b.mp4", grey(24), 24)
    writing.write_gif(tmp_path / "sub" / "c.gif", grey(6), 10)
    writing.write_image(tmp_path / "a.png", grey(1)[0])
    (tmp_path / "a.txt").write_text("a picture")
    (tmp_path / "b.txt").write_text("\ufeff a clip,\n  in two lines \n", encoding="utf-8")
    (tmp_path / "sub" / "c.txt").write_text("ein Clip, größer", encoding="utf-8")
    (tmp_path / "README.md").write_text("not a clip")
    (tmp_path / ".b.123.mp4").write_text("half-written")
    return tmp_path


def test_clips_are_listed_in_order_with_their_captions(clips):
    found = folder.list_clips(clips)
    assert [clip.place.relative_to(clips).as_posix() for clip in found] == [
        "a.png",
        "b.mp4",
        "sub/c.gif",
    ]
    assert [clip.captions[0] for clip in found] == [
        "a picture",
        "a clip, in two lines",
        "ein Clip, größer",
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"b.mp4 has no caption: there is no file b.txt"),
        (b" \n", r"b.txt is empty; the caption of b.mp4"),
        (b"\xff\xfe\xfa", r"b.txt cannot be read as UTF-8"),
        ("größer".encode("cp1252"), r"b.txt cannot be read as UTF-8 text \(byte 2 is 0xf6\)"),
    ],
)
def test_a_clip_without_usable_caption_is_left_out_counted_and_named(
    clips, caplog, content, reason
):
    (clips / "b.txt").unlink()
    if content is not None:
        (clips / "b.txt").write_bytes(content)
    assert [clip.place.name for clip in folder.list_clips(clips)] == ["a.png", "c.gif"]
    assert re.search(rf"left out: .*{reason}", caplog.text)
    assert "1 of 3 clips are left out" in caplog.text


def test_empty_captions_are_taken_where_they_are_allowed(clips):
    (clips / "b.txt").unlink()
    assert folder.list_clips(clips, allow_empty_captions=True)[1].captions[0] == ""
    (clips / "b.txt").write_text(" \n")
    assert folder.list_clips(clips, allow_empty_captions=True)[1].captions[0] == ""


def test_captions_are_read_in_utf_16_and_beside_capital_endings(clips):
    (clips / "b.mp4").rename(clips / "B.MP4")
    (clips / "b.txt").unlink()
    (clips / "B.TXT").write_bytes("größer\r\nals".encode("utf-16"))
    captions = {clip.place.name: clip.captions[0] for clip in folder.list_clips(clips)}
    assert captions["B.MP4"] == "größer als"


def test_nothing_that_has_a_caption_is_skipped_in_silence(clips, caplog):
    (clips / "d.vob").write_bytes(b"?")
    (clips / "d.txt").write_text("a film")
    (clips / "e.mp4").mkdir()
    (clips / "e.txt").write_text("a folder")
    os.mkfifo(clips / "f.mp4")
    (clips / "f.txt").write_text("a pipe")
    good, _ = folder.check_clips(folder.list_clips(clips))
    assert [clip.place.name for clip in good] == ["a.png", "b.mp4", "c.gif"]
    for reason in (
        "d.vob has none of the endings of clips and pictures",
        "e.mp4 is a folder",
        "f.mp4 is a pipe or a device",
    ):
        assert re.search(rf"left out: .*{reason}", caplog.text)


@pytest.mark.parametrize("ending", ["mpg", "ts", "MTS", "wmv", "flv", "3gp", "ogv", "avif", "TIF"])
def test_files_of_many_endings_are_training_data(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    if ending in ("avif", "TIF"):
        Image.fromarray(grey(1)[0]).save(path)
    else:
        codec, form = {
            "mpg": ("mpeg2video", "mpeg"),
            "wmv": ("wmv2", "asf"),
            "flv": ("flv", "flv"),
            "ogv": ("libvpx", "ogg"),
            "3gp": ("mpeg4", "3gp"),
        }.get(ending, ("libx264", "mpegts"))
        with av.open(str(path), "w", format=form) as container:
            stream = container.add_stream(codec, rate=24)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for picture in grey(24):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    path.with_suffix(".txt").write_text("a caption")
    (clip,), (facts,) = folder.check_clips(folder.list_clips(tmp_path))
    assert clip.place == path
    assert (facts.height, facts.width) == (48, 64)
    assert facts.frames == (1 if ending in ("avif", "TIF") else 24)


def test_linked_folders_are_listed_once_and_in_no_circle(clips, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    writing.write_image(outside / "d.png", grey(1)[0])
    (outside / "d.txt").write_text("elsewhere")
    (clips / "sub" / "loop").symlink_to(clips)
    (clips / "linked").symlink_to(outside)
    (clips / "linked_again").symlink_to(outside)
    (clips / "round").symlink_to(clips / "round")
    paths = [clip.place.relative_to(clips).as_posix() for clip in folder.list_clips(clips)]
    assert paths == ["a.png", "b.mp4", "linked/d.png", "sub/c.gif"]


def test_a_folder_without_clips_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"holds no clip or picture"):
        folder.list_clips(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere is not a folder"):
        folder.list_clips(tmp_path / "nowhere")


def test_clips_are_loaded_at_the_size_rate_and_place_asked_for(clips):
    frames, fps = folder.load_clip(clips / "b.mp4", 5, 32, 32, start=0.5, frame_rate=12)
    assert frames.shape == (5, 32, 32, 3)
    assert fps == 12
    # Frames 12, 14, ... of levels 8, 16, ...; H.264 keeps flat levels to within 2.
    levels = frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, 8 * np.arange(13, 23, 2), atol=2)
    frames, fps = folder.load_clip(clips / "b.mp4", 24, 48, 64)
    assert fps == 24
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), 8 * np.arange(1, 25), atol=2)


def test_pictures_are_clips_of_one_frame(clips):
    frames, fps = folder.load_clip(clips / "a.png", 1, 24, 24, frame_rate=24)
    assert frames.shape == (1, 24, 24, 3)
    assert fps == 24
    assert folder.load_clip(clips / "b.mp4", 1, 24, 24)[0].shape == (1, 24, 24, 3)
    with pytest.raises(ValueError, match=r"a.png is a still image; a clip of 9 frames"):
        folder.load_clip(clips / "a.png", 9, 24, 24)


def test_a_clip_that_is_too_short_is_an_error_that_names_it(clips):
    assert len(folder.load_clip(clips / "b.mp4", 17, 32, 32, frame_rate=17)[0]) == 17
    with pytest.raises(ValueError, match=r"b.mp4 is too short: 24 frames at 24 .* 25 are needed"):
        folder.load_clip(clips / "b.mp4", 25, 32, 32)
    with pytest.raises(ValueError, match=r"b.mp4 is too short: 12 frames .* from 0.5 s"):
        folder.load_clip(clips / "b.mp4", 13, 32, 32, start=0.5)
    with pytest.raises(ValueError, match="num_frames must be positive"):
        folder.load_clip(clips / "b.mp4", 0, 32, 32)


def test_bad_clips_are_left_out_counted_and_named(clips, caplog):
    whole = (clips / "b.mp4").read_bytes()
    (clips / "d.mp4").write_bytes(whole[: len(whole) // 2])
    (clips / "e.mp4").write_bytes(b"")
    (clips / "f.png").write_bytes((clips / "a.png").read_bytes()[:60])
    (clips / "g.mp4").write_text("no clip at all")
    for name in "defg":
        (clips / f"{name}.txt").write_text(name)
    good, facts = folder.check_clips(folder.list_clips(clips))
    assert [clip.place.name for clip in good] == ["a.png", "b.mp4", "c.gif"]
    assert [known.frames for known in facts] == [1, 24, 6]
    for name, reason in (("d.mp4", ""), ("e.mp4", "is empty"), ("f.png", ""), ("g.mp4", "")):
        [line] = [r.message for r in caplog.records if f"left out: {clips / name} " in r.message]
        assert reason in line
    assert "4 of 7 clips are left out" in caplog.text
    with pytest.raises(ValueError, match=r"none of 4 clips can be used; the first: .*d.mp4"):
        folder.check_clips([clip for clip in folder.list_clips(clips) if clip not in good])
