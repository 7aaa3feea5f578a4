"""The table of a model of the procedural world: what its videos show, as the judge sees it.

Every row asks for scenes of its own kind, drawn with a seed that no training uses, and no video is
looked at twice or left out.
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
from ltx_jax.evaluate.report import Figure, mean, share
from ltx_jax.world import render
from ltx_jax.world.judge import Seen, agreement, judge
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
_SPEED = 0.2  # of what was asked for: how far off a right speed may be
_SEAM = 1.5  # times a clip's own change from frame to frame
_EQUAL = 30.0  # dB from which two videos count as the same
_PACES = ("slowly", "quickly")
_MOTIONS = {
    "directions": tuple(DIRECTIONS),
    "still, grow, shrink": ("still", "grow", "shrink"),
    "orbit": ("orbit",),
    "rotate": ("rotate",),
}

Frames = UInt8[np.ndarray, "t h w 3"]
# As an LTXPipeline has it: (captions, options, conditions=..., first_sample=...) -> videos.
Sample = Callable[..., UInt8[np.ndarray, "b t h w 3"]]
Given = Callable[[np.ndarray], Sequence[Condition]]


class Asked(NamedTuple):
    """A scene that is asked for by its caption."""

    scene: Scene
    caption: str

    @property
    def triples(self) -> list[Triple]:
        """Shape, colour and motion of each of its objects."""
        return [(one.shape, one.colour, one.motion) for one in self.scene.objects]


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model, and how it is asked."""

    sample: Sample
    reconstruct: Reconstruct
    temporal_factor: int
    options: SamplingConfig = OPTIONS
    batch_size: int = 8

    def draw(
        self,
        count: int,
        split: Split = "held_out",
        *,
        motions: Sequence[str] = MOTIONS,
        num_objects: int | None = 1,
        paced: bool = False,
    ) -> list[Asked]:
        """Scenes for the options' size and length.

        Args:
          count: so many.
          split: of their triples.
          motions: of the first object.
          num_objects: as in `sample_scene`.
          paced: the caption has to say how fast.
        """
        options, found = self.options, []
        for index in itertools.count():
            if len(found) == count:
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
                found.append(Asked(scene, caption))
        return found

    def render(self, asked: Asked) -> Frames:
        """What was asked for, as the world draws it."""
        options = self.options
        size = options.num_frames, options.height, options.width, options.frame_rate
        return render.render(asked.scene, *size)

    def videos(self, prompts: Sequence[Asked], given: Given | None = None) -> Iterator[Frames]:
        """Samples one video per prompt.

        Args:
          prompts: what to ask for.
          given: frames of a batch of scenes (b, t, h, w, 3) -> the conditions of its videos.
        """
        size = min(self.batch_size, len(prompts))
        for start in range(0, len(prompts), size):
            batch = list(prompts[start : start + size])
            # The last batch is filled up, so that no other program is compiled for it.
            filled = [*batch, *batch[-1:] * (size - len(batch))]
            conditions = ()
            if given is not None:
                conditions = given(np.stack([self.render(one) for one in filled]))
            made = self.sample(
                [one.caption for one in filled],
                self.options,
                conditions=conditions,
                first_sample=start,
            )
            yield from made[: len(batch)]

    def changed(self, **options: int | float) -> "Bench":
        """The same with other options."""
        return dataclasses.replace(self, options=dataclasses.replace(self.options, **options))

    def see(self, frames: Frames) -> tuple[Seen, ...]:
        """What the judge says of a video."""
        return judge(frames, self.options.frame_rate)


def words(
    of: str, seen: Sequence[Sequence[Seen]], wanted: Sequence[Sequence[Triple]]
) -> list[Figure]:
    """How often shape, colour, motion and all three are right."""
    found = [agreement(*pair) for pair in zip(seen, wanted, strict=True)]
    names = ("shape", "colour", "motion", "all")
    return [share(of, name, [getattr(one, name) for one in found]) for name in names]


def _adherence(bench: Bench, of: str, prompts: Sequence[Asked]) -> list[Figure]:
    seen = [bench.see(video) for video in bench.videos(prompts)]
    return words(of, seen, [asked.triples for asked in prompts])


