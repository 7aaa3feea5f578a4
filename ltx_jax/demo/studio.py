"""Samples the videos that the web page requests: checks limits, samples, and writes the file.

Independent of the page itself.
"""

import collections
import dataclasses
import math
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from ltx_jax.checkpoints import vocabulary_file
from ltx_jax.config import SampleConfig, SamplingConfig
from ltx_jax.data import inputs, preprocessors, video, writing
from ltx_jax.data.pictures import read_image
from ltx_jax.demo.guard import contains
from ltx_jax.diffusion.conditioning import Condition, Reference
from ltx_jax.diffusion.sampler import Progress
from ltx_jax.inference import make_videos
from ltx_jax.inference.previews import ShowPreview

MAX_PROMPT = 2000  # characters
MAX_STEPS = 50
MAX_VIDEOS = 32  # older videos are deleted
MAX_STRENGTH = 4.0  # of an adapter, up or down
MAX_PICTURE = 50_000_000  # pixels of an uploaded picture: 10 MB can hold thousands of megapixels
MAX_FRAME = 1920 * 1080  # pixels of a frame of an uploaded clip


class PageImage(NamedTuple):
    """An image condition: the pixels, and the frame of the video at which they stand."""

    pixels: UInt8[np.ndarray, "h w 3"]
    frame: int


class PageReference(NamedTuple):
    """A clip that the video has to follow, as it is or by its edges."""

    clip: inputs.Stored
    draws_edges: bool


class PageLora(NamedTuple):
    """An adapter of the page's folder, by the name that `Studio.loras` lists, and its strength."""

    name: str
    strength: float


class SampledVideo(NamedTuple):
    """A sampled video: its file, its settings, and the time it took."""

    path: Path
    settings: SampleConfig
    seconds: float
    command: str  # command line that samples the same video


@dataclasses.dataclass(frozen=True)
class Limits:
    """The largest video that a page may request, so that no request exhausts the memory."""

    height: int
    width: int
    num_frames: int
    steps: int
    pixels: int  # of all frames together

    @classmethod
    def of(cls, settings: SamplingConfig, factor: float | int) -> "Limits":
        """Allows twice the sides and length, and `factor` times the pixels, of the settings."""
        frames, height, width = settings.num_frames, settings.height, settings.width
        return cls(
            height=2 * height,
            width=2 * width,
            num_frames=max(2 * (frames - 1) + 1, 9),
            steps=max(MAX_STEPS, settings.num_inference_steps),
            pixels=math.floor(factor * frames * height * width),
        )

    def check(self, settings: SamplingConfig) -> None:
        """Checks a request.

        Raises:
          ValueError: if it exceeds a limit; the message names the value and the limit.
        """
        for name in ("height", "width", "num_frames"):
            value, limit = getattr(settings, name), getattr(self, name)
            if value > limit:
                raise ValueError(f"{name} may be {limit} at most here, got {value}")
        if settings.num_inference_steps > self.steps:
            raise ValueError(f"at most {self.steps} steps here, got {settings.num_inference_steps}")
        pixels = settings.num_frames * settings.height * settings.width
        if pixels > self.pixels:
            raise ValueError(
                f"{settings.num_frames} frames of {settings.width} x {settings.height} are "
                f"{pixels / self.pixels:.1f} times what one video may be here: lower the size or "
                "the number of frames"
            )


