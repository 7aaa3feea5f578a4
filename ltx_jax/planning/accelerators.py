"""Accelerators to plan for: their number, their speed, and abstract devices to compile for.

The devices need not exist on this machine, but the JAX plugin that contains their compiler must be
installed. "cpu:8" needs no plugin.
"""

import dataclasses
import re
from typing import Any

import jax
from jax.experimental import topologies

from ltx_jax.training.flops import peak_flops


@dataclasses.dataclass(frozen=True)
class Chip:
    """Memory and peak bandwidths of one device.

    Attributes:
      memory: bytes that a program may use.
      bandwidth: memory bandwidth, bytes per second.
      link: bytes per second that a device can send: along one axis of the torus (the sum of both
        directions), or to the switch.
      torus: whether the devices are connected as a torus; otherwise by a switch.
    """

    memory: float
    bandwidth: float
    link: float
    torus: bool


GIB = float(2**30)
# TPUs: cloud.google.com/tpu/docs/v5p and so on. A link has a sixth (v5p, v4) or a fourth of the
# "bidirectional" bandwidth listed there, half of it in each direction. GPUs: NVIDIA's data sheets,
# NVLink in one direction; 92 % of the memory, for XLA_PYTHON_CLIENT_MEM_FRACTION=0.92.
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

# XLA's GpuTargetConfigProto for a GPU of compute capability 9.0; values from the table of compute
# capabilities in the CUDA programming guide.
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
    """Devices to compile for, and the peak rates of one of them (None if unknown)."""

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
        """The number of torus axes that a group of devices extends along; 1 for a switch."""
        if self.chip is None or not self.chip.torus:
            return 1
        places = [mesh.devices.flat[i].coords for i in group]
        return max(1, sum(len(set(axis)) > 1 for axis in zip(*places, strict=True)))

    def seconds(self, collective: Any, mesh: Any) -> float:
        """Seconds that an `hlo.Collective` takes if its links carry nothing else meanwhile."""
        assert self.chip is not None
        axes = self.torus_axes(collective.group, mesh)
        time = collective.sent / (self.chip.link * axes)
        if collective.kind == "all-to-all" and self.chip.torus:
            # On average, data travels a fourth of the way around a ring, loading each link on it.
            return time * max(1.0, len(collective.group) ** (1 / axes) / 4)
        if collective.kind == "collective-permute" and self.chip.torus:
            return 2 * time  # sent in one direction only, which has half the bandwidth
        return time


def find(name: str) -> Target:
    """Looks up a target by name, and loads its compiler.

    Raises:
      ValueError: for an unknown name, or if the plugin is not installed.
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
        raise ValueError(f"unknown devices {name!r}: name {_FORMS}")
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
            f"there is no compiler for {name!r} in this environment ({reason}): plan in another "
            f'one, with pip install "{package}=={jax.__version__}"; see docs/plans.md'
        ) from error
