"""The T5 v1.1 encoder that turns token ids into caption embeddings.

Raffel et al. 2020 (arXiv 1910.10683) with the changes of v1.1: a gated tanh-GELU feed-forward, no
biases. Pre-norm with RMSNorm, attention scores without a scale, and one table of relative position
biases that every layer shares. `T5EncoderModel` of transformers is the reference.
"""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ltx_jax.config import ExecutionConfig, T5Config
from ltx_jax.models.layers import param
from ltx_jax.models.text_network import TextNetwork, TokenEmbedding, linear, rms_norm
from ltx_jax.runtime.sharding import constrain


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "m m"]:
    """The row of the bias table for every query (first axis) and key (second axis).

    The lower half of the rows is for keys at or before the query, the upper half for keys after it.
    Within each half, the first rows stand for one distance each, and the others for ranges that
    grow logarithmically; the last row stands for all distances from `max_distance` on.

    Raises:
      ValueError: if there are too few buckets for the logarithmic part.
    """
    half = num_buckets // 2
    exact = half // 2
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            f"{num_buckets} relative position buckets up to distance {max_distance}: at least 4 "
            "buckets and a distance above a quarter of them are needed"
        )
    position = np.arange(length)
    offset = position[None, :] - position[:, None]
    distance = np.abs(offset)
    # Computed in float32 and in the reference's order of operations, since rounding decides the row
    # of a distance at a boundary; and on the host, since the logarithms of devices differ.
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    steps = np.log(ratio) / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + steps.astype(np.int32), half - 1)
    row = np.where(distance < exact, distance, far)
    return (row + np.where(offset > 0, half, 0)).astype(np.int32)


