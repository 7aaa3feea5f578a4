"""Accuracy of data preparation: cuts, bars, motion and duplicates.

python -m benchmarks.preparation --seeds 100 110              in synthetic videos
python -m benchmarks.preparation clips --folder FOLDER        in the clips of real_clips.json

Results go to benchmarks/results/.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import synthetic_videos
from ltx_jax.config import PrepareConfig
from ltx_jax.data.filters import hashes
from ltx_jax.prepare import duplicates
from ltx_jax.prepare.examine import examine
from ltx_jax.prepare.records import ClipRecord, Reason

RESULTS = Path(__file__).parent / "results"
LISTED = Path(__file__).parent / "real_clips.json"  # annotated by eye, on sheets of frames
_PARTS = ("av", "opencv-python-headless", "scenedetect-headless", "apache-beam")
_NEAR = 2.5  # largest distance of a right cut from the true one, in frames of 1/25 s


@dataclasses.dataclass
class Accuracy:
    """Counts of right and wrong detections."""

    cuts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    bars: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    motion: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    copies: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    scores: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    wrong: list[str] = dataclasses.field(default_factory=list)
    films: int = 0

    def metrics(self) -> dict[str, float]:
        """Fractions and counts, by name."""
        cuts, bars, motion, copies = self.cuts, self.bars, self.motion, self.copies
        return {
            "films": self.films,
            "cuts F1": 2 * cuts["hit"] / (2 * cuts["hit"] + cuts["missed"] + cuts["invented"]),
            "bars within 2 pixels": bars["right"] / bars["there"],
            "bars invented": bars["invented"] / bars["clean"],
            "stills caught": motion["caught"] / motion["still"],
            "moving dropped": motion["false"] / motion["moving"],
            "copies found": copies["found"] / copies["there"],
            "copies dropped before, for another reason": copies["dropped before"],
            "false copies": copies["false"] / copies["others"],
        }


def measure(sets: Iterable[Sequence[synthetic_videos.Film]], cfg: PrepareConfig) -> Accuracy:
    """Compares what preparation detects in films with the truth. Copies are searched for within
    each set."""
    counts = Accuracy()
    for films in sets:
        clips: dict[Path, list[ClipRecord]] = {}
        for film in films:
            named = [
                dataclasses.replace(clip, source=str(film.path)) for clip in examine(film.path, cfg)
            ]
            clips[film.path] = named
            _judge(film, named, counts)
        _judge_copies(films, clips, cfg, counts)
        counts.films += len(films)
    return counts


def _judge(film: synthetic_videos.Film, clips: list[ClipRecord], counts: Accuracy) -> None:
    if film.kind.startswith("cuts"):
        starts = [clip.start for one, clip in itertools.pairwise(clips) if one.shot != clip.shot]
        left = list(film.cuts)
        for start in starts:
            near = [
                cut
                for cut in left
                if abs(cut - start) <= _NEAR / 25 + 0.35 * (film.kind == "cuts4")
            ]
            if near:
                left.remove(near[0])
                counts.cuts["hit"] += 1
            else:
                counts.cuts["invented"] += 1
                counts.wrong.append(f"{film.path.name}: no cut at {start:.2f}, {film.cuts}")
        counts.cuts["missed"] += len(left)
        counts.wrong += [f"{film.path.name}: missed the cut at {cut:.2f}" for cut in left]
        return
    for clip in clips[:1]:
        top, left, height, width = clip.crop
        detected = top, clip.height - top - height, left, clip.width - left - width
        off = max(abs(a - b) for a, b in zip(detected, film.bars, strict=True))
        if any(film.bars):
            counts.bars["there"] += 1
            counts.bars["right"] += off <= 2
        else:
            counts.bars["clean"] += 1
            counts.bars["invented"] += off > 0
        if off > 2 * any(film.bars):
            counts.wrong.append(f"{film.path.name}: bars {film.bars}, found {detected}")
    if film.kind in (*synthetic_videos.STILL, *synthetic_videos.MOVING):
        if len(clips) > 1:
            counts.wrong.append(f"{film.path.name}: {len(clips)} clips")
        # A part that is too short to be judged is dropped as well.
        dropped = any(clip.reason == Reason.STILL for clip in clips) and all(
            clip.reason in (Reason.STILL, Reason.SHORT) for clip in clips
        )
        counts.scores[film.kind] += [clip.motion or 0.0 for clip in clips]
        if film.moves:
            counts.motion["moving"] += 1
            counts.motion["false"] += any(clip.reason == Reason.STILL for clip in clips)
        else:
            counts.motion["still"] += 1
            counts.motion["caught"] += dropped
        if film.moves == dropped:
            moves = [clip.motion for clip in clips]
            counts.wrong.append(f"{film.path.name}: motion {moves}")


def _judge_copies(films, clips, cfg: PrepareConfig, counts: Accuracy) -> None:
    hashed = [
        clip for film in films for clip in clips[film.path] if clip.hashes and not clip.reason
    ]
    bands = collections.defaultdict(list)
    for clip in hashed:
        for band, _ in duplicates.bands(clip):
            bands[band].append(clip)
    limit = cfg.duplicates.max_distance
    pairs = {
        (one.source, other.source)
        for band in bands.values()
        for one, other in duplicates.pairs(band, limit)
    }
    truth = {(str(film.copy_of), str(film.path)) for film in films if film.copy_of}
    both = {tuple(sorted(pair)) for pair in pairs}
    by_name = {clip.source: clip for clip in hashed}
    whole = {tuple(sorted(pair)) for pair in truth}
    # A copy cannot be found if it or its original was dropped for another reason.
    detectable = {pair for pair in whole if set(pair) <= set(by_name)}
    counts.copies["dropped before"] += len(whole - detectable)
    counts.copies["there"] += len(detectable)
    counts.copies["found"] += len(detectable & both)
    counts.copies["false"] += len(both - detectable)
    counts.copies["others"] += len(hashed)
    for one, other in sorted(detectable - both):
        apart = hashes.distance(by_name[one].hashes, by_name[other].hashes)
        counts.wrong.append(f"{Path(other).name}: not found to be a copy, {apart}")
    counts.wrong += [f"{one} and {other} are no copies" for one, other in sorted(both - detectable)]


def listed_clips(folder: Path) -> dict[str, Any]:
    """Cuts, bars and motion in real clips, beside a list that was made by eye."""
    rows = []
    for name, truth in json.loads(LISTED.read_text()).items():
        clips = examine(folder / name, PrepareConfig())
        cuts = [
            round(clip.start, 2) for one, clip in itertools.pairwise(clips) if one.shot != clip.shot
        ]
        crops = sorted({clip.crop for clip in clips})
        whole = [(0, 0, clips[0].height, clips[0].width)]
        moves = [
            f"{clip.start:.1f} to {clip.start + clip.seconds:.1f} s: "
            + (f"{clip.motion:.2f}" if clip.motion is not None else clip.reason)
            for clip in clips
        ]
        rows.append(
            [
                name,
                _said(truth["cuts"]),
                _said(cuts),
                "none" if not truth["bars"] else str(truth["bars"]),
                "none" if crops == whole else str(crops),
                truth["motion"],
                "; ".join(moves),
            ]
        )
    heads = ["clip", "cuts by eye, s", "found", "bars by eye", "found", "motion by eye", "found"]
    return {"table": ["Real clips beside a list made by eye", heads, *rows]}


def _said(cuts: Sequence[float]) -> str:
    return ", ".join(f"{cut:.2f}" for cut in cuts) or "none"


def write_results(name: str, results: dict[str, Any]) -> None:
    """Writes the results of a benchmark as JSON, and its table as Markdown; prints the table.

    Args:
      name: name of the benchmark.
      results: the metrics; `table` is a title, the heads of its columns, and its rows.
    """
    facts = {
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {os.getloadavg()[0]:.1f} processes at work",
        "versions": ", ".join(
            [f"Python {platform.python_version()}"]
            + [f"{part} {metadata.version(part)}" for part in _PARTS]
        ),
    }
    title, heads, *rows = results["table"]
    lines = [f"# {title}", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    lines += [f"| {' | '.join(map(str, row))} |" for row in (heads, ["---"] * len(heads), *rows)]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"preparation_{name}.md").write_text("\n".join(lines) + "\n")
    content = {"facts": facts, **{key: value for key, value in results.items() if key != "table"}}
    (RESULTS / f"preparation_{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print("\n".join(lines))


def accuracy(seeds: Sequence[int]) -> dict[str, Any]:
    """Accuracy in the synthetic videos of some seeds."""
    with tempfile.TemporaryDirectory() as folder:
        sets = (synthetic_videos.VideoSet(Path(folder), seed).write() for seed in range(*seeds))
        counts = measure(sets, PrepareConfig())
    return report_accuracy(counts, f"seeds {seeds[0]} to {seeds[1] - 1}")


def report_accuracy(counts: Accuracy, subject: str) -> dict[str, Any]:
    """Metrics, and a table of them, as `write_results` takes them."""
    values = counts.metrics()
    rows = [[name, f"{value:.4g}"] for name, value in values.items()]
    rows += [
        [f"motion of {kind}", f"{min(scores):.2f} to {max(scores):.2f}"]
        for kind, scores in counts.scores.items()
    ]
    rows += [["wrong", text] for text in counts.wrong]
    table = [f"Accuracy of preparation in synthetic videos, {subject}", ["", ""], *rows]
    return {"figures": values, "motion": counts.scores, "wrong": counts.wrong, "table": table}


def main() -> None:
    """Runs one of the benchmarks."""
    parser = argparse.ArgumentParser(description="Accuracy of data preparation.")
    parser.add_argument("what", choices=("accuracy", "clips"), nargs="?", default="accuracy")
    parser.add_argument("--seeds", type=int, nargs=2, default=(100, 110), help="first, last + 1")
    parser.add_argument("--folder", type=Path, help="folder with the clips of the list")
    options = parser.parse_args()
    if options.what == "clips":
        write_results("clips", listed_clips(options.folder))
    else:
        first, last = options.seeds
        write_results(f"accuracy_{first}_{last - 1}", accuracy(options.seeds))


if __name__ == "__main__":
    main()
