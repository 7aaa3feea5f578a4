"""Settings of training: data, losses, optimiser, runs, and the two stages."""

import dataclasses
from typing import Any, ClassVar, Literal

from ltx_jax.config.adapters import AdapterConfig
from ltx_jax.config.networks import (
    DiscriminatorConfig,
    DType,
    ExecutionConfig,
    MeshConfig,
    T5Config,
    TextEncoderConfig,
    TransformerConfig,
    VAEConfig,
)
from ltx_jax.config.sampling import MAX_FRAME_RATE, SamplingConfig, SchedulerConfig
from ltx_jax.config.settings import require, settings

# The conditions of a batch: none, the first frame, the first latent frames, single frames anywhere,
# a short clip anywhere, or all that lies outside of the clip's mask.
ConditionPattern = Literal["none", "first_frame", "prefix", "keyframes", "clip", "mask"]
# Where references come from: there are none, they are files that belong to the clips, or they are
# the edges of the clips.
ReferenceSource = Literal["none", "files", "canny"]


@settings
class OptimConfig:
    """Optimiser, learning-rate schedule and parameter average."""

    # "muon" trains matrices and convolution kernels with Muon, and the rest with AdamW.
    name: Literal["adamw", "muon"] = "adamw"
    peak_lr: float = 1e-4  # learning rate after the warm-up
    warmup_steps: int = 1000  # steps in which the learning rate rises linearly
    # How the learning rate changes after the warm-up.
    decay: Literal["constant", "linear", "cosine"] = "constant"
    decay_fraction: float = 0.4  # fraction of the run, at its end, in which a linear decay happens
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.95  # decay of the second moment
    weight_decay: float = 1e-2  # only on matrices and kernels
    clip_norm: float = 1.0  # largest global norm of the gradient
    ema_decay: float = 0.9999  # decay of the parameter average
    accumulate: int = 1  # micro-batches of a batch, whose gradients are computed one after another
    # Dtype of the first moment; "8bit" stores both moments of AdamW in one byte per parameter.
    moment_dtype: DType | Literal["8bit"] = "float32"
    # Parameters that are not trained: regular expressions, searched for in parameter paths such as
    # "blocks/attn1/to_q/kernel".
    freeze: tuple[str, ...] = ()

    def __post_init__(self):
        require(self.accumulate > 0, f"accumulate must be positive, got {self.accumulate}")
        require(
            self.name == "adamw" or self.moment_dtype != "8bit",
            f"moment_dtype '8bit' is for AdamW, and name is {self.name!r}: take bfloat16",
        )


@settings
class BucketConfig:
    """One size of clips. A batch holds clips of one bucket; clips of one frame are pictures."""

    num_frames: int
    height: int
    width: int
    batch_size: int  # examples per step, over all devices
    weight: float = 1.0  # share of the batches, relative to the other buckets' weights

    def __post_init__(self):
        for name in ("num_frames", "height", "width", "batch_size"):
            value = getattr(self, name)
            require(value > 0, f"{name} of a bucket must be positive, got {value}")
        require(self.weight >= 0, f"weight of a bucket must not be negative, got {self.weight}")


@settings
class SourceConfig:
    """One of several sources of examples."""

    path: str  # as in DataConfig.source
    weight: float = 1.0  # share of the examples, relative to the other sources' weights

    def __post_init__(self):
        require(self.weight >= 0, f"weight of a source must not be negative, got {self.weight}")


