"""The table of a model of animated emoji: how well its videos follow prompts of held-out scenes.

Each part of the table judges the same prompts several times: the real clips (what the judge can
tell at all), the VAE's reconstructions of them (the best that a transformer on its latents can
reach), the samples, and the samples compared with other prompts than their own (chance).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from ltx_jax import metrics, pixels
from ltx_jax.emoji.catalogue import Split
from ltx_jax.evaluate.autoencoder import Reconstruct, frechet_rows
from ltx_jax.evaluate.emoji_benchmark import (
    EmojiBenchmark,
    EmojiPrompt,
    Frames,
    SampledVideos,
    Verdict,
)
from ltx_jax.evaluate.metric_table import MetricRow, bootstrapped, mean, percentage
from ltx_jax.models import convolution, i3d

PARTS: tuple[Split | str, ...] = ("combinations", "tones", "bases", "image")
_MOVES = 0.25  # least change of an animated emoji, relative to that of the real clip
_REAL = "real"


class Judged(NamedTuple):
    """What the judge says of a set of videos, and I3D's features of them."""

    verdicts: list[Verdict]
    logits: Float32[np.ndarray, "n d"] | None

    def frames(self, numbers: np.ndarray | None = None) -> Float32[np.ndarray, "k c"]:
        """Features of frames of all clips, or of those with these numbers."""
        features = np.stack([verdict.features for verdict in self.verdicts])
        features = features if numbers is None else features[numbers]
        return features.reshape(-1, features.shape[-1])

    def clips(self) -> Float32[np.ndarray, "n c"]:
        """Features of clips: the means over their frames."""
        return np.stack([verdict.features.mean(axis=0) for verdict in self.verdicts])


@dataclasses.dataclass(frozen=True)
class EmojiModel:
    """A model to be measured.

    Attributes:
      samples: its videos.
      reconstruct: its VAE (`autoencoder.reconstructor`).
    """

    samples: SampledVideos
    reconstruct: Reconstruct


