"""A Llama decoder as a text encoder: the hidden states of its last layer (arXiv 2302.13971)."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ltx_jax.config.networks import ExecutionConfig, LlamaConfig
from ltx_jax.models.text_network import TextNetwork, TokenEmbedding, linear, rms_norm


def rotate(x: Float[Array, "b m k c"], theta: float) -> Float[Array, "b m k c"]:
    """Turns channels i and i + c/2 of token n, as a pair, by n theta^(-2i/c)."""
    frequencies = theta ** -jnp.linspace(0, 1, x.shape[-1] // 2, endpoint=False)
    turn = jnp.exp(1j * jnp.outer(jnp.arange(x.shape[1]), frequencies))[None, :, None]
    turned = jax.lax.complex(*jnp.split(x, 2, axis=-1)) * turn
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


class LlamaLayer(nn.Module):
    """Causal attention and a gated feed-forward network; module names are those of the files."""

    cfg: LlamaConfig
    execution: ExecutionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b m d"]) -> tuple[Float[Array, "b m d"], None]:
        cfg, (b, m, d) = self.cfg, x.shape
        dense = functools.partial(linear, self.execution)
        norm = functools.partial(rms_norm, self.execution, cfg.rms_norm_eps)
        size, theta, axes = d // cfg.num_attention_heads, cfg.rope_theta, ("embed", "heads")
        h = norm("input_layernorm")(x)
        counts = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.num_key_value_heads
        q, k, v = (
            dense(n * size, axes, f"self_attn.{name}_proj")(h).reshape(b, m, n, size)
            for name, n in zip("qkv", counts, strict=True)
        )
        h = jax.nn.dot_product_attention(rotate(q, theta), rotate(k, theta), v, is_causal=True)
        x += dense(d, ("heads", "embed"), "self_attn.o_proj")(h.reshape(b, m, d))
        h, wide = norm("post_attention_layernorm")(x), cfg.intermediate_size
        gate, up = (dense(wide, ("embed", "mlp"), f"mlp.{n}_proj")(h) for n in ("gate", "up"))
        return x + dense(d, ("mlp", "embed"), "mlp.down_proj")(nn.silu(gate) * up), None


class LlamaEncoder(TextNetwork):
    """Maps token ids to the hidden states of Llama; no token depends on a later one."""

    identity_parameters = ("norm/scale", "layers/input_layernorm/scale")
    file_settings: ClassVar = {"rope_type": (("default",), "default")}
    file_prefix, file_ignored = "model.", r"lm_head\.weight|.*rotary_emb\.inv_freq"

    @nn.compact
    def __call__(self, token_ids: Int[Array, "b m"], mask: Int[Array, "b m"]) -> Array:
        cfg, execution = self.cfg, self.execution
        x = TokenEmbedding(cfg.vocab_size, cfg.width, execution, name="embed_tokens")(token_ids)
        x = self.repeat(LlamaLayer, cfg.num_hidden_layers, "layers", x)
        return rms_norm(execution, cfg.rms_norm_eps, "norm")(x).astype(execution.dtype)
