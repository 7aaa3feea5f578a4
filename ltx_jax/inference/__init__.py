"""From prompts to videos.

- `pipeline`: `LTXPipeline`, from a checkpoint and a prompt to a video. `two_pass`: two calls of it,
  with the latent upsampler between.
- `arguments`: what a call asks for, checked. `text_encoder`: prompts to embeddings.
- `encode_decode`: the compiled programs before and after the denoising loop.
- `make_videos`: what `ltx-sample` does with its settings. `outputs`: the videos of a sampling run,
  their names and settings.
- `encode_dataset`: what `ltx-encode` does: clips and captions, encoded once.
"""

from typing import TYPE_CHECKING

from ltx_jax.runtime.lazy import lazy_attributes

if TYPE_CHECKING:
    from ltx_jax.inference.pipeline import LTXPipeline
    from ltx_jax.inference.text_encoder import TextEncoder
    from ltx_jax.inference.two_pass import Upsampler

__all__ = [
    "LTXPipeline",
    "TextEncoder",
    "Upsampler",
]

# The modules import what reads checkpoints, which takes seconds.
__getattr__ = lazy_attributes(
    __name__,
    {
        "LTXPipeline": "ltx_jax.inference.pipeline",
        "TextEncoder": "ltx_jax.inference.text_encoder",
        "Upsampler": "ltx_jax.inference.two_pass",
    },
)
