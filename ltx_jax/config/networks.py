"""Settings of the networks, of how a device computes them, and of the mesh.

The networks' settings say what a checkpoint's parameters mean. Field names are those of the
released checkpoints.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

from ltx_jax.config.settings import require, settings

DType = Literal["float32", "bfloat16", "float16"]
Remat = Literal["none", "dots", "full", "attention"]
AttentionForm = Literal["auto", "plain", "cudnn", "splash"]
AdapterNaming = Literal["comfy", "diffusers"]  # the program whose names an adapter's file has
Linears = Literal["float8", "int8"]  # precision of the transformer's large matmuls in sampling


# Sizes beyond these are those of no network but of a damaged or hostile file: they are refused
# before any work is done for them.
_MAX_LAYERS, _MAX_WIDTH, _MAX_BLOCKS = 1000, 1 << 20, 20


def _require_range(cfg: Any, low: int, high: int, *names: str) -> None:
    for name in names:
        value = getattr(cfg, name)
        require(low <= value <= high, f"{name} must lie in [{low:,}, {high:,}], got {value}")


def _require_below(cfg: Any, limit: float, *names: str) -> None:
    for name in names:
        value = getattr(cfg, name)
        require(0 < value < limit, f"{name} must lie between 0 and {limit:,}, got {value}")


@settings
class MeshConfig:
    """Size of every mesh axis; at most one may be -1, meaning "all remaining devices"."""

    data: int = -1  # batch
    fsdp: int = 1  # parameters and optimiser state, and batch
    seq: int = 1  # video tokens
    tensor: int = 1  # attention heads and feed-forward width


@settings
class ExecutionConfig:
    """How a device computes a network, whatever its architecture. Not part of a checkpoint."""

    # "auto" takes the fastest form of attention on the default backend.
    attention: AttentionForm = "auto"
    # What the gradient recomputes: "none" nothing, "dots" all but matmuls and convolutions, "full"
    # everything, "attention" (for the transformer) all but attention.
    remat: Remat = "none"
    dtype: DType = "float32"  # of the computation
    param_dtype: DType = "float32"  # of the parameters that are initialised and trained


@settings
class TransformerConfig:
    """The diffusion transformer. Defaults are the released 2B model."""

    num_layers: int = 28
    num_attention_heads: int = 32
    attention_head_dim: int = 64
    in_channels: int = 128
    out_channels: int = 128
    caption_channels: int = 4096
    norm_eps: float = 1e-6
    positional_embedding_theta: float = 10_000.0
    # Seconds, pixels, pixels: the coordinate that maps to 1 on each axis.
    positional_embedding_max_pos: tuple[float, float, float] = (20.0, 2048.0, 2048.0)
    # Latent frame f begins at pixel frame max(8 f - 7, 0) if true, at 8 f if false.
    causal_temporal_positioning: bool = False
    timestep_scale_multiplier: float = 1000.0
    attention_bias: bool = True

    def __post_init__(self):
        _require_range(self, 1, _MAX_LAYERS, "num_layers")
        sizes = ("num_attention_heads", "attention_head_dim", "width")
        channels = ("in_channels", "out_channels", "caption_channels")
        _require_range(self, 1, _MAX_WIDTH, *sizes, *channels)
        _require_below(self, 1.0, "norm_eps")
        _require_below(self, 1e12, "positional_embedding_theta", "timestep_scale_multiplier")
        for value in self.positional_embedding_max_pos:
            require(
                0 < value < 1e12,
                f"positional_embedding_max_pos must be 3 positive numbers, got {value}",
            )
        require(self.width % 2 == 0, f"RoPE needs an even width, got {self.width}")
        multiplier = self.timestep_scale_multiplier
        require(multiplier > 0, f"timestep_scale_multiplier must be positive, got {multiplier}")

    @property
    def width(self) -> int:
        """Model width: heads times channels per head."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """The network's further inputs: the fields of `models.transformer.Context` beyond captions
        and positions, by name, each with its shape for one clip.

        Training data, stored latents and the sampler pass them on under these names, as float32.
        Zeros mean "unknown": they replace the input wherever training drops the caption, and for
        the negative caption of guidance.
        """
        return {}


@settings
class BlockConfig:
    """One entry of the VAE's block lists, named as in the released checkpoints.

    Encoder: res_x, res_x_y, compress_{time,space,all} and compress_all_x_y (strided convolution),
    compress_{time,space,all}_res (space to depth).
    Decoder: res_x, attn_res_x, res_x_y, compress_{time,space,all} (depth to space).
    """

    name: str
    num_layers: int = 1  # res_x, attn_res_x: number of residual blocks
    # Channel factor. None is the released default of the block: 2 for res_x_y, compress_all_x_y
    # and compress_*_res, 1 for the rest.
    multiplier: int | None = None
    residual: bool = False  # decoder's compress_all: add the depth-to-space of the input
    inject_noise: bool = False  # res_x, res_x_y: StyleGAN-like noise after each convolution
    attention_head_dim: int | None = None  # attn_res_x

    def __post_init__(self):
        _require_range(self, 0, _MAX_LAYERS, "num_layers")
        _require_range(self, 1, 64, "channel_multiplier")
        if self.attention_head_dim is not None:
            _require_range(self, 1, _MAX_WIDTH, "attention_head_dim")

    @property
    def channel_multiplier(self) -> int:
        """`multiplier`, or the released default of this block."""
        if self.multiplier is not None:
            return self.multiplier
        doubles = self.name in ("res_x_y", "compress_all_x_y") or self.name.endswith("_res")
        return 2 if doubles else 1


@settings
class VAEConfig:
    """The causal Video-VAE. Both block lists are in encoder order: the decoder applies its own
    from last to first."""

    encoder_blocks: tuple[BlockConfig, ...]
    decoder_blocks: tuple[BlockConfig, ...]
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 128
    patch_size: int = 4
    encoder_base_channels: int = 128
    decoder_base_channels: int = 128
    norm_layer: Literal["pixel_norm", "group_norm", "layer_norm"] = "pixel_norm"
    latent_log_var: Literal["uniform", "per_channel", "constant", "none"] = "uniform"
    causal_decoder: bool = False
    timestep_conditioning: bool = False
    spatial_padding_mode: Literal["zeros", "replicate", "reflect", "circular"] = "zeros"
    use_quant_conv: bool = False

    def __post_init__(self):
        channels = ("in_channels", "out_channels", "latent_channels")
        bases = ("encoder_base_channels", "decoder_base_channels")
        _require_range(self, 1, _MAX_WIDTH, *channels, *bases)
        _require_range(self, 1, 64, "patch_size")
        for half, base in zip(("encoder_blocks", "decoder_blocks"), bases, strict=True):
            blocks = getattr(self, half)
            layers = sum(block.num_layers for block in blocks)
            width = getattr(self, base) * math.prod(block.channel_multiplier for block in blocks)
            require(
                len(blocks) <= _MAX_BLOCKS and layers <= _MAX_LAYERS and width <= _MAX_WIDTH,
                f"{half} has {len(blocks)} blocks of {layers} layers up to {width} channels wide; "
                f"at most {_MAX_BLOCKS}, {_MAX_LAYERS} and {_MAX_WIDTH} are supported",
            )

    def explicit(self) -> "VAEConfig":
        """The same configuration, with the multiplier of every block spelled out."""

        def spelled_out(blocks: tuple[BlockConfig, ...]) -> tuple[BlockConfig, ...]:
            return tuple(dataclasses.replace(b, multiplier=b.channel_multiplier) for b in blocks)

        encoder, decoder = map(spelled_out, (self.encoder_blocks, self.decoder_blocks))
        return dataclasses.replace(self, encoder_blocks=encoder, decoder_blocks=decoder)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent, along height and along width."""
        halvings = _count(self, "compress_space", "compress_all")
        return self.patch_size * 2**halvings

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame: 8k+1 frames become k+1 where this is 8."""
        return 2 ** _count(self, "compress_time", "compress_all")


def _count(cfg: VAEConfig, *names: str) -> int:
    """Counts the encoder blocks of these names and of NAME_res; compress_all_x_y is not counted."""
    return sum(block.name.removesuffix("_res") in names for block in cfg.encoder_blocks)


class TextEncoderConfig:
    """The base of the text encoders' configurations, whose fields are named as in transformers.

    Attributes:
      network: "module:name" of the network, an `ltx_jax.models.text_network.TextNetwork`.
      model_type: name of the family in the `config.json` of transformers.
      width_field: which field says how many channels the embeddings have.
      vocab_size: number of token ids.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # subclasses are dataclasses
    network: ClassVar[str]
    model_type: ClassVar[str]
    width_field: ClassVar[str] = "hidden_size"
    vocab_size: int

    @property
    def width(self) -> int:
        """Channels of the embeddings."""
        return getattr(self, self.width_field)