@settings
class DataConfig:
    """Clips to train on."""

    # "shapes" (the procedural world; "shapes:rotate,orbit" has these motions only), "emoji:DIR"
    # (scenes of the emoji that `ltx-prepare emoji` wrote; "emoji:DIR@bases" takes the held-out
    # split "bases"), clips with captions (a folder, a table such as metadata.csv, or archives:
    # "DIR/{000..009}.tar"), or a data set in ArrayRecord as `ltx-prepare` and `ltx-encode` write
    # it.
    source: str = "shapes"
    mix: tuple[SourceConfig, ...] = ()  # several sources, in place of `source`
    # Column of a table (or key of JSON) with the paths of clips; None: the usual names.
    media_column: str | None = None
    # Column of a table (or key of JSON) with the captions; None: the usual names.
    caption_column: str | None = None
    # Clips that the model learns to follow (an IC-LoRA's references): "files" takes
    # clip_reference.mp4 beside clip.mp4, or a column of its table; "canny" draws the edges of each
    # clip.
    reference: ReferenceSource = "none"
    reference_column: str | None = None  # column of a table; None: the usual names
    reference_downscale_factor: int = 1  # how many times smaller than the clips references are
    # Masks that mark a part of each clip in white: clip_mask.mp4 or .png beside clip.mp4, or a
    # column of its table. flow.mask_probability and flow.outside_weight say what they do.
    masks: bool = False
    mask_column: str | None = None  # column of a table; None: the usual names
    num_frames: int = 25
    height: int = 128
    width: int = 128
    batch_size: int = 8  # examples per step, over all devices
    buckets: tuple[BucketConfig, ...] = ()  # several sizes, in place of the size above
    # Frame rates of rendered clips: each clip takes one of them at random.
    frame_rates: tuple[float, ...] = (24.0,)
    # Frames per second that files are resampled to; None keeps the rate of each file.
    resample: float | None = None
    random_start: bool = False  # cut clips anywhere in a file rather than at its start
    random_crop: bool = False  # crop frames anywhere rather than at the centre
    # Mirror half of the clips. This makes captions that say left or right wrong, and text in the
    # picture unreadable.
    flip: bool = False
    max_crop: float = 0.5  # largest share of a frame that a file may lose to fit a bucket
    threads: int = 2  # threads that read and decode
    # Loader processes instead of threads, for sources that hold Python's global interpreter lock
    # (the procedural world); 0: threads.
    processes: int = 0
    prefetch: int = 4  # batches that are read ahead

    def __post_init__(self):
        for name in ("num_frames", "height", "width", "batch_size", "threads", "prefetch"):
            value = getattr(self, name)
            require(value > 0, f"{name} must be positive, got {value}")
        require(self.processes >= 0, f"processes must not be negative, got {self.processes}")
        factor = self.reference_downscale_factor
        require(factor > 0, f"reference_downscale_factor must be positive, got {factor}")
        require(
            bool(self.frame_rates) and min(self.frame_rates) > 0,
            f"frame_rates must be positive, got {self.frame_rates}",
        )
        require(
            self.resample is None or self.resample > 0,
            f"resample must be positive, got {self.resample}",
        )
        for rate in (*self.frame_rates, self.resample or 0.0):
            require(
                rate <= MAX_FRAME_RATE,
                f"a frame rate may be {MAX_FRAME_RATE:g} at most, got {rate:g}",
            )

    @property
    def sizes(self) -> tuple[BucketConfig, ...]:
        """The buckets, one or several."""
        one = BucketConfig(self.num_frames, self.height, self.width, self.batch_size)
        return self.buckets or (one,)

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The sources, one or several."""
        return self.mix or (SourceConfig(self.source),)

    @property
    def companions(self) -> tuple[Literal["reference", "mask"], ...]:
        """The kinds of files that every clip needs in addition to its own."""
        kinds: dict[Literal["reference", "mask"], bool] = {
            "reference": self.reference == "files",
            "mask": self.masks,
        }
        return tuple(kind for kind, needed in kinds.items() if needed)


@settings
class VAELossConfig:
    """Weights of the VAE's loss terms (0 leaves one out), and the decoder's noise level."""

    pixel: Literal["l1", "mse"] = "l1"  # the pixel term: mean absolute or mean squared error
    pixel_weight: float = 1.0  # weight of the pixel term
    mse_weight: float = 0.0  # weight of a mean squared error beside the pixel term
    kl_weight: float = 1e-6  # weight of the KL divergence of the latents
    kl_start: int = 0  # updates without the KL term
    kl_warmup: int = 0  # updates after kl_start, over which the KL term grows to its weight
    dwt_weight: float = 0.0  # weight of the video wavelet loss
    dwt_levels: int = 1  # levels of the wavelet transform
    # Weight of a perceptual distance on features of EfficientNet-lite0.
    efficientnet_weight: float = 0.0
    # A file with EfficientNet's weights, written by `ltx-prepare networks`.
    efficientnet: str = "data/networks/efficientnet_lite0.safetensors"
    lpips_weight: float = 0.0  # weight of LPIPS, a perceptual distance
    vgg: str = ""  # a file with VGG16's weights in torchvision's layout; LPIPS needs it
    lpips_heads: str = ""  # a file with LPIPS' linear heads; LPIPS needs it too
    gan_weight: float = 0.0  # weight of the adversarial term
    # The discriminator sees pairs of original and reconstruction (the reconstruction GAN), or
    # single clips.
    gan: Literal["pair", "single"] = "pair"
    # Scales the GAN term by VQGAN's ratio of gradient norms at the last layer, at most 1.
    gan_adaptive: bool = True
    disc_start: float = 0.2  # fraction of the run before the discriminator begins
    # The decoder does the last denoising step: latents are noised to t ~ U(0, max_decode_time).
    max_decode_time: float = 0.2
    clean_fraction: float = 0.1  # fraction of a batch that is decoded without noise, at t = 0
    statistics_decay: float = 0.999  # decay of the running mean and deviation of the latents

    def __post_init__(self):
        for name in ("pixel", "mse", "kl", "dwt", "efficientnet", "lpips", "gan"):
            weight = getattr(self, f"{name}_weight")
            require(weight >= 0, f"{name}_weight must not be negative, got {weight}")
        require(self.dwt_levels > 0, f"dwt_levels must be positive, got {self.dwt_levels}")
        require(
            0 <= self.disc_start <= 1,
            f"disc_start is a share of the run and must lie in [0, 1], got {self.disc_start}",
        )


@settings
class FlowConfig:
    """Rectified flow: the distribution of times, and the conditioning."""

    # The mean of the logit-normal density of times is linear in the number of tokens: min_shift at
    # min_tokens, max_shift at max_tokens.
    min_tokens: int = 1024
    min_shift: float = 0.95
    max_tokens: int = 4096
    max_shift: float = 2.05
    # Times are stretched so that these percentiles of the density become 0 and 1, then mapped to
    # [min_time, 1].
    low_percentile: float = 0.5
    high_percentile: float = 99.9
    min_time: float = 1e-3
    uniform_fraction: float = 0.1  # share of the times that is drawn uniformly instead
    caption_dropout: float = 0.1  # share of the captions that is replaced by the empty one
    # Shares of the batches with each kind of condition; the rest has none.
    first_frame_probability: float = 0.3  # the first latent frame
    prefix_probability: float = 0.0  # the first few latent frames
    keyframes_probability: float = 0.0  # single frames anywhere after the first
    clip_probability: float = 0.0  # two latent frames anywhere after the first
    mask_probability: float = 0.0  # everything outside of the clip's mask (data.masks)
    max_keyframes: int = 2  # largest number of single frames in a condition
    # Condition tokens have time 0 in half of the samples; in the others, their time is drawn
    # uniformly between 0 and this.
    max_condition_time: float = 0.25
    # Largest share of a video's tokens that a batch drops; buckets with more tokens drop more.
    token_drop: float = 0.0
    outside_weight: float = 1.0  # weight in the loss of what lies outside of a clip's mask
    # The loss counts frames from the first of these numbers up to, but without, the second; None:
    # all.
    loss_frames: tuple[int, int] | None = None

    def __post_init__(self):
        weight, frames = self.outside_weight, self.loss_frames
        require(weight >= 0, f"outside_weight must not be negative, got {weight}")
        require(
            frames is None or 0 <= frames[0] < frames[1],
            f"loss_frames must be a first frame and a later one, got {frames}",
        )
        total = sum(share for _, share in self.patterns[1:])
        require(total <= 1, f"the probabilities of conditions sum to {total}, more than 1")
        require(0 <= self.token_drop < 1, f"token_drop must lie in [0, 1), got {self.token_drop}")

    @property
    def patterns(self) -> tuple[tuple[ConditionPattern, float], ...]:
        """The kinds of conditions and their shares of the batches; "none" first."""
        conditioned: tuple[tuple[ConditionPattern, float], ...] = (
            ("first_frame", self.first_frame_probability),
            ("prefix", self.prefix_probability),
            ("keyframes", self.keyframes_probability),
            ("clip", self.clip_probability),
            ("mask", self.mask_probability),
        )
        return ("none", 1 - sum(share for _, share in conditioned)), *conditioned

    @property
    def weighs_latents(self) -> bool:
        """Whether some latents count more than others in the loss."""
        return self.outside_weight != 1 or self.loss_frames is not None


@settings
class RunConfig:
    """A training run: its folder, its length, and when it saves, logs and validates."""

    output: str = "runs/default"  # a folder, or a gs:// address
    steps: int = 10_000  # number of steps of the whole run
    seed: int = 0  # of the initialisation, the data and the noise
    init_from: str | None = None  # a checkpoint of any kind, for the initial weights
    # Regular expressions that say how the network of `init_from` may differ from the one that is
    # trained. A tensor is named by its path ("transformer/blocks/attn1/to_q/kernel"), and each that
    # differs is logged.
    init_missing: tuple[str, ...] = ()  # tensors that the checkpoint may lack: initialised anew
    init_extra: tuple[str, ...] = ()  # tensors of the checkpoint that may be left out
    init_redraw: tuple[str, ...] = ()  # tensors to initialise anew though the checkpoint has them
    init_settings: tuple[str, ...] = ()  # settings of the network that may differ ("norm_eps")
    log_every: int = 50  # steps between lines of the log
    save_every: int = 1000  # steps between checkpoints
    keep: int = 2  # latest checkpoints that are kept
    keep_best: int = 0  # checkpoints with the lowest validation loss that are kept too
    validate_every: int = 0  # steps between validations; 0: there are none
    # Where validation clips come from, as in data.source; None: held-out clips of the procedural
    # world.
    validation_source: str | None = None
    validation_clips: int = 4  # number of clips
    # Samples each validation clip a second time, with its first frame as a condition (transformer).
    validation_first_frames: bool = False
    tensorboard: bool = True  # scalars, pictures and videos, under the run
    wandb: str | None = None  # a Weights & Biases project to report to as well
    # The run stops after this many steps in a row whose loss or gradient is not finite.
    max_rejected: int = 20

    def __post_init__(self):
        for name in ("log_every", "save_every", "keep", "validation_clips", "max_rejected"):
            value = getattr(self, name)
            require(value > 0, f"{name} must be positive, got {value}")
        every = self.validate_every
        require(
            not self.keep_best or (every > 0 and self.save_every % every == 0),
            f"keep_best needs a validation before every save: save_every = {self.save_every} must "
            f"be a multiple of validate_every = {every}",
        )

    def validates_after(self, step: int) -> bool:
        """Whether to validate after a step: at the interval, after the last step of the run, and
        before the first one (0) of a run that begins with the weights of a checkpoint."""
        every = self.validate_every
        if step == 0:
            return every > 0 and self.init_from is not None
        return every > 0 and (step % every == 0 or step == self.steps)


@settings
class DistributedConfig:
    """The processes of a training run. Under SLURM, on GKE and on TPU pods they are detected, and
    nothing has to be set."""

    coordinator: str | None = None  # host:port of process 0
    num_processes: int | None = None
    process_id: int | None = None


class TrainConfig:
    """The fields that the configurations of all stages of training have in common.

    Attributes:
      stage: "module:name" of the class that trains it, an `ltx_jax.training.stage.Stage`.
      model: the network that is trained. A `VAEConfig`, `TransformerConfig` or `UpsamplerConfig`
        makes the run a checkpoint.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # subclasses are dataclasses
    stage: ClassVar[str]
    model: Any
    execution: ExecutionConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    mesh: MeshConfig
    distributed: DistributedConfig

    def sampling_settings(self) -> SamplingConfig | None:
        """Settings with which a run's model is sampled; None for a model that makes no videos."""
        return None


