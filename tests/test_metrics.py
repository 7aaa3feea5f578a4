"""Video metrics, compared with scikit-image's formula in float64, closed forms and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.stats

from ltx_jax import metrics


def clips(b=2, t=3, h=24, w=40, seed=0):
    """A smooth random video and a noisy copy, uint8."""
    rng = np.random.default_rng(seed)
    smooth = scipy.ndimage.gaussian_filter(rng.normal(size=(b, t, h, w, 3)), (0, 1, 2, 2, 0))
    video = 128 + 300 * smooth
    noisy = video + rng.normal(scale=8, size=video.shape)
    return tuple(np.clip(x, 0, 255).astype(np.uint8) for x in (video, noisy))


def reference_ssim(x, y):
    """Wang's SSIM of one channel in 0..255 with scipy in float64, for windows inside the frame."""

    def smooth(image):
        return scipy.ndimage.gaussian_filter(image, 1.5, radius=5)[5:-5, 5:-5]

    x, y = np.float64(x), np.float64(y)
    mx, my = smooth(x), smooth(y)
    vx, vy, vxy = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ratio = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return ratio.mean()


def test_psnr_is_that_of_each_clip_over_all_its_values():
    video, noisy = clips()
    noisy[1] = video[1] ^ 1
    error = ((np.float64(video) - np.float64(noisy)) ** 2).mean(axis=(1, 2, 3, 4))
    expected = 10 * np.log10(255**2 / error)
    np.testing.assert_allclose(metrics.psnr(noisy, video), expected, rtol=1e-5)
    assert expected[1] == pytest.approx(48.13, abs=0.01)  # one level off


def test_equal_clips_have_a_psnr_of_100_and_an_ssim_of_1():
    video, _ = clips()
    np.testing.assert_allclose(metrics.psnr(video, video), 100, rtol=1e-6)
    np.testing.assert_allclose(metrics.ssim(video, video), 1, atol=1e-6)


def test_ssim_is_the_mean_of_wangs_over_frames_and_channels():
    video, noisy = clips()
    expected = [
        np.mean([reference_ssim(x[i, ..., c], y[i, ..., c]) for i in range(3) for c in range(3)])
        for x, y in zip(video, noisy, strict=True)
    ]
    # float32 sums; a variance next to C2 = 0.0036 is off by 1e-7.
    np.testing.assert_allclose(metrics.ssim(noisy, video), expected, atol=1e-4)
    assert 0.3 < expected[0] < 0.95


def test_floats_and_bytes_of_the_same_video_have_the_same_figures():
    video, noisy = clips()
    floats = [jnp.asarray(np.float32(x) / 127.5 - 1) for x in (noisy, video)]
    for metric in (metrics.psnr, metrics.ssim):
        np.testing.assert_allclose(metric(noisy, video), metric(*floats), rtol=1e-5)
        np.testing.assert_allclose(metric(noisy, video), jax.jit(metric)(*floats), rtol=1e-5)


def test_ssim_refuses_frames_smaller_than_its_window():
    video, noisy = clips(h=10)
    with pytest.raises(ValueError, match="11 x 11 pixels, got 10 x 40"):
        metrics.ssim(noisy, video)


def test_flat_energy_is_the_share_of_a_grid_in_a_flat_colour():
    flat = np.full((2, 32, 32, 3), 0.5)
    assert metrics.flat_energy(flat) == pytest.approx(0, abs=1e-12)
    assert metrics.flat_energy(np.zeros((1, 8, 8, 3), np.uint8)) == 0
    # 0.75 of full white in the mean; a grid of +-0.1 (in [-1, 1]) adds 0.05^2 to 0.75^2.
    grid = flat + 0.1 * (-1.0) ** np.arange(32)[None, None, :, None]
    assert metrics.flat_energy(grid) == pytest.approx(0.05**2 / (0.75**2 + 0.05**2), rel=1e-5)


def test_frechet_distance_is_the_closed_form_of_two_gaussians():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)) + 1
    b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))
    mean, (cov_a, cov_b) = a.mean(0) - b.mean(0), (np.cov(x, rowvar=False) for x in (a, b))
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = mean @ mean + np.trace(cov_a + cov_b - 2 * root)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert metrics.frechet_distance(a, a + 3) == pytest.approx(6 * 9, rel=1e-9)
    # In one dimension: the squared differences of means and of standard deviations.
    one, other = a[:, :1], 2 * a[:, :1]
    spread = one.std(ddof=1)
    assert metrics.frechet_distance(one, other) == pytest.approx(one.mean() ** 2 + spread**2)


def test_extrapolation_removes_most_of_the_bias_of_few_clips():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((200, 20)) for _ in range(2))
    for shift in (0.0, 1.0):  # the true distance is 20 shift^2
        plain = metrics.frechet_distance(a, b + shift) - 20 * shift**2
        extrapolated = metrics.extrapolated_frechet_distance(a, b + shift) - 20 * shift**2
        assert plain > 0.8
        assert abs(extrapolated) < 0.4 * plain
    assert metrics.extrapolated_frechet_distance(a, a + 1) == pytest.approx(20, rel=0.05)
    again = [metrics.extrapolated_frechet_distance(a, b) for _ in range(2)]
    assert again[0] == again[1]
    with pytest.raises(ValueError, match="eight clips or more, got 7"):
        metrics.extrapolated_frechet_distance(a[:7], b)


def test_frechet_distance_holds_with_fewer_clips_than_features():
    """The usual formula gives complex numbers for the square root of a singular matrix."""
    a = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert metrics.frechet_distance(a, a + np.float32(1)) == pytest.approx(40, rel=1e-5)
    with pytest.raises(ValueError, match="two clips or more, got 1 and 5"):
        metrics.frechet_distance(a[:1], a)


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (97, 100), (1, 3)])
def test_wilson_is_scipys_interval(hits, count):
    expected = scipy.stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert metrics.wilson(hits, count) == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_knows_nothing_without_trials():
    assert metrics.wilson(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="5 of 3"):
        metrics.wilson(5, 3)


def test_edges_agree_as_far_as_they_lie_near_each_other():
    """A square of 10 pixels, shifted across: of 36 edge pixels, some stay within the distance."""
    edges = np.zeros((2, 32, 32), bool)
    edges[:, 8:18, 8:18] = True
    edges[:, 9:17, 9:17] = False
    assert metrics.edge_agreement(edges, edges) == 1
    shifted = np.roll(edges, 1, axis=2)
    assert metrics.edge_agreement(edges, shifted, distance=1) == 1
    # Without a distance the two rows agree in nine of ten pixels, and the columns nowhere.
    assert metrics.edge_agreement(edges, shifted, distance=0) == pytest.approx(18 / 36)
    assert metrics.edge_agreement(edges, np.roll(edges, 1, axis=0)) == 1  # both frames are alike
    late = edges.copy()
    late[1] = False
    assert metrics.edge_agreement(edges, late) == pytest.approx(2 * 0.5 / 1.5)
    assert metrics.edge_agreement(edges, np.roll(edges, 14, axis=1)) == 0
    assert np.isnan(metrics.edge_agreement(late[1:], late[1:]))
