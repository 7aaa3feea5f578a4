"""The Beam pipeline: sources to clips, clips to a data set. Between its stages go records alone.

 sources -> examine -> duplicates -> judge -> cut -> write -> one data set, one table

Pixels are read where they are needed and stay there, results lie on a shelf (`shelf`), so that any
runner may do any part twice. What a stage gives depends on its input and the settings alone.
"""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import PCollection

from ltx_jax.config.preparation import PrepareConfig
from ltx_jax.data import dataset, media
from ltx_jax.prepare import cut, duplicates, judging, sources, table
from ltx_jax.prepare.examine import examine
from ltx_jax.prepare.records import Clip, Reason
from ltx_jax.prepare.shelf import Shelf, digest, key

_CHUNK = 16  # clips that are judged and cut at a time
_VERSION = 2  # of what the stages do: results of another one are not taken from the shelf

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run does; the same on every worker.

    Attributes:
      cfg: settings.
      output: the data set's folder.
      work: the shelf's folder.
      inputs: how many sources there are, and
      inputs_key: which.
      shards: of the data set.
    """

    cfg: PrepareConfig
    output: str
    work: str
    inputs: int
    inputs_key: str
    shards: int

    @classmethod
    def make(
        cls,
        cfg: PrepareConfig,
        paths: Sequence[str],
        output: str | os.PathLike,
        work: str | os.PathLike | None = None,
    ) -> "Plan":
        """The plan for some sources; intermediate results go into the output without `work`."""
        listed = [[path, sources.size(path)] for path in paths]
        megabytes = sum(max(size, 0) for _, size in listed) / 2**20
        return cls(
            cfg,
            os.fspath(output),
            os.fspath(Path(output) / "work" if work is None else work),
            len(listed),
            key(listed),
            max(round(megabytes / cfg.store.shard_megabytes), 1),
        )

    @property
    def _settings(self) -> dict[str, Any]:
        """What decides the set: not what is made of it afterwards."""
        settings = dataclasses.asdict(self.cfg)
        del settings["latents"]
        return settings

    @property
    def shelf(self) -> Shelf:
        """Where results of stages lie."""
        return Shelf(self.work)

    def open(self) -> dataset.Shards:
        """The data set, to go on writing it.

        Raises:
          ValueError: if the folder holds something else.
        """
        return dataset.Shards(
            self.output,
            dataset.CLIPS,
            dataset.clip_features(),
            media.FACTS,
            {
                "inputs": self.inputs,
                "inputs_key": self.inputs_key,
                "settings": self._settings,
                "shards": self.shards,
                "version": _VERSION,
            },
        )

    def table_part(self, number: int) -> Path:
        """Where the records of a shard's clips lie, kept and dropped."""
        run = key(_VERSION, self._settings, self.inputs_key, self.shards)
        return Path(self.work) / "table" / f"{run}-{number:05}.jsonl"


def run(plan: Plan, paths: Sequence[str], options: Sequence[str]) -> None:
    """Runs the pipeline until every shard of the data set is written.

    Args:
      plan: what to do, with
      paths: the sources.
      options: of Beam: `--runner` and its own.
    """
    with beam.Pipeline(options=PipelineOptions(list(options))) as p:
        build(p, plan, paths)


def build(p: beam.Pipeline, plan: Plan, paths: Sequence[str]) -> None:
    """Adds the stages to a pipeline."""
    found = (
        p
        | "sources" >> beam.Create(list(paths), reshuffle=False)
        | "spread sources" >> beam.Reshuffle()
        | "examine" >> beam.Map(_examine, plan)
    )
    doubles = _duplicates(found, plan) if plan.cfg.duplicates.drop else p | beam.Create([])
    _ = (
        {"clips": found, "doubles": doubles}
        | "by source" >> beam.CoGroupByKey()
        | "chunks" >> beam.FlatMap(_chunks)
        | "spread chunks" >> beam.Reshuffle()
        | "judge" >> beam.Map(judging.judge, plan.cfg, plan.shelf)
        | "cut" >> beam.FlatMap(_cut, plan)
        | "by shard" >> beam.GroupByKey()
        | "write" >> beam.Map(_write, plan)
    )


def _examine(path: str, plan: Plan) -> tuple[str, list[Clip]]:
    """A source's clips, under its path."""
    cfg = plan.cfg
    try:
        content = digest(path)
    except OSError as error:
        reason = error.strerror or str(error)
        return path, [Clip(source=path).drop(Reason.FILE, f"it cannot be read: {reason}")]
    settings = [dataclasses.asdict(cfg.shots), cfg.crop_bars, cfg.min_motion]
    settings += [cfg.store.min_side, cfg.store.min_frame_rate, cfg.store.max_frame_rate]
    name = key("examine", _VERSION, settings, content)
    found = plan.shelf.json(
        "examine", name, lambda: [clip.to_json() for clip in examine(path, cfg)]
    )
    clips = [
        dataclasses.replace(Clip.from_json(clip), source=path, digest=content) for clip in found
    ]
    caption, problem = sources.caption(path)
    if caption:
        clips = [dataclasses.replace(clip, captions=(("file", caption),)) for clip in clips]
    elif not cfg.captions.model:
        clips = [clip.drop(Reason.CAPTION, problem) for clip in clips]
    return path, clips


