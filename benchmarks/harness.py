"""Times the cases of the benchmarks, and writes medians and ranges as JSON and Markdown.

The cases of a comparison run in turn, so that a change of the clock rate affects all of them. A
case that fails to compile or to run is recorded with its message, and the others still run.
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
    *("case", "dtype", "branches", "shapes", "median ms", "range ms", "TFLOP/s", "of peak"),
    *("GB/s", "of peak", "memory GB", "compile s", "error or note", "library calls"),
)
SAMPLE_SECONDS = 0.02  # a sample of a short case consists of several calls, to hide launch overhead


@dataclasses.dataclass(frozen=True)
class Case:
    """One function to time, compiled with `options`.

    `flop` and `bytes` are the operations and memory traffic that it needs, by our own count;
    `branches` is the number of rows that guidance makes of each sample; `reference` computes the
    expected result from the same arguments. The first `carried` arguments are a state, of which the
    function returns the next one.
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
    """A case of another library: `make` returns the function to time, after compiling it.

    That function has to wait for its result. `facts` are dtype, shapes and so on.
    """

    name: str
    make: Callable[[], Callable[[], Any]]
    flop: float = 0.0
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    repeats: int | None = None


class Report:
    """The rows so far, which are saved after each one, and the time that is left."""

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
        """Records an error in place of a result."""
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
            for run, times in zip(ready, samples, strict=True):
                if turn < run.repeats:
                    times.append(_seconds(run.call, run.calls))
        for run, times in zip(ready, samples, strict=True):
            self.add(section, run.case.name, **_metrics(run.case, times), **run.facts)

    def _prepare(self, section: str, case: Case | Foreign) -> "_Run | None":
        if self.out_of_time():
            self.add(section, case.name, "skipped", message="there was no time left")
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
    """Raises a TimeoutError in the block at the deadline, as soon as Python handles the signal."""

    def give_up(*_: Any) -> None:
        raise TimeoutError("there was no time left before this was ready")

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
    # Parameters are left out: they are trees, not arrays.
    facts["shapes"] = " ".join(
        "x".join(map(str, x.shape)) for x in case.arguments if getattr(x, "ndim", 0)
    )
    # Only this shows whether cuBLASLt computes a matmul in eight bits, or cuDNN attention.
    calls = set(re.findall(r'custom_call_target="([^"]+)"', compiled.as_text() or ""))
    facts["library_calls"] = sorted(calls)
    memory = compiled.memory_analysis()
    if memory is not None:
        facts["temp_gb"] = memory.temp_size_in_bytes / 1e9
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        total = memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes
        facts["memory_gb"] = total / 1e9

    arguments = list(case.arguments)
    for i in state:  # copied, since the state is donated and other cases use the original
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
    """Wall-clock seconds and CPU seconds (of all cores) of one call."""
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls, (time.process_time() - busy) / calls


def relative_error(result: Any, expected: Any) -> float:
    """The largest difference, divided by the root mean square of the expected values; for several
    arrays, the largest of these."""

    def error(result: Any, expected: Any) -> float:
        result, expected = (jnp.asarray(x, jnp.float32) for x in (result, expected))
        scale = jnp.sqrt(jnp.mean(expected**2))
        return float(jnp.max(jnp.abs(result - expected)) / scale)

    return max(jax.tree.leaves(jax.tree.map(error, result, expected)))


def _metrics(case: Case | Foreign, samples: Sequence[tuple[float, float]]) -> dict[str, Any]:
    times, cpu_times = zip(*samples, strict=True)
    median = statistics.median(times)
    values: dict[str, Any] = {
        "median_s": median,
        "fastest_s": min(times),
        "slowest_s": max(times),
        "samples": len(times),
        "cpu_s": statistics.median(cpu_times),  # less affected by other processes than the clock
    }
    if case.flop:
        values |= {"tflop": case.flop / 1e12, "tflops": case.flop / 1e12 / median}
    if isinstance(case, Case) and case.bytes:
        values |= {"gb": case.bytes / 1e9, "gbs": case.bytes / 1e9 / median}
    if isinstance(case, Case) and case.options:
        values["options"] = case.options
    return values


def device_memory() -> dict[str, float]:
    """Gigabytes in use now and at the peak of the process; {} if the device does not report it."""
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
        ("share_of_products", "{:.0%} of the peak of matmuls"),
        ("gbs", "{:.4g} GB/s"),
        ("share_of_copies", "{:.0%} of the peak of copies"),
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
