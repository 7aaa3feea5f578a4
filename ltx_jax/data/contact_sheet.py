"""Contact sheets: frames of several clips in one picture."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont


def contact_sheet(
    clips: Sequence[UInt8[np.ndarray, "_ _ _ 3"]],
    labels: Sequence[str],
    *,
    columns: int = 6,
    scale: float | int = 1.0,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws one row per clip: its label, and below it `columns` frames evenly spaced in time.

    Raises:
      ValueError: if there are no clips, or not as many labels.
    """
    if not clips or len(clips) != len(labels):
        raise ValueError(f"got {len(clips)} clips and {len(labels)} labels")
    gap, font = 6, ImageFont.load_default(size=13)
    rows = []
    for clip in clips:
        frames = clip[np.round(np.linspace(0, len(clip) - 1, min(columns, len(clip)))).astype(int)]
        size = round(clip.shape[2] * scale), round(clip.shape[1] * scale)
        rows.append([Image.fromarray(frame).resize(size) for frame in frames])
    width = max(gap + sum(frame.width + gap for frame in row) for row in rows)
    texts = [_wrapped(label, font, width - 2 * gap) for label in labels]
    heights = [
        16 * len(text) + row[0].height + 2 * gap for text, row in zip(texts, rows, strict=True)
    ]
    sheet = Image.new("RGB", (width, sum(heights) + gap), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    top = gap
    for text, row, height in zip(texts, rows, heights, strict=True):
        for i, line in enumerate(text):
            draw.text((gap, top + 16 * i), line, fill=(30, 30, 30), font=font)
        for i, frame in enumerate(row):
            sheet.paste(frame, (gap + i * (frame.width + gap), top + 16 * len(text) + 2))
        top += height
    return np.array(sheet)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [line for line in lines if line]
