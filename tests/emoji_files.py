"""A handful of emoji drawn here, in files as the packages have them."""

import base64
import hashlib
import io
import json
import pathlib
import tarfile

import numpy as np
from PIL import Image

from ltx_jax.emoji.catalogue import Entry
from ltx_jax.prepare.emoji import Package, prepare

SIDE = 64


def entry(hexcode="1f98a", label="fox", **changes):
    """A fox, or something else; its box is all of the canvas."""
    fields = {
        "thing": label,
        "tags": ("animal", "face", "sly"),
        "group": "animals-nature",
        "subgroup": "animal-mammal",
        "tone": 0,
        "base": hexcode,
        "frames": 1,
        "box": (0.0, 0.0, 1.0, 1.0),
    }
    return Entry(hexcode=hexcode, label=label, **(fields | changes))


def webp(frames, durations=42):
    """A lossless file of frames (t, h, w, 4) that are not multiplied by alpha."""
    first, *rest = [Image.fromarray(frame, "RGBA") for frame in frames]
    file = io.BytesIO()
    animation = {"save_all": True, "append_images": rest, "duration": durations} if rest else {}
    first.save(file, "WEBP", lossless=True, exact=True, **animation)
    return file.getvalue()


def disc(colour, centres, radius=14, side=SIDE):
    """A disc of one colour that is at each centre (row, column) in turn."""
    places = np.arange(side) + 0.5
    frames = np.zeros((len(centres), side, side, 4), np.uint8)
    for frame, (row, column) in zip(frames, centres, strict=True):
        distance = np.hypot(places[:, None] - row, places[None] - column)
        frame[..., :3] = colour
        frame[..., 3] = np.round(255 * np.clip(radius + 0.5 - distance, 0, 1))
    return frames


def circling(colour, count=48):
    """A disc that goes round: no two of its frames are the same."""
    turns = 2 * np.pi * np.arange(count) / count
    return disc(colour, np.stack([32 + 12 * np.sin(turns), 32 + 12 * np.cos(turns)], axis=1))


# Names as the package of names has them.
NAMES = [
    {"label": "regional indicator A", "hexcode": "1F1E6"},
    {"label": "fox", "hexcode": "1F98A", "tags": ["sly"], "group": 3, "subgroup": 39},
    {"label": "bread", "hexcode": "1F35E", "tags": ["loaf"], "group": 4, "subgroup": 50},
    {"label": "flag: Norway", "hexcode": "1F1F3-1F1F4", "tags": ["NO"], "group": 9, "subgroup": 99},
    {
        "label": "woman surfing",
        "hexcode": "1F3C4-200D-2640-FE0F",
        "tags": ["ocean", "waves"],
        "group": 1,
        "subgroup": 28,
        "skins": [
            {
                "label": f"woman surfing: {tone} skin tone",
                "hexcode": f"1F3C4-1F3F{'BCDEF'[i]}-200D-2640-FE0F",
                "tone": i + 1,
            }
            for i, tone in enumerate(("light", "medium-light", "medium", "medium-dark", "dark"))
        ],
    },
]
MESSAGES = {
    "groups": [
        {"order": order, "key": key}
        for order, key in enumerate(
            (
                *("smileys-emotion", "people-body", "component", "animals-nature", "food-drink"),
                *("travel-places", "activities", "objects", "symbols", "flags"),
            )
        )
    ],
    "subgroups": [
        {"order": 28, "key": "person-sport"},
        {"order": 39, "key": "animal-mammal"},
        {"order": 50, "key": "food-prepared"},
        {"order": 99, "key": "country-flag"},
    ],
}
FILES = {
    "1f98a": circling((240, 120, 20)),
    "1f35e": disc((200, 150, 90), [(32, 32)], 20),
    "1f1f3-1f1f4": disc((200, 0, 0), [(32, 32)]),
    "1f9ff-fe0f": disc((0, 0, 200), [(32, 32)]),  # has no name
    "1f3c4-200d-2640-fe0f": circling((250, 220, 60)),
    "1f3c4-1f3fb-200d-2640-fe0f": circling((250, 220, 200)),
    "1f3c4-1f3fc-200d-2640-fe0f": circling((220, 180, 150)),
    "1f3c4-1f3fd-200d-2640-fe0f": circling((190, 140, 100)),
    "1f3c4-1f3fe-200d-2640-fe0f": circling((140, 90, 60)),
    "1f3c4-1f3ff-200d-2640-fe0f": circling((90, 60, 40)),
}


def _package(folder: pathlib.Path, name: str, files: dict[str, bytes]) -> Package:
    draft = Package(name, "1.0.0", "")
    with tarfile.open(folder / draft.tarball, "w:gz") as tarball:
        for path, content in files.items():
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(content)
            tarball.addfile(member, io.BytesIO(content))
    digest = hashlib.sha512((folder / draft.tarball).read_bytes()).digest()
    return draft._replace(integrity=f"sha512-{base64.b64encode(digest).decode()}")


def write_packages(folder: pathlib.Path) -> tuple[tuple[Package, ...], Package]:
    """Two packages of clips and one of names, as tarballs."""
    clips = {f"assets/{name}.webp": webp(frames) for name, frames in FILES.items()}
    names = sorted(clips)
    parts = names[: len(names) // 2], names[len(names) // 2 :]
    packages = [
        _package(folder, f"@drawn/clips-{i}", {name: clips[name] for name in part})
        for i, part in enumerate(parts)
    ]
    texts = {"en/data.json": json.dumps(NAMES), "en/messages.json": json.dumps(MESSAGES)}
    named = _package(folder, "names", {path: text.encode() for path, text in texts.items()})
    return tuple(packages), named


def write_set(folder: pathlib.Path) -> str:
    """The data set that those packages make; its name as a source."""
    clips, names = write_packages(folder)
    prepare(folder / "set", size=SIDE, packages=folder, clips=clips, names=names)
    return f"emoji:{folder / 'set'}"
