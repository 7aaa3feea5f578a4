"""Training with references, masks and ranges of frames: tokens, weights, stored latents, plans."""

import dataclasses

import golden_traces
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_flow_loss import COUNT, GEOMETRY, GRID, ROW, draw, item, prefix, program
from test_flow_stage import loss_of, stage_of, tiny_batch
from test_references import corners, oracle
from tiny_stages import load

from ltx_jax.config import BucketConfig, DataConfig, FlowConfig
from ltx_jax.data import latent_cache
from ltx_jax.data.loader import Batch, StoredLatents
from ltx_jax.diffusion.denoiser import Plain
from ltx_jax.training.transformer import conditions as drawing
from ltx_jax.training.transformer import loss as flow
from ltx_jax.training.transformer.conditions import Conditions, StepRandom
from ltx_jax.training.transformer.loss import FlowModel, Geometry
from ltx_jax.training.transformer.sources import Captions

BATCH = 4
SMALL = (GRID[0], 1, 3)


def noised(conditions, weight=None, cfg=FlowConfig(), kept=COUNT):
    data = draw(BATCH, *GRID, 2)
    made = program(data, conditions, jax.random.key(1), cfg, GEOMETRY, kept, weight)
    return data, jax.tree.map(np.asarray, made)


@pytest.mark.thorough
@pytest.mark.parametrize("kept", [COUNT, COUNT - 8])
def test_tokens_of_a_reference_are_clean_at_time_0_and_do_not_count(kept):
    reference = draw(BATCH, *GRID, 2, seed=3)
    keyframes = (item(1, [1, 4, 6], BATCH),)
    first = prefix(1, 0, 1, 0)[:BATCH]
    data, shown = noised(Conditions(first, keyframes, None, reference), kept=kept)
    _, without = noised(Conditions(first, keyframes), kept=kept)
    np.testing.assert_array_equal(shown.tokens[:, :COUNT], reference.reshape(BATCH, COUNT, 2))
    assert not shown.times[:, :COUNT].any()
    assert not shown.weight[:, :COUNT].any()
    t, y, x = np.unravel_index(np.arange(COUNT), GRID)
    where = np.stack([np.maximum(2 * t - 1, 0), 4 * y, 4 * x], axis=-1)
    np.testing.assert_array_equal(
        shown.coords[:, :COUNT], np.broadcast_to(where, (BATCH, COUNT, 3))
    )
    # All else is as without a reference, drawn numbers included.
    for name in ("tokens", "times", "coords", "weight", "target"):
        got, want = getattr(shown, name), getattr(without, name)
        np.testing.assert_array_equal(got[:, COUNT:], want, err_msg=name)
    assert data is not None


@pytest.mark.thorough
def test_the_loss_is_that_of_the_public_trainer():
    """`ReferenceVideoTrainingStrategy` of LTX-Video-Trainer (31b1273, training_strategies.py), its
    arithmetic written anew in numpy around diffusers' network: tokens [reference, noisy video];
    time 0 for the reference and a first frame that is a condition; coordinates 8f / fps, 32h, 32w,
    twice; (prediction - (noise - data))^2 over the video's other tokens, over their mean number.

    It rounds times to thousandths, which is left out here, as it is in the network's own training.
    """
    cfg = dataclasses.replace(golden_traces.TRANSFORMER, causal_temporal_positioning=False)
    grid, count, rate = (3, 2, 3), 18, 25.0
    data, reference, caption = draw(2, *grid, 8), draw(2, *grid, 8, seed=1), draw(2, 5, 32)
    captions = Captions(
        lambda *_: None, lambda _, arrays: (arrays, jnp.ones((2, 5), jnp.int32)), lambda _: {}
    )
    model = FlowModel(
        Plain(cfg), captions, lambda moments, _: moments, Geometry(8, 32, causal=False)
    )
    first = np.array([1, 0], np.int32)
    batch = {
        "video": jnp.asarray(data),
        "conditions": Conditions(first, (), None, jnp.asarray(reference)),
        "weight": None,
        "captions": jnp.asarray(caption),
        "frame_rate": jnp.full((2,), rate),
        "context": {},
    }
    flow_cfg = FlowConfig(max_condition_time=0.0)  # conditions at time 0, as there
    seen = []
    noise_batch = flow.noise_batch

    def noted(*arguments):
        seen.append(noise_batch(*arguments))
        return seen[-1]

    params = {"transformer": golden_traces.checkpoint().transformer_params}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "noise_batch", noted)
        got = flow.flow_loss(model, params, batch, jax.random.key(0), flow_cfg, {grid: count})
    drawn = np.asarray(seen[0].target)[:, count:] + data.reshape(2, count, 8)  # the noise
    sigma = np.asarray(seen[0].time)[:, None, None]

    target = data.reshape(2, count, 8)
    noisy = (1 - sigma) * target + sigma * drawn
    is_condition = np.zeros((2, count), bool)
    is_condition[0, :6] = True
    noisy = np.where(is_condition[..., None], target, noisy)
    tokens = np.concatenate([reference.reshape(2, count, 8), noisy], axis=1)
    still = np.concatenate([np.ones((2, count), bool), is_condition], axis=1)
    times = np.where(still, 0.0, sigma[..., 0])
    seconds = np.concatenate([corners(grid, causal=False)] * 2) / [rate, 1, 1]
    network, per_sample = oracle(), []
    for i in range(2):
        velocity = network(tokens[i : i + 1], times[i : i + 1], caption[i : i + 1], seconds)
        error = (velocity[0, count:] - (drawn - target)[i]) ** 2
        mask = ~is_condition[i][:, None]
        per_sample.append((error * mask / mask.mean()).mean())
    assert float(got.loss) == pytest.approx(np.mean(per_sample), rel=1e-4)


