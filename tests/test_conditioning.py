"""Condition images and clips: where they go, how strong they are, and what is refused."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltx_jax.diffusion import conditioning
from ltx_jax.diffusion.conditioning import Condition, Encoded, check_conditions
from ltx_jax.diffusion.noise import seeded

MISC = np.load(pathlib.Path(__file__).parent / "golden" / "misc.npz")
GRID = (5, 2, 3)  # 33 frames of 64 x 96
ROW = GRID[1] * GRID[2]  # tokens of a latent frame
NOISE = {batch: seeded(0, batch) for batch in (1, 2)}


@functools.partial(jax.jit, static_argnames=("frames", "causal"))
def compiled(latents, items, frames, causal):
    conditions = [
        Encoded(item, strength, frame)
        for (item, strength), frame in zip(items, frames, strict=True)
    ]
    return conditioning.prepare(
        latents,
        conditions,
        NOISE[latents.shape[0]],
        temporal_factor=8,
        spatial_factor=32,
        causal=causal,
    )


def prepare(latents, *conditions, causal=True):
    items = [(condition.latents, condition.strength) for condition in conditions]
    frames = tuple(condition.frame for condition in conditions)
    prepared = compiled(latents, items, frames, causal)
    return jax.tree.map(np.asarray, prepared)  # indexing numpy compiles nothing


@jax.jit
def traced(latents, item, strength, frame):
    return conditioning.prepare(
        latents,
        [Encoded(item, strength, frame)],
        NOISE[latents.shape[0]],
        temporal_factor=8,
        spatial_factor=32,
        causal=True,
    )


def prepare_traced(latents, condition):
    arguments = (condition.latents, condition.strength, condition.frame)
    return jax.tree.map(np.asarray, traced(latents, *arguments))


@pytest.fixture
def random():
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape, np.float32)


@pytest.fixture
def item(random):
    def make(frames, frame, strength=1.0, batch=1):
        return Encoded(random(batch, frames, *GRID[1:], 8), np.asarray(strength, np.float32), frame)

    return make


@pytest.fixture
def latents(random):
    return random(1, *GRID, 8)


def flat(latents):
    return latents.reshape(latents.shape[0], -1, latents.shape[-1])


def test_without_conditions_nothing_changes(latents):
    prepared = prepare(latents)
    np.testing.assert_array_equal(prepared.tokens, flat(latents))
    assert prepared.strength is None
    assert prepared.coords[::ROW, 0].tolist() == [0, 1, 9, 17, 25]


def test_a_first_frame_replaces_the_first_latent(latents, item):
    first = item(1, 0)
    prepared = prepare(latents, first)
    np.testing.assert_array_equal(prepared.tokens[:, :ROW], flat(first.latents))
    np.testing.assert_array_equal(prepared.tokens[:, ROW:], flat(latents)[:, ROW:])
    np.testing.assert_array_equal(prepared.strength, [[1.0] * ROW + [0.0] * 4 * ROW])


def test_a_prefix_replaces_as_many_latents_as_it_has(latents, item):
    prepared = prepare(latents, item(3, 0, 0.4))
    np.testing.assert_allclose(prepared.strength, [[0.4] * 3 * ROW + [0.0] * 2 * ROW])


def test_a_later_image_keeps_its_time(latents, item):
    """Upstream's readers have lost the frame number on the way to RoPE."""
    image = item(1, 30)
    prepared = prepare(latents, image)
    assert prepared.tokens.shape[1] == 6 * ROW
    assert set(prepared.coords[:ROW, 0].tolist()) == {30}
    np.testing.assert_array_equal(prepared.coords[:ROW, 1:], prepared.coords[ROW : 2 * ROW, 1:])
    np.testing.assert_array_equal(prepared.tokens[:, :ROW], flat(image.latents))
    np.testing.assert_array_equal(prepared.tokens[:, ROW:], flat(latents))


@pytest.mark.parametrize(("causal", "times"), [(True, [8, 9]), (False, [8, 16])])
def test_a_later_clip_is_two_extra_latents_and_the_rest_in_place(latents, item, causal, times):
    clip = item(3, 8)
    prepared = prepare(latents, clip, causal=causal)
    assert prepared.coords[: 2 * ROW : ROW, 0].tolist() == times
    np.testing.assert_array_equal(prepared.tokens[:, : 2 * ROW], flat(clip.latents[:, :2]))
    # Latent 3 of the video covers frames 17 to 24, as latent 2 of a clip that starts at 8.
    place = slice((2 + 3) * ROW, (2 + 4) * ROW)
    np.testing.assert_array_equal(prepared.tokens[:, place], flat(clip.latents[:, 2:]))
    expected = np.zeros(7 * ROW)
    expected[: 2 * ROW] = expected[place] = 1
    np.testing.assert_array_equal(prepared.strength[0], expected)


