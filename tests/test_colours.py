"""Stored planes to RGB and back, against the standards' formulas in float64."""

import itertools

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from ltx_jax.data import video, writing
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


def pattern() -> np.ndarray:
    """A moving pattern with texture, 8 frames."""
    rng = np.random.default_rng(0)
    t, y, x = np.meshgrid(np.arange(8), np.arange(64), np.arange(96), indexing="ij")
    hues = (0.0, 0.3, 0.6)
    channels = [np.sin(0.13 * x + 0.1 * t + k) * np.cos(0.09 * y - 0.05 * t * k) for k in hues]
    texture = rng.normal(0, 6, t.shape)[..., None]
    return (127.5 + 90 * np.stack(channels, axis=-1) + texture).clip(0, 255).astype("u1")


def ten_generations(folder, ending: str) -> np.ndarray:
    """What a pattern loses when it is written and read ten times."""
    frames = first = pattern()
    for generation in range(10):
        path = folder / f"{generation}{ending}"
        writing.write_video(path, frames, 24)
        frames, _ = video.read_video(path)
    return frames.astype(np.float64) - first


def test_ten_generations_of_reading_and_writing_do_not_shift_the_levels(tmp_path):
    shift = ten_generations(tmp_path, ".mp4").mean(axis=(0, 1, 2))
    # The conversions shift nothing; H.264 rounds up in its predictions, blue the most.
    assert np.abs(shift).mean() < 0.3
    assert np.abs(shift).max() < 0.6


def test_ten_generations_of_prores_keep_the_levels(tmp_path):
    """10 bits and 4:4:4, for those who edit."""
    change = ten_generations(tmp_path, ".mov")
    assert np.abs(change.mean(axis=(0, 1, 2))).max() < 0.3
    assert np.abs(change).mean() < 2
