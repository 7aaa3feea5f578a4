"""Files as users have them: each is read right, or refused by a sentence that names it."""

import contextlib
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from peak_memory import PEAK
from PIL import Image

from ltx_jax.config import SampleConfig
from ltx_jax.data import folder, inputs, pictures, video
from ltx_jax.inference import outputs
from ltx_jax.prepare import input_files

WHITE, RED, GREEN, BLUE, YELLOW = (
    (255, 255, 255),
    (201, 30, 30),
    (30, 201, 30),
    (30, 30, 201),
    (220, 220, 40),
)


def is_colour(pixel: np.ndarray, colour: tuple[int, int, int], tolerance: int = 6) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= tolerance)


def quarters(side: int = 256) -> np.ndarray:
    """Red, green over blue, yellow."""
    picture = np.empty((side, side, 3), np.uint8)
    half = side // 2
    picture[:half, :half], picture[:half, half:] = RED, GREEN
    picture[half:, :half], picture[half:, half:] = BLUE, YELLOW
    return picture


def boxes(count: int, opaque: bool) -> list[Image.Image]:
    """A red box that moves right, on nothing or on blue."""
    frames = []
    for i in range(count):
        frame = np.zeros((32, 64, 4), np.uint8)
        frame[...] = (*BLUE, 255) if opaque else 0
        frame[8:24, 4 * i : 4 * i + 16] = (*RED, 255)
        frames.append(Image.fromarray(frame))
    return frames


def encode(
    path: Path,
    frames: list[np.ndarray],
    codec: str = "libx264",
    form: str = "yuv420p",
    *,
    container: str | None = None,
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    transfer: int | None = None,
) -> Path:
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=24, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = form
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if transfer is not None:
            stream.codec_context.color_trc = transfer
        layout = "rgba" if frames[0].shape[-1] == 4 else "rgb24"
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format=layout).reformat(format=form)
            if transfer is not None:
                frame.color_trc = transfer
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


@pytest.fixture
def heif():
    return pytest.importorskip("pillow_heif")


def heic_grid(path: Path, heif) -> Path:
    """Tiles of 128, as phones write them, where the encoder can."""
    heif.register_heif_opener()
    Image.fromarray(quarters()).save(path, format="HEIF", quality=90)
    return path


def test_a_heic_photograph_is_read_whole(tmp_path, heif):
    picture = video.read_media(heic_grid(tmp_path / "a.heic", heif))
    assert picture.shape == (1, 256, 256, 3)
    for (row, column), colour in zip(
        ((64, 64), (64, 192), (192, 64), (192, 192)), (RED, GREEN, BLUE, YELLOW), strict=True
    ):
        assert is_colour(picture[0, row, column], colour)


def test_a_heic_photograph_without_its_reader_is_refused_by_name(tmp_path, heif, monkeypatch):
    path = heic_grid(tmp_path / "a.heic", heif)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for read in (video.read_media, video.probe, pictures.is_image):
        with pytest.raises(ValueError, match=r"a.heic is a HEIC picture.*ltx-jax\[heic\]"):
            read(path)


@pytest.mark.parametrize("ending", ["webp", "png", "gif", "avif"])
@pytest.mark.parametrize("opaque", [True, False])
def test_animations_are_clips_over_white(tmp_path, ending, opaque):
    first, *others = boxes(9, opaque)
    path = tmp_path / f"a.{ending}"
    # WebP: each frame whole, else libwebp forgets to say that there is transparency.
    options = {"webp": {"lossless": True, "kmax": 1}}.get(ending, {"disposal": 0 if opaque else 2})
    first.save(path, save_all=True, append_images=others, duration=40, **options)
    frames, rate = video.read_video(path)
    assert frames.shape == (9, 32, 64, 3)
    assert rate == pytest.approx(25)
    assert video.probe(path)[:3] == (9, 32, 64)
    tolerance = 24 if ending == "avif" else 6  # AVIF has a loss, and 4:2:0
    for i, frame in enumerate(frames):
        assert is_colour(frame[16, 4 * i + 8], RED, tolerance)
        assert is_colour(frame[4, 2], BLUE if opaque else WHITE, tolerance)