@dataclasses.dataclass(frozen=True)
class EmojiTable:
    """Measures a model part by part.

    Attributes:
      benchmark: the prompts and the judge.
      training: features of clips of the training scenes, (n, c).
      model: None measures the judge alone, on real clips.
      i3d_params: parameters of I3D (`checkpoints.perceptual.read_i3d`); None leaves FVD out.
      report: receives (what is judged, number of videos judged, of how many).
    """

    benchmark: EmojiBenchmark
    training: Float32[np.ndarray, "n c"]
    model: EmojiModel | None = None
    i3d_params: Any = None
    report: Callable[[str, int, int], None] = lambda name, done, total: None

    def rows(self, part: str, count: int) -> list[MetricRow]:
        """The rows of one of `PARTS` for `count` prompts."""
        if part == "image":
            return self._image_rows(count)
        for split in ("combinations", "tones", "bases"):
            if split == part:
                return self._split_rows(split, count)
        raise ValueError(f"there is no part {part!r}; known are {', '.join(PARTS)}")

    def _split_rows(self, split: Split, count: int) -> list[MetricRow]:
        prompts = self.benchmark.draw_prompts(count, split)
        others = self.benchmark.draw_prompts(count, split, first=count)
        real = self._judged(f"{split}: {_REAL}", self._real(prompts), prompts)
        floor = self._judged(f"{split}: other real clips", self._real(others), others)
        rows = [
            *self._verdict_rows(f"{split}: {_REAL}", real),
            *self._distance_rows(f"{split}: other real clips", floor, real),
        ]
        if self.model is None:
            return rows
        captions = [prompt.caption for prompt in prompts]
        makers: dict[str, Iterable[Frames]] = {
            "reconstructions": self._reconstructions(prompts, self.model.reconstruct),
            "samples": self.model.samples.videos(split, captions),
        }
        for name, videos in makers.items():
            subject = f"{split}: {name}"
            judged = self._judged(subject, videos, prompts)
            rows += self._verdict_rows(subject, judged)
            rows += self._distance_rows(subject, judged, real)
        # The samples are judged again, by the next prompt: chance.
        shifted = [*prompts[1:], *prompts[:1]]
        subject = f"{split}: samples of other captions"
        videos = self.model.samples.videos(split, captions)
        return rows + self._verdict_rows(subject, self._judged(subject, videos, shifted))

    def _image_rows(self, count: int) -> list[MetricRow]:
        """Image-to-video from the first frame of emoji that training never showed."""
        if self.model is None:
            return []
        subject, prompts = "bases: image to video", self.benchmark.draw_prompts(count, "bases")
        captions = [prompt.caption for prompt in prompts]
        real = [self.benchmark.render(prompt) for prompt in prompts]
        videos = self.model.samples.videos("image", captions, real)
        ratios, moves, verdicts = [], [], []
        for i, (video, original, prompt) in enumerate(zip(videos, real, prompts, strict=True)):
            self.report(subject, i, count)
            ratios.append(float(metrics.psnr(video[None, :1], original[None, :1])[0]))
            moves.append(_change(video) >= _MOVES * _change(original))
            # The last frame alone, as a clip that stands still.
            last = np.repeat(video[-1:], 2, axis=0)
            verdicts.append(self.benchmark.judge(last, prompt))
        return [
            mean(subject, "PSNR of the first frame", ratios, "dB"),
            percentage(subject, "emoji right in the last frame", [v.emoji for v in verdicts]),
            percentage(subject, "moves", moves),
        ]

    def _real(self, prompts: Sequence[EmojiPrompt]) -> Iterator[Frames]:
        return (self.benchmark.render(prompt) for prompt in prompts)

    def _reconstructions(
        self, prompts: Sequence[EmojiPrompt], reconstruct: Reconstruct
    ) -> Iterator[Frames]:
        return (reconstruct(frames[None])[0] for frames in self._real(prompts))

    def _judged(
        self, subject: str, videos: Iterable[Frames], prompts: Sequence[EmojiPrompt]
    ) -> Judged:
        program = jax.jit(i3d.features, compiler_options=convolution.compiler_options())
        verdicts, logits = [], []
        for i, (video, prompt) in enumerate(zip(videos, prompts, strict=True)):
            self.report(subject, i, len(prompts))
            verdicts.append(self.benchmark.judge(video, prompt))
            if self.i3d_params is not None:
                floats = pixels.from_bytes(jnp.asarray(video[None]))
                logits.append(np.asarray(program(self.i3d_params, floats)[0]))
        return Judged(verdicts, np.stack(logits) if logits else None)

    def _verdict_rows(self, subject: str, judged: Judged) -> list[MetricRow]:
        verdicts = judged.verdicts
        hits = {
            "emoji": [v.emoji for v in verdicts],
            "emoji or another gender of it": [v.family for v in verdicts],
            "skin tone, if there are several": [v.tone for v in verdicts if v.tone is not None],
            "background": [v.background for v in verdicts if v.background is not None],
            "motion of the whole": [v.motion for v in verdicts],
            "all": [v.all for v in verdicts],
        }
        nearest = _nearest(judged.clips(), self.training)
        return [
            *(percentage(subject, name, values) for name, values in hits.items() if values),
            mean(subject, "loop closure", [v.closure for v in verdicts]),
            bootstrapped(
                subject,
                "distance to the nearest training clip, median",
                lambda numbers: float(np.median(nearest[numbers])),
                len(nearest),
            ),
        ]

    def _distance_rows(self, subject: str, judged: Judged, real: Judged) -> list[MetricRow]:
        """Distances of two sets of clips, in features of EfficientNet (frames) and I3D (clips)."""
        originals = real.frames()
        rows = [
            bootstrapped(
                subject,
                "feature distance",
                lambda numbers: metrics.frechet_distance(judged.frames(numbers), originals),
                len(judged.verdicts),
            )
        ]
        if judged.logits is not None and real.logits is not None:
            rows += frechet_rows(subject, "FVD", judged.logits, real.logits)
        return rows


def _nearest(
    clips: Float32[np.ndarray, "n c"], training: Float32[np.ndarray, "m c"]
) -> Float32[np.ndarray, " n"]:
    """Distance of each clip to the nearest training clip, per feature of unit deviation."""
    scale = training.std(axis=0) + 1e-6
    a, b = (x.astype(np.float64) / scale for x in (clips, training))
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares.min(axis=1), 0) / a.shape[1]).astype(np.float32)


def _change(video: Frames) -> float:
    """Mean change from frame to frame, in grey levels."""
    return float(np.abs(np.diff(video.astype(np.float32), axis=0)).mean())
