"""LPIPS, compared with PyTorch, and reading its weights from files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ltx_jax.checkpoints import perceptual
from ltx_jax.models import frame_distance, lpips

# torchvision's vgg16.features: the index of every convolution, and its channels.
INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
TAPS = (2, 7, 14, 21, 28)  # the last convolution of each stage


@pytest.fixture(scope="module")
def weights():
    """Random weights, named as in torchvision and in the lpips package."""
    rng = np.random.default_rng(0)
    trunk, before = {}, 3
    for index, width in zip(INDICES, WIDTHS, strict=True):
        scale = (2 / (9 * before)) ** 0.5
        kernel = rng.standard_normal((width, before, 3, 3), np.float32) * np.float32(scale)
        trunk[f"features.{index}.weight"] = kernel
        trunk[f"features.{index}.bias"] = 0.1 * rng.standard_normal(width, np.float32)
        before = width
    widths = (64, 128, 256, 512, 512)
    heads = {
        f"lin{i}.model.1.weight": rng.random((1, width, 1, 1), np.float32)
        for i, width in enumerate(widths)
    }
    return trunk, heads


@pytest.fixture(scope="module")
def params(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    for name, tensors in zip(("vgg", "heads"), weights, strict=True):
        save_file(tensors, folder / f"{name}.safetensors")
    return perceptual.read_lpips(folder / "vgg.safetensors", folder / "heads.safetensors")


def pictures(count=3, height=48, width=32):
    shape = (2, count, height, width, 3)
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, shape), jnp.float32)


@jax.jit
def distances(params, x, y):
    return lpips.LPIPS().apply({"params": params}, x, y)


@jax.jit
def gradient(params, x, y):
    return jax.grad(lambda x: jnp.sum(distances(params, x, y)))(x)


def torch_lpips(trunk, heads, x, y):
    """The computation of the lpips package, with operations of torch."""
    import torch
    from torch.nn import functional

    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)

    def features(z):
        z, feature_maps = (z - shift) / scale, []
        for index in INDICES:
            if index in (5, 10, 17, 24):
                z = functional.max_pool2d(z, 2)
            weight, bias = (
                torch.tensor(trunk[f"features.{index}.{n}"]) for n in ("weight", "bias")
            )
            z = functional.relu(functional.conv2d(z, weight, bias, padding=1))
            if index in TAPS:
                feature_maps.append(z / (torch.sqrt(torch.sum(z**2, dim=1, keepdim=True)) + 1e-10))
        return feature_maps

    total = 0
    for i, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        head = torch.tensor(heads[f"lin{i}.model.1.weight"])
        total = total + functional.conv2d((a - b) ** 2, head).mean(dim=(1, 2, 3))
    return total


@pytest.mark.thorough
def test_lpips_and_its_gradient_are_those_of_torch_on_the_same_weights(weights, params):
    torch = pytest.importorskip("torch")
    x, y = pictures()
    theirs = [torch.tensor(np.asarray(v).transpose(0, 3, 1, 2)) for v in (x, y)]
    theirs[0].requires_grad_()
    expected = torch_lpips(*weights, *theirs)
    expected.sum().backward()
    value = distances(params, x, y)
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-4)  # thirteen float32 layers
    expected_gradient = theirs[0].grad.numpy().transpose(0, 2, 3, 1)
    error = np.linalg.norm(gradient(params, x, y) - expected_gradient) / np.linalg.norm(
        expected_gradient
    )
    assert error < 1e-3  # where two pixels are all but equal, the pooling may take the other one


@pytest.mark.thorough
def test_equal_pictures_have_no_distance_and_a_finite_gradient(params):
    x = jnp.zeros_like(pictures()[0])
    assert (
        distances(params, x, x) < 1e-12
    ).all()  # rounding: the two may be summed in another order
    assert np.isfinite(gradient(params, x, x)).all()
    # Features that are zero in every channel have no direction, and no gradient.
    of_zero = jax.grad(lambda x: jnp.sum(frame_distance.unit_length(x)[..., 0] ** 2))(
        jnp.zeros((2, 4))
    )
    assert (np.asarray(of_zero) == 0).all()


@pytest.mark.thorough
@pytest.mark.parametrize("frames", [1, 3])
def test_a_clip_has_the_mean_distance_of_its_frames(params, frames):
    x, y = (jnp.stack([half, half[::-1] * 0.5])[:, :frames] for half in pictures())
    value, gradient = jax.jit(jax.value_and_grad(lpips.lpips_of_frames, 1))(params, x, y)
    expected = np.mean([distances(params, a, b) for a, b in zip(x, y, strict=True)])
    assert value == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient) != 0).any((2, 3, 4)).all()


def test_pictures_of_which_nothing_would_be_left_are_refused(params):
    x = jnp.zeros((1, 8, 32, 3))
    with pytest.raises(ValueError, match="16 pixels or more, these are 8 x 32"):
        lpips.LPIPS().apply({"params": params}, x, x)


@pytest.mark.thorough
def test_both_layouts_hold_the_same_weights(weights, params, tmp_path):
    """The state_dict of a complete lpips.LPIPS in one file."""
    trunk, heads = weights
    whole = {
        name.replace(
            "features", f"net.slice{sum(int(name.split('.')[1]) > t for t in TAPS) + 1}"
        ): x
        for name, x in trunk.items()
    }
    whole |= {name.replace("lin", "lins."): x for name, x in heads.items()}
    assert "net.slice5.24.weight" in whole
    path = tmp_path / "whole.safetensors"
    save_file(whole, path)
    jax.tree.map(np.testing.assert_array_equal, perceptual.read_lpips(path, path), params)


def test_files_that_cannot_be_used_are_refused_by_name(weights, tmp_path):
    trunk, heads = weights
    good, bad = tmp_path / "heads.safetensors", tmp_path / "vgg.safetensors"
    save_file(heads, good)
    wrong = trunk | {"features.7.weight": np.zeros((128, 64, 3, 3), np.float32)}
    save_file(wrong, bad)
    with pytest.raises(ValueError, match=r"features\.7\.weight has shape \(128, 64, 3, 3\), and"):
        perceptual.read_lpips(bad, good)
    save_file({name: x for name, x in trunk.items() if name != "features.28.bias"}, bad)
    with pytest.raises(ValueError, match=r"no tensor features\.28\.bias or net\.slice5\.28\.bias"):
        perceptual.read_lpips(bad, good)
    save_file(trunk, bad)
    with pytest.raises(ValueError, match=r"no tensor lin0\.model\.1\.weight or lins\.0\.model\.1"):
        perceptual.read_lpips(bad, bad)
    with pytest.raises(ValueError, match=r"missing\.safetensors is no file"):
        perceptual.read_lpips(tmp_path / "missing.safetensors", good)
    with pytest.raises(
        ValueError, match=r"vgg16\.pth is a pickle.*weights_only=True.*vgg16\.safet"
    ):
        perceptual.read_lpips(tmp_path / "vgg16.pth", good)
