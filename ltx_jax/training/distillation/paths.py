"""Samples a teacher's guided paths from noise to data, once, and stores them as a data set.

The conditions of a path are drawn as in the teacher's own training. Its states are stored at the
times of the student's steps. The command is `ltx-encode`.
"""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32

from ltx_jax.checkpoints import lock
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import DistillationConfig, SchedulerConfig, TrainStudent
from ltx_jax.data import dataset, path_cache
from ltx_jax.data.loader import Batch, Loader
from ltx_jax.data.path_cache import Path
from ltx_jax.diffusion import conditioning, flow, guidance, sampler
from ltx_jax.diffusion.noise import KeyNoise
from ltx_jax.diffusion.sampler import Inputs, Progress
from ltx_jax.runtime import sharding
from ltx_jax.runtime.compiled import Programs
from ltx_jax.training import batches
from ltx_jax.training.transformer.loss import FlowModel, condition_times, encoded_conditions
from ltx_jax.training.transformer.stage import TransformerStage

# Settings that matter to the student alone, not to the paths.
_OF_STUDENT = (
    *("paths", "target", "held_out"),
    *("method", "tangent", "tangent_warmup", "fake_updates"),
)
_NEAR = 1e-3  # a time of the teacher's schedule this near to one of the student's is left out


def teacher_times(
    cfg: DistillationConfig, scheduler: SchedulerConfig, tokens: int
) -> Float32[np.ndarray, " s"]:
    """The times of the teacher's steps: those of its schedule, and those of the student."""
    own = flow.schedule(scheduler, cfg.teacher_steps, tokens)
    student = np.asarray(cfg.times, np.float32)
    apart = np.abs(own[:, None] - student).min(axis=1) > _NEAR
    return np.sort(np.concatenate([own[apart], student]))[::-1].copy()


def described(cfg: TrainStudent) -> dict[str, Any]:
    """The settings that determine the paths, as the description of the data set has them."""
    fields = dataclasses.asdict(cfg.distillation)
    for name in _OF_STUDENT:
        del fields[name]
    return {
        "distillation": fields,
        "scheduler": dataclasses.asdict(cfg.scheduler),
        "flow": dataclasses.asdict(cfg.flow),
        "buckets": [dataclasses.asdict(size) for size in cfg.data.sizes],
        "seed": cfg.run.seed,
    }


def check_described(cfg: TrainStudent, description: Mapping[str, Any]) -> None:
    """Checks that paths were made for a student: its teacher, times, guidance and sizes.

    Batch size, seed and shares of the conditions may differ.

    Args:
      cfg: the configuration of the student.
      description: that of the data set.

    Raises:
      ValueError: if they were not; names the first setting that differs.
    """
    again = "make the paths again (ltx-encode), or set it to the former"
    before, now = description["distillation"], json.loads(json.dumps(described(cfg)))
    for name, value in now["distillation"].items():
        if before.get(name) != value:
            raise ValueError(
                f"the paths in {cfg.distillation.paths} were made with distillation.{name} = "
                f"{before.get(name)!r}, and this run has {value!r}: {again}"
            )
    sizes = [_size(bucket) for bucket in description["buckets"]]
    if sizes != [_size(bucket) for bucket in now["buckets"]]:
        raise ValueError(
            f"the paths in {cfg.distillation.paths} are of clips of (frames, height, width) "
            f"{sizes}, and the buckets of this run are others: {again}"
        )


def _size(bucket: Mapping[str, Any]) -> tuple[int, int, int]:
    return bucket["num_frames"], bucket["height"], bucket["width"]


class _Start(NamedTuple):
    """What the sampling loop of a batch starts from, on the devices."""

    prepared: conditioning.Prepared
    context: Any
    negative: Any
    noise: KeyNoise


