"""The conditions of a batch, and where its captions and latents come from."""

import dataclasses
import functools

import golden_traces
import jax
import numpy as np
import pytest
from tiny_stages import load, one_device

from ltx_jax.config import BucketConfig, FlowConfig
from ltx_jax.data.loader import Batch, StoredLatents
from ltx_jax.data.sources import Encoding
from ltx_jax.training.transformer import sources
from ltx_jax.training.transformer.conditions import (
    Conditions,
    StepRandom,
    draw_conditions,
)

ONE = one_device()
SIZE = BucketConfig(num_frames=33, height=8, width=8, batch_size=16)
PIXELS = np.arange(33, dtype=np.uint8)[None, :, None, None, None] + np.zeros(
    (16, 33, 8, 8, 3), np.uint8
)  # every frame shows its number


def batch_of(pattern, size=SIZE, rows=slice(None), **fields):
    frames = PIXELS[rows, : size.num_frames]
    count = len(frames)
    return Batch(size, pattern, ("",) * count, np.full(count, 24, np.float32), frames, **fields)


def drawn_for(pattern, step=0, cfg=FlowConfig(), share=(0, 1), **fields):
    random = StepRandom(0, step, share)
    return draw_conditions(batch_of(pattern, **fields), random, cfg, golden_traces.VAE)


def test_a_pattern_gives_what_its_name_says():
    assert drawn_for("none") == Conditions()
    assert (drawn_for("first_frame").prefix == 1).all()
    prefix = np.concatenate([drawn_for("prefix", step).prefix for step in range(20)])
    assert set(prefix) == {2}  # half of five latent frames
    for pattern in ("first_frame", "prefix"):
        assert drawn_for(pattern).items == ()
    for pattern in ("keyframes", "clip"):
        first = np.concatenate([drawn_for(pattern, step).prefix for step in range(20)])
        assert 0.4 < first.mean() < 0.6  # 320 draws of a half


def test_single_frames_come_from_anywhere_but_the_start():
    cfg = FlowConfig(max_keyframes=3)
    drawn = [drawn_for("keyframes", step, cfg) for step in range(60)]
    assert {len(one.items) for one in drawn} == {1, 2, 3}
    starts = np.concatenate([item.frame for one in drawn for item in one.items])
    assert set(starts) == set(range(1, 33))
    for one in drawn:
        for item in one.items:
            assert item.video.shape == (16, 1, 8, 8, 3)
            np.testing.assert_array_equal(item.video[:, 0, 0, 0, 0], item.frame)
        frames = np.stack([item.frame for item in one.items])
        assert all(len(set(column)) == len(column) for column in frames.T)


def test_clips_are_two_latent_frames_and_end_with_the_video():
    items = [drawn_for("clip", step).items for step in range(40)]
    assert all(len(one) == 1 for one in items)
    starts = np.concatenate([item.frame for (item,) in items])
    assert set(starts) == {8, 16, 24}  # 24 to 32 are the last nine frames
    video, frame = items[0][0]
    np.testing.assert_array_equal(video[:, :, 0, 0, 0], frame[:, None] + np.arange(9))


def test_clips_too_short_for_a_pattern_are_given_nothing():
    picture = dataclasses.replace(SIZE, num_frames=1)
    short = dataclasses.replace(SIZE, num_frames=9)
    for pattern in ("first_frame", "prefix", "keyframes", "clip"):
        assert drawn_for(pattern, size=picture) == Conditions()
    assert drawn_for("clip", size=short) == Conditions()
    assert (drawn_for("prefix", size=short).prefix == 1).all()
    assert (drawn_for("keyframes", size=short).items[0].frame < 9).all()


def test_conditions_do_not_depend_on_the_number_of_processes():
    for pattern in ("keyframes", "clip", "prefix"):
        whole = drawn_for(pattern, 3)
        parts = [
            drawn_for(pattern, 3, share=(i, 2), rows=slice(8 * i, 8 * i + 8)) for i in range(2)
        ]
        jax.tree.map(
            lambda x, *y: np.testing.assert_array_equal(x, np.concatenate(y)), whole, *parts
        )


