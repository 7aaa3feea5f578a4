"""Every setting of the project: frozen dataclasses, the whole schema of `configs/`.

Imports nothing of ours, so that `--help` is instant and the schema is one page. Field names of the
networks, the scheduler and the sampling options are those of the released checkpoints and scripts.
"""

import dataclasses
import runpy
from collections.abc import Sequence
from typing import Any, Literal

DType = Literal["float32", "bfloat16", "float16"]
Remat = Literal["none", "dots", "full"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Size of every mesh axis; at most one may be -1, meaning "all remaining devices"."""

    data: int = -1  # batch
    fsdp: int = 1  # parameters and optimiser state, and batch
    seq: int = 1  # video tokens
    tensor: int = 1  # attention heads and feed-forward width


@dataclasses.dataclass(frozen=True)
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
    # Whether latent frame f starts at pixel frame max(8 f - 7, 0) rather than 8 f.
    causal_temporal_positioning: bool = False
    timestep_scale_multiplier: float = 1000.0
    attention_bias: bool = True
    remat: Remat = "none"
    dtype: DType = "float32"  # of the computation
    param_dtype: DType = "float32"  # of the stored parameters

    def __post_init__(self):
        _require(self.num_layers > 0, f"num_layers must be positive, got {self.num_layers}")
        _require(self.width % 2 == 0, f"RoPE needs an even width, got {self.width}")

    @property
    def width(self) -> int:
        """Model width: heads times channels per head."""
        return self.num_attention_heads * self.attention_head_dim


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """One entry of the VAE's block lists, named as in the released checkpoints.

    Encoder: res_x, res_x_y, attn_res_x is decoder only, compress_{time,space,all} (strided
    convolution), compress_all_x_y, compress_{time,space,all}_res (space to depth).
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

    @property
    def channel_multiplier(self) -> int:
        """`multiplier`, or the released default of this block."""
        if self.multiplier is not None:
            return self.multiplier
        doubles = self.name in ("res_x_y", "compress_all_x_y") or self.name.endswith("_res")
        return 2 if doubles else 1


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The causal Video-VAE. Both block lists are in encoder order: the decoder reads its own last
    first."""

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
    remat: Remat = "none"
    dtype: DType = "float32"
    param_dtype: DType = "float32"

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
    """Encoder blocks called one of `names`, also with `_res`; compress_all_x_y does not count."""
    return sum(block.name.removesuffix("_res") in names for block in cfg.encoder_blocks)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """A T5 v1.1 encoder (gated GELU). Defaults are T5-XXL; names are those of transformers."""

    vocab_size: int = 32_128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10_240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    dtype: DType = "float32"
    param_dtype: DType = "float32"


@dataclasses.dataclass(frozen=True)
class UpsamplerConfig:
    """The latent upsampler between the two passes of multi-scale sampling."""

    in_channels: int = 128
    mid_channels: int = 512
    num_blocks_per_stage: int = 4
    dims: Literal[2, 3] = 3
    spatial_upsample: bool = True
    temporal_upsample: bool = False
    dtype: DType = "float32"
    param_dtype: DType = "float32"


PerStep = float | tuple[float, ...]  # one value, or one per entry of `guidance_timesteps`
SkipBlocks = tuple[int, ...] | tuple[tuple[int, ...], ...]
STGMode = Literal["attention_values", "attention_skip", "residual", "transformer_block"]


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How one video is sampled. Names and defaults are those of the official inference script."""

    negative_prompt: str = "worst quality, inconsistent motion, blurry, jittery, distorted"
    height: int = 704  # pixels; any positive size, padded to a legal one and cropped back
    width: int = 1216  # likewise
    num_frames: int = 121  # likewise; whole latent frames are 8k+1
    frame_rate: float = 30.0  # frames per second
    num_inference_steps: int = 40  # length of the checkpoint's own schedule
    timesteps: tuple[float, ...] | None = None  # explicit times, in place of a count
    skip_initial_inference_steps: int = 0  # of the schedule
    skip_final_inference_steps: int = 0  # of the schedule
    guidance_scale: PerStep = 3.0  # classifier-free guidance; <= 1 is off
    cfg_star_rescale: bool = False  # scale the negative prediction to fit the positive one
    stg_scale: PerStep = 1.0  # spatio-temporal guidance; <= 0 is off
    stg_mode: STGMode = "attention_values"  # what a skipped block does in place of attention
    skip_block_list: SkipBlocks = ()  # blocks that the perturbed branch skips
    rescaling_scale: PerStep = 0.7  # 1 is off
    guidance_timesteps: tuple[float, ...] | None = None  # times at which per-step values change
    stochastic_sampling: bool = False  # new noise in every step
    image_cond_noise_scale: float = 0.15  # noise on conditions, new in every step
    prepare_conditions: bool = True  # blur and H.264-compress condition images, as in training
    decode_timestep: float = 0.05  # noise level that the decoder is told, in [0, 1]
    decode_noise_scale: float | None = 0.025  # level that is added; None: the decode timestep
    tone_map_compression_ratio: float = 0.0  # in [0, 1]: how far to pull in extreme latents
    seed: int = 171_198  # sample i draws from fold_in(key(seed), i)

    def __post_init__(self):
        for name in ("height", "width", "num_frames", "frame_rate", "num_inference_steps"):
            value = getattr(self, name)
            _require(value > 0, f"{name} must be positive, got {value}")
        for name in ("decode_timestep", "decode_noise_scale", "tone_map_compression_ratio"):
            value = getattr(self, name)
            _require(value is None or 0 <= value <= 1, f"{name} must lie in [0, 1], got {value}")
        scale = self.image_cond_noise_scale
        _require(scale >= 0, f"image_cond_noise_scale must not be negative, got {scale}")
        # jax.random.key would drop the higher bits.
        _require(0 <= self.seed < 2**32, f"seed must lie in [0, 2**32), got {self.seed}")


@dataclasses.dataclass(frozen=True)
class SampleConfig(SamplingConfig):
    """Everything that sample.py is told: where models and media lie, beside how to sample."""

    config: str | None = None  # a .py or .json file that the other options start from
    # A safetensors file, a diffusers folder, a Hugging Face repository or a run of train.py.
    checkpoint: str = ""
    text_encoder: str | None = None  # a T5 folder or repository; None: the checkpoint's own
    prompt: str | None = None  # may be empty: an unconditional video
    prompts_file: str | None = None  # one prompt per line; videos that exist are not made again
    batch_size: int = 1  # prompts of the file that are sampled together
    first_sample: int = 0  # which of its seed's videos the first one is
    # An .npz with prompt_embeds, prompt_mask, negative_embeds and negative_mask, in place of text.
    embeddings: str | None = None
    noise: str | None = None  # an .npy (b, t, h, w, c) to start from, in place of the seed
    conditioning_media_paths: tuple[str, ...] = ()  # images and clips that the video must contain
    conditioning_start_frames: tuple[int, ...] = ()  # where each of them begins
    conditioning_strengths: tuple[float, ...] = ()  # in [0, 1]; none given: 1
    input_media_path: str | None = None  # a video to change, from skip_initial_inference_steps on
    output_path: str | None = None  # an .mp4 or a folder; None: outputs/
    # An .npy for the final normalised latents; decodes nothing unless output_path is given too.
    save_latents: str | None = None
    dtype: DType = "bfloat16"  # of parameters and computation
    mesh: MeshConfig = MeshConfig()  # of several devices; by default one is used
    # A latent upsampler's file: sample small, enlarge, refine. None: one pass.
    spatial_upscaler: str | None = None
    downscale_factor: float = 0.6666666  # size of the first of two passes
    second_pass: SamplingConfig | None = None  # schedule and guidance of the refining pass

    def __post_init__(self):
        super().__post_init__()
        media, starts = len(self.conditioning_media_paths), len(self.conditioning_start_frames)
        strengths = self.conditioning_strengths
        _require(
            media == starts,
            f"conditioning_media_paths has {media} entries and conditioning_start_frames {starts}: "
            "give one start frame per path",
        )
        _require(
            len(strengths) in (0, media),
            f"conditioning_strengths has {len(strengths)} entries for {media} media: "
            "give one per path, or none for 1.0 everywhere",
        )
        for value in strengths:
            _require(0 <= value <= 1, f"conditioning_strengths must lie in [0, 1], got {value}")
        for frame in self.conditioning_start_frames:
            _require(
                0 <= frame < self.num_frames,
                f"conditioning_start_frames must lie in [0, num_frames), got {frame} "
                f"with num_frames {self.num_frames}",
            )
        _require(self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}")
        _require(self.first_sample >= 0, f"first_sample must be >= 0, got {self.first_sample}")
        texts = (self.prompt, self.prompts_file, self.embeddings)
        _require(
            texts.count(None) >= 2,
            "give one of prompt, prompts_file and embeddings, not several",
        )
        _require(
            0 < self.downscale_factor <= 1,
            f"downscale_factor must lie in (0, 1], got {self.downscale_factor}",
        )
        _require(
            self.spatial_upscaler is None or self.second_pass is not None,
            "spatial_upscaler needs the settings of a second_pass: see configs/sample",
        )
        one_pass = [name for name in ("noise", "input_media_path") if getattr(self, name)]
        if self.save_latents and self.output_path:
            one_pass.append("save_latents together with output_path")
        _require(
            self.spatial_upscaler is None or not one_pass,
            f"two passes do not take {' or '.join(one_pass)}: add --spatial_upscaler None",
        )


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
    """How the sampler's times are laid out between 1 (noise) and 0."""

    sampler: Literal["Uniform", "LinearQuadratic", "Constant"] = "Uniform"
    shifting: Literal["SD3", "SimpleDiffusion"] | None = None
    base_resolution: int = 1024  # tokens; SimpleDiffusion
    target_shift_terminal: float | None = None  # last time after an SD3 shift
    shift: float | None = None  # Constant
    num_train_timesteps: int = 1000

    def __post_init__(self):
        terminal = self.target_shift_terminal
        _require(
            terminal is None or 0 < terminal < 1,
            f"target_shift_terminal must lie between 0 and 1, got {terminal}",
        )
        _require(
            self.sampler != "Constant" or self.shift is not None,
            "the Constant sampler needs a shift",
        )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser, learning-rate schedule and parameter average."""

    name: Literal["adamw", "muon"] = "adamw"  # muon: on matrices and kernels, adamw on the rest
    peak_lr: float = 1e-4
    warmup_steps: int = 1000
    decay: Literal["constant", "linear", "cosine"] = "constant"
    decay_fraction: float = 0.4  # last part of the run over which a linear decay falls to zero
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 1e-2  # on matrices and kernels alone
    clip_norm: float = 1.0
    ema_decay: float = 0.9999


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Clips to train on."""

    source: str = "shapes"  # the procedural world, or a folder of clip.mp4 + clip.txt
    num_frames: int = 25
    height: int = 128
    width: int = 128
    frame_rate: float = 24.0  # of the world; the clips of a folder keep their own
    batch_size: int = 8  # global

    def __post_init__(self):
        for name in ("num_frames", "height", "width", "frame_rate", "batch_size"):
            value = getattr(self, name)
            _require(value > 0, f"{name} must be positive, got {value}")


@dataclasses.dataclass(frozen=True)
class VAELossConfig:
    """Weights of the VAE's loss terms, and the decoder's noise level."""

    pixel: Literal["l1", "mse"] = "l1"
    pixel_weight: float = 1.0
    kl_weight: float = 1e-6
    # The decoder does the last denoising step: latents are noised to t ~ U(0, max_decode_time).
    max_decode_time: float = 0.2
    clean_fraction: float = 0.1  # of the batch, decoded at t = 0
    statistics_decay: float = 0.999  # running mean and deviation of the latents


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Rectified flow: the distribution of times, and the conditioning."""

    # Mean of the logit-normal density, linear in the token count between these points.
    min_tokens: int = 1024
    min_shift: float = 0.95
    max_tokens: int = 4096
    max_shift: float = 2.05
    # Percentiles that are stretched to [min_time, 1].
    low_percentile: float = 0.5
    high_percentile: float = 99.9
    min_time: float = 1e-3
    uniform_fraction: float = 0.1
    caption_dropout: float = 0.1
    first_frame_probability: float = 0.3  # share of the batches with a clean first latent frame
    max_condition_time: float = 0.25  # condition tokens: time 0 half of the time, else up to this


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What both stages of training share."""

    output: str = "runs/default"
    steps: int = 10_000
    seed: int = 0
    log_every: int = 50
    save_every: int = 1000
    keep: int = 2  # checkpoints


@dataclasses.dataclass(frozen=True)
class TrainVAE:
    """The first stage: `python train.py configs/NAME.py`."""

    model: VAEConfig
    loss: VAELossConfig = VAELossConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    mesh: MeshConfig = MeshConfig()


@dataclasses.dataclass(frozen=True)
class TrainTransformer:
    """The second stage: the transformer on the latents of a trained VAE, its text encoder along."""

    model: TransformerConfig
    vae: str  # anything `--checkpoint` of sample.py takes
    text_encoder: T5Config
    max_caption_tokens: int = 128
    scheduler: SchedulerConfig = SchedulerConfig()
    flow: FlowConfig = FlowConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        _require(
            self.text_encoder.d_model == self.model.caption_channels,
            f"the text encoder is {self.text_encoder.d_model} wide and the transformer expects "
            f"captions {self.model.caption_channels} wide",
        )


def load(path: str, overrides: Sequence[str] = ()) -> Any:
    """Reads `config` from a Python file (or `file.py:name`), then applies `--group.field value`.

    Raises:
      ValueError: if the file does not define the name.
    """
    import tyro  # the command line alone needs it

    file, _, name = path.partition(":")
    namespace = runpy.run_path(file)
    name = name or "config"
    if name not in namespace:
        raise ValueError(f"{file} defines no {name!r}")
    default = namespace[name]
    return tyro.cli(type(default), default=default, args=list(overrides))
