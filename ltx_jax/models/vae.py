"""The causal Video-VAE in all released versions: encodes pixels to latents and decodes them.

It is built from the lists of blocks in a checkpoint's config (causal_video_autoencoder.py
upstream). A video of `temporal_factor * k + 1` frames becomes k + 1 latent frames, the first of
which encodes only the first frame.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Key

from ltx_jax.config import BlockConfig, ExecutionConfig, VAEConfig
from ltx_jax.models.convolution import Stride
from ltx_jax.models.layers import TimestepEmbedder
from ltx_jax.models.vae_blocks import (
    Conv,
    Downsample,
    MidBlock,
    PointConv,
    ResBlock,
    StridedConv,
    Upsample,
    make_norm,
    modulate,
    modulation,
    remat,
)
from ltx_jax.runtime.platforms import beyond_float16

# Returns the noise map of an injection, given its index in the decoder and (rows, columns).
Noise = Callable[[int, tuple[int, int]], Float[Array, "*b h w"]]

STRIDES: dict[str, Stride] = {
    "compress_time": (2, 1, 1),
    "compress_space": (1, 2, 2),
    "compress_all": (2, 2, 2),
}
_ENCODER = ("res_x", "res_x_y", *STRIDES, "compress_all_x_y", *(f"{name}_res" for name in STRIDES))
_DECODER = ("res_x", "attn_res_x", "res_x_y", *STRIDES)

LOG_VAR_RANGE = (-30.0, 20.0)
# Initial standard deviation exp(-3.5) = 0.03, so that the decoder sees a signal from the start.
LOG_VAR_BIAS = -7.0


@struct.dataclass
class Posterior:
    """A diagonal Gaussian over unnormalised latents; `logvar` has the shape of `mean`."""

    mean: Any  # (b, t, h, w, c); typed Any, since jax.eval_shape puts shapes in its place
    logvar: Any

    def sample(self, noise: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Draws a sample, using standard normal `noise`."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise

    def mode(self) -> Float[Array, "b t h w c"]:
        """The mean."""
        return self.mean


@struct.dataclass
class LatentStatistics:
    """Mean and standard deviation of every latent channel over a data set."""

    mean: Any  # (c,)
    std: Any  # (c,)

    def normalize(self, z: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Converts the VAE's latents to the normalised latents of the transformer."""
        mean, std = self._cast(z)
        return (z - mean) / std

    def denormalize(self, z: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Converts the transformer's normalised latents to those that the VAE decodes."""
        mean, std = self._cast(z)
        return z * std + mean

    @classmethod
    def identity(cls, channels: int) -> "LatentStatistics":
        """Statistics that leave latents unchanged (mean 0, standard deviation 1)."""
        return cls(jnp.zeros(channels), jnp.ones(channels))

    def _cast(self, z: Array) -> tuple[Array, Array]:
        shape = (1,) * (z.ndim - 1) + (-1,)
        return self.mean.astype(z.dtype).reshape(shape), self.std.astype(z.dtype).reshape(shape)


def key_noise(keys: Key[Array, ""] | Key[Array, " b"]) -> Noise:
    """Noise maps from one key (one map for the batch, as upstream) or from one key per sample."""

    def draw(index: int, shape: tuple[int, int]) -> Float[Array, "*b h w"]:
        def one(key: Array) -> Array:
            return jax.random.normal(jax.random.fold_in(key, index), shape)

        return one(keys) if keys.ndim == 0 else jax.vmap(one)(keys)

    return draw


def patchify(x: Float[Array, "b t h w c"], size: int) -> Float[Array, "b t h2 w2 c2"]:
    """Moves cells of size x size pixels into channels: (c*size + column)*size + row.

    The column is the slower index, unlike in `space_to_depth`.
    """
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // size, size, w // size, size, c).transpose(0, 1, 2, 4, 6, 5, 3)
    return x.reshape(b, t, h // size, w // size, c * size * size)


def unpatchify(x: Float[Array, "b t h w c"], size: int) -> Float[Array, "b t h2 w2 c2"]:
    """The inverse of `patchify`."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, c // size**2, size, size).transpose(0, 1, 2, 6, 3, 5, 4)
    return x.reshape(b, t, h * size, w * size, c // size**2)


class Encoder(nn.Module):
    """Maps pixels to unclipped mean and log-variance (b, t, h, w, 2 latent_channels)."""

    cfg: VAEConfig
    execution: ExecutionConfig = ExecutionConfig()

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 c2"]:
        cfg, execution = self.cfg, self.execution
        x = patchify(video, cfg.patch_size)
        x = Conv(cfg, execution, cfg.encoder_base_channels, causal=True, name="conv_in")(x)
        for i, block in enumerate(cfg.encoder_blocks):
            x = self._block(block, f"down_blocks_{i}", x)
        x = nn.silu(make_norm(cfg, execution, "conv_norm_out")(x))

        latent = cfg.latent_channels
        extra = {"per_channel": latent, "uniform": 1, "constant": 1, "none": 0}
        if cfg.latent_log_var not in extra:
            raise ValueError(f"latent_log_var is {cfg.latent_log_var!r}; known: {list(extra)}")

        def bias(key: Array, shape: tuple[int, ...], dtype: str) -> Array:
            return jnp.zeros(shape, dtype).at[latent:].set(LOG_VAR_BIAS)

        features = latent + extra[cfg.latent_log_var]
        x = Conv(cfg, execution, features, causal=True, bias_init=bias, name="conv_out")(x)
        x = x.astype(jnp.float32)
        mean, logvar = x[..., :latent], x[..., latent:]
        # As in the released code, "constant" has a channel for the log-variance, but ignores it.
        if cfg.latent_log_var in ("constant", "none"):
            logvar = jnp.full_like(mean, LOG_VAR_RANGE[0])
        return jnp.concatenate([mean, jnp.broadcast_to(logvar, mean.shape)], axis=-1)

    def _block(self, block: BlockConfig, name: str, x: Array) -> Array:
        cfg, execution, c = self.cfg, self.execution, x.shape[-1]
        wide = c * block.channel_multiplier
        match block.name:
            case "res_x":
                return MidBlock(cfg, execution, block, causal=True, name=name)(x)
            case "res_x_y":
                res_block = remat(ResBlock, execution)
                return res_block(cfg, execution, wide, causal=True, name=name)(x)
            case "compress_time" | "compress_space" | "compress_all":
                strided = remat(StridedConv, execution)
                return strided(cfg, execution, c, STRIDES[block.name], name=name)(x)
            case "compress_all_x_y":
                strided = remat(StridedConv, execution)
                return strided(cfg, execution, wide, (2, 2, 2), name=name)(x)
            case "compress_time_res" | "compress_space_res" | "compress_all_res":
                stride = STRIDES[block.name.removesuffix("_res")]
                downsample = remat(Downsample, execution)
                return downsample(cfg, execution, wide, stride, name=name)(x)
            case unknown:
                raise ValueError(f"the encoder has no block {unknown!r}; known: {list(_ENCODER)}")


class Decoder(nn.Module):
    """Maps unnormalised latents to pixels, conditioned on their noise level if the config says so.

    `timestep` lies in [0, 1].
    """

    cfg: VAEConfig
    execution: ExecutionConfig = ExecutionConfig()

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "b t h w c"],
        timestep: Float[Array, " b"] | None = None,
        noise: Noise | None = None,
    ) -> Float[Array, "b t2 h2 w2 c2"]:
        cfg, execution = self.cfg, self.execution
        blocks = cfg.decoder_blocks[::-1]  # the lists are written in the encoder's order
        width = cfg.decoder_base_channels * math.prod(
            b.channel_multiplier for b in blocks if b.name in ("res_x_y", *STRIDES)
        )
        time = None
        if cfg.timestep_conditioning:
            if timestep is None:
                raise ValueError("this decoder is conditioned on time: pass a timestep per sample")
            init = nn.initializers.constant(1000.0)
            multiplier = self.param("timestep_scale_multiplier", init, (), execution.param_dtype)
            # Stored like a weight, but it only converts units and is never trained.
            multiplier = jax.lax.stop_gradient(multiplier).astype(jnp.float32)
            time = timestep.astype(jnp.float32) * multiplier

        x = Conv(cfg, execution, width, cfg.causal_decoder, name="conv_in")(latents)
        first_map = 0
        for i, block in enumerate(blocks):
            maps = ()
            if block.inject_noise and block.name in ("res_x", "attn_res_x", "res_x_y"):
                count = 2 * (1 if block.name == "res_x_y" else block.num_layers)
                if noise is not None:
                    size = (x.shape[2], x.shape[3])
                    maps = tuple(noise(first_map + j, size) for j in range(count))
                first_map += count
            x = self._block(block, f"up_blocks_{i}", x, time, maps)

        x = make_norm(cfg, execution, "conv_norm_out")(x)
        if time is not None:
            dtypes = execution.dtype, execution.param_dtype
            embedder = TimestepEmbedder(2 * x.shape[-1], *dtypes, name="last_time_embedder")
            shift, scale = modulation(self, "last_scale_shift_table", embedder(time), 2)
            x = modulate(x, shift, scale)
        features = cfg.out_channels * cfg.patch_size**2
        x = Conv(cfg, execution, features, cfg.causal_decoder, name="conv_out")(nn.silu(x))
        return unpatchify(x.astype(jnp.float32), cfg.patch_size)

    def _block(
        self, block: BlockConfig, name: str, x: Array, time: Array | None, noise: tuple[Array, ...]
    ) -> Array:
        cfg, execution, c = self.cfg, self.execution, x.shape[-1]
        match block.name:
            case "res_x" | "attn_res_x":
                mid = MidBlock(
                    cfg, execution, block, cfg.causal_decoder, block.inject_noise, name=name
                )
                return mid(x, time, noise)
            case "res_x_y":
                narrow = c // block.channel_multiplier
                res_block = remat(ResBlock, execution)(
                    cfg, execution, narrow, cfg.causal_decoder, block.inject_noise, name=name
                )
                return res_block(x, None, noise)
            case "compress_time" | "compress_space":
                # The channel multiplier affects the width of conv_in only, as upstream.
                upsample = remat(Upsample, execution)
                return upsample(cfg, execution, c, STRIDES[block.name], name=name)(x)
            case "compress_all":
                narrow = c // block.channel_multiplier
                upsample = remat(Upsample, execution)(
                    cfg, execution, narrow, STRIDES[block.name], block.residual, name=name
                )
                return upsample(x)
            case unknown:
                raise ValueError(f"the decoder has no block {unknown!r}; known: {list(_DECODER)}")


class VideoVAE(nn.Module):
    """Encoder and decoder: `apply({"params": p}, x, method="encode")` or `method="decode"`.

    A plain call encodes and decodes without noise, so that `init` creates all parameters. With a
    dtype of float16 it computes in bfloat16, or in float32 where that is faster: activations of
    trained decoders reach 8e5, and the largest float16 is 65504.
    """

    cfg: VAEConfig
    execution: ExecutionConfig = ExecutionConfig()

    def setup(self):
        cfg = self.cfg
        dtype = beyond_float16(self.execution.dtype)
        execution = dataclasses.replace(self.execution, dtype=dtype)
        self.encoder = Encoder(cfg, execution)
        self.decoder = Decoder(cfg, execution)
        if cfg.use_quant_conv:
            if cfg.latent_log_var != "per_channel":
                raise ValueError(
                    f"use_quant_conv needs a per_channel latent_log_var, not {cfg.latent_log_var}"
                )
            dtypes = execution.dtype, execution.param_dtype
            self.quant_conv = PointConv(2 * cfg.latent_channels, *dtypes)
            self.post_quant_conv = PointConv(cfg.latent_channels, *dtypes)

    def encode(self, video: Float[Array, "b t h w c"]) -> Posterior:
        """Encodes pixels in [-1, 1]; mean and log-variance are float32.

        Raises:
          ValueError: if the frames, rows or columns do not fit the compression.
        """
        check_video_shape(self.cfg, video.shape)
        moments = self.encoder(video)
        if self.cfg.use_quant_conv:
            moments = self.quant_conv(moments).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, *LOG_VAR_RANGE))

    def decode(
        self,
        latents: Float[Array, "b t h w c"],
        timestep: Float[Array, " b"] | None = None,
        noise: Noise | None = None,
    ) -> Float[Array, "b t2 h2 w2 c2"]:
        """Decodes unnormalised latents to float32 pixels in about [-1, 1], unclipped.

        Args:
          latents: unnormalised latents.
          timestep: noise level of each sample in [0, 1]; ignored without timestep conditioning.
          noise: noise maps for the blocks that inject noise; None injects none.

        Raises:
          ValueError: if the channels are not the config's, or a timestep is missing.
        """
        if latents.shape[-1] != self.cfg.latent_channels:
            raise ValueError(
                f"the latents have {latents.shape[-1]} channels, this VAE has "
                f"{self.cfg.latent_channels}"
            )
        if self.cfg.use_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents, timestep, noise)

    def __call__(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 c2"]:
        return self.decode(self.encode(video).mode(), jnp.zeros(video.shape[0]))


def check_video_shape(cfg: VAEConfig, shape: tuple[int, ...]) -> None:
    """Checks that a video of shape (b, t, h, w, c) fits the encoder.

    Raises:
      ValueError: if it does not; the message names the nearest valid sizes.
    """
    _, t, h, w, c = shape
    if c != cfg.in_channels:
        raise ValueError(f"the video has {c} channels, this VAE takes {cfg.in_channels}")
    strides = [
        STRIDES[name]
        for block in cfg.encoder_blocks
        if (name := block.name.removesuffix("_res").removesuffix("_x_y")) in STRIDES
    ]
    time = math.prod(stride[0] for stride in strides)
    space = cfg.patch_size * math.prod(stride[1] for stride in strides)
    if t < 1 or (t - 1) % time:
        below = max(t - 1, 0) // time * time + 1
        raise ValueError(
            f"the video has {t} frames, and this VAE takes {time}k+1: "
            f"the nearest are {below} and {below + time}"
        )
    for name, size in (("high", h), ("wide", w)):
        if size < 1 or size % space:
            below = size // space * space
            nearest = f"{below} and {below + space}" if below else f"{space}"
            raise ValueError(
                f"the video is {size} pixels {name}, and this VAE takes multiples of {space}: "
                f"the nearest are {nearest}"
            )
