"""The web page's studio: the videos that it samples, and the requests that it refuses."""

import base64
import io
import pathlib
import shlex

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import SETTINGS, write_exported

from ltx_jax import sample
from ltx_jax.config import SampleConfig
from ltx_jax.data import video, writing
from ltx_jax.demo import studio as studio_module
from ltx_jax.demo.__main__ import main
from ltx_jax.demo.studio import PageImage, PageLora, PageReference, SampledVideo, Studio
from ltx_jax.diffusion.sampler import Progress
from ltx_jax.inference import make_videos


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_exported(tmp_path_factory.mktemp("demo") / "model")


@pytest.fixture(scope="module")
def arguments(model):
    return ["--checkpoint", str(model), "--dtype", "float32"]


@pytest.fixture(scope="module")
def models(arguments):
    return make_videos.load_models(sample.parse(arguments))


@pytest.fixture
def studio(arguments, models, tmp_path):
    """A studio with a tiny random model and its stored settings."""
    return Studio(sample.parse(arguments), tmp_path, arguments=arguments, models=models)


def frames_of(path):
    return video.read_video(path)[0]


@pytest.mark.thorough
def test_a_video_is_the_one_that_its_command_makes(studio, tmp_path):
    steps = []
    result = studio.make("a red star", progress=steps.append, seed=5, num_frames=17)
    assert [(step.step, step.steps) for step in steps] == [(1, 2), (2, 2)]
    frames = frames_of(result.path)
    assert frames.shape == (17, SETTINGS.height, SETTINGS.width, 3)
    program, *arguments = shlex.split(result.command)
    assert program == "ltx-sample"
    assert sample.main([*arguments, "--output_path", str(tmp_path / "again.mp4")]) == 0
    np.testing.assert_array_equal(frames_of(tmp_path / "again.mp4"), frames)
    other = studio.make("a red star", seed=6, num_frames=17)
    assert np.abs(frames_of(other.path).astype(int) - frames).mean() > 5


@pytest.mark.thorough
def test_what_the_page_starts_from_is_sampled(arguments, models, tmp_path):
    command_line = [*arguments, "--prompt", "a red star", "--first_sample", "3", "--seed", "5"]
    studio = Studio(sample.parse(command_line), tmp_path, arguments=command_line, models=models)
    assert studio.settings.prompt == "a red star"
    result = studio.make("a blue star")
    assert result.settings.prompt == "a blue star"
    command = shlex.split(result.command)[1:]
    assert sample.main([*command, "--output_path", str(tmp_path / "again.mp4")]) == 0
    np.testing.assert_array_equal(frames_of(tmp_path / "again.mp4"), frames_of(result.path))


def test_pictures_are_put_at_their_frames(studio, monkeypatch):
    conditions_by_call = []
    monkeypatch.setattr(
        make_videos,
        "sample_batch",
        lambda *_, conditions, **more: conditions_by_call.append(conditions),
    )
    grey, white = np.full((8, 8, 3), 128, np.uint8), np.full((8, 8, 3), 255, np.uint8)
    with pytest.raises(TypeError):  # the fake returns no video to write
        studio.make("", [PageImage(grey, 0), PageImage(white, 8)])
    assert [(one.frame, one.media[0, 0, 0], one.strength) for one in conditions_by_call[0]] == [
        (0, 128, 1.0),
        (8, 255, 1.0),
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("draws_edges", [False, True])
def test_a_clip_is_followed_as_by_its_command(studio, tmp_path, monkeypatch, draws_edges):
    """A clip of another length and frame rate than the video's."""
    if draws_edges:
        pytest.importorskip("cv2", reason="the prepare extra is not installed")
    frames = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8)
    writing.write_video(tmp_path / "clip.mp4", frames, 2 * SETTINGS.frame_rate)
    reference = PageReference(studio.clip(str(tmp_path / "clip.mp4")), draws_edges)
    result = studio.make("a red star", reference=reference, seed=5)
    monkeypatch.chdir(tmp_path)  # the command names the file without its folder
    command = shlex.split(result.command)[1:]
    assert sample.main([*command, "--output_path", str(tmp_path / "again.mp4")]) == 0
    np.testing.assert_array_equal(frames_of(tmp_path / "again.mp4"), frames_of(result.path))
    alone = studio.make("a red star", seed=5)
    assert np.abs(frames_of(alone.path).astype(int) - frames_of(result.path)).mean() > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 129}, "width may be 128 at most here, got 129"),
        ({"height": 65}, "height may be 64"),
        ({"num_frames": 18}, "num_frames may be 17"),
        ({"num_inference_steps": 51}, "at most 50 steps here, got 51"),
        ({"width": 128, "height": 64, "num_frames": 17}, "1.9 times what one video may be here"),
        ({"num_frames": 0}, "num_frames must be positive"),
        ({"prompt": "x" * 2001}, "a prompt may have 2000 letters"),
        (
            {"pictures": [PageImage(np.zeros((8, 8, 3), np.uint8), 9)]},
            "there is no frame 9: the las",
        ),
    ],
)
def test_what_is_too_much_is_refused_before_any_work(studio, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        studio.make(**{"prompt": "a", **changes})
    assert not list(tmp_path.iterdir())


def test_old_videos_make_room_for_new_ones(studio, tmp_path, monkeypatch):
    monkeypatch.setattr(studio_module, "MAX_VIDEOS", 2)
    clip = np.zeros((1, 2, 16, 16, 3), np.uint8)
    monkeypatch.setattr(make_videos, "sample_batch", lambda *_, **more: (None, clip))
    paths = [studio.make("a").path for _ in range(3)]
    assert [path.exists() for path in paths] == [False, True, True]
    assert len(list(tmp_path.iterdir())) == 2


def test_settings_that_no_page_can_use_are_refused(arguments, models, tmp_path):
    pictures = ["--conditioning_media_paths", "a.png", "--conditioning_start_frames", "0"]
    for name, option in (
        ("prompts_file", ["--prompts_file", "a.txt"]),
        ("conditioning_media_paths", pictures),
        ("reference_media_path", ["--reference_media_path", "a.mp4"]),
    ):
        settings = sample.parse([*arguments, *option])
        with pytest.raises(ValueError, match=f"leave out {name}"):
            Studio(settings, tmp_path, models=models)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "missing.safetensors"], "missing.safetensors does not exist"),
        (["--height", "0"], "height must be positive, got 0"),
    ],
)
def test_a_mistake_is_one_line_and_no_page_comes_up(arguments, message, capsys, monkeypatch):
    pytest.importorskip("gradio", reason="the demo extra is not installed")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # restored afterwards
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ltx-demo: error: ")
    assert message in error


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory, model):
    """Two adapters for the tiny model."""
    from test_adapter_files import random_changes

    from ltx_jax.checkpoints import adapter_writing
    from ltx_jax.checkpoints.load import load_checkpoint

    folder = tmp_path_factory.mktemp("adapters")
    changes = random_changes(load_checkpoint(model).transformer)
    some = {name: change for name, change in changes.items() if "attn1" in name}
    adapter_writing.write(folder / "big.safetensors", changes)
    adapter_writing.write(folder / "small.safetensors", some)
    return folder


