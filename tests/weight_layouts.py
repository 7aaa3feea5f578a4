"""Small transformers in every public layout of weight files, written without this package.

Each writer is that of the tool which makes such files: safetensors through torch, the package gguf,
diffusers' `save_pretrained`. `values` of the result are those that the layout means, computed in
float32 from what was stored.
"""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
from safetensors.torch import save_file

from ltx_jax.checkpoints import releases

HEADS, HEAD_DIM, CHANNELS, CAPTION = 32, 2, 8, 32
WIDTH = HEADS * HEAD_DIM
SIZES = {"2b": "2b-0.9.6-dev", "13b": "13b-0.9.8-dev"}

Values = dict[str, np.ndarray]


def config(size: str) -> dict[str, Any]:
    """The released configuration of a size, narrow: its depth, schedule and heads."""
    raw = releases.RELEASED[SIZES[size]].config
    return {
        "scheduler": raw["scheduler"],
        "transformer": raw["transformer"]
        | {
            "attention_head_dim": HEAD_DIM,
            "cross_attention_dim": WIDTH,
            "caption_channels": CAPTION,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
        },
    }


def base(size: str) -> Values:
    """Weights under official names, in bfloat16's values, with columns of unequal sizes, as
    training makes them."""
    layers = config(size)["transformer"]["num_layers"]
    shapes = {
        "patchify_proj": (WIDTH, CHANNELS),
        "adaln_single.emb.timestep_embedder.linear_1": (WIDTH, 256),
        "adaln_single.emb.timestep_embedder.linear_2": (WIDTH, WIDTH),
        "adaln_single.linear": (6 * WIDTH, WIDTH),
        "caption_projection.linear_1": (WIDTH, CAPTION),
        "caption_projection.linear_2": (WIDTH, WIDTH),
        "proj_out": (CHANNELS, WIDTH),
    }
    for i in range(layers):
        for attention in ("attn1", "attn2"):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                shapes[f"transformer_blocks.{i}.{attention}.{part}"] = (WIDTH, WIDTH)
        shapes[f"transformer_blocks.{i}.ff.net.0.proj"] = (4 * WIDTH, WIDTH)
        shapes[f"transformer_blocks.{i}.ff.net.2"] = (WIDTH, 4 * WIDTH)
    draw = np.random.default_rng(len(size))
    values = {"scale_shift_table": draw.normal(0, 0.1, (2, WIDTH))}
    for module, (out, into) in shapes.items():
        columns = np.exp(draw.normal(0, 0.5, into))
        values[f"{module}.weight"] = draw.normal(0, into**-0.5, (out, into)) * columns
        values[f"{module}.bias"] = draw.normal(0, 0.02, out)
    for i in range(layers):
        values[f"transformer_blocks.{i}.scale_shift_table"] = draw.normal(0, 0.1, (6, WIDTH))
        for norm in ("attn1.q_norm", "attn1.k_norm", "attn2.q_norm", "attn2.k_norm"):
            values[f"transformer_blocks.{i}.{norm}.weight"] = 1 + draw.normal(0, 0.1, WIDTH)
    return {name: _numpy(_bfloat16(value)) for name, value in values.items()}


class Written(NamedTuple):
    """A file or folder, and the weights that it means."""

    path: pathlib.Path
    values: Values
    tolerance: float = 0  # of float32 values whose sums have no fixed order, relative


def _torch() -> Any:
    import torch

    return torch


def _bfloat16(array: np.ndarray) -> Any:
    torch = _torch()
    return torch.tensor(np.asarray(array, np.float32)).to(torch.bfloat16)


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.float().numpy()


def is_matrix(name: str) -> bool:
    """Whether Q8-Kernels' convert_weights.py, and so the released fp8 files, quantise a tensor."""
    inside = name.startswith("transformer_blocks.") and ("attn" in name or "ff." in name)
    return inside and name.endswith(".weight") and "norm" not in name


def save(path: pathlib.Path, tensors: dict[str, Any], prefix: str = "", **metadata: str) -> None:
    """Writes by safetensors' binding of torch."""
    tensors = {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, {"format": "pt", **metadata})


OFFICIAL = "model.diffusion_model."


def bf16(folder: pathlib.Path, size: str, values: Values) -> Written:
    """An official file."""
    path = folder / "official.safetensors"
    tensors = {name: _bfloat16(value) for name, value in values.items()}
    save(path, tensors, OFFICIAL, config=json.dumps(config(size)))
    return Written(path, values)


