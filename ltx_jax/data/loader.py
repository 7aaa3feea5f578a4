"""Training batches: what a step sees, as a pure function of (seed, step), read ahead in threads
or processes.

A step draws its bucket, the bucket its pattern and its examples' sources, each source an order of
its own in every epoch. Nothing depends on how many processes or threads there are, so that a run
goes on from its step count alone.
"""

import contextlib
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, UInt8

from ltx_jax.config import BucketConfig, ConditionPattern, DataConfig
from ltx_jax.data import order, workers
from ltx_jax.data.read_ahead import in_background, read_ahead
from ltx_jax.data.sources import Encoding, Example, Source, StoredLatents, World

__all__ = ["Batch", "Loader", "StoredLatents", "open_source"]

_ATTEMPTS = 8  # to find an example that can be read in place of one that cannot

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Batch:
    """One process's share of one step's examples, all of one bucket."""

    bucket: BucketConfig
    pattern: ConditionPattern  # what the whole batch is given; "none" for pictures
    captions: tuple[str, ...]
    frame_rate: Float32[np.ndarray, " b"]
    frames: UInt8[np.ndarray, "b t h w 3"] | None = None  # pixels, or
    latents: StoredLatents | None = None
    embeddings: tuple[Float16[np.ndarray, "_ c"], ...] | None = None  # of captions, unpadded


class Loader:
    """The batches of one process.

    Args:
      cfg: the data.
      patterns: what batches of videos are given, and in which shares.
      seed: of the order and of all that is left to chance.
      process_index: of this process.
      process_count: of all; each reads an equal share of every batch.

    Attributes:
      plan: step -> what it sees, over all processes.
      encoding: what made the latents; None where batches are pixels.
      replaced: how many examples could not be read and had another put in their place.

    Raises:
      ValueError: if a source cannot be used, sources do not go together, nothing fits a bucket, or
        a batch cannot be shared.
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
                    f"a batch of {bucket.batch_size} cannot be shared by {process_count} processes"
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
                    f"nothing of {paths} fits the bucket {bucket.num_frames} x {bucket.height} x "
                    f"{bucket.width}"
                )
        plan = order.Order(cfg, self._counts, patterns, seed).plan
        self.plan = functools.lru_cache(cfg.prefetch + 8)(plan)  # of the steps in flight
        self.replaced = 0
        self._lock = threading.Lock()

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        return self._stack(step, [self._example(step, row) for row in self._share(step)])

    def batches(self, first: int, last: int) -> Generator[Batch, None, None]:
        """The batches of the steps [first, last), read ahead."""
        # Two are put together in advance, so that a quick step need not wait for that either.
        return in_background(self._made(first, last), ahead=2)

    def _made(self, first: int, last: int) -> Generator[Batch, None, None]:
        if not self._cfg.processes:
            yield from self._made_by_threads(first, last)
            return
        cfg = self._cfg
        amount = dict(processes=cfg.processes, ahead=cfg.processes + cfg.prefetch)
        begin = functools.partial(_counting, cfg, self._patterns, self._seed, *self._process)
        with contextlib.closing(workers.read_ahead(begin, first, last, **amount)) as made:
            for batch, replaced in made:
                self.replaced += replaced
                yield batch

    def _made_by_threads(self, first: int, last: int) -> Generator[Batch, None, None]:
        # Steps are taken to be as large as the largest bucket's.
        rows = max(bucket.batch_size for bucket in self._cfg.sizes) // self._process[1]

        def read(number: int) -> Example | tuple[()]:
            step, row = divmod(number, rows)
            share = self._share(step)
            return self._example(step, share[row]) if row < len(share) else ()

        ahead = self._cfg.prefetch * rows
        numbers = first * rows, last * rows
        examples = read_ahead(read, *numbers, threads=self._cfg.threads, ahead=ahead)
        with contextlib.closing(examples):
            for step in range(first, last):
                made = [next(examples) for _ in range(rows)]
                yield self._stack(step, [one for one in made if isinstance(one, Example)])

    def _share(self, step: int) -> range:
        """This process's rows of a step's batch."""
        size = len(self.plan(step).rows)
        index, count = self._process
        return range(index * size // count, (index + 1) * size // count)

    def _example(self, step: int, row: int) -> Example:
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
        first = examples[0]
        return Batch(
            self._cfg.sizes[plan.bucket],
            plan.pattern,
            tuple(_each(examples, "caption")),
            np.array(_each(examples, "frame_rate"), np.float32),
            None if first.frames is None else np.stack(_each(examples, "frames")),
            None if first.latents is None else _stacked(_each(examples, "latents")),
            None if first.embedding is None else tuple(_each(examples, "embedding")),
        )


def _counting(
    cfg: DataConfig,
    patterns: Sequence[tuple[ConditionPattern, float]],
    seed: int,
    index: int,
    count: int,
) -> Callable[[int], tuple[Batch, int]]:
    """A loader of its own: step -> its batch, and how many of its examples had to be replaced."""
    loader = Loader(cfg, patterns, seed, process_index=index, process_count=count)

    def made(step: int) -> tuple[Batch, int]:
        before = loader.replaced
        return loader.batch(step), loader.replaced - before

    return made


def _each(items: Sequence[Any], name: str) -> list[Any]:
    return [getattr(item, name) for item in items]


def _stacked(latents: Sequence[StoredLatents]) -> StoredLatents:
    names = [field.name for field in dataclasses.fields(StoredLatents)]
    return StoredLatents(**{name: np.stack(_each(latents, name)) for name in names})


def _common_encoding(cfg: DataConfig, sources: Sequence[Source]) -> Encoding | None:
    """What made the latents of all sources; None if all of them give pixels."""
    first = sources[0].encoding
    for named, source in zip(cfg.sources, sources, strict=True):
        other, both = source.encoding, f"{cfg.sources[0].path} and {named.path}"
        if first is None or other is None:
            if first is not other:
                raise ValueError(f"{both} do not go together: one holds pixels, one latents")
        elif first.vae_hash != other.vae_hash:
            raise ValueError(
                f"{both} do not go together: they were encoded by the VAEs {first.vae} "
                f"({first.vae_hash}) and {other.vae} ({other.vae_hash})"
            )
        elif first.text_encoder_id != other.text_encoder_id:
            raise ValueError(
                f"{both} do not go together: their captions were encoded by {first.text_encoder} "
                f"({first.text_encoder_id}) and {other.text_encoder} ({other.text_encoder_id})"
            )
    return first


def open_source(path: str, cfg: DataConfig, seed: int) -> Source:
    """A source by its name in a config.

    Raises:
      ValueError: if there is no such source, or none of its examples can be used.
    """
    if World.has(path):
        return World(path, cfg, seed)
    # With PyAV and TFDS, which the world does without.
    from ltx_jax.data import dataset, folder, latent_cache, media

    kind = dataset.kind_of(path)
    if kind is None:
        clips, facts = folder.check_clips(folder.list_clips(path))
        return media.Media(
            np.array(list(facts), media.FACTS),
            lambda number: str(clips[number].path),
            lambda number: (clips[number].path, (clips[number].caption,)),
            cfg,
        )
    if kind == latent_cache.KIND:
        return latent_cache.Latents(path, cfg)
    return dataset.open_clips(path, cfg)
