"""From a checkpoint and a prompt to a video: the public interface of sampling."""

import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped

from ltx_jax.checkpoints import adapters
from ltx_jax.checkpoints.adapters import Adapter
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import DType, ExecutionConfig, Linears, SamplingConfig
from ltx_jax.diffusion import calibration, flow, guidance, positions, sampler
from ltx_jax.diffusion.conditioning import Condition, Reference
from ltx_jax.diffusion.denoiser import (
    Denoiser,
    for_masks,
    for_references,
    loading_device,
    sampling_form,
    with_teacache,
)
from ltx_jax.diffusion.noise import GivenStart, NoiseSource, seeded
from ltx_jax.diffusion.sampler import Inputs, Progress
from ltx_jax.inference import arguments, condition_media, encode_decode
from ltx_jax.inference.arguments import Caption
from ltx_jax.inference.encode_decode import NotFiniteError, first_not_finite, storable_if_small
from ltx_jax.inference.loras import Loras, Path
from ltx_jax.inference.previews import ShowPreview, with_preview
from ltx_jax.inference.text_encoder import ByteTokenizer, TextEncoder
from ltx_jax.inference.trained_range import warn_of_range
from ltx_jax.models import convolution
from ltx_jax.models.transformer import Context, compiler_options
from ltx_jax.models.transformer_fast import FastTransformer
from ltx_jax.models.transformer_fast_parameters import InputMaxima, quantize
from ltx_jax.models.vae import LatentStatistics, Posterior
from ltx_jax.runtime import sharding
from ltx_jax.runtime.compiled import Programs, explain_memory_errors
from ltx_jax.runtime.platforms import preferred_dtype

Output = Literal["uint8", "float", "latents"]


@dataclasses.dataclass(frozen=True)
class Start:
    """Everything that is ready before the denoising loop: the arguments of `sampler.sample`.

    Attributes:
      options: all options.
      size: size of the video.
      denoiser: the form of the network for this run.
      inputs: constant inputs of the loop.
      branches: guidance branches of each step.
      mode: static options of all steps.
      coords: (n, 3) pixel coordinates of the tokens.
      captions: the captions, and the negative ones if they are needed.
    """

    options: SamplingConfig
    size: arguments.Size
    denoiser: Denoiser
    inputs: Inputs
    branches: tuple[guidance.Branches, ...]
    mode: sampler.Mode
    coords: Any
    captions: Sequence[Caption]


