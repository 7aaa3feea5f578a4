"""References: clips that a video follows, as tokens before its own."""

import dataclasses
import functools
import itertools

import diffusers_reference
import golden_traces
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import golden_state_dict
from quick import QUICK

from ltx_jax.config import MeshConfig, SamplingConfig, UpsamplerConfig
from ltx_jax.diffusion import conditioning
from ltx_jax.diffusion.conditioning import Condition, Encoded, Reference
from ltx_jax.diffusion.noise import seeded
from ltx_jax.inference import condition_media, two_pass
from ltx_jax.inference.arguments import Size
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.inference.two_pass import Upsampler
from ltx_jax.models.upsampler import LatentUpsampler
from ltx_jax.models.vae import Posterior
from ltx_jax.runtime import sharding
from ltx_jax.runtime.compiled import Programs

OPTIONS = SamplingConfig(
    height=64,
    width=96,
    num_frames=17,
    frame_rate=25.0,
    num_inference_steps=3,
    guidance_scale=3.0,
    stg_scale=0.0,
    image_cond_noise_scale=0.0,
    prepare_conditions=False,
)
GRID = (3, 2, 3)
ROW = GRID[1] * GRID[2]


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


EMBEDDINGS = dict(
    prompt_embeds=draw(1, 5, 32),
    prompt_mask=np.ones((1, 5), np.int32),
    negative_embeds=draw(1, 5, 32, seed=1),
    negative_mask=np.ones((1, 5), np.int32),
)


def corners(grid, frame=0, factor=1, causal=True):
    """Frame, row and column of each latent's first pixel, one by one."""
    return np.array(
        [
            [
                max(8 * t - 7, 0) + frame if causal else 8 * t + frame,
                32 * factor * y,
                32 * factor * x,
            ]
            for t in range(grid[0])
            for y in range(grid[1])
            for x in range(grid[2])
        ]
    )


@functools.partial(jax.jit, static_argnames="causal")
def lay_out(latents, reference, keyframe, causal):
    items = [Encoded(keyframe, 1.0, 9), Encoded(reference, 0.75, None)]
    factors = dict(temporal_factor=8, spatial_factor=32, causal=causal)
    return conditioning.prepare(latents, items, seeded(0, 1), **factors)


