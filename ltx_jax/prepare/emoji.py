"""Animated emoji as a data set: ltx-prepare emoji --output DIR [options]

Fetches Microsoft's animated Fluent emoji and their names with `npm pack`, and writes each emoji as
a clip of RGBA at the training size. DIR is then a source of training data (`--data.source
emoji:DIR`). Pictures of flags are left out: they are another artist's.

The same command continues an interrupted run.
"""

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.progress
from jaxtyping import UInt8
from PIL import Image, ImageFile

from ltx_jax.data import emoji
from ltx_jax.data.dataset import DatasetWriter
from ltx_jax.data.read_ahead import read_ahead
from ltx_jax.emoji.catalogue import FRAME_RATE, Entry
from ltx_jax.runtime import cli

_SHARD = 64  # emoji per file of the data set
_LICENCE = "MIT"


class Package(NamedTuple):
    """An npm package with the published hash of its tarball."""

    name: str
    version: str
    integrity: str

    @property
    def tarball(self) -> str:
        """File name that `npm pack` gives to the package."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


# They include pictures of the emoji without animation.
CLIPS = (
    Package(
        "@lobehub/fluent-emoji-anim-1",
        "1.0.0",
        "sha512-/4m31vAuZEQ4aUJ5pxcOU5PVkuJya55GRxUZL7+zgLlxZXpzzE8jPqpDyhZICE3n47nS/Y9M5/vLdizi820"
        "1QA==",
    ),
    Package(
        "@lobehub/fluent-emoji-anim-2",
        "1.0.0",
        "sha512-S6yzf0RZXrQbXdxCWuHA9BAoLdBRk2flX+ne4TPGEH/qApwisCAKHoAAGjKSlTY3OVeZ9b7t/NEbmpjawnQ"
        "YJA==",
    ),
    Package(
        "@lobehub/fluent-emoji-anim-3",
        "1.0.0",
        "sha512-UzRSUDMjdfdt9vER5bhjHkPqgc3EEgfGtYs6ndvizOTvQOxYQ57ow2RTkWSDZxwW30X4EYBi2eWTS7CXDDo"
        "Fsg==",
    ),
    Package(
        "@lobehub/fluent-emoji-anim-4",
        "1.0.0",
        "sha512-IIkl5ztSd1HrzvIDt/uGsFoC1WODXRdYq5uROrnkyqi9DbToEcJ1nlY86PnoUXeFS9nBCnHfiYk3ouSEGTh"
        "FmA==",
    ),
)
NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)


def prepare(
    output: str | Path,
    *,
    size: int = 96,
    packages: str | Path | None = None,
    clips: tuple[Package, ...] = CLIPS,
    names: Package = NAMES,
    threads: int = 2,
) -> None:
    """Writes the data set.

    Args:
      output: a folder that is new, empty, or begun with the same settings.
      size: rows and columns of the stored clips.
      packages: folder of the tarballs, into which missing ones are fetched; None: in `output`.
      clips: packages of WebP files that are named by code points.
      names: the package of their names.
      threads: number of decoding threads.

    Raises:
      ValueError: if a package cannot be fetched, or its hash is wrong.
    """
    output = Path(output)
    packages = output / "packages" if packages is None else Path(packages)
    writer = DatasetWriter(
        output,
        emoji.KIND,
        emoji.features(),
        emoji.INDEX,
        {
            "size": size,
            "frame_rate": FRAME_RATE,
            "packages": {package.name: package.integrity for package in (*clips, names)},
            "shard_size": _SHARD,
        },
    )
    if writer.complete:
        return
    labels = _labels(fetch(names, packages))
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console) as progress:
        number = 0
        for package in clips:
            with tarfile.open(fetch(package, packages)) as tarball:
                members = [member for member in tarball if member.name.endswith(".webp")]
                task = progress.add_task(package.name, total=len(members))
                for first in range(0, len(members), _SHARD):
                    part = members[first : first + _SHARD]
                    if not writer.has(number):
                        rows = _rows(package, tarball, part, labels, size, threads)
                        writer.write(number, rows)
                    progress.advance(task, len(part))
                    number += 1
    writer.finish(number)


def fetch(package: Package, folder: Path) -> Path:
    """The tarball of a package in a folder, fetched with `npm pack` if it is missing.

    Raises:
      ValueError: if it cannot be fetched, or its hash is wrong.
    """
    path = folder / package.tarball
    if not path.exists():
        _pack(package, folder)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    integrity = f"sha512-{base64.b64encode(digest).decode()}"
    if integrity != package.integrity:
        raise ValueError(
            f"{path} has the hash {integrity}, and {package.name} {package.version} has "
            f"{package.integrity}: delete the file and fetch it again"
        )
    return path


def _pack(package: Package, folder: Path) -> None:
    specifier = f"{package.name}@{package.version}"
    advice = f"fetch it with `npm pack {specifier}` and give its folder as --packages"
    if shutil.which("npm") is None:
        raise ValueError(f"npm, which fetches {specifier}, is not installed: {advice}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = ["npm", "pack", "--silent", "--pack-destination", temporary, specifier]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            raise ValueError(
                f"npm could not fetch {specifier} ({process.stderr.strip()}): {advice}"
            )
        Path(temporary, package.tarball).replace(folder / package.tarball)


def _plain(hexcode: str) -> str:
    """A hexcode as in `Entry`; the packages differ in variation selectors."""
    return hexcode.lower().replace("-fe0f", "")


def _labels(tarball: Path) -> dict[str, dict[str, Any]]:
    """Maps each hexcode to those fields of `Entry` that the package of names contains."""
    with tarfile.open(tarball) as opened:

        def read(name: str) -> Any:
            file = opened.extractfile(f"package/en/{name}.json")
            assert file is not None
            return json.load(file)

        messages, emojis = read("messages"), read("data")
    groups, subgroups = (
        {item["order"]: item["key"] for item in messages[name]} for name in ("groups", "subgroups")
    )
    labels = {}
    for base in emojis:
        if "group" not in base:  # the letters of flags, which are no emoji by themselves
            continue
        for one in (base, *base.get("skins", ())):
            tone = one.get("tone", 0)
            if isinstance(tone, int):  # a list has the tones of several people
                labels[_plain(one["hexcode"])] = {
                    "hexcode": _plain(one["hexcode"]),
                    "label": one["label"],
                    "thing": base["label"],
                    "tags": tuple(base.get("tags", ())),
                    "group": groups[base["group"]],
                    "subgroup": subgroups[base["subgroup"]],
                    "tone": tone,
                    "base": _plain(base["hexcode"]),
                }
    return labels


def _rows(
    package: Package,
    tarball: tarfile.TarFile,
    members: list[tarfile.TarInfo],
    labels: dict[str, dict[str, Any]],
    size: int,
    threads: int,
) -> Iterator[tuple[dict[str, Any], tuple]]:
    """Rows of some files; those without a name and pictures of flags are left out."""
    sources = []
    for member in members:
        label = labels.get(_plain(PurePosixPath(member.name).stem))
        if label:
            file = tarball.extractfile(member)
            assert file is not None
            sources.append((member.name, label, file.read()))

    def read(number: int) -> tuple[dict[str, Any], tuple] | tuple[()]:
        name, label, content = sources[number]
        clip = read_clip(content, size)
        if len(clip) == 1 and label["group"] == "flags":
            return ()
        entry = Entry(**label, frames=len(clip), box=_box(clip))
        provenance = {
            "package": f"{package.name} {package.version}",
            "file": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "licence": _LICENCE,
        }
        return emoji.to_row(entry, clip, provenance)

    yield from filter(None, read_ahead(read, 0, len(sources), threads=threads, ahead=2 * threads))


def read_clip(content: bytes, size: int) -> UInt8[np.ndarray, "t {size} {size} 4"]:
    """Decodes a WebP file to premultiplied RGBA at `FRAME_RATE`.

    Args:
      content: the bytes of the file.
      size: rows and columns of the frames; a file that is not square is padded to a square first.
    """
    image = Image.open(io.BytesIO(content))
    frames, end, due = [], 0.0, 0.0
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        image.load()
        end += image.info.get("duration", 0) / 1000
        frame = None
        # Durations have a precision of half a millisecond. A picture has no duration.
        while not frames or due < end - 5e-4:
            frame = _scaled(image, size) if frame is None else frame
            frames.append(frame)
            due = len(frames) / FRAME_RATE
    return np.stack(frames)


def _scaled(image: ImageFile.ImageFile, size: int) -> UInt8[np.ndarray, "{size} {size} 4"]:
    whole = image.convert("RGBA").convert("RGBa")  # premultiplied: hidden colours stay out of edges
    side = max(whole.size)
    square = Image.new("RGBa", (side, side))
    square.paste(whole, ((side - whole.width) // 2, (side - whole.height) // 2))
    scaled = np.array(square.resize((size, size), Image.Resampling.LANCZOS))
    # The filter overshoots, but no premultiplied colour exceeds alpha.
    scaled[..., :3] = np.minimum(scaled[..., :3], scaled[..., 3:])
    return scaled


def _box(clip: UInt8[np.ndarray, "t n n 4"]) -> tuple[float, float, float, float]:
    """`Entry.box` of a clip; the whole canvas if no pixel is visible."""
    visible = clip[..., 3].max(axis=0) >= 16
    sides = []
    for axis in (1, 0):
        places = np.flatnonzero(visible.any(axis=axis))
        first, last = (places[0], places[-1] + 1) if len(places) else (0, len(visible))
        sides.append((float(first) / len(visible), float(last) / len(visible)))
    (top, bottom), (left, right) = sides
    return top, left, bottom, right


def main(arguments: list[str]) -> None:
    """Runs the command."""
    parser = cli.subcommand_parser("prepare", "emoji", __doc__)
    parser.add_argument(
        "--output", required=True, help="a new folder, or that of an interrupted run"
    )
    parser.add_argument("--size", type=int, default=96, help="rows and columns of the clips")
    parser.add_argument("--packages", help="folder of the tarballs; default: DIR/packages")
    parser.add_argument("--threads", type=int, default=2, help="number of decoding threads")
    options = parser.parse_args(arguments)
    prepare(**vars(options))
    print(options.output)
