"""Fits the map from a checkpoint's latents to colours, and stores it beside the checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from ltx_jax import metrics, pixels
from ltx_jax.checkpoints import beside, latent_colours_file
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import BucketConfig, DataConfig, ExecutionConfig
from ltx_jax.data.loader import Loader
from ltx_jax.inference import encode_decode
from ltx_jax.models import convolution
from ltx_jax.models.latent_colours import as_pictures, colour_targets, fit_colours
from ltx_jax.models.vae import LatentStatistics, check_video_shape
from ltx_jax.runtime.compiled import Programs

_SEED = 0  # of the clips


def fit(
    checkpoint: str,
    *,
    data: str = "shapes",
    clips: int = 64,
    num_frames: int = 25,
    height: int = 128,
    width: int = 128,
    side: int = 4,
    output: Path | None = None,
) -> None:
    """Fits the map, writes it, and prints the PSNR of pictures of clips that it was not fitted to.

    Args:
      checkpoint: anything that `--checkpoint` of ltx-sample takes.
      data: source of the clips, as in `DataConfig`.
      clips: their number, at least 8; an eighth of them is held out.
      num_frames: frames of each clip.
      height: rows of each clip.
      width: columns of each clip.
      side: pixels per latent, along height and along width.
      output: the file to write; None stores the map beside the checkpoint.

    Raises:
      ValueError: if there is no VAE, no such clips, or a size does not fit.
    """
    if clips < 8:
        raise ValueError(f"--clips {clips} is too few: take 8 or more")
    loaded = load_checkpoint(checkpoint, networks=("vae",))
    vae = loaded.vae
    if vae is None:
        raise ValueError(f"{checkpoint} holds no VAE")
    bucket = BucketConfig(num_frames, height, width, batch_size=1)
    check_video_shape(vae, (1, num_frames, height, width, vae.in_channels))
    pairs = [
        (z, colour_targets(frames, side, vae.temporal_factor, vae.spatial_factor))
        for z, frames in _encoded(loaded, data, bucket, clips)
    ]
    latents, targets = (np.concatenate(part) for part in zip(*pairs, strict=True))
    held_out = clips // 8
    inputs, outputs = (x[held_out:].reshape(-1, x.shape[-1]) for x in (latents, targets))
    colours = fit_colours(inputs, outputs, side)
    wanted = as_pictures(targets[:held_out], side)
    ratio = metrics.psnr(colours.pictures(latents[:held_out]), wanted)
    file = beside.place(checkpoint, latent_colours_file.NAME) if output is None else output
    latent_colours_file.write(file, colours)
    print(f"{file}: PSNR {np.mean(np.asarray(ratio)):.2f} dB on {held_out} clips held out")


def _encoded(
    checkpoint: Checkpoint, source: str, bucket: BucketConfig, clips: int
) -> Iterator[tuple[Float[np.ndarray, "1 t h w c"], UInt8[np.ndarray, "1 t2 h2 w2 3"]]]:
    """The normalised latents and the frames of clips, one by one."""
    assert checkpoint.vae is not None
    statistics = checkpoint.statistics
    if statistics is None:
        statistics = LatentStatistics.identity(checkpoint.vae.latent_channels)
    programs = Programs(convolution.compiler_options())
    loader = Loader(DataConfig(source=source, buckets=(bucket,)), (("none", 1.0),), _SEED)
    for batch in loader.batches(0, clips):
        if batch.frames is None:
            raise ValueError(f"{source} holds latents, and the map is fitted to clips")
        posterior = programs(
            encode_decode.encode,
            checkpoint.vae_params,
            jnp.asarray(pixels.from_bytes(batch.frames)),
            cfg=checkpoint.vae,
            execution=ExecutionConfig(),
        )
        yield np.asarray(statistics.normalize(posterior.mode())), batch.frames
