"""Compiles the training step for accelerators that this machine lacks; predicts memory and time.

Bytes, operations and collectives are counted from the compiled program. The time is a roofline
estimate from peak rates, so a real step is slower.
"""

import collections
import dataclasses
import math
import os
import re
from collections.abc import Callable
from typing import Any, get_args

import jax
from jax.sharding import Mesh

from ltx_jax.config import BucketConfig, TrainConfig, TrainTransformer
from ltx_jax.models.eight_bit import EightBit
from ltx_jax.planning import accelerators, hlo
from ltx_jax.planning.accelerators import Target
from ltx_jax.planning.hlo import Traffic
from ltx_jax.runtime import sharding
from ltx_jax.training.batches import check_batch_sizes, frozen_shapes
from ltx_jax.training.flops import count_traced
from ltx_jax.training.optim import MAIN
from ltx_jax.training.stage import stage_class
from ltx_jax.training.state import TrainState, by_optimizer
from ltx_jax.training.step import Trainer, Work

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Lower bounds of the time that a step spends on each resource, in seconds.

    Attributes:
      compute: all executed matmuls and convolutions, including rematerialised ones.
      matmuls: memory traffic of the instructions with matmuls or convolutions, and of prefetches;
        it overlaps with `compute`.
      rest: memory traffic of all other instructions.
      interconnect: collectives between devices, which overlap with everything else.
    """

    compute: float
    matmuls: float
    rest: float
    interconnect: float

    @property
    def step(self) -> float:
        return max(max(self.compute, self.matmuls) + self.rest, self.interconnect)

    @property
    def bound(self) -> str:
        """The resource that takes most of the time."""
        if self.interconnect >= self.step:
            return "interconnect"
        memory = self.rest + (self.matmuls if self.matmuls > self.compute else 0.0)
        return "memory" if memory > self.step / 2 else "compute"


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Memory and time of the step for one bucket.

    Attributes:
      bucket: the bucket.
      work: tokens and operations of the step, without rematerialisation.
      executed: executed operations over all devices, including rematerialised ones.
      temporary: bytes per device besides state and batch: activations and gradients.
      total: bytes per device in total.
      traffic: memory traffic and collectives of each device.
      roofline: lower bounds of the time; None for devices with unknown peak rates.
    """

    bucket: BucketConfig
    work: Work
    executed: float
    temporary: int
    total: int
    traffic: Traffic
    roofline: Roofline | None

    def fits(self, target: Target) -> bool:
        """Whether the step fits into a device's memory; True if its memory is unknown."""
        return target.chip is None or self.total <= target.chip.memory

    def mfu(self, target: Target) -> float | None:
        """Upper bound of the MFU: the time of `work` at peak rate, divided by the step's time."""
        if self.roofline is None or target.peak is None:
            return None
        return self.work.flop / (self.roofline.step * target.peak * len(target.devices))


def prepare(name: str) -> None:
    """Sets options that JAX reads when it starts, so that it neither needs nor occupies devices."""
    os.environ |= {
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",  # libtpu requires both, but does not use them
        "TPU_ACCELERATOR_TYPE": "v5p-8",
    }
    jax.config.update("jax_platforms", "cpu")
    if match := re.fullmatch(r"cpu:(\d+)", name):
        jax.config.update("jax_num_cpu_devices", int(match[1]))


def plan(cfg: TrainConfig, name: str, log: Log = print) -> StepPlan | None:
    """Compiles the step of the most expensive bucket for a target, and reports on it.

    Args:
      cfg: the configuration of the run.
      name: name of the target (see `accelerators.find`); `prepare` must have been called with it.
      log: called with each line of the report.

    Returns:
      The plan, or None if the compiler reports that the step does not fit into memory.

    Raises:
      ValueError: if the target or its compiler is not known, or settings do not fit each other.
    """
    target = accelerators.find(name)
    mesh = sharding.make_mesh(cfg.mesh, target.devices)
    check_batch_sizes(cfg, mesh)
    stage = stage_class(cfg).describe(cfg, mesh)
    trainer = Trainer(stage)
    shapes = trainer.plan.shapes
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    log(f"{name}: {mesh.size} x {target.devices[0].device_kind}, mesh {axes or 'of one device'}")
    count = sum(x.size for x in jax.tree.leaves(_main_params(shapes)))
    log(f"{count / 1e6:.1f} M parameters; bytes below are those of one device")
    state = state_bytes(shapes, frozen_shapes(mesh, dict(stage.frozen)))
    for kind, size in state.items():
        log(f"  {kind:<16}{_gb(size)}")
    with sharding.use_mesh(mesh):
        batches = [stage.abstract_batch(bucket) for bucket in cfg.data.sizes]
        works = [trainer.work(batch, cfg.run.steps) for batch in batches]
    largest = max(range(len(works)), key=lambda i: works[i].flop)
    bucket, batch = cfg.data.sizes[largest], batches[largest]
    choice = f", the most expensive of {len(works)} buckets" if len(works) > 1 else ""
    log(f"{_title(bucket)}{choice}")
    try:
        planned = _compile(trainer, bucket, batch, works[largest], target, mesh)
    except jax.errors.JaxRuntimeError as error:
        log(f"  does not fit: {_memory_error(error)}")
        planned = None
    else:
        _report(planned, target, mesh, log)
    if planned is None or not planned.fits(target):
        log(f"  {_advice(cfg, sum(state.values()), target, mesh, bucket)}")
    return planned