class PathSampler:
    """Samples the paths of a teacher; those of a step depend on the seed and the step alone.

    Args:
      cfg: the configuration of the student.
      stage: the second stage, with its data and its VAE.
      params: the parameters of the teacher's networks.
    """

    def __init__(self, cfg: TrainStudent, stage: TransformerStage, params: Any):
        self._cfg, self._stage, self._params = cfg, stage, params
        self._programs = Programs(stage.compiler_options())
        self._start = jax.jit(functools.partial(_start, stage.model, cfg))

    def paths(self, step: int) -> list[Path]:
        """The paths of the examples of a step of the data.

        Raises:
          ValueError: if a state is NaN, infinite or too large for float16.
        """
        [(batch, inputs)] = self._stage.loaded(step, step + 1)
        every, mesh = np.ones(len(batch.captions), bool), self._stage.mesh
        place = functools.partial(batches.split_over, mesh)
        captions = self._stage.model.captions
        empty = captions.read(batch.captions, batch.embeddings, every, place)
        key = jax.random.fold_in(jax.random.key(self._cfg.run.seed), step)
        with sharding.use_mesh(mesh):
            start = self._programs(self._start, self._params, inputs, empty, key)
            states = self._states(start, inputs["video"]["mean"].shape[1:4])
        with np.errstate(over="ignore"):  # found below
            half = np.stack(states, axis=1).astype(np.float16)
        if not np.isfinite(half).all():
            raise ValueError(
                f"the teacher {self._cfg.distillation.teacher} makes states that float16 cannot "
                f"hold (NaN, infinity, or above 65504), in batch {step}"
            )
        return _rows(batch, half, start.prepared)

    def _states(self, start: _Start, grid: Sequence[int]) -> list[np.ndarray]:
        """The tokens at the times of the student, and at time 0."""
        cfg, model = self._cfg, self._stage.model
        options = cfg.distillation.teacher_sampling
        times = teacher_times(cfg.distillation, cfg.scheduler, math.prod(grid))
        schedule = guidance.guidance_schedule(options, times, cfg.model.num_layers)
        padded_times, scales = sampler.per_step(times, schedule)
        inputs = Inputs(
            start=start.prepared.tokens,
            strength=start.prepared.strength,
            context=start.context,
            negative=start.negative if schedule.needs_negative else None,
            times=padded_times,
            scales=scales,
            image_noise=None,
            noise=start.noise,
        )
        stops = np.array([*cfg.distillation.times, 0.0], np.float32)
        wanted = np.isin(np.append(times, np.float32(0)), stops)
        states = [np.asarray(start.prepared.tokens)]

        def keep(progress: Progress) -> None:
            if wanted[progress.step]:
                states.append(np.asarray(progress.tokens))

        sampler.sample(
            model.denoiser,
            model.denoiser.prepare(self._params["transformer"]),
            inputs,
            schedule.branches,
            sampler.mode_of(options),
            callback=keep,
            call=self._programs,
        )
        return states


def _start(
    model: FlowModel, cfg: TrainStudent, params: Any, inputs: Any, empty: Any, key: Array
) -> _Start:
    """Draws latents, noise and the times of conditions, and lays out the tokens."""
    count = len(inputs["conditions"].items)
    noise_key, condition_key, video_key, *item_keys = jax.random.split(key, 3 + count)
    latents, conditions = model.draw_latents(inputs, video_key, item_keys)
    b = latents.shape[0]
    strength = 1 - condition_times(condition_key, jnp.ones(b), cfg.flow)
    noise = KeyNoise(jax.random.split(noise_key, b))
    encoded = encoded_conditions(latents, conditions, strength)
    fresh = noise.draw("initial", latents.shape)
    geometry = dataclasses.asdict(model.geometry)
    prepared = conditioning.prepare(fresh, encoded, noise, **geometry)
    coords = jnp.broadcast_to(prepared.coords, (b, *prepared.coords.shape[-2:]))
    tokens = sharding.constrain(prepared.tokens, "batch", "token", None)
    unknown = jax.tree.map(jnp.zeros_like, inputs["context"])
    return _Start(
        dataclasses.replace(prepared, tokens=tokens, coords=coords),
        model.context(params, inputs, coords),
        model.context(params, {**inputs, "captions": empty, "context": unknown}, coords),
        noise,
    )


