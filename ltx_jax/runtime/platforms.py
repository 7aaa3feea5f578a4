"""The platform that programs run on, and the settings that it needs."""

import os
import sys
from pathlib import Path
from typing import Any

import jax

from ltx_jax.config import DType

_CPUINFO = Path("/proc/cpuinfo")

# jaxlib contains oneDNN in its builds for Linux on x86-64.
HAS_ONEDNN = (
    jax.__version_info__ >= (0, 11) and sys.platform == "linux" and os.uname().machine == "x86_64"
)


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": the platform of the current mesh, else the default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def onednn_options() -> dict[str, Any] | None:
    """Compiler options that enable oneDNN on CPUs; None on other platforms or without oneDNN.

    oneDNN makes convolutions several times faster, and bfloat16 matmuls faster and correct: XLA's
    own matmuls accumulate the gradients of biases in bfloat16, an error of 15 % over 4608 tokens.
    """
    if platform() == "cpu" and HAS_ONEDNN:
        return {"xla_cpu_experimental_onednn_custom_call": True}
    return None


def preferred_dtype() -> DType:
    """The default dtype of sampling: bfloat16, but float32 on CPUs without bfloat16 matmuls.

    CPUs with AMX or AVX-512 BF16 have such matmuls, through oneDNN.
    """
    return "bfloat16" if platform() != "cpu" or _has_bfloat16_matmul() else "float32"


def beyond_float16(dtype: DType) -> DType:
    """The dtype for a network whose activations leave float16's range: another one for float16."""
    return preferred_dtype() if dtype == "float16" else dtype


def _has_bfloat16_matmul() -> bool:
    try:
        flags = _CPUINFO.read_text().split()
    except OSError:  # not Linux
        return False
    return HAS_ONEDNN and not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)
