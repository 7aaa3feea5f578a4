"""What the transformer promises, against the released arithmetic and on its own."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import golden_state_dict

from ltx_jax import sharding
from ltx_jax.config import TransformerConfig
from ltx_jax.diffusion.tokens import rope_tables
from ltx_jax.models.transformer import AdaLNSingle, Skip, Transformer

GOLDEN = pathlib.Path(__file__).parent / "golden" / "transformer_tiny.npz"
TINY = TransformerConfig(
    num_layers=3,
    num_attention_heads=4,
    attention_head_dim=16,
    in_channels=8,
    out_channels=8,
    caption_channels=32,
)


def from_official(state: dict[str, np.ndarray], layers: int) -> dict:
    """Our tree from an official state dict of `Linear` layers, gains and tables."""
    names = {
        "adaln_single.emb.": "adaln_single.",
        "to_out.0": "to_out",
        "net.0.proj": "linear_1",
        "net.2": "linear_2",
        "norm.weight": "norm.scale",
    }

    def put(tree: dict, key: str, value: np.ndarray) -> None:
        for old, new in names.items():
            key = key.replace(old, new)
        if key.endswith(".weight"):
            key, value = key.removesuffix("weight") + "kernel", np.swapaxes(value, -1, -2)
        *path, leaf = key.split(".")
        for name in path:
            tree = tree.setdefault(name, {})
        tree[leaf] = value

    params = {}
    for key, value in state.items():
        list_name, _, rest = key.partition(".")
        if list_name != "transformer_blocks":
            put(params, key, value)
        elif rest.startswith("0."):
            name = rest.removeprefix("0.")
            stack = [state[f"transformer_blocks.{i}.{name}"] for i in range(layers)]
            put(params, f"blocks.{name}", np.stack(stack))
    return params


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN))


@pytest.fixture(scope="module")
def golden_params(golden):
    return from_official(golden_state_dict(json.loads(str(golden["shapes"]))), TINY.num_layers)


def golden_inputs(golden, causal=1, timestep="t_token"):
    rope = (golden[f"rope_{name}_causal{causal}"][..., ::2] for name in ("cos", "sin"))
    return dict(
        latents=golden["tokens"],
        timestep=golden[timestep],
        caption=golden["enc"],
        caption_mask=golden["enc_mask"],
        rope=tuple(rope),
    )


# Rounding in float32 (3e-5 was seen); the bias of -10000 rounds the scores of row 1, whose caption
# is masked out, to 1e-3.
@pytest.mark.parametrize(
    ("name", "causal", "timestep"),
    [
        ("out_token", 1, "t_token"),
        ("out_token_noncausal", 0, "t_token"),
        ("out_global", 1, "t_global"),
    ],
)
def test_velocity_matches_the_released_code(golden, golden_params, name, causal, timestep):
    inputs = golden_inputs(golden, causal, timestep)
    got = jax.jit(Transformer(TINY).apply)({"params": golden_params}, **inputs)
    np.testing.assert_allclose(got, golden[name], rtol=0, atol=2e-4)
