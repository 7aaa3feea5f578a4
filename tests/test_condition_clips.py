"""Condition clips of any length and rate, and where in a file they begin."""

import dataclasses
import logging
import shutil

import numpy as np
import pytest

from ltx_jax.config import SamplingConfig
from ltx_jax.data import writing
from ltx_jax.diffusion.conditioning import Condition
from ltx_jax.inference import arguments, condition_media

OPTIONS = SamplingConfig(frame_rate=24.0, prepare_conditions=False)
SIZE = arguments.Size(17, 32, 64, 8, 32)


def numbered(path, count, fps):
    """A clip whose frames have the grey levels 4, 8, 12, ..."""
    levels = 4 * np.arange(1, count + 1, dtype=np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (count, 32, 64, 3))
    writing.write_video(path, frames.copy(), fps, crf=0)
    return path


def shown(media, frame=0, size=SIZE, options=OPTIONS):
    """The numbers of the frames that a condition shows."""
    (condition,) = condition_media.load_conditions([Condition(str(media), frame)], size, 1, options)
    return [round(float(x)) for x in (condition.media[0].mean(axis=(1, 2, 3)) + 1) * 127.5 / 4 - 1]


@pytest.mark.parametrize(
    ("count", "frame", "kept"),
    [(17, 0, 17), (40, 0, 17), (16, 0, 9), (8, 0, 1), (40, 8, 9), (9, 8, 9), (40, 16, 1)],
)
def test_a_clip_is_trimmed_to_whole_latents_that_fit(count, frame, kept, tmp_path, caplog):
    """The lengths of the official `trim_conditioning_sequence`."""
    path = numbered(tmp_path / "clip.mp4", count, 24)
    with caplog.at_level(logging.WARNING):
        assert shown(path, frame) == list(range(kept))
    assert (f"{path}: trimmed to {kept} frames" in caplog.text) == (kept < count)


def test_a_size_that_is_padded_leaves_room_for_what_was_asked(tmp_path):
    """As upstream: 12 frames hold 9 of a clip, though 17 are sampled."""
    path = numbered(tmp_path / "clip.mp4", 40, 24)
    assert shown(path, size=dataclasses.replace(SIZE, frames=12)) == list(range(9))


def test_a_clip_begins_where_its_name_says(tmp_path):
    path = numbered(tmp_path / "clip.mp4", 40, 24)
    assert shown(f"{path}@0.5s") == list(range(12, 29))
    assert shown(f"{path}@1s", frame=8) == list(range(24, 33))
    for text in ("@0.5", "@s", "@-1s", "@1e3s"):
        with pytest.raises(ValueError, match="there is no file"):
            shown(f"{path}{text}")
    with pytest.raises(ValueError, match=r"clip.mp4 has no frame that can be decoded after 90"):
        shown(f"{path}@90s")


def test_a_file_with_such_a_name_is_read_from_its_beginning(tmp_path):
    path = numbered(tmp_path / "me@1s.mp4", 17, 24)
    assert shown(path) == list(range(17))
    whole = shutil.copy(path, tmp_path / "me@0.5s")
    assert shown(whole) == list(range(17))
    assert shown(f"{whole}@0.25s") == list(range(6, 15))


def test_a_picture_has_no_seconds(tmp_path):
    writing.write_image(tmp_path / "still.png", np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"still.png is a still image: it does not begin at 2.5 s"):
        shown(tmp_path / "still.png@2.5s")
    assert len(shown(tmp_path / "still.png@0s")) == 1


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(48, range(0, 34, 2)), (12, [i // 2 for i in range(17)]), (24000 / 1001, range(17))],
)
def test_a_clip_moves_as_fast_as_in_its_file(rate, expected, tmp_path, caplog):
    path = numbered(tmp_path / "clip.mp4", 40, rate)
    with caplog.at_level(logging.WARNING):
        assert shown(path) == list(expected)
    assert (f"{path}: resampled from {rate:.4g} to 24 frames/s" in caplog.text) == (
        rate in (12, 48)
    )


def test_arrays_are_not_trimmed():
    clip = np.zeros((25, 32, 64, 3), np.uint8)
    for length, message in [(25, "cut it to its first 17"), (16, "must have 8k\\+1")]:
        with pytest.raises(ValueError, match=message):
            condition_media.load_conditions([Condition(clip[:length])], SIZE, 1, OPTIONS)