def comfy_split(folder: pathlib.Path, size: str, values: Values) -> Written:
    """ComfyUI's split files (its save_checkpoint of a model alone): prefix, no configuration."""
    path = folder / "diffusion_model.safetensors"
    save(path, {name: _bfloat16(value) for name, value in values.items()}, "diffusion_model.")
    return Written(path, values)


def bare(folder: pathlib.Path, size: str, values: Values) -> Written:
    """Files saved again from a state dict: neither prefix nor configuration."""
    path = folder / "bare.safetensors"
    save(path, {name: _bfloat16(value) for name, value in values.items()})
    return Written(path, values)


def _fp8(values: Values, kind: str, change: Any = lambda w: w) -> tuple[dict[str, Any], Values]:
    """The tensors with matrices in eight bits, and their values; `change` is its own inverse."""
    torch = _torch()
    tensors, meaning = {}, {}
    for name, value in values.items():
        if is_matrix(name):
            tensors[name] = torch.tensor(change(value)).to(getattr(torch, kind))
            meaning[name] = change(_numpy(tensors[name]))
        else:
            tensors[name], meaning[name] = _bfloat16(value), value
    return tensors, meaning


def fp8_official(folder: pathlib.Path, size: str, values: Values) -> Written:
    """Q8-Kernels' convert_weights.py: plain e4m3fn, names and metadata kept."""
    tensors, meaning = _fp8(values, "float8_e4m3fn")
    path = folder / "ltxv-fp8.safetensors"
    save(path, tensors, OFFICIAL, config=json.dumps(config(size)))
    return Written(path, meaning)


def fp8_e5m2(folder: pathlib.Path, size: str, values: Values) -> Written:
    """The other kind, bare, as converters of the community write it."""
    tensors, meaning = _fp8(values, "float8_e5m2")
    path = folder / "fp8_e5m2.safetensors"
    save(path, tensors)
    return Written(path, meaning)


def hadamard(matrix: np.ndarray) -> np.ndarray:
    """Rows times (-1)^popcount(i & j) / sqrt(n): q8_kernels' quantize_hadamard without its cast."""
    size = matrix.shape[-1]
    return (matrix @ (_signs(size) / size**0.5)).astype(np.float32)


