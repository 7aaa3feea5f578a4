"""From prompts and media to videos, on the tiny networks of the traces."""

import dataclasses
import logging

import golden_traces
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK

from ltx_jax.checkpoints import keys, official
from ltx_jax.config import MeshConfig, SamplingConfig, T5Config
from ltx_jax.data import writing
from ltx_jax.data.condition_pixels import prepare_condition
from ltx_jax.diffusion.conditioning import Condition
from ltx_jax.inference import arguments, condition_media
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.inference.text_encoder import ByteTokenizer, TextEncoder
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.runtime import sharding
from ltx_jax.runtime.compiled import Programs, explain_memory_errors

# The size of the traces, whose programs these tests share.
SMALL = SamplingConfig(
    height=64,
    width=96,
    num_frames=17,
    frame_rate=25.0,
    num_inference_steps=3,
    skip_block_list=(1,),
    image_cond_noise_scale=0.0,
)
FAST = dataclasses.replace(SMALL, guidance_scale=1.0, stg_scale=0.0)
T5 = T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
PROMPTS = ["a red square", "a circle that grows"]


@pytest.fixture(scope="module")
def text_encoder():
    ids = jnp.zeros((1, 4), jnp.int32)
    init = jax.jit(lambda key: sharding.unbox(T5Encoder(T5).init(key, ids, ids))["params"])
    return TextEncoder(ByteTokenizer(), T5, init(jax.random.key(0)), 24)


@pytest.fixture(scope="module")
def pipe(text_encoder):
    """The pipeline of the traces, with a text encoder."""
    made = LTXPipeline(golden_traces.checkpoint(), text_encoder, dtype="float32")
    made.programs = golden_traces.pipeline().programs
    return made


@pytest.fixture
def embeddings():
    rng = np.random.default_rng(1)
    return dict(
        prompt_embeds=rng.standard_normal((2, 7, 32), np.float32),
        prompt_mask=np.array([[1] * 5 + [0] * 2, [1] * 7], np.int32),
        negative_embeds=rng.standard_normal((1, 4, 32), np.float32),
        negative_mask=np.ones((1, 4), np.int32),
    )


@pytest.fixture(scope="module")
def picture():
    """30 x 60, unlike the video's aspect."""
    rows, columns = np.indices((30, 60))
    return np.stack([rows * 8, columns * 4, 255 - rows * 8], axis=-1).astype(np.uint8)


@pytest.mark.thorough
def test_prompts_become_videos(pipe):
    videos = pipe(PROMPTS, FAST, output="uint8")
    assert (videos.shape, videos.dtype) == ((2, 17, 64, 96, 3), np.uint8)
    assert np.any(videos[0] != videos[1])
    floats = pipe.decode(pipe(PROMPTS, FAST, output="latents"), FAST, output="float")
    np.testing.assert_array_equal(videos, (255 * (floats * 0.5 + 0.5)).astype(np.uint8))


@pytest.mark.thorough
@pytest.mark.parametrize("fast", [False, True])
def test_float16_makes_the_video_of_a_vae_whose_activations_pass_its_range(
    fast, embeddings, picture
):
    """In the condition's encoder and in the decoder; their norms make the videos the same."""
    plain = golden_traces.checkpoint()
    params = jax.tree.map(lambda x: x, plain.vae_params)
    for half in ("encoder", "decoder"):
        params[half]["conv_in"] = jax.tree.map(lambda x: 1e6 * x, params[half]["conv_in"])
    loud = dataclasses.replace(plain, vae_params=params)
    options = dataclasses.replace(SMALL, guidance_scale=1.0, stg_scale=0.0)
    videos = []
    for dtype in ("float32", "float16"):
        pipe = LTXPipeline(loud, dtype=dtype, fast=fast)
        pipe.programs = Programs(QUICK)
        conditions = [Condition(picture)]
        video = pipe(None, options, embeddings=embeddings, conditions=conditions, output="float")
        videos.append(video)
    assert videos[0].std() > 0.1
    assert np.abs(videos[1] - videos[0]).mean() < 0.05