@pytest.mark.thorough
def test_latents_outside_of_a_mask_are_conditions():
    kept = np.random.default_rng(0).random((BATCH, *GRID)) < 0.5
    data, shown = noised(Conditions(kept=kept), cfg=FlowConfig(max_condition_time=0.0))
    flat = kept.reshape(BATCH, COUNT)
    np.testing.assert_array_equal(shown.weight, ~flat)
    np.testing.assert_array_equal(shown.times, np.where(flat, 0, shown.time[:, None]))
    np.testing.assert_array_equal(shown.tokens[flat], data.reshape(BATCH, COUNT, 2)[flat])


@pytest.mark.thorough
def test_weights_weigh_the_tokens_they_belong_to():
    """Also where tokens are dropped, and before extra tokens."""
    t, y, x = np.meshgrid(*map(np.arange, GRID), indexing="ij")
    weight = np.broadcast_to(1 + 100 * t + 10 * y + x, (BATCH, *GRID)).astype(np.float32)
    conditions = Conditions(None, (item(1, [1, 4], BATCH),))
    for kept in (COUNT, COUNT - 8):
        _, shown = noised(conditions, weight, kept=kept)
        frame = -(-shown.coords[..., 0] // 2)
        expected = 1 + 100 * frame + 10 * (shown.coords[..., 1] // 4) + shown.coords[..., 2] // 4
        expected[:, :ROW] = 0
        np.testing.assert_array_equal(shown.weight, expected)


VAE = golden_traces.VAE  # 8 x 32 x 32 pixels to a latent
SIZE = BucketConfig(17, 64, 96, 2)


def batch_of(pattern="none", mask=None, latents=None):
    rates = np.full(2, 24, np.float32)
    return Batch(SIZE, pattern, ("", ""), rates, latents=latents, mask=mask)


def stored_latents():
    zeros = lambda *shape: np.zeros(shape, np.float16)  # noqa: E731
    none = np.zeros((2, 0), np.int32)
    clip = zeros(2, 3, 2, 3, 8), zeros(2, 3, 2, 3, 1)
    return StoredLatents(*clip, zeros(2, 0, 2, 3, 9), none, zeros(2, 0, 2, 2, 3, 9), none)


def test_frames_outside_of_a_range_do_not_count():
    """Latent frames stand for the frames 0, 1 to 8 and 9 to 16."""
    cases = {(0, 17): [1, 1, 1], (0, 1): [1, 0, 0], (1, 2): [0, 1, 0], (8, 10): [0, 1, 1]}
    for frames, expected in cases.items():
        cfg = FlowConfig(loss_frames=frames)
        weight = drawing.loss_weight(batch_of(), cfg, VAE, (3, 2, 3))
        np.testing.assert_array_equal(weight[:, :, 0, 0], [expected] * 2)
        assert (weight == weight[:, :, :1, :1]).all()


def test_masks_weigh_and_leave_conditions():
    mask = np.zeros((2, 17, 64, 96), bool)
    mask[1, 12, 40, 50] = True
    cfg = FlowConfig(outside_weight=0.25, mask_probability=0.5)
    weight = drawing.loss_weight(batch_of(mask=mask), cfg, VAE, (3, 2, 3))
    assert weight[1, 2, 1, 1] == 1
    assert weight.sum() == 1 + 35 * 0.25
    drawn = drawing.draw_conditions(batch_of("mask", mask), StepRandom(0, 0), cfg, VAE)
    np.testing.assert_array_equal(drawn.kept, weight < 1)
    reduced = np.asarray(weight == 1)
    stored = batch_of("mask", reduced, stored_latents())
    again = drawing.draw_conditions(stored, StepRandom(0, 0), cfg, VAE)
    np.testing.assert_array_equal(again.kept, drawn.kept)
    assert drawing.loss_weight(batch_of(mask=mask), FlowConfig(), VAE, (3, 2, 3)) is None


@pytest.mark.thorough
def test_stored_references_and_masks_train_as_pixels_do():
    """In the precision of files, with one and the same posterior."""
    settings = ("--data.masks", "--flow.outside_weight", "0.5")
    settings += ("--flow.mask_probability", "0.5", "--data.reference", "canny")
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 255, (8, 5, 16, 16, 3), np.uint8)
    mask = np.zeros((8, 5, 16, 16), bool)
    mask[:, :, 4:8, 4:] = True
    live = stage_of(*settings, batches=[tiny_batch("mask", reference=reference, mask=mask)])
    half = jax.tree.map(np.asarray, next(live.batches(0, 1)))
    to_half = lambda moments: {k: v.astype(np.float16) for k, v in moments.items()}  # noqa: E731
    clip, followed = to_half(half["video"]), to_half(half["conditions"].reference)
    half |= {"video": clip, "conditions": half["conditions"]._replace(reference=followed)}
    expected, metrics = loss_of(live, half)
    none = (np.zeros((8, 0, 4, 4, 5), np.float16), np.zeros((8, 0), np.int32))
    none += (np.zeros((8, 0, 2, 4, 4, 5), np.float16), np.zeros((8, 0), np.int32))
    joined = np.concatenate([followed["mean"], followed["logvar"][..., :1]], axis=-1)
    stored = StoredLatents(clip["mean"], clip["logvar"][..., :1], *none, joined)
    on_latents = drawing.latent_mask(tiny_batch(mask=mask), live.vae.vae)
    cached = stage_of(*settings, batches=[tiny_batch("mask", latents=stored, mask=on_latents)])
    assert loss_of(cached)[0] == pytest.approx(expected, rel=1e-6)
    assert metrics["conditioned"] > 0.5
    assert live.tokens(half) == 8 * 2 * 3 * 4 * 4  # as many again


@pytest.mark.thorough
def test_a_plan_counts_the_tokens_of_references():
    plain, following = stage_of(), stage_of("--data.reference", "canny")
    [size] = plain.cfg.data.sizes
    counts = [stage.tokens(stage.abstract_batch(size)) for stage in (plain, following)]
    assert counts == [8 * (48), 8 * (48 + 48)]
    small = stage_of("--data.reference", "canny", "--data.reference_downscale_factor", "2")
    assert small.tokens(small.abstract_batch(size)) == 8 * (48 + 12)
    with pytest.raises(ValueError, match="multiples of 12, and a bucket has 16 x 16"):
        stage_of("--data.reference", "canny", "--data.reference_downscale_factor", "3")
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), following.abstract_batch(size))
    made = next(following.batches(0, 1))
    got = jax.tree.map(lambda x: x.shape, made["conditions"].reference)
    assert got["mean"] == shapes["conditions"].reference["mean"][0]


