"""A checkpoint and text encoders so small that a test makes them in a second."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from golden_weights import golden_state_dict
from safetensors.numpy import save_file

from ltx_jax.checkpoints import exported_folder, official
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import (
    BlockConfig,
    SamplingConfig,
    SchedulerConfig,
    T5Config,
    TransformerConfig,
    VAEConfig,
)
from ltx_jax.inference.text_encoder import ByteTokenizer, TextEncoder
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.models.transformer import Context, Transformer
from ltx_jax.models.vae import LatentStatistics, VideoVAE
from ltx_jax.runtime import sharding

CHANNELS, CAPTION = 8, 16  # of the latents; width of the caption embeddings


def random_parameters(module, *arguments):
    """Parameters of a network without compiling its initialiser."""

    def init(*arguments):
        return sharding.unbox(module.init(jax.random.key(0), *arguments))["params"]

    draw = np.random.default_rng(0)

    def fill(leaf):
        value = draw.standard_normal(leaf.shape) / max(np.prod(leaf.shape[:-1]), 1) ** 0.5
        return value.astype(np.float32)

    return jax.tree.map(fill, jax.eval_shape(init, *arguments))


@functools.cache
def tiny_checkpoint(with_vae):
    """A checkpoint with a VAE of 32 x 32 x 8 pixels per latent, or without one."""
    cfg = TransformerConfig(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        caption_channels=CAPTION,
    )
    down = (BlockConfig("compress_all"),) * 3
    vae = VAEConfig(
        encoder_blocks=down,
        decoder_blocks=down,
        latent_channels=CHANNELS,
        encoder_base_channels=8,
        decoder_base_channels=8,
        timestep_conditioning=True,
    )
    tokens, pairs = jnp.zeros((1, 4, CHANNELS)), jnp.zeros((1, 4, cfg.width // 2))
    caption = jnp.zeros((1, 3, CAPTION))
    arguments = (tokens, jnp.zeros((1, 1)), Context(caption, None, (pairs, pairs)))
    pixels = jnp.zeros((1, 9, 32, 32, 3))
    checkpoint = Checkpoint(
        transformer=cfg,
        transformer_params=random_parameters(Transformer(cfg), *arguments),
        scheduler=SchedulerConfig(sampler="LinearQuadratic"),
    )
    if with_vae:
        checkpoint.vae = vae
        checkpoint.vae_params = random_parameters(VideoVAE(vae), pixels)
        checkpoint.statistics = LatentStatistics(np.zeros(CHANNELS, "f"), np.ones(CHANNELS, "f"))
    return checkpoint


def write_checkpoint(path, with_vae=True):
    """Writes the checkpoint as an official file."""
    official.write(path, tiny_checkpoint(with_vae))


def write_upsampler(path):
    """Writes the golden upsampler of rows and columns, which takes latents of 8 channels."""
    with np.load(pathlib.Path(__file__).parent / "golden/upsampler_spatial_tiny.npz") as arrays:
        values = golden_state_dict(json.loads(str(arrays["shapes"])))
        save_file(values, path, {"config": str(arrays["config"])})


@functools.cache
def tiny_text_encoder(width):
    """A T5 of a given width over bytes."""
    cfg = T5Config(vocab_size=384, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ids = jnp.zeros((1, 4), jnp.int32)
    return TextEncoder(ByteTokenizer(), cfg, random_parameters(T5Encoder(cfg), ids, ids), 16)


def write_text_encoder(path, width):
    """Writes the text encoder of a given width in the layout of transformers."""
    tiny_text_encoder(width).save(path)


SETTINGS = SamplingConfig(
    negative_prompt="",
    num_frames=9,
    height=32,
    width=64,
    frame_rate=8.0,
    num_inference_steps=2,
    guidance_scale=2.0,
    stg_scale=0.0,
)


def write_exported(folder, **settings):
    """Writes what `ltx_jax.export` makes of a run: model, text encoder and settings."""
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder / exported_folder.MODEL)
    write_text_encoder(folder, CAPTION)
    exported_folder.write_settings(folder, dataclasses.replace(SETTINGS, **settings))
    return folder
