"""Damages files of every kind that users have, and reads them: each reads, or ends in one message.

    python tests/fuzz.py --cases 2000 [--seed 0] [--only media weights]

Prints how many files of each kind were read and refused, and every failure: an exception that a
command would print as a traceback, a message of many lines, a crash, more than 30 seconds, or more
than twice the memory that the undamaged file takes. The exit status is 1 if there was a failure.
A case depends on the seed and its number alone, so that `--first N --cases 1` repeats it.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import os
import queue
import random
import select
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SECONDS = 30
SLACK = 64 << 20  # bytes by which the peak memory of one and the same program varies
MESSAGE = 2000  # characters that a message may have


class Kind(NamedTuple):
    """One kind of input.

    Attributes:
      make: writes undamaged files into a folder; one of them is damaged at a time.
      read: reads a damaged file (its folder holds the others undamaged).
    """

    make: Callable[[Path], None]
    read: Callable[[Path], object]


def _clip() -> np.ndarray:
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)
    return frames.repeat(8, axis=1).repeat(8, axis=2)


def _make_media(folder: Path) -> None:
    import av
    from PIL import Image

    clip = _clip()
    codecs = {
        "mp4": "libx264",
        "mov": "libx264",
        "mkv": "libx264",
        "avi": "mpeg4",
        "webm": "libvpx-vp9",
        "ts": "mpeg2video",
        "ogv": "libtheora",
        "wmv": "wmv2",
    }
    for ending, codec in codecs.items():
        if codec not in av.codecs_available:
            continue
        with av.open(str(folder / f"a.{ending}"), "w") as file:
            stream = file.add_stream(codec, rate=24)
            stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
            for picture in clip:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            file.mux(stream.encode())
    pictures = [Image.fromarray(frame) for frame in clip]
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation
    for ending in ("png", "jpg", "webp", "tif", "bmp", "avif"):
        pictures[0].save(folder / f"a.{ending}", exif=exif)
    for ending in ("gif", "webp", "png", "avif"):
        pictures[0].save(
            folder / f"moving.{ending}", save_all=True, append_images=pictures[1:], duration=42
        )


def _read_media(path: Path) -> object:
    from ltx_jax.data import video

    return video.read_media(path, num_frames=9)


def _make_texts(folder: Path) -> None:
    text = "a red fox walks on ice\nein Bär läuft über Gras\n\u732b\u304c\u8d70\u308b\n" * 4
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (folder / f"{encoding}.txt").write_text(text, encoding=encoding)


def _read_texts(path: Path) -> object:
    from ltx_jax.data import inputs

    return inputs.read_lines(path)


def _make_configs(folder: Path) -> None:
    import yaml

    from ltx_jax.config import SampleConfig

    settings = dataclasses.asdict(SampleConfig(prompt="a fox"))
    (folder / "a.json").write_text(json.dumps({"settings": settings}))
    one_pass = {
        "checkpoint_path": "ltxv-2b-0.9.6-distilled-04-25.safetensors",
        "num_inference_steps": 8,
        "guidance_scale": 3.0,
        "stg_mode": "attention_values",
        "decode_timestep": 0.05,
        "decode_noise_scale": 0.025,
        "text_encoder_model_name_or_path": "PixArt-alpha/PixArt-XL-2-1024-MS",
        "precision": "bfloat16",
        "sampler": "from_checkpoint",
        "stochastic_sampling": False,
    }
    (folder / "a.yaml").write_text(yaml.safe_dump(one_pass))


def _read_configs(path: Path) -> object:
    from ltx_jax import config

    return config.load_sampling(str(path))


def _make_weights(folder: Path) -> None:
    import tiny_checkpoint

    tiny_checkpoint.write_checkpoint(folder / "a.safetensors")


def _read_weights(path: Path) -> object:
    from ltx_jax.checkpoints.load import load_checkpoint

    return load_checkpoint(path)


def _make_arrays(folder: Path) -> None:
    draw = np.random.default_rng(0)
    np.savez(
        folder / "a.npz",
        prompt_embeds=draw.standard_normal((1, 4, 16)).astype(np.float32),
        prompt_mask=np.ones((1, 4), np.int32),
    )
    np.save(folder / "a.npy", draw.standard_normal((1, 2, 2, 2, 8)).astype(np.float32))


def _read_arrays(path: Path) -> object:
    from ltx_jax.inference import make_videos

    return (
        make_videos.read_embeddings(str(path))
        if path.suffix == ".npz"
        else make_videos.read_noise(str(path))
    )


def _make_lists(folder: Path) -> None:
    import csv
    import tarfile

    import pyarrow
    from pyarrow import parquet

    rows = [{"file_name": f"{i}.mp4", "text": f"clip {i}, größer", "stars": i} for i in range(20)]
    for row in rows:
        (folder / row["file_name"]).write_bytes(b"not decoded here")
    with open(folder / "a.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    (folder / "a.json").write_text(json.dumps(rows))
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    with tarfile.open(folder / "a.tar", "w") as tar:
        for row in rows:
            tar.add(folder / row["file_name"], row["file_name"])
            text = folder / "a.txt"
            text.write_text(row["text"], encoding="utf-8")
            tar.add(text, row["file_name"].replace("mp4", "txt"))
    text.unlink()
    for row in rows:
        (folder / row["file_name"]).unlink()


def _read_lists(path: Path) -> object:
    from ltx_jax.data import folder

    return folder.list_clips(path)


KINDS = {
    "media": Kind(_make_media, _read_media),
    "texts": Kind(_make_texts, _read_texts),
    "configs": Kind(_make_configs, _read_configs),
    "weights": Kind(_make_weights, _read_weights),
    "arrays": Kind(_make_arrays, _read_arrays),
    "lists": Kind(_make_lists, _read_lists),
}


# --- damage -------------------------------------------------------------------------------------


def damaged(content: bytes, name: str, draw: random.Random) -> bytes:
    """The content of a file after one kind of damage."""
    if name.endswith((".json", ".yaml")) and draw.random() < 0.7:
        return _edited_settings(content, name, draw)
    if name.endswith(".safetensors") and draw.random() < 0.7:
        return _edited_header(content, draw)
    return draw.choice(_DAMAGES)(content, draw)


def _truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def _flipped(content: bytes, draw: random.Random) -> bytes:
    result = bytearray(content)
    # Half of the flips fall into the first kilobyte, where headers are.
    for _ in range(draw.choice((1, 1, 3, 20))):
        end = min(len(result), 1024) if draw.random() < 0.5 else len(result)
        result[draw.randrange(end)] ^= 1 << draw.randrange(8)
    return bytes(result)


def _lying(content: bytes, draw: random.Random) -> bytes:
    """Overwrites four or eight bytes, as if they were a length, with another number."""
    size = draw.choice((4, 8))
    number = draw.choice((0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, draw.getrandbits(32)))
    end = min(len(content), 2048) if draw.random() < 0.7 else len(content)
    start = draw.randrange(max(end - size, 1))
    order: Any = draw.choice(("big", "little"))
    return content[:start] + number.to_bytes(size, order) + content[start + size :]


def _spans(content: bytes, draw: random.Random) -> bytes:
    """Removes, repeats or erases a piece."""
    start = draw.randrange(len(content))
    piece = content[start : start + draw.choice((1, 16, 300, 5000))]
    instead = draw.choice((b"", piece + piece, bytes(len(piece)), draw.randbytes(len(piece))))
    return content[:start] + instead + content[start + len(piece) :]


_DAMAGES = (_truncated, _flipped, _lying, _spans)

_VALUES: tuple[Any, ...] = (
    None,
    True,
    "",
    "no such value",
    "../../../etc/passwd",
    -1,
    0,
    0.5,
    10**9,
    10**40,
    float("nan"),
    float("inf"),
    [],
    [[]],
    {},
    {"a": {"b": None}},
    [None, None, None],
    "\udcff",
    "x" * 10_000,
)


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _edited(tree: Any, draw: random.Random) -> Any:
    """Replaces, removes, adds or renames one entry somewhere in a tree of lists and dicts."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        entries = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in list(entries):
            places.append((node, key))
            if isinstance(value, (dict, list)):
                walk(value)

    walk(tree)
    if not places:
        return draw.choice(_VALUES)
    node, key = draw.choice(places)
    edit = draw.choice(("replace", "replace", "replace", "remove", "add", "nest"))
    if edit == "remove":
        del node[key]
    elif edit == "add" and isinstance(node, dict):
        node[draw.choice(("unknown", f"{key}_2", ""))] = draw.choice(_VALUES)
    else:
        node[key] = _nested(draw.choice((5, 500))) if edit == "nest" else draw.choice(_VALUES)
    return tree


