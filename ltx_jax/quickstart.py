"""Writes the clip that `make sample` fits a tiny model to: python -m ltx_jax.quickstart FOLDER."""

import sys
from pathlib import Path

from ltx_jax.data import shapes, video
from ltx_jax.data.scenes import Background, Figure, Scene

CAPTION = "A red star moves to the right on a slate background."
FRAMES, HEIGHT, WIDTH, RATE = 17, 64, 64, 16.0


def write_clip(folder: Path) -> Path:
    """Writes `clip.mp4` and `clip.txt`, a folder that `train.py` takes."""
    star = Figure("star", "red", "right", size=0.5, x=-0.25, y=0.0, rate=0.5)
    scene = Scene((star,), Background("slate"))
    path = folder / "clip.mp4"
    video.write_video(path, shapes.render(scene, FRAMES, HEIGHT, WIDTH, RATE), RATE, crf=8)
    path.with_suffix(".txt").write_text(CAPTION + "\n")
    return path


if __name__ == "__main__":
    print(write_clip(Path(sys.argv[1] if len(sys.argv) > 1 else "data/quickstart")))
