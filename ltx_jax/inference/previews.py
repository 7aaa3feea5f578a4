"""Pictures of videos while they are denoised, from the data that each step predicts."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float, UInt8

from ltx_jax.diffusion.sampler import Inputs, Progress
from ltx_jax.diffusion.solver import predicted_data
from ltx_jax.models.latent_colours import LatentColours
from ltx_jax.runtime import sharding

# Receives the pictures (b, t, h, w, 3) of every video, one per latent frame, after each step.
ShowPreview = Callable[[Progress, UInt8[np.ndarray, "b t h w 3"]], None]


def with_preview(
    callback: Callable[[Progress], None] | None,
    preview: ShowPreview | None,
    colours: LatentColours | None,
    inputs: Inputs,
    grid: tuple[int, int, int],
) -> Callable[[Progress], None] | None:
    """The callback of the denoising loop that also shows previews, if they are asked for.

    Args:
      callback: called after each step, after the preview.
      preview: receives the pictures; None leaves the callback as it is.
      colours: as in `Previews`.
      inputs: as in `Previews`.
      grid: as in `Previews`.

    Raises:
      ValueError: if there is no map from latents to colours.
    """
    if preview is None:
        return callback
    if colours is None:
        raise ValueError(
            "this checkpoint has no map from latents to colours, which previews need: fit one by "
            "ltx-preview CHECKPOINT (or ltx-preview VAE, if another VAE is named)"
        )
    pictures = Previews(colours, inputs, grid)

    def both(progress: Progress) -> None:
        preview(progress, pictures(progress))
        if callback is not None:
            callback(progress)

    return both


def enlarged(
    pictures: UInt8[np.ndarray, "t h w 3"], side: int = 192
) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Repeats pixels until the shorter side has `side` of them or a few more."""
    times = -(-side // min(pictures.shape[1:3]))
    return pictures.repeat(times, axis=1).repeat(times, axis=2)


class Previews:
    """Turns the progress of a run into pictures.

    Args:
      colours: the map from latents to colours.
      inputs: the inputs of the denoising loop.
      grid: latent frames, rows and columns of the videos.
    """

    def __init__(self, colours: LatentColours, inputs: Inputs, grid: tuple[int, int, int]):
        self._colours, self._grid = colours, grid
        self._times = [*np.asarray(inputs.times).tolist(), 0.0]
        self._before = self._video(inputs.start)

    def __call__(self, progress: Progress) -> UInt8[np.ndarray, "b t h w 3"]:
        """The pictures after a step; must be called once for every step."""
        after = self._video(progress.tokens)
        time, target = self._times[progress.step - 1 : progress.step + 1]
        data = self._video(predicted_data(self._before, after, time, target, progress.memory))
        self._before = after
        return self._colours.pictures(data.reshape(len(data), *self._grid, -1))

    def _video(self, tokens: Array | Float[np.ndarray, "b n c"]) -> Float[np.ndarray, "b m c"]:
        """The tokens of the videos, without those of conditions in front of them."""
        whole = tokens if isinstance(tokens, np.ndarray) else sharding.on_host(tokens)
        return np.array(whole[:, -math.prod(self._grid) :])
