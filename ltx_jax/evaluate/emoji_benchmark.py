"""Fixed prompts of animated emoji, their videos, and what the judge says of a video.

Sampled videos are kept on disk, so that an interrupted evaluation continues, and can be looked at.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from ltx_jax.config import SamplingConfig
from ltx_jax.diffusion.conditioning import Condition
from ltx_jax.emoji import render, scenes
from ltx_jax.emoji.catalogue import FRAME_RATE, Catalogue, Entry, Split
from ltx_jax.emoji.grammar import caption
from ltx_jax.emoji.scenes import Scene
from ltx_jax.evaluate import emoji_motion, emoji_objects
from ltx_jax.evaluate.emoji_retrieval import Embedder, Gallery
from ltx_jax.runtime import files

OPTIONS = SamplingConfig(
    negative_prompt="",
    height=64,
    width=64,
    num_frames=25,
    frame_rate=FRAME_RATE,
    num_inference_steps=16,
    stg_scale=0.0,
    image_cond_noise_scale=0.0,
    prepare_conditions=False,
)
_SEED = 161_803  # of the prompts; differs from all seeds of training
_NAMELESS = "emoji of "  # in captions that give tags instead of the emoji's name
_LOOKS = 5  # frames of a video whose features stand for the whole

Frames = UInt8[np.ndarray, "t h w 3"]
# Signature of LTXPipeline: (captions, options, conditions=..., first_sample=...) -> videos.
Sample = Callable[..., UInt8[np.ndarray, "b t h w 3"]]


class EmojiPrompt(NamedTuple):
    """A scene of one animated emoji, and the caption that is the model's prompt for it."""

    scene: Scene
    caption: str

    @property
    def entry(self) -> Entry:
        """The emoji."""
        return self.scene.actors[0].entry

    @property
    def motion(self) -> str:
        """The motion of the emoji, or of the camera."""
        return self.scene.motion(self.scene.actors[0])

    @property
    def names_background(self) -> bool:
        """Whether the caption names all colours of the background."""
        text = self.caption.lower()
        return all(colour in text for colour in self.scene.backdrop.colours)


class Verdict(NamedTuple):
    """What the judge says of a video.

    Attributes:
      emoji: whether the video shows the emoji of the prompt, in any skin tone.
      family: the same, but another gender of the emoji counts too.
      tone: whether the skin tone is right, if the emoji is; None if the emoji has one tone only.
      background: whether the background is right; None if the caption does not name it.
      motion: whether the motion of the whole is right.
      closure: see `loop_closure`.
      features: of whole frames, spread over the video.
    """

    emoji: bool
    family: bool
    tone: bool | None
    background: bool | None
    motion: bool
    closure: float
    features: Float32[np.ndarray, "k c"]

    @property
    def all(self) -> bool:
        """Whether all that the prompt says is right."""
        return (
            self.emoji and self.tone is not False and self.background is not False and self.motion
        )


@dataclasses.dataclass(frozen=True)
class EmojiBenchmark:
    """The emoji of a data set, the judge, and the format of the videos.

    Attributes:
      catalogue: the emoji.
      artwork: number of an emoji -> its frames.
      embed: features of pictures.
      gallery: features of all animated emoji.
      options: sampling settings; size, length and frame rate also apply to the rendered scenes.
    """

    catalogue: Catalogue
    artwork: render.Artwork
    embed: Embedder
    gallery: Gallery
    options: SamplingConfig = OPTIONS

    def draw_prompts(self, count: int, split: Split, *, first: int = 0) -> list[EmojiPrompt]:
        """The prompts of a split from number `first` on. Every caption names its emoji."""
        options, prompts, index = self.options, [], 0
        while len(prompts) < first + count:
            rng = np.random.default_rng([_SEED, index])
            scene = scenes.sample_scene(
                rng,
                self.catalogue,
                split=split,
                seconds=(options.num_frames - 1) / options.frame_rate,
                aspect=options.width / options.height,
                animated=True,
                num_actors=1,
            )
            text = caption(scene, rng)
            if _NAMELESS not in text.lower():
                prompts.append(EmojiPrompt(scene, text))
            index += 1
        return prompts[first:]

    def render(self, prompt: EmojiPrompt) -> Frames:
        """Renders the prompt's scene: the real clip."""
        options = self.options
        size = options.num_frames, options.height, options.width, options.frame_rate
        return render.render(prompt.scene, self.artwork, *size)

    def judge(self, frames: Frames, prompt: EmojiPrompt) -> Verdict:
        """Compares a video with its prompt."""
        backdrop, entry = prompt.scene.backdrop, prompt.entry
        found = emoji_objects.masks(frames, backdrop)
        looks = self.gallery.looks(frames, found, self.embed)
        nearest = self.catalogue.entries[self.gallery.nearest(looks)]
        tones = self.gallery.tones(entry.base)
        return Verdict(
            emoji=nearest.base == entry.base,
            family=nearest.family == entry.family,
            tone=self.gallery.nearest_tone(looks, entry.base) == entry.tone if tones > 1 else None,
            background=emoji_objects.background_is_right(frames, found, backdrop)
            if prompt.names_background
            else None,
            motion=emoji_motion.motion(frames, found, backdrop, self.options.frame_rate)
            == prompt.motion,
            closure=loop_closure(looks.features),
            features=self.whole(frames),
        )

    def whole(self, frames: Frames) -> Float32[np.ndarray, "k c"]:
        """Features of whole frames, spread over a video."""
        numbers = np.linspace(0, len(frames) - 1, _LOOKS).round().astype(int)
        return self.embed(frames[numbers].astype(np.float32))


