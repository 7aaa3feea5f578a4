"""Measures how well a model of the procedural world follows its prompts, according to the judge.

The table consists of groups of rows. Each group samples prompts of a different kind, with a seed
that is never used in training. Every video counts exactly once.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from ltx_jax import metrics
from ltx_jax.config import SamplingConfig
from ltx_jax.diffusion.conditioning import Condition
from ltx_jax.evaluate.autoencoder import Reconstruct
from ltx_jax.evaluate.metric_table import MetricRow, mean, percentage
from ltx_jax.world import render
from ltx_jax.world.judge import DetectedObject, agreement, detect_objects
from ltx_jax.world.scenes import DIRECTIONS, MOTIONS, Scene, Split, Triple

OPTIONS = SamplingConfig(
    negative_prompt="",
    height=96,
    width=96,
    num_frames=25,
    frame_rate=24.0,
    num_inference_steps=16,
    stg_scale=0.0,
    image_cond_noise_scale=0.0,
    prepare_conditions=False,
)

_SEED = 271_828  # of the scenes
_STEPS = (4, 8, 16, 32)
_RATES = (12.0, 24.0, 30.0)
_SPEED = 0.2  # largest relative error of a speed that counts as right
_SEAM = 1.5  # largest change at a good seam, relative to the mean change between other frames
_EQUAL = 30.0  # PSNR in dB above which two videos count as the same
_PACES = ("slowly", "quickly")
_MOTIONS = {
    "directions": tuple(DIRECTIONS),
    "still, grow, shrink": ("still", "grow", "shrink"),
    "orbit": ("orbit",),
    "rotate": ("rotate",),
}

Frames = UInt8[np.ndarray, "t h w 3"]
# Signature of LTXPipeline: (captions, options, conditions=..., first_sample=...) -> videos.
Sample = Callable[..., UInt8[np.ndarray, "b t h w 3"]]
MakeConditions = Callable[[np.ndarray], Sequence[Condition]]


class WorldPrompt(NamedTuple):
    """A scene, and the caption that is the model's prompt for it."""

    scene: Scene
    caption: str

    @property
    def triples(self) -> list[Triple]:
        """Shape, colour and motion of each object of the scene."""
        return [(one.shape, one.colour, one.motion) for one in self.scene.objects]


@dataclasses.dataclass(frozen=True)
class WorldBenchmark:
    """A model of the procedural world, and the settings under which it is measured.

    Attributes:
      sample: the pipeline.
      reconstruct: its VAE (`autoencoder.reconstructor`).
      temporal_factor: frames per latent frame of the VAE.
      options: sampling settings; size, length and frame rate also apply to the rendered scenes.
      batch_size: number of videos that are sampled together.
    """

    sample: Sample
    reconstruct: Reconstruct
    temporal_factor: int
    options: SamplingConfig = OPTIONS
    batch_size: int = 8

    def draw_prompts(
        self,
        count: int,
        split: Split = "held_out",
        *,
        motions: Sequence[str] = MOTIONS,
        num_objects: int | None = 1,
        paced: bool = False,
    ) -> list[WorldPrompt]:
        """Samples prompts whose scenes fit the size and length in `options`.

        Args:
          count: number of prompts.
          split: the split of the scenes' triples.
          motions: allowed motions of the first object.
          num_objects: as in `sample_scene`.
          paced: accept only captions that say "slowly" or "quickly".
        """
        options, prompts = self.options, []
        for index in itertools.count():
            if len(prompts) == count:
                break
            rng = np.random.default_rng([_SEED, index])
            scene = render.sample_scene(
                rng,
                split=split,
                seconds=options.num_frames / options.frame_rate,
                aspect=options.width / options.height,
                num_objects=num_objects,
            )
            caption = render.caption(scene, rng)
            says_pace = any(word in caption for word in _PACES)
            if scene.objects[0].motion in motions and says_pace >= paced:
                prompts.append(WorldPrompt(scene, caption))
        return prompts

    def render(self, prompt: WorldPrompt) -> Frames:
        """Renders the prompt's scene."""
        options = self.options
        size = options.num_frames, options.height, options.width, options.frame_rate
        return render.render(prompt.scene, *size)

    def videos(
        self, prompts: Sequence[WorldPrompt], make_conditions: MakeConditions | None = None
    ) -> Iterator[Frames]:
        """Samples one video per prompt.

        Args:
          prompts: the prompts.
          make_conditions: maps the rendered scenes of a batch (b, t, h, w, 3) to the conditions of
            its videos; None for text-to-video.
        """
        size = min(self.batch_size, len(prompts))
        for start in range(0, len(prompts), size):
            batch = list(prompts[start : start + size])
            # The last batch is padded to the full size, which avoids compiling a second program.
            padded = [*batch, *batch[-1:] * (size - len(batch))]
            conditions = ()
            if make_conditions is not None:
                conditions = make_conditions(np.stack([self.render(prompt) for prompt in padded]))
            videos = self.sample(
                [prompt.caption for prompt in padded],
                self.options,
                conditions=conditions,
                first_sample=start,
            )
            yield from videos[: len(batch)]

    def with_options(self, **options: int | float) -> "WorldBenchmark":
        """A copy with some sampling options replaced."""
        return dataclasses.replace(self, options=dataclasses.replace(self.options, **options))

    def detect(self, frames: Frames) -> tuple[DetectedObject, ...]:
        """The objects that the judge finds in a video."""
        return detect_objects(frames, self.options.frame_rate)