@settings
class TrainVAE(TrainConfig):
    """The first stage: the Video-VAE, and its discriminator if the loss has an adversarial term.

    The discriminator has an optimiser of its own, whose schedule begins when its training begins.
    Both networks use `optim.accumulate` micro-batches. No average of the discriminator is kept.
    """

    stage: ClassVar[str] = "ltx_jax.training.vae.stage:VAEStage"

    model: VAEConfig
    execution: ExecutionConfig = ExecutionConfig()
    loss: VAELossConfig = VAELossConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    disc_execution: ExecutionConfig = ExecutionConfig()  # dtypes of the discriminator
    # With a rank, trains an adapter beside the decoder of the VAE of `run.init_from`. The encoder
    # stays as it is too, so that transformers know the latents.
    adapter: AdapterConfig = AdapterConfig(targets=("all",))
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig(ema_decay=0.999)
    disc_optim: OptimConfig = OptimConfig(b1=0.5, b2=0.9, weight_decay=0.0)
    run: RunConfig = RunConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()

    def __post_init__(self):
        _check_adapter(self.adapter, self.run, AdapterConfig(targets=("all",)))
        require(
            self.adapter.base not in ("int8", "float8"),
            f"adapter.base {self.adapter.base!r} is for transformers: hold a VAE in bfloat16, "
            "float16 or float32",
        )
        require(
            self.disc_optim.accumulate == 1,
            "disc_optim.accumulate has no effect: set optim.accumulate, which both networks use",
        )
        require(
            self.execution.remat != "attention",
            "execution.remat 'attention' is for the transformer only: take none, dots or full",
        )
        _require_dtypes_alone("disc_execution", self.disc_execution)