def test_extra_tokens_stand_in_the_order_of_the_conditions(latents, item):
    prepared = prepare(latents, item(1, 30), item(1, 0), item(2, 16))
    assert prepared.coords[: 4 * ROW : ROW, 0].tolist() == [30, 16, 17, 0]


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_strength_mixes_from_noise_to_the_condition(latents, item, strength):
    first, last = item(1, 0, strength), item(1, 32, strength)
    prepared = prepare(latents, first, last)
    noise = NOISE[1].draw("condition/1", last.latents.shape)
    for part, start, target in (
        (prepared.tokens[:, ROW : 2 * ROW], latents[:, :1], first.latents),
        (prepared.tokens[:, :ROW], noise, last.latents),
    ):
        mixed = start + strength * (target - start)
        np.testing.assert_allclose(part, flat(mixed), atol=1e-6)
    assert set(prepared.strength[0, : 2 * ROW].tolist()) == {np.float32(strength)}


def test_each_sample_of_a_batch_has_its_own_condition_and_strength(random, item):
    latents = random(2, *GRID, 8)
    images = item(1, 0, [1.0, 0.25], batch=2)
    prepared = prepare(latents, images)
    np.testing.assert_array_equal(prepared.tokens[0, :ROW], flat(images.latents)[0])
    np.testing.assert_array_equal(prepared.strength[:, 0], [1.0, 0.25])


def test_one_condition_serves_a_whole_batch(random, item):
    latents = random(2, *GRID, 8)
    shared = [item(1, 0), item(2, 16)]
    prepared = prepare(latents, *shared)
    for part in (slice(0, 2 * ROW), slice(2 * ROW, 3 * ROW)):
        np.testing.assert_array_equal(prepared.tokens[0, part], prepared.tokens[1, part])


def test_each_latent_frame_may_have_its_own_strength(random, item):
    latents = random(2, *GRID, 8)
    strengths = np.array([[1, 0.5, 0], [0.25, 0, 0]], np.float32)
    prepared = prepare(latents, item(3, 0, strengths, batch=2))
    expected = np.pad(strengths, ((0, 0), (0, 2))).repeat(ROW, axis=1)
    np.testing.assert_array_equal(prepared.strength, expected)
    is_free = expected == 0
    np.testing.assert_array_equal(prepared.tokens[is_free], flat(latents)[is_free])


def test_each_sample_may_have_its_image_at_another_frame(random, item):
    latents = random(2, *GRID, 8)
    image, frames = item(1, np.array([5, 30], np.int32), batch=2), (5, 30)
    prepared = prepare_traced(latents, image)
    assert prepared.coords.shape == (2, 6 * ROW, 3)
    for i, frame in enumerate(frames):
        alone = prepare(latents[:1], Encoded(image.latents[i : i + 1], image.strength, frame))
        np.testing.assert_array_equal(prepared.coords[i], alone.coords)
        np.testing.assert_array_equal(prepared.tokens[i, :ROW], alone.tokens[0, :ROW])
        np.testing.assert_array_equal(prepared.strength[i], alone.strength[0])


def test_resize_is_that_of_the_released_pipeline():
    video = np.moveaxis(MISC["resize_in"], 1, -1)
    for name in ("resize_out", "resize_up"):
        expected = np.moveaxis(MISC[name], 1, -1)
        ours = conditioning.resize(jnp.asarray(video), *expected.shape[2:4])
        np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_bytes_and_floats_are_the_same_media():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    video = conditioning.as_video(pixels)
    assert video.shape == (1, 1, 16, 16, 3)
    assert (video.min(), video.max()) == (-1, 1)
    np.testing.assert_array_equal(conditioning.as_video(video), video)
    np.testing.assert_array_equal(conditioning.as_video(pixels[0]), video)


@pytest.mark.parametrize("bad", [255 * np.ones((4, 4, 3)), np.full((4, 4, 3), np.nan)])
def test_floats_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\]"):
        conditioning.as_video(bad)


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_a_strength_outside_zero_to_one_is_refused(strength):
    with pytest.raises(ValueError, match=f"strength.*{strength}"):
        Condition("a.png", strength=strength)


@pytest.mark.parametrize(
    ("frame", "length", "message"),
    [
        (0, 12, "12 frames.*8k\\+1.*first 9"),
        (0, 0, "no frames"),
        (33, 1, "a video of 33 frames has 0 from frame 33 on; start it at frame 32$"),
        (
            32,
            9,
            "has 1 from frame 32 on; cut it to its first 1, or start it at frame 24$",
        ),
        (24, 12, "has 9 from frame 24 on; cut it to its first 9, or start it at frame 16$"),
        (0, 34, "has 33 from frame 0 on; cut it to its first 33$"),
        (12, 9, "frame 12.*multiple of 8: 8 or 16"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused(frame, length, message):
    with pytest.raises(ValueError, match=message):
        check_conditions([Condition("clip.mp4", frame)], [length], 33)


def test_a_condition_before_the_video_is_refused():
    with pytest.raises(ValueError, match="frame -1"):
        Condition("a.png", frame=-1)


def test_an_image_may_stand_at_any_frame():
    check_conditions([Condition("a.png", frame) for frame in range(33)], [1] * 33, 33)


def test_a_clip_may_end_with_the_video():
    check_conditions([Condition("clip.mp4", 24)], [9], 33)
