"""What `ltx-sample` writes for each ending, read back by other programs."""

import re

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from ltx_jax.config import SampleConfig
from ltx_jax.data import writing
from ltx_jax.inference import outputs

SHAPE = (6, 65, 97)  # odd: 4:2:0 needs even sides


@pytest.fixture(scope="module")
def moving() -> np.ndarray:
    """A smooth pattern that moves, all colours, in [-1, 1]."""
    t, y, x = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    hues = (0.0, 0.3, 0.6)
    channels = [np.sin(0.13 * x + 0.1 * t + k) * np.cos(0.09 * y - 0.05 * t * k) for k in hues]
    return (0.9 * np.stack(channels, axis=-1)).astype(np.float32)


def levels(pixels: np.ndarray) -> np.ndarray:
    return np.round((pixels + 1) * 127.5).astype(np.uint8)


def opencv_frames(path) -> tuple[np.ndarray, float]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1][..., ::-1])
    return np.stack(frames).astype(float), capture.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize(
    ("name", "codec", "form", "error"),
    [
        ("a.mp4", "h264", "yuv420p", 3.0),
        ("a.webm", "vp9", "yuv420p", 3.0),
        ("A.MOV", "prores", "yuv444p1", 1.2),  # FFmpeg decodes its 10 bits to 10 or 12
    ],
)
def test_a_video_has_the_codec_of_its_ending(moving, tmp_path, name, codec, form, error):
    path, (count, height, width) = tmp_path / name, SHAPE
    writing.write(path, moving if writing.is_deep(path) else levels(moving), 24)
    frames, rate = opencv_frames(path)
    assert (len(frames), rate) == (count, 24.0)
    shown = frames[:, :height, :width]
    assert np.abs(shown - levels(moving)).mean() < error
    # OpenCV converts 4:2:0 by swscale's shortcuts, which darken by 0.9 to 1.5 levels.
    assert np.abs((shown - levels(moving)).mean(axis=(0, 1, 2))).max() < 1.6
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == codec
        assert stream.codec_context.pix_fmt.startswith(form)
        frame = next(container.decode(stream))
        assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, 16 to 235


def test_a_mov_holds_more_than_8_bits(tmp_path):
    ramp = np.linspace(-1, 1, 1024, dtype=np.float32)
    frames = np.broadcast_to(ramp[None, None, :, None], (2, 32, 1024, 3)).copy()
    writing.write(tmp_path / "ramp.mov", frames, 24)
    with av.open(str(tmp_path / "ramp.mov")) as container:
        frame = next(container.decode(video=0))
        luma = np.frombuffer(frame.planes[0], np.uint16).reshape(32, -1)[:, :1024]
        levels_of_8 = luma / 2 ** (frame.format.components[0].bits - 8)
    expected = 16 + 219 * (ramp + 1) / 2
    assert np.abs(levels_of_8.mean(axis=0) - expected).mean() < 0.15  # 10 bits round to 0.125
    assert len(np.unique(luma)) > 500


def test_a_gif_moves_in_other_viewers(moving, tmp_path):
    writing.write(tmp_path / "a.gif", levels(moving), 20)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == len(moving)
        for frame, expected in enumerate(levels(moving)):
            image.seek(frame)
            shown = np.asarray(image.convert("RGB")).astype(float)
            assert image.info["duration"] == 50
            assert np.abs(shown - expected).mean() < 6  # 256 colours for all frames


@pytest.mark.parametrize(("name", "error"), [("a.png", 0), ("a.webp", 0), ("a.JPG", 1.5)])
def test_one_frame_is_a_picture(moving, tmp_path, name, error):
    writing.write(tmp_path / name, levels(moving[:1]), 24)
    with Image.open(tmp_path / name) as image:
        assert image.format == {"g": "PNG", "p": "WEBP", "G": "JPEG"}[name[-1]]
        shown = np.asarray(image.convert("RGB")).astype(float)
    assert np.abs(shown - levels(moving[0])).mean() <= error


