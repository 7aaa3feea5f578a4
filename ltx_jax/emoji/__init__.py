"""Scenes of animated emoji: real artwork on drawn backgrounds, with captions that are true to them.

- `catalogue`: the emoji of a data set, and the splits that training never shows.
- `scenes`: what a scene contains, and how scenes are sampled.
- `render`: scenes to frames; `render.clip(index, ...)` makes a clip with its caption.
- `grammar`: captions.

The data set itself is written by `ltx_jax.prepare.emoji` and read by `ltx_jax.data.emoji`.
"""
