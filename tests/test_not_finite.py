"""NaN and infinity never become a video: each place that writes pixels or latents says where they
came from, and writes nothing."""

import dataclasses
import functools
import logging

import golden_traces
import jax
import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint, write_exported, write_upsampler
from tiny_stages import load, one_device, tiny_vae

from ltx_jax import sample
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import ExecutionConfig, SamplingConfig
from ltx_jax.demo.studio import Studio
from ltx_jax.diffusion.conditioning import Condition
from ltx_jax.evaluate import autoencoder
from ltx_jax.inference import make_videos, two_pass
from ltx_jax.inference.encode_decode import NotFiniteError
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.inference.two_pass import Upsampler
from ltx_jax.runtime import sharding
from ltx_jax.training.state import TrainState
from ltx_jax.training.transformer.stage import TransformerStage
from ltx_jax.training.vae.stage import VAEStage
from ltx_jax.world import render

OPTIONS = SamplingConfig(
    height=64, width=96, num_frames=17, num_inference_steps=1, guidance_scale=1.0, stg_scale=0.0
)
EMBEDDINGS = dict(
    prompt_embeds=np.random.default_rng(0).standard_normal((1, 3, 32), np.float32),
    prompt_mask=np.ones((1, 3), np.int32),
)


def spoilt(params, *path):
    """The parameters with one number that is NaN, in the leaf at a path."""
    leaf = np.array(functools.reduce(lambda tree, name: tree[name], path, params))
    leaf.flat[0] = np.nan

    def replaced(tree, path):
        return leaf if not path else tree | {path[0]: replaced(tree[path[0]], path[1:])}

    return replaced(params, path)


def golden_pipe(**changes):
    made = LTXPipeline(dataclasses.replace(golden_traces.checkpoint(), **changes), dtype="float32")
    made.programs = golden_traces.pipeline().programs
    return made


@pytest.mark.thorough
def test_the_error_names_the_place_where_numbers_stopped_being_finite():
    checkpoint = golden_traces.checkpoint()
    transformer, vae = checkpoint.transformer_params, checkpoint.vae_params
    call = dict(embeddings=EMBEDDINGS)
    still = dict(conditions=[Condition(np.zeros((64, 96, 3), np.float32))])
    nan_text = {name: value.copy() for name, value in EMBEDDINGS.items()}
    nan_text["prompt_embeds"][0, 1, 2] = np.inf
    of_network = golden_pipe(transformer_params=spoilt(transformer, "proj_out", "bias"))
    of_decoder = golden_pipe(vae_params=spoilt(vae, "decoder", "conv_out", "bias"))
    of_encoder = golden_pipe(vae_params=spoilt(vae, "encoder", "conv_in", "bias"))
    whole = golden_pipe()
    for pipe, arguments, place in [
        (of_network, call, "the latents after denoising"),
        (of_decoder, call, "the decoded pixels"),
        (of_encoder, call | still, "the noise, conditions and input, as latents,"),
        (whole, dict(embeddings=nan_text), "the embeddings of the prompt"),
    ]:
        for output in ("uint8", "float"):
            with pytest.raises(NotFiniteError, match=f"^{place} hold NaN or infinity"):
                pipe(None, OPTIONS, output=output, **arguments)
    with pytest.raises(NotFiniteError, match=r"^the latents after denoising"):
        of_network(None, OPTIONS, output="latents", **call)
    latents = np.zeros((1, 3, 2, 3, 8), np.float32)
    latents[0, 1, 1, 1, 1] = np.nan
    with pytest.raises(NotFiniteError, match=r"^the latents to decode"):
        whole.decode(latents, OPTIONS)
    assert whole(None, OPTIONS, **call).std() > 1


