"""Does an adapter teach the model of shapes a colour that it does not know, and nothing else?

  python benchmarks/new_colour.py clips data/lime       # 96 clips with captions: half in lime;
                                                        # data/lime_held_out: 4 more in lime
  ltx-train shapes_lora                                 # trains the adapter on them
  python benchmarks/new_colour.py judge runs/shapes_lora

`judge` samples prompts with the new colour, and prompts without it, with and without the adapter,
all with the same seeds. The judge of the procedural world, whose list of colours gets the new one,
says what each video shows; videos without the new colour are also compared pixel by pixel.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import numpy as np  # noqa: E402

from ltx_jax import LTXPipeline  # noqa: E402
from ltx_jax.data import writing  # noqa: E402
from ltx_jax.world import grammar, judge, render  # noqa: E402
from ltx_jax.world.scenes import COLOURS, DIRECTIONS, Scene, sample_scene  # noqa: E402

NAME, RGB = "lime", (164, 226, 36)  # 100 from green and from yellow, in RGB
MOTIONS = (*DIRECTIONS, "still", "grow", "shrink")  # the model knows no rotations
FRAMES, SIDE, RATE = 25, 96, 24.0
CLIPS, HELD_OUT = 48, 4  # of each half; beside them
WORDS = ("shape", "colour", "motion", "all")
SAMPLING: dict[str, Any] = dict(height=SIDE, width=SIDE, num_frames=FRAMES, frame_rate=RATE)


@contextlib.contextmanager
def known_colour() -> Iterator[None]:
    """Adds the new colour to those of the renderer and of the judge."""
    COLOURS[NAME] = RGB
    judge._hues.cache_clear()
    try:
        yield
    finally:
        del COLOURS[NAME]
        judge._hues.cache_clear()


def scenes(seed: int, count: int, *, new: bool) -> list[tuple[Scene, str]]:
    """Scenes of one object with their captions, in the new colour or in the others."""
    result = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        scene = sample_scene(
            rng, split="train", seconds=FRAMES / RATE, num_objects=1, motions=MOTIONS
        )
        if new:
            one = dataclasses.replace(scene.objects[0], colour=NAME)
            scene = dataclasses.replace(scene, objects=(one,))
        result.append((scene, grammar.caption(scene, rng)))
    return result


def write_clips(folder: pathlib.Path) -> None:
    """Writes the clips that adapters are trained on, with captions, and held-out ones beside."""
    _write(folder, scenes(1, CLIPS, new=True) + scenes(2, CLIPS, new=False))
    _write(folder.with_name(f"{folder.name}_held_out"), scenes(5, HELD_OUT, new=True))


def _write(folder: pathlib.Path, clips: Sequence[tuple[Scene, str]]) -> None:
    folder.mkdir(parents=True)
    with known_colour():
        for i, (scene, caption) in enumerate(clips):
            frames = render.render(scene, FRAMES, SIDE, SIDE, RATE)
            writing.write_video(folder / f"{i:02}.mov", frames, RATE)  # ProRes: full colour
            (folder / f"{i:02}.txt").write_text(caption + "\n")


def judged(videos: Sequence[np.ndarray], wanted: Sequence[Scene]) -> dict[str, float]:
    """The share of the videos in which each kind of word is right."""
    with known_colour():
        answers = [
            judge.agreement(
                judge.detect_objects(video, RATE),
                [(one.shape, one.colour, one.motion) for one in scene.objects],
            )
            for video, scene in zip(videos, wanted, strict=True)
        ]
    return {word: float(np.mean([getattr(x, word) for x in answers])) for word in WORDS}


def compare(adapter: str, count: int, batch: int) -> dict[str, object]:
    """What the model shows for both kinds of prompts, without and with the adapter."""
    prompts = {
        "new colour": scenes(3, count, new=True),
        "other prompts": scenes(4, count, new=False),
    }
    pipe = LTXPipeline.from_pretrained("embedded:shapes", dtype="float32")
    result: dict[str, object] = {}
    videos: dict[tuple[str, str], list[np.ndarray]] = {}
    for which in ("before", "after"):
        if which == "after":
            pipe.load_lora(adapter)
        for kind, pairs in prompts.items():
            texts = [caption for _, caption in pairs]
            made: list[np.ndarray] = []
            for first in range(0, count, batch):
                part = texts[first : first + batch]
                made += list(pipe(part, first_sample=first, **SAMPLING))
            videos[kind, which] = made
            result[f"{kind}, {which}"] = judged(made, [scene for scene, _ in pairs])
            print(kind, which, result[f"{kind}, {which}"], flush=True)
    pairs = zip(videos["other prompts", "before"], videos["other prompts", "after"], strict=True)
    distances = [float(np.mean(np.abs(a.astype(int) - b))) for a, b in pairs]
    result["distance of other prompts"] = {
        "mean absolute difference of 255": float(np.mean(distances)),
        "median": float(np.median(distances)),
    }
    return result


def main() -> None:
    """Runs one of the two commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=("clips", "judge"))
    parser.add_argument("path", help="the folder to write clips to, or the adapter")
    parser.add_argument("--count", type=int, default=32, help="prompts of each kind")
    parser.add_argument("--batch", type=int, default=8, help="prompts sampled together")
    options = parser.parse_args()
    if options.command == "clips":
        write_clips(pathlib.Path(options.path))
        return
    result = compare(options.path, options.count, options.batch)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
