"""From prompts to caption embeddings: tokenizers, and the text encoder around its weights."""

import dataclasses
import functools
import hashlib
import json
import logging
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from ltx_jax.checkpoints import hub, text_encoder_files
from ltx_jax.config import DType, ExecutionConfig, T5Config, TextEncoderConfig
from ltx_jax.models.text_network import network_class, text_network
from ltx_jax.runtime import sharding

PAD = 0  # T5's special token ids
EOS = 1

# Files with a vocabulary, of which a directory holds one or more.
VOCABULARIES = ("tokenizer.json", "spiece.model", "tokenizer.model")

# The files to download from a hub repository, which may also hold the rest of a pipeline.
_FILES = [
    *("config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json"),
    *VOCABULARIES,
    *("text_encoder/*.json", "text_encoder/*.safetensors", "tokenizer/*"),
]

# Whose tokenizer a single file is read with: every T5 v1.1 has the same.
_TOKENIZER = "PixArt-alpha/PixArt-XL-2-1024-MS"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """Bytes as tokens, with no vocabulary file: the ids of ByT5 (arXiv 2105.13626).

    The id of a UTF-8 byte is byte + 3. A special token in a text (`</s>`) is encoded as plain text,
    unlike in transformers' `ByT5Tokenizer`.
    """

    vocab_size: int = 256 + 3 + 125  # bytes; PAD, EOS and unknown; ids that are never used
    identity: str = "byt5"  # equal for tokenizers that give equal ids
    # Ids before and after those of every text.
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = (EOS,)

    def token_ids(self, text: str) -> list[int]:
        """One id for every byte, without EOS."""
        return [byte + 3 for byte in text.encode()]

    def save(self, directory: Path, max_tokens: int) -> None:
        """Writes the configuration by which `ByT5Tokenizer` is recognised."""
        directory.mkdir(parents=True, exist_ok=True)
        raw = {
            "tokenizer_class": "ByT5Tokenizer",
            "extra_ids": 125,
            "model_max_length": max_tokens,
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(raw, indent=2) + "\n")


class VocabularyTokenizer:
    """A tokenizer with a vocabulary, read by transformers from a directory.

    Args:
      directory: the directory.
      kind: the class of the text encoder's configuration.

    Raises:
      ValueError: if the directory holds no vocabulary, or if a T5's has special ids of another
        tokenizer.
    """

    def __init__(self, directory: Path, kind: type[TextEncoderConfig] = T5Config):
        # Without such a file, transformers would silently make a tokenizer with no vocabulary.
        files = [directory / name for name in VOCABULARIES]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise ValueError(f"{directory} holds no {' and no '.join(VOCABULARIES)}")

        logging.getLogger("transformers").addFilter(_is_not_about_torch)
        from transformers import AutoTokenizer, T5Tokenizer  # takes seconds to import

        is_t5 = issubclass(kind, T5Config)
        try:
            self._tokenizer = (T5Tokenizer if is_t5 else AutoTokenizer).from_pretrained(directory)
        except Exception as error:  # transformers raises many types
            raise ValueError(
                f"{file} is not readable as the vocabulary of a {kind.model_type!r}: {error!r}"
            ) from error
        special = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id)
        if is_t5 and special != (PAD, EOS):
            raise ValueError(
                f"{file} is not T5's vocabulary: its ids of padding and end are {special}, not "
                "(0, 1)"
            )
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        self.identity = f"{kind.model_type}-{digest}"
        self.before, self.after = self._special_ids()

    def _special_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the tokenizer puts before and after those of every text."""
        text = "a"
        ids, whole = self.token_ids(text), self._tokenizer(text)["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(ids)] == ids)
        return tuple(whole[:start]), tuple(whole[start + len(ids) :])

    @property
    def vocab_size(self) -> int:
        """Number of pieces and sentinels."""
        return len(self._tokenizer)

    def token_ids(self, text: str) -> list[int]:
        """The pieces of a text, without special ids."""
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def save(self, directory: Path, max_tokens: int) -> None:
        """Writes the tokenizer in the format of the installed version of transformers."""
        self._tokenizer.model_max_length = max_tokens
        self._tokenizer.save_pretrained(directory)


def _tokenizer_of(encoder: Path) -> Path:
    """The directory of the tokenizer that belongs to an encoder's directory or single file."""
    places = [encoder.parent] if encoder.is_file() else [encoder, encoder / "tokenizer"]
    if encoder.is_file() or encoder.name == "text_encoder":
        places.insert(0, encoder.parent / "tokenizer")
    files = (*VOCABULARIES, "tokenizer_config.json")
    place = next((d for d in places if any(_has(d, file) for file in files)), None)
    if place is not None:
        return place
    if not encoder.is_file():
        raise ValueError(
            f"{encoder} holds no tokenizer: expected tokenizer/ with one of "
            f"{', '.join(VOCABULARIES)}"
        )
    try:
        return hub.resolve(_TOKENIZER, ["tokenizer/*"]) / "tokenizer"
    except ValueError as error:
        raise ValueError(
            f"{encoder} comes without a tokenizer: put the spiece.model of {_TOKENIZER} (in its "
            f"folder tokenizer) beside it. It was not fetched: {error}"
        ) from error


