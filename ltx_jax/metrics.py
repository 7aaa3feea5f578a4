"""Metrics of the similarity of videos, and the confidence interval of a proportion.

Videos are uint8, or floats in [-1, 1], as numpy or JAX arrays, also inside a jitted function.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Shaped

from ltx_jax import pixels

Videos = Shaped[Array | np.ndarray, "b t h w c"]

_PEAK = 2.0  # from the darkest value to the brightest
_MIN_ERROR = _PEAK**2 * 1e-10  # mean squared error that limits the PSNR to 100 dB
_WINDOW, _SIGMA = 11, 1.5  # of SSIM, in pixels
_FRAMES_AT_ONCE = 8
_SUBSETS = 24  # from which a Frechet distance is extrapolated


def psnr(videos: Videos, originals: Videos) -> Float[Array, " b"]:
    """Peak signal-to-noise ratio of each clip in dB, from the mean squared error of all its values.

    Limited to 100, the value for equal clips.
    """
    error = _centred(videos) - _centred(originals)
    mean = jnp.mean(error * error, axis=(1, 2, 3, 4))
    return 10 * jnp.log10(_PEAK**2 / jnp.maximum(mean, _MIN_ERROR))


@jax.jit
def ssim(videos: Videos, originals: Videos) -> Float[Array, " b"]:
    """Structural similarity of each clip: the mean over its frames and their channels.

    Wang et al. 2004: Gaussian windows of 11 x 11 pixels with deviation 1.5, K1 = 0.01, K2 = 0.03;
    only windows inside the frame count.

    Raises:
      ValueError: if a frame is smaller than a window.
    """
    b, t, h, w, c = videos.shape
    if min(h, w) < _WINDOW:
        raise ValueError(f"SSIM needs frames of {_WINDOW} x {_WINDOW} pixels, got {h} x {w}")
    pairs = tuple(x.reshape(b * t, h, w, c) for x in (videos, originals))
    per_frame = jax.lax.map(lambda pair: _frame_ssim(*pair), pairs, batch_size=_FRAMES_AT_ONCE)
    return jnp.mean(per_frame.reshape(b, t), axis=1)


def _frame_ssim(x: Array, y: Array) -> Array:
    x, y = _centred(x), _centred(y)
    mean_x, mean_y = _smooth(x), _smooth(y)
    var_x = _smooth(x * x) - mean_x * mean_x
    var_y = _smooth(y * y) - mean_y * mean_y
    covariance = _smooth(x * y) - mean_x * mean_y
    # The formula assumes values >= 0; the shift from [-1, 1] affects the means only.
    mean_x, mean_y = mean_x + _PEAK / 2, mean_y + _PEAK / 2
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return jnp.mean(luminance * (2 * covariance + c2) / (var_x + var_y + c2))


def _smooth(frame: Array) -> Array:
    """Gaussian means over all windows inside the frame (h, w, c)."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    taps = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    taps = (taps / taps.sum()).tolist()
    for axis in (0, 1):
        size = frame.shape[axis] - _WINDOW + 1
        shifted = (jax.lax.slice_in_dim(frame, i, i + size, axis=axis) for i in range(_WINDOW))
        frame = sum(tap * part for tap, part in zip(taps, shifted, strict=True))  # pyright: ignore[reportAssignmentType]
    return frame


def _centred(video: Array | np.ndarray) -> Array:
    """Values in [-1, 1] as float32."""
    values = jnp.asarray(video)
    return pixels.from_bytes(values) if video.dtype == jnp.uint8 else values.astype(jnp.float32)


def edge_agreement(
    edges: Bool[np.ndarray, "t h w"], others: Bool[np.ndarray, "t h w"], distance: int = 1
) -> float:
    """How well the edges of two clips agree in place, from 0 to 1: the F-measure of boundary
    detection (Martin et al. 2004), over all frames.

    It is the harmonic mean of two shares: edges that have one of the other clip within `distance`
    pixels, across and down, in the same frame; and the same with the clips swapped. NaN if neither
    clip has edges.
    """
    from scipy import ndimage

    def share(these: np.ndarray, those: np.ndarray) -> float:
        side = 2 * distance + 1
        near = ndimage.maximum_filter(those, (1, side, side), mode="constant")
        return float(near[these].mean()) if these.any() else 0.0

    if not edges.any() and not others.any():
        return math.nan
    both = share(edges, others), share(others, edges)
    return 2 * both[0] * both[1] / sum(both) if sum(both) else 0.0


