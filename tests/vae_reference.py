"""What the Video-VAE's tests share: configs, and the weights of other Video-VAEs as ours."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from golden_weights import golden_tensor
from quick import compiled

from ltx_jax.config import BlockConfig, VAEConfig
from ltx_jax.models.vae import VideoVAE
from ltx_jax.runtime import sharding

TIMES = np.array([0.05, 0.3], np.float32)
# Outputs are of order 1 to 4, of networks of up to twenty float32 convolutions, summed in another
# order by each library; differences of 7e-6 were seen.
TOLERANCE = 3e-5


def channels_last(x):
    return np.moveaxis(np.asarray(x), 1, -1)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def shapes(tree):
    return jax.tree.map(lambda x: tuple(x.shape), tree)


def encoder(cfg):
    model = VideoVAE(cfg)
    return compiled(lambda params, video: model.apply({"params": params}, video, method="encode"))


def decoder(cfg):
    """`maps` are the noise maps in order; none of them, no noise."""
    model = VideoVAE(cfg)

    def decode(params, latents, time, maps=()):
        def noise(index, size):
            assert maps[index].shape[-2:] == size
            return maps[index]

        kwargs = dict(noise=noise if maps else None, method="decode")
        return model.apply({"params": params}, latents, time, **kwargs)

    return compiled(decode)


def res(layers, **options):
    return BlockConfig("res_x", layers, **options)


def tiny(encoder_blocks, decoder_blocks, **options):
    widths = dict(latent_channels=8, encoder_base_channels=8, decoder_base_channels=8)
    return VAEConfig(tuple(encoder_blocks), tuple(decoder_blocks), **{**widths, **options})


DOWN, WIDER = BlockConfig("compress_all"), BlockConfig("res_x_y")
UP = BlockConfig("compress_all", multiplier=2, residual=True)
FIRST = [res(2), DOWN, WIDER, res(1), DOWN, WIDER, res(1), DOWN, res(1), res(2)]
LAST = [
    *(res(1), BlockConfig("compress_space_res"), res(2), BlockConfig("compress_time_res"), res(1)),
    *(BlockConfig("compress_all_res"), res(1), BlockConfig("compress_all_res"), res(1)),
]
NOISY = [res(1, inject_noise=True), UP, res(2, inject_noise=True), UP, res(1, inject_noise=True)]

# The three released families at tiny widths, with the arguments of diffusers' class beside them.
FAMILIES = {
    "0.9.0": (
        tiny(FIRST, FIRST),
        dict(
            block_out_channels=(8, 16, 32, 32),
            decoder_block_out_channels=(8, 16, 32, 32),
            layers_per_block=(2, 1, 1, 1, 2),
            decoder_layers_per_block=(2, 1, 1, 1, 2),
        ),
    ),
    "0.9.1": (
        tiny(FIRST, [*NOISY, UP, res(2)], timestep_conditioning=True),
        dict(
            block_out_channels=(8, 16, 32, 32),
            decoder_block_out_channels=(16, 32, 64),
            layers_per_block=(2, 1, 1, 1, 2),
            decoder_layers_per_block=(1, 2, 1, 2),
            decoder_spatio_temporal_scaling=(True,) * 3,
            decoder_inject_noise=(True, True, True, False),
            upsample_residual=(True,) * 3,
            upsample_factor=(2,) * 3,
            timestep_conditioning=True,
        ),
    ),
    "0.9.5": (
        tiny(LAST, [res(1), UP] * 3 + [res(1)], timestep_conditioning=True),
        dict(
            block_out_channels=(8, 16, 32, 64, 128),
            down_block_types=("LTXVideo095DownBlock3D",) * 4,
            decoder_block_out_channels=(16, 32, 64),
            layers_per_block=(1, 2, 1, 1, 1),
            decoder_layers_per_block=(1,) * 4,
            spatio_temporal_scaling=(True,) * 4,
            decoder_spatio_temporal_scaling=(True,) * 3,
            decoder_inject_noise=(False,) * 4,
            downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
            upsample_residual=(True,) * 3,
            upsample_factor=(2,) * 3,
            timestep_conditioning=True,
        ),
    ),
}


def _groups(kind, sampler, count, last):
    """diffusers' places of blocks that alternate with resampling."""
    return [p for i in range(count) for p in (f"{kind}.{i}", f"{kind}.{i}.{sampler}.0")] + last


