"""Masks: what of a condition stays, and what the model paints."""

import dataclasses

import golden_traces
import numpy as np
import pytest
from test_references import EMBEDDINGS, OPTIONS, draw, exactly

from ltx_jax.data import masks
from ltx_jax.data.writing import write_image
from ltx_jax.diffusion.conditioning import Condition
from ltx_jax.inference import condition_media
from ltx_jax.inference.arguments import Size

SIZE = Size(17, 64, 96, 8, 32)


def kept(mask, clip=None, size=SIZE):
    clip = np.zeros((17, 64, 96, 3), np.uint8) if clip is None else clip
    loaded = condition_media.load_conditions([Condition(clip, mask=mask)], size, 1, OPTIONS)
    return condition_media.kept_latents(loaded[0], size)


def test_a_latent_is_free_if_any_of_its_pixels_is():
    mask = np.zeros((17, 64, 96), bool)
    mask[0, 31, 32] = True  # first latent frame: row 0, column 1
    mask[8, 32, 95] = True  # second one, which is frames 1 to 8: row 1, column 2
    expected = np.zeros((3, 2, 3), bool)
    expected[0, 0, 1] = expected[1, 1, 2] = True
    np.testing.assert_array_equal(masks.on_latents(mask, 8, 32), expected)
    np.testing.assert_array_equal(kept(mask)[0], 1.0 - expected)


def test_one_picture_is_the_mask_of_all_frames(tmp_path):
    mask = np.zeros((64, 96, 3), np.uint8)
    mask[:, 64:] = 255
    write_image(tmp_path / "mask.png", mask)
    for form in (str(tmp_path / "mask.png"), mask[..., 0], mask[..., 0] > 0):
        want = np.broadcast_to([1.0, 1.0, 0.0], (1, 3, 2, 3))
        np.testing.assert_array_equal(kept(form), want)


def test_a_mask_is_scaled_as_its_media_are():
    """A clip of twice the size and another shape is cropped at its sides."""
    clip, mask = np.zeros((17, 128, 320, 3), np.uint8), np.zeros((128, 320), np.uint8)
    mask[:, :64] = 255  # of which the crop to 192 columns leaves nothing
    np.testing.assert_array_equal(kept(mask, clip), np.ones((1, 3, 2, 3)))
    mask[:, :128] = 255  # and of this 64 columns, 32 after scaling
    np.testing.assert_array_equal(kept(mask, clip)[0, 0, 0], [0, 1, 1])


@pytest.mark.thorough
def test_what_a_mask_keeps_stays_and_the_rest_is_painted():
    pipe, latents = golden_traces.pipeline(), draw(1, 3, 2, 3, 8)
    size = dataclasses.replace(OPTIONS, guidance_scale=1.0)
    clip = np.random.default_rng(0).integers(0, 255, (17, 64, 96, 3), np.uint8)
    mask = np.zeros((64, 96), bool)
    mask[:, :32] = True
    arguments = dict(embeddings=EMBEDDINGS, noise=latents, output="latents")
    got = pipe(None, size, conditions=[Condition(clip, mask=mask)], **arguments)
    whole = pipe(None, size, conditions=[Condition(clip)], **arguments)
    np.testing.assert_allclose(got[..., 1:, :], whole[..., 1:, :], atol=1e-5)
    assert np.abs(got[..., 0, :] - whole[..., 0, :]).max() > 0.5
    free = pipe(None, size, conditions=[Condition(clip, mask=np.ones((64, 96), bool))], **arguments)
    np.testing.assert_allclose(free, pipe(None, size, **arguments), atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((9, 64, 96), bool), "the mask has 9 frames and its condition 17"),
        (np.zeros((64, 64), bool), "the mask is 64 x 64 and its condition 96 x 64: make it of the"),
        (np.zeros((64, 96)), "a mask must be boolean or uint8"),
    ],
)
def test_masks_that_do_not_fit_are_named(mask, message):
    with pytest.raises(ValueError, match=message):
        kept(mask)


def test_only_a_condition_at_the_start_has_a_mask():
    with pytest.raises(ValueError, match="must start at frame 0, not 8"):
        Condition(exactly(draw(1, 1, 2, 3, 8)), 8, mask=np.zeros((64, 96), bool))
