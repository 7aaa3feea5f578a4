"""Measured figures with their 95 % intervals, as a table on the screen, as JSON and Markdown."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table

from ltx_jax import metrics
from ltx_jax.checkpoints.tensors import write_atomically

_HEADER = ("of", "figure", "value", "95 % interval", "count")


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number, what it was measured of and on how many clips."""

    of: str
    name: str
    value: float
    count: int
    low: float | None = None
    high: float | None = None
    unit: str = ""

    def cells(self) -> tuple[str, ...]:
        """The figure as a row of text."""
        digits = 1 if self.unit == "%" else 2
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f"{_text(self.low, digits)} to {_text(self.high, digits)}"
        value = f"{_text(self.value, digits)} {self.unit}".strip()
        return self.of, self.name, value, interval, str(self.count)


def _text(value: float, digits: int) -> str:
    if value == 0 or abs(value) >= 0.1:
        return f"{value:.{digits + (abs(value) < 10 and digits > 1)}f}"
    return f"{value:.2g}"


def share(of: str, name: str, hits: Iterable[bool | np.bool_]) -> Figure:
    """Per cent of the clips for which something holds, with Wilson's interval."""
    found = [bool(hit) for hit in hits]
    low, high = (100 * bound for bound in metrics.wilson(sum(found), len(found)))
    value = 100 * sum(found) / max(len(found), 1)
    return Figure(of, name, value, len(found), low, high, "%")


def mean(of: str, name: str, values: Sequence[float] | np.ndarray, unit: str = "") -> Figure:
    """Mean over clips, with the normal interval of a mean."""
    found = np.asarray(values, np.float64)
    if len(found) < 2:
        return Figure(of, name, float(found.mean()), len(found), unit=unit)
    value, reach = float(found.mean()), 1.96 * float(found.std(ddof=1)) / math.sqrt(len(found))
    return Figure(of, name, value, len(found), value - reach, value + reach, unit)


def show(title: str, figures: Sequence[Figure]) -> None:
    """Prints a table."""
    table = rich.table.Table(title=title, title_justify="left")
    for i, name in enumerate(_HEADER):
        table.add_column(name, justify="left" if i < 2 else "right")
    for before, figure in zip((None, *figures), figures, strict=False):
        if before is not None and before.of != figure.of:
            table.add_section()
        table.add_row(*figure.cells())
    rich.console.Console().print(table)


def paths(output: Path) -> tuple[Path, Path]:
    """Where `write` writes."""
    return Path(f"{output}.json"), Path(f"{output}.md")


def write(
    output: Path, title: str, settings: Mapping[str, Any], figures: Sequence[Figure]
) -> tuple[Path, Path]:
    """Writes OUTPUT.json and OUTPUT.md, each whole or not at all; returns their paths.

    Raises:
      ValueError: if they cannot be written.
    """
    about = {
        **settings,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    content = {
        "title": title,
        "settings": about,
        "figures": [dataclasses.asdict(figure) for figure in figures],
    }
    rows = [_HEADER, ("---", "---", "---:", "---:", "---:"), *(f.cells() for f in figures)]
    lines = [f"# {title}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    lines += [f"- {name}: {value}" for name, value in about.items() if value is not None]
    places = paths(output)
    texts = json.dumps(content, indent=2), "\n".join(lines)
    for path, text in zip(places, texts, strict=True):
        write_atomically(path, [text.encode() + b"\n"])
    return places
