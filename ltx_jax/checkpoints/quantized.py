"""Quantised weights: values of few bits, and their scales, which other tensors hold.

Each pair becomes a tensor that is computed when it is read, some rows at a time, so that loading
takes no more memory than plain weights do. Layouts of the files:

plain        8-bit floats without scales. They do not need this module, unless the weights are
             rotated (see `unrotated`).
ComfyUI      MODULE.scale_weight beside MODULE.weight, sometimes MODULE.scale_input, and an empty
             tensor `scaled_fp8`; since 2026 MODULE.weight_scale, MODULE.input_scale, and the
             format in MODULE.comfy_quant or in the metadata's `_quantization_metadata`.
ModelOpt     MODULE.weight_scale and MODULE.input_scale.
Q8-Kernels   8-bit integers, MODULE.scales for each row, and rotated rows (see `unrotated`).
GGUF         blocks of a row that share scales, see `gguf_files`.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ltx_jax.checkpoints.tensors import FLOAT8, ComputedTensor, StoredTensor, Tensor, widened
from ltx_jax.config import parse_json, shown

METADATA = "_quantization_metadata"  # the key of a file's metadata

_ROTATED_SCALES = ".scales"
_SCALES = (".scale_weight", ".weight_scale", _ROTATED_SCALES)
_FORMAT = ".comfy_quant"
# The scales of a layer's inputs are for matmuls in 8 bits, and the marker names the kind of floats,
# which the weights' own dtype says too.
_INPUT_SCALES = (".scale_input", ".input_scale")
_MARKER = "scaled_fp8"
_FLOAT32 = np.dtype(np.float32)
_FORMATS = ("float8_e4m3fn", "float8_e5m2")
# Companions of weights in formats that are not read: integers and 4-bit floats.
_FOREIGN = (".weight_scale_2", ".absmax", ".quant_map", ".qweight", ".qzeros")


def is_marker(name: str) -> bool:
    """Whether a tensor only marks a file as quantised."""
    return name.rpartition(".")[2] == _MARKER


def joined(
    stored: Mapping[str, Tensor], metadata: Mapping[str, str], where: str
) -> dict[str, Tensor]:
    """The tensors of a network, each quantised weight joined with its scale.

    Args:
      stored: the tensors of the file by name, without the file's prefix.
      metadata: of the file.
      where: names the file in errors.

    Raises:
      ValueError: for a format that is not read, and a scale that fits no weight.
    """
    _check_formats(stored, metadata, where)
    scales: dict[str, Tensor] = {}
    result: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        ending = next((end for end in _SCALES if name.endswith(end)), None)
        if ending is not None:
            weight = f"{name.removesuffix(ending)}.weight"
            if weight not in stored:
                raise ValueError(f"{where}: {tensor.name} scales a weight that the file lacks")
            if weight in scales:
                raise ValueError(f"{where} holds two scales of {stored[weight].name}")
            scales[weight] = tensor
        elif not (is_marker(name) or name.endswith((*_INPUT_SCALES, _FORMAT))):
            result[name] = tensor
    return result | {name: _scaled(stored[name], scale, where) for name, scale in scales.items()}


def _check_formats(stored: Mapping[str, Tensor], metadata: Mapping[str, str], where: str) -> None:
    for name, tensor in stored.items():
        if name.endswith(_FOREIGN):
            raise ValueError(
                f"{where} is quantised in an unsupported way ({tensor.name}): take a file in "
                "bfloat16, float8 or GGUF"
            )
        if name.endswith(_FORMAT):
            what = f"{where}: {tensor.name}"
            if math.prod(tensor.shape) > 10_000:
                raise ValueError(f"{what} is no description of a format: it is too long")
            text = tensor.read_as(np.dtype(np.uint8)).tobytes()
            _check_format(parse_json(text, what), what)
    if METADATA in metadata:
        what = f"{where}: its metadata entry {METADATA}"
        raw = parse_json(metadata[METADATA], what)
        layers = raw.get("layers") if isinstance(raw, dict) else None
        if not isinstance(layers, dict):
            raise ValueError(f"{what} has no layers")
        for module, entry in layers.items():
            _check_format(entry, f"{what}: {module}")


def _check_format(raw: Any, what: str) -> None:
    kind = raw.get("format") if isinstance(raw, dict) else None
    if kind not in _FORMATS:
        raise ValueError(
            f"{what} has the format {shown(kind)}, supported: {', '.join(_FORMATS)}. Take another "
            "file"
        )


def _scaled(stored: Tensor, scale: Tensor, where: str) -> Tensor:
    """A weight times its scale: one number, or one per row."""
    if not isinstance(stored, StoredTensor) or len(stored.shape) != 2:
        raise ValueError(f"{where}: {scale.name} scales {stored.name}, which is no matrix")
    rows = stored.shape[:1]
    if math.prod(scale.shape) != 1 and scale.shape not in (rows, (*rows, 1)):
        raise ValueError(
            f"{where}: {scale.name} has shape {scale.shape}, expected one number or {rows}"
        )
    factors = scale.read_as(_FLOAT32).reshape(-1, 1)
    if not np.isfinite(factors).all():
        raise ValueError(f"{where} is damaged: {scale.name} holds NaN or infinity")

    turns = scale.name.endswith(_ROTATED_SCALES)
    if (stored.dtype == np.int8) != turns:
        raise ValueError(f"{where}: {stored.name} is stored as {stored.dtype} and has {scale.name}")
    if turns and not _is_power_of_two(stored.shape[1]):
        raise ValueError(f"{where}: {stored.name} cannot be rotated: {stored.shape[1]} columns")

    def values(array: np.ndarray, part: slice) -> np.ndarray:
        plain = widened(array, _FLOAT32) if array.dtype in FLOAT8 else array.astype(np.float32)
        plain *= factors if len(factors) == 1 else factors[part]
        return rotate(plain) if turns else plain

    return ComputedTensor(stored, stored.shape, values)


def unrotated(stored: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Undoes the rotation of weights that were made for kernels that rotate activations.

    The first upload of ltxv-13b-0.9.7-dev-fp8 is such a file (LTX-Video-Q8-Kernels): rows of its
    8-bit matrices were multiplied by the Hadamard matrix over the square root of its size, which is
    its own inverse, and rounded. The file does not say so: `_spread` detects it.

    Returns:
      The tensors with the 8-bit matrices rotated back; None if they are not rotated.
    """
    chosen = {
        name: tensor
        for name, tensor in stored.items()
        if isinstance(tensor, StoredTensor) and _may_be_rotated(tensor)
    }
    plain = turned = chance = 0.0
    # A few of the smallest: the weights of a file are rotated all or none.
    for tensor in sorted(chosen.values(), key=lambda tensor: tensor.shape[1])[:_SAMPLES]:
        sample = widened(tensor.read()[:_SAMPLE_ROWS], _FLOAT32)
        plain += _spread(sample)
        turned += _spread(rotate(sample))
        chance += (2 / len(sample)) ** 0.5
    if len(chosen) < _SAMPLES or not plain < _MARGIN * chance < turned:
        return None
    return stored | {name: _turned(tensor) for name, tensor in chosen.items()}


