"""Where the captions' embeddings come from: a text encoder that trains along, a frozen one, or the
data themselves."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float16

from ltx_jax import sharding, text
from ltx_jax.config import TrainTransformer
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.text import ByteTokenizer, TextEncoder

Embedding = Float16[np.ndarray, "m d"]  # of one caption, unpadded
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

    read: Callable[[Sequence[str], Sequence[Embedding] | None, Dropped, Place], Any]
    embed: Callable[[Any, Any], tuple[Any, Any]]
    init: Callable[[Array], dict[str, Any]]


def open_captions(cfg: TrainTransformer, empty: Embedding | None, mesh: Mesh) -> Captions:
    """The source that the config names.

    Args:
      cfg: of the run.
      empty: the stored embedding of the empty caption, if the data hold it.
      mesh: where embeddings and encoders lie.

    Raises:
      ValueError: if there is no such text encoder, or it does not fit the transformer.
    """
    if cfg.captions == "train":
        return trained(cfg)
    if cfg.captions == "frozen":
        return frozen(_load(cfg, mesh), mesh)
    if empty is None and cfg.text_encoder_path is not None:
        embeddings, mask = _load(cfg, mesh).encode([""])
        empty = np.asarray(embeddings[0, : int(mask[0].sum())], np.float16)
    if empty is None:
        raise ValueError(
            "the data hold no embedding of the empty caption: name the text encoder that made "
            "theirs (--text_encoder_path), or set --flow.caption_dropout 0"
        )
    return cached(cfg, empty)


def _load(cfg: TrainTransformer, mesh: Mesh) -> TextEncoder:
    path = cfg.text_encoder_path or ""
    tokens, wanted = cfg.max_caption_tokens, cfg.model.caption_channels
    encoder = TextEncoder.load(path, dtype=cfg.model.dtype, max_tokens=tokens, mesh=mesh)
    if encoder.cfg.d_model != wanted:
        raise ValueError(
            f"the text encoder of {path} is {encoder.cfg.d_model} wide and the transformer expects "
            f"captions {wanted} wide"
        )
    return encoder


def trained(cfg: TrainTransformer) -> Captions:
    """A T5 over bytes whose parameters are the "text_encoder" of the state's."""
    encoder = T5Encoder(cfg.text_encoder)

    def read(captions: Sequence[str], stored: Any, dropped: Dropped, place: Place) -> Any:
        ids, mask = text.tokenize(ByteTokenizer(), _drop(captions, dropped), cfg.max_caption_tokens)
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
        ids, mask = place(text.tokenize(encoder.tokenizer, texts, encoder.max_tokens))
        with sharding.use_mesh(mesh):
            return {"embeddings": text.embed(encoder.params, ids, mask, encoder.cfg), "mask": mask}

    return Captions(read, _given, lambda key: {})


def cached(cfg: TrainTransformer, empty: Embedding) -> Captions:
    """Embeddings that come with the data; longer ones are cut to `max_caption_tokens`."""
    length, width = cfg.max_caption_tokens, cfg.model.caption_channels

    def read(
        captions: Any, stored: Sequence[Embedding] | None, dropped: Dropped, place: Place
    ) -> Any:
        if stored is None:
            raise ValueError("captions = 'cached', but the data hold no embeddings of captions")
        embeddings = np.zeros((len(stored), length, width), np.float16)
        mask = np.zeros((len(stored), length), np.int32)
        for i, row in enumerate(stored):
            row = empty if dropped[i] else row
            if row.shape[1] != width:
                raise ValueError(
                    f"the stored embeddings of captions are {row.shape[1]} wide and the "
                    f"transformer expects {width}"
                )
            row = row[:length]
            embeddings[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return place({"embeddings": embeddings, "mask": mask})

    return Captions(read, _given, lambda key: {})


def _given(params: Any, arrays: Any) -> tuple[Any, Any]:
    return arrays["embeddings"], arrays["mask"]


def _drop(captions: Sequence[str], dropped: Bool[np.ndarray, " b"]) -> list[str]:
    return ["" if no else caption for caption, no in zip(captions, dropped, strict=True)]