def flat_energy(frames: Shaped[np.ndarray, "t h w c"]) -> float:
    """Fraction of a clip's energy outside the mean (DC) of its frames, in [0, 1].

    It measures the reconstruction of a flat colour: 0 is perfectly flat; the faintest grid from a
    decoder's strides makes it larger. Black has no energy, so the result for a black clip is 0.
    """
    values = (np.asarray(_centred(frames), np.float64) + 1) / 2
    energy = np.abs(np.fft.fft2(values, axes=(1, 2))) ** 2
    total = energy.sum()
    flat = energy[:, 0, 0].sum()
    return float((total - flat) / total) if total > 0 else 0.0


def frechet_distance(
    features: Float[np.ndarray, "n d"], originals: Float[np.ndarray, "m d"]
) -> float:
    """Frechet distance between Gaussians fitted to two sets of features, in float64.

    |mean difference|^2 + trace(A + B - 2 (A B)^(1/2)) with the covariances A and B: FID, or FVD if
    the features describe clips. It is biased upwards, strongly so for sets smaller than d.

    Raises:
      ValueError: for sets of fewer than two features, which have no covariance.
    """
    if min(len(features), len(originals)) < 2:
        raise ValueError(
            f"a Frechet distance needs two clips or more, got {len(features)} and {len(originals)}"
        )
    (mean_a, root_a), (mean_b, root_b) = _gaussian(features), _gaussian(originals)
    # With A = R^T R and B = S^T S, trace (A B)^(1/2) is the sum of the singular values of R S^T.
    # Unlike a matrix square root, it stays real and exact if A and B are singular.
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    spread = (root_a**2).sum() + (root_b**2).sum() - 2 * cross
    return float(max(((mean_a - mean_b) ** 2).sum() + spread, 0.0))


def extrapolated_frechet_distance(
    features: Float[np.ndarray, "n d"], originals: Float[np.ndarray, "m d"], *, seed: int = 0
) -> float:
    """The Frechet distance that infinitely many clips would have, without the bias of few.

    The bias is about inversely proportional to the number of clips N. The result is the value at
    1/N = 0 of a line through the distances of random subsets, from half of the clips to all. (Chong
    and Forsyth, arXiv 1911.07023, vary the size of one set only.) The result may be slightly
    negative. The bias is proportional to 1/N for sets larger than d; for smaller ones a part of it
    remains.

    Raises:
      ValueError: for sets of fewer than eight features.
    """
    count = min(len(features), len(originals))
    if count < 8:
        raise ValueError(f"an extrapolated distance needs eight clips or more, got {count}")
    rng, inverses, distances = np.random.default_rng(seed), [], []
    for size in np.linspace(count // 2, count, _SUBSETS, dtype=int):
        pair = (x[rng.permutation(len(x))[:size]] for x in (features, originals))
        inverses.append(1 / size)
        distances.append(frechet_distance(*pair))
    return float(np.polynomial.Polynomial.fit(inverses, distances, 1)(0.0))


def _gaussian(
    features: np.ndarray,
) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, "r d"]]:
    """Mean, and a factor R of the unbiased covariance R^T R, with d rows at most."""
    values = np.asarray(features, np.float64)
    mean = values.mean(axis=0)
    root = (values - mean) / math.sqrt(len(values) - 1)
    return mean, root if root.shape[0] <= root.shape[1] else np.asarray(
        np.linalg.qr(root, mode="r")
    )


def wilson(hits: int | np.integer, count: int | np.integer) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion, for `hits` in `count` trials (Wilson 1927)."""
    if not 0 <= hits <= count:
        raise ValueError(f"hits must lie between 0 and count, got {hits} of {count}")
    if count == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    proportion, spread = hits / count, z * z / count
    centre = (proportion + spread / 2) / (1 + spread)
    reach = math.sqrt(proportion * (1 - proportion) * spread + spread * spread / 4) / (1 + spread)
    return max(centre - reach, 0.0), min(centre + reach, 1.0)
