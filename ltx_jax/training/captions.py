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
from ltx_jax.training.stage import split

Embedding = Float16[np.ndarray, "m d"]  # of one caption, unpadded


@dataclasses.dataclass(frozen=True)
class Captions:
    """One source of embeddings.

    Attributes:
      read: (captions, stored embeddings or None, which are dropped (b,)) of this process's rows ->
        arrays on the mesh. A dropped caption becomes the empty one.
      embed: (parameters, those arrays) -> embeddings (b, m, d) and mask (b, m); a part of the step.
      init: key -> the parameters that train along, {} for none.
    """

    read: Callable[[Sequence[str], Sequence[Embedding] | None, Bool[np.ndarray, " b"]], Any]
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
        return trained(cfg, mesh)
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
    return cached(cfg, empty, mesh)


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


def trained(cfg: TrainTransformer, mesh: Mesh) -> Captions:
    """A T5 over bytes whose parameters are the "text_encoder" of the state's."""
    encoder = T5Encoder(cfg.text_encoder)

    def read(captions: Sequence[str], stored: Any, dropped: Bool[np.ndarray, " b"]) -> Any:
        ids, mask = text.tokenize(ByteTokenizer(), _drop(captions, dropped), cfg.max_caption_tokens)
        return split({"ids": ids, "mask": mask}, mesh)

    def embed(params: Any, arrays: Any) -> tuple[Any, Any]:
        weights = {"params": params["text_encoder"]}
        return encoder.apply(weights, arrays["ids"], arrays["mask"]), arrays["mask"]

    def init(key: Array) -> dict[str, Any]:
        ids = jnp.zeros((1, cfg.max_caption_tokens), jnp.int32)
        return {"text_encoder": encoder.init(key, ids, ids)["params"]}

    return Captions(read, embed, init)


def frozen(encoder: TextEncoder, mesh: Mesh) -> Captions:
    """A text encoder that is no part of the state: it embeds each batch before its step."""

    def read(captions: Sequence[str], stored: Any, dropped: Bool[np.ndarray, " b"]) -> Any:
        tokens = text.tokenize(encoder.tokenizer, _drop(captions, dropped), encoder.max_tokens)
        ids, mask = split(tokens, mesh)
        with sharding.use_mesh(mesh):
            return {"embeddings": text.embed(encoder.params, ids, mask, encoder.cfg), "mask": mask}

    return Captions(read, _given, lambda key: {})


def cached(cfg: TrainTransformer, empty: Embedding, mesh: Mesh) -> Captions:
    """Embeddings that come with the data; longer ones are cut to `max_caption_tokens`."""
    length, width = cfg.max_caption_tokens, cfg.model.caption_channels

    def read(
        captions: Any, stored: Sequence[Embedding] | None, dropped: Bool[np.ndarray, " b"]
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
        return split({"embeddings": embeddings, "mask": mask}, mesh)

    return Captions(read, _given, lambda key: {})


def _given(params: Any, arrays: Any) -> tuple[Any, Any]:
    return arrays["embeddings"], arrays["mask"]


def _drop(captions: Sequence[str], dropped: Bool[np.ndarray, " b"]) -> list[str]:
    return ["" if no else caption for caption, no in zip(captions, dropped, strict=True)]
