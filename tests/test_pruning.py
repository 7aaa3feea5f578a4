"""Pruned decoders: exact where the channels that are dropped repeat others, and close elsewhere."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import compiled
from tiny_checkpoint import random_parameters

from ltx_jax.config import BlockConfig, VAEConfig
from ltx_jax.models.vae import VideoVAE
from ltx_jax.training.vae import pruning
from ltx_jax.training.vae.loss import DecoderInputs
from ltx_jax.training.warm_start import flat_tensors, nested_tensors

# The decoder's blocks, the last first.
CONDITIONED = VAEConfig(
    encoder_blocks=(BlockConfig("compress_all"),),
    decoder_blocks=(
        BlockConfig("res_x"),
        BlockConfig("compress_all", multiplier=2, residual=True),
        BlockConfig("res_x", num_layers=2, inject_noise=True),
    ),
    latent_channels=6,
    patch_size=2,
    encoder_base_channels=4,
    decoder_base_channels=8,
    timestep_conditioning=True,
)
PLAIN = dataclasses.replace(
    CONDITIONED,
    decoder_blocks=(
        BlockConfig("res_x"),
        BlockConfig("compress_all"),
        BlockConfig("res_x_y"),
        BlockConfig("compress_all", multiplier=1, residual=True),
        BlockConfig("res_x", num_layers=2),
    ),
    timestep_conditioning=False,
    causal_decoder=True,
)


def wider(cfg):
    return dataclasses.replace(cfg, decoder_base_channels=2 * cfg.decoder_base_channels)


def doubled(cfg, params, seed=0):
    """Parameters of the decoder of twice the width that computes the same: every channel of every
    stream is there twice, in random order."""
    draw = np.random.default_rng(seed)
    layers, narrow = pruning._layers(cfg), dict(flat_tensors(params["decoder"]))
    widths = {x.source: narrow[f"{p}/kernel"].shape[-2] for p, x in layers.items()}
    of = {name: draw.permutation(np.repeat(np.arange(n), 2)) for name, n in widths.items()}
    of |= {None: np.arange(cfg.latent_channels), "pixels": np.arange(3 * cfg.patch_size**2)}
    wide = {}
    for path, layer in layers.items():
        ins, outs, cell = of[layer.source], of[layer.target or "pixels"], layer.cell
        columns = (outs[:, None] * cell + np.arange(cell)).reshape(-1)
        share = np.bincount(ins)[ins][:, None]
        kernel = narrow[f"{path}/kernel"][..., ins, :][..., columns] / share
        if layer.residual:  # the same stream comes out: what is added differs
            frame, n, m = kernel[layer.tap, 1, 1], widths[layer.source] // cell, len(ins) // cell
            for j, k in np.ndindex(len(outs), cell):
                old = outs[j] % n * cell + k
                frame[:, j * cell + k] += (ins == old) / 2
                frame[j % m * cell + k, j * cell + k] -= 1
        wide[f"{path}/kernel"], wide[f"{path}/bias"] = kernel, narrow[f"{path}/bias"][columns]
    for path, value in narrow.items():
        block, _, name = path.rpartition("/")
        if path in wide:
            continue
        if "embedder" in path:
            inner = np.tile(np.arange(narrow_width(narrow, path)), 2)
            rows = rows_of(layers, path)
            n = value.shape[-1] // len(rows)
            outputs = np.concatenate([i * n + of[row] for i, row in enumerate(rows)])
            if "linear_1" in path:
                value = value[..., inner]
            else:
                value = value[inner] / 2 if name == "kernel" else value
                value = value[..., outputs]
        elif name == "scale_shift_table":
            first, second = (of[layers[f"{block}/conv{i}"].source] for i in (1, 2))
            value = np.concatenate([value[:2, first], value[2:, second]])
        elif name == "last_scale_shift_table":
            value = value[:, of[layers["conv_out"].source]]
        elif name.startswith("per_channel_scale"):
            value = value[of[layers[f"{block}/conv{name[-1]}"].target]]
        elif "norm3" in path:
            value = value[of[layers[f"{block.rpartition('/')[0]}/conv1"].source]]
        wide[path] = value
    wide = {path: np.asarray(value, np.float32) for path, value in wide.items()}
    return {**params, "decoder": nested_tensors(wide)}


def narrow_width(narrow, path):
    return narrow[path.rpartition("/linear_")[0] + "/linear_1/bias"].shape[0]


def rows_of(layers, path):
    block = path.rpartition("/linear_")[0].rpartition("/")[0]
    if not block:
        return [layers["conv_out"].source] * 2
    return [layers[f"{block}/res_blocks_0/conv{i}"].source for i in (1, 1, 2, 2)]


@compiled(static_argnames="cfg")
def decode(params, inputs, *, cfg):
    arguments = inputs.latents, inputs.times, inputs.maps()
    return VideoVAE(cfg).apply({"params": params}, *arguments, method="decode")


@functools.cache
def example(cfg):
    """A narrow network, the same twice as wide, and inputs of both."""
    narrow = random_parameters(VideoVAE(cfg), jnp.zeros((1, 1, 16, 16, 3)))
    # Rich embeddings: of random times, at the scale of trained ones.
    if cfg.timestep_conditioning:
        narrow["decoder"]["timestep_scale_multiplier"] = np.float32(1000)
    z = np.random.default_rng(1).standard_normal((3, 3, 6, 6, cfg.latent_channels))
    times = jnp.array([0.0, 0.1, 0.2])
    keys = jax.random.split(jax.random.key(2), 3)
    inputs = DecoderInputs(jnp.asarray(z, jnp.float32), times, keys)
    return narrow, doubled(cfg, narrow), inputs


def error(cfg, pruned, want, inputs, params):
    got = decode({**params, "decoder": pruned.decoder}, inputs, cfg=cfg)
    return float(jnp.sqrt(jnp.mean((got - want) ** 2) / jnp.mean(want**2)))


@pytest.mark.thorough
@pytest.mark.parametrize("cfg", [CONDITIONED, PLAIN], ids=["conditioned", "plain"])
def test_a_decoder_whose_channels_repeat_is_pruned_without_loss(cfg):
    narrow, wide, inputs = example(cfg)
    want = decode(wide, inputs, cfg=wider(cfg))
    np.testing.assert_allclose(want, decode(narrow, inputs, cfg=cfg), atol=2e-4)  # as constructed
    pruned = pruning.prune_decoder(wider(cfg), wide, cfg, inputs)
    # The refit solves for each kernel in float64, and rounds it; the bound is for all layers.
    assert error(cfg, pruned, want, inputs, narrow) < 1e-4
    for name, matrix in pruned.projections.items():
        assert np.allclose(matrix.sum(0), 1, atol=1e-3), name  # each channel is one that stays


@pytest.mark.thorough
def test_pivots_lose_less_than_a_random_choice_and_than_slicing_alone():
    narrow, wide, inputs = example(CONDITIONED)
    want = decode(wide, inputs, cfg=wider(CONDITIONED))
    draw = np.random.default_rng(3)

    def at_random(activations, count):
        return np.sort(draw.choice(activations.shape[1], count, replace=False))

    pruned = pruning.prune_decoder(wider(CONDITIONED), wide, CONDITIONED, inputs, at_random)
    assert error(CONDITIONED, pruned, want, inputs, narrow) > 0.1


def test_pivots_are_independent_channels():
    draw = np.random.default_rng(0)
    basis = draw.standard_normal((200, 3))
    columns = np.concatenate([basis, 0.5 * basis, basis @ draw.standard_normal((3, 2))], axis=1)
    kept = pruning.leading_channels(columns, 3)
    assert np.linalg.matrix_rank(columns[:, kept]) == 3
    assert list(kept) == sorted(kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 5}, "latent_channels is 5, and 6 in the VAE"),
        ({"decoder_base_channels": 32}, "decoder_base_channels is 32, more than the VAE's 16"),
        ({"decoder_blocks": CONDITIONED.decoder_blocks[1:]}, "decoder_blocks is"),
    ],
)
def test_only_the_width_may_differ(changes, message):
    with pytest.raises(ValueError, match=message):
        pruning.check_prunable(wider(CONDITIONED), dataclasses.replace(CONDITIONED, **changes))


def test_attention_cannot_be_pruned():
    blocks = (BlockConfig("attn_res_x", attention_head_dim=4),)
    cfg = dataclasses.replace(CONDITIONED, decoder_blocks=blocks)
    with pytest.raises(ValueError, match="attn_res_x"):
        pruning.check_prunable(wider(cfg), cfg)