@pytest.mark.thorough
def test_an_adapter_is_chosen_by_each_request(
    arguments, models, adapter_folder, tmp_path, monkeypatch
):
    studio = Studio(
        sample.parse(arguments),
        tmp_path,
        arguments=arguments,
        models=models,
        loras=adapter_folder,
    )
    assert list(studio.loras) == ["big", "small"]
    clips, original = [], make_videos.sample_batch

    def recording_sample(*arguments, **more):
        latents, result = original(*arguments, **more)
        clips.append(result[0])
        return latents, result

    monkeypatch.setattr(make_videos, "sample_batch", recording_sample)
    choices = [None, ("big", 0.5), ("big", 1.0), ("small", 1.0), None]
    results = [studio.make("a red star", lora=one and PageLora(*one), seed=5) for one in choices]
    np.testing.assert_array_equal(clips[0], clips[4])
    for i in range(3):
        assert np.abs(clips[i].astype(int) - clips[i + 1]).mean() > 0.5
    command = shlex.split(results[1].command)[1:]
    assert f"{adapter_folder / 'big.safetensors'}:0.5" in command
    assert sample.main([*command, "--output_path", str(tmp_path / "again.mp4")]) == 0
    np.testing.assert_array_equal(clips[-1], clips[1])
    for lora, message in (
        (PageLora("../big", 1.0), "there is no adapter '../big' here"),
        (PageLora("big", 4.5), "may be 4 at most here, got 4.5"),
        (PageLora("big", float("nan")), "may be 4 at most here, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            studio.make("a red star", lora=lora)
    with pytest.raises(ValueError, match=r"--loras: there is no \.safetensors file in"):
        Studio(sample.parse(arguments), tmp_path, models=models, loras=tmp_path / "none")


@pytest.mark.thorough
def test_a_prompt_is_enhanced_if_the_request_says_so(arguments, models, tmp_path, monkeypatch):
    monkeypatch.setattr(make_videos, "load_enhancer", lambda name: f"{name}: {{}}".format)
    command_line = [*arguments, "--enhance", "writer"]
    studio = Studio(sample.parse(command_line), tmp_path, arguments=command_line, models=models)
    result = studio.make("a red star", enhance=True)
    assert result.settings.prompt == "writer: a red star"
    assert sample.parse(shlex.split(result.command)[1:]).enhance is None
    assert studio.make("a red star").settings.prompt == "a red star"
    assert studio.make("", enhance=True).settings.prompt == ""


def test_a_video_is_made_in_a_thread_that_reports_previews_and_errors():
    pytest.importorskip("gradio", reason="the demo extra is not installed")
    from ltx_jax.demo import page

    pictures = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    video = SampledVideo(pathlib.Path("video.mp4"), SampleConfig(), 1.0, "ltx-sample")
    checked = []

    def make(progress, preview):
        for number in (1, 2):
            preview(None, pictures[None] + number)
            progress(Progress(number, 2, 1.0, "tokens"))
        return video

    events = list(page._events(make, checked.append))
    steps = [event.step for event in events if isinstance(event, Progress)]
    shown = [event for event in events if isinstance(event, np.ndarray)]
    assert (steps, events[-1], len(checked)) == ([1, 2], video, 2)
    np.testing.assert_array_equal(shown[1], pictures + 2)

    content = page._picture_element(pictures).partition("base64,")[2].partition('"')[0]
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    np.testing.assert_array_equal(strip, np.concatenate(list(pictures), axis=1))

    def refuse(step):
        raise ValueError("nobody waits")

    with pytest.raises(ValueError, match="nobody waits"):
        list(page._events(make, refuse))
