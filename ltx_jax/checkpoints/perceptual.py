"""Reads the weights of LPIPS, EfficientNet and I3D, whose features losses and metrics compare."""

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import numpy as np

from ltx_jax.checkpoints import tensors
from ltx_jax.models import efficientnet, i3d
from ltx_jax.models.lpips import STAGES

# Names of the files that `ltx-prepare networks` writes.
EFFICIENTNET, I3D = "efficientnet_lite0.safetensors", "i3d_kinetics_400.safetensors"
# Index of each convolution in torchvision's `features` and in the slices of the lpips package.
_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_CONVERT = (
    "python -c 'import sys, torch; from safetensors.torch import save_file; "
    "save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])' {path} {safe}"
)


def read_lpips(vgg: str | Path, heads: str | Path) -> dict[str, Any]:
    """Parameters of `models.lpips.LPIPS`, float32 on the host.

    Args:
      vgg: a .safetensors file with VGG16's convolutions under torchvision's names
        ("features.0.weight") or the lpips package's ("net.slice1.0.weight").
      heads: a .safetensors file with the linear heads, as the lpips package stores them alone or in
        a whole `lpips.LPIPS` ("lin0.model.1.weight", "lins.0.model.1.weight"). It may be the same
        file.

    Raises:
      ValueError: naming a file that cannot be used or lacks a tensor, or a shape that is wrong.
    """
    trunk, linear = _open(Path(vgg)), _open(Path(heads))
    params: dict[str, Any] = {}
    index, channels = iter(_INDICES), 3
    for stage, widths in enumerate(STAGES):
        for i, width in enumerate(widths):
            number = next(index)
            names = (f"features.{number}", f"net.slice{stage + 1}.{number}")
            kernel = _read(trunk, [f"{n}.weight" for n in names], (width, channels, 3, 3))
            bias = _read(trunk, [f"{n}.bias" for n in names], (width,))
            params[f"conv_{stage}_{i}"] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
            channels = width
        names = [f"lin{stage}.model.1.weight", f"lins.{stage}.model.1.weight"]
        params[f"head_{stage}"] = _read(linear, names, (1, channels, 1, 1)).reshape(-1)
    return params


def read_i3d(path: str | Path) -> dict[str, Any]:
    """Parameters of `models.i3d`, float32 on the host.

    Args:
      path: a .safetensors file with the names of piergiaj/pytorch-i3d ("Mixed_3b.b0.bn.weight"):
        that of `ltx-prepare networks`, or `i3d_pretrained_400.pt` converted.

    Raises:
      ValueError: naming the file if it cannot be used or lacks a tensor, or a shape that is wrong.
    """
    return _folded(Path(path), i3d.NAMES, i3d.fold)


def read_efficientnet(path: str | Path) -> dict[str, Any]:
    """Parameters of `models.efficientnet`, float32 on the host.

    Args:
      path: the .safetensors file that `ltx-prepare networks` writes.

    Raises:
      ValueError: naming the file if it cannot be used or lacks a tensor, or a shape that is wrong.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"there are no weights of EfficientNet at {path}: write them with pip install "
            f"'.[networks]' and ltx-prepare networks --output {Path(path).parent}"
        )
    return _folded(Path(path), efficientnet.NAMES, efficientnet.fold)


def _folded(
    path: Path, names: Container[str], fold: Callable[[dict[str, np.ndarray]], dict[str, Any]]
) -> dict[str, Any]:
    """Parameters that `fold` makes from the tensors with these names."""
    file = _open(path)
    stored = {name: tensor.read() for name, tensor in file.tensors.items() if name in names}
    try:
        return fold(stored)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _open(path: Path) -> tensors.TensorFile:
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        convert = _CONVERT.format(path=path, safe=path.with_suffix(".safetensors"))
        raise ValueError(
            f"{path} is a pickle, which may run any code when opened: convert it where PyTorch is "
            f"installed, by {convert}"
        )
    return tensors.open_file(path)


def _read(file: tensors.TensorFile, names: list[str], shape: tuple[int, ...]) -> np.ndarray:
    """The tensor with one of these names."""
    stored = [file.tensors[name] for name in names if name in file.tensors]
    if not stored:
        raise ValueError(f"{file.path} has no tensor {' or '.join(names)}")
    if stored[0].shape != shape:
        raise ValueError(
            f"{file.path}: {stored[0].name} has shape {stored[0].shape}, and {shape} is expected"
        )
    return stored[0].read().astype(np.float32)