_SAMPLES, _SAMPLE_ROWS = 8, 2048
_QUARTILES = 1.349  # their distance in a normal distribution, in standard deviations
_FEWEST = 64  # columns and rows, below which chance decides
# The sum of the spreads of 8 matrices varies by 5% where weights are normal and have 64 columns.
_MARGIN = 1.2


def _may_be_rotated(tensor: StoredTensor) -> bool:
    rows, size = tensor.shape if len(tensor.shape) == 2 else (0, 0)
    return tensor.dtype in FLOAT8 and min(rows, size) >= _FEWEST and _is_power_of_two(size)


def _is_power_of_two(size: int) -> bool:
    return size.bit_count() == 1


def _spread(matrix: np.ndarray) -> float:
    """How much the columns' mean squares differ: their quartiles' distance, over the median.

    Trained weights have columns of unequal sizes and entries with long tails (kurtosis over 3). A
    rotation mixes the columns, which then differ only by chance, by sqrt(2 / rows). Quartiles
    ignore the few columns that a mean of the rows makes large. Every row counts the same: a
    rotation keeps its norm.
    """
    tiny = np.finfo(np.float32).tiny
    squares = np.square(matrix)
    squares /= np.maximum(squares.mean(axis=1, keepdims=True), tiny)
    low, middle, high = np.quantile(squares.mean(axis=0), [0.25, 0.5, 0.75])
    return float((high - low) / (_QUARTILES * max(middle, tiny)))


def rotate(matrix: np.ndarray) -> np.ndarray:
    """Rows times H / sqrt(n), with H[i, j] = (-1)^(number of ones in i & j), n a power of two.

    H of n = a b is the Kronecker product of those of a and b, so two small matmuls do it.
    """
    rows, size = matrix.shape
    outer = 1 << (size.bit_length() // 2)
    inner = size // outer
    cube = matrix.reshape(rows, outer, inner) @ _hadamard(inner)
    return (_hadamard(outer) @ cube).reshape(rows, size) / np.float32(math.sqrt(size))


def _hadamard(size: int) -> np.ndarray:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _turned(tensor: StoredTensor) -> Tensor:
    def values(array: np.ndarray, part: slice) -> np.ndarray:
        return rotate(widened(array, _FLOAT32))

    return ComputedTensor(tensor, tensor.shape, values)