def test_animations_are_resampled_by_the_times_of_their_frames(tmp_path):
    levels = [Image.fromarray(np.full((16, 16, 3), 20 * i, np.uint8)) for i in range(1, 5)]
    path = tmp_path / "a.png"
    levels[0].save(path, save_all=True, append_images=levels[1:], duration=[100, 300, 100, 100])
    frames, _ = video.read_video(path, frame_rate=10)
    assert [int(frame[0, 0, 0]) // 20 for frame in frames] == [1, 2, 2, 2, 3, 4]
    assert not video.probe(path).steady


@pytest.mark.parametrize("ending", ["webp", "png"])
def test_animations_are_turned_as_their_exif_says(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 6
    first, *others = boxes(3, opaque=True)
    path = tmp_path / f"a.{ending}"
    first.save(path, save_all=True, append_images=others, duration=40, exif=exif)
    frames, _ = video.read_video(path)
    assert frames.shape == (3, 64, 32, 3)
    assert is_colour(frames[0][2, 16], RED, 24)  # the left edge is above now


def test_a_preview_before_the_video_is_not_taken_for_it(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        streams = [file.add_stream("libx264", rate=24) for _ in range(2)]
        for stream, side in zip(streams, (32, 128), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
        for _ in range(5):
            for stream, side in zip(streams, (32, 128), strict=True):
                picture = av.VideoFrame.from_ndarray(quarters(side), format="rgb24")
                file.mux(stream.encode(picture))
        for stream in streams:
            file.mux(stream.encode())
    assert video.read_video(path)[0].shape == (5, 128, 128, 3)
    assert video.probe(path)[:3] == (5, 128, 128)


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(8, 9)])
def test_pixels_become_square_wherever_media_are_read(tmp_path, aspect):
    """A disc on a grid of other pixels is a round disc."""
    y, x = np.mgrid[:144, :96]
    inside = ((x - 47.5) * float(aspect)) ** 2 + (y - 71.5) ** 2 < 36**2
    picture = np.where(inside[..., None], np.uint8(220), np.uint8(30)).repeat(3, axis=2)
    path = encode(tmp_path / "a.mkv", [picture] * 5, aspect=aspect)
    width = round(96 * float(aspect))
    facts = video.probe(path)
    assert (facts.height, facts.width) == (144, width)
    [shown, *_] = video.decode_video(path)
    assert shown.size == (144, width)
    reduced = shown.bgr(72).shape[:2]
    assert max(reduced) == 72
    assert reduced[1] / reduced[0] == pytest.approx(width / 144, rel=0.05)
    clip, _ = folder.load_clip(path, 1, 128, 128)
    for frame in (video.read_media(path)[0], next(video.stream_video(path)), clip[0]):
        rows, columns = np.nonzero(frame[..., 0] > 125)
        assert abs(np.ptp(rows) - np.ptp(columns)) <= 2


@pytest.mark.parametrize("kind", ["vp9", "prores", "png"])
def test_transparent_videos_lie_over_white(tmp_path, kind):
    frames = [np.asarray(frame) for frame in boxes(5, opaque=False)]
    if kind == "vp9":
        path = encode(tmp_path / "a.webm", frames, "libvpx-vp9", "yuva420p")
    else:
        codec, form = {"prores": ("prores_ks", "yuva444p10le"), "png": ("png", "rgba")}[kind]
        path = encode(tmp_path / "a.mov", frames, codec, form)
    read, _ = video.read_video(path)
    assert is_colour(read[2][30, 60], WHITE, 4)
    assert is_colour(read[2][16, 16], RED, 30)
    assert all(frame.is_transparent for frame in video.decode_video(path))


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_refused_with_a_way_out_wherever_media_are_read(tmp_path, transfer):
    frames = [quarters(64)] * 5
    path = encode(
        tmp_path / "a.mkv", frames, "libx265", "yuv420p10le", transfer=transfer,
        options={"x265-params": "log-level=none"},
    )  # fmt: skip
    for read in (video.read_media, video.read_video, video.probe, _stream):
        with pytest.raises(ValueError, match=r"a.mkv is high dynamic range: .*tonemap"):
            read(path)
    assert video.probe(path, any_picture=True).frames == 5


def _stream(path: Path) -> None:
    next(video.stream_video(path))


def test_interlaced_videos_are_refused_with_a_way_out(tmp_path):
    options = {"flags": "+ildct+ilme"}
    path = encode(tmp_path / "a.mkv", [quarters(64)] * 5, "mpeg2video", options=options)
    for read in (video.read_media, video.probe):
        with pytest.raises(ValueError, match=r"a.mkv is interlaced: deinterlace it first"):
            read(path)


def test_too_large_pictures_and_videos_are_said_to_be_that(tmp_path, monkeypatch):
    # A picture of 15,000 x 14,000 that is one colour, in a few bytes.
    Image.new("1", (15_000, 14_000)).save(tmp_path / "a.png")
    for read in (video.read_media, video.probe, pictures.read_image, video.read_video):
        with pytest.raises(ValueError, match=r"a.png is too large: 210 megapixels, and at most"):
            read(tmp_path / "a.png")
    path = encode(tmp_path / "b.mkv", [quarters(64)] * 3)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 4000)
    with pytest.raises(ValueError, match=r"b.mkv is too large"):
        video.read_video(path)


def test_a_playlist_does_not_pull_in_other_files(tmp_path):
    encode(tmp_path / "secret.ts", [quarters(64)] * 3)
    lists = {
        "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n",
        "b.mp4": "ffconcat version 1.0\nfile secret.ts\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        stored = inputs.Stored(name, text.encode())
        for file in (tmp_path / name, stored):
            with pytest.raises(ValueError, match=rf"{name} is not a video"):
                video.read_video(file)


def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    for path in (tmp_path / "a.mp4", Path("/dev/zero")):
        for read in (video.read_media, video.probe, pictures.is_image, inputs.read_text):
            with pytest.raises(ValueError, match=f"{path.name} is a pipe or a device"):
                read(path)


def test_names_that_look_like_protocols_are_names(tmp_path):
    encode(tmp_path / "concat:a.mkv", [quarters(64)] * 3)
    with contextlib.chdir(tmp_path):
        assert len(video.read_media("concat:a.mkv")) == 3


def test_lines_end_at_newlines_alone(tmp_path):
    path = tmp_path / "prompts.txt"
    text = "a star\u2028moves\x0bleft \r\n\r\n größer\x85 \n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(text.encode(encoding))
        assert inputs.read_lines(path) == ["a star\u2028moves\x0bleft", "", "größer", ""]
    path.write_bytes("größer".encode("cp1252"))
    with pytest.raises(ValueError, match=r"prompts.txt cannot be read as UTF-8.*save it as UTF-8"):
        inputs.read_lines(path)


def test_a_prompts_file_gives_a_video_for_each_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa star\u2028moves\r\n\r\na ring\x0bturns\r\n".encode())
    videos = outputs.planned_videos(SampleConfig(prompts_file=str(path), output_path=str(tmp_path)))
    assert [video.prompt for video in videos] == ["a star\u2028moves", "a ring\x0bturns"]


@pytest.mark.parametrize("pattern", ["", "**/*", "**/*.mp4", "sub/**"])
def test_preparation_follows_links_to_folders_once(tmp_path, pattern):
    raw = tmp_path / "raw"
    (raw / "sub").mkdir(parents=True)
    (raw / "sub" / "a.mp4").write_bytes(b"?")
    (raw / "sub" / "loop").symlink_to(raw)
    (raw / "sub" / "again").symlink_to(raw / "sub")
    files = input_files.find([os.path.join(raw, pattern) if pattern else str(raw)])
    assert [medium.place for medium in files] == [raw / "sub" / "a.mp4"]


@pytest.mark.slow
@pytest.mark.parametrize("read", ["frame.luma(256)", "frame.rgb()"])
def test_memory_is_flat_however_many_large_frames_are_decoded(tmp_path, read):
    """Frames of 8K, looked at one after the other."""
    picture = np.zeros((4320, 7680, 3), np.uint8)
    path = encode(tmp_path / "a.mp4", [picture] * 60, options={"preset": "ultrafast"})
    program = f"""
{PEAK}
import gc
from ltx_jax.data import video

gc.disable()  # memory must not hang on it
for i, frame in enumerate(video.decode_video({str(path)!r})):
    {read}
    if i == 30:
        early = peak()
print(i + 1, early // 2**20, peak() // 2**20)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    count, early, late = map(int, result.stdout.split())
    assert count == 60
    assert late - early < 50  # MiB; one frame of 8K is 50 as stored and 100 as RGB
    assert late < 600


@pytest.mark.parametrize(
    ("name", "mark", "offset", "instead"),
    [
        ("a.npy", b"(2, 3)", 1, b"("),  # a header that Python cannot parse
        ("a.npy", b"'<f4'", 0, b"'|O'"),  # objects, which would be unpickled
        ("a.npz", b"PK\x01\x02", 6, b"\xff"),  # needs a later version of zip
        ("a.npz", b"NUMPY", 0, b"M"),
        ("a.npz", b"PK\x05\x06", 3, b"\x05"),
    ],
)
def test_damaged_arrays_are_refused_by_name(tmp_path, name, mark, offset, instead):
    path = tmp_path / name
    (np.save if name.endswith("y") else np.savez)(path, np.ones((2, 3), np.float32))
    inputs.read_arrays(path)
    content = path.read_bytes()
    start = content.index(mark) + offset
    path.write_bytes(content[:start] + instead + content[start + len(instead) :])
    with pytest.raises(ValueError, match=f"{name} is no .npy or .npz of numbers"):
        inputs.read_arrays(path)


def test_a_frame_that_claims_to_be_huge_is_said_to_be_too_large(tmp_path):
    path = tmp_path / "a.gif"
    first, *others = boxes(3, opaque=True)
    first.save(path, save_all=True, append_images=others)
    content = bytearray(path.read_bytes())
    # The second frame: its control extension, and then its descriptor: a comma, place and size.
    second = list(re.finditer(rb"\x21\xf9\x04.{4}\x00,", content, re.DOTALL))[1]
    content[second.end() + 4 : second.end() + 8] = b"\xff" * 4
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"a\.gif is too large: \d+ megapixels"):
        video.read_media(path, num_frames=3)
