"""The sources of a batch's caption embeddings, further inputs and latents.

Caption embeddings come from a text encoder that is trained in the step, or from a frozen one, or
are stored with the data. Latents are stored with the data, or encoded from each batch of pixels.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float16, Float32, UInt8

from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import DataConfig, ExecutionConfig, TrainTransformer, VAEConfig
from ltx_jax.data.sources import Encoding, is_endless, select_context
from ltx_jax.inference import text_encoder
from ltx_jax.inference.text_encoder import ByteTokenizer, TextEncoder
from ltx_jax.models import convolution
from ltx_jax.models.text_network import text_network
from ltx_jax.models.vae import LatentStatistics, Posterior, VideoVAE
from ltx_jax.pixels import from_bytes
from ltx_jax.runtime import sharding

Embedding = Float16[np.ndarray, "_ _"]  # embeddings (m, d) of one caption's tokens, unpadded
Dropped = Bool[np.ndarray, " b"]
Place = Callable[[Any], Any]  # puts a tree of host arrays on the mesh
Moments = dict[str, Any]  # "mean" and "logvar" of posteriors, not normalised
_CACHE_BYTES = 2**30  # host memory for the moments that `encode_once` caches


@dataclasses.dataclass(frozen=True)
class Captions:
    """A source of caption embeddings.

    Attributes:
      read: (captions, stored embeddings or None, dropped (b,), place) -> arrays on the mesh. Where
        `dropped` is True, the caption is replaced by the empty one.
      embed: (parameters, the arrays from `read`) -> embeddings (b, m, d) and mask (b, m); part of
        the compiled step.
      init: key -> the parameters of the text encoder, if it is trained; else {}.
    """

    read: Callable[[Sequence[str], Any, Dropped, Place], Any]
    embed: Callable[[Any, Any], tuple[Any, Any]]
    init: Callable[[Array], dict[str, Any]]


def open_captions(cfg: TrainTransformer, encoding: Encoding | None, mesh: Mesh) -> Captions:
    """Makes the source of caption embeddings that the config names.

    Args:
      cfg: the configuration of the run.
      encoding: how the data's latents and embeddings were encoded; None for data without them.
      mesh: the devices of a text encoder.

    Raises:
      ValueError: if there is no such text encoder or no such data, or they do not fit the
        transformer.
    """
    if cfg.captions == "train":
        return trained_captions(cfg)
    if cfg.captions == "frozen":
        return frozen_captions(_load_encoder(cfg, mesh), mesh)
    empty = None if encoding is None else encoding.empty
    if empty is None:
        raise ValueError(
            "captions is 'cached', but the data hold no caption embeddings: encode the data "
            "(ltx-encode), or run the text encoder in training (--captions frozen)"
        )
    width = cfg.model.caption_channels
    if empty.shape[1] != width:
        raise ValueError(
            f"the caption embeddings of the data are {empty.shape[1]} wide and the transformer "
            f"expects {width}: encode the data again, or set model.caption_channels"
        )
    return cached_captions(empty, cfg.max_caption_tokens)


def _load_encoder(cfg: TrainTransformer, mesh: Mesh) -> TextEncoder:
    path = cfg.text_encoder_path or ""
    tokens, width = cfg.max_caption_tokens, cfg.model.caption_channels
    encoder = TextEncoder.load(path, dtype=cfg.execution.dtype, max_tokens=tokens, mesh=mesh)
    if encoder.cfg.width != width:
        raise ValueError(
            f"the text encoder of {path} is {encoder.cfg.width} wide and the transformer expects "
            f"captions {width} wide"
        )
    return encoder


def described_captions(cfg: TrainTransformer) -> Captions:
    """The source of a stage that is only described, which has no data and no frozen encoder."""
    if cfg.captions == "train":
        return trained_captions(cfg)
    return cached_captions(
        np.zeros((1, cfg.model.caption_channels), np.float16), cfg.max_caption_tokens
    )


def caption_shapes(cfg: TrainTransformer, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the arrays that `Captions.read` returns for a batch."""
    m, width = cfg.max_caption_tokens, cfg.model.caption_channels
    mask = jax.ShapeDtypeStruct((batch, m), jnp.int32)
    if cfg.captions == "train":
        return {"ids": mask, "mask": mask}
    dtype = jnp.float16 if cfg.captions == "cached" else cfg.execution.dtype
    return {"embeddings": jax.ShapeDtypeStruct((batch, m, width), dtype), "mask": mask}


def trained_captions(cfg: TrainTransformer) -> Captions:
    """A text encoder over bytes that is trained: "text_encoder" in the state's parameters."""
    encoder = text_network(cfg.text_encoder, cfg.text_execution)

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


def frozen_captions(encoder: TextEncoder, mesh: Mesh) -> Captions:
    """A frozen text encoder, which embeds each batch before the step; it is not in the state."""

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

    return Captions(read, _unchanged, lambda key: {})


