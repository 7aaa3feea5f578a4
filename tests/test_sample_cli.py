"""sample.py from its command line, on a tiny random checkpoint: what it writes and refuses."""

import dataclasses
import functools
import json
import os
import re
import shutil
import types

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from quick import QUICK
from tiny_checkpoint import (
    CAPTION,
    CHANNELS,
    SETTINGS,
    write_checkpoint,
    write_exported,
    write_text_encoder,
    write_upsampler,
)

from ltx_jax.config import SampleConfig
from ltx_jax.inference import outputs

FRAMES, HEIGHT, WIDTH = 9, 64, 96
SIZES = ["--num_frames", f"{FRAMES}", "--height", f"{HEIGHT}", "--width", f"{WIDTH}"]
FAST = ["--num_inference_steps", "2", "--stg_scale", "0", "--rescaling_scale", "1"]
SMALL = [*SIZES, *FAST, "--dtype", "float32", "--frame_rate", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, a text encoder, embeddings and media; compiled programs are kept beside."""
    from ltx_jax.data import writing
    from ltx_jax.inference import pipeline

    root = tmp_path_factory.mktemp("sample")
    programs = pipeline.Programs
    pipeline.Programs = functools.partial(programs, QUICK)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
    compilation_cache.reset_cache()
    write_checkpoint(root / "tiny.safetensors")
    write_text_encoder(root / "t5", CAPTION)
    write_text_encoder(root / "wide", CAPTION + 8)
    draw = np.random.default_rng(0)
    rows = {
        "prompt_embeds": draw.standard_normal((1, 5, CAPTION)),
        "negative_embeds": draw.standard_normal((1, 5, CAPTION)),
    }
    masks = {name: np.ones((1, 5), np.int32) for name in ("prompt_mask", "negative_mask")}
    np.savez(root / "embeddings.npz", **{k: v.astype(np.float32) for k, v in rows.items()}, **masks)
    clip = draw.integers(0, 255, (17, HEIGHT, WIDTH, 3), np.uint8)
    writing.write_video(root / "clip17.mp4", clip, 8.0)
    writing.write_image(root / "still.png", clip[0])
    yield root
    pipeline.Programs = programs
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture
def sample(folder, tmp_path, capsys):
    """Runs the command with small settings; gives the exit status, what it printed and where."""
    from ltx_jax import sample

    def run(*arguments, small=SMALL, source=("--embeddings", str(folder / "embeddings.npz"))):
        out = tmp_path / "out"
        command = ["--checkpoint", str(folder / "tiny.safetensors"), *small, *source]
        if "--output_path" not in arguments:
            command += ["--output_path", str(out)]
        capsys.readouterr()
        try:
            status = sample.main([*command, *map(str, arguments)])
        except SystemExit as error:
            status = error.code
        printed = capsys.readouterr()
        lines = "\n".join(line for line in printed.err.splitlines() if line.strip())
        return types.SimpleNamespace(status=status, out=printed.out, err=lines, folder=out)

    return run


def read(path):
    from ltx_jax.data import video

    return video.read_video(path)


def assert_same_pictures(path, other):
    first, second = (read(p)[0].astype(int) for p in (path, other))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - second[:, ::-1]).mean() > 10  # and these frames are not flat


@pytest.mark.thorough
def test_a_video_and_its_json_are_written_and_the_json_makes_it_again(sample, folder, tmp_path):
    latents = tmp_path / "latents.npy"
    guidance = ("--guidance_scale", 2, "--skip_block_list", 1, "--stg_scale", 1)
    result = sample("--seed", 7, *guidance, "--save_latents", latents)
    assert result.status == 0, result.err
    path = result.folder / "embeddings_seed7.mp4"
    frames, rate = read(path)
    assert (frames.shape, rate) == ((FRAMES, HEIGHT, WIDTH, 3), 8.0)
    assert result.out.split() == [str(latents), str(path)]
    for part in ("load", "compile", "denoise", "decode", "write"):
        assert part in result.err
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar["settings"]["seed"] == 7
    assert sidecar["checkpoint_hash"]
    assert {"jax", "jaxlib", "flax", "ltx-jax", "python"} <= set(sidecar["versions"])

    from ltx_jax import sample as command

    again, copy = tmp_path / "again.mp4", tmp_path / "again.npy"
    arguments = ["--config", str(path.with_suffix(".json")), "--output_path", str(again)]
    assert command.main([*arguments, "--save_latents", str(copy)]) == 0
    np.testing.assert_array_equal(np.load(copy), np.load(latents))
    assert_same_pictures(again, path)


def changed_checkpoint(source, target, change):
    """Writes a checkpoint with every tensor `change(name, value)`."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(source, "np") as file:
        names, metadata = list(file.keys()), file.metadata()
        save_file({name: change(name, file.get_tensor(name)) for name in names}, target, metadata)
    return target


@pytest.mark.thorough
def test_float16_writes_the_video_of_a_vae_whose_activations_pass_its_range(
    sample, folder, tmp_path
):
    loud = changed_checkpoint(
        folder / "tiny.safetensors",
        tmp_path / "loud.safetensors",
        lambda name, value: value * np.float32(1e5) if "conv_in.conv.weight" in name else value,
    )
    still = condition(folder / "still.png")
    videos = []
    for dtype in ("float32", "float16"):
        result = sample("--checkpoint", loud, "--dtype", dtype, "--seed", 5, *still)
        assert result.status == 0, result.err
        videos.append(read(result.out.split()[0])[0].astype(int))
    assert videos[0].std() > 50
    # float16 in the transformer, through the gain of 1e5; a black video is off by over 50.
    assert np.abs(videos[1] - videos[0]).mean() < 10


@pytest.mark.thorough
def test_the_ending_of_the_output_decides_what_is_written(sample, tmp_path):
    from PIL import Image

    picture = tmp_path / "x.png"
    result = sample("--seed", 3, "--num_frames", 1, "--output_path", picture)
    assert result.status == 0, result.err
    assert {path.name for path in tmp_path.iterdir()} == {"x.png", "x.json"}
    with Image.open(picture) as image:
        assert (image.size, image.mode) == ((WIDTH, HEIGHT), "RGB")
        whole = np.asarray(image)

    deep = sample("--seed", 3, "--num_frames", 1, "--output_path", tmp_path / "y_%02d.png")
    assert deep.status == 0, deep.err
    import cv2

    words = cv2.imread(str(tmp_path / "y_00.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    # The picture's fractions are cut off, as in the released pipeline.
    assert words.dtype == np.uint16
    assert np.abs(words / 257 - whole - 0.5).max() <= 0.51
    assert (tmp_path / "y.json").exists()

    moving = sample("--seed", 3, "--output_path", tmp_path / "z.mov")
    assert moving.status == 0, moving.err
    assert read(tmp_path / "z.mov")[0].shape == (FRAMES, HEIGHT, WIDTH, 3)


def test_the_command_line_goes_before_the_config_file(folder, tmp_path):
    from ltx_jax import sample

    file = tmp_path / "settings.py"
    file.write_text(
        "from ltx_jax.config import SampleConfig\n"
        "config = SampleConfig(checkpoint='a', height=32, width=64, skip_block_list=((), (1, 2)))\n"
    )
    cfg = sample.parse(["--config", str(file), "--width", "128", "--guidance-scale", "1", "2"])
    assert (cfg.checkpoint, cfg.height, cfg.width) == ("a", 32, 128)
    assert cfg.guidance_scale == (1.0, 2.0)
    assert cfg.skip_block_list == ((), (1, 2))


def test_settings_survive_the_json(folder, tmp_path):
    from ltx_jax import config

    path = os.path.join(os.path.dirname(__file__), "../configs/sample/ltxv_13b_0_9_8_dev.py")
    cfg = dataclasses.replace(config.load(path), mesh=config.MeshConfig(1, 2, 1, 1), prompt="a")
    (item,) = outputs.planned_videos(cfg)
    item = dataclasses.replace(item, path=tmp_path / "video.mp4")
    outputs.write_sidecar(cfg, item, "hash", {})
    again = config.load_sampling(str(tmp_path / "video.json"))
    assert dataclasses.replace(again, config=None) == cfg


@pytest.mark.thorough
def test_a_model_that_says_how_it_is_sampled_is_sampled_so(tmp_path):
    from ltx_jax import sample

    folder = write_exported(tmp_path / "model")
    cfg = sample.parse([f"--checkpoint={folder}", "--height", "64"])
    expected = dataclasses.replace(SETTINGS, height=64)
    for field in dataclasses.fields(SETTINGS):
        assert getattr(cfg, field.name) == getattr(expected, field.name), field.name
    file = tmp_path / "settings.py"
    file.write_text("from ltx_jax.config import SampleConfig\nconfig = SampleConfig(height=96)\n")
    cfg = sample.parse(["--checkpoint", str(folder), "--config", str(file)])
    assert (cfg.height, cfg.width) == (96, 1216)  # a file says all


@pytest.mark.thorough
def test_without_a_checkpoint_the_model_that_ships_is_sampled(tmp_path, monkeypatch, capsys):
    from ltx_jax import sample
    from ltx_jax.checkpoints import embedded_models, vocabulary_file
    from ltx_jax.world.vocabulary import vocabulary

    monkeypatch.setattr(embedded_models, "FOLDERS", tmp_path / "models")
    monkeypatch.setattr(embedded_models, "DEFAULT", "shapes")
    folder = write_exported(tmp_path / "models/shapes")
    vocabulary_file.write(folder / vocabulary_file.NAME, vocabulary())
    out = tmp_path / "star.mp4"
    prompt = "A small red Dog moves left, by moonlight. Dog!"
    arguments = ["--prompt", prompt, "--dtype", "float32", "--sheet", "True"]
    assert sample.main([*arguments, "--output_path", str(out)]) == 0
    printed = capsys.readouterr()
    files = [out.with_suffix(ending) for ending in (".mp4", ".gif", ".png")]
    assert printed.out.split() == [str(file) for file in files]
    frames, _ = read(files[0])
    shown, rate = read(files[1])
    assert frames.shape == shown.shape == (SETTINGS.num_frames, SETTINGS.height, SETTINGS.width, 3)
    assert rate == pytest.approx(SETTINGS.frame_rate, rel=0.05)  # GIFs count in hundredths
    from ltx_jax.data import pictures

    height, width, _ = pictures.read_image(files[2]).shape
    assert height > SETTINGS.height
    assert width > 6 * SETTINGS.width
    hint = "warning: the model does not know 'dog', 'by', 'moonlight'\n"
    assert printed.err.count("does not know") == 1
    assert hint in printed.err
    sidecar = json.loads(out.with_suffix(".json").read_text())["settings"]["checkpoint"]
    assert sidecar == "embedded:shapes"


def test_without_a_checkpoint_and_a_model_that_ships_one_is_asked_for(
    tmp_path, monkeypatch, capsys
):
    from ltx_jax import sample
    from ltx_jax.checkpoints import embedded_models

    monkeypatch.setattr(embedded_models, "FOLDERS", tmp_path / "absent")
    assert sample.main(["--prompt", "a dog", "--output_path", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert "name one, --checkpoint" in printed
    assert "warning" not in printed, "there is no model to have read words"


@pytest.mark.thorough
def test_a_prompts_file_is_resumed_and_its_videos_do_not_depend_on_the_batch(
    sample, folder, tmp_path
):
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\na blue square\na green star\n")
    source = ("--prompts_file", str(file), "--text_encoder", str(folder / "t5"))
    first = sample("--seed", 3, source=source)
    assert first.status == 0, first.err
    names = [f"{line:04d}_seed3.mp4" for line in (1, 3, 4)]
    assert sorted(path.name for path in first.folder.glob("*.mp4")) == names
    kept = shutil.copytree(first.folder, tmp_path / "kept")
    times = {name: (first.folder / name).stat().st_mtime_ns for name in names}

    (first.folder / names[2]).unlink()
    second = sample("--seed", 3, source=source)
    assert second.out.split() == [str(first.folder / names[2])]
    assert (first.folder / names[0]).stat().st_mtime_ns == times[names[0]]
    assert_same_pictures(first.folder / names[2], kept / names[2])
    assert "nothing to do" in sample("--seed", 3, source=source).err

    other = tmp_path / "batched"
    batched = sample("--seed", 3, "--batch_size", 2, "--output_path", other, source=source)
    assert batched.status == 0, batched.err
    one, of_two = (read(path / names[2])[0].astype(int) for path in (kept, other))
    assert np.abs(one - of_two).mean() < 0.5  # a rounded pixel differs, and with it a block of x264

    rest = tmp_path / "rest.txt"
    rest.write_text("a green star\n")
    [item] = outputs.planned_videos(SampleConfig(prompts_file=str(rest), seed=3, first_sample=3))
    assert (item.index, item.path.name) == (3, names[2])

    file.write_text("a yellow circle\n")
    assert "exists with prompt 'a red circle'" in sample("--seed", 3, source=source).err


@pytest.mark.thorough
def test_latents_alone_are_not_decoded_and_noise_replaces_the_seed(sample, folder, tmp_path):
    grid = (1, (FRAMES - 1) // 8 + 1, HEIGHT // 32, WIDTH // 32, CHANNELS)
    noise = np.random.default_rng(1).standard_normal(grid).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    from ltx_jax import sample as command

    latents = []
    for seed in (1, 2):
        target = tmp_path / f"latents{seed}.npy"
        arguments = ["--checkpoint", str(folder / "tiny.safetensors"), *SMALL, "--seed", str(seed)]
        arguments += ["--embeddings", str(folder / "embeddings.npz"), "--save_latents", str(target)]
        assert command.main([*arguments, "--noise", str(tmp_path / "noise.npy")]) == 0
        latents.append(np.load(target))
    assert latents[0].shape == grid
    np.testing.assert_array_equal(*latents)
    assert not list(tmp_path.glob("**/*.mp4"))
    both = sample("--save_latents", tmp_path / "both.npy", "--seed", 1)
    assert both.status == 0, both.err
    assert (tmp_path / "both.npy").exists()
    assert list(both.folder.glob("*.mp4"))


@pytest.mark.thorough
def test_conditions_reach_the_video(sample, folder):
    plain = sample("--seed", 1)
    media = ["--conditioning_media_paths", folder / "still.png", "--conditioning_start_frames", 0]
    held = sample("--seed", 1, *media, "--conditioning_strengths", 1.0)
    assert held.status == 0, held.err
    pictures = [read(r.out.split()[0])[0].astype(int) for r in (plain, held)]
    assert np.abs(pictures[0] - pictures[1]).mean() > 1


@pytest.mark.thorough
def test_a_condition_clip_that_is_too_long_is_trimmed_and_the_log_says_so(sample, folder, caplog):
    clip = condition(f"{folder / 'clip17.mp4'}@0.5s")
    result = sample("--seed", 1, *clip)
    assert result.status == 0, result.err
    assert "clip17.mp4@0.5s: trimmed to 9 frames" in caplog.text


@pytest.mark.thorough
def test_two_passes_where_the_settings_name_an_upsampler(sample, folder, tmp_path):
    write_upsampler(tmp_path / "upsampler.safetensors")
    file = tmp_path / "settings.py"
    file.write_text(
        "from ltx_jax.config import SampleConfig, SamplingConfig\n"
        "config = SampleConfig(downscale_factor=0.5, second_pass=SamplingConfig(\n"
        "    timesteps=(0.7, 0.3), guidance_scale=1.0, stg_scale=0.0, rescaling_scale=1.0))\n"
    )
    upsampler = ("--spatial_upscaler", tmp_path / "upsampler.safetensors", "--config", file)
    result = sample(*upsampler)
    assert result.status == 0, result.err
    assert read(result.out.split()[0])[0].shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert "upsample" in result.err
    refused = sample(*upsampler, "--save_latents", tmp_path / "latents.npy")
    assert refused.status == 2
    assert "two passes do not take save_latents together with output_path" in refused.err


@pytest.mark.thorough
def test_the_second_run_of_a_shape_compiles_nothing(sample):
    counts: dict[str, int] = {}

    def listen(event, **_):
        counts[event] = counts.get(event, 0) + 1

    arguments = ("--height", 32, "--width", 32)  # a shape of its own
    jax.clear_caches()  # as in a new process
    assert sample(*arguments, "--seed", 1).status == 0
    jax.clear_caches()
    jax.monitoring.register_event_listener(listen)
    try:
        result = sample(*arguments, "--seed", 2)
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert result.status == 0, result.err
    assert counts.get("/jax/compilation_cache/cache_hits", 0) > 0
    assert counts.get("/jax/compilation_cache/cache_misses", 0) == 0


def test_help_names_every_option_of_the_official_script(capsys):
    from ltx_jax import sample

    with pytest.raises(SystemExit) as error:
        sample.main(["--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    for name in (
        *("config", "checkpoint", "text_encoder", "prompt", "prompts_file", "negative_prompt"),
        *("height", "width", "num_frames", "frame_rate", "num_inference_steps", "timesteps"),
        *("guidance_scale", "cfg_star_rescale", "stg_scale", "stg_mode", "skip_block_list"),
        *("rescaling_scale", "guidance_timesteps", "stochastic_sampling", "embeddings", "noise"),
        *("conditioning_media_paths", "conditioning_start_frames", "conditioning_strengths"),
        *("image_cond_noise_scale", "input_media_path", "skip_initial_inference_steps"),
        *("skip_final_inference_steps", "decode_timestep", "decode_noise_scale", "save_latents"),
        *("tone_map_compression_ratio", "seed", "dtype", "output_path", "mesh.fsdp"),
    ):
        assert f"--{name} " in text, name


def condition(path, frame=0, *more):
    return (
        *("--conditioning_media_paths", path),
        *("--conditioning_start_frames", frame),
        *more,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--height", 0), "height must be positive, got 0"),
        (("--num_frames", -3), "num_frames must be positive, got -3"),
        (("--frame_rate", 0), "frame_rate must be positive"),
        (("--frame_rate", "inf"), "frame_rate must be finite, got inf"),
        (("--frame_rate", "1e9"), "frame_rate may be 1000 at most, got 1e+09"),
        (("--guidance_scale", "nan"), "guidance_scale must be finite, got nan"),
        (("--guidance_scale", "1e9"), "guidance_scale must lie in [-1000, 1000], got 1e+09"),
        (("--timesteps", "1.0", "nan"), "timesteps must be finite, got nan"),
        (("--conditioning_strengths", "nan"), "conditioning_strengths must be finite, got nan"),
        (("--height", "100000"), "height may be 16384 at most, got 100000"),
        (condition("still.png", 0, "--conditioning_strengths", 1.5), "must lie in [0, 1], got 1.5"),
        (condition("still.png", 9), "must lie in [0, num_frames), got 9"),
        (condition("clip17.mp4@9s"), "clip17.mp4 has no frame that can be decoded after 9"),
        (condition("still.png@1s"), "still.png is a still image: it does not begin at 1 s"),
        (("--conditioning_media_paths", "still.png"), "one start frame per path"),
        (condition("missing.png"), "no file"),
        (condition("empty.mp4"), "empty"),
        (condition("corrupt.mp4"), "corrupt.mp4 is not a video"),
        (("--input_media_path", "corrupt.mp4"), "corrupt.mp4 is not a video"),
        (("--input_media_path", "still.png"), "still image"),
        (("--checkpoint", "truncated.safetensors"), "truncated.safetensors"),
        (("--checkpoint", "corrupt.safetensors"), "corrupt.safetensors"),
        (("--checkpoint", "other.safetensors"), "other.safetensors"),
        (("--checkpoint", "missing.safetensors"), "missing.safetensors"),
        (("--embeddings", "corrupt.mp4"), "corrupt.mp4 is no .npy or .npz"),
        (("--embeddings", "short.npz"), "holds no prompt_mask"),
        (("--embeddings", "flat.npy"), "flat.npy is not an .npz of embeddings: it is the .npy of"),
        (("--noise", "flat.npy"), "(b, t, h, w, c)"),
        (("--noise", "nan.npy"), "nan.npy must hold finite numbers"),
        (("--embeddings", "nan.npz"), "nan.npz must hold finite numbers"),
        (("--noise", "text.npy"), "text.npy must hold finite numbers"),
        (("--output_path", "still.png/out"), "still.png/out/embeddings_seed"),
        (("--output_path", "still.png/out/a.mp4"), "still.png/out/a.mp4: Not a directory"),
        (("--output_path", "clip.avi"), "clip.avi, which has no ending of a supported kind: a"),
        (("--output_path", "clip.xyz"), "a video is .mp4, .webm (VP9), .mov (ProRes 4444) or .gif"),
        (("--output_path", "x.png"), "x.png, a picture, and num_frames is 9; a video is .mp4,"),
        (("--output_path", "x.gif", "--sheet", "True"), "output_path is x.gif: leave it out"),
        (("--save_latents", "still.png/b.npy"), "still.png is a file, not a folder"),
        (("--prompt", "a"), "give only one of prompt, prompts_file and embeddings"),
        (("--config", "corrupt.json"), "not readable as JSON"),
        (("--config", "missing.py"), "no file"),
        (("--checkpoint", ""), "--checkpoint"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing_behind(
    sample, folder, tmp_path, arguments, message
):
    whole = (folder / "tiny.safetensors").read_bytes()
    (tmp_path / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "corrupt.safetensors").write_bytes(b"\xff" * 1000)
    from safetensors.numpy import save_file

    save_file({"layer.weight": np.zeros((2, 2), "f")}, tmp_path / "other.safetensors")
    for name in ("corrupt.mp4", "corrupt.json"):
        (tmp_path / name).write_bytes(b"neither a video nor JSON" * 100)
    (tmp_path / "empty.mp4").touch()
    np.savez(tmp_path / "short.npz", prompt_embeds=np.zeros((1, 5, CAPTION), "f"))
    np.save(tmp_path / "flat.npy", np.zeros((4, 4), "f"))
    np.save(tmp_path / "nan.npy", np.full((1, 2, 2, 3, CHANNELS), np.nan, "f"))
    np.save(tmp_path / "text.npy", np.full((1, 2, 2, 3, CHANNELS), "a"))
    broken = np.full((1, 5, CAPTION), np.inf, "f")
    np.savez(tmp_path / "nan.npz", prompt_embeds=broken, prompt_mask=np.ones((1, 5), "i"))
    for name in ("still.png", "clip17.mp4"):
        shutil.copy(folder / name, tmp_path)
    names = {path.name for path in tmp_path.iterdir()} | {"missing.safetensors", "missing.png"}
    known = names | {"missing.py"}
    arguments = [
        str(tmp_path / a) if re.split("[/@]", str(a))[0] in known else str(a) for a in arguments
    ]
    result = sample(*arguments)
    assert result.status == 2
    assert message in result.err
    assert result.err.startswith("ltx-sample: error: ")
    assert "\n" not in result.err
    assert not list(tmp_path.glob("**/*seed*"))
    assert {path.name for path in tmp_path.iterdir()} <= names


@pytest.mark.thorough
def test_a_text_encoder_of_the_wrong_width_is_refused(sample, folder):
    source = ("--prompt", "a red circle", "--text_encoder", str(folder / "wide"))
    result = sample(source=source)
    assert result.status == 2
    assert f"{CAPTION + 8} wide" in result.err


def test_a_checkpoint_without_text_encoder_asks_for_one(sample):
    result = sample(source=("--prompt", "a red circle"))
    assert result.status == 2
    assert "text_encoder" in result.err


@pytest.mark.thorough
def test_out_of_memory_says_what_to_lower(sample, monkeypatch):
    from ltx_jax.inference import pipeline

    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.")

    monkeypatch.setattr(pipeline.sampler, "sample", exhausted)
    result = sample()
    assert result.status == 2
    assert "out of memory" in result.err
    assert "num_frames" in result.err
    assert not list(result.folder.glob("*.mp4"))


@pytest.mark.thorough
def test_a_reference_and_a_mask_come_from_files(sample, folder, tmp_path):
    """A video that follows edges of a clip, another that repaints half of one."""
    from ltx_jax.data import writing

    latents = tmp_path / "latents.npy"
    clip = str(folder / "clip17.mp4")

    def made(*arguments):
        result = sample("--save_latents", latents, *arguments)
        assert result.status == 0, result.err
        return np.load(latents)

    plain = made()
    edges = ("--reference_media_path", clip, "--reference_preprocessor", "canny")
    followed = made(*edges)
    assert np.abs(followed - plain).max() > 1e-3
    weaker = made(*edges, "--reference_strength", 0.5)
    assert np.abs(followed - weaker).max() > 1e-3
    mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask[:32] = 255
    writing.write_image(tmp_path / "mask.png", mask)
    media = ("--conditioning_media_paths", clip, "--conditioning_start_frames", 0)
    still = ("--image_cond_noise_scale", 0)
    whole = made(*media, *still)
    painted = made(*media, *still, "--conditioning_mask_paths", tmp_path / "mask.png")
    np.testing.assert_allclose(painted[:, :, 1], whole[:, :, 1], atol=1e-5)
    assert np.abs(painted[:, :, 0] - whole[:, :, 0]).max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reference_media_path", "none.mp4"), "there is no file none.mp4"),
        (("--reference_preprocessor", "canny"), "has nothing to draw from"),
        (
            ("--reference_media_path", "CLIP", "--reference_preprocessor", "x"),
            "no preprocessor 'x'",
        ),
        (("--reference_strength", "2"), "reference_strength must lie in [0, 1], got 2"),
        (("--reference_downscale_factor", "0"), "must be positive, got 0"),
        (
            ("--reference_media_path", "CLIP", "--reference_downscale_factor", "2"),
            "multiples of 64, and 64 x 96 is sampled",
        ),
        (("--conditioning_mask_paths", "m.png"), "has 1 entries for 0 media"),
    ],
)
def test_references_that_cannot_be_used_give_one_line(sample, folder, arguments, message):
    clip = str(folder / "clip17.mp4")
    result = sample(*(clip if x == "CLIP" else x for x in arguments))
    assert result.status == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
