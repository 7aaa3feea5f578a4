"""Settings of sampling. Names and defaults are those of the official inference script."""

import dataclasses
from typing import Literal

from ltx_jax.config.networks import DType, Linears, MeshConfig
from ltx_jax.config.settings import require, settings

PerStep = float | tuple[float, ...]  # one value, or one per entry of `guidance_timesteps`
SkipBlocks = tuple[int, ...] | tuple[tuple[int, ...], ...]
STGMode = Literal["attention_values", "attention_skip", "residual", "transformer_block"]
SolverName = Literal["euler", "dpmpp_2m"]

# Larger values are mistakes: no video of this size or rate could be stored, let alone sampled.
MAX_FRAME_RATE = 1000.0
_LIMITS = {
    "height": 16_384,
    "width": 16_384,
    "num_frames": 100_000,
    "frame_rate": MAX_FRAME_RATE,
    "num_inference_steps": 10_000,
}
_MAX_SCALE = 1000.0  # of guidance


@settings
class SamplingConfig:
    """How one video is sampled. Names and defaults are those of the official inference script."""

    # What the video should not look like; used with classifier-free guidance.
    negative_prompt: str = "worst quality, inconsistent motion, blurry, jittery, distorted"
    height: int = 704  # pixels; any positive size: padded to one the VAE takes, then cropped back
    width: int = 1216  # pixels; any positive size, as for the height
    num_frames: int = 121  # any positive number; 8k+1 frames fill whole latent frames
    frame_rate: float = 30.0  # frames per second
    num_inference_steps: int = 40  # number of steps in the checkpoint's schedule
    timesteps: tuple[float, ...] | None = None  # explicit times, instead of a number of steps
    skip_initial_inference_steps: int = 0  # steps left out at the start of the schedule
    skip_final_inference_steps: int = 0  # steps left out at the end of the schedule
    guidance_scale: PerStep = 3.0  # classifier-free guidance; <= 1 is off
    cfg_star_rescale: bool = False  # scale the negative prediction to fit the positive one
    stg_scale: PerStep = 1.0  # spatio-temporal guidance; <= 0 is off
    # What replaces the self-attention of a skipped block, or the whole block.
    stg_mode: STGMode = "attention_values"
    skip_block_list: SkipBlocks = ()  # blocks that the perturbed branch of guidance skips
    # With spatio-temporal guidance, the standard deviation of the prediction is interpolated
    # between its own (0) and that of the prediction without guidance (towards 1); exactly 1 turns
    # this off.
    rescaling_scale: PerStep = 0.7
    guidance_timesteps: tuple[float, ...] | None = None  # times at which per-step values change
    # How a step moves along the flow: "euler", or "dpmpp_2m", the second-order DPM-Solver++(2M).
    solver: SolverName = "euler"
    stochastic_sampling: bool = False  # every step adds new noise; needs the euler solver
    image_cond_noise_scale: float = 0.15  # noise added to conditions, drawn anew in every step
    prepare_conditions: bool = True  # blur and H.264-compress condition images, as in training
    decode_timestep: float = 0.05  # the decoder's timestep: the noise level it assumes, in [0, 1]
    # Noise level added to the latents before decoding, in [0, 1]; None: the decode timestep.
    decode_noise_scale: float | None = 0.025
    # TeaCache's threshold: a step whose input changed by less than this reuses the last update of
    # the layers. TeaCache's authors use 0.03 to 0.05; 0 computes every step.
    teacache: float = 0.0
    tone_map_compression_ratio: float = 0.0  # in [0, 1]: how far extreme latents are compressed
    # One line of warning if a released model did not see videos of such a size or rate in training.
    range_warning: bool = True
    seed: int = 171_198  # sample i draws from fold_in(key(seed), i)

    def __post_init__(self):
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            require(value > 0, f"{name} must be positive, got {value}")
            require(value <= limit, f"{name} may be {limit:g} at most, got {value:g}")
        for name in ("guidance_scale", "stg_scale", "rescaling_scale"):
            value = getattr(self, name)
            for scale in value if isinstance(value, tuple) else (value,):
                require(
                    abs(scale) <= _MAX_SCALE,
                    f"{name} must lie in [-{_MAX_SCALE:g}, {_MAX_SCALE:g}], got {scale:g}",
                )
        for name in ("decode_timestep", "decode_noise_scale", "tone_map_compression_ratio"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"{name} must lie in [0, 1], got {value}")
        scale = self.image_cond_noise_scale
        require(scale >= 0, f"image_cond_noise_scale must not be negative, got {scale}")
        require(self.teacache >= 0, f"teacache must not be negative, got {self.teacache}")
        require(
            self.solver == "euler" or not self.stochastic_sampling,
            f"stochastic_sampling works only with the euler solver, and solver is {self.solver!r}: "
            "leave one of them out",
        )
        # jax.random.key would drop the higher bits.
        require(0 <= self.seed < 2**32, f"seed must lie in [0, 2**32), got {self.seed}")


