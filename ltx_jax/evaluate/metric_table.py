"""Tables of metrics with 95 % confidence intervals: printed, and written as JSON and Markdown."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table
from jaxtyping import Int

from ltx_jax import metrics
from ltx_jax.runtime import files

_RESAMPLES = 100
_HEADER = ("subject", "metric", "value", "95 % interval", "count")


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """One metric of one set of clips. The field names are the keys in the JSON file, in which
    `subject` is called "of".

    Attributes:
      subject: what was measured, such as "videos" or "seen triples".
      name: the metric, such as "PSNR".
      value: its value.
      count: number of clips.
      low, high: bounds of the 95 % confidence interval; None if there is none.
      unit: "%", "dB" or nothing.
    """

    subject: str
    name: str
    value: float
    count: int
    low: float | None = None
    high: float | None = None
    unit: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as text, one string per column."""
        digits = 1 if self.unit == "%" else 2
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f"{_text(self.low, digits)} to {_text(self.high, digits)}"
        value = f"{_text(self.value, digits)} {self.unit}".strip()
        return self.subject, self.name, value, interval, str(self.count)

    def stored(self) -> dict[str, Any]:
        """The row as an object of the JSON file."""
        fields = dataclasses.asdict(self)
        return {"of": fields.pop("subject"), **fields}


def _text(value: float, digits: int) -> str:
    if value == 0 or abs(value) >= 0.1:
        return f"{value:.{digits + (abs(value) < 10 and digits > 1)}f}"
    return f"{value:.2g}"


def percentage(subject: str, name: str, hits: Iterable[bool | np.bool_]) -> MetricRow:
    """Percentage of clips for which a condition holds (`hits`), with Wilson's interval."""
    outcomes = [bool(hit) for hit in hits]
    low, high = (100 * bound for bound in metrics.wilson(sum(outcomes), len(outcomes)))
    value = 100 * sum(outcomes) / max(len(outcomes), 1)
    return MetricRow(subject, name, value, len(outcomes), low, high, "%")


def mean(
    subject: str, name: str, values: Sequence[float] | np.ndarray, unit: str = ""
) -> MetricRow:
    """Mean over clips, with the interval of a normally distributed mean (none for one clip)."""
    samples = np.asarray(values, np.float64)
    if len(samples) < 2:
        return MetricRow(subject, name, float(samples.mean()), len(samples), unit=unit)
    value, reach = (
        float(samples.mean()),
        1.96 * float(samples.std(ddof=1)) / math.sqrt(len(samples)),
    )
    return MetricRow(subject, name, value, len(samples), value - reach, value + reach, unit)


def bootstrapped(
    subject: str,
    name: str,
    statistic: Callable[[Int[np.ndarray, " n"]], float],
    count: int,
    unit: str = "",
) -> MetricRow:
    """A statistic of clips with the interval of 100 resamples, drawn with replacement.

    Args:
      subject: the first column of the table.
      name: the metric.
      statistic: numbers of clips -> value; a clip may occur several times.
      count: number of clips.
      unit: of the value.

    The interval is that of the resamples about their own mean, moved to the value: repeated clips
    make a Frechet distance larger.
    """
    rng, value = np.random.default_rng(0), statistic(np.arange(count))
    resampled = np.array([statistic(rng.integers(count, size=count)) for _ in range(_RESAMPLES)])
    low, high = value + np.percentile(resampled, (2.5, 97.5)) - resampled.mean()
    return MetricRow(subject, name, value, count, float(low), float(high), unit)


def show(title: str, rows: Sequence[MetricRow]) -> None:
    """Prints the rows as a table, with a line between rows of different subjects."""
    table = rich.table.Table(title=title, title_justify="left")
    for i, name in enumerate(_HEADER):
        table.add_column(name, justify="left" if i < 2 else "right")
    for previous, row in zip((None, *rows), rows, strict=False):
        if previous is not None and previous.subject != row.subject:
            table.add_section()
        table.add_row(*row.cells())
    rich.console.Console().print(table)


def output_paths(output: Path) -> tuple[Path, Path]:
    """The JSON and the Markdown file that `write` writes."""
    return Path(f"{output}.json"), Path(f"{output}.md")


def write(
    output: Path, title: str, settings: Mapping[str, Any], rows: Sequence[MetricRow]
) -> tuple[Path, Path]:
    """Writes OUTPUT.json and OUTPUT.md, each of them atomically; returns their paths.

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
        "figures": [row.stored() for row in rows],
    }
    cells = [_HEADER, ("---", "---", "---:", "---:", "---:"), *(row.cells() for row in rows)]
    lines = [f"# {title}", "", *(f"| {' | '.join(row)} |" for row in cells), ""]
    lines += [f"- {name}: {value}" for name, value in about.items() if value is not None]
    table_paths = output_paths(output)
    texts = json.dumps(content, indent=2), "\n".join(lines)
    for path, text in zip(table_paths, texts, strict=True):
        files.atomic_write_text(path, f"{text}\n")
    return table_paths
