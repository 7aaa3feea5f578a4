"""What all settings have in common: they are frozen dataclasses, and their numbers are finite."""

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


@typing.dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass that refuses NaN and infinity, also inside of tuples.

    This check comes before the class's own `__post_init__`. It holds for settings from every
    place: config files, command lines, JSON, checkpoints and Python.

    Raises:
      ValueError: from the constructor of the class; it names the field.
    """
    own: Callable[[T], None] | None = getattr(cls, "__post_init__", None)

    def check(self: T) -> None:
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            _require_finite(field.name, getattr(self, field.name))
        if own is not None:
            own(self)

    cls.__post_init__ = check  # pyright: ignore[reportAttributeAccessIssue]
    return dataclasses.dataclass(frozen=True)(cls)


def require(condition: bool, message: str) -> None:
    """Raises a ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def _require_finite(name: str, value: Any) -> None:
    if isinstance(value, tuple):
        for entry in value:
            _require_finite(name, entry)
    elif isinstance(value, float):
        require(math.isfinite(value), f"{name} must be finite, got {value}")