def device_bytes(tree: Any) -> int:
    """Bytes on one device of a tree of shapes with shardings."""
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)
    )


def state_bytes(shapes: TrainState, frozen: Any = None) -> dict[str, int]:
    """Bytes on one device of each part of a training state, and of frozen weights beside it."""
    apart = {
        name: (shapes.params[name], opt_state)
        for name, opt_state in shapes.opt_state.items()
        if name != MAIN
    }
    parts = {
        "parameters": _main_params(shapes),
        "average": shapes.ema,
        "optimiser": shapes.opt_state[MAIN],
        **apart,
        "statistics": shapes.statistics,
        "frozen": frozen,
    }
    return {name: size for name, part in parts.items() if (size := device_bytes(part))}


def _main_params(shapes: TrainState) -> Any:
    return by_optimizer(shapes.params, shapes.opt_state)[MAIN]


def _compile(
    trainer: Trainer, bucket: BucketConfig, batch: Any, work: Work, target: Target, mesh: Mesh
) -> StepPlan:
    with sharding.use_mesh(mesh):
        traced = trainer.trace(batch)
        executed = count_traced(traced.jaxpr.jaxpr)
        compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes
    traffic = hlo.traffic(compiled.as_text())
    return StepPlan(
        bucket,
        work,
        executed,
        memory.temp_size_in_bytes,
        total,
        traffic,
        _roofline(traffic, executed, target, mesh),
    )


def _roofline(traffic: Traffic, executed: float, target: Target, mesh: Mesh) -> Roofline | None:
    chip, peak = target.chip, target.peak
    if chip is None or peak is None:
        return None
    return Roofline(
        compute=executed / len(target.devices) / peak,
        matmuls=traffic.matmuls / chip.bandwidth,
        rest=traffic.rest / chip.bandwidth,
        interconnect=sum((target.seconds(x, mesh) for x in traffic.collectives), start=0.0),
    )


def _report(plan: StepPlan, target: Target, mesh: Mesh, log: Log) -> None:
    chip, limit = target.chip, ""
    if chip is not None:
        fits = "fits" if plan.fits(target) else "does not fit"
        limit = f" of {_gb(chip.memory).strip()}: {fits}"
    log(f"  {'temporary':<16}{_gb(plan.temporary)}   activations and gradients")
    log(f"  {'total':<16}{_gb(plan.total)}{limit}")
    sums: dict[tuple[str, int], list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0])
    for collective in plan.traffic.collectives:
        total = sums[collective.kind, len(collective.group)]
        total[0] += collective.times
        total[1] += collective.sent
        total[2] += target.seconds(collective, mesh) if chip is not None else 0.0
    for (kind, devices), (times, sent, seconds) in sorted(sums.items()):
        time = f", {seconds * 1e3:.3g} ms" if chip is not None else ""
        log(f"  {kind} over {devices}: {times:.0f} times, {_gb(sent).strip()} sent{time}")
    flop = plan.work.flop
    log(
        f"  {flop / 1e12:.4g} TFLOP needed, {plan.executed / 1e12:.4g} executed, for "
        f"{plan.work.tokens} tokens"
    )
    roofline, mfu = plan.roofline, plan.mfu(target)
    if roofline is None or mfu is None:
        return
    times = "  ".join(f"{k} {v:.3g}" for k, v in dataclasses.asdict(roofline).items())
    log(f"  seconds at best: {times}")
    log(
        f"  {roofline.step:.3g} s a step at best, bound by {roofline.bound}: MFU {mfu:.0%}, "
        f"{plan.work.tokens / roofline.step / mesh.size:.0f} tokens/s per device"
    )


def _gb(size: float | int) -> str:
    return f"{size / 1e9:10.3f} GB"


def _title(bucket: BucketConfig) -> str:
    frames = "pictures" if bucket.num_frames == 1 else f"{bucket.num_frames} frames"
    return f"{bucket.batch_size} x {frames} of {bucket.height} x {bucket.width}"


def _memory_error(error: Exception) -> str:
    """Extracts used and available memory from a compiler's out-of-memory error."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        raise error
    match = re.search(r"Used ([\d.]+\w) of ([\d.]+\w)", text)
    return f"{match[1]} of {match[2]}" if match else text.splitlines()[0]


def _advice(cfg: Any, state: int, target: Target, mesh: Mesh, bucket: BucketConfig) -> str:
    """Suggests the first change to try if a step does not fit."""
    limit = target.chip.memory if target.chip is not None else 0.0
    if state > limit / 2 and mesh.shape["data"] > 1:
        return "the state alone is large: raise --mesh.fsdp and lower --mesh.data"
    trains_adapter = isinstance(cfg, TrainTransformer) and cfg.adapter.rank
    if state > limit / 2 and trains_adapter and cfg.adapter.base not in get_args(EightBit):
        return "the frozen transformer is large: set --adapter.base int8"
    if cfg.execution.remat != "full":
        return "set --execution.remat full"
    if bucket.batch_size > mesh.shape["data"] * mesh.shape["fsdp"] * cfg.optim.accumulate:
        return "raise --optim.accumulate, or lower the bucket's batch_size"
    if state > limit / 2:
        return "the state alone is large: take more devices, or --optim.moment_dtype 8bit"
    return "split the tokens of a clip: raise --mesh.seq and lower --mesh.data"
