"""Models of `transformers`, loaded once in a process however many threads want them."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import transformers

_LOCK = threading.Lock()


class Pretrained(NamedTuple):
    """A frozen model, and what makes its inputs."""

    processor: Any
    model: Any
    device: str


def check(purpose: str, name: str) -> None:
    """Looks whether there is such a model, without loading its weights.

    Raises:
      ValueError: if there is none.
    """
    with _named(purpose, name):
        transformers.AutoConfig.from_pretrained(name)


def load(purpose: str, name: str, processor: str, model: str) -> Pretrained:
    """A model by its name or folder, on the GPU if there is one.

    Args:
      purpose: what it is used for, to name it by.
      name: of the model.
      processor: the class of `transformers` that loads its processor, and
      model: the one that loads the model itself.

    Raises:
      ValueError: if there is no such model.
    """
    with _LOCK, _named(purpose, name):
        return _load(name, processor, model)


@contextlib.contextmanager
def _named(purpose: str, name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"the {purpose} {name} cannot be loaded: {error}") from error


@functools.cache
def _load(name: str, processor: str, model: str) -> Pretrained:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made = getattr(transformers, processor).from_pretrained(name)
    found = getattr(transformers, model).from_pretrained(name, dtype="auto")
    return Pretrained(made, found.eval().to(device), device)
