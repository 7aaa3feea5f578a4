"""References that are drawn from the clips of a source."""

import dataclasses

import numpy as np

from ltx_jax.config import BucketConfig, DataConfig
from ltx_jax.data import pixels, preprocessors
from ltx_jax.data.sources import Encoding, Example, Source


def with_reference(example: Example, cfg: DataConfig) -> Example:
    """The example with the reference that the config draws from its pixels, if it draws one."""
    if cfg.reference != "canny" or example.frames is None:
        return example
    edges = preprocessors.canny(example.frames)
    return dataclasses.replace(
        example, reference=pixels.averaged(edges, cfg.reference_downscale_factor)
    )


class Drawn:
    """A source whose examples get references that are drawn from them.

    Args:
      source: the source.
      cfg: says what to draw.

    Raises:
      ValueError: if a package is missing.
    """

    def __init__(self, source: Source, cfg: DataConfig):
        preprocessors.preprocessor(cfg.reference)
        self._source, self._cfg = source, cfg

    @property
    def encoding(self) -> Encoding | None:
        """As in `Source`."""
        return self._source.encoding

    def count(self, bucket: BucketConfig) -> int | None:
        """As in `Source`."""
        return self._source.count(bucket)

    def example(self, bucket: BucketConfig, index: int, rng: np.random.Generator) -> Example:
        """As in `Source`."""
        return with_reference(self._source.example(bucket, index, rng), self._cfg)
