"""The procedural world: endless short clips of moving shapes, with captions and exact ground truth.

- `scenes`: what a scene contains, and how scenes are sampled; the held-out split.
- `render`: scenes to frames; `render.clip(index)` makes a clip with its caption.
- `textures`: the textures of backgrounds.
- `grammar`: captions, and the words that they use.
- `judge`: recognises shapes, colours and motions in any clip, with classical computer vision.
"""
