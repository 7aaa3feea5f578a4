"""Compiles the real step for accelerators that are not here, and says what it would take there.

Bytes, operations and exchanges are counted from the compiled program. The time is a roofline: what
the devices could do at best, so that a real step is slower.
"""

import collections
import dataclasses
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from ltx_jax.config import BucketConfig, TrainConfig
from ltx_jax.planning import accelerators, hlo
from ltx_jax.planning.accelerators import Target
from ltx_jax.planning.hlo import Traffic
from ltx_jax.runtime import sharding
from ltx_jax.training.batches import check_batch_sizes
from ltx_jax.training.flops import count_traced
from ltx_jax.training.optim import MAIN
from ltx_jax.training.stage import stage_class
from ltx_jax.training.state import TrainState, by_optimizer
from ltx_jax.training.step import Trainer, Work

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Least time of a step by what takes it, in seconds.

    Attributes:
      compute: all products that are executed, those of the recomputation too.
      products: memory traffic of the instructions with products, and of what is fetched ahead,
        which goes on meanwhile.
      rest: memory traffic of all others.
      interconnect: exchanges between devices, which go on meanwhile.
    """

    compute: float
    products: float
    rest: float
    interconnect: float

    @property
    def step(self) -> float:
        return max(max(self.compute, self.products) + self.rest, self.interconnect)

    @property
    def bound(self) -> str:
        """What most of the time goes into."""
        if self.interconnect >= self.step:
            return "interconnect"
        memory = self.rest + (self.products if self.products > self.compute else 0.0)
        return "memory" if memory > self.step / 2 else "compute"


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What the step of one bucket takes.

    Attributes:
      bucket: its batches.
      work: what has to be done.
      executed: operations over all devices, with those of the recomputation.
      temporary: bytes per device beside state and batch: activations and gradients.
      total: bytes per device in all.
      traffic: what is moved on each device.
      roofline: None for devices we know no figures of.
    """

    bucket: BucketConfig
    work: Work
    executed: float
    temporary: int
    total: int
    traffic: Traffic
    roofline: Roofline | None

    def fits(self, target: Target) -> bool:
        """Whether a device has the memory; yes where we do not know."""
        return target.chip is None or self.total <= target.chip.memory

    def mfu(self, target: Target) -> float | None:
        """Share of the devices' peak that goes into what has to be done, at best."""
        if self.roofline is None or target.peak is None:
            return None
        return self.work.flop / (self.roofline.step * target.peak * len(target.devices))


def prepare(name: str) -> None:
    """Sets what JAX reads before it looks for devices: none are needed, and none are taken."""
    os.environ |= {
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",  # libtpu asks for both, and uses neither
        "TPU_ACCELERATOR_TYPE": "v5p-8",
    }
    jax.config.update("jax_platforms", "cpu")
    if match := re.fullmatch(r"cpu:(\d+)", name):
        jax.config.update("jax_num_cpu_devices", int(match[1]))


def plan(cfg: TrainConfig, name: str, log: Log = print) -> StepPlan | None:
    """Compiles the step of the dearest bucket for a target, and reports on it.

    Args:
      cfg: of the run.
      name: of the target, as `targets.find` takes it; after `prepare`.
      log: takes the lines of the report.

    Returns:
      The plan, or None where the compiler finds that it does not fit.

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
    log(f"{name}: {mesh.size} x {target.devices[0].device_kind}, mesh {axes or 'of one'}")
    count = sum(x.size for x in jax.tree.leaves(_main_params(shapes)))
    log(f"{count / 1e6:.1f} M parameters; bytes below are those of one device")
    state = state_bytes(shapes)
    for kind, size in state.items():
        log(f"  {kind:<16}{_gb(size)}")
    with sharding.use_mesh(mesh):
        batches = [stage.abstract_batch(bucket) for bucket in cfg.data.sizes]
        works = [trainer.work(batch, cfg.run.steps) for batch in batches]
    dearest = max(range(len(works)), key=lambda i: works[i].flop)
    bucket, batch = cfg.data.sizes[dearest], batches[dearest]
    log(f"{_title(bucket)}{f', the dearest of {len(works)} buckets' if len(works) > 1 else ''}")
    try:
        planned = _compile(trainer, bucket, batch, works[dearest], target, mesh)
    except jax.errors.JaxRuntimeError as error:
        log(f"  does not fit: {_memory_error(error)}")
        planned = None
    else:
        _report(planned, target, mesh, log)
    if planned is None or not planned.fits(target):
        log(f"  {_advice(cfg, sum(state.values()), target, mesh, bucket)}")
    return planned


def device_bytes(tree: Any) -> int:
    """Bytes on one device of arrays that are described with their shardings."""
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)
    )


def state_bytes(shapes: TrainState) -> dict[str, int]:
    """Bytes on one device of the parts of a training state that it has."""
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
        products=traffic.products / chip.bandwidth,
        rest=traffic.rest / chip.bandwidth,
        interconnect=sum(target.seconds(x, mesh) for x in traffic.collectives),
    )


def _report(plan: StepPlan, target: Target, mesh: Mesh, log: Log) -> None:
    chip, limit = target.chip, ""
    if chip is not None:
        fits = "fits" if plan.fits(target) else "does not fit"
        limit = f" of {_gb(chip.memory).strip()}: {fits}"
    log(f"  {'temporary':<16}{_gb(plan.temporary)}   activations and gradients")
    log(f"  {'in all':<16}{_gb(plan.total)}{limit}")
    sums: dict[tuple[str, int], list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0])
    for exchange in plan.traffic.collectives:
        total = sums[exchange.kind, len(exchange.group)]
        total[0] += exchange.times
        total[1] += exchange.sent
        total[2] += target.seconds(exchange, mesh) if chip is not None else 0.0
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
    """The figures in what a compiler says when a program needs too much."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        raise error
    found = re.search(r"Used ([\d.]+\w) of ([\d.]+\w)", text)
    return f"{found[1]} of {found[2]}" if found else text.splitlines()[0]


def _advice(cfg: Any, state: int, target: Target, mesh: Mesh, bucket: BucketConfig) -> str:
    """What to change first where a step does not fit."""
    limit = target.chip.memory if target.chip is not None else 0.0
    if state > limit / 2 and mesh.shape["data"] > 1:
        return "the state alone is large: raise --mesh.fsdp at the cost of --mesh.data"
    if cfg.execution.remat != "full":
        return "set --execution.remat full"
    if bucket.batch_size > mesh.shape["data"] * mesh.shape["fsdp"] * cfg.optim.accumulate:
        return "raise --optim.accumulate, or lower the bucket's batch_size"
    if state > limit / 2:
        return "the state alone is large: take more devices, or --optim.moment-dtype bfloat16"
    return "split the tokens of a clip: raise --mesh.seq at the cost of --mesh.data"