GUIDED = dataclasses.replace(SMALL, cfg_star_rescale=True)
BATCHES = {  # options, and arguments of the call
    "conditions": (dict(image_cond_noise_scale=0.15), {}),
    "attention_skip": (dict(stg_mode="attention_skip"), {}),
    "transformer_block": (dict(stg_mode="transformer_block"), {}),
    "a changed video, with new noise in every step": (
        dict(stochastic_sampling=True, skip_initial_inference_steps=1),
        dict(input_media=np.zeros((17, 64, 96, 3), np.uint8)),
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_of_two_equals_two_batches_of_one(pipe, name):
    """Upstream perturbs the wrong rows of a batch, and fails with cfg-star."""
    changes, arguments = BATCHES[name]
    options = dataclasses.replace(GUIDED, **changes)
    if name == "conditions":  # at the start, and tokens of its own
        first, later = np.zeros((64, 96, 3), np.float32), np.ones((9, 64, 96, 3), np.float32)
        arguments = dict(conditions=[Condition(first, strength=0.9), Condition(later, frame=8)])
    together = pipe(PROMPTS, options, output="latents", **arguments)
    for i, prompt in enumerate(PROMPTS):
        alone = pipe(prompt, options, first_sample=i, output="latents", **arguments)
        # Other shapes, other orders of summation, through three guided calls.
        np.testing.assert_allclose(together[i : i + 1], alone, atol=2e-5)
    assert np.abs(together[0] - together[1]).max() > 0.1


@pytest.mark.thorough
def test_every_option_of_guidance_moves_the_result(pipe):
    made = {
        name: pipe(PROMPTS[0], dataclasses.replace(SMALL, **changes), output="latents")
        for name, changes in {
            "none": dict(guidance_scale=1.0, stg_scale=0.0),
            "cfg": dict(stg_scale=0.0),
            "cfg-star": dict(stg_scale=0.0, cfg_star_rescale=True),
            "stg": dict(rescaling_scale=1.0),
            "rescaled": {},
            "negative": dict(negative_prompt="dull"),
            "stochastic": dict(stochastic_sampling=True),
            "rate": dict(frame_rate=12.0),
        }.items()
    }
    names = list(made)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert np.abs(made[one] - made[other]).max() > 1e-2, f"{one} equals {other}"


@pytest.mark.thorough
def test_lists_and_whole_numbers_serve_as_options(pipe):
    ours = pipe(
        PROMPTS[0], FAST, guidance_scale=[3, 1], guidance_timesteps=[1, 0], output="latents"
    )
    same = pipe(
        PROMPTS[0], FAST, guidance_scale=(3.0, 1.0), guidance_timesteps=(1.0, 0.0), output="latents"
    )
    np.testing.assert_array_equal(ours, same)


@pytest.mark.thorough
def test_any_size_is_padded_with_a_notice_and_cropped_back(pipe, caplog):
    whole = pipe(PROMPTS, FAST)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        part = pipe(PROMPTS, FAST, height=50, width=75, num_frames=10)
    assert "10 frames of 50 x 75" in caplog.text
    assert "17 of 64 x 96" in caplog.text
    np.testing.assert_array_equal(part, whole[:, :10, 7:57, 10:85])


@pytest.mark.parametrize(
    ("frames", "side", "padded"),
    [
        (1, 1, (1, 32)),
        (2, 32, (9, 32)),
        (9, 33, (9, 64)),
        (10, 704, (17, 704)),
        (121, 720, (121, 736)),
    ],
)
def test_padded_sizes_are_those_of_the_released_script(frames, side, padded):
    size = arguments.Size(frames, side, side, 8, 32)
    assert size.padded == (padded[0], padded[1], padded[1])


def test_cropping_undoes_padding():
    size = arguments.Size(2, 3, 45, 8, 32)
    clip = np.random.default_rng(0).random((1, 9, 3, 45, 3)).astype(np.float32)
    padded = size.pad(clip)
    assert padded.shape == (1, 9, 32, 64, 3)
    np.testing.assert_array_equal(size.crop(padded), clip[:, :2])


@pytest.mark.thorough
def test_a_condition_image_is_prepared_as_in_training(pipe, picture, tmp_path):
    path = tmp_path / "first.png"
    writing.write_image(path, picture)
    start = pipe.prepare(PROMPTS[0], FAST, conditions=[Condition(path)]).inputs.start
    by_hand = prepare_condition(picture[None], 64, 96)
    expected = pipe.prepare(PROMPTS[0], FAST, conditions=[Condition(by_hand)]).inputs.start
    np.testing.assert_array_equal(start, expected)
    array = pipe.prepare(PROMPTS[0], FAST, conditions=[Condition(picture)]).inputs.start
    np.testing.assert_array_equal(array, expected)
    sharp = pipe.prepare(
        PROMPTS[0], FAST, conditions=[Condition(path)], prepare_conditions=False
    ).inputs.start
    moved = np.abs(sharp - start).max(axis=(0, 2))
    assert moved[:6].max() > 1e-3
    assert moved[6:].max() == 0


@pytest.mark.thorough
def test_a_condition_decides_the_frames_it_stands_for(pipe, picture):
    plain = pipe(PROMPTS[0], FAST, output="latents")
    first = pipe(PROMPTS[0], FAST, conditions=[Condition(picture)], output="latents")
    last = pipe(PROMPTS[0], FAST, conditions=[Condition(picture, 16)], output="latents")
    shown = pipe.prepare(PROMPTS[0], FAST, conditions=[Condition(picture)]).inputs.start[:, :6]
    np.testing.assert_allclose(first[:, 0].reshape(1, 6, 8), shown, atol=1e-6)
    assert np.abs(last - plain).max() > 1e-2, "a later condition reaches the video by attention"


def test_a_padded_video_shows_its_condition_where_it_is_cropped(pipe, picture):
    """Upstream pads condition media by the amounts of another scale."""
    size = arguments.Size(17, 50, 75, 8, 32)
    (shown,) = condition_media.load_conditions(
        [Condition(picture)], size, 1, SamplingConfig(prepare_conditions=False)
    )
    clip = shown.media
    assert clip.shape == (1, 1, 64, 96, 3)
    np.testing.assert_array_equal(
        size.crop(clip)[0], prepare_condition(picture[None], 50, 75, blur=False, crf=0)
    )
    assert np.all(clip[:, :, :7] == 0)


@pytest.mark.thorough
def test_clips_extend_forward_and_backward(pipe):
    clip = np.zeros((17, 64, 96, 3), np.float32)
    for frame in (0, 16):
        condition = Condition(clip, frame)
        start = pipe.prepare(PROMPTS[0], FAST, conditions=[condition], num_frames=33)
        extra = 12 if frame else 0
        assert start.inputs.start.shape[1] == 30 + extra
        assert np.sum(start.inputs.strength) == 18


@pytest.fixture(scope="module")
def input_clip():
    rng = np.random.default_rng(2)
    return rng.integers(0, 255, (20, 64, 96, 3), np.uint8)


V2V = dataclasses.replace(FAST, skip_initial_inference_steps=1)


@pytest.mark.thorough
def test_an_input_video_is_noised_to_the_first_time(pipe, input_clip):
    start = pipe.prepare(PROMPTS[0], V2V, input_media=input_clip)
    t = start.inputs.times[0]
    assert 0 < t < 1
    given = (start.inputs.start - t * start.inputs.noise.draw("initial", (1, 18, 8))) / (1 - t)
    again = pipe.prepare(
        PROMPTS[0], V2V, input_latents=given.reshape(1, 3, 2, 3, 8), timesteps=(0.5,)
    )
    noise = again.inputs.noise.draw("initial", (1, 18, 8))
    np.testing.assert_allclose(again.inputs.start, (given + noise) / 2, atol=1e-5)


def test_a_longer_input_is_cut_and_added_frames_repeat_the_last(input_clip):
    size = arguments.Size(12, 64, 96, 8, 32)  # sampled as 17 frames
    clip = condition_media.load_input(input_clip, size, 1, False)
    expected = prepare_condition(input_clip[:17], 64, 96, blur=False, crf=0)
    np.testing.assert_array_equal(clip[0], expected)
    clip = condition_media.load_input(input_clip[:12], size, 1, False)
    np.testing.assert_array_equal(clip[0, :12], expected[:12])
    np.testing.assert_array_equal(clip[0, 12:], expected[11:12].repeat(5, 0))


@pytest.mark.thorough
def test_given_noise_takes_the_place_of_the_seed(pipe):
    noise = np.random.default_rng(0).standard_normal((1, 3, 2, 3, 8), np.float32)
    a = pipe(PROMPTS[0], FAST, noise=noise, seed=1, output="latents")
    b = pipe(PROMPTS[0], FAST, noise=noise, seed=2, output="latents")
    np.testing.assert_array_equal(a, b)
    c = pipe(PROMPTS[0], FAST, seed=2, output="latents")
    assert np.abs(a - c).max() > 0.1


@pytest.mark.thorough
def test_embeddings_take_the_place_of_prompts(pipe, text_encoder):
    embeds, mask = text_encoder.encode(PROMPTS)
    negative, negative_mask = text_encoder.encode([SMALL.negative_prompt])
    given = dict(
        prompt_embeds=np.asarray(embeds),
        prompt_mask=np.asarray(mask),
        negative_embeds=np.asarray(negative),
        negative_mask=np.asarray(negative_mask),
    )
    ours = pipe(embeddings=given, options=SMALL, output="latents")
    np.testing.assert_array_equal(ours, pipe(PROMPTS, SMALL, output="latents"))


@pytest.mark.thorough
def test_captions_of_other_lengths_are_padded_and_masked(pipe, embeddings):
    longer = embeddings | dict(
        negative_embeds=np.pad(embeddings["negative_embeds"], ((0, 0), (0, 3), (0, 0))) + 1,
        negative_mask=np.pad(embeddings["negative_mask"], ((0, 0), (0, 3))),
    )
    longer["negative_embeds"][:, :4] -= 1
    ours = pipe(embeddings=embeddings, options=SMALL, output="latents")
    same = pipe(embeddings=longer, options=SMALL, output="latents")
    np.testing.assert_allclose(ours, same, atol=1e-5)


def test_negative_embeddings_are_asked_for_only_where_they_count(pipe, embeddings):
    for name in ("negative_embeds", "negative_mask"):
        embeddings.pop(name)
    pipe.prepare(embeddings=embeddings, options=FAST)
    with pytest.raises(ValueError, match=r"lack.*negative_embeds.*guidance_scale > 1"):
        pipe.prepare(embeddings=embeddings, options=SMALL)


@pytest.mark.thorough
def test_a_checkpoint_of_ours_brings_its_text_encoder(text_encoder):
    checkpoint = dataclasses.replace(
        golden_traces.checkpoint(), text_encoder=(T5, text_encoder.params, 24)
    )
    own = LTXPipeline(checkpoint, dtype="float32")
    embeds, _ = own.text_encoder.encode(PROMPTS)
    np.testing.assert_array_equal(embeds, text_encoder.encode(PROMPTS)[0])


@pytest.mark.thorough
def test_a_pipeline_from_a_file_is_the_one_in_memory(pipe, embeddings, tmp_path):
    path = tmp_path / "tiny.safetensors"
    official.write(path, pipe.checkpoint)
    loaded = LTXPipeline.from_pretrained(path, dtype="float32")
    assert loaded.timings["load"] > 0
    loaded.programs = pipe.programs
    ours = loaded(embeddings=embeddings, options=FAST, output="latents")
    np.testing.assert_array_equal(ours, pipe(embeddings=embeddings, options=FAST, output="latents"))


@pytest.mark.thorough
def test_one_device_equals_eight(pipe, embeddings):
    options = dataclasses.replace(SMALL, cfg_star_rescale=True, image_cond_noise_scale=0.15)
    arguments = dict(  # the call of a batch of two, above
        embeddings=embeddings,
        options=options,
        conditions=[Condition(np.zeros((64, 96, 3), np.float32))],
    )
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=1, seq=2, tensor=2))
    checkpoint = golden_traces.checkpoint()
    boxed = keys.transformer_boxed(golden_traces.TRANSFORMER)
    placed = dataclasses.replace(
        checkpoint,
        transformer_params=jax.device_put(
            checkpoint.transformer_params, sharding.shardings(boxed, mesh)
        ),
    )
    spread = LTXPipeline(placed, dtype="float32", mesh=mesh)
    spread.programs = Programs(QUICK)
    ours = spread(**arguments, output="latents")
    assert spread.programs.count == 3, "one each to encode, to start and to step"
    np.testing.assert_allclose(ours, pipe(**arguments, output="latents"), atol=1e-5)


