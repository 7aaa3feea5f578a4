"""Imports that wait until a name is first used: public names of a package, and classes by name."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a `__getattr__` for a package, which imports a public name when it is first used.

    Importing one module of the package then does not import the dependencies of the others.

    Args:
      package: name of the package.
      modules: module of each public name.
    """

    def get(name: str) -> Any:  # PEP 562
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return get


def load_named(reference: str, where: str) -> Any:
    """Imports the object that "module:name" refers to; `where` names the reference in errors.

    Raises:
      ValueError: if there is no such object.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where} = {reference!r}: {error}") from error
