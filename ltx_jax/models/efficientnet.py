"""EfficientNet-lite0, trained on ImageNet: a frozen network whose features compare pictures.

Tan and Le (arXiv 1905.11946) in the variant "lite0" of tensorflow/tpu: ReLU6, no squeeze and
excitation, TensorFlow's SAME padding. Weights have the names of lukemelas/EfficientNet-PyTorch
("_blocks.0._depthwise_conv.weight").
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ltx_jax.models.frame_distance import Pictures, mean_over_frames, unit_length

WIDTH = 1280  # of an embedding
_CLASSES = 1000
_EPSILON = 1e-3  # epsilon of the batch norms
# Pixels are scaled to (x - 127) / 128 from [0, 255].
_SHIFT, _SCALE = 0.5 / 128.0, 127.5 / 128.0


class _Block(NamedTuple):
    """A mobile inverted bottleneck: 1x1 to more channels, depthwise, 1x1 to fewer channels."""

    size: int  # of the depthwise kernel
    stride: int
    expansion: int
    inputs: int
    outputs: int

    @property
    def inner(self) -> int:
        """Channels of the depthwise convolution."""
        return self.expansion * self.inputs


# The first block of each stage, and the number of blocks.
_STAGES = (
    (_Block(3, 1, 1, 32, 16), 1),
    (_Block(3, 2, 6, 16, 24), 2),
    (_Block(5, 2, 6, 24, 40), 2),
    (_Block(3, 2, 6, 40, 80), 3),
    (_Block(5, 1, 6, 80, 112), 3),
    (_Block(5, 2, 6, 112, 192), 4),
    (_Block(3, 1, 6, 192, 320), 1),
)
_BLOCKS = tuple(
    first if i == 0 else first._replace(stride=1, inputs=first.outputs)
    for first, count in _STAGES
    for i in range(count)
)
_ENDS = tuple(int(end) for end in np.cumsum([count for _, count in _STAGES]))
# Numbers of the blocks whose outputs `feature_distance` and `statistics` compare: the last of each
# resolution, from a half to a sixteenth of the picture's, which is LPIPS' lowest too.
_COMPARED = tuple(_ENDS[stage] for stage in (0, 1, 2, 4))


def _units() -> dict[str, tuple[str, tuple[int, ...]]]:
    """The norm after each convolution, and the shape of the convolution's weight."""
    units: dict[str, tuple[str, tuple[int, ...]]] = {"_conv_stem": ("_bn0", (32, 3, 3, 3))}
    for i, block in enumerate(_BLOCKS):
        name = f"_blocks.{i}"
        if block.expansion > 1:
            units[f"{name}._expand_conv"] = (f"{name}._bn0", (block.inner, block.inputs, 1, 1))
        depthwise = (block.inner, 1, block.size, block.size)
        units[f"{name}._depthwise_conv"] = (f"{name}._bn1", depthwise)
        units[f"{name}._project_conv"] = (f"{name}._bn2", (block.outputs, block.inner, 1, 1))
    units["_conv_head"] = ("_bn1", (WIDTH, _BLOCKS[-1].outputs, 1, 1))
    return units


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that `fold` reads."""
    tensor_shapes: dict[str, tuple[int, ...]] = {}
    for name, (norm, shape) in _units().items():
        tensor_shapes[f"{name}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensor_shapes[f"{norm}.{part}"] = shape[:1]
    return tensor_shapes | {"_fc.weight": (_CLASSES, WIDTH), "_fc.bias": (_CLASSES,)}


NAMES = frozenset(shapes())


def fold(tensors: Mapping[str, Num[np.ndarray, "..."]]) -> dict[str, Any]:
    """Converts tensors to parameters, with batch norms folded into the convolutions.

    Other tensors (`num_batches_tracked`) are ignored.

    Raises:
      ValueError: if a tensor is missing or has another shape.
    """
    for name, shape in shapes().items():
        if name not in tensors:
            raise ValueError(f"not weights of EfficientNet-lite0: there is no tensor {name}")
        if tensors[name].shape != shape:
            raise ValueError(
                f"{name} of EfficientNet-lite0 has shape {tensors[name].shape}, expected {shape}"
            )

    def double(name: str) -> np.ndarray:
        return np.asarray(tensors[name], np.float64)

    params: dict[str, Any] = {}
    for name, (norm, _) in _units().items():
        scale = double(f"{norm}.weight") / np.sqrt(double(f"{norm}.running_var") + _EPSILON)
        kernel = double(f"{name}.weight").transpose(2, 3, 1, 0) * scale
        bias = double(f"{norm}.bias") - double(f"{norm}.running_mean") * scale
        params[name] = {"kernel": kernel, "bias": bias}
    params["_fc"] = {"kernel": double("_fc.weight").T, "bias": double("_fc.bias")}
    return jax.tree.map(lambda x: x.astype(np.float32), params)


def feature_maps(
    params: Any, pictures: Pictures, blocks: int = len(_BLOCKS)
) -> list[Float[Array, "b i j c"]]:
    """The output of the first convolution and of each block.

    Args:
      params: parameters from `fold`.
      pictures: values in [-1, 1], of any size; the network was trained at 224 x 224.
      blocks: number of blocks that are computed, 16 at most.
    """
    x = _SCALE * pictures.astype(jnp.float32) + _SHIFT
    stem = params["_conv_stem"]
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, stem["kernel"], (2, 2), "SAME", dimension_numbers=layout)
    x = jax.nn.relu6(x + stem["bias"][None, None, None])
    maps = [x]
    for i, block in enumerate(_BLOCKS[:blocks]):
        x = _bottleneck(params, f"_blocks.{i}", block, x)
        maps.append(x)
    return maps


def embed(params: Any, pictures: Pictures) -> Float[Array, "b c"]:
    """The input of the classifier: the features of a picture, averaged over its pixels."""
    return jnp.mean(
        jax.nn.relu6(_dense(params["_conv_head"], feature_maps(params, pictures)[-1])), (1, 2)
    )


def logits(params: Any, pictures: Pictures) -> Float[Array, "b 1000"]:
    """Logits of ImageNet's classes."""
    return embed(params, pictures) @ params["_fc"]["kernel"] + params["_fc"]["bias"][None]


