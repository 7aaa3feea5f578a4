"""What a run kept and dropped, and why: a page of HTML in one file, pictures and all."""

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
from ltx_jax.prepare import cut
from ltx_jax.prepare.records import Clip, Reason
from ltx_jax.runtime import files

_SHOWN = 8  # thumbnails of what is kept, and for each reason
_THUMBNAIL = 192  # pixels
_COLUMN, _HIGH = 12, 120  # pixels of a histogram
_NARROWEST = 20  # columns of one, about
_TICKS = (0, 3, 7)  # columns of 1, 2 and 5

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


def write(path: Path, cfg: PrepareConfig, clips: Iterable[Clip]) -> None:
    """Writes the page.

    Args:
      path: of the file.
      cfg: whose thresholds are drawn.
      clips: all of a run, kept and dropped; they are gone through once.
    """
    counts: collections.Counter[str] = collections.Counter()
    seconds: dict[str, float] = collections.defaultdict(float)
    shown: dict[str, list[Clip]] = collections.defaultdict(list)
    scores = {name: _Histogram() for name in ("motion", "text", "aesthetics", "seconds")}
    sources = set()
    for clip in clips:
        sources.add(hash(clip.source))
        counts[clip.reason] += 1
        seconds[clip.reason] += clip.seconds
        if len(shown[clip.reason]) < _SHOWN:
            shown[clip.reason].append(clip)
        for name, histogram in scores.items():
            value = getattr(clip, name)
            if value is not None and clip.number >= 0:
                histogram.add(value)
    total = counts.total()
    body = [
        "<h1>Data preparation</h1>",
        f"<p>{len(sources)} files gave {total} clips, or files that were dropped whole: "
        f"{counts['']} kept, {total - counts['']} dropped. <code>dropped.csv</code> beside this "
        "page names each of those.</p>",
        _stages(counts, seconds),
        _section("Motion", "percent of the diagonal per second", scores["motion"], cfg.min_motion),
        _section("Text", "share of the picture", scores["text"], cfg.text.max_share),
        _section("Aesthetics", "score", scores["aesthetics"], cfg.aesthetics.min_score),
        _section("Length", "seconds", scores["seconds"], cfg.shots.min_seconds),
        *_gallery("Kept", shown[""]),
    ]
    for reason in Reason:
        if shown[reason]:
            body += _gallery(f"Dropped: {reason}", shown[reason])
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Data preparation</title>'
        f"<style>{_STYLE}</style>{''.join(body)}</html>\n"
    )
    with files.whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class _Histogram:
    """Counts on a logarithmic scale, for its range is not known before the last value."""

    STEPS = 10  # to a factor of ten
    _LEAST = -3  # 0.001 and less, negative values too, are one

    def __init__(self):
        self.counts: collections.Counter[int] = collections.Counter()

    def add(self, value: float) -> None:
        self.counts[self.place(value)] += 1

    @classmethod
    def place(cls, value: float) -> int:
        """The number of a value's column."""
        return math.floor(math.log10(max(value, 10.0**cls._LEAST)) * cls.STEPS + 1e-9)

    @classmethod
    def value(cls, place: int) -> float:
        """Where a column begins."""
        return 10 ** (place / cls.STEPS)


def _stages(counts: collections.Counter[str], seconds: dict[str, float]) -> str:
    """What was left after each reason to drop something, in the order of the stages."""
    left, rows = counts.total(), []
    for reason in Reason:
        left -= counts[reason]
        width = round(300 * left / max(counts.total(), 1))
        rows.append(
            f'<tr><td>{reason}</td><td class="n">{counts[reason]}</td>'
            f'<td class="n">{seconds[reason]:.0f}</td><td class="n">{left}</td>'
            f'<td><span class="bar" style="width:{width}px"></span></td></tr>'
        )
    return (
        '<h2>Stages</h2><table><tr><th>dropped for</th><th class="n">clips</th>'
        '<th class="n">seconds</th><th class="n">left</th><th></th></tr>'
        + "".join(rows)
        + "</table>"
    )


def _section(title: str, unit: str, histogram: _Histogram, threshold: float | None) -> str:
    """A histogram, with its threshold as a red line."""
    if not histogram.counts:
        return ""
    places = [*histogram.counts, min(histogram.counts) + _NARROWEST]
    if threshold is not None:
        places.append(histogram.place(threshold) - 1)
    first, last = min(places), max(places)
    most = max(histogram.counts.values())
    width = (last - first + 1) * _COLUMN
    drawn = []
    for place in range(first, last + 1):
        x, value, count = (place - first) * _COLUMN, histogram.value(place), histogram.counts[place]
        if count:
            high = _HIGH * count / most
            drawn.append(
                f'<rect x="{x}" y="{_HIGH - high:.1f}" width="{_COLUMN - 1}" height="{high:.1f}" '
                f'fill="#4a7fb5"><title>{value:.3g}: {count}</title></rect>'
            )
        if place % histogram.STEPS in _TICKS:
            drawn.append(f'<text x="{x}" y="{_HIGH + 14}">{float(f"{value:.1g}"):g}</text>')
    drawn.append(
        f'<line x1="0" x2="{width}" y1="{_HIGH}" y2="{_HIGH}" stroke="#999"/>'
        f'<text x="{width + 6}" y="10">highest: {most}</text>'
    )
    note = unit
    if threshold is not None:
        x = (math.log10(max(threshold, 1e-3)) * histogram.STEPS - first) * _COLUMN
        drawn.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="-4" y2="{_HIGH}" stroke="#c03030" '
            'stroke-width="2"/>'
        )
        note = f"{unit}; threshold {threshold:g}"
    return (
        f'<h2>{title}</h2><p>{note}</p><svg width="{width + 100}" height="{_HIGH + 20}">'
        f"{''.join(drawn)}</svg>"
    )


def _gallery(title: str, clips: Iterable[Clip]) -> Iterator[str]:
    yield f"<h2>{html.escape(title)}</h2>"
    for clip in clips:
        name = Path(clip.source).name
        place = f" at {clip.start:.1f} s" if clip.number >= 0 else ""
        said = clip.detail or " ".join(text for _, text in clip.captions)[:120]
        picture = _thumbnail(clip)
        image = f'<img alt="" src="data:image/jpeg;base64,{picture}">' if picture else ""
        yield (
            f"<figure>{image}<figcaption>{html.escape(name)}{place}<br>{html.escape(said)}"
            "</figcaption></figure>"
        )


def _thumbnail(clip: Clip) -> str:
    """JPEG in base64 of a clip's middle, cut-off bars shaded; empty if it cannot be read."""
    if clip.number < 0:
        return ""
    try:
        [picture] = cut.pictures(clip, 1, bars=True)
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