@settings
class DecoderMatchingConfig:
    """How a smaller decoder is made to match the large one, beside the losses on the clips."""

    output_weight: float = 0.5  # weight of the mean absolute difference of their pixels
    # Weight of the squared difference of their features, relative to the square of the large one's.
    feature_weight: float = 0.1
    feature_blocks: int = 2  # blocks of residual blocks, from the latents on, that are compared
    pruning_clips: int = 16  # clips on which activations are measured to choose channels

    def __post_init__(self):
        for name in ("output_weight", "feature_weight", "feature_blocks"):
            value = getattr(self, name)
            require(value >= 0, f"{name} must not be negative, got {value}")
        clips = self.pruning_clips
        require(clips > 0, f"pruning_clips must be positive, got {clips}")


@settings
class TrainDecoder(TrainVAE):
    """A smaller decoder for the latents of a trained VAE, whose encoder stays as it is.

    `model` is that VAE with another `decoder_base_channels`. The run is a VAE like any other, with
    the same latents: `--vae RUN` samples with it. Without `run.init_from`, the decoder starts from
    the channels of the large one that best explain the rest.
    """

    stage: ClassVar[str] = "ltx_jax.training.vae.decoder_stage:DecoderStage"

    vae: str = ""  # anything `--checkpoint` of ltx-sample takes
    matching: DecoderMatchingConfig = DecoderMatchingConfig()

    def __post_init__(self):
        super().__post_init__()
        require(bool(self.vae), "vae must name the checkpoint with the large decoder")
        require(
            not self.adapter.rank,
            "adapter.rank is for a decoder that stays as it is: train a smaller one without",
        )
        require(
            self.loss.kl_weight == 0,
            f"loss.kl_weight is {self.loss.kl_weight}, and the encoder is not trained: set it to 0",
        )


