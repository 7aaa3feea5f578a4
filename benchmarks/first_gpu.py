"""What to measure on a new accelerator, in one call: ceilings, kernels, networks, start-up.

  python benchmarks/first_gpu.py --budget 540

Needs jax, flax and numpy, and no installation: it imports the networks from the folder above.
Weights and inputs are random (zeros would draw less power and run faster). Every section stands by
itself; what fails is recorded and the rest goes on. Results are written as they come, to
benchmarks/results/. On a CPU, `--scale tiny` goes through every section in seconds, to try it out.
"""

import argparse
import importlib
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import jax  # noqa: E402
import kernels  # noqa: E402
import networks  # noqa: E402
import numpy as np  # noqa: E402
import training  # noqa: E402
from harness import Report, device_memory  # noqa: E402
from sizes import TINY, Scale  # noqa: E402


def versions(report: Report) -> None:
    """Software, device and memory."""
    device = jax.devices()[0]
    facts: dict[str, Any] = {
        "device": f"{len(jax.devices())} x {device.device_kind} ({device.platform})",
        "platform": device.client.platform_version,
        "python": platform.python_version(),
        **{name: importlib.import_module(name).__version__ for name in ("jax", "jaxlib", "flax")},
        "numpy": np.__version__,
        "memory": device_memory(),
        "utc": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }
    try:
        from jax._src.lib import cuda_versions  # the only place that tells

        if cuda_versions is not None:
            facts["cudnn"] = cuda_versions.cudnn_get_version()
            facts["cublas"] = cuda_versions.cublas_get_version()
            facts["cuda_runtime"] = cuda_versions.cuda_runtime_get_version()
    except (ImportError, AttributeError) as error:
        facts["cuda"] = f"unknown: {error}"
    report.facts |= facts
    for key, value in facts.items():
        print(f"{key:<14} {value}")
    report.save()


# In order of importance: the last ones go when the time runs out.
SECTIONS: dict[str, Callable[[Report, Scale], None]] = {
    "peak": kernels.peak,
    "attention": kernels.attention,
    "model": networks.model,
    "train": training.train,
    "vae": networks.vae,
    "pipeline": networks.pipeline,
    "text": networks.text,
    "gemm": kernels.gemm,
    "conv": kernels.conv,
    "start": networks.start,
}


def main(argv: list[str] | None = None) -> int:
    """Runs the sections asked for; 0 even where some failed, as the report says which."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--scale", choices=["full", "tiny"], default="full")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds in all")
    parser.add_argument("--repeats", type=int, default=9, help="samples of each case")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results")
    parser.add_argument("--name", help="of the result files; by default the device's")
    arguments = parser.parse_args(argv)
    scale = Scale() if arguments.scale == "full" else TINY
    jax.config.update("jax_enable_compilation_cache", False)  # or compile times mean nothing
    name = arguments.name or jax.devices()[0].device_kind.lower().replace(" ", "_")
    report = Report(arguments.out, name, arguments.budget, arguments.repeats)
    versions(report)
    for section in arguments.sections:
        begin = time.monotonic()
        try:
            SECTIONS[section](report, scale)
        except Exception as error:  # the other sections may still work
            report.fail(section, "whole section", error)
        seconds = report.facts.setdefault("seconds", {})
        seconds[section] = round(time.monotonic() - begin, 1)
    report.facts["memory at the end"] = device_memory()
    report.save()
    print(f"written to {report.out / report.name}.json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
