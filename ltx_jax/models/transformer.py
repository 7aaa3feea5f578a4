"""The diffusion transformer: predicts the flow velocity of every latent token.

Tokens are the voxels of the latent grid. A block is self-attention with rotary positions,
cross-attention to the caption, and a feed-forward layer; the diffusion time of each token shifts,
scales and gates the first and the last. All blocks share one compiled body (`nn.scan`).
"""

import functools
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float

from ltx_jax.config import ExecutionConfig, STGMode, TransformerConfig
from ltx_jax.models.attention import Mask, attention
from ltx_jax.models.layers import Dense, RMSNorm, TimestepEmbedder, dense, param, rms_normalize
from ltx_jax.runtime.platforms import platform
from ltx_jax.runtime.sharding import constrain, token_padding

Heads = tuple[Float[Array, "b n k e"], Float[Array, "b m k e"], Float[Array, "b m k e"]]
Rope = tuple[Float[Array, "#b n p"], Float[Array, "#b n p"]]  # cosines, sines of the p = d/2 pairs

QK_NORM_EPSILON = 1e-5
OUTPUT_NORM_EPSILON = 1e-6  # epsilon of the output norm; `norm_eps` applies to the blocks only
# Checkpoint policies for blocks. remat="attention" has none: it recomputes the parts of a block
# between its attentions one by one (see `Block`). A policy cannot express that, as the residuals
# that a fused attention kernel saves for its gradient have no name.
_REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

# Whatever the policy for blocks is, the gradient recomputes chains of elementwise operations: their
# float32 intermediates would take most of the memory, and recomputing them costs next to nothing.
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


def compiler_options() -> dict[str, Any] | None:
    """XLA options for programs with the transformer, for the current mesh's devices."""
    if platform() != "gpu":
        return None
    # Without Triton, XLA uses cuBLASLt, which fuses bias and GELU into the matmuls.
    return {"xla_gpu_enable_triton_gemm": False}


@struct.dataclass
class Skip:
    """The blocks that some rows of a batch skip, for spatio-temporal guidance.

    Attributes:
      mode: how a block is skipped. "attention_values" and "attention_skip" replace the result of
        its self-attention, before the output projection, by the values or by the input of that
        attention; "transformer_block" replaces the block's output by its input; "residual" changes
        nothing, as upstream.
      mask: float (layers, b), 0 where a block is skipped and 1 elsewhere.
    """

    mode: STGMode = struct.field(pytree_node=False)
    mask: Any


@struct.dataclass
class TimeGroups:
    """Groups of tokens that have the same time at every step, so that each time is embedded once.

    Attributes:
      group: index of each token's group, from 0, (b, n).
      member: index of one token of each group (b, g); of any token if the group is empty.
    """

    group: Any
    member: Any


@struct.dataclass
class Context:
    """The inputs of the network besides tokens and times. They are the same in every step of a
    sampling run. A new kind of conditioning is added as a field whose default is None, and declared
    in `TransformerConfig.context_shapes`.

    Attributes:
      caption: embeddings (b, m, c) from the text encoder.
      caption_mask: (b, m), 1 for a caption's tokens and 0 for padding; None means all ones.
      rope: rotary tables of the tokens' positions, cosines and sines (b or 1, n, d / 2), from
        `diffusion.positions.rope_of`.
      time_groups: groups of tokens with equal times; None if unknown.
    """

    caption: Any
    caption_mask: Any
    rope: Any
    time_groups: TimeGroups | None = None


