"""A folder of .npz files as a source: `frames` (t, h, w, 3), `caption` and `frame_rate` each."""

from pathlib import Path

import numpy as np

from ltx_jax.config import BucketConfig
from ltx_jax.data.sources import Example


class Arrays:
    """The files of `arrays:FOLDER`, cut to the frames, rows and columns of a bucket."""

    encoding = None  # they are pixels

    def __init__(self, path: str):
        self._files = sorted(Path(path.removeprefix("arrays:")).glob("*.npz"))
        if not self._files:
            raise ValueError(f"{path} holds no .npz files")

    def count(self, bucket: BucketConfig) -> int:
        """All of them."""
        return len(self._files)

    def example(self, bucket: BucketConfig, index: int, rng: np.random.Generator) -> Example:
        """A random crop of a file."""
        file = np.load(self._files[index])
        size = (bucket.num_frames, bucket.height, bucket.width)
        room = [have - want for have, want in zip(file["frames"].shape, size, strict=False)]
        if min(room) < 0:
            raise ValueError(f"{self._files[index]} is smaller than {size}")
        start = [rng.integers(x + 1) for x in room]
        crop = tuple(slice(x, x + length) for x, length in zip(start, size, strict=True))
        return Example(str(file["caption"]), float(file["frame_rate"]), file["frames"][crop])
