"""T5 encoders of transformers with every tensor random: the oracle for ours."""

import pathlib
from typing import Any

import numpy as np
import pytest
import transformers

from ltx_jax.config import T5Config

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # more of them slow tiny models down

# The heads' 3 * 8 channels differ from the model's 32, as in the smaller released T5s.
TINY = T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=3)


def reference(cfg: T5Config = TINY, seed: int = 0) -> transformers.T5EncoderModel:
    """A model whose gains, biases and scores all matter: nothing is 0 or 1 at the start."""
    model = transformers.T5EncoderModel(_config(cfg)).eval()
    randomise(model, seed)
    return model


def whole(cfg: T5Config = TINY) -> transformers.T5ForConditionalGeneration:
    """The same with a decoder."""
    return transformers.T5ForConditionalGeneration(_config(cfg)).eval()


def _config(cfg: T5Config) -> transformers.T5Config:
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    names += ("relative_attention_num_buckets", "relative_attention_max_distance")
    return transformers.T5Config(
        **{name: getattr(cfg, name) for name in names},
        feed_forward_proj="gated-gelu",
        attn_implementation="eager",
    )


def randomise(model: Any, seed: int) -> None:
    """Draws every parameter: gains around 1, linear layers so that variances stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "layer_norm" in name:
            noise = 1 + 0.3 * noise
        elif value.shape[0] != model.config.vocab_size and "bias" not in name:
            noise = noise * value.shape[1] ** -0.5
        value.data.copy_(noise)


@torch.no_grad()
def run(model: Any, ids: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The last hidden state."""
    mask = None if mask is None else torch.tensor(mask)
    output = model(input_ids=torch.tensor(ids), attention_mask=mask)
    return output.last_hidden_state.float().numpy()


def save(model: transformers.PreTrainedModel, directory: pathlib.Path, **options) -> pathlib.Path:
    """Writes the model as transformers does."""
    model.save_pretrained(directory, **options)
    return directory
