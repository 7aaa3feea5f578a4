"""Stored planes to RGB and back, against the standards' formulas in float64."""

import itertools

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from ltx_jax.data import level_shift, video, writing
from ltx_jax.data.frames import CONVERT, Converter, DecodedFrame, FrameGeometry

HEIGHT, WIDTH = 96, 128
MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114)}  # FFmpeg's BT.709 and BT.601: K_r and K_b
STEPS = {"420": (2, 2), "422": (1, 2), "444": (1, 1)}  # of chroma, down and across


def planes(bits: int, full: bool) -> np.ndarray:
    """Y, Cb and Cr of a pattern at full resolution: textured luma, chroma that varies slowly."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    luma = 0.5 + 0.4 * np.sin(0.3 * x + 0.11 * y) * np.cos(0.23 * y)
    blue = 0.5 + 0.18 * np.sin(0.05 * x - 0.04 * y + 1)
    red = 0.5 + 0.18 * np.cos(0.04 * x + 0.05 * y)
    top = 2**bits
    limits = (
        [(0, top - 1)] * 3
        if full
        else [(top / 16, top * 235 / 256), *[(top / 16, top * 15 / 16)] * 2]
    )
    return np.stack(
        [lo + (hi - lo) * part for part, (lo, hi) in zip((luma, blue, red), limits, strict=True)]
    )


def to_rgb(planes: np.ndarray, bits: int, full: bool, matrix: int) -> np.ndarray:
    """ITU-R BT.601 and BT.709, section 3: levels of `bits` bits to RGB from 0 to 255."""
    unit = 2 ** (bits - 8)
    if full:
        luma, chroma = planes[0] / (256 * unit - 1), (planes[1:] - 128 * unit) / (256 * unit - 1)
    else:
        luma, chroma = (planes[0] / unit - 16) / 219, (planes[1:] / unit - 128) / 224
    k_red, k_blue = MATRICES[matrix]
    red = luma + 2 * (1 - k_red) * chroma[1]
    blue = luma + 2 * (1 - k_blue) * chroma[0]
    green = (luma - k_red * red - k_blue * blue) / (1 - k_red - k_blue)
    return (255 * np.stack([red, green, blue], axis=-1)).clip(0, 255)


def stored_frame(levels: np.ndarray, form: str, full: bool, matrix: int) -> av.VideoFrame:
    """A frame of these planes, chroma averaged down to the format's resolution."""
    down, across = STEPS[form[3:6]]
    kind = np.uint16 if form.endswith("10le") else np.uint8
    frame = av.VideoFrame(WIDTH, HEIGHT, form)
    for plane, content, (rows, columns) in zip(
        frame.planes, levels, ((1, 1), (down, across), (down, across)), strict=True
    ):
        small = content.reshape(HEIGHT // rows, rows, WIDTH // columns, columns).mean(axis=(1, 3))
        padded = np.zeros((plane.height, plane.line_size // kind().itemsize), kind)
        padded[:, : plane.width] = small.round()
        plane.update(padded.tobytes())
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    return frame


@pytest.mark.parametrize("chroma", ["420", "422", "444"])
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize(("matrix", "full"), list(itertools.product(MATRICES, (False, True))))
def test_decoded_planes_become_the_levels_of_the_standard(chroma, bits, matrix, full):
    form = f"yuv{chroma}p" + ("10le" if bits == 10 else "")
    levels = planes(bits, full)
    frame = stored_frame(levels, form, full, matrix)
    rgb = DecodedFrame(0.0, 1.0, FrameGeometry(), frame, Converter()).rgb().astype(np.float64)
    error = rgb - to_rgb(levels, bits, full, matrix)
    # The planes are rounded before the conversion and the levels after it: a quarter of a level
    # each on average, up to twice that for chroma in 8 bits; neither has a direction.
    assert np.abs(error.mean(axis=(0, 1))).max() < 0.1
    assert np.abs(error).mean() < 0.5


FORMS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p12le", "nv12", "gray")


@pytest.mark.parametrize("form", [*FORMS, "pal8", "gbrp", "rgb24", "bgr24", "gbrp10le", "yuv410p"])
@pytest.mark.parametrize("size", [(96, 128), (37, 51)])
def test_pixels_are_those_of_one_conversion(form, size):
    """The way through planes is only faster."""
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    source = av.VideoFrame.from_ndarray(noise, format="rgb24")
    if form == "pal8":
        levels = np.random.default_rng(1).integers(0, 256, (256, 4), np.uint8)
        frame = av.VideoFrame.from_ndarray((noise[..., 0], levels), format="pal8")
    else:
        frame = VideoReformatter().reformat(source, format=form, interpolation=CONVERT)
    once = VideoReformatter().reformat(frame, format="rgb24", interpolation=CONVERT)
    np.testing.assert_array_equal(Converter()(frame, "rgb24"), once.to_ndarray())


def pattern(frames: int = 8, height: int = 64, width: int = 96, kind: str = "plain") -> np.ndarray:
    """A moving pattern with texture."""
    rng = np.random.default_rng(0)
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    hues = (0.0, 0.3, 0.6)
    channels = [np.sin(0.13 * x + 0.1 * t + k) * np.cos(0.09 * y - 0.05 * t * k) for k in hues]
    texture = rng.normal(0, 6, t.shape)[..., None]
    levels = 127.5 + 90 * np.stack(channels, axis=-1) + texture
    if kind == "dark":  # an eighth of it is black
        levels = 0.3 * (levels - 60)
    elif kind == "red":
        levels = levels * (0.8, 0.3, 0.3) + (70, 10, 10)
    return levels.clip(0, 255).astype("u1")


def ten_generations(first: np.ndarray, folder, ending: str) -> np.ndarray:
    """What a clip loses when it is written and read ten times."""
    frames = first
    for generation in range(10):
        path = folder / f"{generation}{ending}"
        writing.write_video(path, frames, 24)
        frames, _ = video.read_video(path)
    _, height, width, _ = first.shape
    return frames[:, :height, :width].astype(np.float64) - first


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["plain", "dark", "red"])
def test_ten_generations_of_reading_and_writing_keep_the_mean_levels(kind, tmp_path):
    """H.264 rounds up in its predictions, which adds up to 0.3 to 2 levels without a correction."""
    # What is left is noise, which small clips have more of: 0.3 with a sixth of these pixels.
    first = pattern(24, 239, 319, kind)
    shift = ten_generations(first, tmp_path, ".mp4").mean(axis=(0, 1, 2))
    assert np.abs(shift).max() < 0.3


def test_a_video_longer_than_what_is_measured_is_whole(tmp_path, monkeypatch):
    frames = pattern()
    monkeypatch.setattr(writing, "_MEASURED", 3 * frames[0].nbytes)
    writing.write_video(tmp_path / "long.mp4", iter(frames), 24)
    decoded, _ = video.read_video(tmp_path / "long.mp4")
    assert len(decoded) == len(frames)
    assert np.abs(decoded.astype(int) - frames).mean() < 8


@pytest.mark.parametrize("part", [-1.3, -0.04, 0.0, 0.25])
def test_a_shift_changes_the_mean_of_each_plane_by_just_that(part):
    frame = stored_frame(planes(8, full=False), "yuv420p", False, 1)
    before = [np.frombuffer(plane, np.uint8).astype(int) for plane in frame.planes]
    level_shift.add(frame, level_shift.Shift(part, -part, part / 2))
    for plane, old, shift in zip(frame.planes, before, (part, -part, part / 2), strict=True):
        change = np.frombuffer(plane, np.uint8).astype(int) - old
        assert change.mean() * plane.line_size / plane.width == pytest.approx(shift, abs=2e-3)
        assert change.max() - change.min() <= 1 or plane.line_size > plane.width


def test_ten_generations_of_prores_keep_the_levels(tmp_path):
    """10 bits and 4:4:4, for those who edit."""
    change = ten_generations(pattern(), tmp_path, ".mov")
    assert np.abs(change.mean(axis=(0, 1, 2))).max() < 0.3
    assert np.abs(change).mean() < 2