class LTXPipeline:
    """Samples videos with one checkpoint.

    Attributes:
      checkpoint: the loaded checkpoint. `from_pretrained` sets the transformer's stored parameters
        to None if sampling uses another form of them: both would take twice the memory.
      denoiser: the form of the transformer that is used for sampling.
      params: parameters of this form, made from the stored ones.
      options: default sampling options: those of the checkpoint, or `SamplingConfig()`.
      programs: the programs compiled so far.
      timings: seconds of loading, and of the parts of the last call: text, encode, denoise and
        decode, all without compilation, and compile.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        text_encoder: TextEncoder | None = None,
        *,
        dtype: DType | None = None,
        mesh: Mesh | None = None,
        fast: bool | None = None,
        linears: Linears | None = None,
    ):
        """Wraps a loaded checkpoint.

        Args:
          checkpoint: a checkpoint with a transformer and a VAE.
          text_encoder: the text encoder; None uses the checkpoint's own, if it has one.
          dtype: dtype of the computation, which may differ from that of the stored parameters; None
            means `platforms.preferred_dtype()`.
          mesh: the devices to run on; None means one device.
          fast: whether to use the form of the transformer that is fastest on one GPU. None uses it
            on a GPU without a mesh.
          linears: 8-bit format of the large matrices, for the fast form only. "float8" saves time
            on GPUs from Hopper on; this constructor calibrates it with a few prompts. "int8" saves
            memory: half of what the transformer's parameters take in bfloat16.

        Raises:
          ValueError: for a checkpoint without a transformer or a VAE, or parts that do not fit.
        """
        dtype = dtype or preferred_dtype()
        transformer, vae = arguments.networks(checkpoint)
        if text_encoder is None and checkpoint.text_encoder is not None:
            cfg, params, max_tokens = checkpoint.text_encoder
            computing = ExecutionConfig(dtype=dtype)
            text_encoder = TextEncoder(ByteTokenizer(), cfg, params, max_tokens, mesh, computing)
        if text_encoder is not None and text_encoder.cfg.width != transformer.caption_channels:
            raise ValueError(
                f"this text encoder makes embeddings {text_encoder.cfg.width} wide and the "
                f"transformer was trained with {transformer.caption_channels}; released "
                f"checkpoints use the T5-XXL of PixArt-alpha/PixArt-XL-2-1024-MS"
            )
        if linears == "float8" and text_encoder is None:
            raise ValueError(
                "float8 linears are calibrated with prompts: name a text encoder, or take int8"
            )
        self.transformer, self.vae = transformer, vae
        self.execution = ExecutionConfig(dtype=dtype)
        self.checkpoint = checkpoint
        self.statistics = checkpoint.statistics or LatentStatistics.identity(vae.latent_channels)
        self.text_encoder = text_encoder
        self.options = checkpoint.settings or SamplingConfig()
        self.mesh = mesh
        self.timings: dict[str, float] = {}
        self.programs = Programs()
        self._loras = Loras()
        self._vae_params: Any = None  # without adapters, while there are some of the VAE
        self._fast = fast
        self._linears: Linears | None = linears
        self._stored_params: Callable[[], Any] = lambda: checkpoint.transformer_params
        self._use(checkpoint.transformer_params, fast)

    def _use(self, stored: Any, fast: bool | None) -> None:
        """Prepares stored parameters of the transformer for sampling."""
        self.denoiser, self.params = sampling_form(
            self.transformer,
            self.execution,
            stored,
            mesh=self.mesh,
            fast=fast,
            linears=self._linears,
        )
        if self._linears is not None:
            maxima = self._input_maxima() if self._linears == "float8" else None
            self.params = quantize(self.params, self._linears, maxima)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | os.PathLike[str],
        text_encoder: str | os.PathLike[str] | None = None,
        *,
        vae: str | os.PathLike[str] | None = None,
        dtype: DType | None = None,
        param_dtype: DType | None = None,
        mesh: Mesh | None = None,
        fast: bool | None = None,
        linears: Linears | None = None,
    ) -> "LTXPipeline":
        """Loads a pipeline.

        Args:
          checkpoint: a safetensors or GGUF file, a diffusers directory, a training run of this
            library or an export of one, a hub id, or "embedded:NAME" for a model that is part of
            this package.
          text_encoder: a file, directory or hub id of a text encoder. None uses the checkpoint's
            own; if it has none, calls need embeddings instead of prompts.
          vae: a checkpoint whose VAE is used, for files that hold a transformer alone. None uses
            the checkpoint's own.
          dtype: dtype of the computation, as in the constructor; guidance and latents are always
            float32.
          param_dtype: dtype of the stored parameters; None means `dtype`, or bfloat16 if that is
            None too.
          mesh: the devices to run on (`ltx_jax.make_mesh`); None means one device.
          fast: as in the constructor.
          linears: as in the constructor.
        """
        from ltx_jax.checkpoints.load import load_checkpoint, load_transformer  # takes seconds

        begin = time.perf_counter()
        param_dtype = param_dtype or dtype or "bfloat16"  # the dtype of the released weights
        encoder = None
        if text_encoder is not None:
            encoder = TextEncoder.load(os.fspath(text_encoder), dtype=param_dtype, mesh=mesh)
        path = os.fspath(checkpoint)
        vae = None if vae is None else os.fspath(vae)
        with loading_device(linears):
            loaded = load_checkpoint(path, vae=vae, mesh=mesh, dtype=param_dtype)
            pipe = cls(loaded, encoder, dtype=dtype, mesh=mesh, fast=fast, linears=linears)
        if pipe.params is not loaded.transformer_params:
            pipe.checkpoint = dataclasses.replace(pipe.checkpoint, transformer_params=None)
            pipe._stored_params = functools.partial(
                load_transformer, path, vae=loaded.vae, mesh=mesh, dtype=param_dtype
            )
        if linears == "int8":
            parts = {name: getattr(pipe.checkpoint, name) for name in ("vae_params", "statistics")}
            parts, pipe.params = jax.device_put((parts, pipe.params), jax.devices()[0])
            pipe.checkpoint = dataclasses.replace(pipe.checkpoint, **parts)
        pipe.timings["load"] = time.perf_counter() - begin
        return pipe

    @property
    def loras(self) -> tuple[tuple[Adapter, float], ...]:
        """The loaded adapters with their strengths."""
        return self._loras.all

    def load_lora(self, path: Path, strength: float = 1.0, *, merge: bool = True) -> None:
        """Adds an adapter (LoRA, DoRA, LoHa, LoKr) of the transformer or of the VAE's decoder.

        An adapter that is loaded already only changes its strength. Nothing is compiled anew.

        Args:
          path: a safetensors file in any public layout, a folder as peft writes it, or a run that
            trained an adapter.
          strength: 1 is the whole change; 0 is the network as it was, bit for bit. It does not
            apply to tensors that an adapter replaces (`.set_weight`).
          merge: whether to change the parameters. If not, one of the transformer is kept beside
            them (LoRA alone): a step takes longer, with the plain form of the transformer, and a
            change of the strength takes no time.

        Raises:
          ValueError: if the file is no adapter of this model, or cannot be kept apart; the message
            names the key.
        """
        self.load_loras([(path, strength)], merge=merge)

    def load_loras(self, loras: Sequence[tuple[Path, float]], *, merge: bool = True) -> None:
        """Does what `load_lora` does, for several paths and strengths at once."""
        self._change(self._loras.loaded(loras, self.checkpoint, merge))

    def unload_lora(self, path: Path | None = None) -> None:
        """Takes an adapter out again; None takes all of them out.

        Raises:
          ValueError: if this adapter is not loaded.
        """
        self._change(self._loras.unloaded(path))

    def _change(self, loras: Loras) -> None:
        """Replaces the adapters; if that fails, the old ones are there again."""
        if loras.apart and self._linears is not None:
            raise ValueError(
                f"{self._linears} linears need merged adapters: leave linears or merge=False out"
            )
        before = self._loras
        if loras.vae != before.vae:
            if not before.vae:
                self._vae_params = self.checkpoint.vae_params
            merged = adapters.merge(self._vae_params, self.vae, loras.vae)
            self.checkpoint = dataclasses.replace(self.checkpoint, vae_params=merged)
            before = dataclasses.replace(before, vae=loras.vae)
        self._loras = loras
        if loras.differ_in_strength_alone(before):
            self.params = loras.with_strengths(self.params, self.transformer, self.mesh)
        elif (loras.merged, loras.apart) != (before.merged, before.apart):
            try:
                self._use_loras()
            except BaseException:
                self._loras = before
                self._use_loras()
                raise

    def _use_loras(self) -> None:
        """Prepares the stored parameters with the adapters, in the memory that loading took."""
        self.params = None
        is_read_anew = self.checkpoint.transformer_params is None
        with loading_device(self._linears):
            stored = self._stored_params()
            params = self._loras.parameters(
                stored, self.transformer, self.mesh, donate=is_read_anew
            )
            del stored
            self._use(params, self._loras.form(self._fast, self.denoiser))
        if self._linears == "int8":
            self.params = jax.device_put(self.params, jax.devices()[0])

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        options: SamplingConfig | None = None,
        *,
        conditions: Sequence[Condition | Reference] = (),
        input_media: Any = None,
        input_latents: Any = None,
        embeddings: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] = MappingProxyType({}),
        noise: Any = None,
        first_sample: int = 0,
        output: Output = "uint8",
        callback: Callable[[Progress], None] | None = None,
        preview: ShowPreview | None = None,
        **changes: Any,
    ) -> Shaped[np.ndarray, "b t h w c"]:
        """Samples one video per prompt.

        Args:
          prompt: one or several prompts.
          options: sampling options; None uses the pipeline's. `changes` replaces single fields:
            `pipe("...", height=512)`.
          conditions: images and clips that every video has to show, or to follow (`Reference`).
          input_media: input of video-to-video, as a path or like the media of a condition; needs a
            first time below 1 (`skip_initial_inference_steps`, or `timesteps`).
          input_latents: the same input, as normalised latents (b, t, h, w, c).
          embeddings: instead of prompts: prompt_embeds (b, m, d) and prompt_mask (b, m), and for
            guidance negative_embeds and negative_mask, with a batch axis of b or 1.
          context: further inputs of the network by name, with a batch axis of b or 1, for networks
            that have some (`TransformerConfig.context_shapes`). One that is left out is unknown,
            and so are all for the negative captions.
          noise: initial noise (b, t, h, w, c) that replaces the seed's, or a `NoiseSource`.
          first_sample: index of the first prompt in its run. Sample i does not depend on the others
            of its batch, so prompts[4:] with first_sample=4 give the same videos as in one batch.
          output: "uint8" (b, t, h, w, 3); "float", the same in [-1, 1]; "latents", normalised, of
            the padded size.
          callback: called with a `Progress` after every step; an exception from it ends the run.
          preview: receives small pictures of the videos after every step (`previews.with_preview`).
          changes: fields of `SamplingConfig`.

        Raises:
          ValueError: for an invalid argument; the message names the value and a way out.
          NotFiniteError: a ValueError, if embeddings, latents or pixels hold NaN or infinity.
          MemoryError: if the device has too little memory.
        """
        if output not in get_args(Output):
            raise ValueError(f"output must be one of {get_args(Output)}, got {output!r}")
        start = self.prepare(
            prompt,
            options,
            conditions=conditions,
            input_media=input_media,
            input_latents=input_latents,
            embeddings=embeddings,
            context=context,
            noise=noise,
            first_sample=first_sample,
            **changes,
        )
        size, colours = start.size, self.checkpoint.colours
        callback = with_preview(callback, preview, colours, start.inputs, size.grid)
        with self.part("denoise", size):
            denoised = sampler.sample(
                start.denoiser,
                self.params,
                start.inputs,
                start.branches,
                start.mode,
                callback=callback,
                call=self._call,
            )
            count = math.prod(size.grid)
            x = sharding.on_host(positions.unpatchify(denoised[:, -count:], size.grid))
        if not np.isfinite(x).all():
            raise NotFiniteError(first_not_finite(start.captions, start.inputs.start))
        if output == "latents":
            return x
        return self.decode(x, start.options, noise=noise, first_sample=first_sample, output=output)

    def prepare(
        self,
        prompt: str | Sequence[str] | None = None,
        options: SamplingConfig | None = None,
        *,
        conditions: Sequence[Condition | Reference] = (),
        input_media: Any = None,
        input_latents: Any = None,
        embeddings: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] = MappingProxyType({}),
        noise: Any = None,
        first_sample: int = 0,
        **changes: Any,
    ) -> Start:
        """Does everything in a call before the denoising loop; arguments as in `__call__`."""
        self.timings = {part: t for part, t in self.timings.items() if part == "load"}
        options = arguments.replace(options or self.options, changes)
        size = self.size(options)
        size.notice()
        warn_of_range(options, self.transformer)
        times = flow.inference_times(
            self.checkpoint.scheduler,
            math.prod(size.grid),
            num_inference_steps=options.num_inference_steps,
            timesteps=options.timesteps,
            skip_initial=options.skip_initial_inference_steps,
            skip_final=options.skip_final_inference_steps,
            allowed=self.checkpoint.allowed_inference_steps,
        )
        arguments.check_input(options, float(times[0]), input_media, input_latents)
        schedule = guidance.guidance_schedule(options, times, self.transformer.num_layers)
        mode = sampler.mode_of(options)
        denoiser = with_teacache(self.denoiser, options.teacache, float(times[-1]))
        with self.part("text", size):
            captions = self._captions(prompt, embeddings, options, schedule.needs_negative)
            denoiser = for_masks(denoiser, [caption.mask for caption in captions])
            batch = captions[0].embeddings.shape[0]
        conditions = condition_media.load_conditions(conditions, size, batch, options)
        source = self._noise(noise, batch, size, options, first_sample)
        start: Any = None
        with self.part("encode", size):
            if input_media is not None:
                clip = condition_media.load_input(
                    input_media, size, batch, options.prepare_conditions
                )
                start = self._encode(clip)
            elif input_latents is not None:
                shape = (batch, *size.grid, self.transformer.in_channels)
                start = arguments.checked("input_latents", input_latents, shape)
            factor = condition_media.reference_factor([lora.metadata for lora, _ in self.loras])
            media = [condition_media.encoder_input(c, size, factor) for c in conditions]
            posteriors = tuple(map(self._encode, media))
            denoiser = for_references(
                denoiser, condition_media.reference_tokens(conditions, posteriors)
            )
            rate, frames = float(options.frame_rate), tuple(c.frame for c in conditions)
            layout = encode_decode.StartLayout.of(self.transformer, size, batch, rate, frames)
            prepared, rope, groups = self.programs(
                encode_decode.make_start,
                self.statistics,
                source,
                jnp.asarray(times[0]),
                start,
                posteriors,
                tuple(jnp.asarray(c.strength, jnp.float32) for c in conditions),
                tuple(condition_media.kept_latents(c, size) for c in conditions),
                layout=layout,
            )
            fields = arguments.context_fields(context, self.transformer.context_shapes, batch)
            unknown = jax.tree.map(jnp.zeros_like, fields)
            own, *negative = (
                denoiser.prepare_context(
                    self.params, Context(*caption, rope, groups, **further), self._call
                )
                for caption, further in zip(captions, (fields, unknown), strict=False)
            )
        padded_times, scales = sampler.per_step(times, schedule)
        image_noise = options.image_cond_noise_scale
        inputs = Inputs(
            start=prepared.tokens,
            strength=prepared.strength,
            context=own,
            negative=negative[0] if negative else None,
            times=padded_times,
            scales=scales,
            image_noise=jnp.asarray(image_noise, jnp.float32) if image_noise > 0 else None,
            noise=source,
        )
        branches, coords = schedule.branches, prepared.coords
        return Start(options, size, denoiser, inputs, branches, mode, coords, captions)

    def decode(
        self,
        x: Float[Array, "b t h w c"] | Float[np.ndarray, "b t h w c"],
        options: SamplingConfig | None = None,
        *,
        noise: Any = None,
        first_sample: int = 0,
        output: Output = "uint8",
        **changes: Any,
    ) -> Shaped[np.ndarray, "b t2 h2 w2 c2"]:
        """Decodes latents from a call with `output="latents"`; arguments as in a call."""
        options = arguments.replace(options or self.options, changes)
        size = self.size(options)
        shape = (x.shape[0], *size.grid, self.vae.latent_channels)
        x = arguments.checked("latents", x, shape)
        if not np.isfinite(np.asarray(x)).all():
            raise NotFiniteError("the latents to decode")
        source = self._noise(noise, shape[0], size, options, first_sample)
        level = options.decode_noise_scale
        scalars = (
            options.decode_timestep,
            options.decode_timestep if level is None else level,
            options.tone_map_compression_ratio,
        )
        with self.part("decode", size), storable_if_small(shape[0], *size.padded):
            clip, is_finite = self.programs(
                encode_decode.decode,
                self.checkpoint.vae_params,
                self.statistics,
                x,
                source,
                *(jnp.asarray(scalar, jnp.float32) for scalar in scalars),
                cfg=self.vae,
                execution=self.execution,
                uint8=output == "uint8",
                compiler_options=convolution.compiler_options(),
            )
            if not sharding.on_host(is_finite):
                raise NotFiniteError("the decoded pixels")
            return size.crop(sharding.on_host(clip))

    def _encode(self, clip: np.ndarray | Posterior) -> Posterior:
        if isinstance(clip, Posterior):
            return clip
        with storable_if_small(*clip.shape[:4]):
            return self.programs(
                encode_decode.encode,
                self.checkpoint.vae_params,
                jnp.asarray(clip),
                cfg=self.vae,
                execution=self.execution,
                compiler_options=convolution.compiler_options(),
            )

    def size(self, options: SamplingConfig) -> arguments.Size:
        """The size in `options`, and the size that is sampled on this VAE's grid."""
        factors = self.vae.temporal_factor, self.vae.spatial_factor
        return arguments.Size(options.num_frames, options.height, options.width, *factors)

    def _captions(
        self,
        prompt: str | Sequence[str] | None,
        embeddings: Mapping[str, Any] | None,
        options: SamplingConfig,
        needs_negative: bool,
    ) -> list[Caption]:
        """The captions, and the negative captions if they are needed."""
        if embeddings is not None:
            if prompt is not None:
                raise ValueError("give a prompt or embeddings, not both")
            channels = self.transformer.caption_channels
            return arguments.embedded_captions(embeddings, needs_negative, channels)
        if prompt is None:
            raise ValueError("there is nothing to sample: give a prompt, or embeddings")
        negative = options.negative_prompt if needs_negative else None
        return arguments.encoded_captions(prompt, negative, self.text_encoder)

    @property
    def _call(self) -> Callable[..., Any]:
        """The function that calls the jitted functions with the transformer."""
        return functools.partial(self.programs, compiler_options=compiler_options())

    def _input_maxima(self) -> InputMaxima:
        """Measures the largest inputs of the transformer's linear layers on a few small videos."""
        steps = len(self.checkpoint.allowed_inference_steps or ())
        changes: dict[str, Any] = {"num_inference_steps": steps} if steps else {}
        start = self.prepare(calibration.PROMPTS, calibration.OPTIONS, **changes)
        times = np.asarray(start.inputs.times)[: len(start.branches)]
        network = FastTransformer(self.transformer, self.execution)
        with self.part("denoise", start.size):
            inputs = start.inputs
            return calibration.input_maxima(
                network, self.params, inputs.start, inputs.context, times, self._call
            )

    def _noise(
        self,
        noise: Any,
        batch: int,
        size: arguments.Size,
        options: SamplingConfig,
        first_sample: int,
    ) -> NoiseSource:
        if isinstance(noise, NoiseSource):
            return noise
        source = seeded(options.seed, batch, first_sample)
        if noise is None:
            return source
        shape = (batch, *size.grid, self.transformer.in_channels)
        return GivenStart(arguments.checked("noise", noise, shape), source)

    @contextlib.contextmanager
    def part(self, name: str, size: arguments.Size) -> Iterator[None]:
        """Runs a part of a call on the mesh and measures its time, separately from compilation.

        If the device has too little memory, the error says what to change.
        """
        begin, compiling = time.perf_counter(), self.programs.seconds
        frames, height, width = size.padded
        advice = (
            f"this was in the part {name}, for {frames} frames of {height} x {width}: lower "
            "height, width, num_frames or the number of prompts, or use dtype='bfloat16' or more "
            "devices"
        )
        on_mesh = contextlib.nullcontext() if self.mesh is None else sharding.use_mesh(self.mesh)
        with explain_memory_errors(advice), on_mesh:
            yield
        compiling = self.programs.seconds - compiling
        running = time.perf_counter() - begin - compiling
        for part, seconds in ((name, running), ("compile", compiling)):
            self.timings[part] = self.timings.get(part, 0.0) + seconds
