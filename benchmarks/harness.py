"""Timing for the benchmarks: compiled cases in turn, medians and spreads, JSON and Markdown.

Cases of one comparison run interleaved, so that a clock that drifts moves them all alike. A case
that fails to compile or to run is recorded with its message, and the rest goes on.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

COLUMNS = (
    *("case", "dtype", "branches", "shapes", "median ms", "range ms", "TFLOP/s", "of products"),
    *("GB/s", "of copies", "memory GB", "compile s", "error or note", "library calls"),
)
SAMPLE_SECONDS = 0.02  # a sample of a short case is several calls, to hide the host's share


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time: a function of arrays, compiled with `options`.

    `flop` and `bytes` are what it has to do, by our own count; `branches` how many rows guidance
    makes of each sample; `reference` returns what it should give, from the same arguments. The
    first `carried` arguments are a state: the function returns the next one, in their place.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    flop: float = 0.0
    branches: int = 1
    bytes: float = 0.0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    reference: Callable[..., Any] | None = None
    repeats: int | None = None
    carried: int = 0


@dataclasses.dataclass(frozen=True)
class Foreign:
    """The same of another library: `make` gives what to time, and is called once to compile.

    What it gives has to wait for its result. `facts` are dtype, shapes and so on.
    """

    name: str
    make: Callable[[], Callable[[], Any]]
    flop: float = 0.0
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    repeats: int | None = None


class Report:
    """The rows so far, saved after every comparison, and the time left for more."""

    def __init__(self, out: pathlib.Path, name: str, budget: float, repeats: int):
        self.out, self.name, self.repeats = out, name, repeats
        self.deadline = time.monotonic() + budget
        self.facts: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        out.mkdir(parents=True, exist_ok=True)

    def add(self, section: str, name: str, status: str = "ok", **values: Any) -> None:
        """Adds a row, prints it and saves everything."""
        row = {"section": section, "case": name, "status": status, **values}
        ceilings = self.facts.get("ceilings", {})
        for unit, share in (("tflops", "share_of_products"), ("gbs", "share_of_copies")):
            if row.get(unit) and ceilings.get(unit):
                row[share] = row[unit] / ceilings[unit]
        self.rows.append(row)
        print(_line(row), flush=True)
        self.save()

    def fail(self, section: str, name: str, error: BaseException) -> None:
        """Records an error in place of a figure."""
        message = " ".join(f"{type(error).__name__}: {error}".split())
        self.add(section, name, "failed", message=message[:400])

    def out_of_time(self) -> bool:
        """Whether the budget is spent."""
        return time.monotonic() > self.deadline

    def compare(self, section: str, cases: Sequence[Case | Foreign]) -> None:
        """Compiles and checks each case, then times all of them in turn."""
        ready = [run for case in cases if (run := self._prepare(section, case)) is not None]
        samples: list[list[tuple[float, float]]] = [[] for _ in ready]
        for turn in range(max((run.repeats for run in ready), default=0)):
            if turn >= 3 and self.out_of_time():
                break
            for run, taken in zip(ready, samples, strict=True):
                if turn < run.repeats:
                    taken.append(_seconds(run.call, run.calls))
        for run, taken in zip(ready, samples, strict=True):
            self.add(section, run.case.name, **_figures(run.case, taken), **run.facts)

    def _prepare(self, section: str, case: Case | Foreign) -> "_Run | None":
        if self.out_of_time():
            self.add(section, case.name, "skipped", message="the time was spent")
            return None
        try:
            make = _compile if isinstance(case, Case) else _make
            with _until(self.deadline):
                return make(case, case.repeats or self.repeats)  # pyright: ignore[reportArgumentType]
        except Exception as error:  # any failure is a result here
            self.fail(section, case.name, error)
            return None

    def save(self) -> None:
        """Writes NAME.json and NAME.md."""
        text = json.dumps({"facts": self.facts, "rows": self.rows}, indent=1, default=str)
        (self.out / f"{self.name}.json").write_text(text + "\n")
        (self.out / f"{self.name}.md").write_text(_markdown(self.name, self.facts, self.rows))


@contextlib.contextmanager
def _until(deadline: float) -> Iterator[None]:
    """Ends what is still being made then, as soon as Python has a say; what is ready is timed."""

    def give_up(*_: Any) -> None:
        raise TimeoutError("the time was spent before this was ready")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclasses.dataclass(frozen=True)
class _Run:
    case: Case | Foreign
    call: Callable[[], Any]
    calls: int  # per sample
    repeats: int
    facts: dict[str, Any]


def _compile(case: Case, repeats: int) -> _Run:
    start = time.perf_counter()
    state = range(case.carried)
    lowered = jax.jit(case.function, donate_argnums=tuple(state)).lower(*case.arguments)
    compiled = lowered.compile(compiler_options=case.options or None)
    facts: dict[str, Any] = {"compile_s": time.perf_counter() - start}
    arrays = [x for x in jax.tree.leaves(case.arguments) if hasattr(x, "dtype")]
    kinds = [str(x.dtype) for x in arrays if jnp.issubdtype(x.dtype, jnp.floating) and x.size > 1]
    facts |= {"dtype": max(kinds, key=kinds.count, default=""), "branches": case.branches}
    # Of all but parameters, which are no arrays but trees of them.
    facts["shapes"] = " ".join(
        "x".join(map(str, x.shape)) for x in case.arguments if getattr(x, "ndim", 0)
    )
    # Whether a product went to cuBLASLt in eight bits, or attention to cuDNN, shows here alone.
    calls = set(re.findall(r'custom_call_target="([^"]+)"', compiled.as_text() or ""))
    facts["library_calls"] = sorted(calls)
    memory = compiled.memory_analysis()
    if memory is not None:
        facts["temp_gb"] = memory.temp_size_in_bytes / 1e9
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        total = memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes
        facts["memory_gb"] = total / 1e9

    arguments = list(case.arguments)
    for i in state:  # others need theirs
        arguments[i] = jax.tree.map(jnp.copy, arguments[i])

    def call() -> Any:
        result = compiled(*arguments)
        if case.carried:
            arguments[: case.carried] = result
        return result

    result = jax.block_until_ready(call())
    if case.reference is not None:
        expected = jax.jit(case.reference)(*case.arguments)
        facts["error"] = relative_error(result, expected)
    del result
    repetitions = max(1, min(200, round(SAMPLE_SECONDS / max(_seconds(call, 1)[0], 1e-6))))
    return _Run(case, call, repetitions, repeats, facts)


def _make(case: Foreign, repeats: int) -> _Run:
    start = time.perf_counter()
    call = case.make()
    call()
    return _Run(case, call, 1, repeats, {"compile_s": time.perf_counter() - start, **case.facts})


def _seconds(call: Callable[[], Any], calls: int) -> tuple[float, float]:
    """Of one call: on the clock, and of all cores together."""
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls, (time.process_time() - busy) / calls


def relative_error(result: Any, expected: Any) -> float:
    """Largest difference over the root mean square of what is expected; of several arrays, the
    worst."""

    def error(result: Any, expected: Any) -> float:
        result, expected = (jnp.asarray(x, jnp.float32) for x in (result, expected))
        scale = jnp.sqrt(jnp.mean(expected**2))
        return float(jnp.max(jnp.abs(result - expected)) / scale)

    return max(jax.tree.leaves(jax.tree.map(error, result, expected)))


def _figures(case: Case | Foreign, samples: Sequence[tuple[float, float]]) -> dict[str, Any]:
    taken, busy = zip(*samples, strict=True)
    median = statistics.median(taken)
    figures: dict[str, Any] = {
        "median_s": median,
        "fastest_s": min(taken),
        "slowest_s": max(taken),
        "samples": len(taken),
        "cpu_s": statistics.median(busy),  # on a busy machine, fairer to a CPU than the clock
    }
    if case.flop:
        figures |= {"tflop": case.flop / 1e12, "tflops": case.flop / 1e12 / median}
    if isinstance(case, Case) and case.bytes:
        figures |= {"gb": case.bytes / 1e9, "gbs": case.bytes / 1e9 / median}
    if isinstance(case, Case) and case.options:
        figures["options"] = case.options
    return figures


def device_memory() -> dict[str, float]:
    """Gigabytes now in use and at the peak of the process, where the device tells."""
    stats = jax.devices()[0].memory_stats() or {}
    names = {"bytes_in_use": "in_use_gb", "peak_bytes_in_use": "peak_gb", "bytes_limit": "limit_gb"}
    return {short: stats[name] / 1e9 for name, short in names.items() if name in stats}


def _line(row: dict[str, Any]) -> str:
    head = f"{row['section']:<10} {row['case']:<52}"
    if row["status"] != "ok":
        return f"{head} {row['status']}: {row.get('message', '')}"
    text = ""
    if "median_s" in row:
        low, high = row["fastest_s"] * 1e3, row["slowest_s"] * 1e3
        text += f" {row['median_s'] * 1e3:10.3f} ms [{low:.3f}, {high:.3f}]"
    parts = (
        ("tflops", "{:.4g} TFLOP/s"),
        ("share_of_products", "{:.0%} of products"),
        ("gbs", "{:.4g} GB/s"),
        ("share_of_copies", "{:.0%} of copies"),
        ("memory_gb", "{:.2f} GB"),
        ("cpu_s", "{:.3g} s of CPU"),
        ("compile_s", "compiled in {:.1f} s"),
        ("dtype", "{}"),
        ("branches", "branches: {}"),
        ("shapes", "{}"),
    )
    text += "".join(f"  {form.format(row[key])}" for key, form in parts if row.get(key))
    text += f"  error {row['error']:.1e}" if "error" in row else ""
    return head + text + (f"  {row['note']}" if "note" in row else "")


def _cell(value: Any, scale: float = 1.0, digits: int = 3) -> str:
    return "" if value is None else f"{value * scale:.{digits}f}"


def _markdown(name: str, facts: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"# {name}", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    for section in dict.fromkeys(row["section"] for row in rows):
        lines += [
            "",
            f"## {section}",
            "",
            "| " + " | ".join(COLUMNS) + " |",
            "|---" * len(COLUMNS) + "|",
        ]
        for row in (row for row in rows if row["section"] == section):
            if row["status"] != "ok":
                message = row.get("message", "").replace("|", "/")
                lines.append(
                    f"| {row['case']} | {row['status']}: {message} |" + " |" * (len(COLUMNS) - 2)
                )
                continue
            spread = ""
            if "median_s" in row:
                spread = f"{row['fastest_s'] * 1e3:.3f} to {row['slowest_s'] * 1e3:.3f}"
            error = f"{row['error']:.1e}" if "error" in row else row.get("note", "")
            cells = [
                row["case"],
                row.get("dtype", ""),
                str(row.get("branches", "")),
                row.get("shapes", ""),
                _cell(row.get("median_s"), 1e3),
                spread,
                _cell(row.get("tflops"), digits=1),
                _cell(row.get("share_of_products"), digits=2),
                _cell(row.get("gbs"), digits=0),
                _cell(row.get("share_of_copies"), digits=2),
                _cell(row.get("memory_gb"), digits=2),
                _cell(row.get("compile_s"), digits=1),
                error,
                " ".join(f"`{name}`" for name in row.get("library_calls", ())),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
