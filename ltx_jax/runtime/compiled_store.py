"""Compiled programs on disk, found by what they are called with.

jax's own cache is keyed by the lowered program, and tracing and lowering one takes longer than
reading what was compiled. Here the key is the call (function, shapes, options) together with all
the code of the package and all that jax is set to, so that a second start does neither. Files hold
code to run, like those of jax's cache: the folder has to be the user's own.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import os
import pickle
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

_PACKAGE = Path(__file__).parents[1]


def place(
    folder: Path, function: Any, args: Any, static: Mapping[str, Any], options: Mapping[str, Any]
) -> Path | None:
    """The file of a program; None if its call has no lasting description, or is not on the first
    device alone.

    Args:
      folder: of all programs.
      function: from `jax.jit`.
      args: of the call.
      static: the static keywords of the call.
      options: the compiler's.
    """
    leaves, tree = jax.tree.flatten(args)
    layouts = [getattr(leaf, "sharding", None) for leaf in leaves]
    elsewhere = any(x is not None and x.device_set != {_device()} for x in layouts)
    if elsewhere or not jax.sharding.get_abstract_mesh().empty:
        return None
    try:
        call = [_describe(x) for x in (function, dict(static), dict(options))]
    except TypeError:
        return None
    shapes = [(str(jax.typeof(x)), str(layout)) for x, layout in zip(leaves, layouts, strict=True)]
    key = hashlib.sha256(repr((_surroundings(), call, str(tree), shapes)).encode())
    return folder / f"{_name(inspect.unwrap(function))}-{key.hexdigest()[:32]}"


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """For compiling what is to be saved: what jax's cache gives cannot be saved again on CPUs."""
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # or it goes on as it began
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def load(path: Path) -> Callable[..., Any] | None:
    """The program of a file, ready to be called; None if there is none that is whole and fits."""
    try:
        digest, content = path.read_bytes().split(b"\n", 1)
    except (OSError, ValueError):
        return None
    if digest != hashlib.sha256(content).hexdigest().encode():
        return None
    try:
        kept = pickle.loads(content)
        return serialize_executable.deserialize_and_load(*kept, execution_devices=[_device()])
    except (jax.errors.JaxRuntimeError, ValueError):  # of a machine that is not quite like this one
        return None


def save(path: Path, compiled: jax.stages.Compiled) -> None:
    """Writes a program, whole or not at all; leaves out what cannot be written."""
    try:
        content = pickle.dumps(serialize_executable.serialize(compiled))
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError, MemoryError):
        return  # not every backend can, nor a program with constants or with oneDNN's calls
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        part.replace(path)
    except OSError:  # a full disk, or one that cannot be written, is no reason not to sample
        with contextlib.suppress(OSError):
            part.unlink()


def _describe(x: Any) -> Any:
    """A text, or a tree of texts, that says the same in another process.

    Raises:
      TypeError: if `x` cannot be told so: a function that remembers something, say.
    """
    if x is None or isinstance(x, (str, int, float, bool)):
        return repr(x)
    if isinstance(x, functools.partial):
        return "partial", _describe(x.func), _describe(x.args), _describe(x.keywords)
    if isinstance(x, Mapping):
        return {_describe(key): _describe(value) for key, value in sorted(x.items())}
    if isinstance(x, (tuple, list)):
        return type(x).__qualname__, [_describe(item) for item in x]
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return type(x).__qualname__, [
            (field.name, _describe(getattr(x, field.name))) for field in dataclasses.fields(x)
        ]
    function = inspect.unwrap(x) if callable(x) else x
    if getattr(function, "__closure__", ()) is None and "<" not in function.__qualname__:
        return _name(function)
    raise TypeError(f"no lasting description of {x!r}")


def _name(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _device() -> Any:
    return jax.local_devices()[0]


def _surroundings() -> Any:
    """All that a program depends on beside its call."""
    device = _device()
    versions = (jax.__version__, platform.python_version(), device.client.platform_version)
    config: Any = jax.config
    settings = sorted(config.values.items())
    variables = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    precision = config.jax_default_matmul_precision  # of the context, unlike the settings
    return _code(), versions, device.device_kind, _processor(), settings, precision, variables


@functools.cache
def _code() -> str:
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(_PACKAGE)).encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _processor() -> str:
    """What the CPU can do; programs for CPUs are compiled for just that."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = (line for line in lines if line.startswith(("flags", "Features")))
    return next(told, platform.platform())