def cached_captions(empty: Embedding, max_tokens: int) -> Captions:
    """Embeddings stored with the data; longer ones are cut to `max_tokens`."""

    def read(
        captions: Any, stored: Sequence[Embedding] | None, dropped: Dropped, place: Place
    ) -> Any:
        if stored is None:  # only validation clips: `open_captions` has checked the training data
            raise ValueError(
                "captions is 'cached', but the validation clips have no caption embeddings: name "
                "an encoded data set with --run.validation_source"
            )
        embeddings = np.zeros((len(stored), max_tokens, empty.shape[1]), np.float16)
        mask = np.zeros((len(stored), max_tokens), np.int32)
        for i, (row, no) in enumerate(zip(stored, dropped, strict=True)):
            row = (empty if no else row)[:max_tokens]
            embeddings[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return place({"embeddings": embeddings, "mask": mask})

    return Captions(read, _unchanged, lambda key: {})


def _unchanged(params: Any, arrays: Any) -> tuple[Any, Any]:
    return arrays["embeddings"], arrays["mask"]


def _drop(captions: Sequence[str], dropped: Bool[np.ndarray, " b"]) -> list[str]:
    return ["" if no else caption for caption, no in zip(captions, dropped, strict=True)]


def read_context(
    entries: Mapping[str, Float32[np.ndarray, "b ..."]],
    shapes: Mapping[str, tuple[int, ...]],
    dropped: Dropped,
) -> dict[str, Float32[np.ndarray, "b ..."]]:
    """The further inputs of the network for a batch: unknown, that is zero, where `dropped`.

    Args:
      entries: those of the batch.
      shapes: `TransformerConfig.context_shapes`.
      dropped: the examples whose caption is dropped.

    Raises:
      ValueError: if the batch lacks an input of the network.
    """
    context = select_context(entries, shapes)
    for name, values in context.items():
        context[name] = values.copy()
        context[name][dropped] = 0
    return context


def latent_sampler(checkpoint: Checkpoint, vae: VAEConfig) -> Callable[[Moments, Array], Array]:
    """Makes the function (moments, key) -> a sample of the posterior, normalised, for the step."""
    statistics = checkpoint.statistics or LatentStatistics.identity(vae.latent_channels)

    def sample(moments: Moments, key: Array) -> Array:
        mean, logvar = (moments[name].astype(jnp.float32) for name in ("mean", "logvar"))
        noise = jax.random.normal(key, mean.shape)
        return statistics.normalize(Posterior(mean, logvar).sample(noise))

    return sample


def latent_reader(
    checkpoint: Checkpoint, vae: VAEConfig, data: DataConfig, mesh: Mesh
) -> Callable[[Any, Place], Moments]:
    """Makes the function (uint8 pixels or stored moments, place) -> moments on the mesh."""
    model = VideoVAE(vae, ExecutionConfig(dtype=checkpoint.vae_dtype))

    @functools.partial(jax.jit, compiler_options=convolution.compiler_options())
    def program(params: Any, frames: Array) -> Moments:
        posterior: Any = model.apply({"params": params}, from_bytes(frames), method="encode")
        moments = {"mean": posterior.mean, "logvar": posterior.logvar}
        return jax.tree.map(lambda x: sharding.constrain(x, "batch", *(None,) * 4), moments)

    def encode(frames: UInt8[np.ndarray, "b t h w 3"], place: Place) -> Moments:
        with sharding.use_mesh(mesh):
            return program(checkpoint.vae_params, place(frames))

    of_pixels = encode_once(encode) if clips_repeat(data) else encode

    def read(video: Any, place: Place) -> Moments:
        return place(video) if isinstance(video, dict) else of_pixels(video, place)

    return read


def clips_repeat(data: DataConfig) -> bool:
    """Whether every epoch has exactly the same clips, and this process loads all of them."""
    endless = any(is_endless(source.path) for source in data.sources)
    chance = data.random_start or data.random_crop or data.flip
    return jax.process_count() == 1 and not endless and not chance


def encode_once(encode: Callable[[Any, Place], Moments]) -> Callable[[Any, Place], Moments]:
    """Wraps `encode` with a cache of limited size, so that it encodes each clip once.

    Clips are identified by a hash of their pixels.
    """
    cache: dict[Any, Moments] = {}
    bytes_left = _CACHE_BYTES

    def moments(frames: UInt8[np.ndarray, "b t h w 3"], place: Place) -> Moments:
        nonlocal bytes_left
        names = [(clip.shape, hashlib.blake2b(clip.tobytes()).digest()) for clip in frames]
        if not all(name in cache for name in names):
            encoded = encode(frames, place)
            size = sum(x.nbytes for x in encoded.values())
            if size > bytes_left:
                return encoded
            bytes_left -= size
            on_host = jax.tree.map(np.asarray, encoded)
            for i, name in enumerate(names):
                cache[name] = jax.tree.map(lambda x, i=i: x[i], on_host)
        return place(
            {part: np.stack([cache[name][part] for name in names]) for part in cache[names[0]]}
        )

    return moments
