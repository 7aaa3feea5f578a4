"""The transformer stage: its conditions, captions, latents and batches. Its loss is in
test_flow_loss.py, whole runs in test_train_command.py."""

import contextlib
import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK
from test_dataset import write_latents
from tiny_checkpoint import write_text_encoder
from tiny_stages import load, one_device, tiny_vae

from ltx_jax.checkpoints import runs
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import BucketConfig, T5Config
from ltx_jax.data.loader import Batch, StoredLatents
from ltx_jax.data.sources import Encoding
from ltx_jax.diffusion import positions
from ltx_jax.diffusion.positions import rope_of
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.inference.text_encoder import ByteTokenizer, TextEncoder, tokenize
from ltx_jax.models.latent_colours import LatentColours
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.models.vae import VideoVAE
from ltx_jax.pixels import from_bytes
from ltx_jax.runtime import sharding
from ltx_jax.training.state import TrainState
from ltx_jax.training.step import Trainer
from ltx_jax.training.transformer import sources
from ltx_jax.training.transformer.stage import TransformerStage
from ltx_jax.training.transformer.validation import losses_at_times
from ltx_jax.world import render

ONE = one_device()


def stage_of(*overrides, batches=None, buckets=(), encoding=None, vae=None):
    """The tiny stage, with some batches in place of its loader's."""
    loader = None
    if batches is not None:
        loader = SimpleNamespace(batches=lambda *_: iter(batches), encoding=encoding)
    cfg = load("transformer", "--run.output", "/none", *overrides)
    data = dataclasses.replace(cfg.data, buckets=buckets)
    cfg = dataclasses.replace(cfg, data=data)
    return TransformerStage.open(cfg, ONE, loader=loader, vae=vae or tiny_vae())


def tiny_batch(pattern="none", **fields):
    clips = [render.clip(i, num_frames=5, height=16, width=16) for i in range(8)]
    texts, rates = tuple(clip.caption for clip in clips), np.full(8, 24, np.float32)
    if "latents" not in fields:
        fields["frames"] = np.stack([clip.frames for clip in clips])
    return Batch(BucketConfig(5, 16, 16, 8), pattern, texts, rates, **fields)