@settings
class SampleConfig(SamplingConfig):
    """All options of ltx-sample: the paths of models and media, and how to sample."""

    # Defaults of the other options: the name of a shipped config, or a .py, .json or .yaml file.
    config: str | None = None
    # A safetensors or GGUF file, a diffusers folder, a Hugging Face repository, a run of ltx-train
    # or an exported folder; "embedded" is the small model that ships with the package, and
    # "embedded:NAME" another one that does.
    checkpoint: str = "embedded"
    vae: str | None = None  # a checkpoint whose VAE is used; None: the checkpoint's own
    text_encoder: str | None = None  # file, folder or repository; None: the checkpoint's own
    # Adapters of the transformer that are merged into it: FILE, or FILE:STRENGTH.
    lora: tuple[str, ...] = ()
    # A text-generation model of `transformers`, a folder or a repository, that rewrites prompts in
    # more detail.
    enhance: str | None = None
    prompt: str | None = None  # an empty one samples an unconditional video
    prompts_file: str | None = None  # one prompt per line; videos that exist are skipped
    batch_size: int = 1  # prompts of the file that are sampled together
    first_sample: int = 0  # index i of the first video, counted as for `seed`
    # An .npz with prompt_embeds, prompt_mask, negative_embeds and negative_mask, in place of text.
    embeddings: str | None = None
    noise: str | None = None  # an .npy (b, t, h, w, c) with the initial noise, in place of the seed
    # Images and clips that the video must contain; "clip.mp4@2.5s" begins 2.5 s into the clip.
    conditioning_media_paths: tuple[str, ...] = ()
    conditioning_start_frames: tuple[int, ...] = ()  # the frame at which each medium begins
    conditioning_strengths: tuple[float, ...] = ()  # in [0, 1], one per path; empty: all 1
    # Masks of the media at frame 0, one per path, "" for none: pictures or clips, white where the
    # model may paint. Empty: no masks.
    conditioning_mask_paths: tuple[str, ...] = ()
    # A clip that the video follows, as an adapter (IC-LoRA) or the model was trained to do;
    # "clip.mp4@2.5s" begins 2.5 s into the clip.
    reference_media_path: str | None = None
    reference_strength: float = 1.0  # in [0, 1]
    # How many times smaller than the video the reference is, in height and in width; None: what the
    # adapters' metadata say, or 1.
    reference_downscale_factor: int | None = None
    # What to draw from the reference clip first: "canny" (edges), or "depth:MODEL" by a model of
    # transformers. None: the clip itself is the reference.
    reference_preprocessor: str | None = None
    # A video to change: noise is added to it up to the first time of the schedule, which
    # skip_initial_inference_steps lowers.
    input_media_path: str | None = None
    # A file (.mp4, .webm, .mov, .gif; .png, .jpg or .webp for one frame; name_%04d.png for a
    # sequence of 16-bit pictures), or a folder for an .mp4. None: outputs/
    output_path: str | None = None
    sheet: bool = False  # writes a GIF and a sheet of frames (PNG) beside each video
    # A .gif, or a .png with its frames side by side, that is rewritten after every step and shows
    # the video as it is so far: small, and with colours that are a linear map of the latents.
    preview: str | None = None
    # An .npy for the final normalised latents; without an output_path no video is decoded.
    save_latents: str | None = None
    # Dtype of parameters and computation. None: bfloat16, or float32 on CPUs without bfloat16
    # matmul.
    dtype: DType | None = None
    # The transformer's large matmuls in eight bits: float8 is fast on GPUs from Hopper on, int8
    # saves memory.
    linears: Linears | None = None
    mesh: MeshConfig = MeshConfig()  # the mesh of several devices; by default one device is used
    # A latent upsampler, a file or a run: sample small, enlarge, refine. None: one pass.
    spatial_upscaler: str | None = None
    downscale_factor: float = 0.6666666  # size of the first pass, as a fraction of the video's
    second_pass: SamplingConfig | None = None  # schedule and guidance of the refining pass

    def __post_init__(self):
        super().__post_init__()
        media, starts = len(self.conditioning_media_paths), len(self.conditioning_start_frames)
        strengths = self.conditioning_strengths
        require(
            media == starts,
            f"conditioning_media_paths has {media} entries and conditioning_start_frames {starts}: "
            "give one start frame per path",
        )
        require(
            len(strengths) in (0, media),
            f"conditioning_strengths has {len(strengths)} entries for {media} media: "
            "give one per path, or none for 1.0 everywhere",
        )
        for value in strengths:
            require(0 <= value <= 1, f"conditioning_strengths must lie in [0, 1], got {value}")
        masks = self.conditioning_mask_paths
        require(
            len(masks) in (0, media),
            f"conditioning_mask_paths has {len(masks)} entries for {media} media: give one per "
            'path, "" for a medium without one',
        )
        for path, frame in zip(masks, self.conditioning_start_frames, strict=False):
            require(
                not (path and frame),
                f"the mask {path} is for a medium at frame {frame}: only media at frame 0 have one",
            )
        self._check_reference()
        for frame in self.conditioning_start_frames:
            require(
                0 <= frame < self.num_frames,
                f"conditioning_start_frames must lie in [0, num_frames), got {frame} "
                f"with num_frames {self.num_frames}",
            )
        require(
            self.preview is None or self.preview.lower().endswith((".gif", ".png")),
            f"preview is {self.preview}: it is a .gif or a .png",
        )
        require(self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}")
        require(self.first_sample >= 0, f"first_sample must be >= 0, got {self.first_sample}")
        texts = (self.prompt, self.prompts_file, self.embeddings)
        require(
            texts.count(None) >= 2,
            "give only one of prompt, prompts_file and embeddings",
        )
        require(
            self.enhance is None or self.embeddings is None,
            "enhance rewrites prompts, and embeddings take their place: leave one of them out",
        )
        require(
            0 < self.downscale_factor <= 1,
            f"downscale_factor must lie in (0, 1], got {self.downscale_factor}",
        )
        require(
            self.spatial_upscaler is None or self.second_pass is not None,
            "spatial_upscaler needs the settings of a second_pass: see configs/sample",
        )
        one_pass = [name for name in ("noise", "input_media_path") if getattr(self, name)]
        if self.save_latents and self.output_path:
            one_pass.append("save_latents together with output_path")
        require(
            self.spatial_upscaler is None or not one_pass,
            f"two passes do not take {' or '.join(one_pass)}: add --spatial_upscaler None",
        )

    def _check_reference(self):
        strength, factor = self.reference_strength, self.reference_downscale_factor
        require(0 <= strength <= 1, f"reference_strength must lie in [0, 1], got {strength}")
        require(
            factor is None or factor > 0,
            f"reference_downscale_factor must be positive, got {factor}",
        )
        require(
            self.reference_media_path is not None or self.reference_preprocessor is None,
            f"reference_preprocessor {self.reference_preprocessor!r} has nothing to draw from: "
            "give a reference_media_path",
        )


