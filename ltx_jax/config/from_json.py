"""Writes settings as JSON, and reads them from JSON into their dataclasses."""

import dataclasses
import difflib
import json
import math
import reprlib
import types
import typing
from collections.abc import Iterable
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_MAX_CHARACTERS = 50_000_000  # of a JSON text; more would take minutes, not describe a model


def parse_json(text: str | bytes, what: str) -> Any:
    """Parses a JSON text that somebody else may have written.

    Raises:
      ValueError: beginning with `what`, if it is not JSON, too long, nested too deeply, or has a
        number that is not finite.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"{what} is not readable as JSON: it has {len(text):,} characters")
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(f"{what} is not readable as JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{what} is not readable as JSON: {error}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{shown(digits)} is too large")
    return number


def subclasses(base: type) -> dict[str, type[Any]]:
    """The dataclasses that derive from `base`, by name; those of a module that is not loaded are
    not among them."""
    kinds = {}
    for kind in base.__subclasses__():
        kinds |= {kind.__name__: kind} if dataclasses.is_dataclass(kind) else {}
        kinds |= subclasses(kind)
    return kinds


def dump(value: Any) -> Any:
    """The inverse of `build`: dictionaries and lists in place of dataclasses and tuples.

    A dataclass that derives from a plain class (`TextEncoderConfig`) also gets an entry `type`, the
    name of its own class.
    """
    if isinstance(value, tuple | list):
        return [dump(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = {field.name: dump(getattr(value, field.name)) for field in dataclasses.fields(value)}
    own, *bases, _ = type(value).__mro__
    chosen = any(not dataclasses.is_dataclass(base) for base in bases)
    return {"type": own.__name__, **fields} if chosen else fields


def build(kind: Any, value: Any, where: str) -> Any:
    """The inverse of `dump`, also after JSON; absent fields take their defaults.

    Args:
      kind: a dataclass, a plain class that dataclasses derive from, or the type of a field.
      value: its form in JSON.
      where: names the value in errors.

    Raises:
      ValueError: for fields that do not exist, and values of another type.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    plain_class = isinstance(kind, type) and not dataclasses.is_dataclass(kind)
    kinds = subclasses(kind) if plain_class and isinstance(value, dict) else {}
    if kinds:
        name, value = value.get("type"), {k: v for k, v in value.items() if k != "type"}
        if name not in kinds:
            raise ValueError(f"{where}.type must be one of {', '.join(kinds)}, got {name!r}")
        kind = kinds[name]
    if origin in (typing.Union, types.UnionType):
        return build(_option(args, value), value, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object of settings, got {shown(value)}")
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise ValueError(
                f"{where} has no field {shown(unknown[0])}{nearest(unknown[0], hints)}"
            )
        fields = {name: build(hints[name], v, f"{where}.{name}") for name, v in value.items()}
        return kind(**fields)  # pyright: ignore[reportCallIssue]
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {shown(value)}")
        inner = args[:1] * len(value) if args[1:] == (...,) else args
        if len(inner) != len(value):
            raise ValueError(f"{where} must be a list of {len(inner)} values, got {shown(value)}")
        return tuple(build(t, v, where) for t, v in zip(inner, value, strict=True))
    if isinstance(value, dict | list):
        raise ValueError(f"{where} must be a plain value, got {shown(value)}")
    if not _fits(kind, value):
        raise ValueError(f"{where} must be {_describe(kind)}, got {shown(value)}")
    return float(value) if kind is float else value


def _fits(kind: Any, value: Any) -> bool:
    """Whether a plain value from JSON has a type; integers count as floats, and 1.0 as an int."""
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float:
        return number
    if kind is int:
        return number and (isinstance(value, int) or value.is_integer())
    return kind is Any or isinstance(value, kind)


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(kind)))}"
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
    return names.get(kind) or ("null" if kind is types.NoneType else "an object or a list")


def _option(kinds: tuple[Any, ...], value: Any) -> Any:
    """The member of a union that fits a value from JSON; else the first that is not None."""
    if isinstance(value, dict):
        return next((kind for kind in kinds if dataclasses.is_dataclass(kind)), Any)
    if isinstance(value, list):
        nested = bool(value) and isinstance(value[0], list)
        tuples = [kind for kind in kinds if typing.get_origin(kind) is tuple]
        deep = (typing.get_origin(typing.get_args(kind)[0]) is tuple for kind in tuples)
        return next((kind for kind, has in zip(tuples, deep, strict=True) if has == nested), Any)
    plain = [
        kind
        for kind in kinds
        if not (typing.get_origin(kind) is tuple or dataclasses.is_dataclass(kind))
    ]
    others = [kind for kind in kinds if kind is not types.NoneType]
    return next((kind for kind in plain if _fits(kind, value)), others[0])


def shown(value: Any) -> str:
    """A value as an error message shows it: `repr`, with the middle of long values left out."""
    return _SHORT.repr(value)


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error that asks whether the most similar of `names` was meant, or nothing."""
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f": did you mean {matches[0]!r}?" if matches else ""
