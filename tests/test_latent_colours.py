"""The map from latents to colours: its fit, its file, and the previews that it makes."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import write_exported

from ltx_jax import LTXPipeline, preview, sample
from ltx_jax.checkpoints import beside, latent_colours_file
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import SamplingConfig
from ltx_jax.diffusion.solver import DPMSolverPP2M, Euler, Interval, Stochastic, predicted_data
from ltx_jax.export import export
from ltx_jax.inference import previews
from ltx_jax.models.latent_colours import LatentColours, as_pictures, colour_targets, fit_colours

# A size of 3 x 2 x 2 latents; no option that draws what the previews could not foresee.
OPTIONS = SamplingConfig(
    height=64, width=64, num_frames=17, num_inference_steps=4, guidance_scale=1.0, stg_scale=0.0
)


def random_colours(channels, side=2, seed=0):
    draw = np.random.default_rng(seed)
    matrix = draw.standard_normal((channels, 3 * side**2)).astype(np.float32) / 8
    return LatentColours(side, matrix, matrix[0])


def test_a_linear_map_is_found_again():
    truth = random_colours(5)
    z = np.random.default_rng(1).standard_normal((60, 5)).astype(np.float32)
    found = fit_colours(z, z @ truth.matrix + truth.bias, 2)
    np.testing.assert_allclose(found.matrix, truth.matrix, atol=1e-5)
    np.testing.assert_allclose(found.bias, truth.bias, atol=1e-5)
    with pytest.raises(ValueError, match="5 latents are too few"):
        fit_colours(z[:5], z[:5] @ truth.matrix, 2)


def test_targets_are_mean_colours_of_what_a_latent_stands_for():
    frames = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 12, 3), np.uint8)
    found = as_pictures(colour_targets(frames, 2, 4, 4), 2)
    assert found.shape == (2, 3, 4, 6, 3)
    first = frames[1, 0, 2:4, 10:12].mean((0, 1))
    third = frames[1, 5:9, 6:8, 0:2].mean((0, 1, 2))
    np.testing.assert_allclose(found[1, 0, 1, 5], first, atol=0.51)
    np.testing.assert_allclose(found[1, 2, 3, 0], third, atol=0.51)
    with pytest.raises(ValueError, match="3 pixels per latent"):
        colour_targets(frames, 3, 4, 4)


def test_the_file_is_read_as_it_was_written_and_checked(tmp_path):
    folder = write_exported(tmp_path / "model")
    assert latent_colours_file.read(folder) is None
    file, colours = beside.place(folder, latent_colours_file.NAME), random_colours(4)
    latent_colours_file.write(file, colours)
    found = load_checkpoint(folder).colours
    assert found.side == 2
    np.testing.assert_allclose(found.matrix, colours.matrix, atol=1e-5)
    raw = json.loads(file.read_text())
    for change in ({"side": 3}, {"bias": [0]}, {"matrix": [[1], [2, 3]]}, {"matrix": None}):
        file.write_text(json.dumps(raw | change))
        with pytest.raises(ValueError, match="latent_colours"):
            latent_colours_file.read(folder)


@pytest.mark.parametrize("solver", [Euler(), Stochastic(), DPMSolverPP2M()], ids=repr)
def test_a_prediction_is_seen_whatever_the_solver_does_with_it(solver):
    draw = np.random.default_rng(0)
    data, noise, fresh = draw.standard_normal((3, 1, 4, 2)).astype(np.float32)
    x, memory = jnp.asarray(noise), solver.init_memory(jnp.asarray(noise))
    times = (1.0, 0.7, 0.3, 0.0)
    for time, target in itertools.pairwise(times):

        def predict(x, t, state):  # the velocity that leads to the data
            return (x - data) / t[..., None], state

        interval = Interval(
            *(jnp.full((1, 1), t) for t in (time, target)), lambda: jnp.asarray(fresh)
        )
        after, _, memory = solver(predict, x, interval, None, memory)
        found = predicted_data(np.asarray(x), np.asarray(after), time, target, memory)
        np.testing.assert_allclose(found, data, atol=1e-5)
        x = after


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with a map that was fitted to it."""
    folder = write_exported(tmp_path_factory.mktemp("colours") / "model")
    assert preview.main([str(folder), "--clips", "16", "--num_frames", "9"]) == 0
    return folder


@pytest.mark.thorough
def test_the_last_preview_shows_the_latents_of_the_video(model):
    pipe = LTXPipeline.from_pretrained(model, dtype="float32")
    shown = []
    latents = pipe(
        "a red circle",
        OPTIONS,
        output="latents",
        preview=lambda progress, pictures: shown.append((progress.step, pictures)),
    )
    assert [step for step, _ in shown] == [1, 2, 3, 4]
    np.testing.assert_array_equal(shown[-1][1], pipe.checkpoint.colours.pictures(latents))
    assert shown[0][1].shape == (1, 3, 8, 8, 3)
    without = pipe("a red circle", OPTIONS, output="latents")
    np.testing.assert_array_equal(latents, without)


@pytest.mark.thorough
def test_a_checkpoint_without_a_map_says_how_to_fit_one(tmp_path):
    pipe = LTXPipeline.from_pretrained(write_exported(tmp_path / "model"), dtype="float32")
    with pytest.raises(ValueError, match="ltx-preview"):
        pipe("a red circle", OPTIONS, preview=lambda *_: None)


@pytest.mark.thorough
def test_the_command_rewrites_the_preview_after_every_step(model, tmp_path, monkeypatch):
    file, seen = tmp_path / "live.gif", []
    enlarged = previews.enlarged

    def watch(pictures):
        seen.append(file.exists() and file.read_bytes())
        return enlarged(pictures)

    monkeypatch.setattr(previews, "enlarged", watch)
    options = "--height 64 --width 64 --num_frames 17 --num_inference_steps 4 --stg_scale 0"
    arguments = ["--checkpoint", str(model), "--prompt", "a red circle", *options.split()]
    output = ["--output_path", str(tmp_path / "video.mp4"), "--preview", str(file)]
    assert sample.main([*arguments, *output]) == 0
    assert seen[0] is False
    assert len({*seen, file.read_bytes()}) == 5  # every step wrote another picture
    assert Image.open(file).n_frames == 3
    assert Image.open(file).size == (192, 192)
    assert sample.main([*arguments, "--preview", "live.mp4"]) == 2


@pytest.mark.thorough
def test_an_export_keeps_the_map(model, tmp_path):
    export(str(model), tmp_path / "out", layouts=["official"])
    found = load_checkpoint(tmp_path / "out").colours
    np.testing.assert_array_equal(found.matrix, load_checkpoint(model).colours.matrix)