def word_accuracy(
    subject: str, detections: Sequence[Sequence[DetectedObject]], truths: Sequence[Sequence[Triple]]
) -> list[MetricRow]:
    """Percentage of videos in which shape, colour, motion and all three are right.

    Args:
      subject: the first column of the table.
      detections: the objects that the judge found in each video.
      truths: the expected objects of each video.
    """
    agreements = [agreement(*pair) for pair in zip(detections, truths, strict=True)]
    names = ("shape", "colour", "motion", "all")
    return [
        percentage(subject, name, [getattr(item, name) for item in agreements]) for name in names
    ]


def _prompt_following(
    benchmark: WorldBenchmark, subject: str, prompts: Sequence[WorldPrompt]
) -> list[MetricRow]:
    detections = [benchmark.detect(video) for video in benchmark.videos(prompts)]
    return word_accuracy(subject, detections, [prompt.triples for prompt in prompts])


def _training_triples(benchmark: WorldBenchmark, count: int) -> list[MetricRow]:
    return _prompt_following(benchmark, "seen triples", benchmark.draw_prompts(count, "train"))


def _held_out_triples(benchmark: WorldBenchmark, count: int) -> list[MetricRow]:
    return _prompt_following(benchmark, "held-out triples", benchmark.draw_prompts(count))


def _two_objects(benchmark: WorldBenchmark, count: int) -> list[MetricRow]:
    return _prompt_following(
        benchmark, "two objects", benchmark.draw_prompts(count, "train", num_objects=2)
    )


def _reconstructions(benchmark: WorldBenchmark, count: int) -> list[MetricRow]:
    prompts = benchmark.draw_prompts(count, num_objects=None)
    ratios, similarities, detections, original_detections = [], [], [], []
    for prompt in prompts:
        original = benchmark.render(prompt)
        reconstruction = benchmark.reconstruct(original[None])
        ratios.append(float(metrics.psnr(reconstruction, original[None])[0]))
        similarities.append(float(metrics.ssim(reconstruction, original[None])[0]))
        detections.append(benchmark.detect(reconstruction[0]))
        original_detections.append(benchmark.detect(original))
    truths = [prompt.triples for prompt in prompts]
    return [
        mean("VAE, held-out scenes", "PSNR", ratios, "dB"),
        mean("VAE, held-out scenes", "SSIM", similarities),
        *word_accuracy("VAE, reconstructions", detections, truths),
        *word_accuracy("VAE, originals", original_detections, truths),
    ]


