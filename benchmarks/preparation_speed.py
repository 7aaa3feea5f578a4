"""Speed and memory of data preparation.

python -m benchmarks.preparation_speed stages       CPU seconds of every stage
python -m benchmarks.preparation_speed decoding     compared with PyAV alone
python -m benchmarks.preparation_speed memory --clips 10000

CPU seconds of all threads are counted, since other processes on the machine hardly affect them.
Rates are computed for two idle cores. Results are written to benchmarks/results/.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import pathlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np

from benchmarks import synthetic_videos
from benchmarks.preparation import write_results
from ltx_jax.config import PrepareConfig, StoreConfig, TextConfig
from ltx_jax.data import dataset, video, writing
from ltx_jax.data.filters import bars, hashes, lettering, motion, shots
from ltx_jax.prepare import __main__ as command
from ltx_jax.prepare import beam_pipeline, clip_video, examine
from ltx_jax.prepare.records import ClipRecord

KINDS = ("pan", "things", "handheld")
HEIGHT, WIDTH, SECONDS, RATE = 360, 640, 4, 25
TURNS = 5
CORES = 2


def make_films(folder: pathlib.Path) -> list[pathlib.Path]:
    """Films of one shot that moves."""
    paths = []
    for i, kind in enumerate(KINDS):
        rng = np.random.default_rng([i, 30])
        frames = synthetic_videos.take(kind, rng, SECONDS * RATE, HEIGHT, WIDTH, RATE)
        path = folder / f"{i}.mp4"
        writing.write_video(path, (frame.astype(np.uint8) for frame in frames), RATE)
        path.with_suffix(".txt").write_text(kind)
        paths.append(path)
    return paths


def spent(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of `work`, and the CPU seconds and wall-clock seconds that it takes."""
    cpu, begin = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - begin


