"""Settings of training: data, losses, optimiser, runs, and the two stages."""

import dataclasses
from typing import Literal

from ltx_jax.config.networks import (
    DiscriminatorConfig,
    DType,
    ExecutionConfig,
    MeshConfig,
    T5Config,
    TransformerConfig,
    VAEConfig,
    require,
)
from ltx_jax.config.sampling import SchedulerConfig

# What a batch is given beside its noise: nothing, the first frame, the first latent frames, single
# frames anywhere, or a short clip anywhere.
ConditionPattern = Literal["none", "first_frame", "prefix", "keyframes", "clip"]


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
    accumulate: int = 1  # micro-batches that a batch is cut into, one after the other
    moment_dtype: DType = "float32"  # of the first moment
    # Parameters that stay as they are: those whose path ("blocks/attn1/to_q/kernel") one of these
    # regular expressions matches somewhere.
    freeze: tuple[str, ...] = ()

    def __post_init__(self):
        require(self.accumulate > 0, f"accumulate must be positive, got {self.accumulate}")


@dataclasses.dataclass(frozen=True)
class BucketConfig:
    """Clips of one size: a batch is cut from one bucket, a frame alone is a picture."""

    num_frames: int
    height: int
    width: int
    batch_size: int  # global
    weight: float = 1.0  # share of the batches, next to the other buckets' weights

    def __post_init__(self):
        for name in ("num_frames", "height", "width", "batch_size"):
            value = getattr(self, name)
            require(value > 0, f"{name} of a bucket must be positive, got {value}")
        require(self.weight >= 0, f"weight of a bucket must not be negative, got {self.weight}")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One of several places that examples come from."""

    path: str  # as DataConfig.source
    weight: float = 1.0  # share of the examples, next to the other sources' weights

    def __post_init__(self):
        require(self.weight >= 0, f"weight of a source must not be negative, got {self.weight}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Clips to train on."""

    # "shapes" (the procedural world; "shapes:rotate,orbit" has these motions alone), a folder of
    # clip.mp4 + clip.txt, or a data set in ArrayRecord as `ltx_jax.prepare` and `ltx_jax.encode`
    # write it.
    source: str = "shapes"
    mix: tuple[SourceConfig, ...] = ()  # several sources in place of one
    num_frames: int = 25
    height: int = 128
    width: int = 128
    batch_size: int = 8  # global
    buckets: tuple[BucketConfig, ...] = ()  # several sizes in place of the one above
    frame_rates: tuple[float, ...] = (24.0,)  # of the world's clips, one drawn for each
    # Resamples files by time to this rate; None keeps the rate of each.
    resample: float | None = None
    random_start: bool = False  # a clip is cut from anywhere in its file, not from the start
    random_crop: bool = False  # and from anywhere across, not from the centre
    flip: bool = False  # mirrors half of the clips; captions and lettering then lie
    max_crop: float = 0.5  # a file goes into no bucket whose shape cuts off more of its picture
    threads: int = 2  # that read and decode
    # In place of threads, for what holds the interpreter's lock, as the world's clips do; 0: none.
    processes: int = 0
    prefetch: int = 4  # batches read ahead

    def __post_init__(self):
        for name in ("num_frames", "height", "width", "batch_size", "threads", "prefetch"):
            value = getattr(self, name)
            require(value > 0, f"{name} must be positive, got {value}")
        require(self.processes >= 0, f"processes must not be negative, got {self.processes}")
        require(
            bool(self.frame_rates) and min(self.frame_rates) > 0,
            f"frame_rates must be positive, got {self.frame_rates}",
        )
        require(
            self.resample is None or self.resample > 0,
            f"resample must be positive, got {self.resample}",
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


@dataclasses.dataclass(frozen=True)
class VAELossConfig:
    """Weights of the VAE's loss terms (0 leaves one out), and the decoder's noise level."""

    pixel: Literal["l1", "mse"] = "l1"
    pixel_weight: float = 1.0
    mse_weight: float = 0.0  # of a mean squared error beside it
    kl_weight: float = 1e-6
    kl_start: int = 0  # updates without the KL term, and
    kl_warmup: int = 0  # updates over which it grows to its weight
    dwt_weight: float = 0.0  # of the video wavelet loss
    dwt_levels: int = 1
    lpips_weight: float = 0.0
    vgg: str = ""  # a file of VGG16's weights (torchvision's layout), and
    lpips_heads: str = ""  # one of LPIPS' linear heads; both are needed for LPIPS
    gan_weight: float = 0.0
    gan: Literal["pair", "single"] = "pair"  # reconstruction GAN on pairs, or a usual one
    gan_adaptive: bool = True  # scales by VQGAN's ratio of gradients at the last layer, at most 1
    disc_start: float = 0.2  # share of the run before the discriminator and its term begin
    # The decoder does the last denoising step: latents are noised to t ~ U(0, max_decode_time).
    max_decode_time: float = 0.2
    clean_fraction: float = 0.1  # of the batch, decoded at t = 0
    statistics_decay: float = 0.999  # running mean and deviation of the latents

    def __post_init__(self):
        for name in ("pixel", "mse", "kl", "dwt", "lpips", "gan"):
            weight = getattr(self, f"{name}_weight")
            require(weight >= 0, f"{name}_weight must not be negative, got {weight}")
        require(self.dwt_levels > 0, f"dwt_levels must be positive, got {self.dwt_levels}")
        require(
            0 <= self.disc_start <= 1,
            f"disc_start is a share of the run and must lie in [0, 1], got {self.disc_start}",
        )


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
    # Shares of the batches that are given something; the rest is given nothing.
    first_frame_probability: float = 0.3  # the first latent frame
    prefix_probability: float = 0.0  # the first few latent frames
    keyframes_probability: float = 0.0  # single frames anywhere after the first
    clip_probability: float = 0.0  # two latent frames anywhere after the first
    max_keyframes: int = 2
    max_condition_time: float = 0.25  # condition tokens: time 0 half of the time, else up to this
    token_drop: float = 0.0  # largest share of a video's tokens that a batch leaves out, up to 0.2

    def __post_init__(self):
        given = sum(share for _, share in self.patterns[1:])
        require(given <= 1, f"the probabilities of conditions sum to {given}, more than 1")
        require(0 <= self.token_drop < 1, f"token_drop must lie in [0, 1), got {self.token_drop}")

    @property
    def patterns(self) -> tuple[tuple[ConditionPattern, float], ...]:
        """What batches are given, and their shares; "none" first."""
        given: tuple[tuple[ConditionPattern, float], ...] = (
            ("first_frame", self.first_frame_probability),
            ("prefix", self.prefix_probability),
            ("keyframes", self.keyframes_probability),
            ("clip", self.clip_probability),
        )
        return ("none", 1 - sum(share for _, share in given)), *given


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What both stages of training share."""

    output: str = "runs/default"  # a folder, or a gs:// address
    steps: int = 10_000
    seed: int = 0
    init_from: str | None = None  # a checkpoint of any kind whose weights the run starts from
    log_every: int = 50
    save_every: int = 1000
    keep: int = 2  # latest checkpoints
    keep_best: int = 0  # checkpoints with the lowest validation loss, beside those
    validate_every: int = 0  # steps; 0: never
    validation_source: str | None = None  # as data.source; None: the world's own held-out clips
    validation_clips: int = 4
    tensorboard: bool = True  # scalars, pictures and videos, under the run
    wandb: str | None = None  # a Weights & Biases project to report to as well
    max_rejected: int = 20  # steps in a row with a loss or gradient that is not finite

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

    def validates_after(self, done: int) -> bool:
        """Whether a validation follows step `done`; one follows the last step, if there are any."""
        every = self.validate_every
        return every > 0 and (done % every == 0 or done == self.steps)


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Several processes. SLURM, GKE and TPU pods are recognised by themselves."""

    coordinator: str | None = None  # host:port of process 0, where nothing is recognised
    num_processes: int | None = None
    process_id: int | None = None


@dataclasses.dataclass(frozen=True)
class TrainVAE:
    """The first stage: `ltx-train NAME`.

    The discriminator has an optimiser of its own, whose schedule begins when it does. It takes the
    micro-batches of `optim`, and has no parameter average.
    """

    model: VAEConfig
    execution: ExecutionConfig = ExecutionConfig()
    loss: VAELossConfig = VAELossConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    disc_execution: ExecutionConfig = ExecutionConfig()  # dtypes of the discriminator
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig(ema_decay=0.999)
    disc_optim: OptimConfig = OptimConfig(b1=0.5, b2=0.9, weight_decay=0.0)
    run: RunConfig = RunConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()

    def __post_init__(self):
        require(
            self.disc_optim.accumulate == 1,
            "disc_optim.accumulate has no effect: set optim.accumulate, which is that of both",
        )
        require(
            self.execution.remat != "attention",
            "execution.remat is 'attention', which the VAE has not: take none, dots or full",
        )
        _require_dtypes_alone("disc_execution", self.disc_execution)


@dataclasses.dataclass(frozen=True)
class TrainTransformer:
    """The second stage: the transformer on the latents of a trained VAE.

    `captions` says where their embeddings come from: "train" trains `text_encoder`, over bytes,
    along; "frozen" runs the one at `text_encoder_path`; "cached" has them stored with the data.
    """

    model: TransformerConfig
    vae: str  # anything `--checkpoint` of ltx-sample takes
    execution: ExecutionConfig = ExecutionConfig()
    captions: Literal["train", "frozen", "cached"] = "train"
    text_encoder: T5Config = T5Config()
    text_execution: ExecutionConfig = ExecutionConfig()  # dtypes of a text encoder that trains
    text_encoder_path: str | None = None  # a T5 folder or repository, for frozen captions
    max_caption_tokens: int = 128
    scheduler: SchedulerConfig = SchedulerConfig()
    flow: FlowConfig = FlowConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()

    def __post_init__(self):
        require(
            self.captions != "train" or self.text_encoder.d_model == self.model.caption_channels,
            f"the text encoder is {self.text_encoder.d_model} wide and the transformer expects "
            f"captions {self.model.caption_channels} wide",
        )
        require(
            self.captions != "frozen" or self.text_encoder_path is not None,
            "frozen captions need a text_encoder_path",
        )
        _require_dtypes_alone("text_execution", self.text_execution)


def _require_dtypes_alone(name: str, execution: ExecutionConfig) -> None:
    """Refuses settings that the discriminator and the text encoder do not read."""
    for field in ("attention", "remat"):
        value, default = getattr(execution, field), getattr(ExecutionConfig, field)
        require(value == default, f"{name}.{field} has no effect, and it is {value!r}: leave it")