def stored(b=16, keyframes=4, clips=2):
    """Latents of 2 channels; a condition item's values are its frame."""

    def items(count, *length):
        numbers = np.stack([np.random.default_rng(i).permutation(30)[:count] + 1 for i in range(b)])
        shape = (b, count, *length, 1, 1, 3)
        values = numbers.reshape(b, count, *(1,) * (len(shape) - 2)) + np.zeros(shape)
        return values.astype(np.float16), numbers.astype(np.int32)

    rng = np.random.default_rng(0)
    mean, logvar = (rng.standard_normal((b, 5, 1, 1, c)).astype(np.float16) for c in (2, 1))
    return StoredLatents(mean, logvar, *items(keyframes), *items(clips, 2))


@pytest.mark.parametrize(("pattern", "length"), [("keyframes", 1), ("clip", 2)])
def test_stored_condition_items_come_with_the_frames_they_were_cut_at(pattern, length):
    latents = stored()
    numbers = latents.keyframe_numbers if pattern == "keyframes" else latents.clip_numbers
    seen = set()
    for step in range(8):
        items = drawn_for(pattern, step, latents=latents).items
        for item in items:
            assert item.video["mean"].shape == (16, length, 1, 1, 2)
            assert item.video["logvar"].shape == (16, length, 1, 1, 1)
            np.testing.assert_array_equal(item.video["mean"][:, 0, 0, 0, 0], item.frame)
            assert all(frame in numbers[i] for i, frame in enumerate(item.frame))
            seen.update(item.frame)
        frames = np.stack([item.frame for item in items])
        assert all(len(set(column)) == len(column) for column in frames.T)
    assert len(seen) > 10


def test_latents_without_condition_items_are_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match=r"hold no clip.*--flow\.clip_probability 0"):
        drawn_for("clip", latents=stored(keyframes=0, clips=0))


def stored_captions(*lengths, width=16):
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((n, width)).astype(np.float16) for n in lengths)


def test_stored_captions_are_padded_and_cut():
    empty, *rows = stored_captions(1, 2, 4, 7, 3)
    read = sources.cached_captions(empty, 4).read
    found = read(None, rows, np.array([False, False, False, True]), lambda tree: tree)
    np.testing.assert_array_equal(found["mask"].sum(axis=1), [2, 4, 4, 1])
    assert (np.diff(found["mask"], axis=1) <= 0).all()  # ones come first
    for i, row in enumerate((rows[0], rows[1], rows[2][:4], empty)):
        np.testing.assert_array_equal(found["embeddings"][i, : len(row)], row)
        assert (found["embeddings"][i, len(row) :] == 0).all()


def encoding(empty):
    """What made a data set, but for the empty caption of no consequence here."""
    return Encoding(((5, 16, 16),), "vae", "hash", None, None, "t5", "id", "tokenizer", empty)


def test_data_without_fitting_embeddings_are_refused():
    cfg = load("transformer", "--captions", "cached")
    for nothing in (None, encoding(None)):
        with pytest.raises(ValueError, match=r"hold no caption embeddings.*ltx-encode"):
            sources.open_captions(cfg, nothing, ONE)
    with pytest.raises(ValueError, match=r"validation clips.*--run\.validation_source"):
        sources.cached_captions(stored_captions(1)[0], 4).read(
            ("",), None, np.zeros(1, bool), np.asarray
        )
    with pytest.raises(ValueError, match="8 wide and the transformer expects 16"):
        sources.open_captions(cfg, encoding(((0.0,) * 8,)), ONE)


def test_clips_that_come_again_are_encoded_once():
    encoded = []

    def encode(frames, place):
        encoded.append(len(frames))
        return place({"mean": frames[:, :1].astype(np.float32)})

    read = sources.encode_once(encode)
    clips = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 4, 3), np.uint8)
    for rows in ([0, 1, 2], [3, 4, 5], [5, 0, 3], [2, 2, 1]):
        found = read(clips[rows], lambda tree: tree)
        np.testing.assert_array_equal(found["mean"], clips[rows][:, :1])
    assert encoded == [3, 3]


def test_clips_that_may_differ_are_not_taken_for_known():
    again = functools.partial(load, "transformer", "--data.source", "a/folder")
    assert sources.clips_repeat(again().data)
    for chance in ("flip", "random_crop", "random_start"):
        assert not sources.clips_repeat(again(f"--data.{chance}").data)
    assert not sources.clips_repeat(load("transformer").data)
