"""The platform that programs run on, and the settings that it needs."""

import contextlib
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
_storable: Any = jax.make_user_context(False)


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": the platform of the current mesh, else the default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def storable_programs(storable: bool = True) -> contextlib.AbstractContextManager[None]:
    """Programs of this context can be stored on disk, on a CPU too: they do without oneDNN.

    XLA cannot serialise oneDNN's calls, so that every process compiles them anew, which takes
    longer than they save if the process makes a few small videos.
    """
    return _storable(storable)


def uses_onednn() -> bool:
    """Whether programs for the CPU call oneDNN."""
    return HAS_ONEDNN and not _storable.value


def onednn_options(few_rows: bool = False) -> dict[str, Any] | None:
    """Compiler options that enable oneDNN on CPUs; None on other platforms or without oneDNN.

    oneDNN makes convolutions several times faster, and bfloat16 matmuls faster and correct: XLA's
    own matmuls accumulate the gradients of biases in bfloat16, an error of 15 % over 4608 tokens.

    Even so, XLA gives most matmuls to another library, YNNPACK. With `few_rows`, they go to oneDNN:
    it multiplies 48 rows with a large matrix in 0.6 of YNNPACK's time, but a transformer with its
    hundreds of rows takes 1.15 to 1.25 of the time.
    """
    if platform() != "cpu" or not uses_onednn():
        return None
    options: dict[str, Any] = {"xla_cpu_experimental_onednn_custom_call": True}
    if few_rows:  # sums stay with YNNPACK
        options["xla_cpu_experimental_ynn_fusion_type"] = "LIBRARY_FUSION_TYPE_REDUCE"
    return options


def preferred_dtype() -> DType:
    """The default dtype of sampling: bfloat16, but float32 on CPUs without AMX.

    AVX-512 BF16 alone does not suffice: bfloat16 matmuls then run at 0.6 to 0.9 of the speed of
    float32, and a step of the small model takes 1.5 times as long.
    """
    return "bfloat16" if platform() != "cpu" or _has_fast_bfloat16() else "float32"


def beyond_float16(dtype: DType) -> DType:
    """The dtype for a network whose activations leave float16's range: another one for float16."""
    return preferred_dtype() if dtype == "float16" else dtype


def _has_fast_bfloat16() -> bool:
    try:
        flags = _CPUINFO.read_text().split()
    except OSError:  # not Linux
        return False
    return HAS_ONEDNN and "amx_bf16" in flags