def _edited_settings(content: bytes, name: str, draw: random.Random) -> bytes:
    if name.endswith(".json"):
        return json.dumps(_edited(json.loads(content), draw)).encode(errors="surrogatepass")
    import yaml

    # JSON is YAML, and has no difficulty with nested lists.
    text = json.dumps(_edited(yaml.safe_load(content), draw))
    return text.encode(errors="surrogatepass")


def _edited_header(content: bytes, draw: random.Random) -> bytes:
    """Edits the header of a safetensors file: a tensor's entry, or the configuration in it."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header["__metadata__"]
    if draw.random() < 0.7:
        configuration = json.loads(metadata["config"])
        metadata["config"] = json.dumps(_edited(configuration, draw))
    else:
        name = draw.choice([name for name in header if name != "__metadata__"])
        edits = {
            "dtype": draw.choice(("F64", "I64", "F8_E4M3", "BOOL", "X", None)),
            "shape": draw.choice(([], [0], [2**40], [-1], None, [1] * 70)),
            "data_offsets": draw.choice(([0, 0], [0, 2**40], [5, 1], [-4, 4], None)),
        }
        key = draw.choice(list(edits))
        header[name][key] = edits[key]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


# --- running ------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A damaged file: which kind, and which number of the run."""

    number: int
    kind: str


