"""T5 encoders in one file without a configuration, as ComfyUI and llama.cpp have them."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("gguf")

import jax
import numpy as np
import safetensors.torch
import torch
from t5_reference import TINY, reference, save
from tiny_checkpoint import write_checkpoint

from ltx_jax.checkpoints import hub, text_encoder_files
from ltx_jax.inference.text_encoder import TextEncoder


def is_linear(name):
    return ("SelfAttention" in name and "bias" not in name) or "DenseReluDense" in name


def plain(kind):
    """Every tensor in one dtype: t5xxl_fp16, t5xxl_fp8_e4m3fn."""

    def write(path, state):
        stored = {name: value.to(kind) for name, value in state.items()}
        safetensors.torch.save_file(stored, path, {"format": "pt"})
        return {name: value.float() for name, value in stored.items()}

    return write


def scaled(path, state):
    """t5xxl_fp8_e4m3fn_scaled (ComfyUI): scale_weight beside the linear layers, a marker, and a
    tokenizer as bytes."""
    stored, meaning = {}, {}
    for name, value in state.items():
        if is_linear(name):
            scale = value.abs().max() / 448
            stored[name] = (value / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix("weight") + "scale_weight"] = scale
            meaning[name] = stored[name].float() * scale
        else:
            stored[name] = value.half()
            meaning[name] = stored[name].float()
    stored["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    stored["spiece_model"] = torch.zeros(7, dtype=torch.uint8)
    safetensors.torch.save_file(stored, path)
    return meaning


def second_embedding(path, state):
    """The embedding under its other name alone."""
    stored = dict(state)
    stored["encoder.embed_tokens.weight"] = stored.pop("shared.weight")
    safetensors.torch.save_file(stored, path)
    return state


def inside(path, state):
    """Within a checkpoint of ComfyUI, other networks beside it."""
    prefix = "text_encoders.t5xxl.transformer."
    stored = {prefix + name: value for name, value in state.items()}
    safetensors.torch.save_file(stored | {"model.other.weight": torch.zeros(2)}, path)
    return state


# llama.cpp: gguf-py/gguf/tensor_mapping.py, MODEL_ARCH.T5ENCODER.
GGUF = {
    "shared": "token_embd",
    "encoder.final_layer_norm": "enc.output_norm",
    "layer.0.layer_norm": "attn_norm",
    "layer.0.SelfAttention.q": "attn_q",
    "layer.0.SelfAttention.k": "attn_k",
    "layer.0.SelfAttention.v": "attn_v",
    "layer.0.SelfAttention.o": "attn_o",
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.1.layer_norm": "ffn_norm",
    "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up",
    "layer.1.DenseReluDense.wo": "ffn_down",
}


def gguf(path, state):
    """llama.cpp's convert_hf_to_gguf.py and llama-quantize."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path=path, arch="t5encoder")
    meaning = {}
    for name, value in state.items():
        module = name.removesuffix(".weight")
        if module.startswith("encoder.block."):
            _, _, block, rest = module.split(".", 3)
            target = f"enc.blk.{block}.{GGUF[rest]}.weight"
        else:
            target = f"{GGUF[module]}.weight"
        fits = is_linear(name) and value.shape[1] % 32 == 0
        kind = kinds.Q8_0 if fits else kinds.F32
        data = gguf.quants.quantize(value.numpy(), kind)
        writer.add_tensor(target, data, raw_dtype=kind)
        meaning[name] = torch.tensor(gguf.quants.dequantize(data, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meaning


LAYOUTS = {
    "fp16": plain(torch.float16),
    "fp8": plain(torch.float8_e4m3fn),
    "scaled": scaled,
    "second_embedding": second_embedding,
    "inside": inside,
    "gguf": gguf,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_single_file_is_the_folder_of_its_values(tmp_path, layout):
    model = reference()
    state = dict(model.state_dict())
    state.pop("encoder.embed_tokens.weight", None)
    state = {name: value.clone() for name, value in state.items()}
    path = tmp_path / ("t5.gguf" if layout == "gguf" else "t5.safetensors")
    meaning = LAYOUTS[layout](path, state)
    assert {name for name in meaning if name in state} == set(state)
    model.load_state_dict(meaning, strict=False)

    cfg = text_encoder_files.read_config(path)
    assert cfg == TINY
    ours = text_encoder_files.load_params(path, cfg, None, "float32")
    theirs = text_encoder_files.load_params(save(model, tmp_path / "folder"), cfg, None, "float32")
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_tokenizer_lies_beside_a_single_file_or_is_asked_of_the_hub(tmp_path, monkeypatch):
    path = tmp_path / "t5xxl.safetensors"
    plain(torch.float16)(
        path, {n: v for n, v in reference().state_dict().items() if "embed" not in n}
    )

    def unreachable(name, patterns):
        if name == path:
            return path
        assert (name, patterns) == ("PixArt-alpha/PixArt-XL-2-1024-MS", ["tokenizer/*"])
        raise ValueError("the hub cannot be reached")

    monkeypatch.setattr(hub, "resolve", unreachable)
    with pytest.raises(
        ValueError, match=r"comes without a tokenizer: put the spiece.model.*beside"
    ):
        TextEncoder.load(path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "ByT5Tokenizer", "model_max_length": 9}'
    )
    encoder = TextEncoder.load(path, dtype="float32")
    assert encoder.max_tokens == 9
    assert encoder.encode(["a cat"])[0].shape == (1, 9, TINY.d_model)


def test_what_is_no_t5_v1_1_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    state = {n: v.clone() for n, v in reference().state_dict().items() if "embed_tokens" not in n}
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    safetensors.torch.save_file(state | {bias.format(1): state[bias.format(0)].clone()}, path)
    with pytest.raises(ValueError, match="is a UMT5"):
        text_encoder_files.read_config(path)
    wi = "encoder.block.0.layer.1.DenseReluDense.wi.weight"
    safetensors.torch.save_file(state | {wi: torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match=r"is a T5 v1\.0"):
        text_encoder_files.read_config(path)
    write_checkpoint(path, with_vae=False)
    with pytest.raises(ValueError, match="is an LTX-Video checkpoint: pass it as --checkpoint"):
        TextEncoder.load(path)