class Attention(nn.Module):
    """Self-attention with an additive bias and no scale; softmax in float32."""

    cfg: T5Config
    execution: ExecutionConfig = ExecutionConfig()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b m d"], bias: Float[Array, "1 k m m"], mask: Int[Array, "b m"]
    ) -> Float[Array, "b m d"]:
        cfg, execution = self.cfg, self.execution
        width = cfg.num_heads * cfg.d_kv

        def heads(name: str, scale: float) -> Array:
            h = linear(execution, width, ("embed", "heads"), name, scale=scale)(x)
            return h.reshape(*x.shape[:2], cfg.num_heads, cfg.d_kv).astype(execution.dtype)

        # Scores have no scale; the initial deviation of the queries makes up for it.
        q = heads("q", (cfg.d_model * cfg.d_kv) ** -0.5)
        k = heads("k", cfg.d_model**-0.5)
        v = heads("v", cfg.d_model**-0.5)
        scores = jnp.einsum("bnke,bmke->bknm", q, k, preferred_element_type=jnp.float32) + bias
        # Finite rather than -inf, so that a caption that is all padding gives no NaN.
        scores = jnp.where(mask[:, None, None, :] != 0, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(execution.dtype)
        h = jnp.einsum("bknm,bmke->bnke", weights, v, preferred_element_type=jnp.float32)
        h = constrain(h.reshape(*x.shape[:2], width), "batch", None, "act_heads")
        return linear(execution, cfg.d_model, ("heads", "embed"), "o", scale=width**-0.5)(h)


class FeedForward(nn.Module):
    """Gated feed-forward network: wo(gelu(wi_0 x) * wi_1 x), as float32."""

    cfg: T5Config
    execution: ExecutionConfig = ExecutionConfig()

    @nn.compact
    def __call__(self, x: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
        cfg, execution = self.cfg, self.execution
        axes, scale = ("embed", "mlp"), cfg.d_model**-0.5
        gate = linear(execution, cfg.d_ff, axes, "wi_0", scale=scale)(x)
        h = nn.gelu(gate) * linear(execution, cfg.d_ff, axes, "wi_1", scale=scale)(x)
        h = constrain(h, "batch", None, "act_mlp")
        # The released weights drive the output of this matmul past 65504, the largest float16.
        # bfloat16 has the range of float32, and the matmul accumulates in float32 anyway.
        dtype = "float32" if execution.dtype == "float16" else execution.dtype
        scale = cfg.d_ff**-0.5
        output = linear(execution, cfg.d_model, ("mlp", "embed"), "wo", scale=scale, dtype=dtype)
        return output(h)


class Block(nn.Module):
    """One layer, as the body of `nn.scan`: the carry is `x` in float32; there are no outputs."""

    cfg: T5Config
    execution: ExecutionConfig = ExecutionConfig()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b m d"], bias: Float[Array, "1 k m m"], mask: Int[Array, "b m"]
    ) -> tuple[Float[Array, "b m d"], None]:
        settings, epsilon = (self.cfg, self.execution), self.cfg.layer_norm_epsilon
        h = rms_norm(self.execution, epsilon, "attention_norm")(x)
        x = x + Attention(*settings, name="attention")(h, bias, mask)
        h = rms_norm(self.execution, epsilon, "ff_norm")(x)
        x = x + FeedForward(*settings, name="ff")(h)
        return constrain(x, "batch", None, "act_embed"), None


class T5Encoder(TextNetwork):
    """Maps token ids to embeddings in `execution.dtype`.

    `mask` is 1 at tokens and 0 at padding; no token attends to padding, but the embeddings at
    padded positions are not zeroed. The residual stream is always float32: the released weights
    drive it past the range of float16, and bfloat16 would round it twice per layer.
    """

    identity_parameters = ("relative_attention_bias", "final_norm/scale")
    file_settings: ClassVar = {"feed_forward_proj": (("gated-gelu",), "relu")}
    file_optional = (
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
        "layer_norm_epsilon",
    )
    # The second name of the shared embedding, and the decoder of a whole T5.
    file_ignored = r"encoder\.embed_tokens\.weight|decoder\..*|lm_head\.weight.*"

    @nn.compact
    def __call__(
        self, token_ids: Int[Array, "b m"], mask: Int[Array, "b m"]
    ) -> Float[Array, "b m d"]:
        """The embeddings."""
        cfg, execution = self.cfg, self.execution
        buckets = relative_buckets(
            token_ids.shape[1],
            cfg.relative_attention_num_buckets,
            cfg.relative_attention_max_distance,
        )
        table = self.param(
            "relative_attention_bias",
            param((None, "heads"), nn.initializers.normal(cfg.d_model**-0.5)),
            (cfg.relative_attention_num_buckets, cfg.num_heads),
            execution.param_dtype,
        )
        bias = jnp.take(table.astype(jnp.float32).T, buckets, axis=1)[None]

        embedding = TokenEmbedding(cfg.vocab_size, cfg.d_model, execution, name="shared")
        x = constrain(embedding(token_ids), "batch", None, "act_embed")
        x = self.repeat(Block, cfg.num_layers, "blocks", x, bias, mask)
        norm = rms_norm(execution, cfg.layer_norm_epsilon, "final_norm")
        return norm(x).astype(execution.dtype)

    @classmethod
    def file_name(cls, path: tuple[str, ...]) -> str:
        """The name in the files of transformers."""
        if path[0] == "blocks":
            return f"encoder.block.{{}}.layer.{_LAYER_NAMES['/'.join(path[1:])]}.weight"
        return f"{_OTHER_NAMES['/'.join(path)]}.weight"

    @classmethod
    def file_extras(cls, cfg: T5Config) -> dict[str, Any]:
        """The entries that transformers writes for a T5 encoder without its decoder."""
        return {
            "architectures": ["T5EncoderModel"],
            "num_decoder_layers": cfg.num_layers,
            "dense_act_fn": "gelu_new",
            "is_gated_act": True,
            "is_encoder_decoder": False,
            "use_cache": False,
            "dropout_rate": 0.0,
            "pad_token_id": 0,
            "eos_token_id": 1,
        }


# Names in the files of transformers.
_OTHER_NAMES = {
    "shared/embedding": "shared",
    "relative_attention_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    "final_norm/scale": "encoder.final_layer_norm",
}
_LAYER_NAMES = {
    "attention_norm/scale": "0.layer_norm",
    "attention/q/kernel": "0.SelfAttention.q",
    "attention/k/kernel": "0.SelfAttention.k",
    "attention/v/kernel": "0.SelfAttention.v",
    "attention/o/kernel": "0.SelfAttention.o",
    "ff_norm/scale": "1.layer_norm",
    "ff/wi_0/kernel": "1.DenseReluDense.wi_0",
    "ff/wi_1/kernel": "1.DenseReluDense.wi_1",
    "ff/wo/kernel": "1.DenseReluDense.wo",
}
