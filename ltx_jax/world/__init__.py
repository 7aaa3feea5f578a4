"""The procedural world: endless short clips of moving shapes, with captions and exact ground truth.

- `scenes`: what a scene contains, and how scenes are sampled; the held-out split.
- `render`: scenes to frames; `render.clip(index)` makes a clip with its caption.
- `textures`: the textures of backgrounds.
- `grammar`: captions, and the words that they use.
- `vocabulary`: what a prompt can ask for.
- `judge`: recognises shapes, colours and motions in any clip, with classical computer vision.
"""

from typing import TYPE_CHECKING

from ltx_jax.runtime.lazy import lazy_attributes

if TYPE_CHECKING:
    from ltx_jax.world.grammar import caption
    from ltx_jax.world.judge import DetectedObject, agreement, detect_objects
    from ltx_jax.world.render import WorldClip, clip, scene
    from ltx_jax.world.scenes import Background, Scene, SceneObject, sample_scene

__all__ = [
    "Background",
    "DetectedObject",
    "Scene",
    "SceneObject",
    "WorldClip",
    "agreement",
    "caption",
    "clip",
    "detect_objects",
    "sample_scene",
    "scene",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Background": "ltx_jax.world.scenes",
        "DetectedObject": "ltx_jax.world.judge",
        "Scene": "ltx_jax.world.scenes",
        "SceneObject": "ltx_jax.world.scenes",
        "WorldClip": "ltx_jax.world.render",
        "agreement": "ltx_jax.world.judge",
        "caption": "ltx_jax.world.grammar",
        "clip": "ltx_jax.world.render",
        "detect_objects": "ltx_jax.world.judge",
        "sample_scene": "ltx_jax.world.scenes",
        "scene": "ltx_jax.world.render",
    },
)
