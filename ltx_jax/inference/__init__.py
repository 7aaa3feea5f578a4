"""From prompts to videos.

- `pipeline`: `LTXPipeline`, from a checkpoint and a prompt to a video. `two_pass`: two calls of it,
  and the latent upsampler between them.
- `arguments`, `condition_media`: read and check the arguments of a call, and its media.
  `text_encoder`: prompts to embeddings.
- `encode_decode`: the compiled programs before and after the denoising loop.
- `make_videos`: the work of `ltx-sample`, given its settings. `outputs`: the videos of a sampling
  run, with their names and settings.
- `encode_dataset`: the work of `ltx-encode`, which encodes the clips and captions of a data set.
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

# Loaded on first use, since importing the checkpoint readers takes seconds.
__getattr__ = lazy_attributes(
    __name__,
    {
        "LTXPipeline": "ltx_jax.inference.pipeline",
        "TextEncoder": "ltx_jax.inference.text_encoder",
        "Upsampler": "ltx_jax.inference.two_pass",
    },
)