def example_inputs(cfg: TransformerConfig) -> tuple[Array, Array, Context]:
    """The smallest valid tokens (b, n, c), times (b, 1) and context, for `init`."""
    table = jnp.ones((1, 2, cfg.width // 2))
    fields: Any = {name: jnp.zeros((1, *shape)) for name, shape in cfg.context_shapes.items()}
    context = Context(jnp.zeros((1, 1, cfg.caption_channels)), None, (table, table), **fields)
    return jnp.zeros((1, 2, cfg.in_channels)), jnp.ones((1, 1)), context


@struct.dataclass
class _BlockInputs:
    """The inputs that are the same for all blocks."""

    modulation: Any  # (b, n or 1, 6, d)
    caption: Any  # (b, m, d)
    caption_mask: Any  # (b, m) or None
    token_mask: Any  # (b, n); None if no token is padding
    rope: Any  # (cos, sin)
    skip_mode: STGMode | None = struct.field(pytree_node=False)


def rotate(x: Float[Array, "b n d"], rope: Rope) -> Float[Array, "b n d"]:
    """Rotates each pair of channels (2i, 2i + 1) by its angle, in float32.

    The pairs span the full width rather than one head, so every head has different frequencies.
    """
    cos, sin = rope
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def _dense(execution: ExecutionConfig) -> Callable[..., Dense]:
    return functools.partial(dense, dtype=execution.dtype, param_dtype=execution.param_dtype)


def _row(modulation: Array, table: Array, row: int) -> Array:
    """Row `row` of the modulation (b, #n, rows, d) plus the same row of the table (rows, d)."""
    own = table[row].astype(jnp.float32)[None, None]
    return modulation[:, :, row].astype(jnp.float32) + own


def _shift_and_scale(h: Array, modulation: Array, table: Array, row: int) -> Array:
    """Computes h * (1 + row `row + 1`) + row `row`: the shift is stored before the scale."""
    return h * (1 + _row(modulation, table, row + 1)) + _row(modulation, table, row)


@functools.partial(_recomputed, static_argnums=(3, 4))
def _norm_in(x: Array, modulation: Array, table: Array, row: int, epsilon: float) -> Array:
    h = _shift_and_scale(rms_normalize(x, epsilon), modulation, table, row)
    return h.astype(x.dtype)


@functools.partial(_recomputed, static_argnums=4)
def _gate_in(x: Array, update: Array, modulation: Array, table: Array, row: int) -> Array:
    h = x.astype(jnp.float32) + _row(modulation, table, row) * update.astype(jnp.float32)
    return h.astype(x.dtype)


@_recomputed
def _norm_out(x: Array, time: Array, table: Array) -> Array:
    """The output norm: a LayerNorm, which subtracts the mean, unlike the blocks' norms. Returns
    float32."""
    h = x.astype(jnp.float32)
    h = h - jnp.mean(h, axis=-1, keepdims=True)
    modulation = jnp.broadcast_to(time[:, :, None], (*time.shape[:2], *table.shape))
    return _shift_and_scale(rms_normalize(h, OUTPUT_NORM_EPSILON), modulation, table, 0)


@_recomputed
def _gelu(x: Array) -> Array:
    return nn.gelu(x, approximate=True)


def _keep(keep: Float[Array, " b"], kept: Array, instead: Array) -> Array:
    weight = keep.astype(kept.dtype)[:, None, None]
    return kept * weight + instead * (1 - weight)


class Attention(nn.Module):
    """Multi-head attention; queries and keys are normalised over all heads at once.

    It is split into three methods for rematerialisation (see `Block`), since the middle one is
    expensive to recompute, but its result is cheap to store.
    """

    cfg: TransformerConfig
    execution: ExecutionConfig = ExecutionConfig()

    def setup(self):
        cfg, execution = self.cfg, self.execution
        project = functools.partial(
            _dense(execution), cfg.width, ("embed", "heads"), use_bias=cfg.attention_bias
        )
        norm = functools.partial(RMSNorm, QK_NORM_EPSILON, ("heads",), execution.param_dtype)
        self.to_q, self.to_k, self.to_v = (project(name=name) for name in ("to_q", "to_k", "to_v"))
        self.q_norm, self.k_norm = norm(name="q_norm"), norm(name="k_norm")
        self.to_out = _dense(execution)(cfg.width, ("heads", "embed"), name="to_out")

    def project(
        self, x: Float[Array, "b n d"], source: Float[Array, "b m d"], rope: Rope | None = None
    ) -> Heads:
        """Queries of `x`, keys and values of `source`, all (b, tokens, k, e)."""
        cfg = self.cfg
        q, k, v = self.q_norm(self.to_q(x)), self.k_norm(self.to_k(source)), self.to_v(source)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)

        def heads(x: Array, tokens: str | None) -> Array:
            x = x.reshape(*x.shape[:2], cfg.num_attention_heads, cfg.attention_head_dim)
            return constrain(x, "batch", tokens, "act_heads", None)

        keys = None if rope is None else "token"  # the caption is not sharded over `seq`
        return heads(q, "token"), heads(k, keys), heads(v, keys)

    def attend(
        self, heads: Heads, mask: Mask | None = None, is_self_attention: bool = False
    ) -> Float[Array, "b n d"]:
        """The weighted sum of the values for each query."""
        out = attention(
            *heads, mask=mask, form=self.execution.attention, is_self_attention=is_self_attention
        )
        out = constrain(out, "batch", "token", "act_heads", None)
        return out.reshape(*out.shape[:2], -1)

    def output(self, attended: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Applies the output projection."""
        return self.to_out(attended)


class MLP(nn.Module):
    """Two linear layers with a tanh GELU in between: feed-forward layer and caption projection."""

    cfg: TransformerConfig
    execution: ExecutionConfig
    hidden: int
    token_axis: str | None = "token"

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n d"]:
        linear = _dense(self.execution)
        h = linear(self.hidden, ("embed", "mlp"), name="linear_1")(x)
        h = constrain(h, "batch", self.token_axis, "act_mlp")
        return linear(self.cfg.width, ("mlp", "embed"), name="linear_2")(_gelu(h))


class AdaLNSingle(nn.Module):
    """Embeds scaled times (0 to 1000), and projects the embedding once for all blocks."""

    cfg: TransformerConfig
    execution: ExecutionConfig = ExecutionConfig()

    @nn.compact
    def __call__(
        self, time: Float[Array, "b s"]
    ) -> tuple[Float[Array, "b s 6 d"], Float[Array, "b s d"]]:
        """Returns the modulation (shift, scale and gate for attention, then for feed-forward), and
        the embedding."""
        cfg, execution = self.cfg, self.execution
        dtypes = execution.dtype, execution.param_dtype
        embedder = TimestepEmbedder(cfg.width, *dtypes, name="timestep_embedder")
        tokens = "token" if time.shape[1] > 1 else None
        embedded = constrain(embedder(time), "batch", tokens, "act_embed")
        # Initialised small, so that every block starts close to the identity.
        small = nn.initializers.normal(0.02)
        linear = _dense(execution)
        linear = linear(6 * cfg.width, ("embed", "adaln"), name="linear", kernel_init=small)
        modulation = linear(nn.silu(embedded)).reshape(*time.shape, 6, cfg.width)
        return constrain(modulation, "batch", tokens, None, "act_embed"), embedded


class Block(nn.Module):
    """One layer, written as a scan body: carries `x`, emits nothing.

        x = x + gate_1 * attn1(shift_1 + (1 + scale_1) * norm(x))
        x = x + attn2(x, caption)
        x = x + gate_2 * ff(shift_2 + (1 + scale_2) * norm(x))

    The methods `_to_self`, `_to_caption` and `_to_end` are the parts between the two attentions:
    with remat="attention", the gradient recomputes these parts, but not the attentions.
    """

    cfg: TransformerConfig
    execution: ExecutionConfig = ExecutionConfig()

    def setup(self):
        cfg, execution = self.cfg, self.execution
        self.table = _table(self, 6)
        self.attn1 = Attention(cfg, execution, name="attn1")
        self.attn2 = Attention(cfg, execution, name="attn2")
        self.ff = MLP(cfg, execution, 4 * cfg.width, name="ff")

    def __call__(
        self, x: Float[Array, "b n d"], keep: Float[Array, " b"] | None, shared: _BlockInputs
    ) -> tuple[Float[Array, "b n d"], None]:
        def part(method: Any) -> Any:
            recomputes = self.execution.remat == "attention"
            return nn.remat(method, prevent_cse=False) if recomputes else method

        heads = part(type(self)._to_self)(self, x, shared)
        attended = self.attn1.attend(heads, shared.token_mask, is_self_attention=True)
        after, heads = part(type(self)._to_caption)(self, x, attended, heads[2], keep, shared)
        attended = self.attn2.attend(heads, shared.caption_mask)
        after = part(type(self)._to_end)(self, after, attended, shared)
        if keep is not None and shared.skip_mode == "transformer_block":
            after = _keep(keep, after, x)
        return constrain(after, "batch", "token", "act_embed"), None

    def _to_self(self, x: Array, shared: _BlockInputs) -> Heads:
        h = _norm_in(x, shared.modulation, self.table, 0, self.cfg.norm_eps)
        return self.attn1.project(h, h, shared.rope)

    def _to_caption(
        self,
        x: Array,
        attended: Array,
        values: Array,
        keep: Array | None,
        shared: _BlockInputs,
    ) -> tuple[Array, Heads]:
        if keep is not None and shared.skip_mode == "attention_values":
            attended = _keep(keep, attended, values.reshape(attended.shape))
        elif keep is not None and shared.skip_mode == "attention_skip":
            h = _norm_in(x, shared.modulation, self.table, 0, self.cfg.norm_eps)
            attended = _keep(keep, attended, h)
        x = _gate_in(x, self.attn1.output(attended), shared.modulation, self.table, 2)
        # Cross-attention uses the residual stream directly, without norm or gate.
        return x, self.attn2.project(x, shared.caption)

    def _to_end(self, x: Array, attended: Array, shared: _BlockInputs) -> Array:
        x = x + self.attn2.output(attended)
        h = _norm_in(x, shared.modulation, self.table, 3, self.cfg.norm_eps)
        return _gate_in(x, self.ff(h), shared.modulation, self.table, 5)


def _table(module: "Block | Transformer", rows: int) -> Array:
    cfg, param_dtype = module.cfg, module.execution.param_dtype
    init = param(("adaln", "embed"), nn.initializers.normal(cfg.width**-0.5))
    table = module.param("scale_shift_table", init, (rows, cfg.width), param_dtype)
    # Gathered before it is added to the activations; otherwise XLA would reshard those instead.
    return constrain(table, None, "act_embed")


class Transformer(nn.Module):
    """Predicts the velocity (noise minus data) of each latent token."""

    cfg: TransformerConfig
    execution: ExecutionConfig = ExecutionConfig()

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "b n c"],
        timestep: Float[Array, "b #n"],
        context: Context,
        skip: Skip | None = None,
    ) -> Float[Array, "b n c2"]:
        """Returns the velocity in float32.

        Args:
          latents: noisy normalised latents.
          timestep: in [0, 1], where 1 is noise; one per token, or one per sample.
          context: captions and positions.
          skip: blocks to skip, for spatio-temporal guidance.

        Raises:
          ValueError: if an input does not fit the configuration.
        """
        cfg, execution = self.cfg, self.execution
        _check(cfg, latents, context, skip)
        n = latents.shape[1]
        latents, timestep, rope, token_mask = _pad(latents, timestep, context.rope)
        x = constrain(latents.astype(execution.dtype), "batch", "token", None)
        x = _dense(execution)(cfg.width, (None, "embed"), name="patchify_proj")(x)
        x = constrain(x, "batch", "token", "act_embed")

        time = timestep.astype(jnp.float32) * cfg.timestep_scale_multiplier
        modulation, embedded = AdaLNSingle(cfg, execution, name="adaln_single")(time)
        project = MLP(cfg, execution, cfg.width, None, name="caption_projection")
        caption = project(context.caption.astype(execution.dtype))
        shared = _BlockInputs(
            modulation=modulation,
            caption=constrain(caption, "batch", None, "act_embed"),
            caption_mask=context.caption_mask,
            token_mask=token_mask,
            rope=tuple(constrain(table, *_rope_axes(table)) for table in rope),
            skip_mode=None if skip is None else skip.mode,
        )
        body = Block
        if execution.remat in _REMAT:
            body = nn.remat(Block, prevent_cse=False, policy=_REMAT[execution.remat])
        blocks = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=cfg.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        keep = None if skip is None else skip.mask
        x, _ = blocks(cfg, execution, name="blocks")(x, keep, shared)

        # The last layer is small, so it is in float32: the velocity is not rounded further.
        x = _norm_out(x, embedded, _table(self, 2))
        out = dense(
            cfg.out_channels,
            ("embed", None),
            name="proj_out",
            dtype="float32",
            param_dtype=execution.param_dtype,
            kernel_init=nn.initializers.normal(0.02),
        )
        return constrain(out(x), "batch", "token", None)[:, :n]


def _pad(
    latents: Array, timestep: Array, rope: tuple[Array, Array]
) -> tuple[Array, Array, tuple[Array, Array], Array | None]:
    """Pads the tokens to a multiple that can be sharded over the mesh, with a mask of real ones."""
    b, n, _ = latents.shape
    extra = token_padding(n)
    if not extra:
        return latents, timestep, rope, None
    latents, *tables = (jnp.pad(x, ((0, 0), (0, extra), (0, 0))) for x in (latents, *rope))
    if timestep.shape[1] > 1:
        timestep = jnp.pad(timestep, ((0, 0), (0, extra)))
    mask = jnp.broadcast_to(jnp.arange(n + extra) < n, (b, n + extra))
    return latents, timestep, (tables[0], tables[1]), mask


def _rope_axes(table: Array) -> tuple[str | None, ...]:
    return "batch" if table.shape[0] > 1 else None, "token", "act_heads"


def _check(cfg: TransformerConfig, latents: Array, context: Context, skip: Skip | None) -> None:
    caption, (cosines, _) = context.caption, context.rope
    if latents.shape[-1] != cfg.in_channels:
        raise ValueError(
            f"the latents have {latents.shape[-1]} channels and this transformer takes "
            f"{cfg.in_channels}: use the VAE it was trained with"
        )
    if caption.shape[-1] != cfg.caption_channels:
        raise ValueError(
            f"the caption embeddings are {caption.shape[-1]} wide and this transformer takes "
            f"{cfg.caption_channels}: use the text encoder it was trained with"
        )
    pairs = cfg.width // 2
    if cosines.shape[-1] != pairs:
        raise ValueError(
            f"the rotary tables hold {cosines.shape[-1]} pairs and a width of {cfg.width} takes "
            f"{pairs}: make them with rope_tables and this configuration"
        )
    if skip is None:
        return
    if skip.mode not in get_args(STGMode):
        raise ValueError(f"unknown skip mode {skip.mode!r}; known: {get_args(STGMode)}")
    if skip.mask.shape != (cfg.num_layers, latents.shape[0]):
        raise ValueError(
            f"the skip mask has shape {skip.mask.shape}, and {cfg.num_layers} layers with a batch "
            f"of {latents.shape[0]} take {(cfg.num_layers, latents.shape[0])}"
        )