class Outcome(NamedTuple):
    """What became of a case: "read", "refused" or "failed", with the message or the failure."""

    verdict: str
    text: str
    name: str = ""  # of the damaged file


def _worker(root: Path, seed: int) -> None:
    """Takes cases as lines of JSON, and answers each with the line of its outcome."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    for line in sys.stdin:
        outcome = _run(Case(*json.loads(line)), root, seed)
        answers.write(json.dumps(outcome) + "\n")
        answers.flush()


def _run(case: Case, root: Path, seed: int) -> Outcome:
    draw = random.Random(f"{seed} {case.number}")
    source = root / case.kind
    name = draw.choice(sorted(str(x.relative_to(source)) for x in source.rglob("*") if x.is_file()))
    content = (source / name).read_bytes()
    # The first reading also imports what reading takes, which is not this file's memory.
    KINDS[case.kind].read(source / name)
    honest = _peak(lambda: KINDS[case.kind].read(source / name))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(source, copy)
        (copy / name).write_bytes(damaged(content, name, draw))
        claimed = _claimed(copy / name)
        outcome = Outcome("read", "", name)

        def read() -> None:
            nonlocal outcome
            try:
                KINDS[case.kind].read(copy / name)
            except (ValueError, OSError, MemoryError) as error:
                outcome = Outcome("refused", str(error), name)
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                text = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
                outcome = Outcome("failed", text, name)

        used = _peak(read)
    if len(outcome.text) > MESSAGE or outcome.text.count("\n") > 20:
        return Outcome("failed", f"a long message: {outcome.text[:300]}", name)
    if outcome.verdict == "refused" and not outcome.text.strip():
        return Outcome("failed", "a refusal without a message", name)
    honest = max(honest, claimed)
    if used > 2 * honest + SLACK:
        return Outcome("failed", f"{used >> 20} MB, honest would be {honest >> 20} MB", name)
    return outcome


def _claimed(path: Path) -> int:
    """Bytes of the frames of a picture by its header; 0 if it has none.

    Damage may make a size larger that no other part of the file contradicts.
    """
    try:
        with Image.open(path) as image:
            return 3 * math.prod(image.size) * getattr(image, "n_frames", 1)
    except Exception:  # whatever Pillow raises for a damaged file
        return 0


def _peak(work: Callable[[], object]) -> int:
    """The memory in bytes that a function adds to what the process holds (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{name}:")[1].split()[0])


class Worker:
    """A process that reads damaged files, and may die of them."""

    def __init__(self, root: Path, seed: int):
        self._command = [sys.executable, __file__, "--worker", str(root), "--seed", str(seed)]
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, case: Case) -> Outcome:
        """The outcome of a case; a process that hangs or dies is replaced."""
        process = self._process
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(case) + "\n")
        process.stdin.flush()
        # The first case of a process imports JAX and more.
        if not select.select([process.stdout], [], [], SECONDS + 30)[0]:
            self.close()
            self._start()
            return Outcome("failed", f"no answer for {SECONDS} s")
        line = process.stdout.readline()
        if line:
            return Outcome(*json.loads(line))
        status = process.wait()
        self._start()
        return Outcome("failed", f"the process died with status {status}")

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


def run(cases: Sequence[Case], seed: int, workers: int = 2) -> Iterator[tuple[Case, Outcome]]:
    """Runs cases in several processes; yields each with its outcome, in the order of `cases`."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        for kind in {case.kind for case in cases}:
            (root / kind).mkdir()
            KINDS[kind].make(root / kind)
        idle = queue.SimpleQueue[Worker]()
        for _ in range(workers):
            idle.put(stack.enter_context(contextlib.closing(Worker(root, seed))))

        def one(case: Case) -> Outcome:
            worker = idle.get()
            try:
                return worker.run(case)
            finally:
                idle.put(worker)

        with concurrent.futures.ThreadPoolExecutor(workers) as threads:
            yield from zip(cases, threads.map(one, cases), strict=True)


def cases_of(first: int, count: int, kinds: Sequence[str]) -> list[Case]:
    """Numbered cases that take turns among the kinds."""
    return [Case(i, kinds[i % len(kinds)]) for i in range(first, first + count)]


def main() -> int:
    """Runs the program; returns 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _worker(options.worker, options.seed)
        return 0
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for case, outcome in run(cases_of(options.first, options.cases, options.only), options.seed):
        counts[case.kind, outcome.verdict] += 1
        if outcome.verdict == "failed":
            print(f"case {case.number}, {case.kind} {outcome.name}: {outcome.text}", flush=True)
    print(f"{'kind':10}{'read':>8}{'refused':>10}{'failed':>8}")
    for kind in options.only:
        numbers = [counts[kind, verdict] for verdict in ("read", "refused", "failed")]
        print(f"{kind:10}{numbers[0]:8}{numbers[1]:10}{numbers[2]:8}")
    return int(any(verdict == "failed" for _, verdict in counts))


if __name__ == "__main__":
    sys.exit(main())