@pytest.mark.thorough
def test_a_second_run_of_a_shape_compiles_nothing(pipe):
    pipe(PROMPTS, FAST)
    count = pipe.programs.count
    pipe(PROMPTS[::-1], FAST, seed=3, num_inference_steps=5, tone_map_compression_ratio=0.5)
    assert pipe.programs.count == count
    assert pipe.timings["compile"] == 0


@pytest.mark.thorough
def test_the_time_of_each_part_is_reported(pipe):
    pipe(PROMPTS, FAST)
    assert set(pipe.timings) == {"text", "encode", "compile", "denoise", "decode"}
    assert all(seconds >= 0 for seconds in pipe.timings.values())


@pytest.mark.thorough
def test_half_precision_keeps_float32_latents(text_encoder):
    half = LTXPipeline(golden_traces.checkpoint(), text_encoder, dtype="bfloat16")
    half.programs = Programs(QUICK)
    start = half.prepare(PROMPTS[0], FAST)
    assert start.inputs.start.dtype == jnp.float32
    latents = half(PROMPTS[0], FAST, output="latents")
    assert latents.dtype == np.float32
    assert np.all(np.isfinite(latents))


@pytest.mark.parametrize("preferred", ["float32", "bfloat16"])
def test_the_dtype_is_the_preferred_one_unless_told(tmp_path, monkeypatch, preferred):
    monkeypatch.setattr("ltx_jax.inference.pipeline.preferred_dtype", lambda: preferred)
    official.write(tmp_path / "model.safetensors", golden_traces.checkpoint())
    for told in (None, "float32"):
        pipe = LTXPipeline.from_pretrained(tmp_path / "model.safetensors", dtype=told)
        assert pipe.execution.dtype == (told or preferred)
        stored = jax.tree.leaves(pipe.checkpoint.transformer_params)
        assert {str(x.dtype) for x in stored} == {told or "bfloat16"}


