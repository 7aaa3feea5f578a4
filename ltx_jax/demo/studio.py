"""What the web page asks for: checked against its limits, sampled, written as a video.

Knows nothing of the page itself.
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

from ltx_jax.config import SampleConfig, SamplingConfig
from ltx_jax.data import video
from ltx_jax.diffusion.conditioning import Condition
from ltx_jax.diffusion.sampler import Progress
from ltx_jax.inference import make_videos

MAX_PROMPT = 2000  # letters
MAX_STEPS = 50
KEPT = 32  # videos; older ones are deleted


class Picture(NamedTuple):
    """A picture that the video has to show, and at which frame."""

    pixels: UInt8[np.ndarray, "h w 3"]
    frame: int


class Video(NamedTuple):
    """A video that was made, and how."""

    path: Path
    settings: SampleConfig
    seconds: float
    command: str  # makes it again


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that one video may ask for, so that nobody fills the memory from a page."""

    height: int
    width: int
    num_frames: int
    steps: int
    pixels: int  # of all frames together

    @classmethod
    def of(cls, settings: SamplingConfig, factor: float | int) -> "Limits":
        """Sides and lengths up to twice, all pixels up to `factor` times those of the settings."""
        frames, height, width = settings.num_frames, settings.height, settings.width
        return cls(
            height=2 * height,
            width=2 * width,
            num_frames=max(2 * (frames - 1) + 1, 9),
            steps=max(MAX_STEPS, settings.num_inference_steps),
            pixels=math.floor(factor * frames * height * width),
        )

    def check(self, settings: SamplingConfig) -> None:
        """Refuses what is larger.

        Raises:
          ValueError: naming the value and the most it may be.
        """
        for name in ("height", "width", "num_frames"):
            value, most = getattr(settings, name), getattr(self, name)
            if value > most:
                raise ValueError(f"{name} may be {most} at most here, got {value}")
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
    """Makes videos one at a time.

    Attributes:
      settings: that a request starts from.
      limits: of a request.
    """

    def __init__(
        self,
        settings: SampleConfig,
        folder: Path,
        *,
        limit: float | int = 4,
        arguments: Sequence[str] = (),
        models: make_videos.Models | None = None,
    ):
        """Loads the models that the settings name.

        Args:
          settings: as ltx-sample reads them.
          folder: where videos go, each into a folder of its own.
          limit: pixels of a video, in multiples of the settings'.
          arguments: options of ltx-sample that gave the settings, for the commands shown.
          models: None loads those of the settings.

        Raises:
          ValueError: if a model is missing or does not fit, or for settings that no page can use.
        """
        names = ("embeddings", "noise", "prompts_file", "conditioning_media_paths")
        if given := [name for name in names if getattr(settings, name)]:
            raise ValueError(
                f"the page asks for prompts and pictures itself: leave out {' and '.join(given)}"
            )
        self.settings = dataclasses.replace(
            settings, output_path=None, save_latents=None, previews=False
        )
        self.limits = Limits.of(settings, limit)
        self._folder, self._arguments = folder, tuple(arguments)
        self._models = make_videos.load_models(self.settings) if models is None else models
        self._busy = threading.Lock()
        self._made: collections.deque[Path] = collections.deque()

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent: sizes that are no multiple of it are padded."""
        return self._models.pipe.vae.spatial_factor

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame; lengths of 8k+1 are whole where it is 8."""
        return self._models.pipe.vae.temporal_factor

    def make(
        self,
        prompt: str,
        pictures: Sequence[Picture] = (),
        *,
        progress: Callable[[Progress], None] = lambda step: None,
        **changes: Any,
    ) -> Video:
        """Makes one video.

        Args:
          prompt: may be empty.
          pictures: that it has to show.
          progress: called after every step.
          changes: fields of the settings.

        Raises:
          ValueError: for anything that does not fit, naming the value and a way out.
          MemoryError: if the device's memory does not suffice.
        """
        if len(prompt) > MAX_PROMPT:
            raise ValueError(f"a prompt may have {MAX_PROMPT} letters, this one has {len(prompt)}")
        settings = dataclasses.replace(self.settings, prompt=prompt, **changes)
        self.limits.check(settings)
        for picture in pictures:
            if not 0 <= picture.frame < settings.num_frames:
                raise ValueError(
                    f"there is no frame {picture.frame}: the last of {settings.num_frames} is "
                    f"frame {settings.num_frames - 1}"
                )
        conditions = [Condition(picture.pixels, picture.frame) for picture in pictures]
        begin = time.perf_counter()
        with self._busy:
            _, clips = make_videos.sample_batch(
                settings,
                self._models,
                [prompt],
                first_sample=settings.first_sample,
                conditions=conditions,
                callback=progress,
            )
            path = self._place()
            video.write_video(path, clips[0], settings.frame_rate)
        taken = time.perf_counter() - begin
        return Video(path, settings, taken, self._command(prompt, pictures, changes))

    def _place(self) -> Path:
        """A folder for one more video, and room for it."""
        while len(self._made) >= KEPT:
            shutil.rmtree(self._made.popleft(), ignore_errors=True)
        self._made.append(Path(tempfile.mkdtemp(dir=self._folder)))
        return self._made[-1] / "video.mp4"

    def _command(self, prompt: str, pictures: Sequence[Picture], changes: dict[str, Any]) -> str:
        words = ["ltx-sample", *self._arguments, "--prompt", prompt]
        for name, value in changes.items():
            if value != getattr(self.settings, name):
                words += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
        if pictures:
            words += ["--conditioning_media_paths"]
            words += [f"picture{i + 1}.png" for i in range(len(pictures))]
            words += ["--conditioning_start_frames", *(str(one.frame) for one in pictures)]
        return shlex.join(words)