def statistics(params: Any, pictures: Pictures) -> Float[Array, "b c"]:
    """Mean and deviation of each channel at four resolutions: a description of each picture.

    On pictures of single emoji, these 384 numbers distinguish 734 emoji better than `embed` does,
    which describes what a picture shows rather than how it looks.
    """
    maps = feature_maps(params, pictures, _COMPARED[-1])
    parts = [
        part for i in _COMPARED for part in (jnp.mean(maps[i], (1, 2)), jnp.std(maps[i], (1, 2)))
    ]
    return jnp.concatenate(parts, axis=-1)


def feature_distance(
    params: Any, reconstruction: Float[Array, "b t h w 3"], video: Float[Array, "b t h w 3"]
) -> Float[Array, ""]:
    """A perceptual distance of videos with pixels in [-1, 1]; 0 for equal videos.

    The mean over samples, frames and four resolutions of the squared distance of features of unit
    length. Unlike in LPIPS, channels have no weights learned from people's judgements.
    """

    def distances(pictures: Pictures, others: Pictures) -> Array:
        # Two passes instead of one on both: the originals need no gradient.
        last = _COMPARED[-1]
        maps, other_maps = (feature_maps(params, x, last) for x in (pictures, others))
        pairs = ((unit_length(maps[i]), unit_length(other_maps[i])) for i in _COMPARED)
        terms = [jnp.mean(jnp.sum((a - b) ** 2, axis=-1), (1, 2)) for a, b in pairs]
        return jnp.mean(jnp.stack(terms), axis=0)

    return mean_over_frames(distances, reconstruction, video)


def _bottleneck(params: Any, name: str, block: _Block, x: Array) -> Array:
    y = x
    if block.expansion > 1:
        y = jax.nn.relu6(_dense(params[f"{name}._expand_conv"], y))
    y = jax.nn.relu6(_depthwise(params[f"{name}._depthwise_conv"], y, block.stride))
    y = _dense(params[f"{name}._project_conv"], y)
    return x + y if block.stride == 1 and block.inputs == block.outputs else y


def _dense(layer: Any, x: Array) -> Array:
    """A 1x1 convolution."""
    return x @ layer["kernel"][0, 0] + layer["bias"][None, None, None]


def _depthwise(layer: Any, x: Array, stride: int) -> Array:
    pads = [_same(n, layer["kernel"].shape[0], stride) for n in x.shape[1:3]]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    return _shifted_sum(padded, layer["kernel"], stride) + layer["bias"][None, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted_sum(x: Any, kernel: Any, stride: int) -> Any:
    """A depthwise convolution without padding, as a sum of shifted copies.

    On CPUs this is eight times faster than XLA's own. Its gradient is a sum of shifted copies too,
    which automatic differentiation would not make.
    """
    return _sum_of_shifts(x, kernel, stride)


def _sum_of_shifts(x: Any, kernel: Any, stride: int) -> Any:
    size = len(kernel)
    height, width = ((n - size) // stride * stride + 1 for n in x.shape[1:3])
    return sum(
        x[:, i : i + height : stride, j : j + width : stride] * kernel[i, j, 0][None, None, None]
        for i in range(size)
        for j in range(size)
    )


def _shifted_sum_forward(x: Any, kernel: Any, stride: int) -> tuple[Any, Any]:
    return _shifted_sum(x, kernel, stride), (x, kernel)


def _shifted_sum_backward(stride: int, kept: Any, gradient: Array) -> tuple[Any, Any]:
    x, kernel = kept
    size = len(kernel)
    # The transpose: the gradient with zeros between and around its values, and the kernel turned
    # round. Rows and columns of x that no window reached have no gradient.
    edges = []
    for length, count in zip(x.shape[1:3], gradient.shape[1:3], strict=True):
        unused = length - (count - 1) * stride - size
        edges.append((size - 1, size - 1 + unused, stride - 1))
    spread = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    of_x = _shifted_sum(spread, kernel[::-1, ::-1], 1)
    of_kernel = jax.vjp(lambda k: _sum_of_shifts(x, k, stride), kernel)[1](gradient)[0]
    return of_x, of_kernel


_shifted_sum.defvjp(_shifted_sum_forward, _shifted_sum_backward)


def _same(length: int, size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding: to ceil(n / stride) windows, the odd zero at the end."""
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2
