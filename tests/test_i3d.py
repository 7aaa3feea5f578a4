"""I3D, compared with a torch network built from its published description, with random weights."""

import jax
import numpy as np
import pytest

from ltx_jax.models import i3d

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402


def same(x, size, stride):
    """TensorFlow's SAME padding: to ceil(n / stride) windows, the odd zero at the end."""
    widths = []
    for length, k, s in reversed(list(zip(x.shape[2:], size, stride, strict=True))):
        total = max((-(-length // s) - 1) * s + k - length, 0)
        widths += [total // 2, total - total // 2]
    return functional.pad(x, widths)


class Unit(nn.Module):
    def __init__(self, inputs, outputs, size=1, stride=1):
        super().__init__()
        self.size, self.stride = (size,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(inputs, outputs, self.size, self.stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=0.001)

    def forward(self, x):
        return torch.relu(self.bn(self.conv3d(same(x, self.size, self.stride))))


def pool(x, size, stride):
    return functional.max_pool3d(same(x, size, stride), size, stride)


class Mixed(nn.Module):
    def __init__(self, c, widths):
        super().__init__()
        self.b0 = Unit(c, widths[0])
        self.b1a, self.b1b = Unit(c, widths[1]), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(c, widths[3]), Unit(widths[3], widths[4], 3)
        self.b3b = Unit(c, widths[5])

    def forward(self, x):
        pooled = self.b3b(pool(x, (3, 3, 3), (1, 1, 1)))
        parts = [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), pooled]
        return torch.cat(parts, 1)


class Network(nn.Module):
    """The network, with layers named as in piergiaj/pytorch-i3d."""

    def __init__(self):
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        self.Mixed_3b = Mixed(192, (64, 96, 128, 16, 32, 32))
        self.Mixed_3c = Mixed(256, (128, 128, 192, 32, 96, 64))
        self.Mixed_4b = Mixed(480, (192, 96, 208, 16, 48, 64))
        self.Mixed_4c = Mixed(512, (160, 112, 224, 24, 64, 64))
        self.Mixed_4d = Mixed(512, (128, 128, 256, 24, 64, 64))
        self.Mixed_4e = Mixed(512, (112, 144, 288, 32, 64, 64))
        self.Mixed_4f = Mixed(528, (256, 160, 320, 32, 128, 128))
        self.Mixed_5b = Mixed(832, (256, 160, 320, 32, 128, 128))
        self.Mixed_5c = Mixed(832, (384, 192, 384, 48, 128, 128))
        self.logits = nn.Module()
        self.logits.conv3d = nn.Conv3d(1024, 400, 1)

    def forward(self, x):
        x = self.Conv3d_1a_7x7(x)
        x = self.Conv3d_2b_1x1(pool(x, (1, 3, 3), (1, 2, 2)))
        x = pool(self.Conv3d_2c_3x3(x), (1, 3, 3), (1, 2, 2))
        x = pool(self.Mixed_3c(self.Mixed_3b(x)), (3, 3, 3), (2, 2, 2))
        for name in "bcdef":
            x = getattr(self, f"Mixed_4{name}")(x)
        x = self.Mixed_5c(self.Mixed_5b(pool(x, (2, 2, 2), (2, 2, 2))))
        x = self.logits.conv3d(functional.avg_pool3d(x, (2, 7, 7), stride=1))
        return x[:, :, :, 0, 0].mean(2)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = Network().eval()
    for name, value in model.state_dict().items():
        if name.endswith(("bn.weight", "running_var")):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("bias", "running_mean")):
            value.normal_(0, 0.1)
        elif name.endswith("weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5)  # keeps the size of activations
    return model


@pytest.fixture(scope="module")
def tensors(network):
    return {name: value.numpy() for name, value in network.state_dict().items()}


@pytest.mark.thorough
def test_features_are_the_mean_logits_of_torch(network, tensors):
    """Covers odd and even padding: 17 frames stay odd and 224 pixels even in all layers."""
    video = np.random.default_rng(0).uniform(-1, 1, (1, 17, 60, 80, 3)).astype(np.float32)
    x = torch.tensor(video[0].transpose(0, 3, 1, 2))
    x = functional.interpolate(x, (224, 224), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = network(x.permute(1, 0, 2, 3)[None]).numpy()
    assert expected.std() > 0.1
    # 22 layers of float32 sums over up to 9000 products.
    actual = jax.jit(i3d.features)(i3d.fold(tensors), video)
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_the_layout_is_that_of_the_torch_network(tensors):
    tensor_shapes = {
        k: v.shape for k, v in tensors.items() if not k.endswith("num_batches_tracked")
    }
    assert i3d.shapes() == tensor_shapes


def test_other_weights_are_refused_by_name(tensors):
    with pytest.raises(ValueError, match=r"there is no tensor Conv3d_1a_7x7\.conv3d\.weight"):
        i3d.fold({"features.0.weight": np.zeros(3)})
    wrong = tensors | {"Mixed_4f.b1b.bn.bias": np.zeros(7)}
    with pytest.raises(
        ValueError, match=r"Mixed_4f\.b1b\.bn\.bias of I3D has shape \(7,\), expected \(320,\)"
    ):
        i3d.fold(wrong)


def test_clips_too_short_to_pool_are_refused(tensors):
    with pytest.raises(ValueError, match="9 frames or more, got 8"):
        i3d.features(i3d.fold(tensors), jax.numpy.zeros((1, 8, 32, 32, 3)))