def test_out_of_memory_says_what_to_lower(pipe):
    size = arguments.Size(121, 704, 1216, 8, 32)
    message = "121 frames of 704 x 1216: lower height, width, num_frames"
    with pytest.raises(MemoryError, match=message), pipe.part("denoise", size):
        jnp.zeros(1 << 46).block_until_ready()  # a quarter of a million gigabytes
    with (
        pytest.raises(MemoryError, match=r"out of memory .*lower it"),
        explain_memory_errors("lower it"),
    ):
        np.empty(1 << 60, np.uint8)  # of the host
    reason = "INTERNAL: YNNPACK operation failed: error"  # seen for 2 TB of scores on a CPU
    with pytest.raises(MemoryError, match=reason), explain_memory_errors(""):
        raise jax.errors.JaxRuntimeError(reason)
    with pytest.raises(jax.errors.JaxRuntimeError, match="another"), explain_memory_errors(""):
        raise jax.errors.JaxRuntimeError("INTERNAL: another error")


def test_a_program_too_large_for_the_machine_is_refused_before_it_runs(pipe):
    """Linux grants the memory and kills the process when it is used."""
    rows = jnp.zeros(1 << 22)
    square = jax.jit(lambda x: jnp.sort(x[:, None] * x[None]).sum())
    size = arguments.Size(121, 704, 1216, 8, 32)
    with (
        pytest.raises(MemoryError, match=r"needs \S+ GB of .* lower height"),
        pipe.part("it", size),
    ):
        Programs(QUICK)(square, rows)


