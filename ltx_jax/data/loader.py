"""Training batches, as a pure function of (seed, step), read ahead in threads or processes.

A step chooses its bucket, the bucket its condition pattern and the sources of its examples; each
source has a new order in every epoch (`order`). Nothing depends on the number of processes or
threads, so a run is resumed from its step count alone.
"""

import contextlib
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float16, Float32, UInt8

from ltx_jax.config import BucketConfig, ConditionPattern, DataConfig
from ltx_jax.data import order, workers
from ltx_jax.data.read_ahead import in_background, read_ahead
from ltx_jax.data.sources import (
    EMOJI,
    Encoding,
    Example,
    Source,
    StoredLatents,
    World,
    is_endless,
)

__all__ = ["Batch", "Loader", "StoredLatents", "open_source"]

_ATTEMPTS = 8  # to replace an example that cannot be read by one that can

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Batch:
    """The part of a step's batch that one process reads; all examples belong to one bucket."""

    bucket: BucketConfig
    pattern: ConditionPattern  # conditions of all videos in the batch; "none" for pictures
    captions: tuple[str, ...]
    frame_rate: Float32[np.ndarray, " b"]
    frames: UInt8[np.ndarray, "b t h w 3"] | None = None  # pixels; None if there are latents
    latents: StoredLatents | None = None  # None if there are pixels
    embeddings: tuple[Float16[np.ndarray, "_ c"], ...] | None = None  # of captions, unpadded
    # The entries of `Example.context` that all examples have.
    context: Mapping[str, Float32[np.ndarray, "b ..."]] = dataclasses.field(default_factory=dict)
    reference: UInt8[np.ndarray, "b t h2 w2 3"] | None = None  # pixels of the clips to follow
    mask: Bool[np.ndarray, "b t2 h3 w3"] | None = None  # as in `Example`


