"""EfficientNet-lite0 built in torch from its published description, with random weights."""

import torch
from torch import nn
from torch.nn import functional

# Kernel, stride, expansion, output channels and number of blocks of each stage.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class Conv(nn.Conv2d):
    """TensorFlow's SAME padding: to ceil(n / stride) windows, the odd zero at the end."""

    def forward(self, x):
        pads = []
        for n, k, s in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(functional.pad(x, pads))


def norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    def __init__(self, inputs, outputs, size, stride, expansion):
        super().__init__()
        inner = inputs * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = norm(inner)
        self._depthwise_conv = Conv(inner, inner, size, stride, groups=inner, bias=False)
        self._bn1 = norm(inner)
        self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self._bn2 = norm(outputs)

    def forward(self, x):
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class Network(nn.Module):
    """The network, with layers named as in lukemelas/EfficientNet-PyTorch."""

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = Conv(3, 32, 3, 2, bias=False), norm(32)
        blocks, inputs = [], 32
        for size, stride, expansion, outputs, count in STAGES:
            for i in range(count):
                blocks.append(Block(inputs, outputs, size, 1 if i else stride, expansion))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(320, 1280, 1, bias=False), norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, pictures):
        """Feature maps, the pooled features, and logits of pictures (b, 3, h, w) in [-1, 1]."""
        x = (pictures * 127.5 + 127.5 - 127) / 128
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        maps = [x]
        for block in self._blocks:
            maps.append(block(maps[-1]))
        pooled = functional.relu6(self._bn1(self._conv_head(maps[-1]))).mean((2, 3))
        return maps, pooled, self._fc(pooled)


def random_network():
    """A network whose weights keep the size of activations."""
    torch.manual_seed(0)
    model = Network().eval()
    for name, value in model.state_dict().items():
        if name.endswith("running_var") or ("_bn" in name and name.endswith("weight")):
            value.uniform_(0.7, 1.3)
        elif name.endswith(("bias", "running_mean")):
            value.normal_(0, 0.1)
        elif name.endswith("weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
    return model


def tensors(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}