# Where diffusers keeps the blocks that the checkpoints number 0, 1, 2, ...
_OLD_ENCODER = [
    *("down_blocks.0", "down_blocks.0.downsamplers.0", "down_blocks.0.conv_out"),
    *("down_blocks.1", "down_blocks.1.downsamplers.0", "down_blocks.1.conv_out"),
    *("down_blocks.2", "down_blocks.2.downsamplers.0", "down_blocks.3", "mid_block"),
]
_OLD_DECODER = [
    *("mid_block", "up_blocks.0", "up_blocks.1.upsamplers.0", "up_blocks.1"),
    *("up_blocks.2.conv_in", "up_blocks.2.upsamplers.0", "up_blocks.2"),
    *("up_blocks.3.conv_in", "up_blocks.3.upsamplers.0", "up_blocks.3"),
]
_NEW_ENCODER = _groups("down_blocks", "downsamplers", 4, ["mid_block"])
_NEW_DECODER = ["mid_block"] + [
    p for i in range(3) for p in (f"up_blocks.{i}.upsamplers.0", f"up_blocks.{i}")
]
_PLACES = {
    "0.9.0": (_OLD_ENCODER, _OLD_DECODER),
    "0.9.1": (_OLD_ENCODER, _NEW_DECODER),
    "0.9.5": (_NEW_ENCODER, _NEW_DECODER),
}


def official_key(key, family):
    """The official name of a tensor of diffusers' VAE."""
    encoder, decoder = _PLACES[family]
    places = {f"encoder.{place}.": f"encoder.down_blocks.{i}." for i, place in enumerate(encoder)}
    places |= {f"decoder.{place}.": f"decoder.up_blocks.{i}." for i, place in enumerate(decoder)}
    for place in sorted(places, key=len, reverse=True):
        if key.startswith(place):
            key = places[place] + key.removeprefix(place)
            break
    key = re.sub(r"^decoder\.(time_embedder|scale_shift_table)", r"decoder.last_\1", key)
    key = key.replace("resnets", "res_blocks").replace("conv_shortcut.conv", "conv_shortcut")
    return key


def our_parameters(state):
    """A nested dict of our layout from tensors under official names."""
    tree = {}
    for key, value in state.items():
        key = re.sub(r"(conv\w*)\.conv\.(weight|bias)$", r"\1.\2", key)
        key = re.sub(r"(norm\w*)\.norm\.(weight|bias)$", r"\1.\2", key)
        key = key.replace("timestep_embedder.", "").replace("to_out.0", "to_out")
        *path, leaf = re.sub(r"(blocks)\.(\d+)", r"\1_\2", key).split(".")
        value = np.asarray(value, np.float32)
        if leaf == "weight" and value.ndim == 5:
            leaf, value = "kernel", value.transpose(2, 3, 4, 1, 0)
        elif leaf == "weight":
            leaf, value = ("kernel", value.T) if value.ndim == 2 else ("scale", value)
        elif leaf.startswith("per_channel_scale"):
            value = value.reshape(-1)
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        node[leaf] = jnp.asarray(value)
    return tree


def initial_shapes(cfg):
    """Our parameters as shapes, without computing any."""
    size = cfg.patch_size * 2 ** len(cfg.encoder_blocks)  # divisible by every stride
    video = jax.ShapeDtypeStruct((1, 1, size, size, cfg.in_channels), jnp.float32)
    return sharding.unbox(jax.eval_shape(VideoVAE(cfg).init, jax.random.key(0), video))["params"]


def drawn_parameters(cfg):
    """Every parameter of a config drawn at random, biases, gains and tables too."""

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        name = re.sub(r"\.scale$", ".weight", name)
        if leaf.ndim < 2 or name.endswith("table"):
            return jnp.asarray(golden_tensor(name, leaf.shape))
        flat = golden_tensor(name, (leaf.shape[-1], math.prod(leaf.shape[:-1])))
        return jnp.asarray(flat.T.reshape(leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, initial_shapes(cfg))