@pytest.mark.thorough
def test_batches_with_references_are_the_same_whenever_they_are_asked_for():
    stage = stage_of(
        *("--data.reference", "canny", "--data.batch_size", "2", "--data.flip"),
        *("--flow.loss_frames", "0", "4"),
    )
    steps = jax.device_get(list(stage.batches(0, 4)))
    again = jax.device_get(next(stage.batches(3, 4)))
    jax.tree.map(np.testing.assert_array_equal, again, steps[3])
    assert steps[0]["weight"].shape == (2, 3, 4, 4)


def test_settings_that_need_masks_say_so():
    cfg = load("transformer")
    for flow_cfg in (FlowConfig(mask_probability=0.1), FlowConfig(outside_weight=0.0)):
        with pytest.raises(ValueError, match=r"need masks: set data\.masks"):
            dataclasses.replace(cfg, flow=flow_cfg)
    with pytest.raises(ValueError, match=r"loss_frames must be .* got \(4, 4\)"):
        FlowConfig(loss_frames=(4, 4))


def test_stored_latents_without_what_a_run_needs_are_refused():
    stored = {"reference": "canny", "reference_downscale_factor": 2}
    cases = [
        (DataConfig(masks=True), {}, "DIR holds no masks: encode the data again"),
        (DataConfig(reference="files"), {}, "DIR was encoded with data.reference = 'none', and"),
        (
            DataConfig(reference="canny"),
            stored,
            "data.reference_downscale_factor = 2, and this run has 1",
        ),
    ]
    for cfg, description, message in cases:
        with pytest.raises(ValueError, match=message):
            latent_cache._unused("DIR", description, cfg)
    assert latent_cache._unused("DIR", stored, DataConfig()) == {"reference", "mask"}
