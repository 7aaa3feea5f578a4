"""The model of shapes that ships follows its prompts, according to the judge."""

import dataclasses
import pathlib

import numpy as np
import pytest

from ltx_jax import LTXPipeline, config, metrics, sample
from ltx_jax.checkpoints import embedded_models
from ltx_jax.checkpoints.load import load_checkpoint, own_settings
from ltx_jax.data import video
from ltx_jax.diffusion.conditioning import Condition
from ltx_jax.evaluate import world_table
from ltx_jax.world.judge import agreement, detect_objects

COUNT = 8  # prompts, in one batch
LARGEST = 25_000_000  # bytes of all its files
MODEL = "embedded:shapes"
FOLDER = embedded_models.folder(MODEL)
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bench():
    pipe = LTXPipeline.from_pretrained(MODEL)
    return world_table.WorldBenchmark(
        pipe, lambda frames: frames, 8, pipe.options, batch_size=COUNT
    )


@pytest.fixture(scope="module")
def prompts(bench):
    return bench.draw_prompts(COUNT, "train")


@pytest.fixture(scope="module")
def detections(bench, prompts):
    """The objects that the judge finds in a video of each prompt."""
    return [bench.detect(made) for made in bench.videos(prompts)]


def right(detections, prompts):
    """Number of videos in which all objects have the expected shape, colour and motion."""
    return sum(agreement(*pair).all for pair in zip(detections, prompts, strict=True))


@pytest.mark.thorough
def test_most_prompts_are_followed(detections, prompts):
    """A model that is right in 71 % of videos is right in 5 of 8 or more with probability 83 %.

    The seed is fixed, so the outcome does not change from run to run.
    """
    assert right(detections, [one.triples for one in prompts]) >= 5


@pytest.mark.thorough
def test_captions_of_other_videos_are_not(detections, prompts):
    for turn in (1, 3):
        others = [*prompts[turn:], *prompts[:turn]]
        assert right(detections, [one.triples for one in others]) <= 1


@pytest.mark.thorough
def test_a_picture_becomes_the_first_frame(bench, prompts):
    (first, *_) = prompts
    picture = bench.render(first)[:1]
    pipe, options = bench.sample, bench.options
    (made,) = pipe([first.caption], options, conditions=[Condition(picture)])
    # The target of the whole table, minus the deviation of a single clip.
    assert metrics.psnr(made[None, :1], picture[None])[0] > 24


@pytest.mark.thorough
def test_make_sample_shows_what_it_is_asked_for(tmp_path):
    out = tmp_path / "star.mp4"
    settings = ["--config", str(ROOT / "configs/sample/shapes.py")]
    prompt = "a small red star moves left"
    assert sample.main([*settings, "--prompt", prompt, "--output_path", str(out)]) == 0
    frames, rate = video.read_video(out)
    (star,) = detect_objects(frames, rate)
    # Small stars lose their points too often to test the shape in a single video.
    assert (star.colour, star.motion) == ("red", "left")
    assert all(out.with_suffix(ending).is_file() for ending in (".json", ".gif", ".png"))


def test_it_is_small_and_says_how_it_is_sampled_and_was_made():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST
    own = own_settings(MODEL)
    cfg = config.load(str(ROOT / "configs/sample/shapes.py"))
    for field in dataclasses.fields(own):
        assert getattr(own, field.name) == getattr(cfg, field.name), field.name
    loaded = load_checkpoint(MODEL)
    assert loaded.vae.timestep_conditioning
    assert loaded.text_encoder is not None
    assert np.all(np.asarray(loaded.statistics.std) > 0)