def filled(shapes):
    """Random parameters of given shapes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)


def shapes_of(stage):
    return sharding.unbox(jax.eval_shape(stage.init, jax.random.key(0)))


def loss_of(stage, batch=None):
    """The loss and the metrics of a batch.

    The gradient and the optimiser would take ten times as long to compile.
    """
    batch = next(stage.batches(0, 1)) if batch is None else batch
    state = TrainState(*[0] * 3, *[{}] * 4)
    program = jax.jit(stage.loss, compiler_options=QUICK)
    value = program(filled(shapes_of(stage)), state, batch, {}, jax.random.key(0))
    return float(value.loss), jax.device_get(value.metrics)


@pytest.mark.thorough
def test_pixels_and_their_stored_latents_have_the_same_loss():
    """With keyframes, first frames and dropped tokens, for one and the same posterior."""
    settings = ("--flow.max_keyframes", "1", "--flow.token_drop", "0.2")
    live = stage_of(*settings, batches=[tiny_batch("keyframes")])
    half = jax.tree.map(np.asarray, next(live.batches(0, 1)))
    # What the encoder makes of the pixels, in the precision of files.
    (item,) = half["conditions"].items
    clip, image = jax.tree.map(lambda x: x.astype(np.float16), (half["video"], item.video))
    keyframes = np.concatenate([image["mean"], image["logvar"][..., :1]], axis=-1)
    frames = item.frame[:, None]
    no_clips = (np.zeros((8, 0, 2, 4, 4, 5), np.float16), np.zeros((8, 0), np.int32))
    stored = StoredLatents(clip["mean"], clip["logvar"][..., :1], keyframes, frames, *no_clips)
    cached = stage_of(*settings, batches=[tiny_batch("keyframes", latents=stored)])

    half |= {
        "video": clip,
        "conditions": half["conditions"]._replace(items=(item._replace(video=image),)),
    }
    expected, metrics = loss_of(live, half)
    assert metrics["conditioned"] > 0.2
    # Two programs, that round apart.
    assert loss_of(cached)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_dropped_captions_become_the_empty_one(rate):
    batches = [tiny_batch() for _ in range(40)]
    texts = batches[0].captions
    stage = stage_of("--flow.caption_dropout", str(rate), batches=batches)
    full, empty = (tokenize(ByteTokenizer(), some, 32) for some in (texts, [""] * 8))
    dropped = []
    for made in stage.batches(0, 40):
        ids, mask = (np.asarray(made["captions"][name]) for name in ("ids", "mask"))
        gone = (ids == empty[0]).all(axis=1)
        for found, whole, nothing in zip((ids, mask), full, empty, strict=True):
            np.testing.assert_array_equal(found, np.where(gone[:, None], nothing, whole))
        dropped.append(gone)
    assert abs(np.mean(dropped) - rate) < 0.1  # 320 draws


OTHER = Encoding(((5, 16, 16),), "vae", "hash", *(None,) * 6)


def test_latents_of_another_vae_are_refused():
    with pytest.raises(ValueError, match="encoded by the VAE vae"):
        stage_of(batches=[], encoding=OTHER)


def test_held_out_latents_of_another_vae_are_refused_before_the_first_step(tmp_path):
    write_latents(tmp_path / "set", buckets=((5, 16, 16), (1, 16, 16)))
    options = ("--run.validation_source", str(tmp_path / "set"), "--run.validate_every", "10")
    with pytest.raises(ValueError, match=r"validation_source .*set: .*encoded by the VAE some/vae"):
        stage_of(*options, batches=[])


@pytest.mark.thorough
def test_a_frozen_text_encoder_is_no_part_of_the_state(tmp_path):
    write_text_encoder(tmp_path, 16)
    encoder = TextEncoder.load(tmp_path, dtype="float32", max_tokens=32)
    frozen = ("--captions", "frozen", "--text_encoder_path", str(tmp_path))
    batch = tiny_batch()
    stage = stage_of(*frozen, "--flow.caption_dropout", "0", batches=[batch])
    assert set(shapes_of(stage)) == {"transformer"}
    made = next(stage.batches(0, 1))
    embeddings, mask = encoder.encode(batch.captions)
    np.testing.assert_array_equal(made["captions"]["mask"], mask)
    np.testing.assert_allclose(made["captions"]["embeddings"], embeddings, atol=1e-6)


def test_a_frozen_text_encoder_of_another_width_is_refused(tmp_path):
    write_text_encoder(tmp_path, 8)
    with pytest.raises(ValueError, match="8 wide and the transformer expects captions 16"):
        stage_of("--captions", "frozen", "--text_encoder_path", str(tmp_path))


@pytest.mark.thorough
def test_positions_follow_the_frames_per_second_of_each_sample():
    cfg = load("transformer").model
    coords = positions.pixel_coords(positions.latent_coords((3, 2, 2)), 2, 4, causal=True)
    rates = jnp.asarray([12.0, 24.0])
    both = jnp.broadcast_to(coords, (2, *coords.shape))
    slow, fast = np.asarray(rope_of(both, rates, cfg)[0])
    np.testing.assert_array_equal(slow[:4], fast[:4])  # both start at 0 s
    # Frames 0, 1 and 3 of a causal VAE: 3 / 12 s is as late as no frame at 24 per second.
    assert np.abs(slow[4:] - fast[4:]).max() > 1e-3
    alone, _ = rope_of(both[1:], rates[1:], cfg)
    np.testing.assert_array_equal(alone[0], fast)


@pytest.mark.thorough
def test_the_frame_rate_of_a_clip_reaches_its_positions():
    stage = stage_of(
        batches=[
            dataclasses.replace(tiny_batch(), frame_rate=np.full(8, rate, np.float32))
            for rate in (12, 24)
        ]
    )
    first, second = (loss_of(stage, made)[0] for made in stage.batches(0, 2))
    assert first != second


@pytest.mark.thorough
def test_batches_are_the_same_whenever_they_are_asked_for():
    stage = stage_of(
        *("--flow.keyframes_probability", "0.3", "--flow.clip_probability", "0"),
        *("--data.num_frames", "9", "--data.batch_size", "2"),
    )
    steps = jax.device_get(list(stage.batches(0, 6)))
    for step in (5, 2):
        again = jax.device_get(next(stage.batches(step, step + 1)))
        jax.tree.map(np.testing.assert_array_equal, again, steps[step])


@pytest.mark.thorough
def test_pictures_and_clips_train_in_one_run():
    """Batches of 2 x 48 and 4 x 16 tokens: a fifth of the first is dropped, and none of the
    second, which are fewer anyway."""
    buckets = (BucketConfig(5, 16, 16, 2), BucketConfig(1, 16, 16, 4))
    settings = ("--flow.token_drop", "0.2", "--flow.keyframes_probability", "0.7")
    stage = stage_of(*settings, "--flow.max_keyframes", "1", buckets=buckets)
    trainer = Trainer(stage)
    seen = {}
    for made in stage.batches(0, 12):
        b, *grid, _ = made["video"]["mean"].shape
        conditions = made["conditions"]
        kind = (b, *grid, conditions.prefix is not None, len(conditions.items))
        seen.setdefault(kind, (made, trainer.work(made, 1)))
    clips = [kind for kind in seen if kind[1] == 3]
    assert {kind[:4] for kind in seen} == {(2, 3, 4, 4), (4, 1, 4, 4)}
    picture = (4, 1, 4, 4, False, 0)  # a picture that is a condition leaves nothing to learn
    assert [kind for kind in seen if kind[1] == 1] == [picture]
    assert len(clips) > 1
    for kind in clips:
        # A keyframe is 16 tokens more.
        assert seen[kind][1].tokens == 2 * (40 + 16 * kind[-1])
    assert seen[picture][1].tokens == 4 * 16
    most = max(clips, key=lambda kind: kind[-1])
    value, metrics = loss_of(stage, seen[most][0])
    assert np.isfinite(value)
    assert metrics["conditioned"] > 0.25
    assert seen[most][1].flop > seen[picture][1].flop > 0


@pytest.mark.thorough
@pytest.mark.parametrize("source", ["shapes", "a/folder"])
def test_pixels_become_what_the_encoder_makes_of_them(source):
    loaded = tiny_vae()
    data = load("transformer", "--data.source", source).data
    read = sources.latent_reader(loaded, loaded.vae, data, ONE)
    frames = tiny_batch().frames
    expected = VideoVAE(loaded.vae).apply(
        {"params": loaded.vae_params}, from_bytes(jnp.asarray(frames[:2])), method="encode"
    )
    for _ in range(2):
        found = read(frames, jax.device_put)
        # A batch of eight, and of two op by op.
        np.testing.assert_allclose(found["mean"][:2], expected.mean, atol=1e-5)
        np.testing.assert_allclose(found["logvar"][:2], expected.logvar, atol=1e-5)


def test_a_text_encoder_is_taken_from_a_checkpoint_only_to_train_it():
    found = Checkpoint(transformer=load("transformer").model, transformer_params={"a": 1})
    found.text_encoder = (T5Config(), {"b": 2}, 32)
    for source, names in (("train", {"transformer", "text_encoder"}), ("cached", {"transformer"})):
        cfg = load("transformer", "--captions", source)
        stage = TransformerStage(cfg, ONE, tiny_vae(), sources.described_captions(cfg))
        assert set(stage.initial_weights(found).params) == names


def test_networks_that_do_not_fit_the_vae_are_refused():
    with pytest.raises(ValueError, match=r"4 latent channels and model\.in_channels is 8"):
        stage_of("--model.in-channels", "8")
    with pytest.raises(ValueError, match="holds no VAE"):
        stage_of(vae=Checkpoint())


@pytest.mark.thorough
def test_a_look_at_held_out_clips_is_of_the_average_and_always_the_same():
    stage = stage_of("--run.validation_clips", "2", "--data.frame_rates", "12", "24")
    params = filled(shapes_of(stage))
    broken = jax.tree.map(lambda x: x * np.nan, params)
    state = TrainState(*[0] * 3, broken, params, {}, {})
    first, again = stage.validate(state), stage.validate(state)
    assert first.scalars == again.scalars
    assert next(iter(first.scalars)) == "val_loss"
    at = [first.scalars[f"val_loss_at/{t / 10}"] for t in range(1, 10)]
    assert first.scalars["val_loss"] == pytest.approx(np.mean(at))
    assert np.isfinite(at).all()
    for i, (name, (frames, found)) in enumerate(first.videos.items()):
        rate = (12, 24)[i]
        clip = render.clip(i, split="held_out", num_frames=5, height=16, width=16, fps=rate)
        assert name.startswith(f"sample {i}: {clip.caption[:40]}")
        assert len(name) < 80
        assert (frames.shape, frames.dtype, found) == ((5, 16, 16, 3), np.uint8, rate)
    for one, other in zip(first.videos.values(), again.videos.values(), strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)


@pytest.mark.thorough
def test_the_held_out_loss_is_zero_for_the_exact_velocity():
    data = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 2, 2, 4), np.float32))

    def exact(x, t):
        return (x - positions.patchify(data)) / t[..., None]

    losses = losses_at_times(exact, data, jax.random.key(0))
    assert losses.shape == (9,)
    assert float(losses.max()) < 1e-10  # float32 errors over a time of 0.1, squared
    other = losses_at_times(lambda *a: -exact(*a), data, jax.random.key(0))
    assert float(other.min()) > 1


def write_run(folder, *overrides):
    """A run of the tiny stage with one step and random weights."""
    cfg = load("transformer", "--run.output", str(folder), *overrides)
    stage = TransformerStage(cfg, ONE, tiny_vae(), sources.described_captions(cfg))
    params = filled(shapes_of(stage))
    with contextlib.closing(runs.Run(cfg)) as run:
        run.begin(tiny_vae())
        run.save(1, {"ema": params})
    return cfg, params


@pytest.mark.thorough
def test_the_text_encoder_of_a_run_serves_others(tmp_path):
    cfg, params = write_run(tmp_path / "run")
    encoder = TextEncoder.load(tmp_path / "run", dtype="float32")
    ids, mask = map(jnp.asarray, tokenize(ByteTokenizer(), ["a red square"], 32))
    weights = jax.tree.map(jnp.asarray, params["text_encoder"])
    expected = T5Encoder(cfg.text_encoder).apply({"params": weights}, ids, mask)
    embeddings, found = encoder.encode(["a red square"])
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)


@pytest.mark.thorough
def test_a_run_that_trains_no_text_encoder_holds_none_and_says_so(tmp_path):
    write_run(tmp_path / "run", "--captions", "cached")
    loaded = runs.load_run(tmp_path / "run")
    assert loaded.text_encoder is None
    with pytest.raises(ValueError, match="--text_encoder"):
        LTXPipeline(loaded, dtype="float32")("a red square", num_frames=5, height=16, width=16)
    with pytest.raises(ValueError, match="without a text encoder of its own"):
        TextEncoder.load(tmp_path / "run")


@pytest.mark.thorough
def test_a_sample_is_also_shown_step_by_step_if_its_latents_have_colours():
    vae = tiny_vae()
    matrix = np.ones((vae.vae.latent_channels, 12), np.float32)
    with_colours = dataclasses.replace(vae, colours=LatentColours(2, matrix, matrix[0]))
    stage = stage_of("--run.validation_clips", "1", vae=with_colours)
    params = filled(shapes_of(stage))
    videos = stage.validate(TrainState(*[0] * 3, params, params, {}, {})).videos
    sample, steps = videos
    assert steps == f"steps of {sample}"
    # 3 latent frames of 4 x 4 latents, each of 2 x 2 pixels, enlarged to 64; 20 steps.
    assert videos[steps].frames.shape == (20, 64, 3 * 64, 3)
    assert len(np.unique(videos[steps].frames.reshape(20, -1), axis=0)) > 10