def stages(options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds per clip of every stage."""
    cfg, cpu_seconds = PrepareConfig(), {}

    def count(name: str, work: Callable, *arguments: Any) -> Any:
        result, seconds, _ = spent(functools.partial(work, *arguments))
        cpu_seconds[name] = cpu_seconds.get(name, 0.0) + seconds / len(KINDS)
        return result

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for path in make_films(folder):
            count("probe", video.probe, path)
            frames = count("decode", lambda path: list(video.decode_video(path)), path)
            pictures = count("reduce for shots", _reduced, frames, "bgr", 256)
            count("find shots", _shots, cfg, frames, pictures)
            lumas = count("reduce for bars", _reduced, frames[::12], "luma", 1920)
            count("find bars", bars.find_picture, lumas)
            some, times = _reduced(frames[::3], "luma", 256), [one.begin for one in frames[::3]]
            count("motion", motion.score, times, some)
            count("hashes", hashes.hash_clip, some)
            del frames, pictures, lumas
            [record] = count("all of the above, in one pass", examine.examine, path, cfg)
            clip = dataclasses.replace(record, source=str(path))
            images = count("read pictures for text", clip_video.sample_frames, clip, cfg.pictures)
            count("text", lettering.text_fraction, images)
            stored = folder / f"{path.stem}.records"
            count("cut and encode", clip_video.write_clips, stored, [clip], cfg.store)
            placed = dataclasses.replace(clip, file=str(stored), place=0)
            count("write", _write, folder / f"{path.stem}-set", placed)
    title = f"CPU seconds for a clip of {SECONDS} s, {WIDTH} x {HEIGHT}, {RATE} frames a second"
    rows = [[name, f"{value:.3f}", f"{CORES / value:.3g}"] for name, value in cpu_seconds.items()]
    table = [title, ["stage", "CPU seconds", f"clips/s on {CORES} cores"], *rows]
    return {"cpu_seconds_per_clip": cpu_seconds, "table": table}


def _reduced(frames: list, form: str, longest: int) -> list[np.ndarray]:
    return [getattr(frame, form)(longest) for frame in frames]


def _shots(cfg: PrepareConfig, frames: list, pictures: list) -> None:
    finder = shots.ShotFinder(cfg.shots, float(RATE))
    for frame, picture in zip(frames, pictures, strict=True):
        finder.add(frame.begin, frame.end, picture)


def _write(folder: pathlib.Path, clip: ClipRecord) -> None:
    row = dataset.clip_row(
        clip_video.read_clip(clip), ["a caption"], beam_pipeline.provenance(clip)
    )
    writer = dataset.DatasetWriter(
        folder, dataset.CLIPS, dataset.clip_features(), beam_pipeline.media.FACTS, {"made": 1}
    )
    writer.write(0, [row])


def decoding(options: argparse.Namespace) -> dict[str, Any]:
    """Frames per second of our decoder and of PyAV alone, measured in turn, and their ratio."""

    def pyav(path: pathlib.Path, form: str | None) -> int:
        with av.open(os.fspath(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            frames = container.decode(video=0)
            return sum(1 for frame in frames if form is None or frame.to_ndarray(format=form).size)

    def ours(path: pathlib.Path, converted: bool) -> int:
        frames = video.stream_video(path) if converted else video.decode_video(path)
        return sum(1 for _ in frames)

    rows, results = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        paths = make_films(pathlib.Path(temporary))
        for name, form in (("decoded", None), ("as RGB", "rgb24")):
            ratios: dict[str, list[float]] = {"CPU": [], "clock": []}
            speeds = []
            for path in paths * TURNS:
                count, cpu_alone, clock_alone = spent(functools.partial(pyav, path, form))
                same, cpu, clock = spent(functools.partial(ours, path, form is not None))
                assert count == same
                ratios["CPU"].append(cpu_alone / cpu)
                ratios["clock"].append(clock_alone / clock)
                speeds.append(count / cpu)
            medians = {key: statistics.median(values) for key, values in ratios.items()}
            results[name] = {**medians, "frames per CPU second": statistics.median(speeds)}
            rows.append([name, *(f"{value:.3g}" for value in results[name].values())])
    title = f"Speed / PyAV's speed, {WIDTH} x {HEIGHT}, medians of {len(speeds)}"
    heads = ["frames", "by CPU seconds", "by the clock", "frames per CPU second"]
    return {**results, "table": [title, heads, *rows]}


def make_tiny_clips(folder: pathlib.Path, count: int) -> None:
    """Writes different clips of 1 s, in a way that takes little time."""
    for i in range(count):
        rng = np.random.default_rng([i, 40])
        plate = synthetic_videos.plate(rng, 64, 160).astype(np.uint8)
        path = folder / f"{i:05}.mp4"
        with av.open(os.fspath(path), "w") as file:
            stream = file.add_stream("mpeg4", rate=8, options={"qscale": "4"})
            stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
            for k in range(9):
                view = np.ascontiguousarray(plate[:, 6 * k : 6 * k + 96])
                file.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
            file.mux(stream.encode())
        path.with_suffix(".txt").write_text(f"clip {i}")


@contextlib.contextmanager
def watched(seconds: float = 1.0) -> Iterator[list[tuple[float, float]]]:
    """Yields a growing list of (seconds since the beginning, megabytes in memory then)."""
    samples: list[tuple[float, float]] = []
    done = threading.Event()

    def watch() -> None:
        begin = time.monotonic()
        while not done.wait(seconds):
            samples.append((time.monotonic() - begin, resident()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def resident() -> float:
    """Resident memory of this process, in megabytes."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Memory of a whole run, while clips are examined and until everything is written."""
    cfg = PrepareConfig(
        text=TextConfig(max_share=None), store=StoreConfig(min_side=32, shard_megabytes=8)
    )
    examined: list[float] = []
    original = beam_pipeline.examine

    def counted(*arguments: Any) -> Any:
        clips = original(*arguments)
        examined.append(resident())
        return clips

    beam_pipeline.examine = counted
    with tempfile.TemporaryDirectory() as temporary:
        raw = pathlib.Path(temporary) / "raw"
        raw.mkdir()
        make_tiny_clips(raw, options.clips)
        print(f"{options.clips} clips are made", flush=True)
        with watched() as samples:
            (_, cpu, _) = spent(
                lambda: command.prepare(cfg, [str(raw)], pathlib.Path(temporary) / "set")
            )
        stored = len(dataset.DatasetReader(pathlib.Path(temporary) / "set").index)
    step = max(options.clips // 10, 1)
    rows = [
        [f"{n} examined", f"{examined[n - 1]:.0f}"] for n in range(step, len(examined) + 1, step)
    ]
    after = [megabytes for _, megabytes in samples]
    rows += [["peak until the end", f"{max(after):.0f}"]]
    title = f"Megabytes in memory: {options.clips} clips, {stored} of them stored"
    return {
        "clips": options.clips,
        "stored": stored,
        "cpu_seconds": cpu,
        "resident_mb": {name: float(value) for name, value in rows},
        "table": [title, ["after", "MB"], *rows],
    }


def main() -> None:
    """Runs one of the benchmarks."""
    parser = argparse.ArgumentParser(description="Speed and memory of data preparation.")
    parser.add_argument("what", choices=("stages", "decoding", "memory"))
    parser.add_argument("--clips", type=int, default=10_000, help="for memory")
    options = parser.parse_args()
    results = {"stages": stages, "decoding": decoding, "memory": memory}[options.what](options)
    write_results(options.what, results)


if __name__ == "__main__":
    main()
