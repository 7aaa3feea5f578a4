"""What is stored is what the VAE and the text encoder give, whatever happens on the way."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kills import number_of_kills
from quick import QUICK
from tiny_checkpoint import random_parameters

from ltx_jax import config, encode
from ltx_jax.checkpoints import official, runs
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import BucketConfig, DataConfig, ExecutionConfig, SourceConfig, T5Config
from ltx_jax.data import dataset, folder, latent_cache, masks, video, writing
from ltx_jax.data.loader import Loader, open_source
from ltx_jax.inference import encode_dataset
from ltx_jax.inference.text_encoder import ByteTokenizer, TextEncoder
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.models.vae import LatentStatistics, VideoVAE
from ltx_jax.runtime import sharding
from ltx_jax.world import render

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = str(pathlib.Path(__file__).parents[1] / "configs/shapes_tiny_transformer.py")
VAE = str(pathlib.Path(__file__).parents[1] / "configs/shapes_tiny_vae.py")
TINY = "tiny.safetensors"
BUCKETS = (BucketConfig(9, 16, 16, 4), BucketConfig(1, 24, 16, 2))


@pytest.fixture(scope="module")
def tiny():
    """The tiny VAE with random weights: two frames and four pixels a side to a latent."""
    cfg = config.load(VAE).model
    params = random_parameters(VideoVAE(cfg), jnp.zeros((1, 5, 16, 16, 3)))
    channels = cfg.latent_channels
    statistics = LatentStatistics(np.full(channels, 0.5, np.float32), np.ones(channels, np.float32))
    return Checkpoint(vae=cfg, vae_params=jax.tree.map(jnp.asarray, params), statistics=statistics)


@pytest.fixture
def loaded(tiny, tmp_path, monkeypatch):
    """The tiny VAE, in the current folder too; programs compile quickly rather than run so."""
    official.write(tmp_path / TINY, tiny)
    monkeypatch.setattr(encode_dataset.convolution, "compiler_options", lambda: QUICK)
    with contextlib.chdir(tmp_path):
        yield tiny


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """The folder of a tiny text encoder."""
    path = tmp_path_factory.mktemp("t5")
    cfg = T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ids = jnp.zeros((1, 4), jnp.int32)
    params = sharding.unbox(jax.jit(T5Encoder(cfg).init)(jax.random.key(0), ids, ids))["params"]
    TextEncoder(ByteTokenizer(), cfg, params).save(path)
    return path


@pytest.fixture
def clips(tmp_path):
    """A folder of seven clips and a picture."""
    path = tmp_path / "clips"
    path.mkdir()
    for i in range(7):
        clip = render.clip(i, num_frames=10, height=16, width=16)
        writing.write_video(path / f"{i}.mp4", clip.frames, 10 + i)
        (path / f"{i}.txt").write_text(f"clip {i}" * (i + 1))
    writing.write_image(path / "p.png", render.clip(9, num_frames=1, height=24, width=16).frames[0])
    (path / "p.txt").write_text("a picture")
    return path


def settings(source, **changes):
    cfg = config.load(CONFIG, ["--vae", TINY])
    data = DataConfig(source=str(source), buckets=BUCKETS)
    return dataclasses.replace(cfg, data=data, **changes)


def quiet(_):
    pass


def contents(path):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


def examples(path):
    records = dataset.DatasetReader(path)
    return [latent_cache.from_row(records[i]) for i in range(len(records.index))]


@pytest.mark.thorough
def test_what_is_stored_is_what_the_vae_gives(loaded, clips, tmp_path):
    assert encode_dataset.encode(settings(clips), tmp_path / "out", shard_size=3, report=quiet)
    model = VideoVAE(loaded.vae)
    apply = jax.jit(
        lambda params, x: model.apply({"params": params}, x, method="encode"),
        compiler_options=QUICK,
    )

    def moments(frames):
        posterior = apply(loaded.vae_params, jnp.asarray(frames[None] / 127.5 - 1, jnp.float32))
        return np.concatenate([posterior.mean, posterior.logvar[..., :1]], axis=-1)[0]

    def check(found, frames):
        # Half precision, after sums in another order.
        np.testing.assert_allclose(found, moments(frames), rtol=2e-3, atol=1e-3)

    stored = examples(tmp_path / "out")
    found = {example.caption: example for example in stored}
    assert len(found) == len(stored) == 8  # none twice, where the last batch is not full
    for i in range(7):
        frames, rate = folder.load_clip(clips / f"{i}.mp4", 9, 16, 16)
        example = found[f"clip {i}" * (i + 1)]
        assert example.frame_rate == rate == 10 + i
        stored = example.latents
        assert stored.mean.dtype == stored.logvar.dtype == np.float16
        assert stored.mean.shape == (5, 4, 4, 4)
        check(np.concatenate([stored.mean, stored.logvar], axis=-1), frames)
        assert stored.keyframe_numbers.tolist() == [2, 4, 6, 8]
        for number, item in zip(stored.keyframe_numbers, stored.keyframes, strict=True):
            check(item[None], frames[number : number + 1])
        [start] = stored.clip_numbers
        assert start in (2, 4, 6)
        check(stored.clips[0], frames[start : start + 3])
    frames, _ = folder.load_clip(clips / "p.png", 1, 24, 16)
    stored = found["a picture"].latents
    check(np.concatenate([stored.mean, stored.logvar], axis=-1), frames)
    assert len(stored.keyframes) == len(stored.clips) == 0
    assert len({tuple(e.latents.clip_numbers) for e in found.values()}) > 2


def test_condition_items_lie_within_their_clip():
    for num_frames, count in ((1, 4), (2, 4), (5, 2), (9, 4), (121, 4), (121, 1), (257, 7)):
        numbers = encode_dataset.keyframe_numbers(num_frames, count).tolist()
        assert len(set(numbers)) == len(numbers) == min(count, num_frames - 1)
        assert all(0 < number < num_frames for number in numbers)
        if numbers:
            assert numbers[-1] == num_frames - 1
            gaps = np.diff([0, *numbers])
            assert gaps.max() - gaps.min() <= 1
    rng = np.random.default_rng(0)
    for num_frames, factor, possible in (
        (1, 8, []),
        (9, 8, []),
        (17, 8, [8]),
        (41, 8, [8, 16, 24, 32]),
    ):
        drawn = [encode_dataset.clip_starts(num_frames, factor, rng) for _ in range(60)]
        assert sorted({int(start) for starts in drawn for start in starts}) == possible
        assert {len(starts) for starts in drawn} == {min(len(possible), 1)}
        # The last frame of the item is one of the clip's.
        assert all(start + factor + 1 <= num_frames for starts in drawn for start in starts)


@pytest.mark.thorough
@pytest.mark.usefixtures("loaded")
def test_captions_are_stored_unpadded(clips, t5, tmp_path):
    cfg = settings(clips, captions="frozen", text_encoder_path=str(t5))
    encode_dataset.encode(cfg, tmp_path / "out", report=quiet)
    encoder = TextEncoder.load(t5, dtype="float32", max_tokens=cfg.max_caption_tokens)

    def check(found, caption):
        embeddings, mask = encoder.encode([caption])
        length = int(np.sum(mask))
        assert found.shape == (length, 16)
        expected = np.asarray(embeddings)[0, :length]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)  # half precision

    found = examples(tmp_path / "out")
    lengths = set()
    for example in found:
        check(example.embedding, example.caption)
        lengths.add(len(example.embedding))
    assert len(lengths) > 3
    encoding = Loader(
        DataConfig(source=str(tmp_path / "out"), buckets=BUCKETS), (("none", 1.0),), 0
    ).encoding
    check(encoding.empty, "")
    assert encoding.text_encoder_id == encoder.identity
    assert encoding.tokenizer_id == "byt5"


@pytest.mark.thorough
@pytest.mark.usefixtures("loaded")
def test_a_stopped_command_goes_on_to_the_same_files(clips, tmp_path):
    cfg = settings(clips)
    encode_dataset.encode(cfg, tmp_path / "whole", shard_size=2, report=quiet)

    def stop(line):
        if line.startswith("shard 2/"):
            raise KeyboardInterrupt

    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        encode_dataset.encode(cfg, stopped, shard_size=2, report=stop)
    written = {path.name: path.stat().st_mtime_ns for path in stopped.glob("part-*.array_record")}
    assert len(written) == 2
    said = []
    assert encode_dataset.encode(cfg, stopped, shard_size=2, report=said.append)
    assert [line.split()[1] for line in said] == ["3/5", "4/5", "5/5"]
    assert contents(stopped) == contents(tmp_path / "whole")
    times = {path.stat().st_mtime_ns for path in stopped.glob("*.array_record-*")}
    assert set(written.values()) <= times
    # A finished one is left as it is.
    said.clear()
    assert encode_dataset.encode(cfg, stopped, shard_size=2, report=said.append)
    otherwise = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, processes=2))
    assert encode_dataset.encode(otherwise, stopped, shard_size=2, report=said.append)
    assert said == []
    with pytest.raises(ValueError, match="was begun with keyframes = 4, and now it is 2"):
        encode_dataset.encode(cfg, stopped, shard_size=2, keyframes=2, report=quiet)


@pytest.mark.thorough
@pytest.mark.usefixtures("loaded")
def test_workers_share_the_files_and_make_those_of_one(clips, tmp_path):
    cfg = settings(clips)
    encode_dataset.encode(cfg, tmp_path / "whole", shard_size=2, report=quiet)
    said = []
    for worker in (0, 1):
        done = encode_dataset.encode(
            cfg, tmp_path / "shared", shard_size=2, worker=(worker, 2), report=said.append
        )
        assert not done
    assert [line.split()[1] for line in said if line.startswith("shard")] == [
        *("1/5", "3/5", "5/5"),
        *("2/5", "4/5"),
    ]
    assert "2 of 5 shards are missing" in said[3]
    done = encode_dataset.encode(
        cfg, tmp_path / "shared", shard_size=2, worker=(0, 2), report=quiet
    )
    assert done
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


@pytest.mark.thorough
@pytest.mark.usefixtures("loaded")
def test_an_endless_source_is_encoded_as_far_as_told(tmp_path):
    cfg = settings("shapes")
    with pytest.raises(
        ValueError, match=r"shapes is endless: set the number of examples \(--examples\)"
    ):
        encode_dataset.encode(cfg, tmp_path / "out", report=quiet)
    encode_dataset.encode(cfg, tmp_path / "out", examples=6, report=quiet)
    found = examples(tmp_path / "out")
    assert [len(example.latents.mean) for example in found] == [5] * 6 + [1] * 6
    loader = Loader(DataConfig(source="shapes", buckets=BUCKETS), (("none", 1.0),), cfg.run.seed)
    live = {
        caption
        for step in range(40)
        if (batch := loader.batch(step)).bucket == BUCKETS[0]
        for caption in batch.captions
    }
    assert {example.caption for example in found[:6]} <= live  # the clips that a run sees first


@pytest.mark.thorough
@pytest.mark.usefixtures("loaded")
def test_clips_that_cannot_be_read_are_left_out_counted_and_named(clips, tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 255, (10, 64, 96, 3), dtype=np.uint8)
    writing.write_video(clips / "3.mp4", noise, 24)
    data = bytearray((clips / "3.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = np.random.default_rng(2).bytes(4000)
    (clips / "3.mp4").write_bytes(data)  # whole for one who only looks through it
    said = []
    encode_dataset.encode(settings(clips), tmp_path / "out", report=said.append)
    assert said[-1] == "1 examples could not be read and are left out"
    assert "3.mp4" in caplog.text
    captions = {example.caption for example in examples(tmp_path / "out")}
    assert captions == {f"clip {i}" * (i + 1) for i in range(7) if i != 3} | {"a picture"}


@pytest.mark.parametrize(
    "part", [pytest.param("the VAE", marks=pytest.mark.thorough), "the text encoder"]
)
def test_latents_and_embeddings_that_are_no_numbers_are_not_stored(
    part, loaded, clips, t5, tmp_path, monkeypatch
):
    changes = dict(captions="cached", text_encoder_path=str(t5))
    if part == "the VAE":
        encoder = loaded.vae_params["encoder"]
        gain = jax.tree.map(lambda x: 1e6 * x, encoder["conv_out"])
        params = loaded.vae_params | {"encoder": encoder | {"conv_out": gain}}
        official.write(tmp_path / TINY, dataclasses.replace(loaded, vae_params=params))
    else:
        original = TextEncoder.load(t5)
        gain = jax.tree.map(lambda x: 1e6 * x, original.params["final_norm"])
        params = original.params | {"final_norm": gain}
        encoder = dataclasses.replace(original, params=params, execution=ExecutionConfig())
        monkeypatch.setattr(encode_dataset.TextEncoder, "load", lambda *_, **__: encoder)
    with pytest.raises(ValueError, match=rf"^{part} .*that float16 cannot hold \(NaN, infinity"):
        encode_dataset.encode(settings(clips, **changes), tmp_path / "out", report=quiet)
    assert not list(tmp_path.glob("out/*.array_record*"))


@pytest.mark.thorough
@pytest.mark.usefixtures("loaded")
def test_latents_are_refused_with_another_vae(tiny, clips, tmp_path):
    encode_dataset.encode(settings(clips), tmp_path / "out", report=quiet)
    data = DataConfig(source=str(tmp_path / "out"), buckets=BUCKETS)
    encoding = Loader(data, (("none", 1.0),), 0).encoding
    np.testing.assert_array_equal(encoding.mean, tiny.statistics.mean)
    encode_dataset.check_vae(encoding, tiny, "tiny")

    def changed(part):
        params = jax.tree.map(lambda x: x, tiny.vae_params)
        leaves, tree = jax.tree.flatten(params[part])
        leaves[0] = leaves[0].at[0].add(1)
        return dataclasses.replace(tiny, vae_params=params | {part: tree.unflatten(leaves)})

    encode_dataset.check_vae(encoding, changed("decoder"), "tiny")
    with pytest.raises(
        ValueError,
        match=rf"by the VAE tiny.* \({encoding.vae_hash}\), .* uses the VAE other \(.*--vae",
    ):
        encode_dataset.check_vae(encoding, changed("encoder"), "other")
    replaced = dataclasses.replace(tiny.vae, spatial_padding_mode="reflect")
    with pytest.raises(ValueError, match="this run uses the VAE other"):
        encode_dataset.check_vae(encoding, dataclasses.replace(tiny, vae=replaced), "other")
    with pytest.raises(ValueError, match="holds no VAE"):
        encode_dataset.check_vae(encoding, Checkpoint(), "other")


@pytest.mark.thorough
def test_a_vae_is_the_same_in_another_file(tiny, tmp_path):
    """A run that goes on has its own copy of the VAE."""
    official.write(tmp_path / "model.safetensors", tiny)
    expected = encode_dataset.vae_hash(tiny)
    assert encode_dataset.vae_hash(load_checkpoint(tmp_path / "model.safetensors")) == expected
    run = runs.Run(config.load(CONFIG, ["--run.output", str(tmp_path / "run")]))
    run.begin(tiny)
    run.close()
    assert encode_dataset.vae_hash(runs.load_vae(tmp_path / "run")) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.source", "{tmp}/nowhere"], "nowhere is not a folder"),
        (["--data.num_frames", "6", "--examples", "2"], "5 and 7"),
        (["--captions", "cached", "--examples", "2"], "--text_encoder_path"),
        (["--examples", "2", "--output", "{tmp}/full"], "is neither empty nor a data set"),
        ([], "--examples"),
    ],
)
@pytest.mark.usefixtures("loaded")
def test_mistakes_are_one_line_and_a_status(tmp_path, capsys, arguments, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    arguments = [text.replace("{tmp}", str(tmp_path)) for text in arguments]
    arguments = [CONFIG, "--output", str(tmp_path / "out"), "--vae", TINY, *arguments]
    assert encode.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
@pytest.mark.usefixtures("loaded")
def test_what_cannot_be_encoded_is_refused(tiny, clips, tmp_path, capsys, monkeypatch):
    assert encode.main([VAE, "--output", str(tmp_path / "out")]) == 2
    assert "holds a TrainVAE: ltx-encode takes" in capsys.readouterr().err
    encode_dataset.encode(settings(clips), tmp_path / "out", report=quiet)
    with pytest.raises(ValueError, match="out holds latents already"):
        encode_dataset.encode(settings(tmp_path / "out"), tmp_path / "again", report=quiet)
    cfg = settings(clips)
    mixed = dataclasses.replace(cfg.data, mix=(SourceConfig(str(clips)), SourceConfig("shapes")))
    encode_dataset.encode(
        dataclasses.replace(cfg, data=mixed), tmp_path / "mix", examples=3, report=quiet
    )
    assert len(examples(tmp_path / "mix")) == 3 + 3 + 1 + 3
    other = dataclasses.replace(tiny.vae, latent_log_var="per_channel")
    monkeypatch.setattr(encode_dataset, "load_checkpoint", lambda *_, **__: Checkpoint(vae=other))
    with pytest.raises(ValueError, match="log-variance per channel"):
        encode_dataset.encode(cfg, tmp_path / "other", report=quiet)


@pytest.mark.thorough
def test_references_and_masks_are_stored_as_they_are_trained_on(loaded, clips, tmp_path):
    """What is read back is the posterior of the reference, and the mask of the latents."""
    for i in range(7):
        frames, rate = video.read_video(clips / f"{i}.mp4")
        writing.write_video(clips / f"{i}_reference.mp4", frames[:, ::-1], rate)
        mask = np.zeros((16, 16, 3), np.uint8)
        mask[: 4 * (i % 4) + 1] = 255
        writing.write_image(clips / f"{i}_mask.png", mask)
    data = DataConfig(
        source=str(clips),
        buckets=BUCKETS[:1],
        reference="files",
        reference_downscale_factor=2,
        masks=True,
    )
    cfg = dataclasses.replace(settings(clips), data=data)
    assert encode_dataset.encode(cfg, tmp_path / "out", shard_size=4, report=quiet)
    encoded = dataclasses.replace(data, source=str(tmp_path / "out"))
    pixels, stored = (open_source(x.source, x, 0) for x in (data, encoded))
    model, counts = VideoVAE(loaded.vae), set()
    for i in range(7):
        rng = np.random.default_rng(0)
        want, got = (source.example(BUCKETS[0], i, rng) for source in (pixels, stored))
        assert want.caption == got.caption
        video_in = jnp.asarray(want.reference[None] / 127.5 - 1, jnp.float32)
        posterior = model.apply({"params": loaded.vae_params}, video_in, method="encode")
        moments = np.concatenate([posterior.mean, posterior.logvar[..., :1]], axis=-1)[0]
        assert got.latents.reference.shape == (5, 2, 2, loaded.vae.latent_channels + 1)
        np.testing.assert_allclose(got.latents.reference, moments, rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(got.mask, masks.on_latents(want.mask, 2, 4))
        counts.add(got.mask.sum())
    assert len(counts) > 1
    batch = Loader(encoded, (("none", 1.0),), seed=0).batch(0)
    assert batch.mask.shape == (4, 5, 4, 4)
    assert batch.latents.reference.shape[:4] == (4, 5, 2, 2)
    without = dataclasses.replace(DataConfig(), source=encoded.source, buckets=BUCKETS[:1])
    batch = Loader(without, (("none", 1.0),), seed=0).batch(0)
    assert batch.latents.reference is None
    assert batch.mask is None
    with pytest.raises(ValueError, match=r"data\.reference = 'files', and this run has"):
        Loader(dataclasses.replace(encoded, reference="canny"), (("none", 1.0),), seed=0)


def test_settings_that_data_sets_had_before_describe_them_as_before():
    """Else an encoding that was begun before could not be continued."""
    described = encode_dataset._described(DataConfig())
    assert not {"reference", "reference_downscale_factor", "masks"} & set(described)
    described = encode_dataset._described(DataConfig(reference="canny", masks=True))
    assert (described["reference"], described["masks"]) == ("canny", True)


def rows(path):
    """The entries of every record, to the bit."""
    records = dataset.DatasetReader(path)
    every = [records[i] for i in range(len(records.index))]
    return [{name: np.asarray(entry).tobytes() for name, entry in row.items()} for row in every]


@pytest.mark.slow
def test_encoding_that_is_killed_at_any_moment_writes_the_same_records(tiny, clips, tmp_path):
    official.write(tmp_path / TINY, tiny)
    data = ["--data.source", str(clips), "--vae", str(tmp_path / TINY), "--shard_size", "1"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}

    def start(name):
        command = [sys.executable, "-m", "ltx_jax.encode", CONFIG, "--output", str(tmp_path / name)]
        pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        return subprocess.Popen([*command, *data], cwd=ROOT, env=environment, **pipes)

    def finish(process):
        error = process.communicate()[1]
        assert process.returncode == 0, error

    finish(start("once"))  # compiles, and fills the cache of programs
    begin = time.monotonic()
    finish(start("whole"))
    whole = time.monotonic() - begin
    seed = int.from_bytes(os.urandom(8))
    print("seed of the moments:", seed)  # of a failure
    draw, unfinished = np.random.default_rng(seed), 0
    for _ in range(number_of_kills(5)):
        process = start("killed")
        time.sleep(whole * draw.uniform(0.5, 1))
        process.kill()
        process.communicate()
        unfinished += (tmp_path / "killed").exists()
    finish(start("killed"))
    assert unfinished > 0
    # Not the files: the order of a record's entries differs from process to process.
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole") == rows(tmp_path / "once")
    assert sorted(contents(tmp_path / "killed")) == sorted(contents(tmp_path / "whole"))