def _is_not_about_torch(record: logging.LogRecord) -> bool:
    """False for the warning that PyTorch is missing: the tokenizers of transformers need none."""
    return "PyTorch was not found" not in record.getMessage()


Tokenizer = ByteTokenizer | VocabularyTokenizer


def load_tokenizer(directory: Path, kind: type[TextEncoderConfig] = T5Config) -> Tokenizer:
    """Loads a tokenizer, ByT5's or one with a vocabulary, from a directory of transformers.

    Args:
      directory: the directory.
      kind: the class of the text encoder's configuration.

    Raises:
      ValueError: if there is none, or one of another kind.
    """
    over_bytes = text_encoder_files.max_byte_tokens(directory) is not None
    return ByteTokenizer() if over_bytes else VocabularyTokenizer(directory, kind)


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int
) -> tuple[Int[np.ndarray, "b m"], Int[np.ndarray, "b m"]]:
    """Token ids and mask (1 at tokens) in int32, with special ids, padded to `max_tokens`.

    Longer texts lose their last pieces, but not the special ids after them. White space around a
    text is removed first.
    """
    return _pad(tokenizer, [tokenizer.token_ids(text.strip()) for text in texts], max_tokens)


def _pad(
    tokenizer: Tokenizer, rows: Sequence[Sequence[int]], max_tokens: int
) -> tuple[Int[np.ndarray, "b m"], Int[np.ndarray, "b m"]]:
    ids = np.full((len(rows), max_tokens), PAD, np.int32)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        row = [*tokenizer.before, *row[: _max_text_tokens(tokenizer, max_tokens)], *tokenizer.after]
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def _max_text_tokens(tokenizer: Tokenizer, max_tokens: int) -> int:
    """Number of the `max_tokens` ids that are left for a text, besides the special ids."""
    return max_tokens - len(tokenizer.before) - len(tokenizer.after)


