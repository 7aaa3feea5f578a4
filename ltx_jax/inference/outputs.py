"""The videos that a run of ltx-sample makes: names, JSON files, and which of them exist already."""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ltx_jax import config
from ltx_jax.checkpoints import embedded_models
from ltx_jax.config import SampleConfig
from ltx_jax.data import inputs, writing
from ltx_jax.runtime import files

_ENHANCED = "enhanced_from"  # in the JSON: the prompt before it was enhanced, and the model
# Fields that may differ if a prompts file is run again with the same output folder.
_NOT_COMPARED = (
    *("config", "prompts_file", "output_path", "mesh", "batch_size", "sheet", "preview"),
    "range_warning",
)


class _Identity(NamedTuple):
    """Identifies the file at a path, so that a file that replaces it is noticed."""

    inode: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> "_Identity | None":
        """The identity of a file; None if there is none."""
        try:
            status = path.stat()
        except OSError:
            return None
        return cls(status.st_ino, status.st_mtime_ns)


@dataclasses.dataclass(frozen=True)
class Video:
    """One video of a run: its sample number `index`, from a prompt (None: from embeddings).

    `replaced` is the file that had its path when the run began, if there was one. `original` is the
    prompt before it was enhanced, if it was.
    """

    index: int
    prompt: str | None
    path: Path
    replaced: _Identity | None = None
    original: str | None = None

    @property
    def sidecar(self) -> Path:
        """The JSON file with its settings; a sequence `name_%04d.png` has one, `name.json`."""
        stem = re.sub(r"[ ._-]*%\d*d", "", self.path.stem) or "frames"
        return self.path.with_name(f"{stem}.json")


def planned_videos(cfg: SampleConfig, rows: int = 1) -> list[Video]:
    """Lists the videos of a run, with their paths; `rows` is the batch size of the embeddings.

    Raises:
      ValueError: if there is no prompt, or if options exclude each other.
    """
    out = Path("outputs" if cfg.output_path is None else cfg.output_path)
    to_file = _is_file(cfg)
    if cfg.prompts_file is not None:
        if to_file:
            raise ValueError(f"{out} is one file, and prompts_file makes many: name a folder")
        if cfg.save_latents is not None or cfg.noise is not None:
            raise ValueError("save_latents and noise are for one prompt, not for a prompts_file")
        lines = inputs.read_lines(cfg.prompts_file)
        videos = [
            _video(i, line, out / f"{i + 1:04d}_seed{cfg.seed}.mp4")
            for i, line in enumerate(lines, cfg.first_sample)
            if line
        ]
        if not videos:
            raise ValueError(f"{cfg.prompts_file} holds no prompt")
        return videos
    if cfg.prompt is None and cfg.embeddings is None:
        raise ValueError("say what to show: --prompt TEXT (may be empty) or --prompts_file FILE")
    text = cfg.prompt if cfg.prompt is not None else Path(cfg.embeddings or "").stem
    stem = out.with_suffix("") if to_file else out / f"{_slug(text)}_seed{cfg.seed}"
    ending = out.suffix if to_file else ".mp4"
    paths = [Path(f"{stem}{f'_{i}' if rows > 1 else ''}{ending}") for i in range(rows)]
    if not to_file:
        paths = [_unused(path) for path in paths]
    return [_video(cfg.first_sample + i, cfg.prompt, path) for i, path in enumerate(paths)]


def _video(index: int, prompt: str | None, path: Path) -> Video:
    return Video(index, prompt, path, _Identity.of(path))


def _is_file(cfg: SampleConfig) -> bool:
    """Whether the output path names a file rather than a folder.

    Raises:
      ValueError: if it names a file of another kind, or one that cannot hold the video.
    """
    path = cfg.output_path or ""
    out, ending = Path(path), Path(path).suffix.lower()
    # Folders of versions, such as `ltxv-0.9.7`, have no ending.
    if not ending or ending[1:].isdigit() or path.endswith(os.sep) or out.is_dir():
        return False
    if ending not in writing.OUTPUTS:
        raise ValueError(
            f"output_path is {path}, which has no ending of a supported kind: {writing.WAYS}; to "
            f"name a new folder, end the path with {os.sep}"
        )
    is_picture = ending in writing.PICTURES and not writing.is_sequence(path)
    if is_picture and cfg.num_frames > 1:
        raise ValueError(
            f"output_path is {path}, a picture, and num_frames is {cfg.num_frames}; {writing.WAYS}"
        )
    if cfg.sheet and ending in (".gif", *writing.PICTURES):
        raise ValueError(
            f"sheet writes a GIF and a PNG beside a video, and output_path is {path}: leave it out"
        )
    return True


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:40].rstrip("-") or "video"


