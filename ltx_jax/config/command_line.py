"""Settings on a command line, as tyro reads them from the fields of a dataclass."""

import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints


def parse(arguments: Sequence[str], default: Any, **options: Any) -> Any:
    """Returns `default` with the fields changed that the arguments name.

    An option that takes several values (`--lora A B`) may also be repeated (`--lora A --lora B`).
    If an option that takes one value is repeated, its last value counts.

    Args:
      default: a dataclass with the values of the other fields.
      options: keyword arguments of `tyro.cli`.

    Raises:
      ImportError: without tyro.
      SystemExit: for --help and for arguments that name no field or hold no value of its type.
    """
    import tyro  # only the command line needs it

    return tyro.cli(type(default), args=_joined(arguments, default), default=default, **options)


def _joined(arguments: Sequence[str], default: Any) -> list[str]:
    """The arguments with all values of a repeated option at its first place: tyro drops all values
    but the last ones."""
    current: list[str] = []
    groups = [current]  # each an option and its values
    lists: dict[str, list[str]] = {}  # the groups of options of several values
    for argument in arguments:
        if not argument.startswith("--"):
            current.append(argument)
            continue
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-")  # both are accepted
        if name in lists:
            current = lists[name]
        elif _takes_several(name, default):
            current = lists[name] = [name]
            groups.append(current)
        else:
            groups.append(current := [argument])
            continue
        current += [value] if equals else []
    return [word for group in groups for word in group]


def _takes_several(option: str, default: Any) -> bool:
    """Whether an option ("--run.init_extra") names a field that holds a tuple."""
    *parents, field = option.removeprefix("--").replace("-", "_").split(".")
    for parent in parents:
        default = getattr(default, parent, None)
    hint = get_type_hints(type(default)).get(field)
    is_union = get_origin(hint) in (Union, types.UnionType)
    kinds = get_args(hint) if is_union else (hint,)
    return all(get_origin(kind) is tuple for kind in kinds if kind is not types.NoneType)