class Studio:
    """Samples videos, one at a time.

    Attributes:
      settings: the defaults of a request.
      limits: the limits of a request.
      folder: the folder of all videos and uploads.
      loras: files of the adapters that a request may choose, by name.
      enhancer: rewrites prompts; None if the settings name no model for it.
      vocabulary: what the model knows; None if it does not say.
    """

    def __init__(
        self,
        settings: SampleConfig,
        folder: Path,
        *,
        limit: float | int = 4,
        arguments: Sequence[str] = (),
        models: make_videos.Models | None = None,
        loras: Path | None = None,
    ):
        """Loads the models named in the settings.

        Args:
          settings: as ltx-sample reads them.
          folder: the folder of uploads and of all videos, each of which gets a subfolder.
          limit: largest number of pixels of a video, as a multiple of that in the settings.
          arguments: the options of ltx-sample that the settings come from, for the commands shown.
          models: models that are already loaded; None loads those named in the settings.
          loras: a folder of adapters (.safetensors) that a request may choose.

        Raises:
          ValueError: if a model cannot be loaded, there are no adapters in the folder, or a setting
            makes no sense for a page.
        """
        names = (
            *("embeddings", "noise", "prompts_file", "conditioning_media_paths"),
            "reference_media_path",
        )
        if unusable := [name for name in names if getattr(settings, name)]:
            raise ValueError(
                "prompts, pictures and clips are entered on the page: leave out "
                f"{' and '.join(unusable)}"
            )
        self.loras = {} if loras is None else _adapters(loras)
        name = settings.enhance
        self.vocabulary = vocabulary_file.read(settings.checkpoint)
        self.enhancer = None if name is None else make_videos.load_enhancer(name)
        self.settings = dataclasses.replace(
            settings, output_path=None, save_latents=None, sheet=False, preview=None, enhance=None
        )
        self.limits = Limits.of(settings, limit)
        self.folder, self._arguments = folder.resolve(), tuple(arguments)
        self._models = make_videos.load_models(self.settings) if models is None else models
        self._lock = threading.Lock()
        self._folders: collections.deque[Path] = collections.deque()

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent in height and width; other sizes are padded to a multiple of it."""
        return self._models.pipe.vae.spatial_factor

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame; with 8, a video has 8k+1 frames."""
        return self._models.pipe.vae.temporal_factor

    def picture(self, path: str) -> UInt8[np.ndarray, "h w 3"]:
        """Reads an uploaded picture.

        Raises:
          ValueError: if the path is no file in the studio's folder, or the file is no picture or
            too large.
        """
        return read_image(self._upload(path), max_pixels=MAX_PICTURE)

    def clip(self, path: str) -> inputs.Stored:
        """Reads an uploaded clip, or a picture.

        Raises:
          ValueError: if the path is no file in the studio's folder, or the file is no clip or its
            frames are too large.
        """
        upload = self._upload(path)
        facts = video.probe(upload)
        if facts.height * facts.width > MAX_FRAME:
            raise ValueError(
                f"{upload} has frames of {facts.width} x {facts.height}: a clip may have "
                f"{MAX_FRAME} pixels a frame here"
            )
        return upload

    def _upload(self, path: str) -> inputs.Stored:
        if not contains(self.folder, path):
            raise ValueError("this file was not uploaded, or long ago: upload it again")
        return inputs.Stored(Path(path).name, Path(path).read_bytes())

    def make(
        self,
        prompt: str,
        pictures: Sequence[PageImage] = (),
        *,
        reference: PageReference | None = None,
        lora: PageLora | None = None,
        enhance: bool = False,
        progress: Callable[[Progress], None] = lambda step: None,
        preview: ShowPreview | None = None,
        **changes: Any,
    ) -> SampledVideo:
        """Samples one video.

        Args:
          prompt: the prompt, which may be empty.
          pictures: image conditions.
          reference: a clip to follow.
          lora: an adapter, beside those of the settings.
          enhance: whether to rewrite the prompt first.
          progress: called after every step.
          preview: receives small pictures of the video after every step, if the model has a map
            from latents to colours.
          **changes: settings that differ from the defaults.

        Raises:
          ValueError: if the request exceeds a limit or a setting is invalid.
          MemoryError: if the device runs out of memory.
        """
        if len(prompt) > MAX_PROMPT:
            raise ValueError(f"a prompt may have {MAX_PROMPT} letters, this one has {len(prompt)}")
        settings = dataclasses.replace(self.settings, prompt=prompt, **changes)
        self.limits.check(settings)
        if lora is not None:
            settings = dataclasses.replace(settings, lora=(*settings.lora, self._option(lora)))
        for picture in pictures:
            if not 0 <= picture.frame < settings.num_frames:
                raise ValueError(
                    f"there is no frame {picture.frame}: the last of {settings.num_frames} is "
                    f"frame {settings.num_frames - 1}"
                )
        conditions: list[Condition | Reference] = [
            Condition(picture.pixels, picture.frame) for picture in pictures
        ]
        if reference is not None:
            conditions.append(self._condition(reference))
        start = time.perf_counter()
        with self._lock:
            if enhance and prompt and self.enhancer is not None:
                prompt = self.enhancer(prompt)
                settings = dataclasses.replace(settings, prompt=prompt)
            self._use(lora)
            _, clips = make_videos.sample_batch(
                settings,
                self._models,
                [prompt],
                first_sample=settings.first_sample,
                conditions=conditions,
                callback=progress,
                preview=preview if self._models.pipe.checkpoint.colours is not None else None,
            )
            path = self._new_path()
            writing.write_video(path, clips[0], settings.frame_rate)
        seconds = time.perf_counter() - start
        command = self._command(prompt, pictures, reference, lora, changes)
        return SampledVideo(path, settings, seconds, command)

    def _condition(self, reference: PageReference) -> Reference:
        return Reference(
            reference.clip,
            self.settings.reference_strength,
            self.settings.reference_downscale_factor,
            preprocessors.CANNY if reference.draws_edges else None,
        )

    def _option(self, lora: PageLora) -> str:
        """The value of `--lora` for an adapter of the folder.

        Raises:
          ValueError: if there is no such adapter, or its strength is out of range.
        """
        if lora.name not in self.loras:
            raise ValueError(f"there is no adapter {lora.name!r} here")
        if not abs(lora.strength) <= MAX_STRENGTH:
            raise ValueError(
                f"the strength of an adapter may be {MAX_STRENGTH:g} at most here, got "
                f"{lora.strength:g}"
            )
        return f"{self.loras[lora.name]}:{lora.strength:g}"

    def _use(self, lora: PageLora | None) -> None:
        """Merges an adapter, and takes the one out that an earlier request chose."""
        pipe = self._models.pipe
        chosen = {} if lora is None else {self.loras[lora.name]: lora.strength}
        strengths = {adapter.path: strength for adapter, strength in pipe.loras}
        for other in set(self.loras.values()) & strengths.keys() - chosen.keys():
            pipe.unload_lora(other)
        for path, strength in chosen.items():
            if strengths.get(path) != strength:
                pipe.load_lora(path, strength)

    def _new_path(self) -> Path:
        """The path of a new video; the oldest video is deleted if there are too many."""
        while len(self._folders) >= MAX_VIDEOS:
            shutil.rmtree(self._folders.popleft(), ignore_errors=True)
        self._folders.append(Path(tempfile.mkdtemp(dir=self.folder)))
        return self._folders[-1] / "video.mp4"

    def _command(
        self,
        prompt: str,
        pictures: Sequence[PageImage],
        reference: PageReference | None,
        lora: PageLora | None,
        changes: dict[str, Any],
    ) -> str:
        words = ["ltx-sample", *self._arguments, "--prompt", prompt]
        if self.enhancer is not None:
            words += ["--enhance", "None"]  # this prompt is what the model wrote, or is to stay
        if lora is not None:
            words += ["--lora", *self.settings.lora, self._option(lora)]
        for name, value in changes.items():
            if value != getattr(self.settings, name):
                words += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
        if pictures:
            words += ["--conditioning_media_paths"]
            words += [f"picture{i + 1}.png" for i in range(len(pictures))]
            words += ["--conditioning_start_frames", *(str(one.frame) for one in pictures)]
        if reference is not None:
            words += ["--reference_media_path", reference.clip.name]
            if reference.draws_edges:
                words += ["--reference_preprocessor", preprocessors.CANNY]
        return shlex.join(words)


def _adapters(folder: Path) -> dict[str, Path]:
    """The adapters in a folder, by their names without the ending."""
    files = {path.stem: path.resolve() for path in sorted(folder.glob("*.safetensors"))}
    if not files:
        raise ValueError(f"--loras: there is no .safetensors file in {folder}")
    return files