def _motions(benchmark: WorldBenchmark, count: int) -> list[MetricRow]:
    """Accuracy by motion, of sampled videos and of the VAE's reconstructions of the same scenes."""
    rows = []
    for subject, motions in _MOTIONS.items():
        prompts = benchmark.draw_prompts(count, "train", motions=motions)
        truths = [prompt.triples for prompt in prompts]
        reconstructions = (
            benchmark.reconstruct(benchmark.render(prompt)[None])[0] for prompt in prompts
        )
        for kind, videos in (
            ("videos", benchmark.videos(prompts)),
            ("reconstructions", reconstructions),
        ):
            rows += word_accuracy(
                f"{kind}: {subject}", [benchmark.detect(video) for video in videos], truths
            )
    return rows


def _image_to_video(benchmark: WorldBenchmark, count: int) -> list[MetricRow]:
    subject, prompts = "image to video", benchmark.draw_prompts(count)
    ratios, detections = [], []
    videos = benchmark.videos(prompts, lambda frames: [Condition(frames[:, :1])])
    for prompt, video in zip(prompts, videos, strict=True):
        ratios.append(_video_psnr(video[0], benchmark.render(prompt)[0]))
        detections.append(benchmark.detect(video))
    return [
        mean(subject, "PSNR of the first frame", ratios, "dB"),
        *word_accuracy(subject, detections, [prompt.triples for prompt in prompts]),
    ]


def _extension(benchmark: WorldBenchmark, count: int) -> list[MetricRow]:
    """Still scenes are left out: a seam is measured relative to the change elsewhere in a clip."""
    subject, prefix = "extension", benchmark.temporal_factor + 1
    if benchmark.options.num_frames < 2 * prefix:
        raise ValueError(
            f"extension continues {prefix} frames: num_frames must be at least {2 * prefix}, got "
            f"{benchmark.options.num_frames}"
        )
    prompts = benchmark.draw_prompts(count, motions=[name for name in MOTIONS if name != "still"])
    seams, detections = [], []
    for video in benchmark.videos(prompts, lambda frames: [Condition(frames[:, :prefix])]):
        changes = np.abs(np.diff(video.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))
        mean_change = float(np.delete(changes, prefix - 1).mean())
        seams.append(float(changes[prefix - 1]) / max(mean_change, 1e-3))
        detections.append(benchmark.detect(video[prefix:]))
    return [
        mean(subject, "change at the seam / elsewhere", seams),
        percentage(
            subject, f"seam / elsewhere at most {_SEAM:g}", [seam <= _SEAM for seam in seams]
        ),
        *word_accuracy(
            "extension, after the seam", detections, [prompt.triples for prompt in prompts]
        ),
    ]


def _keyframes(benchmark: WorldBenchmark, count: int) -> list[MetricRow]:
    subject, prompts = "two keyframes", benchmark.draw_prompts(count, motions=tuple(DIRECTIONS))
    last = benchmark.options.num_frames - 1

    def keyframes(frames: np.ndarray) -> list[Condition]:
        return [Condition(frames[:, :1]), Condition(frames[:, last:], last)]

    first_ratios, last_ratios, moves = [], [], []
    for prompt, video in zip(prompts, benchmark.videos(prompts, keyframes), strict=True):
        original = benchmark.render(prompt)
        first_ratios.append(_video_psnr(video[0], original[0]))
        last_ratios.append(_video_psnr(video[last], original[last]))
        moves.append(_is_halfway(benchmark.detect(video)))
    return [
        mean(subject, "PSNR of the first", first_ratios, "dB"),
        mean(subject, "PSNR of the last", last_ratios, "dB"),
        percentage(subject, "moves between them", moves),
    ]


