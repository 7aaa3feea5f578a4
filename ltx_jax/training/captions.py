"""Where the captions' embeddings come from: a text encoder that trains along, a frozen one, or the
data themselves."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float16

from ltx_jax.config import TrainTransformer
from ltx_jax.data.sources import Encoding
from ltx_jax.inference import text_encoder
from ltx_jax.inference.text_encoder import ByteTokenizer, TextEncoder
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.runtime import sharding

Embedding = Float16[np.ndarray, "_ _"]  # of one caption (m, d), unpadded
Dropped = Bool[np.ndarray, " b"]
Place = Callable[[Any], Any]  # tree of host arrays -> of arrays on the mesh


@dataclasses.dataclass(frozen=True)
class Captions:
    """One source of embeddings.

    Attributes:
      read: (captions, stored embeddings or None, which are dropped (b,), `split` or another way to
        place arrays) -> arrays on the mesh. A dropped caption becomes the empty one.
      embed: (parameters, those arrays) -> embeddings (b, m, d) and mask (b, m); a part of the step.
      init: key -> the parameters that train along, {} for none.
    """

    read: Callable[[Sequence[str], Any, Dropped, Place], Any]
    embed: Callable[[Any, Any], tuple[Any, Any]]
    init: Callable[[Array], dict[str, Any]]


def open_captions(cfg: TrainTransformer, encoding: Encoding | None, mesh: Mesh) -> Captions:
    """The source that the config names.

    Args:
      cfg: of the run.
      encoding: what made the data's latents and embeddings, if they hold any.
      mesh: what an encoder lies on.

    Raises:
      ValueError: if there is no such text encoder or no such data, or they do not fit the
        transformer.
    """
    if cfg.captions == "train":
        return trained(cfg)
    if cfg.captions == "frozen":
        return frozen(_load(cfg, mesh), mesh)
    empty = None if encoding is None else encoding.empty
    if empty is None:
        raise ValueError(
            "captions = 'cached', and the data hold no embeddings of captions: encode them "
            "(ltx-encode), or take the text encoder itself (--captions frozen)"
        )
    width = cfg.model.caption_channels
    if empty.shape[1] != width:
        raise ValueError(
            f"the data hold embeddings of captions {empty.shape[1]} wide and the transformer "
            f"expects {width}"
        )
    return cached(empty, cfg.max_caption_tokens)


def _load(cfg: TrainTransformer, mesh: Mesh) -> TextEncoder:
    path = cfg.text_encoder_path or ""
    tokens, wanted = cfg.max_caption_tokens, cfg.model.caption_channels
    encoder = TextEncoder.load(path, dtype=cfg.execution.dtype, max_tokens=tokens, mesh=mesh)
    if encoder.cfg.d_model != wanted:
        raise ValueError(
            f"the text encoder of {path} is {encoder.cfg.d_model} wide and the transformer expects "
            f"captions {wanted} wide"
        )
    return encoder


def sketched(cfg: TrainTransformer) -> Captions:
    """The source of a stage without data and encoder, which reads nothing."""
    if cfg.captions == "train":
        return trained(cfg)
    return cached(np.zeros((1, cfg.model.caption_channels), np.float16), cfg.max_caption_tokens)


def shapes(cfg: TrainTransformer, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What `read` gives for a batch."""
    m, width = cfg.max_caption_tokens, cfg.model.caption_channels
    mask = jax.ShapeDtypeStruct((batch, m), jnp.int32)
    if cfg.captions == "train":
        return {"ids": mask, "mask": mask}
    dtype = jnp.float16 if cfg.captions == "cached" else cfg.execution.dtype
    return {"embeddings": jax.ShapeDtypeStruct((batch, m, width), dtype), "mask": mask}


def trained(cfg: TrainTransformer) -> Captions:
    """A T5 over bytes whose parameters are the "text_encoder" of the state's."""
    encoder = T5Encoder(cfg.text_encoder, cfg.text_execution)

    def read(captions: Sequence[str], stored: Any, dropped: Dropped, place: Place) -> Any:
        ids, mask = text_encoder.tokenize(
            ByteTokenizer(), _drop(captions, dropped), cfg.max_caption_tokens
        )
        return place({"ids": ids, "mask": mask})

    def embed(params: Any, arrays: Any) -> tuple[Any, Any]:
        weights = {"params": params["text_encoder"]}
        return encoder.apply(weights, arrays["ids"], arrays["mask"]), arrays["mask"]

    def init(key: Array) -> dict[str, Any]:
        ids = jnp.zeros((1, cfg.max_caption_tokens), jnp.int32)
        return {"text_encoder": encoder.init(key, ids, ids)["params"]}

    return Captions(read, embed, init)


def frozen(encoder: TextEncoder, mesh: Mesh) -> Captions:
    """A text encoder that is no part of the state: it embeds each batch before its step."""

    def read(captions: Sequence[str], stored: Any, dropped: Dropped, place: Place) -> Any:
        texts = _drop(captions, dropped)
        ids, mask = place(text_encoder.tokenize(encoder.tokenizer, texts, encoder.max_tokens))
        with sharding.use_mesh(mesh):
            return {
                "embeddings": text_encoder.embed(
                    encoder.params, ids, mask, encoder.cfg, encoder.execution
                ),
                "mask": mask,
            }

    return Captions(read, _given, lambda key: {})


def cached(empty: Embedding, max_tokens: int) -> Captions:
    """Embeddings that come with the data; longer ones are cut to `max_tokens`."""

    def read(
        captions: Any, stored: Sequence[Embedding] | None, dropped: Dropped, place: Place
    ) -> Any:
        if stored is None:  # of the data's own it is known that they have them
            raise ValueError(
                "captions = 'cached', and the held-out clips have no embeddings: name encoded ones "
                "(--run.validation_source)"
            )
        embeddings = np.zeros((len(stored), max_tokens, empty.shape[1]), np.float16)
        mask = np.zeros((len(stored), max_tokens), np.int32)
        for i, (row, no) in enumerate(zip(stored, dropped, strict=True)):
            row = (empty if no else row)[:max_tokens]
            embeddings[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return place({"embeddings": embeddings, "mask": mask})

    return Captions(read, _given, lambda key: {})


def _given(params: Any, arrays: Any) -> tuple[Any, Any]:
    return arrays["embeddings"], arrays["mask"]


def _drop(captions: Sequence[str], dropped: Bool[np.ndarray, " b"]) -> list[str]:
    return ["" if no else caption for caption, no in zip(captions, dropped, strict=True)]