def _rows(batch: Batch, states: np.ndarray, prepared: conditioning.Prepared) -> list[Path]:
    b = len(states)
    own_times = np.ones((b, 1), np.float32)
    if prepared.strength is not None:
        own_times = own_times - np.asarray(prepared.strength)
    coords = np.asarray(prepared.coords, np.int32)
    embeddings = batch.embeddings or [None] * b
    return [
        Path(
            batch.captions[i],
            float(batch.frame_rate[i]),
            states[i],
            own_times[i],
            coords[i],
            embeddings[i],
            {name: values[i] for name, values in batch.context.items()},
        )
        for i in range(b)
    ]


def sample_paths(
    cfg: TrainStudent,
    output: str | FilePath,
    *,
    examples: int,
    shard_size: int = 256,
    worker: tuple[int, int] = (0, 1),
    report: Callable[[str], None] = print,
) -> bool:
    """Samples the paths of a student's config, and stores them.

    Args:
      cfg: names the teacher, the data and the times.
      output: a folder that is new, empty, or from an earlier call with the same settings.
      examples: number of paths; the last batch is sampled whole.
      shard_size: number of paths per file, at least.
      worker: index of this process, and how many there are. Each writes a part of the files;
        process 0 also writes the index, when all files exist.
      report: called with each line of the log.

    Returns:
      Whether the data set is complete.

    Raises:
      ValueError: if teacher, data and settings do not fit each other.
    """
    mesh = sharding.make_mesh(cfg.mesh, jax.local_devices())  # workers do not communicate
    teacher = load_teacher(cfg, mesh)
    loader = batches.open_loader(cfg, mesh, cfg.flow.patterns)
    stage = TransformerStage.open(cfg, mesh, loader=loader)
    paths = PathSampler(cfg, stage, stage.initial_weights(teacher).params)
    shards = _shards(loader, examples, shard_size)
    encoding = loader.encoding
    width = None if encoding is None or encoding.empty is None else encoding.empty.shape[1]
    writer = dataset.DatasetWriter(
        output,
        path_cache.KIND,
        path_cache.path_features(width, cfg.model.context_shapes),
        path_cache.INDEX,
        {
            **described(cfg),
            "teacher_hash": teacher.source_hash,
            "examples": examples,
            "shard_size": shard_size,
            **({} if encoding is None else {"encoding": dataclasses.asdict(encoding)}),
        },
    )

    def rows(number: int) -> Iterator[Any]:
        for step, bucket in shards[number]:
            for path in paths.paths(step):
                yield path_cache.to_row(path, bucket)

    with lock.locked(output, "--output", f"worker-{worker[0]}.lock"):
        writer.write_missing(len(shards), worker, rows, report, "paths")
    return writer.complete


def load_teacher(cfg: TrainStudent, mesh: Mesh) -> Checkpoint:
    """Loads the teacher of a student.

    Raises:
      ValueError: if its networks are not those of the student.
    """
    path = cfg.distillation.teacher
    teacher = load_checkpoint(path, mesh=mesh, dtype=cfg.execution.param_dtype)
    if teacher.transformer != cfg.model:
        raise ValueError(
            f"distillation.teacher {path} has another transformer than the config's model: a "
            "student has the network of its teacher"
        )
    if cfg.captions == "train" and teacher.text_encoder is None:
        raise ValueError(
            f"distillation.teacher {path} has no text encoder, and captions is 'train': set it to "
            "'frozen' (with text_encoder_path) or 'cached'"
        )
    return teacher


def _shards(loader: Loader, examples: int, size: int) -> list[list[tuple[int, int]]]:
    """The steps of the data for each shard, with the number of their bucket."""
    shards: list[list[tuple[int, int]]] = []
    done = in_shard = 0
    for step in itertools.count():
        if done >= examples:
            break
        if not shards or in_shard >= size:
            shards.append([])
            in_shard = 0
        plan = loader.plan(step)
        shards[-1].append((step, plan.bucket))
        done, in_shard = done + len(plan.rows), in_shard + len(plan.rows)
    return shards