@settings
class T5Config(TextEncoderConfig):
    """A T5 v1.1 encoder (gated GELU). Defaults are T5-XXL."""

    network: ClassVar[str] = "ltx_jax.models.t5:T5Encoder"
    model_type: ClassVar[str] = "t5"
    width_field: ClassVar[str] = "d_model"

    vocab_size: int = 32_128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10_240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    def __post_init__(self):
        _require_range(self, 1, _MAX_LAYERS, "num_layers")
        _require_range(self, 1, _MAX_WIDTH, "d_model", "d_kv", "d_ff", "num_heads")
        _require_range(self, 1, 1 << 24, "vocab_size", "relative_attention_max_distance")
        _require_range(self, 1, _MAX_WIDTH, "relative_attention_num_buckets")
        _require_below(self, 1.0, "layer_norm_epsilon")


@settings
class UpsamplerConfig:
    """The latent upsampler between the two passes of multi-scale sampling."""

    in_channels: int = 128
    mid_channels: int = 512
    num_blocks_per_stage: int = 4
    dims: Literal[2, 3] = 3
    spatial_upsample: bool = True
    temporal_upsample: bool = False

    def __post_init__(self):
        _require_range(self, 1, _MAX_WIDTH, "in_channels", "mid_channels")
        _require_range(self, 0, _MAX_LAYERS, "num_blocks_per_stage")


@settings
class DiscriminatorConfig:
    """The 3-D patch discriminator of the VAE's adversarial loss."""

    base_channels: int = 64
    max_channels: int = 512
    levels: int = 4  # each halves rows and columns; those of the second half halve frames too