@functools.cache
def _signs(size: int) -> np.ndarray:
    return np.array([[(-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)])


def fp8_rotated(folder: pathlib.Path, size: str, values: Values) -> Written:
    """The first upload of ltxv-13b-0.9.7-dev-fp8: nothing says that its matrices are rotated."""
    tensors, meaning = _fp8(values, "float8_e4m3fn", hadamard)
    path = folder / "rotated-fp8.safetensors"
    save(path, tensors, OFFICIAL, config=json.dumps(config(size)))
    return Written(path, meaning, 1e-5)


def _scaled(values: Values, endings: tuple[str, ...]) -> tuple[dict[str, Any], Values]:
    """Matrices over their largest value / 448, and that scale under the first ending."""
    torch = _torch()
    tensors, meaning = {}, {}
    for name, value in values.items():
        if not is_matrix(name):
            tensors[name], meaning[name] = _bfloat16(value), value
            continue
        scale = np.float32(np.abs(value).max() / 448)
        tensors[name] = torch.tensor(value / scale).to(torch.float8_e4m3fn)
        meaning[name] = _numpy(tensors[name]) * scale
        for ending, number in zip(endings, (scale, np.float32(0.5)), strict=False):
            tensors[name.removesuffix(".weight") + ending] = torch.tensor(number)
    return tensors, meaning


def scaled_comfy(folder: pathlib.Path, size: str, values: Values) -> Written:
    """ComfyUI's comfy/ops.py, scaled_fp8_ops: `scale_weight`, `scale_input` and the marker."""
    torch = _torch()
    tensors, meaning = _scaled(values, (".scale_weight", ".scale_input"))
    tensors["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    path = folder / "scaled.safetensors"
    save(path, tensors, "diffusion_model.")
    return Written(path, meaning)


def comfy_quant(folder: pathlib.Path, size: str, values: Values) -> Written:
    """ComfyUI's comfy/quant_ops.py of 2026: `weight_scale`, and JSON as bytes in `comfy_quant`."""
    torch = _torch()
    tensors, meaning = _scaled(values, (".weight_scale", ".input_scale"))
    text = json.dumps({"format": "float8_e4m3fn"}).encode()
    mark = torch.tensor(list(text), dtype=torch.uint8)
    for name in filter(is_matrix, values):
        tensors[name.removesuffix("weight") + "comfy_quant"] = mark.clone()
    path = folder / "comfy_quant.safetensors"
    save(path, tensors)
    return Written(path, meaning)


def modelopt(folder: pathlib.Path, size: str, values: Values) -> Written:
    """TensorRT Model Optimizer's export, also of LTX-2: scales without a marker."""
    tensors, meaning = _scaled(values, (".weight_scale", ".input_scale"))
    path = folder / "modelopt.safetensors"
    save(path, tensors, OFFICIAL, config=json.dumps(config(size)))
    return Written(path, meaning)


def _gguf(folder: pathlib.Path, values: Values, kind: str) -> Written:
    """ComfyUI-GGUF's convert.py and llama-quantize: matrices of the blocks in `kind`, the tensors
    with one axis and the tables in F32, all others in BF16."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    path = folder / f"model-{kind}.gguf"
    writer = gguf.GGUFWriter(path=path, arch="ltxv")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    meaning = {}
    for name, value in values.items():
        one = value.ndim == 1 or value.size <= 1024 or "scale_shift_table" in name
        chosen = kinds.F32 if one else kinds[kind] if is_matrix(name) else kinds.BF16
        data = gguf.quants.quantize(value, chosen)
        writer.add_tensor(name, data, raw_dtype=chosen)
        meaning[name] = gguf.quants.dequantize(data, chosen).reshape(value.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written(path, meaning)


def gguf_q8_0(folder: pathlib.Path, size: str, values: Values) -> Written:
    """GGUF of 8 bits and a scale for 32 values."""
    return _gguf(folder, values, "Q8_0")


def gguf_q4_0(folder: pathlib.Path, size: str, values: Values) -> Written:
    """GGUF of 4 bits and a scale for 32 values."""
    return _gguf(folder, values, "Q4_0")


# Segments of names that differ in diffusers (its convert_ltx_to_diffusers.py).
_DIFFUSERS = {
    "patchify_proj": "proj_in",
    "adaln_single": "time_embed",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}


def diffusers_name(name: str) -> str:
    """The name of a tensor in diffusers' transformer."""
    return ".".join(_DIFFUSERS.get(part, part) for part in name.split("."))


def diffusers_fp16(folder: pathlib.Path, size: str, values: Values) -> Written:
    """`save_pretrained(variant="fp16")` of diffusers' class, sharded with an index."""
    import diffusers

    torch = _torch()
    raw = config(size)["transformer"]
    same = ("num_layers", "num_attention_heads", "attention_head_dim", "cross_attention_dim")
    same += ("in_channels", "out_channels", "caption_channels")
    model = diffusers.LTXVideoTransformer3DModel(**{name: raw[name] for name in same})
    tensors = {diffusers_name(n): torch.tensor(v).to(torch.float16) for n, v in values.items()}
    model.to(torch.float16).load_state_dict(tensors)
    path = folder / "diffusers_fp16"
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(path / "scheduler")
    model.save_pretrained(path / "transformer", variant="fp16", max_shard_size="1MB")
    meaning = {name: _numpy(tensors[diffusers_name(name)]) for name in values}
    return Written(path, meaning)


def diffusers_names(folder: pathlib.Path, size: str, values: Values) -> Written:
    """diffusers' transformer in one file without its config.json."""
    path = folder / "diffusers_names.safetensors"
    save(path, {diffusers_name(name): _bfloat16(value) for name, value in values.items()})
    return Written(path, values)


def q8_int8(folder: pathlib.Path, size: str, values: Values) -> Written:
    """q8_kernels' folder of integers: rotated rows over largest value / 127, own names."""
    torch = _torch()
    tensors, meaning = {}, {}
    for name, value in values.items():
        key = name.replace("to_out.0.", "to_out.").replace(".net.0.", ".act.")
        key = diffusers_name(key.replace(".net.2.", ".proj_down."))
        if not is_matrix(name):
            tensors[key], meaning[name] = _bfloat16(value), value
            continue
        turned = hadamard(value)
        scales = (np.abs(turned).max(axis=1) / 127).astype(np.float32)
        codes = np.rint(turned / scales[:, None])
        tensors[key] = torch.tensor(codes).to(torch.int8)
        tensors[key.removesuffix("weight") + "scales"] = torch.tensor(scales)
        meaning[name] = hadamard((codes * scales[:, None]).astype(np.float32))
    path = folder / "q8.safetensors"
    save(path, tensors)
    return Written(path, meaning, 1e-5)


LAYOUTS = (
    *(bf16, comfy_split, bare, fp8_official, fp8_e5m2, fp8_rotated, scaled_comfy, comfy_quant),
    *(modelopt, gguf_q8_0, gguf_q4_0, diffusers_fp16, diffusers_names, q8_int8),
)
