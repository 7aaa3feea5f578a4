r"""Runs the benchmarks:

  python -m benchmarks.run headline                      a prompt to a video: 121 x 512 x 768
  python -m benchmarks.run all --budget 540              everything, the most important first
  python -m benchmarks.run headline --only 2B/float8 13B/none/plain 2B/int8 2B/none/teacache
  python -m benchmarks.run vae transformer training --against diffusers
  JAX_PLATFORMS=cpu python -m benchmarks.run all --against diffusers --scale small \
      --dtype float32 bfloat16

Weights and inputs are random (zeros would draw less power and run faster), in the sizes of the
released models. `--scale small` has sizes that a CPU finishes in minutes, `--scale tiny` only tests
that everything runs. The cases of a comparison run in turn. The line of a case gives the median and
the range of its times, its operations, its rate relative to the peak rates that are measured first,
and its compilation time. A case that fails is recorded, and the others still run. Results are
written to benchmarks/results/ after each case.
"""

import argparse
import dataclasses
import functools
import importlib
import itertools
import json
import math
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import numpy as np

from benchmarks import kernels
from benchmarks.harness import Report, device_memory
from benchmarks.sizes import SCALES, WORDS, Scale

Section = Callable[[Report, Scale], None]


def _late(name: str) -> Section:
    """A section that is imported when it runs, so that it needs only its own packages."""
    return functools.partial(_section, *name.split("."))


def _section(module: str, function: str, report: Report, scale: Scale) -> None:
    getattr(importlib.import_module(f"benchmarks.{module}"), function)(report, scale)


# In order of importance: if the time runs out, the last ones are skipped.
SECTIONS: dict[str, Section] = {
    "headline": _late("headline.headline"),
    "transformer": _late("networks.transformer"),
    "sampler": _late("networks.sampler"),
    "vae": _late("networks.vae"),
    "text": _late("networks.text"),
    "training": _late("training.train"),
    "startup": _late("networks.startup"),
    "attention": _late("kernels.attention"),
    "gemm": _late("kernels.gemm"),
    "conv": _late("kernels.conv"),
    "conv_gradients": _late("kernels.conv_gradients"),
    "loading": _late("loading.loading"),
}
# Sections that can be compared with diffusers.
AGAINST: dict[str, Section] = {
    "vae": _late("against.vae"),
    "transformer": _late("against.transformer"),
    "training": _late("against.training"),
}


_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def _instructions() -> str:
    """Those instructions of the processor that its matmuls are fast with; "" outside of Linux."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else ()
    return " ".join(name for name in _INSTRUCTIONS if name in flags)


def versions(report: Report, others: tuple[str, ...] = ()) -> None:
    """Software (`others`: further packages), device and memory."""
    device = jax.devices()[0]
    facts: dict[str, Any] = {
        "device": f"{len(jax.devices())} x {device.device_kind} ({device.platform})",
        "cores": os.cpu_count(),
        "load at start": os.getloadavg()[0],
        "platform": device.client.platform_version,
        "python": platform.python_version(),
        **{name: importlib.import_module(name).__version__ for name in ("jax", "jaxlib", "flax")},
        **{name: metadata.version(name) for name in others},
        "numpy": np.__version__,
        "instructions": _instructions(),
        "memory": device_memory(),
        "utc": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }
    try:
        from jax._src.lib import cuda_versions  # a private module, but there is no public one

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


def _sizes(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Scale:
    """The scale, reduced to the cases and sizes that the options select."""
    scale = SCALES[options.scale]
    only = tuple(frozenset(case.split("/")) - {""} for case in options.only)
    if unknown := sorted(frozenset().union(*only) - set(WORDS)):
        parser.error(f"--only: unknown {', '.join(unknown)}; known words: {', '.join(WORDS)}")
    grids = (scale.grid, *scale.more_grids)
    if options.tokens is not None:
        grids = tuple(grid for grid in grids if math.prod(grid) == options.tokens)
        if not grids:
            sizes = (math.prod(grid) for grid in (scale.grid, *scale.more_grids))
            parser.error(f"--tokens must be one of {', '.join(map(str, sizes))}")
    return dataclasses.replace(scale, grid=grids[0], more_grids=grids[1:], only=only)


def main(argv: list[str] | None = None) -> int:
    """Runs the requested sections; returns 0 even if some fail, since the report lists them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="+", choices=[*SECTIONS, "all"], metavar="WHAT")
    parser.add_argument("--against", choices=["diffusers"])
    parser.add_argument("--scale", choices=list(SCALES), default="full")
    dtypes = ["float32", "bfloat16"]
    parser.add_argument("--dtype", nargs="+", choices=dtypes, default=["bfloat16"])
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds in total")
    parser.add_argument("--repeats", type=int, default=9, help="samples of each case")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="CASE",
        default=[""],
        help=f"cases to run, in this order, such as 2B/float8/guided 13B/none, made of the words "
        f"{', '.join(WORDS)}",
    )
    parser.add_argument("--tokens", type=int, help="measure only the video with this many tokens")
    parser.add_argument(
        "--ceilings",
        type=pathlib.Path,
        metavar="JSON",
        help="earlier results of this device to take the peak rates from, instead of measuring",
    )
    parser.add_argument("--name", help="name of the result files; default: sections and device")
    options = parser.parse_args(argv)
    sections = SECTIONS if options.against is None else AGAINST
    what = list(sections) if "all" in options.what else options.what
    if unknown := sorted(set(what) - set(sections)):
        parser.error(f"diffusers has no {', '.join(unknown)}: take {', '.join(AGAINST)}")
    scale = _sizes(parser, options)
    if options.against is not None:  # two libraries share the device's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is measured
    device = jax.devices()[0].device_kind.lower().replace(" ", "_")
    kind = "all" if "all" in options.what else "_".join(what)
    name = options.name or f"{kind}{'_against_diffusers' if options.against else ''}_{device}"
    report = Report(options.out, name, options.budget, options.repeats)
    versions(report, () if options.against is None else ("torch", "diffusers"))
    report.facts |= {"scale": options.scale, "dtype": " ".join(options.dtype)}
    run = list(itertools.product(what, options.dtype))
    if options.ceilings is None:
        run.insert(0, ("ceilings", options.dtype[0]))
    else:
        report.facts["ceilings"] = json.loads(options.ceilings.read_text())["facts"]["ceilings"]
    for section, dtype in run:
        begin = time.monotonic()
        try:
            measure = kernels.ceilings if section == "ceilings" else sections[section]
            measure(report, scale.of(dtype))
        except Exception as error:  # the other sections may still work
            report.fail(section, "whole section", error)
        seconds = report.facts.setdefault("seconds", {})
        seconds[section] = round(seconds.get(section, 0) + time.monotonic() - begin, 1)
    report.facts["memory at the end"] = device_memory()
    report.save()
    print(f"written to {report.out / report.name}.json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