class Loader:
    """Reads the batches of one process.

    Args:
      cfg: sources, buckets and settings of reading.
      patterns: condition patterns of batches of videos, and their weights.
      seed: seed of the order and of all random choices.
      process_index: index of this process.
      process_count: number of processes; each reads an equal part of every batch.

    Attributes:
      plan: step -> `order.StepPlan`: its bucket, pattern and examples, over all processes.
      encoding: the networks that made the latents; None if batches contain pixels.
      replaced: number of examples that could not be read and were replaced by others.

    Raises:
      ValueError: if a source cannot be read, sources cannot be combined, no example fits a bucket,
        or a batch size is not a multiple of the number of processes.
    """

    def __init__(
        self,
        cfg: DataConfig,
        patterns: Sequence[tuple[ConditionPattern, float]],
        seed: int,
        *,
        process_index: int = 0,
        process_count: int = 1,
    ):
        for bucket in cfg.sizes:
            if bucket.batch_size % process_count:
                raise ValueError(
                    f"a batch of {bucket.batch_size} cannot be split over {process_count} processes"
                )
        self._cfg, self._patterns, self._seed = cfg, patterns, seed
        self._process = process_index, process_count
        self._sources = [open_source(source.path, cfg, seed) for source in cfg.sources]
        self.encoding = _common_encoding(cfg, self._sources)
        self._counts = [[source.count(bucket) for source in self._sources] for bucket in cfg.sizes]
        for bucket, counts in zip(cfg.sizes, self._counts, strict=True):
            if not any(count != 0 for count in counts):
                paths = ", ".join(source.path for source in cfg.sources)
                raise ValueError(
                    f"no example of {paths} fits the bucket {bucket.num_frames} x "
                    f"{bucket.height} x {bucket.width}"
                )
        plan = order.Order(cfg, self._counts, patterns, seed).plan
        self.plan = functools.lru_cache(cfg.prefetch + 8)(plan)  # for the steps being read
        self.replaced = 0
        self._lock = threading.Lock()

    def batch(self, step: int) -> Batch:
        """Reads the batch of a step, without reading ahead."""
        return self._stack(step, [self._example(step, row) for row in self._own_rows(step)])

    def batches(self, first: int, last: int) -> Generator[Batch, None, None]:
        """Yields the batches of the steps [first, last), reading ahead."""
        # Two batches are stacked in advance, so that a fast step does not wait for the stacking.
        return in_background(self._read_batches(first, last), ahead=2)

    def _read_batches(self, first: int, last: int) -> Generator[Batch, None, None]:
        if not self._cfg.processes:
            yield from self._read_by_threads(first, last)
            return
        cfg = self._cfg
        amount = dict(processes=cfg.processes, ahead=cfg.processes + cfg.prefetch)
        begin = functools.partial(_batch_reader, cfg, self._patterns, self._seed, *self._process)
        reader = workers.read_ahead_in_processes(begin, first, last, **amount)
        with contextlib.closing(reader) as batches:
            for batch, replaced in batches:
                self.replaced += replaced
                yield batch

    def _read_by_threads(self, first: int, last: int) -> Generator[Batch, None, None]:
        # Every step gets as many slots as the largest batch has rows; smaller batches leave some
        # empty.
        rows = max(bucket.batch_size for bucket in self._cfg.sizes) // self._process[1]

        def read(number: int) -> Example | tuple[()]:
            step, row = divmod(number, rows)
            own = self._own_rows(step)
            return self._example(step, own[row]) if row < len(own) else ()

        ahead = self._cfg.prefetch * rows
        numbers = first * rows, last * rows
        examples = read_ahead(read, *numbers, threads=self._cfg.threads, ahead=ahead)
        with contextlib.closing(examples):
            for step in range(first, last):
                slots = [next(examples) for _ in range(rows)]
                yield self._stack(step, [one for one in slots if isinstance(one, Example)])

    def _own_rows(self, step: int) -> range:
        """The rows of a step's batch that this process reads."""
        size = len(self.plan(step).rows)
        index, count = self._process
        return range(index * size // count, (index + 1) * size // count)

    def _example(self, step: int, row: int) -> Example:
        """Reads one row of a step's batch, or a replacement if it cannot be read."""
        plan = self.plan(step)
        source, index = plan.rows[row]
        bucket = self._cfg.sizes[plan.bucket]
        count = self._counts[plan.bucket][source]
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng([self._seed, 4, plan.bucket, plan.first + row, attempt])
            try:
                return self._sources[source].example(bucket, index, rng)
            except ValueError as error:
                reason = error
            with self._lock:
                self.replaced += 1
            _log.warning("replaced by another example: %s", reason)
            if count is not None:
                index = int(np.random.default_rng([self._seed, 5, source, index]).integers(count))
        raise ValueError(f"{_ATTEMPTS} examples in a row cannot be read; the last: {reason}")

    def _stack(self, step: int, examples: Sequence[Example]) -> Batch:
        plan = self.plan(step)
        return stack(self._cfg.sizes[plan.bucket], plan.pattern, examples)


def stack(bucket: BucketConfig, pattern: ConditionPattern, examples: Sequence[Example]) -> Batch:
    """Makes a batch of examples of one bucket."""
    first, contexts = examples[0], _each(examples, "context")
    names = [name for name in first.context if all(name in context for context in contexts)]
    return Batch(
        bucket,
        pattern,
        tuple(_each(examples, "caption")),
        np.array(_each(examples, "frame_rate"), np.float32),
        None if first.frames is None else np.stack(_each(examples, "frames")),
        None if first.latents is None else _stack_latents(_each(examples, "latents")),
        None if first.embedding is None else tuple(_each(examples, "embedding")),
        {name: np.stack([context[name] for context in contexts]) for name in names},
        None if first.reference is None else np.stack(_each(examples, "reference")),
        None if first.mask is None else np.stack(_each(examples, "mask")),
    )


def _batch_reader(
    cfg: DataConfig,
    patterns: Sequence[tuple[ConditionPattern, float]],
    seed: int,
    index: int,
    count: int,
) -> Callable[[int], tuple[Batch, int]]:
    """The function of a worker process: step -> its batch and the number of replaced examples."""
    loader = Loader(cfg, patterns, seed, process_index=index, process_count=count)

    def read(step: int) -> tuple[Batch, int]:
        before = loader.replaced
        return loader.batch(step), loader.replaced - before

    return read


def _each(items: Sequence[Any], name: str) -> list[Any]:
    return [getattr(item, name) for item in items]


def _stack_latents(latents: Sequence[StoredLatents]) -> StoredLatents:
    names = [field.name for field in dataclasses.fields(StoredLatents)]
    names = [name for name in names if getattr(latents[0], name) is not None]
    return StoredLatents(**{name: np.stack(_each(latents, name)) for name in names})


def _common_encoding(cfg: DataConfig, sources: Sequence[Source]) -> Encoding | None:
    """The networks that encoded the examples of all sources; None if all sources give pixels."""
    first = sources[0].encoding
    for source_cfg, source in zip(cfg.sources, sources, strict=True):
        other, paths = source.encoding, f"{cfg.sources[0].path} and {source_cfg.path}"
        if first is None or other is None:
            if first is not other:
                raise ValueError(
                    f"{paths} cannot be combined: one contains pixels, the other latents"
                )
        elif first.vae_hash != other.vae_hash:
            raise ValueError(
                f"{paths} cannot be combined: they were encoded by the VAEs {first.vae} "
                f"({first.vae_hash}) and {other.vae} ({other.vae_hash})"
            )
        elif first.text_encoder_id != other.text_encoder_id:
            raise ValueError(
                f"{paths} cannot be combined: their captions were encoded by {first.text_encoder} "
                f"({first.text_encoder_id}) and {other.text_encoder} ({other.text_encoder_id})"
            )
    return first


def open_source(path: str, cfg: DataConfig, seed: int) -> Source:
    """Opens a source of training examples by its name in a config.

    Args:
      path: "shapes" or "shapes:MOTIONS" (the procedural world), a data set, or a folder, table or
        archives of clips with captions (`listing`).
      cfg: sources, buckets and settings of reading.
      seed: seed of the procedural world.

    Raises:
      ValueError: if there is no such source, or none of its examples can be used.
    """
    source = _open_source(path, cfg, seed)
    if cfg.companions and source.encoding is None and is_endless(path):
        raise ValueError(
            f"{path} is rendered, and has no {' and no '.join(cfg.companions)}s: take a folder or "
            "a table of clips that have them"
        )
    if cfg.reference != "canny" or source.encoding is not None:
        return source
    from ltx_jax.data import references  # the preprocessors need OpenCV

    return references.Drawn(source, cfg)


def _open_source(path: str, cfg: DataConfig, seed: int) -> Source:
    if World.has(path):
        return World(path, cfg, seed)
    # These need PyAV and TFDS, which the procedural world does not.
    from ltx_jax.data import dataset, emoji, folder, inputs, latent_cache, listing, media

    if path.startswith(EMOJI):
        return emoji.Emoji(path, cfg, seed)
    kind = dataset.kind_of(path)
    if kind is None:
        needs = cfg.companions
        columns = listing.Columns(
            cfg.media_column, cfg.caption_column, cfg.reference_column, cfg.mask_column
        )
        clips, facts = folder.check_clips(folder.list_clips(path, columns, needs=needs), needs)

        def load(number: int) -> media.Files:
            clip = clips[number]
            further = {kind: inputs.loaded(getattr(clip.companions, kind)) for kind in needs}
            return media.Files(inputs.loaded(clip.place), clip.captions, **further)

        table = np.array(list(facts), media.FACTS)
        return media.Media(table, lambda number: str(clips[number].place), load, cfg)
    if kind == latent_cache.KIND:
        return latent_cache.LatentSource(path, cfg)
    return dataset.open_clips(path, cfg)