BAD = {
    "no prompt": (dict(prompt=None), "nothing to sample"),
    "no prompts": (dict(prompt=[]), "list of prompts is empty"),
    "height": (dict(height=0), "height must be positive, got 0"),
    "frames": (dict(num_frames=-1), "num_frames must be positive, got -1"),
    "noise": (dict(noise=np.zeros((1, 3, 2, 2, 8))), r"noise has the shape \(1, 3, 2, 2, 8\)"),
    "late start": (dict(skip_initial_inference_steps=1), "give input_media, or set it to 0"),
    "early input": (
        dict(input_media=np.zeros((17, 64, 96, 3), np.uint8)),
        "set skip_initial_inference_steps",
    ),
    "still input": (
        dict(input_media=np.zeros((64, 96, 3), np.uint8), timesteps=(0.5,)),
        "still image, where a clip of 17 frames is expected",
    ),
    "short input": (
        dict(input_media=np.zeros((9, 64, 96, 3), np.uint8), timesteps=(0.5,)),
        "9 frames and num_frames is 17: set num_frames to 9",
    ),
    "two inputs": (
        dict(input_media="a.mp4", input_latents=np.zeros(1), timesteps=(0.5,)),
        "input_media or input_latents, not both",
    ),
    "latents": (
        dict(input_latents=np.zeros((1, 3, 2, 2, 8)), timesteps=(0.5,)),
        "input_latents has the shape",
    ),
    "condition length": (
        dict(conditions=[Condition(np.zeros((8, 64, 96, 3), np.uint8))]),
        r"8 frames.*8k\+1.*first 1",
    ),
    "condition place": (
        dict(conditions=[Condition(np.zeros((9, 64, 96, 3), np.uint8), 16)]),
        "a video of 17 frames has 1 from frame 16 on; cut it to .* 1, or start it at frame 8",
    ),
    "condition file": (dict(conditions=[Condition("nowhere.png")]), "there is no file nowhere.png"),
    "condition shape": (
        dict(conditions=[Condition(np.zeros((64, 96), np.uint8))]),
        "media must be",
    ),
    "condition batch": (
        dict(conditions=[Condition(np.zeros((3, 1, 64, 96, 3), np.uint8))]),
        "3 clips for a batch of 1",
    ),
    "tone": (dict(tone_map_compression_ratio=1.5), r"tone_map_compression_ratio.*\[0, 1\].*1.5"),
    "decode": (dict(decode_timestep=-0.1), r"decode_timestep.*\[0, 1\].*-0.1"),
    "decode noise": (dict(decode_noise_scale=2.0), r"decode_noise_scale.*\[0, 1\].*2.0"),
    "seed": (dict(seed=-1), r"seed must lie in \[0, 2\*\*32\), got -1"),
    "image noise": (dict(image_cond_noise_scale=-1.0), "image_cond_noise_scale.*-1.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_way_out(pipe, name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        pipe(**dict(prompt=PROMPTS[0], options=FAST) | changes)


def test_bad_embeddings_are_refused(pipe, embeddings):
    def refused(message, **changes):
        with pytest.raises(ValueError, match=message):
            pipe.prepare(embeddings=embeddings | changes, options=SMALL)

    refused(r"prompt_embeds must be \(b, m, 32\)", prompt_embeds=np.zeros((2, 7, 16), np.float32))
    refused(r"prompt_mask \(b, m\)", prompt_mask=np.ones((2, 6)))
    three = np.zeros((3, 7, 32), np.float32), np.ones((3, 7))
    refused("3 negative captions for 2", negative_embeds=three[0], negative_mask=three[1])
    with pytest.raises(ValueError, match=r"lack \['prompt_mask'\]"):
        pipe.prepare(embeddings={"prompt_embeds": three[0]}, options=SMALL)
    with pytest.raises(ValueError, match="not both"):
        pipe.prepare("a cat", embeddings=embeddings, options=SMALL)


def test_a_text_encoder_of_another_width_is_refused(text_encoder):
    wide = dataclasses.replace(text_encoder, cfg=dataclasses.replace(T5, d_model=48))
    with pytest.raises(ValueError, match="48 wide and the transformer was trained with 32"):
        LTXPipeline(golden_traces.checkpoint(), wide)


def test_without_any_text_encoder_a_prompt_is_refused():
    with pytest.raises(ValueError, match="no text encoder of its own"):
        golden_traces.pipeline().prepare("a cat", SMALL)


def test_a_checkpoint_without_a_vae_is_refused():
    with pytest.raises(ValueError, match="this one has no VAE"):
        LTXPipeline(dataclasses.replace(golden_traces.checkpoint(), vae=None))


def test_networks_that_do_not_fit_each_other_are_refused():
    other = dataclasses.replace(golden_traces.VAE, latent_channels=16)
    with pytest.raises(ValueError, match="8 channels and the VAE makes 16"):
        LTXPipeline(dataclasses.replace(golden_traces.checkpoint(), vae=other))