@pytest.mark.thorough
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("factor", [1, 2])
def test_tokens_of_references_come_first_with_the_positions_of_the_video(factor, causal):
    grid, small = (3, 4, 2), (2, 4 // factor, 2 // factor)
    latents, reference, keyframe = (draw(1, *g, 8) for g in (grid, small, (1, 4, 2)))
    shown = jax.tree.map(np.asarray, lay_out(latents, reference, keyframe, causal))
    count = int(np.prod(small))
    expected = [
        corners(small, factor=factor, causal=causal),
        corners((1, 4, 2), frame=9, causal=causal),
        corners(grid, causal=causal),
    ]
    np.testing.assert_array_equal(shown.coords, np.concatenate(expected))
    strength = np.concatenate([np.full(count, 0.75), np.ones(8), np.zeros(24)])
    np.testing.assert_array_equal(shown.strength[0], strength.astype(np.float32))
    np.testing.assert_array_equal(shown.tokens[0, count:][:8], keyframe.reshape(8, 8))
    np.testing.assert_array_equal(shown.tokens[0, -24:], latents.reshape(24, 8))
    noise = np.asarray(seeded(0, 1).draw("condition/1", (1, *small, 8)))
    lerped = 0.75 * reference + 0.25 * noise
    np.testing.assert_allclose(shown.tokens[0, :count], lerped.reshape(count, 8), atol=1e-6)


def exactly(latents):
    """The media whose latents, normalised, are these."""
    statistics = golden_traces.checkpoint().statistics
    mean = np.asarray(statistics.denormalize(jnp.asarray(latents)))
    return Posterior(mean, np.full_like(mean, -200.0))


@functools.cache
def oracle():
    """The network of the pipeline in diffusers."""
    torch = pytest.importorskip("torch")
    cfg = golden_traces.TRANSFORMER
    network = diffusers_reference.transformer(cfg)
    renames = {"proj_in": "patchify_proj", "time_embed": "adaln_single"}
    renames |= {"norm_q": "q_norm", "norm_k": "k_norm"}
    names = {}
    for key in network.state_dict():
        names[key] = key
        for theirs, official in renames.items():
            names[key] = names[key].replace(theirs, official)
    state = golden_state_dict({names[k]: v.shape for k, v in network.state_dict().items()})
    network.load_state_dict({k: torch.from_numpy(state[names[k]]) for k in names}, assign=True)

    def velocity(tokens, time, caption, seconds):
        arrays = (tokens, caption, 1000 * time)
        tensors = (torch.from_numpy(np.asarray(x, np.float32)) for x in arrays)
        ones = torch.ones(1, caption.shape[1])
        coords = torch.from_numpy(seconds.astype(np.float32)).T[None]
        with torch.no_grad():
            return network(*tensors, ones, video_coords=coords).sample.numpy()

    return velocity


@pytest.fixture(scope="module")
def pipe():
    return golden_traces.pipeline()


@pytest.mark.thorough
def test_sampling_with_a_reference_and_a_keyframe_is_the_public_loop(pipe):
    """The loop of LTX-Video-Trainer's `ltxv_pipeline.py` (31b1273, lines 1074 to 1275), written out
    anew around diffusers' network: tokens [reference, keyframe, video], the mask 1 for the first
    two, time min(t, 1 - mask), a step of Euler where t < 1 - mask."""
    velocity = oracle()
    reference, keyframe, noise = (
        draw(1, *GRID, 8, seed=2),
        draw(1, 1, *GRID[1:], 8),
        draw(1, *GRID, 8),
    )
    got = pipe(
        None,
        OPTIONS,
        embeddings=EMBEDDINGS,
        conditions=[Condition(exactly(keyframe), 16), Reference(exactly(reference))],
        noise=noise,
        output="latents",
    )
    start = pipe.prepare(None, OPTIONS, embeddings=EMBEDDINGS)
    times = [*np.asarray(start.inputs.times)[:3].tolist(), 0.0]
    tokens = np.concatenate([x.reshape(1, -1, 8) for x in (reference, keyframe, noise)], axis=1)
    seconds = np.concatenate([corners(GRID), corners((1, 2, 3), frame=16), corners(GRID)]) / [
        25,
        1,
        1,
    ]
    still = np.arange(tokens.shape[1]) < 4 * ROW
    for t, after in itertools.pairwise(times):
        time = np.where(still, 0.0, t)[None]
        no, yes = (
            velocity(tokens, time, EMBEDDINGS[name], seconds)
            for name in ("negative_embeds", "prompt_embeds")
        )
        step = tokens - (t - after) * (no + 3.0 * (yes - no))
        tokens = np.where(still[None, :, None], tokens, step)
    want = tokens[:, -3 * ROW :].reshape(1, *GRID, 8)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    alone = pipe(None, OPTIONS, embeddings=EMBEDDINGS, noise=noise, output="latents")
    assert np.abs(got - alone).max() > 0.05, "nothing reaches the video"


def shape_of(tokens):
    return np.asarray(tokens).copy()


@pytest.mark.thorough
def test_a_reference_stays_as_it_is(pipe):
    seen = []
    reference = draw(1, *GRID, 8)
    pipe(
        None,
        OPTIONS,
        embeddings=EMBEDDINGS,
        conditions=[Reference(exactly(reference))],
        output="latents",
        callback=lambda progress: seen.append(shape_of(progress.tokens)),
    )
    for tokens in seen:
        np.testing.assert_allclose(tokens[:, : 3 * ROW], reference.reshape(1, -1, 8), atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["fast", "seq", "data"])
def test_every_form_samples_the_same_with_a_reference(pipe, form):
    """A first frame, a reference of half the size, and odd numbers of tokens."""
    clip = np.random.default_rng(0).integers(0, 255, (9, 64, 128, 3), np.uint8)
    options = dataclasses.replace(OPTIONS, width=128)
    conditions = [Condition(clip[:1]), Reference(clip, downscale_factor=2)]
    arguments = dict(embeddings=EMBEDDINGS, conditions=conditions, output="latents")
    mesh = None
    if form != "fast":
        mesh = sharding.make_mesh(MeshConfig(**({"data": 1} | {form: 2})), jax.devices()[:2])
    other = LTXPipeline(golden_traces.checkpoint(), dtype="float32", mesh=mesh, fast=form == "fast")
    other.programs = Programs(QUICK)
    want, got = (one(None, options, **arguments) for one in (pipe, other))
    assert want.std() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 if form == "fast" else 1e-5)
    start = other.prepare(None, options, embeddings=EMBEDDINGS, conditions=conditions)
    assert start.inputs.start.shape[1] == 2 * 1 * 2 + 3 * 2 * 4