def sampling_options(cfg: SamplingConfig) -> SamplingConfig:
    """Only the settings of sampling, without the paths and models that a `SampleConfig` adds."""
    names = (field.name for field in dataclasses.fields(SamplingConfig))
    return SamplingConfig(**{name: getattr(cfg, name) for name in names})


@settings
class SchedulerConfig:
    """The times between 1 (noise) and 0 (data) at which the sampler steps."""

    sampler: Literal["Uniform", "LinearQuadratic", "Constant"] = "Uniform"
    shifting: Literal["SD3", "SimpleDiffusion"] | None = None
    base_resolution: int = 1024  # number of tokens for which SimpleDiffusion shifts nothing
    target_shift_terminal: float | None = None  # the last time above 0, after an SD3 shift
    shift: float | None = None  # shift of the "Constant" sampler
    num_train_timesteps: int = 1000

    def __post_init__(self):
        terminal = self.target_shift_terminal
        require(
            terminal is None or 0 < terminal < 1,
            f"target_shift_terminal must lie between 0 and 1, got {terminal}",
        )
        require(
            self.sampler != "Constant" or self.shift is not None,
            'the sampler "Constant" needs a shift',
        )
        # The shift enters as its exponential.
        require(
            self.shift is None or abs(self.shift) < 100,
            f"shift must lie between -100 and 100, got {self.shift}",
        )
        for name in ("base_resolution", "num_train_timesteps"):
            value = getattr(self, name)
            require(value > 0, f"{name} must be positive, got {value}")
