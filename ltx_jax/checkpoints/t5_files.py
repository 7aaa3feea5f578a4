"""T5 encoder weights in the layout of transformers: a directory with config.json and safetensors.

Tensors are read and written one at a time (`placement`). On a CPU, the peak memory of loading
is that of the parameters and a few tensors of the file; the largest of T5-XXL, the token embedding,
takes 526 MB in float32. For another device the host holds one parameter at a time, with all its
layers: at most 2 GB in bfloat16.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ltx_jax.checkpoints import placement, tensors
from ltx_jax.checkpoints.keys import Leaf
from ltx_jax.config import DType, T5Config
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.runtime import sharding
from ltx_jax.runtime.files import atomic_write_text

# Names, or beginnings of names, that a directory may hold beside the encoder: the second name of
# the shared embedding, and the decoder of a whole T5.
TOLERATED = ("encoder.embed_tokens.weight", "decoder.", "lm_head.weight")

MAX_TOKENS = 256  # of captions of the released models

_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
_SINGLE = {
    ("shared", "embedding"): "shared.weight",
    ("relative_attention_bias",): _BIAS,
    ("final_norm", "scale"): "encoder.final_layer_norm.weight",
}
# Names below blocks/ in our tree -> names below encoder.block.{layer}.layer. in the files.
_PER_LAYER = {
    ("attention_norm", "scale"): "0.layer_norm.weight",
    ("attention", "q", "kernel"): "0.SelfAttention.q.weight",
    ("attention", "k", "kernel"): "0.SelfAttention.k.weight",
    ("attention", "v", "kernel"): "0.SelfAttention.v.weight",
    ("attention", "o", "kernel"): "0.SelfAttention.o.weight",
    ("ff_norm", "scale"): "1.layer_norm.weight",
    ("ff", "wi_0", "kernel"): "1.DenseReluDense.wi_0.weight",
    ("ff", "wi_1", "kernel"): "1.DenseReluDense.wi_1.weight",
    ("ff", "wo", "kernel"): "1.DenseReluDense.wo.weight",
}

_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
_DEFAULTED = (  # may be absent: we have the defaults of transformers
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
)


def max_byte_tokens(directory: Path) -> int | None:
    """Longest caption, in tokens, of a directory's byte tokenizer; None for any other tokenizer.

    Raises:
      ValueError: if its configuration is damaged.
    """
    file = directory / "tokenizer_config.json"
    try:
        raw = json.loads(file.read_text()) if file.is_file() else {}
        if raw.get("tokenizer_class") != "ByT5Tokenizer":
            return None
        most = raw.get("model_max_length", MAX_TOKENS)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not readable as JSON: {error}") from error
    # A number as large as transformers can write stands for no limit.
    return int(most) if most < 10**6 else MAX_TOKENS


def read_config(directory: Path) -> T5Config:
    """Reads `config.json`.

    Raises:
      ValueError: if there is none, or if it is not that of a T5 v1.1.
    """
    file = directory / "config.json"
    if not file.is_file():
        raise ValueError(f"{directory} holds no config.json: it is not the directory of a T5")
    try:
        raw = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not readable as JSON: {error}") from error
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind != "t5":
        raise ValueError(f"{file} describes a model of type {kind!r}; the text encoder is a 't5'")
    activation = raw.get("feed_forward_proj", "relu")
    if activation != "gated-gelu":
        raise ValueError(
            f"{file} has feed_forward_proj {activation!r}: only T5 v1.1 ('gated-gelu') is "
            "supported, not the first T5"
        )
    bad = [name for name in _SIZES if not isinstance(raw.get(name), int) or raw[name] < 1]
    if bad:
        raise ValueError(f"{file} gives no positive number as {', '.join(bad)}")
    sizes = {name: raw[name] for name in (*_SIZES, *_DEFAULTED) if name in raw}
    return T5Config(**sizes)


def load_params(
    directory: Path, cfg: T5Config, mesh: Mesh | None = None, dtype: DType | None = None
) -> dict[str, Any]:
    """Reads the parameters of `T5Encoder(cfg)`, each laid out on `mesh`, in `dtype` or as stored.

    Raises:
      ValueError: if a file is missing or damaged, or names the tensors that are missing, not
        expected, wrongly shaped or not floating point. All are checked before any is read.
    """
    boxed = _boxed(cfg)
    leaves = parameter_leaves(cfg)
    expected = {name for leaf in leaves for name in leaf.names}
    stored = {
        name: tensor
        for name, tensor in _stored_tensors(directory).items()
        if name in expected or not name.startswith(TOLERATED)
    }
    placement.check(str(directory), "the T5 encoder of its config.json", leaves, stored)
    return placement.read(leaves, boxed, stored, mesh, dtype)


def save(
    directory: Path, cfg: T5Config, params: dict[str, Any], max_shard_bytes: int = 5 * 10**9
) -> None:
    """Writes a directory that `T5EncoderModel.from_pretrained` of transformers loads.

    `config.json` comes last, so that a directory that was not finished does not load.

    Raises:
      ValueError: if `directory` already holds a model, or if `params` are not those of `cfg`.
    """
    if any(directory.glob("*.safetensors")):
        raise ValueError(f"{directory} already holds safetensors: choose an empty directory")
    leaves = parameter_leaves(cfg)
    arrays = {_names(path): array for path, array in jax.tree.leaves_with_path(params)}
    if {path: tuple(array.shape) for path, array in arrays.items()} != {
        leaf.path: leaf.shape for leaf in leaves
    }:
        raise ValueError(f"the parameters are not those of {cfg}")

    shards: list[dict[str, tensors.Pending]] = [{}]
    room = max_shard_bytes
    for leaf in leaves:
        pending = placement.pending(leaf, arrays[leaf.path])
        for name, tensor in zip(leaf.names, pending, strict=True):
            if shards[-1] and tensor.nbytes > room:
                shards.append({})
                room = max_shard_bytes
            shards[-1][name] = tensor
            room -= tensor.nbytes

    weight_map = {}
    for i, shard in enumerate(shards):
        part = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = f"model{part}.safetensors"
        tensors.write_file(directory / file, shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)
    _write_json(directory / "config.json", _config_json(cfg, arrays[leaves[0].path].dtype.name))


def parameter_leaves(cfg: T5Config) -> list[Leaf]:
    """The parameters of `T5Encoder(cfg)` and their names in the files."""
    leaves = []
    for path, shape in jax.tree.leaves_with_path(sharding.unbox(_boxed(cfg))):
        path = _names(path)
        if path[0] == "blocks":
            name = _PER_LAYER[path[1:]]
            names = tuple(f"encoder.block.{i}.layer.{name}" for i in range(cfg.num_layers))
            leaves.append(Leaf(path, shape.shape, names, stacked=True))
        else:
            leaves.append(Leaf(path, shape.shape, (_SINGLE[path],)))
    return leaves


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(entry.key for entry in path)


def _boxed(cfg: T5Config) -> Any:
    """Shapes of the parameters, boxed with the names of their logical axes."""
    ids = jax.ShapeDtypeStruct((1, 1), np.int32)
    return jax.eval_shape(T5Encoder(cfg).init, jax.random.key(0), ids, ids)["params"]


def _stored_tensors(directory: Path) -> dict[str, tensors.StoredTensor]:
    """The tensors in the files that the index lists or, without an index, in all files."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index} is not the index of a sharded model: {error!r}") from error
        files = [directory / name for name in names]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise ValueError(f"{index} lists {absent}, which {directory} does not hold")
    else:
        files = sorted(directory.glob("model*.safetensors"))
    if not files:
        torch_files = any(directory.glob("pytorch_model*.bin"))
        hint = ", only PyTorch files: save them with safe_serialization=True" if torch_files else ""
        raise ValueError(f"{directory} holds no model.safetensors{hint}")
    stored: dict[str, tensors.StoredTensor] = {}
    for file in files:
        stored |= tensors.open_file(file).tensors
    return stored


def _write_json(file: Path, content: dict[str, Any]) -> None:
    atomic_write_text(file, json.dumps(content, indent=2) + "\n")


def _config_json(cfg: T5Config, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        **{name: getattr(cfg, name) for name in (*_SIZES, *_DEFAULTED)},
        "num_decoder_layers": cfg.num_layers,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "is_encoder_decoder": False,
        "use_cache": False,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
    }
