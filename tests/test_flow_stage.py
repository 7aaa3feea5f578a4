"""The transformer stage: its conditions, captions, latents and batches. Its loss is in
test_flow_loss.py, whole runs in test_train_command.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_checkpoint import random_parameters
from tiny_stages import QUICK, load, one_device, tiny_vae

from ltx_jax import sharding
from ltx_jax.checkpoints import runs
from ltx_jax.checkpoints.contents import Checkpoint
from ltx_jax.config import BucketConfig, FlowConfig, MeshConfig, T5Config
from ltx_jax.data import shapes, video
from ltx_jax.data.loader import Batch, StoredLatents
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.models.vae import VideoVAE
from ltx_jax.text import ByteTokenizer, TextEncoder, tokenize
from ltx_jax.training import captions, state, transformer, vae
from ltx_jax.training.conditions import Draw, choose

ONE = one_device()
SIZE = BucketConfig(num_frames=33, height=8, width=8, batch_size=16)
PIXELS = np.arange(33, dtype=np.uint8)[None, :, None, None, None] + np.zeros(
    (16, 33, 8, 8, 3), np.uint8
)  # every frame shows its number


def batch_of(pattern, size=SIZE, rows=slice(None), **fields):
    frames = PIXELS[rows, : size.num_frames]
    count = len(frames)
    return Batch(size, pattern, ("",) * count, np.full(count, 24, np.float32), frames, **fields)


def chosen(pattern, step=0, cfg=FlowConfig(), share=(0, 1), **fields):
    return choose(batch_of(pattern, **fields), Draw(0, step, share), cfg, temporal_factor=8)


def test_a_pattern_gives_what_its_name_says():
    assert chosen("none") == (None, ())
    assert (chosen("first_frame").prefix == 1).all()
    prefix = np.concatenate([chosen("prefix", step).prefix for step in range(20)])
    assert set(prefix) == {2}  # half of five latent frames
    for pattern in ("first_frame", "prefix"):
        assert chosen(pattern).items == ()
    for pattern in ("keyframes", "clip"):
        first = np.concatenate([chosen(pattern, step).prefix for step in range(20)])
        assert 0.4 < first.mean() < 0.6  # 320 draws of a half


def test_single_frames_come_from_anywhere_but_the_start():
    cfg = FlowConfig(max_keyframes=3)
    drawn = [chosen("keyframes", step, cfg) for step in range(60)]
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
    items = [chosen("clip", step).items for step in range(40)]
    assert all(len(one) == 1 for one in items)
    starts = np.concatenate([item.frame for (item,) in items])
    assert set(starts) == {8, 16, 24}  # 24 to 32 are the last nine frames
    video, frame = items[0][0]
    np.testing.assert_array_equal(video[:, :, 0, 0, 0], frame[:, None] + np.arange(9))


def test_clips_too_short_for_a_pattern_are_given_nothing():
    picture = dataclasses.replace(SIZE, num_frames=1)
    short = dataclasses.replace(SIZE, num_frames=9)
    for pattern in ("first_frame", "prefix", "keyframes", "clip"):
        assert chosen(pattern, size=picture) == (None, ())
    assert chosen("clip", size=short) == (None, ())
    assert (chosen("prefix", size=short).prefix == 1).all()
    assert (chosen("keyframes", size=short).items[0].frame < 9).all()


def test_conditions_do_not_depend_on_the_number_of_processes():
    for pattern in ("keyframes", "clip", "prefix"):
        whole = chosen(pattern, 3)
        parts = [chosen(pattern, 3, share=(i, 2), rows=slice(8 * i, 8 * i + 8)) for i in range(2)]
        jax.tree.map(
            lambda x, *y: np.testing.assert_array_equal(x, np.concatenate(y)), whole, *parts
        )


def stored(b=16, keyframes=4, clips=4):
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
        items = chosen(pattern, step, latents=latents).items
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
        chosen("clip", latents=stored(keyframes=0, clips=0))


@pytest.fixture
def stage_of(monkeypatch):
    """Builds the tiny stage, over given batches in the place of its loader's.

    Its step is the loss alone, (params, state, batch, key) -> value, (metrics, statistics): the
    gradient and the optimiser would take ten times as long to compile.
    """
    monkeypatch.setattr(transformer.checkpoint, "load", lambda *_, **__: tiny_vae())
    monkeypatch.setattr(transformer, "descend", lambda loss, *_: loss)
    compiled = functools.partial(jax.jit, compiler_options=QUICK)
    monkeypatch.setattr(transformer, "make_step", lambda loss, *_: compiled(loss))

    def build(*overrides, batches=None):
        if batches is not None:
            loader = type("Given", (), {"batches": lambda self, *_: iter(batches)})
            monkeypatch.setattr(transformer, "Loader", lambda *_, **__: loader())
        return transformer.build(load("transformer", "--run.output", "/none", *overrides), ONE)

    return build


def tiny_batch(pattern="none", **fields):
    clips = [shapes.clip(i, num_frames=5, height=16, width=16) for i in range(8)]
    texts, rates = tuple(clip.caption for clip in clips), np.full(8, 24, np.float32)
    if "latents" not in fields:
        fields["frames"] = np.stack([clip.frames for clip in clips])
    return Batch(BucketConfig(5, 16, 16, 8), pattern, texts, rates, **fields)


def filled(shapes):
    """Random parameters of given shapes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)


def loss_of(stage, batch=None):
    """The loss and the metrics of a batch."""
    batch = next(stage.batches(0, 1)) if batch is None else batch
    shapes = stage.plan.shapes
    state = dataclasses.replace(
        shapes, params={}, ema={}, opt_state={}, step=0, updates=0, rejected=0
    )
    value, (metrics, _) = stage.step(filled(shapes.params), state, batch, jax.random.key(0))
    return float(value), jax.device_get(metrics)


def test_pixels_and_their_stored_latents_have_the_same_loss(stage_of):
    """With keyframes, first frames and dropped tokens, for one and the same posterior."""
    settings = ("--flow.max_keyframes", "1", "--flow.token_drop", "0.2")
    live = stage_of(*settings, batches=[tiny_batch("keyframes")])
    half = jax.tree.map(np.asarray, next(live.batches(0, 1)))
    # What the encoder makes of the pixels, in the precision of files.
    (item,) = half["given"].items
    clip, image = jax.tree.map(lambda x: x.astype(np.float16), (half["video"], item.video))
    keyframes = np.concatenate([image["mean"], image["logvar"][..., :1]], axis=-1)
    frames = item.frame[:, None]
    clips = (np.repeat(keyframes[:, None], 2, axis=2), frames)
    latents = StoredLatents(clip["mean"], clip["logvar"][..., :1], keyframes, frames, *clips)
    cached = stage_of(*settings, batches=[tiny_batch("keyframes", latents=latents)])

    half |= {"video": clip, "given": half["given"]._replace(items=(item._replace(video=image),))}
    expected, metrics = loss_of(live, half)
    found, _ = loss_of(cached)
    assert metrics["conditioned"] > 0.2
    assert found == expected