def test_a_sequence_of_pngs_has_16_bits(moving, tmp_path):
    writing.write(tmp_path / "100%" / "grade.%03d.png", moving, 24)
    names = [f"grade.{i:03d}.png" for i in range(len(moving))]
    assert sorted(path.name for path in (tmp_path / "100%").iterdir()) == names
    for name, expected in zip(names, moving, strict=True):
        read = cv2.imread(str(tmp_path / "100%" / name), cv2.IMREAD_UNCHANGED)[..., ::-1]
        assert read.dtype == np.uint16
        assert np.abs(read - (expected.astype(float) + 1) * 32767.5).max() < 0.51  # of float32
        assert len(np.unique(read & 255)) == 256  # not 8 bits, shifted or repeated


def test_what_cannot_be_written_is_refused_by_name(moving, tmp_path):
    for name, message in [
        ("a.png", "a.png is one picture, and there are 6 frames; a video is .mp4"),
        ("a.avi", "a.avi must end in .mp4, .webm, .mov"),
        ("a.mov", "a.mov holds more than 8 bits and takes float pixels"),
        ("a_%02d.png", "takes float pixels"),
    ]:
        with pytest.raises(ValueError, match=message):
            writing.write(tmp_path / name, levels(moving), 24)
    for rate in (0, -1, float("nan"), float("inf"), 1e9):
        for name in ("a.mp4", "a.webm", "a.gif"):
            with pytest.raises(ValueError, match="fps must lie between 0 and 1000"):
                writing.write(tmp_path / name, levels(moving), rate)
            with pytest.raises(ValueError, match="fps must lie between 0 and 1000"):
                writing.write_video(tmp_path / "a.mp4", iter(levels(moving)), rate)
    assert not list(tmp_path.iterdir())


def planned(path, **changes):
    cfg = SampleConfig(**{"prompt": "a", "output_path": str(path), "seed": 1, **changes})
    return [str(video.path) for video in outputs.planned_videos(cfg)]


@pytest.mark.parametrize("name", ["x.mp4", "x.MOV", "x.webm", "x.gif", "x_%04d.png"])
def test_a_file_is_what_its_ending_says(tmp_path, name):
    assert planned(tmp_path / name) == [str(tmp_path / name)]
    cfg = SampleConfig(prompt="", output_path=str(tmp_path / name))
    rows = [video.path.name for video in outputs.planned_videos(cfg, rows=2)]
    stem, dot, ending = name.rpartition(".")
    assert rows == [f"{stem}_0{dot}{ending}", f"{stem}_1{dot}{ending}"]


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.jpeg", "x.webp"])
def test_a_picture_is_of_one_frame(tmp_path, name):
    assert planned(tmp_path / name, num_frames=1) == [str(tmp_path / name)]
    message = f"{re.escape(name)}, a picture, and num_frames is 121; a video is .mp4"
    with pytest.raises(ValueError, match=message):
        planned(tmp_path / name)


@pytest.mark.parametrize("name", ["x.avi", "x.mkv", "x.bmp", "x.tiff", "x.y", "x_%04d.jpg"])
def test_another_ending_is_refused_with_what_there_is(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.webm \(VP9\), \.mov \(ProRes 4444\) or \.gif"):
        planned(tmp_path / name)


def test_folders_may_have_dots(tmp_path):
    (tmp_path / "run.of.today").mkdir()
    for folder in ("plain", "ltxv-0.9.7", "run.of.today", "new.one/"):
        [path] = planned(f"{tmp_path}/{folder}")
        assert path == f"{tmp_path}/{folder.rstrip('/')}/a_seed1.mp4"


def test_a_sheet_never_overwrites_the_output(tmp_path):
    for name in ("x.gif", "x_%04d.png"):
        with pytest.raises(ValueError, match="leave it out"):
            planned(tmp_path / name, sheet=True)


@pytest.mark.parametrize(
    ("name", "json"),
    [
        ("a.mp4", "a.json"),
        ("g_%04d.png", "g.json"),
        ("%d.png", "frames.json"),
        ("b.c.mov", "b.c.json"),
    ],
)
def test_the_settings_are_beside_the_video(tmp_path, name, json):
    video = outputs.Video(0, "a", tmp_path / name)
    assert video.sidecar == tmp_path / json
