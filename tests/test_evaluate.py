"""ltx-evaluate: reading clips, metrics, tables and error messages."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from tiny_checkpoint import CAPTION, CHANNELS, write_checkpoint, write_text_encoder

from ltx_jax import metrics
from ltx_jax.checkpoints import perceptual
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import ExecutionConfig
from ltx_jax.data import writing
from ltx_jax.diffusion.flow import add_noise
from ltx_jax.evaluate import autoencoder, clip_reader, metric_table, transformer
from ltx_jax.evaluate.__main__ import main
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.models import i3d
from ltx_jax.models.vae import LatentStatistics
from ltx_jax.training.transformer import validation as flow_validation
from ltx_jax.world import render

CUT = clip_reader.ClipFormat(17, 64, 64, 8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint with a VAE of 32 x 32 x 8, and a text encoder."""
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder / "tiny.safetensors")
    write_text_encoder(folder / "text", CAPTION)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips, one that is too short, a damaged one, and a picture."""
    folder = tmp_path_factory.mktemp("clips")
    for name, frames in (("a/one", 12), ("b/two", 20), ("short", 5)):
        made = render.clip(frames, num_frames=frames, height=64, width=80).frames
        writing.write_video(folder / f"{name}.mp4", made, 24)
        (folder / f"{name}.txt").write_text(f"clip {name}")
    (folder / "broken.avi").write_bytes(b"RIFF this is no video")
    (folder / "broken.txt").write_text("nothing")
    writing.write_image(folder / "photo.png", made[0])
    (folder / "photo.txt").write_text("a picture")
    return folder


def read(folder, **options):
    skipped = []
    return list(clip_reader.read_clips(str(folder), CUT, skipped=skipped, **options)), skipped


def test_clips_are_cut_to_whole_latent_frames_and_bad_ones_are_named(clips):
    readable, skipped = read(clips)
    assert [(pathlib.Path(clip.name).name, clip.kind, len(clip.frames)) for clip in readable] == [
        ("one.mp4", "videos", 9),
        ("two.mp4", "videos", 17),
        ("photo.png", "images", 1),
    ]
    assert all(clip.frames.shape[1:] == (64, 64, 3) for clip in readable)
    assert [clip.caption for clip in readable] == ["clip a/one", "clip b/two", "a picture"]
    assert len(skipped) == 2
    assert "broken.avi" in skipped[0]
    assert "short.mp4: it is too short: 5 frames; at least 9 are needed" in skipped[1]


def test_folders_of_frames_are_clips_when_asked(tmp_path):
    for i in range(11):
        frame = np.full((48, 64, 3), 20 * i, np.uint8)
        (tmp_path / "480p/bear").mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(tmp_path / f"480p/bear/{i:05d}.jpg", quality=95)
    (clip,), _ = read(tmp_path, frame_folders=True)
    assert (clip.kind, len(clip.frames), clip.name) == ("videos", 9, str(tmp_path / "480p/bear"))
    np.testing.assert_allclose(clip.frames.mean((1, 2, 3)), 20 * np.arange(9), atol=1)
    apart, _ = read(tmp_path)
    assert [one.kind for one in apart] == ["images"] * 11


def test_a_limit_takes_files_from_all_over_the_folder(tmp_path):
    for i in range(10):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / f"{i}.png")
    clips, _ = read(tmp_path, limit=3)
    assert [pathlib.Path(clip.name).stem for clip in clips] == ["0", "3", "6"]


def test_a_folder_without_a_usable_clip_is_an_error(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"none of the clips of .*broken\.mp4"):
        read(tmp_path)


def test_the_world_gives_held_out_clips_and_pictures():
    clips, _ = read("shapes", limit=2)
    assert [clip.kind for clip in clips] == ["videos"] * 2 + ["images"] * 2
    expected = render.clip(1, split="held_out", num_frames=17, height=64, width=64)
    np.testing.assert_array_equal(clips[1].frames, expected.frames)
    assert clips[1].caption == expected.caption


def darker(frames):
    return np.maximum(frames, 10) - np.uint8(10)


@pytest.mark.thorough
def test_figures_are_means_over_clips_of_one_kind(monkeypatch):
    clips, _ = read("shapes", limit=3)
    monkeypatch.setattr(i3d, "features", lambda params, x: params * jnp.mean(x, axis=(1, 2, 3)))
    for batch_size in (1, 2):
        rows = autoencoder.reconstruction_metrics(
            clips, darker, batch_size=batch_size, features=jnp.float32(127.5)
        )
        by_name = {(row.subject, row.name): row for row in rows}
        ratios = [float(metrics.psnr(darker(c.frames)[None], c.frames[None])[0]) for c in clips]
        for kind, values in (("videos", ratios[:3]), ("images", ratios[3:])):
            row = by_name[kind, "PSNR"]
            assert row.value == pytest.approx(np.mean(values), rel=1e-5)
            reach = 1.96 * np.std(values, ddof=1) / 3**0.5
            assert row.high - row.value == pytest.approx(reach, rel=1e-4)
            assert by_name[kind, "SSIM"].count == 3
        # All clips are 10 levels darker in all three channels; pictures have no motion to compare.
        assert by_name["videos", "rFVD"].value == pytest.approx(3 * 10**2, rel=0.05)
        assert ("images", "rFVD") not in by_name


def test_a_grid_in_flat_colours_is_found():
    checkers = np.indices((64, 64)).sum(0) % 2

    def reconstruct(frames):
        lines = np.where(checkers[:, :, None] * (frames.shape[1] > 1), 4, 0)
        return (frames + lines).astype(np.uint8)

    videos, largest, images, _ = autoencoder.flat_colour_metrics(reconstruct, CUT)
    assert (videos.subject, images.subject) == ("flat videos", "flat images")
    assert images.value == pytest.approx(0, abs=1e-12)
    # Deviation 2 about a mean of 66 in the darkest colour.
    assert largest.value == pytest.approx(2**2 / (66**2 + 2**2), rel=1e-4)
    assert 0 < videos.value < largest.value


@pytest.mark.thorough
@pytest.mark.parametrize("time", [0.0, 0.5])
def test_reconstructions_are_those_of_the_networks(tiny, time):
    checkpoint = load_checkpoint(tiny / "tiny.safetensors")
    checkpoint.statistics = LatentStatistics(
        np.full(CHANNELS, 0.3, "f"), np.full(CHANNELS, 2.0, "f")
    )
    frames = render.clip(0, num_frames=9, height=64, width=64).frames[None]
    networks = checkpoint, checkpoint.vae, ExecutionConfig()
    reconstruction = autoencoder.reconstructor(*networks, time=time, seed=5)(frames)
    pipe = LTXPipeline(checkpoint, dtype="float32")
    z = (np.asarray(pipe._encode(np.float32(frames) / 127.5 - 1).mode()) - 0.3) / 2
    noise = jax.random.normal(jax.random.split(jax.random.key(5))[0], z.shape)
    z = (1 - time) * z + time * np.asarray(noise)
    options = {"num_frames": 9, "height": 64, "width": 64, "output": "float"}
    decoded = pipe.decode(z, decode_timestep=time, decode_noise_scale=0.0, **options)
    np.testing.assert_allclose(
        reconstruction, np.round((decoded + 1) * 127.5), atol=1
    )  # ties of rounding
    assert np.std(reconstruction) > 1


def run(kind, *arguments):
    return main([kind, *(str(argument) for argument in arguments)])


def figures_of(path):
    content = json.loads(path.read_text())
    return {(f["of"], f["name"]): f for f in content["figures"]}, content["settings"]


@pytest.mark.thorough
def test_the_vae_command_writes_json_and_markdown(tiny, clips, tmp_path, capsys):
    out = tmp_path / "new/vae"
    arguments = ["--data", clips, "--height", 64, "--width", 64, "--output", out]
    assert run("vae", "--checkpoint", tiny / "tiny.safetensors", *arguments) == 0
    output = capsys.readouterr()
    assert "2 clips are left out" in output.err
    figures, settings = figures_of(tmp_path / "new/vae.json")
    assert figures["videos", "PSNR"]["count"] == 2
    assert figures["images", "SSIM"]["count"] == 1
    assert figures["flat videos", "energy outside the mean"]["value"] > 0
    assert len(settings["skipped"]) == 2
    assert settings["checkpoint_hash"]
    lines = (tmp_path / "new/vae.md").read_text().splitlines()
    value = f"{figures['videos', 'PSNR']['value']:.2f}"
    assert any(line.startswith("| videos | PSNR |") and value[:-1] in line for line in lines)
    assert value[:-1] in output.out


@pytest.mark.thorough
def test_the_transformer_command_gives_the_loss_at_each_time(tiny, tmp_path):
    arguments = ["--checkpoint", tiny / "tiny.safetensors", "--text_encoder", tiny / "text"]
    arguments += ["--data", "shapes", "--height", 64, "--width", 64, "--num_frames", 9]
    for limit in (2, 1):
        out = tmp_path / f"{limit}"
        assert run("transformer", *arguments, "--limit", limit, "--output", out) == 0
    figures, _ = figures_of(tmp_path / "1.json")
    # The noise of a clip is its own, however many others there are.
    both, _ = figures_of(tmp_path / "2.json")
    assert both["videos", "loss"]["count"] == 2
    found = [figures["videos", f"loss at {t:g}"]["value"] for t in flow_validation.TIMES]
    assert figures["videos", "loss"]["value"] == pytest.approx(np.mean(found), rel=1e-5)

    # The loss at one time, step by step.
    pipe = LTXPipeline.from_pretrained(tiny / "tiny.safetensors", tiny / "text", dtype="float32")
    (clip, _), _ = read_world(9)
    sample_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    posterior = pipe._encode(np.float32(clip.frames)[None] / 127.5 - 1)
    z = posterior.sample(jax.random.normal(sample_key, posterior.mean.shape))
    start = pipe.prepare(clip.caption, num_frames=9, height=64, width=64, frame_rate=24.0)
    x = pipe.statistics.normalize(z).reshape(1, -1, z.shape[-1])
    noise = jax.random.normal(noise_key, x.shape)
    time = flow_validation.TIMES[4]
    times = jnp.full((1, 1), time, jnp.float32)
    noised = add_noise(x, noise, times)
    answer, _ = pipe.denoiser(pipe.params, noised, times, start.inputs.context)
    error = np.float64(answer) - np.float64(noise - x)
    assert found[4] == pytest.approx((error**2).mean(), rel=1e-4)


@pytest.mark.thorough
def test_the_loss_is_measured_in_the_form_that_samples(tiny):
    """Where the fast form is the default, its parameters are not those of the stored network."""
    clips, _ = read_world(9)

    def losses(fast):
        paths = tiny / "tiny.safetensors", tiny / "text"
        pipe = LTXPipeline.from_pretrained(*paths, dtype="float32", fast=fast)
        return [row.value for row in transformer.loss_rows(pipe, clips)]

    # float32 rounding of two forms of one function
    np.testing.assert_allclose(losses(True), losses(False), rtol=1e-4)


def read_world(num_frames):
    skipped = []
    cut = clip_reader.ClipFormat(num_frames, 64, 64, 8)
    return list(clip_reader.read_clips("shapes", cut, limit=1, skipped=skipped)), skipped


@pytest.mark.thorough
def test_the_shapes_command_asks_a_checkpoint(tiny, tmp_path):
    arguments = ["--checkpoint", tiny / "tiny.safetensors", "--text_encoder", tiny / "text"]
    arguments += ["--rows", "seen", "vae", "--prompts", 3, "--batch_size", 2, "--output"]
    size = ["--height", 64, "--width", 64, "--num_frames", 9, "--num_inference_steps", 1]
    assert run("shapes", *arguments, tmp_path / "table", *size) == 0
    figures, settings = figures_of(tmp_path / "table.json")
    assert figures["seen triples", "all"]["count"] == 3
    assert figures["VAE, originals", "colour"]["value"] == 100
    assert (settings["num_inference_steps"], settings["height"]) == (1, 64)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vae", "--checkpoint", "nothing.safetensors", "--data", "shapes"], "nothing.safetensors"),
        (["vae", "--checkpoint", "{tiny}", "--data", "{tmp}/none"], "none is not a folder"),
        (["vae", "--checkpoint", "{tiny}", "--data", "shapes", "--height", "50"], "nearest are"),
        (["vae", "--checkpoint", "{tiny}", "--data", "shapes", "--vgg", "x"], "--lpips_heads"),
        (
            ["vae", "--checkpoint", "{tiny}", "--data", "shapes", "--i3d", "{tiny}"],
            "no tensor Conv",
        ),
        (["shapes", "--checkpoint", "{tiny}", "--rows", "seen", "sean"], "there is no sean"),
        (["transformer", "--checkpoint", "{tiny}", "--data", "shapes"], "no text encoder"),
        (
            [
                "transformer",
                "--checkpoint",
                "{tiny}",
                "--data",
                "shapes",
                "--vae",
                "{tmp}/none.gguf",
            ],
            "none.gguf",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_line(tiny, tmp_path, capsys, arguments, message):
    path = str(tiny / "tiny.safetensors")
    filled = [argument.format(tiny=path, tmp=tmp_path) for argument in arguments]
    (tmp_path / "out.json").write_text("an earlier table")
    assert main([*filled, "--output", str(tmp_path / "out")]) == 2
    assert (tmp_path / "out.json").read_text() == "an earlier table"
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0


def test_an_output_that_cannot_be_written_shows_before_work_begins(tmp_path, capsys):
    (tmp_path / "file").touch()
    output = str(tmp_path / "file/out")
    assert main(["vae", "--checkpoint", "none", "--data", "shapes", "--output", output]) == 2
    assert f"cannot write {output}.json" in capsys.readouterr().err


def test_i3d_is_read_from_a_file_of_the_pytorch_port(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {name: rng.random(shape, np.float32) for name, shape in i3d.shapes().items()}
    extra = {"Mixed_3b.b0.bn.num_batches_tracked": np.zeros((), np.int64)}
    save_file(tensors | extra, tmp_path / "i3d.safetensors")
    params = perceptual.read_i3d(tmp_path / "i3d.safetensors")
    jax.tree.map(np.testing.assert_array_equal, params, i3d.fold(tensors))
    with pytest.raises(ValueError, match=r"i3d\.pt is a pickle"):
        perceptual.read_i3d(tmp_path / "i3d.pt")


def test_shares_come_with_wilsons_interval():
    figure = metric_table.percentage("of", "name", [True] * 97 + [False] * 3)
    low, high = metrics.wilson(97, 100)
    assert (figure.value, figure.count) == (97, 100)
    assert (figure.low, figure.high) == pytest.approx((100 * low, 100 * high))
    assert figure.cells() == ("of", "name", "97.0 %", "91.5 to 99.0", "100")
