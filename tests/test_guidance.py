"""Which branches a step computes, and how their velocities are combined."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ltx_jax.config import SamplingConfig, SchedulerConfig
from ltx_jax.diffusion import flow, guidance
from ltx_jax.diffusion.guidance import Branches, Scales

LAYERS = 6
PLAIN = SamplingConfig(guidance_scale=1.0, stg_scale=0.0)
TIMES = np.float32([1.0, 0.8, 0.4])


def plan(times=TIMES, **changes):
    return guidance.guidance_schedule(dataclasses.replace(PLAIN, **changes), times, LAYERS)


def test_guidance_changes_at_the_times_of_the_released_13b_settings():
    """The list that the released pipeline was seen to use, which depends on float32 rounding."""
    times = flow.inference_times(
        SchedulerConfig("LinearQuadratic"), 1, num_inference_steps=30, skip_final=3
    )
    changes = (1.0, 0.996, 0.9933, 0.9850, 0.9767, 0.9008, 0.6180)
    values = tuple(float(i) for i in range(7))
    scales = plan(times, guidance_scale=values, guidance_timesteps=changes).scales
    expected = [0, 1, 1, 2, 2, *[3] * 5, *[4] * 4, *[5] * 5, *[6] * 8]
    assert scales.cfg.tolist() == expected


def test_an_entry_counts_from_its_own_time_on_whatever_float32_makes_of_it():
    times = (0.9, 0.7, 0.3)
    made = plan(np.float32(times), guidance_scale=(3.0, 4.0, 5.0), guidance_timesteps=times)
    assert made.scales.cfg.tolist() == [3.0, 4.0, 5.0]


def test_a_time_below_every_entry_takes_the_last_one():
    scales = plan(guidance_scale=(3.0, 5.0), guidance_timesteps=(0.9, 0.5)).scales
    assert scales.cfg.tolist() == [3.0, 5.0, 5.0]


def test_single_values_hold_for_every_step():
    made = plan(guidance_scale=3.0, stg_scale=1.0, rescaling_scale=0.7, skip_block_list=(1, 4))
    assert made.branches == (Branches(True, True),) * 3
    assert made.scales.cfg.tolist() == [3.0] * 3
    np.testing.assert_allclose(made.scales.rescale, 0.7, rtol=1e-6)
    assert made.scales.keep.tolist() == [[1, 0, 1, 1, 0, 1]] * 3


def test_each_step_has_its_own_values_and_branches():
    made = plan(
        guidance_scale=(1.0, 6.0, 1.0),
        stg_scale=(0.0, 4.0, 2.0),
        rescaling_scale=(1.0, 0.5, 1.0),
        skip_block_list=((), (0, 2), (1,)),
        guidance_timesteps=(1.0, 0.5, 0.3),
    )
    assert made.branches == (Branches(False, False), Branches(True, True), Branches(False, True))
    assert made.scales.keep.tolist() == [[1] * 6, [0, 1, 0, 1, 1, 1], [1, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(guidance_scale=1.0), Branches(False, False)),
        (dict(guidance_scale=0.5), Branches(False, False)),
        (dict(guidance_scale=1.01), Branches(True, False)),
        (dict(stg_scale=0.0, skip_block_list=(1,)), Branches(False, False)),
        (dict(stg_scale=1.0, skip_block_list=()), Branches(False, False)),
        (dict(stg_scale=1.0, skip_block_list=(1,)), Branches(False, True)),
        (dict(stg_scale=1.0, skip_block_list=(1,), stg_mode="residual"), Branches(False, False)),
    ],
)
def test_a_branch_that_changes_nothing_is_left_out(changes, expected):
    made = plan(**changes)
    assert made.branches == (expected,) * 3
    assert made.needs_negative == expected.negative


def test_rescaling_waits_for_spatio_temporal_guidance():
    """As upstream: without it the scale does nothing, even beside classifier-free guidance."""
    assert plan(guidance_scale=3.0, rescaling_scale=0.7).scales.rescale.tolist() == [1.0] * 3


def test_blocks_that_do_not_exist_matter_only_where_they_would_be_skipped():
    assert plan(skip_block_list=(42,)).branches == (Branches(False, False),) * 3
    with pytest.raises(ValueError, match=r"blocks \[42\].*0 to 5"):
        plan(skip_block_list=(42,), stg_scale=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(guidance_scale=(1.0, 2.0)), "guidance_scale is a list.*guidance_timesteps"),
        (
            dict(stg_scale=(1.0, 2.0), guidance_timesteps=(1.0,)),
            "stg_scale has 2 entries and guidance_timesteps 1",
        ),
        (dict(guidance_timesteps=()), "guidance_timesteps is empty"),
        (
            dict(skip_block_list=((1,), (2,)), guidance_timesteps=(1.0,)),
            "skip_block_list has 2 entries",
        ),
    ],
)
def test_lists_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def scales(cfg=1.0, stg=0.0, rescale=1.0):
    return Scales(*(jnp.asarray(x, jnp.float32) for x in (cfg, stg, rescale)), None)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.standard_normal((3, 2, 7, 4), np.float32)  # branch, sample, token, channel


def combine(rows, branches, *, cfg_star=False, **numbers):
    stacked = jnp.asarray(rows.reshape(-1, *rows.shape[2:]))
    return np.asarray(guidance.combine(stacked, branches, scales(**numbers), cfg_star))


def test_rows_lie_in_blocks_and_only_the_perturbed_block_skips():
    batch = jnp.arange(2.0).reshape(2, 1, 1)
    branches = Branches(True, True)
    repeated = np.asarray(guidance.repeat_rows(batch, branches))
    assert repeated.ravel().tolist() == [0, 1, 0, 1, 0, 1]
    keep = jnp.array([1.0, 0.0])
    mask = np.asarray(guidance.skip_mask(keep, branches, 2))
    assert mask.tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
    alone = np.asarray(guidance.skip_mask(keep, Branches(False, True), 2))
    assert alone.tolist() == [[1] * 4, [1, 1, 0, 0]]


def test_without_branches_the_velocity_is_that_of_the_caption(rows):
    np.testing.assert_array_equal(combine(rows[1:2], Branches(False, False)), rows[1])


@pytest.mark.parametrize("cfg_star", [False, True])
@pytest.mark.parametrize("stg", [0.0, 1.5])
@pytest.mark.parametrize("rescale", [1.0, 0.7, 0.0])
def test_branches_combine_sample_by_sample(rows, cfg_star, stg, rescale):
    """Against the formulas, one sample at a time in float64."""
    branches = Branches(True, stg > 0)
    ours = combine(
        rows[: branches.count], branches, cfg_star=cfg_star, cfg=3.0, stg=stg, rescale=rescale
    )
    for i in range(2):
        negative, text, perturbed = rows[:, i].astype(np.float64)
        if cfg_star:
            negative = negative * (text * negative).sum() / (negative**2).sum()
        guided = negative + 3.0 * (text - negative) + stg * (text - perturbed)
        if rescale != 1:
            guided *= rescale * text.std(ddof=1) / guided.std(ddof=1) + 1 - rescale
        np.testing.assert_allclose(ours[i], guided, atol=1e-5)


def test_spatio_temporal_guidance_stands_alone_too(rows):
    ours = combine(rows[1:], Branches(False, True), stg=2.0)
    np.testing.assert_allclose(ours, rows[1] + 2 * (rows[1] - rows[2]), atol=1e-5)


def test_guidance_is_float32_whatever_the_network_computes_in(rows):
    half = jnp.asarray(rows.reshape(-1, 7, 4), jnp.bfloat16)
    made, same = (
        guidance.combine(x, Branches(True, True), scales(3.0, 1.0, 0.7), True)
        for x in (half, half.astype(jnp.float32))
    )
    assert made.dtype == jnp.float32
    np.testing.assert_array_equal(made, same)
