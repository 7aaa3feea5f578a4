"""Every file in configs/ loads, and what it describes can be built."""

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltx_jax import config
from ltx_jax.checkpoints import official_config
from ltx_jax.checkpoints.releases import RELEASED, UPSAMPLER_FILES
from ltx_jax.config import SampleConfig, SamplingConfig, TrainTransformer, TrainVAE
from ltx_jax.diffusion import flow, guidance
from ltx_jax.evaluate import world_table
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.models.transformer import Context, Transformer
from ltx_jax.models.vae import VideoVAE, check_video_shape
from ltx_jax.runtime import sharding
from ltx_jax.training.transformer.loss import kept_tokens
from ltx_jax.training.transformer.stage import latent_grid

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
TRAINING = sorted(FOLDER.glob("*.py"))
SAMPLING = sorted((FOLDER / "sample").glob("*.py"))
RELEASES = {file: release for release in RELEASED.values() for file in release.files}


def name(path):
    return path.stem


def shapes(module, *arguments):
    def init(*arguments):
        return sharding.unbox(module.init(jax.random.key(0), *arguments))["params"]

    return jax.eval_shape(init, *arguments)


@pytest.mark.parametrize("path", [*TRAINING, *SAMPLING], ids=name)
def test_a_config_says_how_it_is_run(path):
    text = path.read_text()
    assert text.startswith('"""')
    command = "ltx-sample --config" if path in SAMPLING else "ltx-train"
    assert f"{command} {path.stem}" in text


@pytest.mark.thorough
@pytest.mark.parametrize("path", TRAINING, ids=name)
def test_a_training_config_has_networks_that_fit_its_data(path):
    cfg = config.load(str(path))
    data = cfg.data
    if isinstance(cfg, TrainVAE):
        for size in data.sizes:
            check_video_shape(cfg.model, (1, size.num_frames, size.height, size.width, 3))
        size = data.sizes[0]
        video = jnp.zeros((1, size.num_frames, size.height, size.width, 3))
        params = shapes(VideoVAE(cfg.model), video)
        assert {"encoder", "decoder"} <= set(params)
    else:
        assert isinstance(cfg, TrainTransformer)
        model = cfg.model
        pairs = jnp.zeros((1, 4, model.width // 2))
        caption = jnp.zeros((1, cfg.max_caption_tokens, model.caption_channels))
        tokens = jnp.zeros((1, 4, model.in_channels))
        arguments = (tokens, jnp.zeros((1, 1)), Context(caption, None, (pairs, pairs)))
        assert "blocks" in shapes(Transformer(model), *arguments)
        ids = jnp.zeros((1, cfg.max_caption_tokens), jnp.int32)
        assert "shared" in shapes(T5Encoder(cfg.text_encoder), ids, ids)


@pytest.mark.parametrize("path", TRAINING, ids=name)
def test_a_transformer_config_takes_the_latents_of_the_vae_it_names(path):
    cfg = config.load(str(path))
    if isinstance(cfg, TrainVAE):
        return
    runs = {
        vae.run.output: vae for p in TRAINING if isinstance(vae := config.load(str(p)), TrainVAE)
    }
    if cfg.vae in runs:  # else a path of the user's own
        assert runs[cfg.vae].model.latent_channels == cfg.model.in_channels


@pytest.mark.parametrize("path", TRAINING, ids=name)
def test_a_fine_tuning_config_has_the_network_of_its_checkpoint(path):
    cfg = config.load(str(path))
    if cfg.run.init_from not in RELEASES:
        return
    raw = RELEASES[cfg.run.init_from].config
    released = official_config.transformer(raw["transformer"])
    assert cfg.model == released
    assert cfg.scheduler == official_config.scheduler(raw["scheduler"])


@pytest.mark.parametrize("path", TRAINING, ids=name)
def test_steps_of_all_buckets_of_a_config_are_about_as_large(path):
    cfg = config.load(str(path))
    if isinstance(cfg, TrainVAE) or not cfg.data.buckets:
        return
    vae = official_config.vae(RELEASED["2b-0.9.5"].config["vae"])
    grids = [latent_grid(size, vae) for size in cfg.data.sizes]
    sizes = [
        (math.prod(grid), size.batch_size) for grid, size in zip(grids, cfg.data.sizes, strict=True)
    ]
    assert max(count for count, _ in sizes) <= 12_000  # as the released models were trained
    kept = kept_tokens(sizes, cfg.flow.token_drop)
    steps = [count * batch for count, (_, batch) in zip(kept, sizes, strict=True)]
    assert max(steps) < 1.05 * min(steps)


def test_every_release_has_its_settings():
    files = {config.load(str(path)).checkpoint for path in SAMPLING}
    assert set(RELEASES) <= files


@pytest.mark.parametrize("path", SAMPLING, ids=name)
def test_a_sampling_config_fits_its_checkpoint(path):
    """Lists of one length, blocks that exist, times that a distilled model knows."""
    cfg = config.load(str(path))
    assert isinstance(cfg, SampleConfig)
    if cfg.checkpoint not in RELEASES:
        return
    raw = RELEASES[cfg.checkpoint].config
    layers = official_config.transformer(raw["transformer"]).num_layers
    passes = [cfg] if cfg.second_pass is None else [cfg, cfg.second_pass]
    assert cfg.second_pass is None or cfg.spatial_upscaler in UPSAMPLER_FILES
    starts = []
    for options in passes:
        times = flow.inference_times(
            official_config.scheduler(raw["scheduler"]),
            6144,
            num_inference_steps=options.num_inference_steps,
            timesteps=options.timesteps,
            skip_initial=options.skip_initial_inference_steps,
            skip_final=options.skip_final_inference_steps,
            allowed=raw.get("allowed_inference_steps"),
        )
        plan = guidance.guidance_schedule(options, times, layers)
        assert len(plan.branches) == len(times)
        starts.append(float(times[0]))
    assert starts[0] == 1.0
    assert all(start < 1 for start in starts[1:])  # the second pass starts from the first's video


def test_the_13b_model_guides_as_released():
    """The indices into the seven-entry lists that the released code arrives at."""
    cfg = config.load(str(FOLDER / "sample/ltxv_13b_0_9_8_dev.py"))
    raw = RELEASES[cfg.checkpoint].config
    times = flow.inference_times(
        official_config.scheduler(raw["scheduler"]), 6144, num_inference_steps=30, skip_final=3
    )
    plan = guidance.guidance_schedule(cfg, times, 48)
    index = [0, 1, 1, 2, 2, *[3] * 5, *[4] * 4, *[5] * 5, *[6] * 8]
    np.testing.assert_array_equal(
        np.asarray(plan.scales.cfg), np.asarray(cfg.guidance_scale, np.float32)[index]
    )


def test_the_model_that_ships_is_sampled_as_it_is_measured():
    cfg = config.load(str(FOLDER / "sample/shapes.py"))
    for field in dataclasses.fields(SamplingConfig):
        assert getattr(cfg, field.name) == getattr(world_table.OPTIONS, field.name), field.name
