"""Names the emoji in a video: the nearest of all animated emoji of a data set.

Pictures of the emoji alone, on grey, are compared by features of EfficientNet-lite0, and by their
colours in a small picture, since the features hardly depend on skin tones.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from ltx_jax.emoji.catalogue import Catalogue
from ltx_jax.evaluate.emoji_objects import Frames, Masks, cut_out, emoji_of
from ltx_jax.models import efficientnet
from ltx_jax.runtime import files

_SIDE, _SMALL = 96, 16  # pixels of a picture whose features are computed, and of a small one
_BATCH = 32
_POSES = 4  # frames of each animation in a gallery
_LOOKS = 7  # frames of a video that are compared with a gallery
# A turned emoji, or a pose that the gallery lacks, is like no pose of any emoji: the looks that fit
# an emoji worst do not count.
_BEST = 4
# With 0.5, 8 % instead of 23 % of a weak VAE's reconstructions (22 dB) are named right.
_SMALL_WEIGHT = np.float32(2.0)
_FLAT = 1e-3  # smallest deviation of a feature over a gallery

Pictures = Float32[np.ndarray, "b h w 3"]  # pixels in [0, 255]
Features = Float32[np.ndarray, "b c"]
SmallPictures = Float32[np.ndarray, "b s"]  # flattened
Artwork = Callable[[int], UInt8[np.ndarray, "f n n 4"]]


class Embedder:
    """Computes `efficientnet.statistics` of pictures, in batches of one size.

    Args:
      params: parameters of `models.efficientnet`.

    Attributes:
      key: a hash of the parameters.
    """

    def __init__(self, params: Any):
        self._params, self._program = params, jax.jit(efficientnet.statistics)
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(params):
            digest.update(np.asarray(leaf).tobytes())
        self.key = digest.hexdigest()

    def __call__(self, pictures: Pictures) -> Features:
        """Features of pictures."""
        rows = []
        for start in range(0, len(pictures), _BATCH):
            batch = pictures[start : start + _BATCH]
            padded = np.zeros((_BATCH, *batch.shape[1:]), np.float32)
            padded[: len(batch)] = batch / np.float32(127.5) - 1
            rows.append(np.asarray(self._program(self._params, padded))[: len(batch)])
        return np.concatenate(rows)

    def either_way(self, pictures: Pictures) -> Features:
        """The same for a picture and its mirror image: the mean of the features of both."""
        return (self(pictures) + self(pictures[:, :, ::-1])) / 2


class Looks(NamedTuple):
    """Descriptions of pictures of an emoji alone, as unit vectors."""

    features: Features
    small: SmallPictures


class Gallery:
    """Descriptions of all animated emoji of a data set, in several poses.

    Args:
      catalogue: the emoji.
      numbers: the emoji of each pose.
      features: of each pose, from `Embedder.either_way`.
      small: small pictures of each pose, flattened.
      key: a hash of the emoji and of the format of their descriptions.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        numbers: Int64[np.ndarray, " b"],
        features: Features,
        small: SmallPictures,
        key: str,
    ):
        self._entries, self.key = catalogue.entries, key
        self._mean, self._scale = features.mean(axis=0), features.std(axis=0) + _FLAT
        self._small_mean = small.mean(axis=0)
        self._poses = self._described(features, small)
        self._numbers, self._first = np.unique(numbers, return_index=True)

    @classmethod
    def make(cls, catalogue: Catalogue, artwork: Artwork, embed: Embedder, path: Path) -> "Gallery":
        """Computes the descriptions, or reads them from `path`, where it stores them."""
        text = "\n".join(str(entry) for entry in catalogue.entries)
        key = hashlib.sha256(f"{_SIDE} {_SMALL} {_POSES} {embed.key} {text}".encode()).hexdigest()
        if path.exists():
            with np.load(path) as stored:
                if str(stored["key"]) == key:
                    features, small = stored["features"], stored["small"]
                    return cls(catalogue, stored["numbers"], features, small, key)
        animated = [n for n, entry in enumerate(catalogue.entries) if entry.animated]
        numbers, parts = np.repeat(np.array(animated, np.int64), _POSES), []
        for start in range(0, len(animated), _BATCH):
            clips = [artwork(number) for number in animated[start : start + _BATCH]]
            poses = (clip[i * len(clip) // _POSES] for clip in clips for i in range(_POSES))
            pictures = np.stack([_alone(glyph) for glyph in poses])
            parts.append((embed.either_way(pictures), _small(pictures)))
        features, small = (np.concatenate(part) for part in zip(*parts, strict=True))
        with files.atomic_write(path) as temporary:
            np.savez(temporary, key=key, numbers=numbers, features=features, small=small)
        return cls(catalogue, numbers, features, small, key)

    def looks(self, frames: Frames, found: Masks, embed: Embedder) -> Looks:
        """Describes the emoji in some frames of a video, spread over it.

        Args:
          frames: the video.
          found: the emoji's pixels in each frame, from `emoji_objects.masks`.
          embed: computes features.
        """
        chosen = np.linspace(0, len(frames) - 1, _LOOKS).round().astype(int)
        nothing = np.full((_SIDE, _SIDE, 3), 128, np.float32)
        pictures = [emoji_of(frames[i], found[i], _SIDE) for i in chosen]
        stack = np.stack([nothing if one is None else one for one in pictures])
        return self._described(embed.either_way(stack), _small(stack))

    def nearest(self, looks: Looks) -> int:
        """Number of the emoji that is nearest."""
        return int(self._numbers[np.argmax(self._similarity(looks))])

    def nearest_tone(self, looks: Looks, base: str) -> int:
        """The skin tone of the nearest of the emoji of one base."""
        similarity = self._similarity(looks)
        siblings = [i for i, n in enumerate(self._numbers) if self._entries[n].base == base]
        return self._entries[self._numbers[max(siblings, key=lambda i: similarity[i])]].tone

    def tones(self, base: str) -> int:
        """Number of skin tones of a base."""
        return len({self._entries[n].tone for n in self._numbers if self._entries[n].base == base})

    def _similarity(self, looks: Looks) -> Float32[np.ndarray, " n"]:
        """Similarity to the nearest pose of each emoji, averaged over the looks that fit best."""
        of_poses = looks.features @ self._poses.features.T
        of_poses += _SMALL_WEIGHT * looks.small @ self._poses.small.T
        of_emoji = np.maximum.reduceat(of_poses, self._first, axis=1)
        return np.sort(of_emoji, axis=0)[-_BEST:].mean(axis=0)

    def _described(self, features: Features, small: SmallPictures) -> Looks:
        """Unit vectors of the deviations from the gallery's mean."""
        pair = ((features - self._mean) / self._scale, small - self._small_mean)
        one, other = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in pair)
        return Looks(one, other)


def _alone(glyph: UInt8[np.ndarray, "n n 4"]) -> Float32[np.ndarray, "m m 3"]:
    """A frame of an animation on grey; grey alone if nothing is visible."""
    alpha = glyph[..., 3:].astype(np.float32) / 255
    colours = np.where(alpha > 0, glyph[..., :3] / np.maximum(alpha, 1e-3), 128).clip(0, 255)
    picture = cut_out(colours.astype(np.float32), alpha[..., 0], _SIDE)
    return np.full((_SIDE, _SIDE, 3), 128, np.float32) if picture is None else picture


def _small(pictures: Pictures) -> SmallPictures:
    """Pictures of 16 x 16 pixels, and their mirror images, flattened: the mean of both."""
    part = _SIDE // _SMALL
    small = pictures.reshape(-1, _SMALL, part, _SMALL, part, 3).mean(axis=(2, 4))
    return ((small + small[:, :, ::-1]) / 2).reshape(len(pictures), -1)
