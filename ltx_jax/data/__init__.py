"""Videos and training data.

- `video`: reading videos and images, with PyAV (`decoding`, `frames`) and Pillow (`pictures`).
- `inputs`: checks of users' files, folders and text.
- `writing`: writing videos and images; `contact_sheet`: overview pictures.
- `pixels`, `condition_pixels`: cutting and scaling frames, and degrading those of conditions.
- `sources`: the interface of a source of training examples, and the procedural world as a source.
- `emoji`: data sets of animated emoji, and scenes of them as a source.
- `listing`: the captioned media of a user, in any layout: `tables`, `archives`, `captions`.
- `companions`: the references and masks that belong to such media. `references`, `preprocessors`:
  references that are drawn from clips. `masks`: masks of pixels as masks of latents.
- `probing`: properties of media, kept for the next start.
- `folder`, `media`: such media as a source, cut to the buckets of a config.
- `dataset`: data sets of clips in ArrayRecord files; `latent_cache`: those of stored latents.
- `loader`, `order`: training batches as a function of (seed, step).
- `read_ahead`, `workers`: reading ahead in threads or processes.
- `filters`: analysis of frames: shots, black bars, motion, hashes and text.
"""

from typing import TYPE_CHECKING

from ltx_jax.runtime.lazy import lazy_attributes

if TYPE_CHECKING:
    from ltx_jax.data.loader import Batch, Loader, open_source
    from ltx_jax.data.sources import Example, Source, StoredLatents

__all__ = ["Batch", "Example", "Loader", "Source", "StoredLatents", "open_source"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Batch": "ltx_jax.data.loader",
        "Example": "ltx_jax.data.sources",
        "Loader": "ltx_jax.data.loader",
        "Source": "ltx_jax.data.sources",
        "StoredLatents": "ltx_jax.data.sources",
        "open_source": "ltx_jax.data.loader",
    },
)