@functools.partial(jax.jit, static_argnames=("cfg", "execution"))
def embed(
    params: Any,
    ids: Int[Array, "b m"],
    mask: Int[Array, "b m"],
    cfg: TextEncoderConfig,
    execution: ExecutionConfig = ExecutionConfig(),
) -> Float[Array, "b m d"]:
    """Computes the embeddings of the ids and mask from `tokenize`."""
    encoder = text_network(cfg, execution)
    return encoder.apply({"params": params}, ids, mask)  # pyright: ignore[reportReturnType]


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """A tokenizer and a text encoder's network with its weights.

    With a `mesh`, `params` are sharded over it (`load` does that), and so is the computation; the
    embeddings are replicated on every device.

    Raises:
      ValueError: if `max_tokens` leaves no room for the special ids, or if the tokenizer has more
        ids than the encoder has embeddings.
    """

    tokenizer: Tokenizer
    cfg: TextEncoderConfig
    params: Any
    max_tokens: int = text_encoder_files.MAX_TOKENS
    mesh: Mesh | None = None
    execution: ExecutionConfig = ExecutionConfig()

    def __post_init__(self):
        least = len(self.tokenizer.before) + len(self.tokenizer.after)
        if self.max_tokens < least:
            raise ValueError(f"max_tokens must be at least {least}, got {self.max_tokens}")
        if self.tokenizer.vocab_size > self.cfg.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.vocab_size} ids and the text encoder "
                f"{self.cfg.vocab_size} embeddings: they do not belong together"
            )

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        *,
        dtype: DType = "bfloat16",
        max_tokens: int = text_encoder_files.MAX_TOKENS,
        mesh: Mesh | None = None,
    ) -> "TextEncoder":
        """Loads a text encoder and its tokenizer, in `dtype` (parameters and computation).

        The source is a directory of transformers, a directory that contains `text_encoder/` and
        `tokenizer/`, the id of either on the Hugging Face hub, a T5 in one file (t5xxl_fp16, its
        8-bit forms, GGUF), or a run of ltx-train that trained a text encoder. The `config.json` of
        a directory says which network it is. The tokenizer of a single file lies beside it, or
        comes from the hub. For a byte-level encoder, `max_tokens` is limited to that of its
        training. The released LTX-Video models use 256 tokens and bfloat16.

        Raises:
          ValueError: if there is no text encoder of a supported kind with its tokenizer; the
            message says what is wrong.
        """
        root = hub.resolve(path_or_id, _FILES)
        if (root / "steps").is_dir():
            return cls._from_run(root, dtype, max_tokens, mesh)
        encoder = next((d for d in (root / "text_encoder", root) if _has(d, "config.json")), None)
        encoder = root if root.is_file() else encoder
        if encoder is None:
            raise ValueError(
                f"{root} is no text encoder: it holds neither config.json nor "
                "text_encoder/config.json"
            )
        cfg = text_encoder_files.read_config(encoder)
        place = _tokenizer_of(encoder)
        tokenizer = load_tokenizer(place, type(cfg))
        max_tokens = min(max_tokens, text_encoder_files.max_byte_tokens(place) or max_tokens)
        params = text_encoder_files.load_params(encoder, cfg, mesh, dtype)
        execution = ExecutionConfig(dtype=dtype, param_dtype=dtype)
        return cls(tokenizer, cfg, params, max_tokens, mesh, execution)

    @classmethod
    def _from_run(
        cls, root: Path, dtype: DType, max_tokens: int, mesh: Mesh | None
    ) -> "TextEncoder":
        from ltx_jax.checkpoints import runs  # importing Orbax takes a second

        own = runs.load_run(root, mesh=mesh).text_encoder
        if own is None:
            raise ValueError(f"{root} is a run without a text encoder of its own")
        cfg, params, own_max_tokens = own
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        max_tokens = min(max_tokens, own_max_tokens)
        execution = ExecutionConfig(dtype=dtype, param_dtype=dtype)
        return cls(ByteTokenizer(), cfg, params, max_tokens, mesh, execution)

    def save(self, directory: str | Path) -> None:
        """Writes `text_encoder/` and `tokenizer/`, for transformers, diffusers and `load`.

        Raises:
          ValueError: if the directory already contains a text encoder.
        """
        text_encoder_files.save(Path(directory) / "text_encoder", self.cfg, self.params)
        self.tokenizer.save(Path(directory) / "tokenizer", self.max_tokens)

    def encode(self, prompts: Sequence[str]) -> tuple[Float[Array, "b m d"], Int[Array, "b m"]]:
        """Embeddings in `execution.dtype`, padded right to `max_tokens`, and their mask (int32).

        Tokens do not attend to padding; embeddings at padding are not zeroed. Truncation of a
        prompt is logged.

        Raises:
          ValueError: if there are no prompts.
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts must be a list of at least one text, got {prompts!r}")
        rows = [self.tokenizer.token_ids(prompt.strip()) for prompt in prompts]
        room = _max_text_tokens(self.tokenizer, self.max_tokens)
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > room:
                _log.warning(
                    "a prompt of %d tokens is cut to its first %d: %.60s", len(row), room, prompt
                )
        ids, mask = _pad(self.tokenizer, rows, self.max_tokens)
        if self.mesh is None:
            return embed(self.params, ids, mask, self.cfg, self.execution), jnp.asarray(mask)
        with sharding.use_mesh(self.mesh):
            embeds = embed(self.params, ids, mask, self.cfg, self.execution)
        return jax.device_put((embeds, mask), NamedSharding(self.mesh, P()))

    @functools.cached_property
    def identity(self) -> str:
        """An identifier to store with embeddings: equal for encoders with equal embeddings.

        It covers the tokenizer, the configuration, and small tensors that any training changes.
        """
        # The dtypes used to be part of the configuration. They are hashed at the same place, so
        # that the identifiers in existing data sets stay valid.
        dtypes = f"dtype={self.execution.dtype!r}, param_dtype={self.execution.param_dtype!r}"
        network = repr(self.cfg).removesuffix(")") + f", {dtypes})"
        content = f"({self.tokenizer.identity!r}, {network}, {self.max_tokens})"
        digest = hashlib.sha256(content.encode())
        for path in network_class(self.cfg).identity_parameters:
            leaf = functools.reduce(operator.getitem, path.split("/"), self.params)
            if self.mesh is not None:  # whole on every process
                leaf = jax.device_put(leaf, NamedSharding(self.mesh, P()))
            digest.update(np.asarray(leaf, np.float32).tobytes())
        return f"{self.tokenizer.identity}-{digest.hexdigest()[:16]}"


def _has(directory: Path, name: str) -> bool:
    return (directory / name).is_file()
