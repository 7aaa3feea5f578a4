"""Clips and pictures in and out. OpenCV is the independent reader and blur."""

import contextlib
import errno
import re
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ltx_jax.data import inputs, pictures, pixels, video, writing
from ltx_jax.data.condition_pixels import gaussian_blur, prepare_condition
from ltx_jax.data.contact_sheet import contact_sheet
from ltx_jax.runtime import files

RED, BLUE = (200, 40, 40), (40, 60, 200)


def numbered(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Flat frames whose grey level says their number: 8, 16, 24, ..."""
    levels = 8 * np.arange(1, count + 1, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames of `numbered` these are; H.264 keeps flat levels to within 2 of 8."""
    return [round(float(level) / 8) - 1 for level in frames.mean(axis=(1, 2, 3))]


def cornered(height: int = 48, width: int = 64) -> np.ndarray:
    """Three frames, grey with a red top left and a blue top right corner."""
    frame = np.full((height, width, 3), 90, np.uint8)
    frame[:16, :16], frame[:16, -16:] = RED, BLUE
    return np.repeat(frame[None], 3, axis=0)


def corner_colours(frame: np.ndarray) -> str:
    """r, b or - for top left, top right, bottom left, bottom right."""
    name = ""
    for row, column in ((8, 8), (8, -8), (-8, 8), (-8, -8)):
        red, _, blue = frame[row, column].astype(int)
        name += "r" if red > blue + 80 else "b" if blue > red + 80 else "-"
    return name


@pytest.fixture(scope="module")
def textured() -> np.ndarray:
    """A moving smooth pattern with all colours, 25 frames."""
    t, y, x = np.meshgrid(np.arange(25), np.arange(64), np.arange(96), indexing="ij")
    hues = (0.0, 0.3, 0.6)
    channels = [np.sin(0.13 * x + 0.1 * t + k) * np.cos(0.09 * y - 0.05 * t * k) for k in hues]
    return (127.5 + 110 * np.stack(channels, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("fps", [12.0, 24.0, 30000 / 1001, 60.0])
def test_a_written_clip_reads_back_with_its_frames_and_rate(tmp_path, textured, fps):
    writing.write_video(tmp_path / "clip.mp4", textured, fps)
    frames, read_fps = video.read_video(tmp_path / "clip.mp4")
    assert frames.shape == textured.shape
    assert frames.dtype == np.uint8
    assert read_fps == pytest.approx(fps, rel=1e-6)
    # 4:2:0 and crf 18 cost about a level and a half on this smooth pattern.
    error = np.abs(frames.astype(float) - textured)
    assert error.mean() < 3
    assert np.abs(error.mean(axis=(1, 2, 3)) - error.mean()).max() < 1  # every frame is its own


def test_opencv_reads_the_same_clip(tmp_path, textured):
    cv2 = pytest.importorskip("cv2")
    writing.write_video(tmp_path / "clip.mp4", textured, 24)
    ours, _ = video.read_video(tmp_path / "clip.mp4")
    capture = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    theirs = [capture.read()[1][..., ::-1] for _ in range(25)]
    assert not capture.read()[0]
    assert capture.get(cv2.CAP_PROP_FPS) == 24
    # OpenCV's conversion rounds down, by a level on average, and by up to two and a half.
    difference = ours.astype(float) - np.stack(theirs)
    assert 0 < difference.mean() < 1.5
    assert np.abs(difference).mean() < 2.5
    assert np.corrcoef(ours.ravel(), np.stack(theirs).ravel())[0, 1] > 0.999


def test_flat_colours_survive(tmp_path):
    colours = np.uint8([RED, BLUE, (250, 220, 30), (40, 200, 210), (255, 255, 255), (0, 0, 0)])
    frames = np.broadcast_to(colours[:, None, None], (6, 32, 32, 3))
    writing.write_video(tmp_path / "clip.mp4", frames, 24, crf=5)
    read, _ = video.read_video(tmp_path / "clip.mp4")
    # 8-bit YUV cannot hold every colour: rounding costs up to 2 levels.
    assert np.abs(read[:, 8:24, 8:24].astype(int) - frames[:, 8:24, 8:24]).max() <= 3


def test_the_file_is_one_that_browsers_play(tmp_path, textured):
    writing.write_video(tmp_path / "clip.mp4", textured, 24)
    data = (tmp_path / "clip.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is all there
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.colorspace == 1  # BT.709, and says so
        assert stream.codec_context.color_range == 1


def test_odd_sizes_gain_a_repeated_row_and_column(tmp_path, textured):
    odd = textured[:3, :63, :95]
    writing.write_video(tmp_path / "clip.mp4", odd, 24)
    frames, _ = video.read_video(tmp_path / "clip.mp4")
    assert frames.shape == (3, 64, 96, 3)
    assert np.abs(frames[:, :63, :95].astype(float) - odd).mean() < 3
    assert np.abs(frames[:, -1].astype(float) - frames[:, -2]).mean() < 4


@pytest.mark.thorough
def test_equal_frames_give_an_equal_file_wherever_they_lie_in_memory(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (9, 240, 426, 3)).astype(np.uint8)
    frames = frames // 16 * 4 + np.arange(426, dtype=np.uint8)[:, None] // 4  # noise on a ramp
    files = set()
    for size in range(1, 40_000, 5_000):
        hold = np.empty(size, np.uint8)
        writing.write_video(tmp_path / "clip.mp4", frames, 24)
        files.add((tmp_path / "clip.mp4").read_bytes())
        del hold
    assert len(files) == 1


def test_a_higher_crf_makes_a_smaller_file(tmp_path, textured):
    for crf in (10, 40):
        writing.write_video(tmp_path / f"{crf}.mp4", textured, 24, crf=crf)
    assert (tmp_path / "40.mp4").stat().st_size < (tmp_path / "10.mp4").stat().st_size / 2


@pytest.mark.parametrize(
    ("matrix", "corners"),
    [
        ((1, 0, 0, 1), "rb--"),
        ((0, 1, -1, 0), "-r-b"),  # a quarter turn clockwise: a phone held upright
        ((-1, 0, 0, -1), "--br"),
        ((0, -1, 1, 0), "b-r-"),
        ((-1, 0, 0, 1), "br--"),  # mirrored: a front camera
        ((0, 1, 1, 0), "r-b-"),
    ],
)
def test_rotation_and_mirroring_of_phones_are_applied(tmp_path, matrix, corners):
    """The display matrix is patched into the file's track header by hand."""
    path = tmp_path / "phone.mp4"
    writing.write_video(path, cornered(), 24)
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    begin = data.index(b"tkhd") + 44  # type, version, 20 bytes of times and ids, 16 of others
    data[begin : begin + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    frames, _ = video.read_video(path)
    turned = matrix[0] == 0
    assert frames.shape == ((3, 64, 48, 3) if turned else (3, 48, 64, 3))
    assert corner_colours(frames[0]) == corners
    with contextlib.suppress(ImportError):
        import cv2

        if corners not in ("br--", "r-b-"):  # OpenCV turns, but does not mirror
            theirs = cv2.VideoCapture(str(path)).read()[1][..., ::-1]
            assert corner_colours(theirs) == corners


def test_the_pixels_of_anamorphic_clips_become_square(tmp_path):
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        for picture in cornered():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    frames, _ = video.read_video(path)
    assert frames.shape == (3, 48, 96, 3)
    assert corner_colours(frames[0]) == "rb--"


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_resampling_takes_the_frame_on_the_screen(tmp_path, ending):
    """Matroska rounds its time stamps to milliseconds, which must not shift a frame."""
    path = write_timed(tmp_path / f"clip.{ending}", numbered(24), np.arange(24) / 24)
    assert numbers(video.read_video(path, frame_rate=24)[0]) == list(range(24))
    assert numbers(video.read_video(path, frame_rate=12)[0]) == list(range(0, 24, 2))
    assert numbers(video.read_video(path, frame_rate=48)[0]) == [k // 2 for k in range(48)]
    frames, fps = video.read_video(path, frame_rate=30)
    assert numbers(frames) == [k * 24 // 30 for k in range(30)]
    assert fps == 30


def test_variable_frame_rates_are_resampled_by_time(tmp_path):
    times = [0.0, 0.1, 0.15, 0.6, 0.62, 0.9]
    path = write_timed(tmp_path / "phone.mkv", numbered(6), times)
    assert numbers(video.read_video(path)[0]) == list(range(6))
    frames, _ = video.read_video(path, frame_rate=10, num_frames=10)
    assert numbers(frames) == [0, 1, 2, 2, 2, 2, 3, 4, 4, 5]


def write_timed(path: Path, frames: np.ndarray, times) -> Path:
    """Encodes frames shown at the given seconds, with a key frame every eighth."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(24), options={"g": "8", "crf": "5"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 24_000)
        for picture, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * 24_000), Fraction(1, 24_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_reading_starts_where_it_is_told(tmp_path, ending):
    path = write_timed(tmp_path / f"clip.{ending}", numbered(24), np.arange(24) / 24)
    for first in (0, 1, 7, 8, 15, 20):
        read, _ = video.read_video(path, start=first / 24, num_frames=3)
        assert numbers(read) == [first, first + 1, first + 2]
    between, _ = video.read_video(path, start=5.5 / 24, num_frames=2)
    assert numbers(between) == [5, 6]  # frame 5 is the one on the screen then
    resampled, _ = video.read_video(path, start=10 / 24, frame_rate=12, num_frames=4)
    assert numbers(resampled) == [10, 12, 14, 16]


def test_a_clip_shorter_than_asked_gives_what_it_has(tmp_path):
    writing.write_video(tmp_path / "clip.mp4", numbered(5), 24)
    assert numbers(video.read_video(tmp_path / "clip.mp4", num_frames=9)[0]) == [0, 1, 2, 3, 4]
    assert numbers(video.read_video(tmp_path / "clip.mp4", num_frames=2)[0]) == [0, 1]


def _good(path: Path) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (25, 64, 96, 3), dtype=np.uint8)
    writing.write_video(path, noise, 24)
    return path.read_bytes()


def _make_bad(kind: str, folder: Path) -> Path:
    path = folder / "bad.mp4"
    if kind == "folder":
        return folder
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no video\n" * 100)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(1).bytes(20_000))
    elif kind == "truncated":
        path.write_bytes(_good(path)[:-2000])
    elif kind == "headless":
        path.write_bytes(_good(path)[-20_000:])
    elif kind == "scrambled":
        data = bytearray(_good(path))
        middle = len(data) // 2
        data[middle : middle + 4000] = np.random.default_rng(2).bytes(4000)
        path.write_bytes(data)
    elif kind == "still":
        path = folder / "still.png"
        Image.new("RGB", (16, 16)).save(path)
    elif kind == "sound":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=44_100, layout="mono")
            sound = np.zeros((1, 4096), np.float32)
            frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
            frame.sample_rate = 44_100
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no file .*bad.mp4"),
        ("folder", "is a folder"),
        ("empty", "bad.mp4 is empty"),
        ("text", "bad.mp4 is not a video"),
        ("noise", "bad.mp4 is not a video"),
        ("truncated", "bad.mp4 is truncated or damaged after [0-9]+ frames"),
        ("headless", "bad.mp4 is not a video, or is truncated or damaged"),
        ("scrambled", "bad.mp4 is .*damaged"),
        ("still", "still.png is a still image; a clip is expected"),
        ("sound", "bad.mp4 has no video stream, only audio"),
    ],
)
def test_each_bad_clip_is_an_error_that_names_it(tmp_path, kind, message):
    with pytest.raises(ValueError, match=message):
        video.read_video(_make_bad(kind, tmp_path))


def test_a_broken_frame_is_an_error_and_not_a_smear(tmp_path):
    """FFmpeg shows what it can of such a frame, and marks it."""
    noise = np.random.default_rng(0).integers(0, 255, (3, 64, 96, 3), dtype=np.uint8)
    path = write_timed(tmp_path / "bad.mkv", noise, np.arange(3) / 24)
    data = bytearray(path.read_bytes())
    middle = len(data) // 6  # inside the first frame
    data[middle : middle + 2000] = np.random.default_rng(2).bytes(2000)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"bad.mkv is damaged: the frame at 0.00 s is broken"):
        video.read_video(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "noise", "truncated"])
def test_probing_finds_what_reading_would(tmp_path, kind):
    path = _make_bad(kind, tmp_path)
    with pytest.raises(ValueError, match=r".") as read:
        video.read_video(path)
    with pytest.raises(ValueError, match=r".") as probed:
        video.probe(path)
    # Frames that a decoder holds back are not counted alike.
    assert re.sub("[0-9]+ frames", "", str(probed.value)) == re.sub(
        "[0-9]+ frames", "", str(read.value)
    )


def test_probing_tells_what_reading_gives(tmp_path):
    clips = [tmp_path / "a.mp4", tmp_path / "b.mkv", tmp_path / "c.gif", tmp_path / "d.mkv"]
    writing.write_video(clips[0], numbered(7), 24)
    write_timed(clips[1], numbered(9), np.arange(9) / 24)
    writing.write_gif(clips[2], numbered(5), 10)
    write_timed(clips[3], numbered(5), [0.0, 0.1, 0.2, 0.5, 0.6])
    for path in clips:
        frames, rate = video.read_video(path)
        facts = video.probe(path)
        assert facts[:3] == frames.shape[:3]
        assert facts.frame_rate == rate
        assert facts.steady == (path != clips[3])
        # Resampled, a clip has as many frames as it has ticks.
        assert len(video.read_video(path, frame_rate=50)[0]) == round(50 * facts.seconds)
    writing.write_image(tmp_path / "e.png", cornered(30, 20)[0])
    assert video.probe(tmp_path / "e.png") == (1, 30, 20, 0, 0, True)


def test_what_a_trimmed_clip_does_not_show_is_not_counted(tmp_path):
    """As `ffmpeg -ss 0.5 -c copy` and phones trim: from the key frame before, which is kept."""
    whole = write_timed(tmp_path / "whole.mp4", numbered(24), np.arange(24) / 24)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        [stream] = source.streams.video
        copy = cut.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts = (
                    round(time - 0.5 / stream.time_base) for time in (packet.pts, packet.dts)
                )
                packet.stream = copy
                cut.mux(packet)
    frames, _ = video.read_video(tmp_path / "cut.mp4")
    assert numbers(frames) == list(range(12, 24))
    facts = video.probe(tmp_path / "cut.mp4")
    assert facts.frames == 12
    assert facts.seconds == pytest.approx(0.5, abs=0.01)


def test_a_file_that_cannot_be_entered_is_read_from_its_start(tmp_path):
    path = write_timed(tmp_path / "camera.h264", numbered(24), np.arange(24) / 24)
    read, rate = video.read_video(path, start=10 / 24, num_frames=3)
    assert numbers(read) == [round(10 / 24 * rate) + k for k in range(3)]


def test_a_file_in_memory_is_read_as_on_disk(tmp_path):
    writing.write_video(tmp_path / "a.mp4", numbered(7), 24)
    writing.write_image(tmp_path / "b.png", cornered()[0])
    clip, picture = (
        inputs.Stored("stored", (tmp_path / name).read_bytes()) for name in ("a.mp4", "b.png")
    )
    assert video.probe(clip) == video.probe(tmp_path / "a.mp4")
    for options in ({}, {"start": 0.1, "num_frames": 2}):
        frames, rate = video.read_video(clip, **options)
        expected, _ = video.read_video(tmp_path / "a.mp4", **options)
        np.testing.assert_array_equal(frames, expected)
        assert rate == 24
    assert pictures.is_image(picture)
    np.testing.assert_array_equal(pictures.read_image(picture), cornered()[0])
    for content, message in ((b"", "stored is empty"), (b"text" * 99, "stored is not a video")):
        with pytest.raises(ValueError, match=message):
            video.read_video(inputs.Stored("stored", content))


def test_reading_past_the_end_is_an_error(tmp_path):
    writing.write_video(tmp_path / "clip.mp4", numbered(5), 24)
    with pytest.raises(ValueError, match=r"clip.mp4 has no frame .*after 3.0 s"):
        video.read_video(tmp_path / "clip.mp4", start=3.0)
    for wrong in ({"num_frames": 0}, {"start": -1.0}, {"frame_rate": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            video.read_video(tmp_path / "clip.mp4", **wrong)


def test_still_images_are_told_from_clips(tmp_path):
    still, moving, clip = (tmp_path / name for name in ("a.png", "b.gif", "c.mp4"))
    writing.write_image(still, cornered()[0])
    writing.write_gif(moving, numbered(5), 10)
    writing.write_video(clip, numbered(5), 10)
    (tmp_path / "text.png").write_text("no picture")
    assert pictures.is_image(still)
    for other in (moving, clip, tmp_path / "text.png"):
        assert not pictures.is_image(other)
    assert len(video.read_media(still)) == 1
    assert len(video.read_media(clip)) == len(video.read_media(moving)) == 5


@pytest.mark.parametrize(
    ("orientation", "corners"),
    [(1, "rb--"), (2, "br--"), (3, "--br"), (5, "r-b-"), (6, "-r-b"), (8, "b-r-")],
)
def test_pictures_are_read_upright(tmp_path, orientation, corners):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(cornered()[0]).save(tmp_path / "photo.png", exif=exif)
    assert corner_colours(pictures.read_image(tmp_path / "photo.png")) == corners


def test_transparency_lies_over_white_and_greys_are_rgb(tmp_path):
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2] = (255, 0, 0, 128)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    read = pictures.read_image(tmp_path / "clear.png")
    assert (read[3] == 255).all()
    assert np.abs(read[0].astype(int) - (255, 127, 127)).max() <= 1
    grey = np.full((4, 4), 200, np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("grey.png", "deep.png"):
        np.testing.assert_array_equal(pictures.read_image(tmp_path / name), np.full((4, 4, 3), 200))


def test_bad_pictures_are_errors_that_name_them(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"text.png is not an image"):
        pictures.read_image(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"cut.png is a damaged or unreadable image"):
        pictures.read_image(tmp_path / "cut.png")


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "clip.mp4").mkdir()
    for place in (tmp_path / "file" / "clip.mp4", tmp_path / "clip.mp4"):
        with pytest.raises(ValueError, match=r"cannot write .*clip.mp4"):
            writing.write_video(place, numbered(3), 24)
        with pytest.raises(ValueError, match=r"cannot write .*clip.mp4"):
            files.check_writable(place)
    files.check_writable(tmp_path / "new" / "clip.mp4")
    assert not (tmp_path / "new").exists()


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "clip.mp4"
    writing.write_video(path, numbered(3), 24)
    before = path.read_bytes()

    def frames_until_the_disk_is_full():
        yield from np.zeros((90, 32, 48, 3), np.uint8)  # the encoder holds some forty back
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ValueError, match=r"cannot write .*clip.mp4: No space left"):
        writing.write_video(path, frames_until_the_disk_is_full(), 24)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_what_cannot_be_written_as_a_video_is_said(tmp_path):
    for wrong in (numbered(2).astype(np.float32), numbered(2)[..., :2], numbered(2)[:0]):
        # Below the type check, which runs in tests alone.
        with pytest.raises(ValueError, match="frames must be uint8"):
            writing._check_frames(wrong)
    with pytest.raises(ValueError, match="fps must lie between 0 and 1000, got 0"):
        writing.write_video(tmp_path / "a.mp4", numbered(2), 0)
    with pytest.raises(ValueError, match=r"must end in .mp4"):
        writing.write_video(tmp_path / "a.avi", numbered(2), 24)
    with pytest.raises(ValueError, match="crf must lie between 0 and 51"):
        writing.write_video(tmp_path / "a.mp4", numbered(2), 24, crf=52)
    assert not any(tmp_path.iterdir())


def test_gifs_last_as_long_as_they_should(tmp_path):
    writing.write_gif(tmp_path / "clip.gif", numbered(24), 24)
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.n_frames == 24
        assert image.info["loop"] == 0
        milliseconds = 0
        for i in range(24):
            image.seek(i)
            milliseconds += image.info["duration"]
    assert milliseconds == 1000
    frames, _ = video.read_video(tmp_path / "clip.gif")
    assert numbers(frames) == list(range(24))


def test_contact_sheets_show_frames_evenly_below_their_label():
    picture = contact_sheet([numbered(11), cornered()], ["eleven", "three"], columns=3)
    height = 6 + (16 + 32 + 12) + (16 + 48 + 12)
    assert picture.shape == (height, 6 + 3 * (64 + 6), 3)
    for i, level in enumerate((8, 48, 88)):  # frames 0, 5 and 10
        left = 6 + i * (48 + 6)
        assert (picture[24:56, left : left + 48] == level).all()
    assert picture[6:22].min() < 100  # the label
    with pytest.raises(ValueError, match="2 clips and 1 labels"):
        contact_sheet([cornered(), cornered()], ["one"])


@pytest.mark.parametrize(
    ("stored", "wanted", "kept"),
    [
        ((240, 426), (128, 192), (slice(0, 240), slice(33, 393))),
        ((240, 427), (128, 128), (slice(0, 240), slice(93, 333))),
        ((100, 200), (30, 50), (slice(0, 100), slice(17, 183))),  # 166.67 is cut to 166
        ((426, 240), (128, 192), (slice(133, 293), slice(0, 240))),
        ((100, 101), (32, 32), (slice(0, 100), slice(0, 100))),
        ((101, 100), (33, 97), (slice(33, 67), slice(0, 100))),  # 100 / (97 / 33) = 34.02
    ],
)
def test_conditions_are_cut_to_the_aspect_around_the_centre(stored, wanted, kept):
    frames = np.random.default_rng(0).integers(0, 255, (1, *stored, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pixels.crop_to_aspect(frames, *wanted), frames[:, *kept])


def test_the_blur_is_opencvs():
    cv2 = pytest.importorskip("cv2")
    frames = np.random.default_rng(0).random((2, 33, 40, 3), dtype=np.float32)
    theirs = [cv2.GaussianBlur(f, (3, 3), 1, borderType=cv2.BORDER_REFLECT_101) for f in frames]
    np.testing.assert_allclose(gaussian_blur(frames), np.stack(theirs), atol=1e-6)
    row = np.ones((1, 1, 5, 3), np.float32)
    np.testing.assert_allclose(gaussian_blur(row), row, atol=1e-6)


def test_preparation_can_be_turned_off(textured):
    plain = prepare_condition(textured[:2], 64, 96, blur=False, crf=0)
    np.testing.assert_allclose((plain + 1) * 127.5, textured[:2], atol=1e-4)
    assert plain.dtype == np.float32


def test_preparation_blurs_then_compresses_each_frame_by_itself():
    noise = np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), dtype=np.uint8)
    sharp, blurred, coded, full = (
        prepare_condition(noise, 48, 64, blur=blur, crf=crf)
        for blur, crf in ((False, 0), (True, 0), (False, 29), (True, 29))
    )
    np.testing.assert_allclose(blurred, gaussian_blur((sharp + 1) / 2) * 2 - 1, atol=1e-6)
    assert np.abs(coded - sharp).mean() > 0.1  # noise does not survive
    assert np.abs(full - blurred).mean() < np.abs(full - sharp).mean()
    np.testing.assert_array_equal(prepare_condition(noise[1:2], 48, 64)[0], full[1])
    assert full.min() >= -1
    assert full.max() <= 1


def test_a_smooth_condition_comes_through_nearly_unchanged(textured):
    prepared = prepare_condition(textured[:1], 64, 96)
    # crf 29 costs about two levels, and truncation half a level.
    assert np.abs((prepared + 1) * 127.5 - textured[:1]).mean() < 5


def test_odd_condition_sizes_are_kept(textured):
    """The official compressor cuts an odd last row and column off."""
    assert prepare_condition(textured[:1], 45, 67).shape == (1, 45, 67, 3)
    assert prepare_condition(textured[:1], 1, 1).shape == (1, 1, 1, 3)


@pytest.mark.parametrize("size", [(30, 30), (20, 50), (64, 96), (100, 120), (33, 47)])
def test_resizing_does_not_shift_or_stretch_the_picture(size):
    """Of a plane of rising level every output pixel shows the level at its own centre."""
    height, width = size
    y, x = np.mgrid[:64, :96]
    plane = np.stack([2 * x + 20, 3 * y + 20, x + y + 20], axis=-1).astype(np.uint8)
    scale = min(64 / height, 96 / width)
    rows = 32 + (np.arange(height) + 0.5 - height / 2) * scale - 0.5
    columns = 48 + (np.arange(width) + 0.5 - width / 2) * scale - 0.5
    resized = pixels.resize_crop(plane[None], height, width)[0]
    inner = np.s_[3:-3, 3:-3]  # the filter mirrors nothing at the edge
    # Half a level of rounding, and as much for Pillow's fixed-point weights.
    expected = np.broadcast_to(2 * columns + 20, size)
    assert np.abs(resized[..., 0].astype(float) - expected)[inner].max() <= 1.05
    expected = np.broadcast_to((3 * rows + 20)[:, None], size)
    assert np.abs(resized[..., 1].astype(float) - expected)[inner].max() <= 1.05


def test_resizing_is_antialiased():
    lines = np.zeros((1, 96, 96, 3), np.uint8)
    lines[:, :, ::2] = 255
    assert np.ptp(pixels.resize_crop(lines, 20, 20)[0, 4:-4, 4:-4].astype(int)) < 16
    with pytest.raises(ValueError, match="height and width must be positive"):
        pixels.resize_crop(lines, 0, 20)