def training_features(
    benchmark: EmojiBenchmark, count: int, path: Path
) -> Float32[np.ndarray, "{count} c"]:
    """Features of clips of the training scenes (means over frames), computed or read from `path`.

    Args:
      benchmark: the emoji, the network and the format of the clips.
      count: number of clips.
      path: a file where they are stored.
    """
    key = f"{count} {benchmark.gallery.key} {dataclasses.asdict(benchmark.options)}"
    if path.exists():
        with np.load(path) as stored:
            if str(stored["key"]) == key:
                return stored["features"]
    options, rows = benchmark.options, []
    for index in range(count):
        clip = render.clip(
            index,
            benchmark.catalogue,
            benchmark.artwork,
            num_frames=options.num_frames,
            height=options.height,
            width=options.width,
            fps=options.frame_rate,
        )
        rows.append(benchmark.whole(clip.frames).mean(axis=0))
    with files.atomic_write(path) as temporary:
        np.savez(temporary, key=key, features=np.stack(rows))
    return np.stack(rows)


def loop_closure(features: Float32[np.ndarray, "k c"]) -> float:
    """How similar an emoji becomes to its first frame again, after the frame that differs most.

    The smallest later distance of features from the first frame, over the largest distance: 0 for
    an animation that returns, 1 for one that does not. Also 1 for one that does not move.
    """
    distances = np.linalg.norm(features - features[:1], axis=1)
    farthest = int(np.argmax(distances))
    if distances[farthest] == 0:
        return 1.0
    return float(distances[farthest:].min() / distances[farthest])


@dataclasses.dataclass(frozen=True)
class SampledVideos:
    """Videos of a model, sampled once and then read from a folder.

    Attributes:
      sample: the pipeline.
      options: its settings.
      folder: where the videos are.
      batch_size: number of videos that are sampled together.
    """

    sample: Sample
    options: SamplingConfig
    folder: Path
    batch_size: int = 8

    def open(self, model: str) -> None:
        """Claims the folder for a model (its hash) and the settings.

        Raises:
          ValueError: if it contains videos of another model or other settings.
        """
        about = json.dumps({"model": model, **dataclasses.asdict(self.options)}, default=str)
        path = self.folder / "settings.json"
        if path.exists() and path.read_text().strip() != about:
            raise ValueError(
                f"{self.folder} contains samples of another model or of other settings: name "
                "another folder (--samples), or delete it"
            )
        files.atomic_write_text(path, f"{about}\n")

    def videos(
        self, name: str, captions: Sequence[str], first_frames: Sequence[Frames] | None = None
    ) -> Iterator[Frames]:
        """One video per caption, from the files `name`/0000.npz and so on.

        Args:
          name: a folder for these captions.
          captions: the prompts.
          first_frames: if given, videos whose first frames condition the samples.
        """
        for start in range(0, len(captions), self.batch_size):
            texts = list(captions[start : start + self.batch_size])
            paths = [self.folder / name / f"{start + i:04d}.npz" for i in range(len(texts))]
            if not all(path.exists() for path in paths):
                # The last batch is padded to the full size, which avoids a second program.
                padding = self.batch_size - len(texts)
                conditions = ()
                if first_frames is not None:
                    given = list(first_frames[start : start + self.batch_size])
                    given += given[-1:] * padding
                    conditions = [Condition(np.stack(given)[:, :1])]
                videos = self.sample(
                    texts + texts[-1:] * padding,
                    self.options,
                    conditions=conditions,
                    first_sample=start,
                )
                for path, text, video in zip(paths, texts, videos, strict=False):
                    with files.atomic_write(path) as temporary:
                        np.savez_compressed(temporary, frames=video, caption=text)
            for path, text in zip(paths, texts, strict=True):
                with np.load(path) as stored:
                    if str(stored["caption"]) != text:
                        raise ValueError(f"{path} shows another caption: delete {self.folder}")
                    yield stored["frames"]