@pytest.mark.thorough
def test_a_damaged_upsampler_is_named(tmp_path):
    write_upsampler(tmp_path / "upsampler.safetensors")
    upsampler = Upsampler.load(tmp_path / "upsampler.safetensors")
    broken = Upsampler(upsampler.cfg, spoilt(upsampler.params, "final_conv", "bias"))
    second = dataclasses.replace(OPTIONS, timesteps=(0.7,))
    size = dict(height=96, width=96, num_frames=9, embeddings=EMBEDDINGS)
    with pytest.raises(NotFiniteError, match=r"^the upsampled latents"):
        two_pass.sample(golden_pipe(), broken, None, OPTIONS, second_pass=second, **size)


@pytest.fixture
def damaged(tmp_path):
    """An exported model whose weights are finite, and whose decoded pixels are not."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    folder = write_exported(tmp_path / "model")
    with safe_open(folder / "model.safetensors", "np") as file:
        tensors, metadata = {n: file.get_tensor(n) for n in list(file.keys())}, file.metadata()
    [name] = [name for name in tensors if name.endswith("decoder.conv_out.conv.weight")]
    tensors[name] = np.full_like(tensors[name], 3e38)
    save_file(tensors, folder / "model.safetensors", metadata)
    return folder


@pytest.mark.thorough
def test_the_command_writes_nothing(damaged, tmp_path, capsys):
    arguments = ["--checkpoint", str(damaged), "--prompt", "a star", "--dtype", "float32"]
    out, latents = tmp_path / "out", tmp_path / "latents.npy"
    assert sample.main([*arguments, "--output_path", f"{out}", "--save_latents", f"{latents}"]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(error) == 1
    assert "the decoded pixels hold NaN or infinity" in error[0]
    assert not latents.exists()
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.thorough
def test_the_page_writes_nothing(damaged, tmp_path):
    settings = sample.parse(["--checkpoint", str(damaged), "--dtype", "float32"])
    studio = Studio(settings, tmp_path / "page", models=make_videos.load_models(settings))
    with pytest.raises(ValueError, match="the decoded pixels hold NaN"):
        studio.make("a star")
    assert not list(tmp_path.glob("page/**/*.mp4"))


@pytest.mark.thorough
def test_validation_of_a_run_says_so_and_the_run_goes_on(caplog):
    stage = TransformerStage.open(
        load("transformer", "--run.output", "/none", "--run.validation_clips", "1"),
        one_device(),
        vae=tiny_vae(),
    )
    shapes = sharding.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    params = jax.tree.map(lambda x: np.full(x.shape, np.nan, np.float32), shapes)
    with caplog.at_level(logging.WARNING):
        result = stage.validate(TrainState(*[0] * 3, params, params, {}, {}))
    assert np.isnan(result.scalars["val_loss"])
    assert result.videos == {}
    assert "hold NaN or infinity" in caplog.text


def test_validation_of_a_vae_shows_no_black_reconstruction(caplog):
    stage = VAEStage.open(load("vae", "--run.validation_clips", "1"), one_device())
    shapes = sharding.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    params = jax.tree.map(lambda x: np.full(x.shape, np.nan, np.float32), shapes)
    state = TrainState(*[0] * 3, params, params, {}, stage.first_statistics())
    with caplog.at_level(logging.WARNING):
        result = stage.validate(state)
    assert result.videos == {}
    assert "reconstruction 0: the pixels hold NaN or infinity" in caplog.text


@pytest.mark.thorough
def test_a_reconstruction_that_is_no_number_is_not_measured(tmp_path):
    write_checkpoint(tmp_path / "tiny.safetensors")
    checkpoint = load_checkpoint(str(tmp_path / "tiny.safetensors"))
    checkpoint.vae_params = spoilt(checkpoint.vae_params, "decoder", "conv_out", "bias")
    reconstruct = autoencoder.reconstructor(checkpoint, checkpoint.vae, ExecutionConfig())
    frames = render.clip(0, num_frames=9, height=64, width=64).frames[None]
    with pytest.raises(NotFiniteError, match=r"^the reconstructed pixels"):
        reconstruct(frames)