@settings
class TrainTransformer(TrainConfig):
    """The second stage: the transformer on the latents of a trained VAE.

    `captions` says where caption embeddings come from: "train" trains the byte-level `text_encoder`
    together with the transformer, "frozen" runs the encoder at `text_encoder_path`, and "cached"
    reads embeddings that are stored with the data.
    """

    stage: ClassVar[str] = "ltx_jax.training.transformer.stage:TransformerStage"

    model: TransformerConfig
    vae: str  # anything `--checkpoint` of ltx-sample takes
    execution: ExecutionConfig = ExecutionConfig()
    captions: Literal["train", "frozen", "cached"] = "train"
    text_encoder: TextEncoderConfig = T5Config()
    text_execution: ExecutionConfig = ExecutionConfig()  # dtypes of a text encoder that trains
    text_encoder_path: str | None = None  # folder or repository, for frozen captions
    max_caption_tokens: int = 128
    scheduler: SchedulerConfig = SchedulerConfig()
    flow: FlowConfig = FlowConfig()
    # With a rank, trains an adapter beside the transformer of `run.init_from`.
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()

    def __post_init__(self):
        _check_adapter(self.adapter, self.run, AdapterConfig())
        require(
            not self.adapter.rank or self.captions != "train",
            "an adapter is trained with the captions of its transformer: set captions to 'frozen' "
            "(with text_encoder_path) or 'cached', not 'train'",
        )
        require(
            self.captions != "train" or self.text_encoder.width == self.model.caption_channels,
            f"the text encoder is {self.text_encoder.width} wide and the transformer expects "
            f"captions {self.model.caption_channels} wide: set "
            f"text_encoder.{self.text_encoder.width_field} and model.caption_channels to the same "
            "number",
        )
        require(
            self.captions != "frozen" or self.text_encoder_path is not None,
            'captions = "frozen" needs text_encoder_path, a T5 folder or repository',
        )
        uses_masks = self.flow.mask_probability > 0 or self.flow.outside_weight != 1
        require(
            self.data.masks or not uses_masks,
            "flow.mask_probability and flow.outside_weight need masks: set data.masks",
        )
        _require_dtypes_alone("text_execution", self.text_execution)

    @property
    def inference_steps(self) -> tuple[float, ...] | None:
        """The times that a distilled model was trained for; None for one that takes any."""
        return None

    def sampling_settings(self) -> SamplingConfig:
        """Samples at the largest size of the data, with guidance if training dropped captions."""
        rates = sorted(self.data.frame_rates)
        largest = max(self.data.sizes, key=lambda size: size.num_frames * size.height * size.width)
        return SamplingConfig(
            negative_prompt="",  # dropped captions become the empty one
            height=largest.height,
            width=largest.width,
            num_frames=largest.num_frames,
            frame_rate=self.data.resample or rates[len(rates) // 2],
            guidance_scale=3.0 if self.flow.caption_dropout else 1.0,
            stg_scale=0.0,
            image_cond_noise_scale=0.0,
            prepare_conditions=False,  # conditions in training are clean
        )


def _check_adapter(adapter: AdapterConfig, run: RunConfig, default: AdapterConfig) -> None:
    """Refuses settings that contradict a frozen network, or need one."""
    if not adapter.rank:
        for field in dataclasses.fields(default):
            require(
                getattr(adapter, field.name) == getattr(default, field.name),
                f"adapter.{field.name} has no effect without an adapter: set adapter.rank",
            )
        return
    require(
        run.init_from is not None,
        "an adapter belongs to a trained network: name its checkpoint with --run.init_from",
    )
    for name in ("init_missing", "init_redraw"):
        of_adapter = [x for x in getattr(run, name) if x.startswith("adapter/")]
        require(
            len(of_adapter) == len(getattr(run, name)),
            f"run.{name} has no effect on the network of an adapter, which is not initialised: "
            'patterns for adapter.init_from begin with "adapter/"',
        )
        require(
            adapter.init_from is not None or not of_adapter,
            f"run.{name} = {of_adapter} has no effect without adapter.init_from",
        )


def _require_dtypes_alone(name: str, execution: ExecutionConfig) -> None:
    """Refuses settings that the discriminator and the text encoder do not read."""
    for field in ("attention", "remat"):
        value, default = getattr(execution, field), getattr(ExecutionConfig, field)
        require(value == default, f"{name}.{field} = {value!r} has no effect: leave it out")
