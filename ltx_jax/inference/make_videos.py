"""Makes the videos that a `SampleConfig` describes: what `ltx-sample` does with its options.

As far as possible, errors in settings, media files and output paths are reported before networks
are loaded. Video files are written atomically. A JSON file beside each video holds its settings:
`--config that.json` makes the video again.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import rich.console
import rich.progress

from ltx_jax import config, pixels
from ltx_jax.checkpoints import adapters, embedded_models, vocabulary_file
from ltx_jax.config import MeshConfig, SampleConfig, sampling_options
from ltx_jax.data import inputs, preprocessors, video, writing
from ltx_jax.data.contact_sheet import contact_sheet
from ltx_jax.inference import outputs
from ltx_jax.inference.arguments import split_lora
from ltx_jax.runtime import compiled, files

if TYPE_CHECKING:
    from ltx_jax.diffusion.conditioning import Condition, Reference
    from ltx_jax.inference.enhance import PromptEnhancer
    from ltx_jax.inference.pipeline import LTXPipeline, Output
    from ltx_jax.inference.previews import ShowPreview
    from ltx_jax.inference.two_pass import Upsampler

PARTS: tuple[str, ...] = ("load", "text", "encode", "compile", "denoise", "decode", "write")
EMBEDDINGS = ("prompt_embeds", "prompt_mask", "negative_embeds", "negative_mask")


def make_videos(cfg: SampleConfig) -> None:
    """Makes all videos that `cfg` asks for and that do not exist yet.

    Raises:
      ValueError, OSError: for wrong arguments or files.
      MemoryError: if the device has too little memory.
    """
    if not cfg.checkpoint:
        raise ValueError("say which model to use: --checkpoint FILE, FOLDER or REPOSITORY")
    embeddings = None if cfg.embeddings is None else read_embeddings(cfg.embeddings)
    noise = None if cfg.noise is None else read_noise(cfg.noise)
    videos = outputs.planned_videos(
        cfg, 1 if embeddings is None else len(embeddings["prompt_embeds"])
    )
    batches = [
        batch
        for batch in outputs.batches(cfg, videos)
        if not all(outputs.done(cfg, v) for v in batch)
    ]
    if not batches:
        print(f"nothing to do: all {len(videos)} videos exist", file=sys.stderr)
        return
    embedded_models.local(cfg.checkpoint)  # raises an error if it names no model that ships
    _check_media(cfg)
    if _decodes(cfg):
        files.check_writable(batches[0][0].path)
    if cfg.save_latents is not None:
        files.check_writable(cfg.save_latents)
    if cfg.enhance is not None:
        batches = _enhanced(cfg.enhance, batches)
    warn_of_words(cfg.checkpoint, [item.prompt or "" for batch in batches for item in batch])
    models = load_models(cfg)
    clock = dict.fromkeys(PARTS, 0.0) | {"load": models.pipe.timings.get("load", 0.0)}
    for number, batch in enumerate(batches):
        label = f"video {number + 1}/{len(batches)}" if len(batches) > 1 else "denoising"
        seconds = _sample_and_write(cfg, models, noise, batch, embeddings, label)
        for part, duration in seconds.items():
            clock[part] = clock.get(part, 0.0) + duration
    parts = ", ".join(f"{part} {duration:.1f} s" for part, duration in clock.items())
    print(f"time: {parts}", file=sys.stderr)


def load_enhancer(name: str) -> "PromptEnhancer":
    """Loads a model that rewrites prompts.

    Raises:
      ValueError: if it cannot be loaded, or torch is not installed.
    """
    try:
        from ltx_jax.inference.enhance import PromptEnhancer
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--enhance: {error}: pip install '.[enhance]' in the repository"
        ) from error
    return PromptEnhancer(name)


def _enhanced(name: str, batches: Sequence[Sequence[outputs.Video]]) -> list[list[outputs.Video]]:
    """The videos with rewritten prompts, except empty ones. The model is dropped before others are
    loaded."""
    enhancer = load_enhancer(name)

    def enhance(item: outputs.Video) -> outputs.Video:
        if not item.prompt:
            return item
        prompt = enhancer(item.prompt)
        print(f"enhanced prompt: {prompt}", file=sys.stderr)
        return dataclasses.replace(item, prompt=prompt, original=item.prompt)

    return [[enhance(item) for item in batch] for batch in batches]


def warn_of_words(checkpoint: str, prompts: Sequence[str]) -> None:
    """Warns on stderr, in one line, of words that a model with a vocabulary does not know."""
    known = vocabulary_file.read(checkpoint)
    hint = "" if known is None else known.hint(" ".join(prompts))
    if hint:
        print(f"warning: {hint}", file=sys.stderr)


def _decodes(cfg: SampleConfig) -> bool:
    return cfg.output_path is not None or cfg.save_latents is None


def read_embeddings(path: str) -> dict[str, np.ndarray]:
    """Reads prompt_embeds, prompt_mask, and negative_embeds, negative_mask if they are there.

    Raises:
      ValueError: if the file is not an .npz with these arrays.
    """
    arrays = inputs.read_arrays(path)
    if isinstance(arrays, np.ndarray):
        raise ValueError(f"{path} is not an .npz of embeddings: it is the .npy of a single array")
    arrays = {name: arrays[name] for name in EMBEDDINGS if name in arrays}
    for required in EMBEDDINGS[:2]:
        if required not in arrays:
            raise ValueError(f"{path} holds no {required}; expected {', '.join(EMBEDDINGS)}")
    for name, array in arrays.items():
        _check_numbers(f"{name} of {path}", array)
    if arrays["prompt_embeds"].ndim != 3:
        raise ValueError(
            f"prompt_embeds of {path} must be (b, m, d), got {arrays['prompt_embeds'].shape}"
        )
    return arrays


def read_noise(path: str) -> np.ndarray:
    """Reads initial noise (b, t, h, w, c).

    Raises:
      ValueError: if the file is not an .npy with such an array.
    """
    array = inputs.read_arrays(path)
    if not isinstance(array, np.ndarray) or array.ndim != 5:
        raise ValueError(f"{path} must hold one array (b, t, h, w, c) of initial noise")
    _check_numbers(path, array)
    return array


def _check_numbers(name: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ValueError(f"{name} must hold finite numbers only, without NaN or infinity")


def _check_media(cfg: SampleConfig) -> None:
    """Opens the media and finds the adapters, so that damaged files are reported before the
    networks are loaded."""
    for name in cfg.lora:
        adapters.check(split_lora(name)[0])
    if cfg.reference_preprocessor is not None:
        preprocessors.preprocessor(cfg.reference_preprocessor)
    references = () if cfg.reference_media_path is None else (cfg.reference_media_path,)
    masks = filter(None, cfg.conditioning_mask_paths)
    for path in (*cfg.conditioning_media_paths, *masks, *references):
        video.read_media(path, num_frames=1)
    if cfg.input_media_path is not None:
        file, start = inputs.split_start(cfg.input_media_path)
        video.read_video(file, start=start, num_frames=1)


class Models(NamedTuple):
    """The pipeline, and the upsampler if sampling is in two passes."""

    pipe: "LTXPipeline"
    upsampler: "Upsampler | None"


def load_models(cfg: SampleConfig) -> Models:
    """Loads the models that the settings name, onto their mesh.

    Raises:
      ValueError: if there are no such models, or they do not fit each other.
    """
    from ltx_jax.inference.pipeline import LTXPipeline
    from ltx_jax.runtime import sharding

    compiled.use_compilation_cache()
    mesh = None if cfg.mesh == MeshConfig() else sharding.make_mesh(cfg.mesh)
    prompted = cfg.embeddings is None or cfg.linears == "float8"  # for its calibration
    reuses = cfg.teacache > 0 or (cfg.second_pass is not None and cfg.second_pass.teacache > 0)
    pipe = LTXPipeline.from_pretrained(
        cfg.checkpoint,
        vae=cfg.vae,
        text_encoder=cfg.text_encoder if prompted else None,
        dtype=cfg.dtype,
        mesh=mesh,
        fast=reuses or None,
        linears=cfg.linears,
    )
    if cfg.lora:
        pipe.load_loras([split_lora(name) for name in cfg.lora])
    if cfg.config is not None and cfg.config.endswith(".json"):
        before = config.read_json(Path(cfg.config)).get("checkpoint_hash")
        if before not in (None, pipe.checkpoint.source_hash):
            print(f"warning: {cfg.config} was made with another checkpoint", file=sys.stderr)
    if cfg.spatial_upscaler is None or cfg.second_pass is None:
        return Models(pipe, None)
    from ltx_jax.inference.two_pass import Upsampler

    return Models(pipe, Upsampler.load(cfg.spatial_upscaler, mesh=mesh))


# Latents (None if only clips were requested) and clips (empty if only latents were).
LatentsAndClips = tuple[np.ndarray | None, Sequence[np.ndarray] | np.ndarray]


def sample_batch(
    cfg: SampleConfig,
    models: Models,
    prompts: list[str] | None,
    *,
    noise: np.ndarray | None = None,
    first_sample: int = 0,
    **arguments: Any,
) -> LatentsAndClips:
    """Samples a batch in one pass, or in two if the settings name an upsampler.

    Args:
      cfg: the settings.
      models: the result of `load_models` for these settings.
      prompts: one per video; None if there are embeddings instead.
      noise: initial noise that replaces the seed's.
      first_sample: index of the first video in its run.
      arguments: conditions, embeddings, callback and preview, as in a call of `LTXPipeline`.

    Raises:
      ValueError: if the arguments do not fit each other.
      MemoryError: if the device has too little memory.
    """
    options = sampling_options(cfg)
    pipe, decodes, second = models.pipe, _decodes(cfg), cfg.second_pass
    kind: Output = "float" if writing.is_deep(cfg.output_path or "") else "uint8"
    if models.upsampler is None or second is None:
        common: dict[str, Any] = dict(noise=noise, first_sample=first_sample)
        media = cfg.input_media_path
        latents = pipe(prompts, options, input_media=media, output="latents", **common, **arguments)
        return latents, pipe.decode(latents, options, output=kind, **common) if decodes else ()
    from ltx_jax.inference import two_pass

    result = two_pass.sample(
        pipe,
        models.upsampler,
        prompts,
        options,
        second_pass=second,
        downscale_factor=cfg.downscale_factor,
        first_sample=first_sample,
        output=kind if decodes else "latents",
        **arguments,
    )
    return (None, result) if decodes else (result, ())


def _sample_and_write(
    cfg: SampleConfig,
    models: Models,
    noise: np.ndarray | None,
    batch: Sequence[outputs.Video],
    embeddings: dict[str, np.ndarray] | None,
    label: str,
) -> dict[str, float]:
    """Samples a batch and writes the requested files; returns the seconds of each part."""
    prompts = None if embeddings is not None else [item.prompt or "" for item in batch]
    with _bar(label) as callback:
        latents, clips = sample_batch(
            cfg,
            models,
            prompts,
            noise=noise,
            first_sample=batch[0].index,
            conditions=conditions_of(cfg),
            embeddings=embeddings,
            callback=callback,
            preview=_preview_writer(cfg),
        )
    pipe = models.pipe
    seconds = {part: duration for part, duration in pipe.timings.items() if part != "load"}
    begin = time.perf_counter()
    if cfg.save_latents is not None and latents is not None:
        with files.atomic_write(cfg.save_latents) as temporary, temporary.open("wb") as file:
            np.save(file, latents)
        print(cfg.save_latents)
    for planned, clip in zip(batch, clips, strict=False):
        if outputs.done(cfg, planned):
            continue
        with outputs.claimed(planned) as item:
            writing.write(item.path, clip, cfg.frame_rate)
            outputs.write_sidecar(cfg, item, pipe.checkpoint.source_hash, seconds)
            print(item.path)
            if cfg.sheet:
                _write_sheet(cfg, item, clip)
    return seconds | {"write": time.perf_counter() - begin}


def conditions_of(cfg: SampleConfig) -> "list[Condition | Reference]":
    """The conditions and the reference that the settings name."""
    from ltx_jax.diffusion.conditioning import Condition, Reference

    paths = cfg.conditioning_media_paths
    strengths = cfg.conditioning_strengths or (1.0,) * len(paths)
    masks = cfg.conditioning_mask_paths or ("",) * len(paths)
    media = zip(paths, cfg.conditioning_start_frames, strengths, masks, strict=True)
    conditions: list[Condition | Reference] = [
        Condition(path, frame, strength, mask or None) for path, frame, strength, mask in media
    ]
    if cfg.reference_media_path is not None:
        factor, draw = cfg.reference_downscale_factor, cfg.reference_preprocessor
        reference = Reference(cfg.reference_media_path, cfg.reference_strength, factor, draw)
        conditions.append(reference)
    return conditions


def _write_sheet(cfg: SampleConfig, item: outputs.Video, clip: np.ndarray) -> None:
    if clip.dtype != np.uint8:
        clip = np.asarray(pixels.to_bytes(clip))
    gif, sheet = (item.path.with_suffix(ending) for ending in (".gif", ".png"))
    writing.write_gif(gif, clip, cfg.frame_rate)
    scale = min(1.0, 256 / clip.shape[2])
    writing.write_image(sheet, contact_sheet([clip], [item.prompt or ""], scale=scale))
    print(gif, sheet, sep="\n")


def _preview_writer(cfg: SampleConfig) -> "ShowPreview | None":
    """Writes what the videos look like after each step, side by side, over the file before."""
    if cfg.preview is None:
        return None
    from ltx_jax.inference.previews import enlarged

    file = Path(cfg.preview)
    files.check_writable(file)

    def write(progress: Any, pictures: np.ndarray) -> None:
        clip = enlarged(np.concatenate(list(pictures), axis=2))
        if file.suffix.lower() == ".gif":
            writing.write_gif(file, clip, len(clip) * cfg.frame_rate / cfg.num_frames)
        else:
            writing.write_image(file, np.concatenate(list(clip), axis=1))

    return write


@contextlib.contextmanager
def _bar(label: str) -> Iterator[Callable[[Any], None]]:
    """Shows a progress bar of the denoising steps on stderr; yields the pipeline's callback."""
    columns = rich.progress.Progress.get_default_columns()
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        try:
            yield lambda step: bar.update(task, completed=step.step, total=step.steps)
        except BaseException:
            bar.live.transient = True  # removes the bar before an error is printed
            raise
