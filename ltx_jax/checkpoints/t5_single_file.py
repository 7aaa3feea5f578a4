"""A T5 in one file without a configuration, as ComfyUI and llama.cpp have it.

t5xxl_fp16 and its 8-bit forms have the names of transformers, GGUF files those of llama.cpp.
"""

import re
from pathlib import Path

from ltx_jax.checkpoints import layout, quantized, weight_files
from ltx_jax.checkpoints.tensors import Tensor
from ltx_jax.config import T5Config

_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
# Names in GGUF files, as llama.cpp writes them.
_GGUF_SINGLE = {
    "token_embd.weight": "shared.weight",
    "enc.output_norm.weight": "encoder.final_layer_norm.weight",
}
_GGUF_PER_LAYER = {
    "attn_norm": "0.layer_norm",
    "attn_q": "0.SelfAttention.q",
    "attn_k": "0.SelfAttention.k",
    "attn_v": "0.SelfAttention.v",
    "attn_o": "0.SelfAttention.o",
    "attn_rel_b": "0.SelfAttention.relative_attention_bias",
    "ffn_norm": "1.layer_norm",
    "ffn_gate": "1.DenseReluDense.wi_0",
    "ffn_up": "1.DenseReluDense.wi_1",
    "ffn_down": "1.DenseReluDense.wo",
}
_FIRST = "encoder.block.0.layer.0.SelfAttention.q.weight"
_SECOND_EMBEDDING = "encoder.embed_tokens.weight"
_VOCABULARY = "spiece_model"  # a tokenizer as bytes, which some files hold


def read_config(path: Path) -> T5Config:
    """Infers the sizes from the tensors' shapes; all else is the same in every T5 v1.1.

    Raises:
      ValueError: if the file is damaged or holds no encoder of a T5 v1.1; says what it is.
    """
    stored = open_file(path)
    block = "encoder.block.0.layer"
    if f"{block}.1.DenseReluDense.wi.weight" in stored:
        raise ValueError(f"{path} is a T5 v1.0: only T5 v1.1 (gated GELU) is supported")
    if _BIAS.replace("block.0", "block.1") in stored:
        raise ValueError(f"{path} is a UMT5: LTX-Video reads captions by T5 v1.1")

    def shape(name: str) -> tuple[int, ...]:
        sizes = stored[name].shape if name in stored else ()
        if len(sizes) != 2:
            raise ValueError(f"{path} does not hold a T5 encoder: it has no matrix {name}")
        return sizes

    vocab_size, d_model = shape("shared.weight")
    buckets, num_heads = shape(_BIAS)
    blocks = {name.split(".")[2] for name in stored if name.startswith("encoder.block.")}
    return T5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=shape(f"{block}.0.SelfAttention.q.weight")[0] // max(num_heads, 1),
        d_ff=shape(f"{block}.1.DenseReluDense.wi_0.weight")[0],
        num_layers=len(blocks),
        num_heads=num_heads,
        relative_attention_num_buckets=buckets,
    )


def open_file(path: Path) -> dict[str, Tensor]:
    """The tensors of the file under the names of transformers.

    Raises:
      ValueError: as `read_config` does.
    """
    weights = weight_files.open_file(path)
    stored = quantized.joined(weights.tensors, weights.metadata, str(path))
    if any(name.startswith("enc.blk.0.") for name in stored):
        stored = {_from_gguf(name): tensor for name, tensor in stored.items()}
    first = next((name for name in stored if name.endswith(_FIRST)), None)
    if first is None:
        raise ValueError(f"{path} is no T5 text encoder: {layout.describe(weights.tensors)}")
    prefix = first.removesuffix(_FIRST)
    named = {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
    named.pop(_VOCABULARY, None)
    if "shared.weight" not in named and _SECOND_EMBEDDING in named:
        named["shared.weight"] = named.pop(_SECOND_EMBEDDING)
    return named


def _from_gguf(name: str) -> str:
    """The name in transformers of a tensor of a GGUF file; those of a decoder keep theirs."""
    if name in _GGUF_SINGLE:
        return _GGUF_SINGLE[name]
    match = re.fullmatch(r"enc\.blk\.(\d+)\.(\w+)\.weight", name)
    if match is None or match[2] not in _GGUF_PER_LAYER:
        return f"decoder.{name}" if name.startswith("dec.") else name
    return f"encoder.block.{match[1]}.layer.{_GGUF_PER_LAYER[match[2]]}.weight"