def _seen_triples(bench: Bench, count: int) -> list[Figure]:
    return _adherence(bench, "seen triples", bench.draw(count, "train"))


def _held_out_triples(bench: Bench, count: int) -> list[Figure]:
    return _adherence(bench, "held-out triples", bench.draw(count))


def _two_objects(bench: Bench, count: int) -> list[Figure]:
    return _adherence(bench, "two objects", bench.draw(count, "train", num_objects=2))


def _reconstructions(bench: Bench, count: int) -> list[Figure]:
    prompts = bench.draw(count, num_objects=None)
    ratios, likeness, seen, before = [], [], [], []
    for asked in prompts:
        original = bench.render(asked)
        made = bench.reconstruct(original[None])
        ratios.append(float(metrics.psnr(made, original[None])[0]))
        likeness.append(float(metrics.ssim(made, original[None])[0]))
        seen.append(bench.see(made[0]))
        before.append(bench.see(original))
    wanted = [asked.triples for asked in prompts]
    return [
        mean("VAE, held-out scenes", "PSNR", ratios, "dB"),
        mean("VAE, held-out scenes", "SSIM", likeness),
        *words("VAE, reconstructions", seen, wanted),
        *words("VAE, originals", before, wanted),
    ]


def _motions(bench: Bench, count: int) -> list[Figure]:
    """Which motions a model cannot do, and of which its VAE loses what they show."""
    found = []
    for of, motions in _MOTIONS.items():
        prompts = bench.draw(count, "train", motions=motions)
        wanted = [asked.triples for asked in prompts]
        rebuilt = (bench.reconstruct(bench.render(asked)[None])[0] for asked in prompts)
        for kind, videos in (("videos", bench.videos(prompts)), ("reconstructions", rebuilt)):
            found += words(f"{kind}: {of}", [bench.see(video) for video in videos], wanted)
    return found


def _image_to_video(bench: Bench, count: int) -> list[Figure]:
    of, prompts = "image to video", bench.draw(count)
    hit, seen = [], []
    videos = bench.videos(prompts, lambda frames: [Condition(frames[:, :1])])
    for asked, video in zip(prompts, videos, strict=True):
        hit.append(_psnr(video[0], bench.render(asked)[0]))
        seen.append(bench.see(video))
    return [
        mean(of, "PSNR of the first frame", hit, "dB"),
        *words(of, seen, [asked.triples for asked in prompts]),
    ]


def _extension(bench: Bench, count: int) -> list[Figure]:
    """Still scenes are left out: a seam is measured by what changes elsewhere in the clip."""
    of, begin = "extension", bench.temporal_factor + 1
    if bench.options.num_frames < 2 * begin:
        raise ValueError(
            f"extension goes on after {begin} frames: num_frames must be {2 * begin} or more, got "
            f"{bench.options.num_frames}"
        )
    prompts = bench.draw(count, motions=[name for name in MOTIONS if name != "still"])
    seams, seen = [], []
    for video in bench.videos(prompts, lambda frames: [Condition(frames[:, :begin])]):
        changes = np.abs(np.diff(video.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))
        own = float(np.delete(changes, begin - 1).mean())
        seams.append(float(changes[begin - 1]) / max(own, 1e-3))
        seen.append(bench.see(video[begin:]))
    return [
        mean(of, "change at the seam, of its own", seams),
        share(of, f"seam at most {_SEAM:g} of it", [seam <= _SEAM for seam in seams]),
        *words("extension, after the seam", seen, [asked.triples for asked in prompts]),
    ]


def _keyframes(bench: Bench, count: int) -> list[Figure]:
    of, prompts = "two keyframes", bench.draw(count, motions=tuple(DIRECTIONS))
    last = bench.options.num_frames - 1

    def given(frames: np.ndarray) -> list[Condition]:
        return [Condition(frames[:, :1]), Condition(frames[:, last:], last)]

    first_hit, last_hit, moves = [], [], []
    for asked, video in zip(prompts, bench.videos(prompts, given), strict=True):
        original = bench.render(asked)
        first_hit.append(_psnr(video[0], original[0]))
        last_hit.append(_psnr(video[last], original[last]))
        moves.append(_is_halfway(bench.see(video)))
    return [
        mean(of, "PSNR of the first", first_hit, "dB"),
        mean(of, "PSNR of the last", last_hit, "dB"),
        share(of, "moves between them", moves),
    ]