def _is_halfway(objects: Sequence[DetectedObject]) -> bool:
    """Whether the object's place in the middle frame is about halfway between first and last."""
    if len(objects) != 1:
        return False
    first, middle, last = (
        complex(objects[0].position[i]) for i in (0, len(objects[0].position) // 2, -1)
    )
    path = last - first
    progress = ((middle - first) * path.conjugate()).real / max(abs(path) ** 2, 1e-9)
    return 0.25 <= progress <= 0.75


def _seeds(benchmark: WorldBenchmark, count: int) -> list[MetricRow]:
    subject, prompts = "two seeds", benchmark.draw_prompts(count, "train")
    other = benchmark.with_options(seed=benchmark.options.seed ^ 1)
    ratios = [
        _video_psnr(*pair)
        for pair in zip(benchmark.videos(prompts), other.videos(prompts), strict=True)
    ]
    return [
        mean(subject, "PSNR between the videos", ratios, "dB"),
        percentage(subject, "differ", [value < _EQUAL for value in ratios]),
    ]


def _rates(benchmark: WorldBenchmark, count: int) -> list[MetricRow]:
    rows = []
    for rate in _RATES:
        subject, benchmark = f"{rate:g} frames per second", benchmark.with_options(frame_rate=rate)
        prompts = benchmark.draw_prompts(count, "train", motions=tuple(DIRECTIONS), paced=True)
        speeds = []
        for prompt, video in zip(prompts, benchmark.videos(prompts), strict=True):
            objects = benchmark.detect(video)
            speed = abs(objects[0].velocity) if objects else np.nan
            speeds.append(speed / prompt.scene.objects[0].rate)
        measured = [speed for speed in speeds if not np.isnan(speed)]
        rows += [mean(subject, "speed / requested speed", measured)] if measured else []
        right = [abs(speed - 1) <= _SPEED for speed in speeds]
        rows.append(percentage(subject, f"speed right within {_SPEED:.0%}", right))
    return rows


def _step_counts(benchmark: WorldBenchmark, count: int) -> list[MetricRow]:
    prompts = benchmark.draw_prompts(count, "train")
    tables = (
        _prompt_following(
            benchmark.with_options(num_inference_steps=steps), f"{steps} steps", prompts
        )
        for steps in _STEPS
    )
    return [row for table in tables for row in table]


def _shuffled(benchmark: WorldBenchmark, count: int) -> list[MetricRow]:
    """Control: videos sampled from another scene's caption; also the rate of chance matches."""
    prompts = benchmark.draw_prompts(count, "train")
    others = [*prompts[1:], *prompts[:1]]
    detections = [benchmark.detect(video) for video in benchmark.videos(others)]
    rows = word_accuracy("shuffled captions", detections, [prompt.triples for prompt in prompts])
    for place, name in enumerate(("shape", "colour", "motion")):
        pairs = zip(prompts, others, strict=True)
        same = [own.triples[0][place] == other.triples[0][place] for own, other in pairs]
        rows.append(percentage("shuffled captions, by chance", name, same))
    return rows


def _video_psnr(video: np.ndarray, original: np.ndarray) -> float:
    """PSNR in dB of two videos or two frames."""
    shape = (1, -1, *video.shape[-3:])
    return float(metrics.psnr(video.reshape(shape), original.reshape(shape))[0])


class RowGroup(NamedTuple):
    """A group of rows of the table, which is measured as a whole.

    Attributes:
      measure: (benchmark, number of prompts) -> rows.
      prompts: default number of prompts.
      videos: number of videos per prompt.
    """

    measure: Callable[[WorldBenchmark, int], list[MetricRow]]
    prompts: int
    videos: int = 1


ROWS: dict[str, RowGroup] = {
    "seen": RowGroup(_training_triples, 500),
    "held_out": RowGroup(_held_out_triples, 500),
    "two_objects": RowGroup(_two_objects, 150),
    "vae": RowGroup(_reconstructions, 150),
    "motions": RowGroup(_motions, 100, 2 * len(_MOTIONS)),
    "image": RowGroup(_image_to_video, 150),
    "extension": RowGroup(_extension, 150),
    "keyframes": RowGroup(_keyframes, 150),
    "seeds": RowGroup(_seeds, 150, 2),
    "rates": RowGroup(_rates, 150, len(_RATES)),
    "steps": RowGroup(_step_counts, 150, len(_STEPS)),
    "shuffled": RowGroup(_shuffled, 150),
}
