"""The report of a run as one HTML file: which clips were kept and dropped, and why."""

import base64
import collections
import html
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ltx_jax.config.preparation import PrepareConfig
from ltx_jax.prepare import clip_video
from ltx_jax.prepare.records import ClipRecord, Reason
from ltx_jax.runtime import files

_NUM_THUMBNAILS = 8  # of the clips that were kept, and of those dropped for each reason
_THUMBNAIL = 192  # longest side, in pixels
_COLUMN, _HEIGHT = 12, 120  # width of a column and height of a histogram, in pixels
_MIN_COLUMNS = 20  # approximate least number of columns of a histogram
_TICKS = (0, 3, 7)  # columns of 1, 2 and 5 within a factor of ten, which get a label

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1040px; color: #222;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: #4a7fb5; height: .8rem; display: inline-block; }
figure { display: inline-block; margin: 0 .7rem .9rem 0; width: 192px; vertical-align: top; }
figcaption { font-size: 12px; color: #555; overflow-wrap: anywhere; }
img { width: 192px; height: 108px; object-fit: contain; background: #f0f0f0; border-radius: 3px;
  display: block; margin-bottom: .25rem; }
svg { overflow: visible; } svg text { font-size: 11px; fill: #555; }
"""


def write(path: Path, cfg: PrepareConfig, clips: Iterable[ClipRecord]) -> None:
    """Writes the report.

    Args:
      path: path of the HTML file.
      cfg: the settings, whose thresholds are marked in the histograms.
      clips: all clips of the run, kept and dropped; they are iterated once.
    """
    counts: collections.Counter[str] = collections.Counter()
    seconds: dict[str, float] = collections.defaultdict(float)
    examples: dict[str, list[ClipRecord]] = collections.defaultdict(list)
    scores = {name: _Histogram() for name in ("motion", "text", "aesthetics", "seconds")}
    sources = set()
    for clip in clips:
        sources.add(hash(clip.source))
        counts[clip.reason] += 1
        seconds[clip.reason] += clip.seconds
        if len(examples[clip.reason]) < _NUM_THUMBNAILS:
            examples[clip.reason].append(clip)
        for name, histogram in scores.items():
            value = getattr(clip, name)
            if value is not None and clip.number >= 0:
                histogram.add(value)
    total = counts.total()
    body = [
        "<h1>Data preparation</h1>",
        f"<p>{len(sources)} files gave {total} clips (a file that was dropped as a whole counts as "
        f"one): {counts['']} kept, {total - counts['']} dropped. <code>dropped.csv</code> in the "
        "same folder lists the dropped ones.</p>",
        _stages(counts, seconds),
        _section("Motion", "percent of the diagonal per second", scores["motion"], cfg.min_motion),
        _section("Text", "share of the picture", scores["text"], cfg.text.max_share),
        _section("Aesthetics", "score", scores["aesthetics"], cfg.aesthetics.min_score),
        _section("Length", "seconds", scores["seconds"], cfg.shots.min_seconds),
        *_gallery("Kept", examples[""]),
    ]
    for reason in Reason:
        if examples[reason]:
            body += _gallery(f"Dropped: {reason}", examples[reason])
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Data preparation</title>'
        f"<style>{_STYLE}</style>{''.join(body)}</html>\n"
    )
    files.atomic_write_text(path, text)


class _Histogram:
    """A histogram on a logarithmic scale, as the range is unknown until the last value."""

    STEPS = 10  # columns per factor of ten
    _MIN_EXPONENT = -3  # all values up to 0.001, negative ones included, share a column

    def __init__(self):
        self.counts: collections.Counter[int] = collections.Counter()

    def add(self, value: float) -> None:
        self.counts[self.column(value)] += 1

    @classmethod
    def column(cls, value: float) -> int:
        """The index of a value's column."""
        return math.floor(math.log10(max(value, 10.0**cls._MIN_EXPONENT)) * cls.STEPS + 1e-9)

    @classmethod
    def value(cls, column: int) -> float:
        """The lower edge of a column."""
        return 10 ** (column / cls.STEPS)


def _stages(counts: collections.Counter[str], seconds: dict[str, float]) -> str:
    """Table of how many clips each reason dropped and how many were left."""
    remaining, rows = counts.total(), []
    for reason in Reason:
        remaining -= counts[reason]
        width = round(300 * remaining / max(counts.total(), 1))
        rows.append(
            f'<tr><td>{reason}</td><td class="n">{counts[reason]}</td>'
            f'<td class="n">{seconds[reason]:.0f}</td><td class="n">{remaining}</td>'
            f'<td><span class="bar" style="width:{width}px"></span></td></tr>'
        )
    return (
        '<h2>Stages</h2><table><tr><th>dropped for</th><th class="n">clips</th>'
        '<th class="n">seconds</th><th class="n">left</th><th></th></tr>'
        + "".join(rows)
        + "</table>"
    )


def _section(title: str, unit: str, histogram: _Histogram, threshold: float | None) -> str:
    """A histogram as SVG, with its threshold as a red line."""
    if not histogram.counts:
        return ""
    columns = [*histogram.counts, min(histogram.counts) + _MIN_COLUMNS]
    if threshold is not None:
        columns.append(histogram.column(threshold) - 1)
    first, last = min(columns), max(columns)
    highest = max(histogram.counts.values())
    width = (last - first + 1) * _COLUMN
    elements = []
    for column in range(first, last + 1):
        x, value, count = (
            (column - first) * _COLUMN,
            histogram.value(column),
            histogram.counts[column],
        )
        if count:
            height = _HEIGHT * count / highest
            elements.append(
                f'<rect x="{x}" y="{_HEIGHT - height:.1f}" width="{_COLUMN - 1}" '
                f'height="{height:.1f}" '
                f'fill="#4a7fb5"><title>{value:.3g}: {count}</title></rect>'
            )
        if column % histogram.STEPS in _TICKS:
            elements.append(f'<text x="{x}" y="{_HEIGHT + 14}">{float(f"{value:.1g}"):g}</text>')
    elements.append(
        f'<line x1="0" x2="{width}" y1="{_HEIGHT}" y2="{_HEIGHT}" stroke="#999"/>'
        f'<text x="{width + 6}" y="10">highest: {highest}</text>'
    )
    note = unit
    if threshold is not None:
        x = (math.log10(max(threshold, 1e-3)) * histogram.STEPS - first) * _COLUMN
        elements.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="-4" y2="{_HEIGHT}" stroke="#c03030" '
            'stroke-width="2"/>'
        )
        note = f"{unit}; threshold {threshold:g}"
    return (
        f'<h2>{title}</h2><p>{note}</p><svg width="{width + 100}" height="{_HEIGHT + 20}">'
        f"{''.join(elements)}</svg>"
    )


def _gallery(title: str, clips: Iterable[ClipRecord]) -> Iterator[str]:
    """Thumbnails of clips, each with its file name and the reason or its caption."""
    yield f"<h2>{html.escape(title)}</h2>"
    for clip in clips:
        name = Path(clip.source).name
        time = f" at {clip.start:.1f} s" if clip.number >= 0 else ""
        text = clip.detail or " ".join(caption for _, caption in clip.captions)[:120]
        picture = _thumbnail(clip)
        image = f'<img alt="" src="data:image/jpeg;base64,{picture}">' if picture else ""
        yield (
            f"<figure>{image}<figcaption>{html.escape(name)}{time}<br>{html.escape(text)}"
            "</figcaption></figure>"
        )


def _thumbnail(clip: ClipRecord) -> str:
    """The middle frame as a base64 JPEG, cropped bars shaded; empty if it cannot be read."""
    if clip.number < 0:
        return ""
    try:
        [picture] = clip_video.sample_frames(clip, 1, bars=True)
    except ValueError:
        return ""
    top, left, height, width = clip.crop
    shaded = picture // 2 + np.array([96, 32, 32], np.uint8)
    shaded[top : top + height, left : left + width] = picture[
        top : top + height, left : left + width
    ]
    image = Image.fromarray(shaded)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()