def _is_halfway(seen: Sequence[Seen]) -> bool:
    """Whether the middle of the video shows the object between its ends, and not at one of them."""
    if len(seen) != 1:
        return False
    first, middle, last = (
        complex(seen[0].position[i]) for i in (0, len(seen[0].position) // 2, -1)
    )
    way = last - first
    progress = ((middle - first) * way.conjugate()).real / max(abs(way) ** 2, 1e-9)
    return 0.25 <= progress <= 0.75


def _seeds(bench: Bench, count: int) -> list[Figure]:
    of, prompts = "two seeds", bench.draw(count, "train")
    other = bench.changed(seed=bench.options.seed ^ 1)
    alike = [
        _psnr(*pair) for pair in zip(bench.videos(prompts), other.videos(prompts), strict=True)
    ]
    return [
        mean(of, "PSNR between the videos", alike, "dB"),
        share(of, "differ", [value < _EQUAL for value in alike]),
    ]


def _rates(bench: Bench, count: int) -> list[Figure]:
    found = []
    for rate in _RATES:
        of, at = f"{rate:g} frames per second", bench.changed(frame_rate=rate)
        prompts = at.draw(count, "train", motions=tuple(DIRECTIONS), paced=True)
        speeds = []
        for asked, video in zip(prompts, at.videos(prompts), strict=True):
            seen = at.see(video)
            speed = abs(seen[0].velocity) if seen else np.nan
            speeds.append(speed / asked.scene.objects[0].rate)
        known = [speed for speed in speeds if not np.isnan(speed)]
        found += [mean(of, "speed, of that asked for", known)] if known else []
        right = [abs(speed - 1) <= _SPEED for speed in speeds]
        found.append(share(of, f"speed right within {_SPEED:.0%}", right))
    return found


def _step_counts(bench: Bench, count: int) -> list[Figure]:
    prompts = bench.draw(count, "train")
    tables = (
        _adherence(bench.changed(num_inference_steps=steps), f"{steps} steps", prompts)
        for steps in _STEPS
    )
    return [figure for table in tables for figure in table]


def _shuffled(bench: Bench, count: int) -> list[Figure]:
    """Every video is asked for with the caption of another scene; beside it, what chance gives."""
    prompts = bench.draw(count, "train")
    others = [*prompts[1:], *prompts[:1]]
    seen = [bench.see(video) for video in bench.videos(others)]
    found = words("shuffled captions", seen, [asked.triples for asked in prompts])
    for place, name in enumerate(("shape", "colour", "motion")):
        pairs = zip(prompts, others, strict=True)
        same = [mine.triples[0][place] == other.triples[0][place] for mine, other in pairs]
        found.append(share("shuffled captions, by chance", name, same))
    return found


def _psnr(video: np.ndarray, original: np.ndarray) -> float:
    """Of two videos, or two frames."""
    shape = (1, -1, *video.shape[-3:])
    return float(metrics.psnr(video.reshape(shape), original.reshape(shape))[0])


class Row(NamedTuple):
    """What a row of the table measures.

    Attributes:
      measure: (bench, number of prompts) -> figures.
      prompts: how many it takes unless told otherwise.
      videos: that are made of each prompt.
    """

    measure: Callable[[Bench, int], list[Figure]]
    prompts: int
    videos: int = 1


ROWS: dict[str, Row] = {
    "seen": Row(_seen_triples, 500),
    "held_out": Row(_held_out_triples, 500),
    "two_objects": Row(_two_objects, 150),
    "vae": Row(_reconstructions, 150),
    "motions": Row(_motions, 100, 2 * len(_MOTIONS)),
    "image": Row(_image_to_video, 150),
    "extension": Row(_extension, 150),
    "keyframes": Row(_keyframes, 150),
    "seeds": Row(_seeds, 150, 2),
    "rates": Row(_rates, 150, len(_RATES)),
    "steps": Row(_step_counts, 150, len(_STEPS)),
    "shuffled": Row(_shuffled, 150),
}
