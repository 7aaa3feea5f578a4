"""Accelerators to plan for: how many, what they can do, and stand-ins that programs compile for.

None of them has to be there. The compiler of each comes with its JAX plugin, which has to be
installed; "cpu:8" needs nothing.
"""

import dataclasses
import re
from typing import Any

import jax
from jax.experimental import topologies

from ltx_jax.training.flops import peak_flops


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, at its best.

    Attributes:
      memory: bytes that a program may fill.
      bandwidth: of that memory, bytes per second.
      link: bytes per second that a device can send, along one axis of a torus in both of its
        directions, or into a switch.
      torus: whether devices are linked in a torus, else by a switch.
    """

    memory: float
    bandwidth: float
    link: float
    torus: bool


GIB = float(2**30)
# TPUs: cloud.google.com/tpu/docs/v5p and so on; a link carries a sixth (v5p, v4) or a fourth of the
# "bidirectional" figure, half of it each way. GPUs: NVIDIA's data sheets, NVLink one way; JAX is
# told to take 92 % of the memory (XLA_PYTHON_CLIENT_MEM_FRACTION=0.92).
CHIPS = {
    "v4": Chip(32 * GIB, 1.228e12, 1.0e11, True),
    "v5e": Chip(15.75 * GIB, 8.19e11, 1.0e11, True),
    "v5p": Chip(95 * GIB, 2.765e12, 2.0e11, True),
    "v6e": Chip(31.25 * GIB, 1.638e12, 2.0e11, True),
    "h100": Chip(0.92 * 79.6 * GIB, 3.35e12, 4.5e11, False),
    "h200": Chip(0.92 * 140.4 * GIB, 4.8e12, 4.5e11, False),
}
# Name, GB/s, GiB.
_GPUS = {"h100": ("NVIDIA H100", 3_350, 80), "h200": ("NVIDIA H200", 4_800, 141)}
_FORMS = 'a TPU slice ("v5p:4x4x4", "v6e:16x16"), GPUs of one host ("h200", "h200x8"), or "cpu:8"'

# What XLA asks about a GPU of compute capability 9.0 (CUDA programming guide, table of
# capabilities), in the fields of its GpuTargetConfigProto.
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_block_limit: 65536 registers_per_core_limit: 65536
  core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535
  l2_cache_size: 52428800 clock_rate_ghz: 1.98
  memory_bandwidth: {bandwidth}000000000 device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 minor: 0 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 minor: 0 }}
device_description_str: "{name}"
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for, and what one of them can do: None where we do not know."""

    name: str
    devices: list[Any]
    chip: Chip | None
    peak: float | None  # operations per second, bfloat16

    @property
    def platform(self) -> str:
        """ "cpu", "gpu" or "tpu"."""
        platform = self.devices[0].platform
        return "gpu" if platform in ("cuda", "rocm") else platform

    def torus_axes(self, group: tuple[int, ...], mesh: Any) -> int:
        """Along how many axes of the torus the devices of a group lie; 1 for a switch."""
        if self.chip is None or not self.chip.torus:
            return 1
        places = [mesh.devices.flat[i].coords for i in group]
        return max(1, sum(len(set(axis)) > 1 for axis in zip(*places, strict=True)))

    def seconds(self, collective: Any, mesh: Any) -> float:
        """Time that a collective of `hlo` takes on links that carry nothing else."""
        assert self.chip is not None
        axes = self.torus_axes(collective.group, mesh)
        time = collective.sent / (self.chip.link * axes)
        if collective.kind == "all-to-all" and self.chip.torus:
            # Half of what is sent crosses the middle of a ring, on the average a fourth of it away.
            return time * max(1.0, len(collective.group) ** (1 / axes) / 4)
        if collective.kind == "collective-permute" and self.chip.torus:
            return 2 * time  # one way
        return time


def find(name: str) -> Target:
    """Looks a target up, and starts its compiler.

    Raises:
      ValueError: for a name that means nothing, or a plugin that is not installed.
    """
    if match := re.fullmatch(r"cpu:(\d+)", name):
        return Target(name, _cpus(int(match[1])), None, None)
    if match := re.fullmatch(r"(h[12]00)(?:x(\d+))?", name):
        described, bandwidth, memory = _GPUS[match[1]]
        text = _HOPPER.format(name=described, bandwidth=bandwidth, memory=memory << 30)
        options = dict(target_config=text, topology=f"1x1x{match[2] or 1}")
        devices = _topology("cuda", match[1], "jax[cuda13]", options)
    elif match := re.fullmatch(r"(v4|v5e|v5p|v6e):\d+(?:x\d+){1,2}", name):
        devices = _topology("tpu", name, "jax[tpu]", {})
    else:
        raise ValueError(f"{name!r} is nothing to plan for: name {_FORMS}")
    return Target(name, devices, CHIPS[match[1]], peak_flops(devices[0].device_kind))


def _cpus(count: int) -> list[Any]:
    if len(jax.devices("cpu")) < count:
        raise ValueError(
            f"this process has {len(jax.devices('cpu'))} CPU devices, not {count}: set "
            f"JAX_NUM_CPU_DEVICES={count}"
        )
    return jax.devices("cpu")[:count]


def _topology(platform: str, name: str, package: str, options: dict[str, str]) -> list[Any]:
    try:
        return topologies.get_topology_desc(name, platform, **options).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"no compiler for {name!r} here ({reason}): plan in an environment of its own with "
            f'pip install "{package}=={jax.__version__}"; see docs/plans.md'
        ) from error