def _numbered(path: Path) -> Iterator[Path]:
    """The path, then the path with the numbers 1, 2, ... appended to its name."""
    yield path
    for number in itertools.count(1):
        yield path.with_name(f"{path.stem}_{number}{path.suffix}")


def _unused(path: Path) -> Path:
    """The first of the numbered paths at which there is no file."""
    return next(candidate for candidate in _numbered(path) if not candidate.exists())


@contextlib.contextmanager
def claimed(item: Video) -> Iterator[Video]:
    """Reserves a video's path for this process; gives the video with its final path.

    If another process has written to the path since the run began, the next free one is taken, with
    a notice. An empty file holds the path until the video is written.

    Raises:
      ValueError: if no file can be made there.
    """
    if writing.is_sequence(item.path):  # many files, none of which has this name
        yield item
        return
    if item.replaced is not None and _Identity.of(item.path) == item.replaced:
        yield item
        return
    path = next(filter(_reserve, _numbered(item.path)))
    if path != item.path:
        print(f"notice: another run has written {item.path}", file=sys.stderr)
    try:
        yield dataclasses.replace(item, path=path)
    finally:
        with contextlib.suppress(OSError):
            if not path.stat().st_size:
                path.unlink()


def _reserve(path: Path) -> bool:
    """Makes an empty file; False if there is a file already."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    return True


def batches(cfg: SampleConfig, videos: Sequence[Video]) -> Iterator[list[Video]]:
    """Groups the videos into batches of consecutive samples."""
    size = cfg.batch_size if cfg.prompts_file is not None else len(videos)
    batch: list[Video] = []
    for item in videos:
        if batch and (len(batch) == size or item.index != batch[-1].index + 1):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def done(cfg: SampleConfig, item: Video) -> bool:
    """Whether an earlier run with the same prompts file has made this video, and it is whole.

    Raises:
      ValueError: if the video exists, but was made with other settings.
    """
    if cfg.prompts_file is None or not (item.path.exists() and item.sidecar.exists()):
        return False
    if not writing.is_whole_mp4(item.path):
        return False
    before, now = config.read_sampling_json(item.sidecar), settings_of(cfg, item)
    before = dataclasses.replace(before, checkpoint=embedded_models.full_name(before.checkpoint))
    enhanced = config.read_object(item.sidecar).get(_ENHANCED)
    if enhanced and item.original is None:
        before = dataclasses.replace(before, prompt=enhanced["prompt"], enhance=enhanced["model"])
    for field in dataclasses.fields(SampleConfig):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if field.name not in _NOT_COMPARED and old != new:
            raise ValueError(
                f"{item.path} exists with {field.name} {old!r}, not {new!r}: delete it or choose "
                f"another output_path"
            )
    return True


def settings_of(cfg: SampleConfig, item: Video) -> SampleConfig:
    """The settings that make a single video of a run. An enhanced prompt is not enhanced again."""
    return dataclasses.replace(
        cfg,
        checkpoint=embedded_models.full_name(cfg.checkpoint),
        config=None,
        enhance=cfg.enhance if item.original is None else None,
        prompt=item.prompt,
        prompts_file=None,
        first_sample=item.index if cfg.embeddings is None else cfg.first_sample,
        output_path=None,
        save_latents=None,
    )


def write_sidecar(
    cfg: SampleConfig, item: Video, checkpoint_hash: str, seconds: dict[str, float]
) -> None:
    """Writes the JSON file beside a video, with everything that is needed to make it again.

    Args:
      cfg: the settings of the command.
      item: the video.
      checkpoint_hash: hash of the weights.
      seconds: duration of each part of sampling.

    Raises:
      ValueError: if the file cannot be written.
    """
    packages = ("ltx-jax", "jax", "jaxlib", "flax", "numpy", "av")
    versions = {"python": platform.python_version(), "device": jax.devices()[0].device_kind}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a source folder
            versions[name] = "unknown"
    content: dict[str, Any] = {
        "settings": dataclasses.asdict(settings_of(cfg, item)),
        "checkpoint_hash": checkpoint_hash,
        "versions": versions,
        "seconds": {part: round(taken, 3) for part, taken in seconds.items()},
    }
    if item.original is not None:
        content[_ENHANCED] = {"prompt": item.original, "model": cfg.enhance}
    text = json.dumps(content, indent=2) + "\n"
    files.atomic_write_text(item.sidecar, text)