def _duplicates(found: PCollection, plan: Plan) -> Any:
    """(source, (name of a clip, name of the one that is kept in its place))."""
    return (
        found
        | "hashed" >> beam.FlatMap(_hashed)
        | "bands" >> beam.FlatMap(duplicates.bands)
        | "by band" >> beam.GroupByKey()
        | "pairs" >> beam.FlatMap(_pairs, plan.cfg.duplicates.max_distance)
        | "group" >> beam.CombineGlobally(_Groups()).without_defaults()
        | "doubles" >> beam.FlatMap(_doubles)
    )


def _hashed(found: tuple[str, list[Clip]]) -> Iterator[Clip]:
    return (clip for clip in found[1] if not clip.reason)


def _pairs(band: tuple[str, Iterable[Clip]], distance: float) -> Iterator[tuple[Clip, Clip]]:
    return duplicates.pairs(band[1], distance)


class _Groups(beam.CombineFn):
    """Collects the pairs, which are few beside the clips, and groups them in one place."""

    def create_accumulator(self) -> set[tuple[Clip, Clip]]:
        return set()

    def add_input(self, mutable_accumulator: Any, element: Any) -> Any:
        mutable_accumulator.add(element)
        return mutable_accumulator

    def merge_accumulators(self, accumulators: Any) -> Any:
        return set().union(*accumulators)

    def extract_output(self, accumulator: Any) -> dict[str, str]:
        return duplicates.groups(accumulator)


def _doubles(groups: dict[str, str]) -> Iterator[tuple[str, tuple[str, str]]]:
    for name, kept in groups.items():
        yield name.rpartition("#")[0], (name, kept)


def _chunks(grouped: tuple[str, dict[str, Iterable]]) -> Iterator[list[Clip]]:
    """A source's clips, a few at a time; duplicates dropped."""
    doubles = dict(grouped[1]["doubles"])
    clips = [
        clip.drop(Reason.DUPLICATE, f"of {doubles[clip.name]}") if clip.name in doubles else clip
        for found in grouped[1]["clips"]
        for clip in found
    ]
    for first in range(0, len(clips), _CHUNK):
        yield clips[first : first + _CHUNK]


def _cut(chunk: list[Clip], plan: Plan) -> Iterator[tuple[int, Clip]]:
    """Stores the clips of a chunk that are kept, and deals all of them out to the shards."""
    kept = [clip for clip in chunk if not clip.reason]
    placed: dict[str, Clip] = {}
    if kept:
        store = dataclasses.asdict(plan.cfg.store)
        file = plan.shelf.file(
            "cut",
            key("cut", _VERSION, store, [clip.content for clip in kept]),
            lambda path: cut.write_clips(path, kept, plan.cfg.store),
        )
        for place, clip in enumerate(kept):
            placed[clip.name] = dataclasses.replace(clip, file=os.fspath(file), place=place)
    for clip in chunk:
        # By chance, so that the examples of a file are as mixed as those of the whole.
        number = int.from_bytes(hashlib.sha256(clip.name.encode()).digest()[:8], "big")
        yield number % plan.shards, placed.get(clip.name, clip)


def _write(shard: tuple[int, Iterable[Clip]], plan: Plan) -> None:
    """Writes a shard of the data set, and what is known of its clips and of the dropped ones."""
    number, clips = shard
    ordered = sorted(clips, key=lambda clip: (clip.source, clip.number))
    table.write(plan.table_part(number), ordered)
    made = plan.open()
    if not made.has(number):
        made.write(number, (_row(clip) for clip in ordered if not clip.reason))
        _log.info("shard %d of %d is written", number + 1, plan.shards)


def _row(clip: Clip) -> tuple[dict[str, Any], tuple]:
    captions = [text for _, text in clip.captions]
    return dataset.clip_row(cut.read_clip(clip), captions, provenance(clip))


def provenance(clip: Clip) -> dict[str, Any]:
    """What is stored with a clip: where it comes from, and all that was found out about it."""
    left_out = ("steady", "hashes", "captions", "reason", "detail", "file", "place")
    known = {k: v for k, v in dataclasses.asdict(clip).items() if k not in left_out}
    return {
        **known,
        "hashes": [f"{value:016x}" for value in clip.hashes],
        "captions": [list(caption) for caption in clip.captions],
    }


def clips(plan: Plan) -> Iterator[Clip]:
    """All clips of a run, kept and dropped, one by one."""
    for number in range(plan.shards):
        yield from table.read(plan.table_part(number))


def finish(plan: Plan) -> None:
    """Makes the written shards one data set.

    Raises:
      ValueError: if all clips were dropped.
    """
    made = plan.open()
    for number in range(plan.shards):
        if not made.has(number):  # by chance nothing fell to it
            made.write(number, [])
    made.finish(plan.shards)
