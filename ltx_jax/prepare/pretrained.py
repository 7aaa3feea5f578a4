"""Loads models of `transformers`, once per process even if several threads use them."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import transformers

_LOCK = threading.Lock()


class Pretrained(NamedTuple):
    """A frozen model and the processor that prepares its inputs."""

    processor: Any
    model: Any
    device: str


def check(purpose: str, name: str) -> None:
    """Checks that a model exists, without loading its weights.

    Raises:
      ValueError: if it does not exist.
    """
    with _named(purpose, name):
        transformers.AutoConfig.from_pretrained(name)


def load(purpose: str, name: str, processor: str, model: str) -> Pretrained:
    """Loads a model onto the GPU if there is one, else onto the CPU.

    Args:
      purpose: what the model is used for; appears in error messages.
      name: name on the Hugging Face Hub, or a folder.
      processor: name of the class in `transformers` that loads the processor.
      model: name of the class in `transformers` that loads the model.

    Raises:
      ValueError: if the model cannot be loaded.
    """
    with _LOCK, _named(purpose, name):
        return _load(name, processor, model)


@contextlib.contextmanager
def _named(purpose: str, name: str) -> Iterator[None]:
    """Adds purpose and name of the model to errors."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"the {purpose} {name} cannot be loaded: {error}") from error


@functools.cache
def _load(name: str, processor: str, model: str) -> Pretrained:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded_processor = getattr(transformers, processor).from_pretrained(name)
    loaded_model = getattr(transformers, model).from_pretrained(name, dtype="auto")
    return Pretrained(loaded_processor, loaded_model.eval().to(device), device)