@pytest.mark.thorough
def test_two_passes_follow_a_reference_at_their_own_sizes(pipe):
    cfg = UpsamplerConfig(in_channels=8, mid_channels=32, num_blocks_per_stage=1)

    def init(key):
        return sharding.unbox(LatentUpsampler(cfg).init(key, jnp.zeros((1, 2, 2, 2, 8))))["params"]

    upsampler = Upsampler(cfg, jax.jit(init, compiler_options=QUICK)(jax.random.key(0)))
    clip = draw(9, 96, 96, 3).clip(-1, 1)
    options = dataclasses.replace(OPTIONS, height=96, width=96, num_frames=9, guidance_scale=1.0)
    second = dataclasses.replace(options, timesteps=(0.7,))
    common = dict(embeddings=EMBEDDINGS, conditions=[Reference(clip)])
    got = two_pass.sample(
        pipe, upsampler, None, options, second_pass=second, output="latents", **common
    )
    low = dataclasses.replace(options, height=32, width=32)
    small = pipe(None, low, **common, output="latents")
    large = two_pass.enlarge(pipe, upsampler, jnp.asarray(small))
    noise = two_pass._second_noise(options.seed, 1, 0)
    high = dataclasses.replace(second, height=64, width=64)
    want = pipe(None, high, **common, input_latents=large, noise=noise, output="latents")
    np.testing.assert_allclose(got, want, atol=1e-5)
    without = two_pass.sample(
        pipe, upsampler, None, options, second_pass=second, output="latents", embeddings=EMBEDDINGS
    )
    assert np.abs(got - without).max() > 0.01


SIZE = Size(17, 64, 96, 8, 32)
CLIP = np.zeros((17, 64, 96, 3), np.uint8)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (Reference(CLIP[:16]), "reference 0 has 16 frames, but a clip must have 8k.1; cut it to"),
        (Reference(np.zeros((25, 64, 96, 3), np.uint8)), "reference 0 does not fit: a video of 17"),
        (Reference(np.full((9, 64, 96, 3), 2.0)), "must lie in .-1, 1., got 2.0 to 2.0"),
        (Reference(exactly(draw(1, 3, 2, 2, 8))), r"has \(2, 2\) rows and columns, and the video"),
        (Reference(CLIP.astype(np.float32), preprocessor="canny"), "canny draws from files and"),
        (
            Reference(CLIP, preprocessor="sketch"),
            "there is no preprocessor 'sketch': take canny or",
        ),
    ],
)
def test_references_that_do_not_fit_are_named(reference, message):
    with pytest.raises(ValueError, match=message):
        condition_media.load_conditions([reference], SIZE, 1, OPTIONS)


def test_a_reference_has_a_strength_and_a_factor():
    with pytest.raises(ValueError, match=r"strength of a reference must lie in \[0, 1\], got 2.0"):
        Reference(CLIP, strength=2.0)
    with pytest.raises(
        ValueError, match="downscale_factor of a reference must be 1 or more, got 0"
    ):
        Reference(CLIP, downscale_factor=0)
    [loaded] = condition_media.load_conditions([Reference(CLIP)], SIZE, 1, OPTIONS)
    with pytest.raises(ValueError, match="multiples of 64, and 64 x 96 is sampled"):
        condition_media.encoder_input(loaded, SIZE, 2)


def test_a_smaller_reference_is_averaged():
    size = Size(1, 64, 128, 8, 32)
    clip = draw(1, 64, 128, 3).clip(-1, 1)
    [loaded] = condition_media.load_conditions([Reference(clip)], size, 1, OPTIONS)
    small = condition_media.encoder_input(loaded, size, 2)
    assert small.shape == (1, 1, 32, 64, 3)
    np.testing.assert_allclose(small[0, 0, 3, 5], clip[0, 6:8, 10:12].mean((0, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("metadata", "factor"),
    [
        ([], 1),
        ([{}, {"rank": "8"}], 1),
        ([{"reference_downscale_factor": "2"}], 2),
        ([{"reference_spatial_scale_factor": "2.0"}, {"reference_downscale_factor": "2"}], 2),
    ],
)
def test_adapters_say_how_small_references_are(metadata, factor):
    assert condition_media.reference_factor(metadata) == factor


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ([{"reference_downscale_factor": "two"}], "= 'two', and it must be a whole number"),
        ([{"reference_downscale_factor": "1.5"}], "must be a whole number"),
        ([{"reference_downscale_factor": "2"}, {"reference_downscale_factor": "3"}], r"\[2, 3\]"),
        ([{"reference_temporal_scale_factor": "2"}], "fewer frames per second"),
    ],
)
def test_adapters_that_want_other_references_are_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        condition_media.reference_factor(metadata)
