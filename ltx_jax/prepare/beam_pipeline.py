"""The Apache Beam pipeline from source files to a data set.

 sources -> examine -> duplicates -> score -> cut -> write -> one data set, one table

Stages exchange records only; each stage reads the pixels that it needs from the files. The result
of a stage depends only on its input and the settings and is cached on disk (`result_cache`), so
that a runner may execute any part again.
"""

import dataclasses
import hashlib
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import PCollection
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from ltx_jax.config.preparation import PrepareConfig
from ltx_jax.data import dataset, inputs, listing, media
from ltx_jax.prepare import (
    clip_table,
    clip_video,
    duplicates,
    input_files,
    scoring,
    worker_process,
)
from ltx_jax.prepare.examine import examine
from ltx_jax.prepare.records import ClipRecord, Reason
from ltx_jax.prepare.result_cache import ResultCache, cache_key, file_digest

_CHUNK = 16  # number of clips that are scored and encoded together
_VERSION = dataset.VERSION  # cached results of another version are not used

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PreparationPlan:
    """The settings of a run, which are the same on every worker.

    Attributes:
      cfg: settings of the stages.
      output: folder of the data set.
      work: folder of intermediate results.
      inputs: number of source files.
      inputs_key: hash of their paths, sizes, captions and rows of tables.
      shards: number of files of the data set.
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
        sources: Sequence[listing.Medium],
        output: str | os.PathLike,
        work: str | os.PathLike | None = None,
    ) -> "PreparationPlan":
        """Plans a run over `sources`; the default of `work` is a folder in `output`."""
        files = [
            [str(source.place), input_files.size(source.place), source.captions, source.row]
            for source in sources
        ]
        megabytes = sum(max(file[1], 0) for file in files) / 2**20
        return cls(
            cfg,
            os.fspath(output),
            os.fspath(Path(output) / "work" if work is None else work),
            len(files),
            cache_key(files),
            max(round(megabytes / cfg.store.shard_megabytes), 1),
        )

    @property
    def _settings(self) -> dict[str, Any]:
        """The settings that determine the data set; those of the latents do not."""
        settings = dataclasses.asdict(self.cfg)
        del settings["latents"]
        return settings

    @property
    def cache(self) -> ResultCache:
        """The cache of the stages' results."""
        return ResultCache(self.work)

    def open(self) -> dataset.DatasetWriter:
        """Opens the data set for writing; shards that exist are kept.

        Raises:
          ValueError: if the folder contains something else.
        """
        return dataset.DatasetWriter(
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
        """Path of the records of a shard's clips, kept and dropped."""
        run = cache_key(_VERSION, self._settings, self.inputs_key, self.shards)
        return Path(self.work) / "table" / f"{run}-{number:05}.jsonl"


def run(
    plan: PreparationPlan,
    sources: Sequence[listing.Medium],
    workers: int,
    options: Sequence[str],
) -> None:
    """Runs the pipeline until every shard of the data set is written.

    Args:
      plan: the settings.
      sources: the source files.
      workers: number of processes, unless the options name a runner.
      options: command-line options of Beam: `--runner` and the runner's own.

    Raises:
      ValueError: if a file cannot be written.
    """
    runner = None
    if not any(option.partition("=")[0] == "--runner" for option in options):
        runner, options = _local_runner(workers), [*options, f"--direct_num_workers={workers}"]
    try:
        with beam.Pipeline(runner, options=PipelineOptions(list(options))) as p:
            build(p, plan, sources)
    except RuntimeError as error:
        # The error of another process arrives as the text of its traceback.
        reason = re.fullmatch("(ValueError|OSError): (.+)", str(error).strip().splitlines()[-1])
        if reason is None:
            raise
        raise ValueError(reason[2]) from error


def _local_runner(workers: int) -> FnApiRunner:
    """The runner on this machine, by its class: Beam's DirectRunner looks for another one first."""
    if workers == 1:
        return FnApiRunner()
    # It warns of processes that were not started by `direct_running_mode`.
    logging.getLogger(fn_runner.__name__).setLevel(logging.ERROR)
    command = shlex.join([sys.executable, "-m", worker_process.__name__])
    return FnApiRunner(SubprocessSDKEnvironment.from_command_string(command))


def build(p: beam.Pipeline, plan: PreparationPlan, sources: Sequence[listing.Medium]) -> None:
    """Adds the stages to a pipeline."""
    clips = (
        p
        | "sources" >> beam.Create(list(sources), reshuffle=False)
        | "spread sources" >> beam.Reshuffle()
        | "examine" >> beam.Map(_examine, plan)
    )
    duplicate_names = _duplicates(clips, plan) if plan.cfg.duplicates.drop else p | beam.Create([])
    _ = (
        {"clips": clips, "duplicates": duplicate_names}
        | "by source" >> beam.CoGroupByKey()
        | "chunks" >> beam.FlatMap(_chunks)
        | "spread chunks" >> beam.Reshuffle()
        | "score" >> beam.Map(scoring.score_clips, plan.cfg, plan.cache)
        | "cut" >> beam.FlatMap(_encode_clips, plan)
        | "by shard" >> beam.GroupByKey()
        | "write" >> beam.Map(_write_shard, plan)
    )


def _examine(medium: listing.Medium, plan: PreparationPlan) -> tuple[str, list[ClipRecord]]:
    """Examines a source; returns (path, clips)."""
    cfg, name = plan.cfg, str(medium.place)
    source = ClipRecord.of(medium.place, medium.row)
    if not medium.is_medium:
        return name, [source.drop(Reason.FILE, medium.problem)]
    try:
        file = source.load()
        if isinstance(file, inputs.Stored):
            digest = hashlib.sha256(file.content).hexdigest()
        else:
            if not os.path.isdir(name):  # a folder is among the sources if it cannot be read
                inputs.check_regular(name)
            digest = file_digest(name)
    except OSError as error:
        reason = error.strerror or str(error)
        return name, [source.drop(Reason.FILE, f"it cannot be read: {reason}")]
    except ValueError as error:
        reason = str(error).replace(f"no file {name}", "no such file").replace(name, "the file")
        return name, [source.drop(Reason.FILE, reason)]
    settings = [dataclasses.asdict(cfg.shots), cfg.crop_bars, cfg.min_motion]
    settings += [cfg.store.min_side, cfg.store.min_frame_rate, cfg.store.max_frame_rate]
    key = cache_key("examine", _VERSION, settings, digest)
    records = plan.cache.json(
        "examine", key, lambda: [clip.to_json() for clip in examine(file, cfg)]
    )
    own = {"source": name, "part": source.part, "row": source.row, "digest": digest}
    clips = [dataclasses.replace(ClipRecord.from_json(clip), **own) for clip in records]
    if medium.captions:
        captions = tuple(("file", caption) for caption in medium.captions)
        clips = [dataclasses.replace(clip, captions=captions) for clip in clips]
    elif not cfg.captions.model:
        problem = medium.problem.replace(os.path.join(os.path.dirname(name), ""), "")
        clips = [clip.drop(Reason.CAPTION, problem) for clip in clips]
    return name, clips


def _duplicates(clips: PCollection, plan: PreparationPlan) -> Any:
    """Finds duplicates: (source, (name of a clip to drop, name of the clip that is kept))."""
    return (
        clips
        | "clips left" >> beam.FlatMap(_undropped)
        | "bands" >> beam.FlatMap(duplicates.bands)
        | "by band" >> beam.GroupByKey()
        | "pairs" >> beam.FlatMap(_pairs, plan.cfg.duplicates.max_distance)
        | "group" >> beam.CombineGlobally(_GroupDuplicates()).without_defaults()
        | "duplicates by source" >> beam.FlatMap(_by_source)
    )


def _undropped(examined: tuple[str, list[ClipRecord]]) -> Iterator[ClipRecord]:
    return (clip for clip in examined[1] if not clip.reason)


def _pairs(
    band: tuple[str, Iterable[ClipRecord]], distance: float
) -> Iterator[tuple[ClipRecord, ClipRecord]]:
    return duplicates.pairs(band[1], distance)


class _GroupDuplicates(beam.CombineFn):
    """Groups duplicates in one place; there are far fewer pairs than clips."""

    def create_accumulator(self) -> set[tuple[ClipRecord, ClipRecord]]:
        return set()

    def add_input(self, mutable_accumulator: Any, element: Any) -> Any:
        mutable_accumulator.add(element)
        return mutable_accumulator

    def merge_accumulators(self, accumulators: Any) -> Any:
        return set().union(*accumulators)

    def extract_output(self, accumulator: Any) -> dict[str, str]:
        return duplicates.groups(accumulator)


def _by_source(groups: dict[str, str]) -> Iterator[tuple[str, tuple[str, str]]]:
    for name, kept_name in groups.items():
        yield name.rpartition("#")[0], (name, kept_name)


def _chunks(grouped: tuple[str, dict[str, Iterable]]) -> Iterator[list[ClipRecord]]:
    """Drops duplicates, and yields a source's clips in chunks."""
    duplicate_of = dict(grouped[1]["duplicates"])
    clips = [
        clip.drop(Reason.DUPLICATE, f"of {duplicate_of[clip.name]}")
        if clip.name in duplicate_of
        else clip
        for clip_list in grouped[1]["clips"]
        for clip in clip_list
    ]
    for first in range(0, len(clips), _CHUNK):
        yield clips[first : first + _CHUNK]


def _encode_clips(
    chunk: list[ClipRecord], plan: PreparationPlan
) -> Iterator[tuple[int, ClipRecord]]:
    """Encodes the clips of a chunk that are kept, and assigns all of its clips to shards."""
    kept_clips = [clip for clip in chunk if not clip.reason]
    encoded: dict[str, ClipRecord] = {}
    if kept_clips:
        store = dataclasses.asdict(plan.cfg.store)
        file = plan.cache.file(
            "cut",
            cache_key("cut", _VERSION, store, [clip.content for clip in kept_clips]),
            lambda path: clip_video.write_clips(path, kept_clips, plan.cfg.store),
        )
        for place, clip in enumerate(kept_clips):
            encoded[clip.name] = dataclasses.replace(clip, file=os.fspath(file), place=place)
    for clip in chunk:
        # A hash assigns shards at random, so that each file mixes clips of many sources.
        number = int.from_bytes(hashlib.sha256(clip.name.encode()).digest()[:8], "big")
        yield number % plan.shards, encoded.get(clip.name, clip)


def _write_shard(shard: tuple[int, Iterable[ClipRecord]], plan: PreparationPlan) -> None:
    """Writes a shard of the data set, and the records of its clips, kept and dropped."""
    number, clips = shard
    ordered = sorted(clips, key=lambda clip: (clip.source, clip.number))
    clip_table.write(plan.table_part(number), ordered)
    shards = plan.open()
    if not shards.has(number):
        shards.write(number, (_dataset_row(clip) for clip in ordered if not clip.reason))
        _log.info("shard %d of %d is written", number + 1, plan.shards)


def _dataset_row(clip: ClipRecord) -> tuple[dict[str, Any], tuple]:
    captions = [text for _, text in clip.captions]
    return dataset.clip_row(clip_video.read_clip(clip), captions, provenance(clip))


def provenance(clip: ClipRecord) -> dict[str, Any]:
    """The JSON that is stored with a clip: its source, time, crop, scores, hashes and captions."""
    excluded = ("steady", "hashes", "captions", "reason", "detail", "file", "place", "part")
    fields = {k: v for k, v in dataclasses.asdict(clip).items() if k not in excluded}
    return {
        **fields,
        "row": json.loads(clip.row),
        "hashes": [f"{value:016x}" for value in clip.hashes],
        "captions": [list(caption) for caption in clip.captions],
    }


def clips(plan: PreparationPlan) -> Iterator[ClipRecord]:
    """Yields all clips of a run, kept and dropped."""
    for number in range(plan.shards):
        yield from clip_table.read(plan.table_part(number))


def finish(plan: PreparationPlan) -> None:
    """Completes the data set once all shards are written.

    Raises:
      ValueError: if all clips were dropped.
    """
    shards = plan.open()
    for number in range(plan.shards):
        if not shards.has(number):  # no clip was assigned to it
            shards.write(number, [])
    shards.finish(plan.shards)
