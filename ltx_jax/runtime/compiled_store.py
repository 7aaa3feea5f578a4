"""Stores executables on disk, keyed by the call that they were compiled for.

jax's own cache is keyed by the lowered program, but tracing and lowering take longer than reading
an executable. Here the key consists of the call (function, shapes, options), the source code of
this package and jax's settings, so that a second start neither traces nor lowers. The files contain
executable code, like those of jax's cache: they are neither read nor written where another user may
write.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import os
import pickle
import platform
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from ltx_jax.runtime import files

_PACKAGE = Path(__file__).parents[1]
_MAX_BYTES = 20_000_000_000  # of all executables; the least recently used ones make room


def executable_path(
    folder: Path, function: Any, args: Any, static: Mapping[str, Any], options: Mapping[str, Any]
) -> Path | None:
    """Path of the executable for a call.

    None if the call cannot be described in the same way in every process (`_describe`), or if it
    runs on other devices than the first.

    Args:
      folder: folder of all executables.
      function: result of `jax.jit`.
      args: arguments of the call.
      static: static keyword arguments of the call.
      options: compiler options.
    """
    leaves, tree = jax.tree.flatten(args)
    layouts = [getattr(leaf, "sharding", None) for leaf in leaves]
    on_other_devices = any(x is not None and x.device_set != {_device()} for x in layouts)
    if on_other_devices or not jax.sharding.get_abstract_mesh().empty:
        return None
    try:
        call = [_describe(x) for x in (function, dict(static), dict(options))]
    except TypeError:
        return None
    shapes = [(str(jax.typeof(x)), str(layout)) for x, layout in zip(leaves, layouts, strict=True)]
    key = hashlib.sha256(repr((_environment(), call, str(tree), shapes)).encode())
    return folder / f"{_name(inspect.unwrap(function))}-{key.hexdigest()[:32]}"


@contextlib.contextmanager
def without_jax_cache() -> Iterator[None]:
    """Turns jax's cache off: on CPUs, an executable loaded from it cannot be serialised again."""
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # the setting takes effect only after a reset
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def own_folder(folder: Path) -> Path | None:
    """Makes a folder for executables, for this user alone.

    None, with a notice on stderr, if another user may write it; None if it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if _is_own(folder.stat()):
            return folder
    except OSError:
        return None
    print(
        f"notice: compiled programs are not stored in {folder}, where another user may write: "
        f"chmod go-w it if it is yours, or set JAX_COMPILATION_CACHE_DIR",
        file=sys.stderr,
    )
    return None


def _is_own(status: os.stat_result) -> bool:
    """Whether only this user may write a file or folder."""
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def load(path: Path) -> Callable[..., Any] | None:
    """Loads an executable; None if there is no intact one that this machine can run.

    A file that another user may have written is not read.
    """
    try:
        with path.open("rb") as file:
            if not (_is_own(os.fstat(file.fileno())) and _is_own(path.parent.stat())):
                return None
            digest, content = file.read().split(b"\n", 1)
        os.utime(path)  # used now
    except (OSError, ValueError):
        return None
    if digest != hashlib.sha256(content).hexdigest().encode():
        return None
    try:
        parts = pickle.loads(content)
        return serialize_executable.deserialize_and_load(*parts, execution_devices=[_device()])
    except (jax.errors.JaxRuntimeError, ValueError):  # compiled on a slightly different machine
        return None


def save(path: Path, compiled: jax.stages.Compiled) -> None:
    """Writes an executable atomically. Does nothing if it cannot be serialised or written."""
    try:
        content = pickle.dumps(serialize_executable.serialize(compiled))
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError, MemoryError):
        # Some backends cannot serialise programs, and no backend can serialise those with constants
        # or with calls of oneDNN.
        return
    # A full or read-only disk must not stop the program.
    with contextlib.suppress(ValueError, OSError):
        _make_room(path.parent, len(content))
        with files.atomic_write(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def _make_room(folder: Path, size: int) -> None:
    """Deletes the executables that were used least recently if the folder would grow too large."""
    status = {path: path.stat() for path in folder.glob("*")}
    total = size + sum(one.st_size for one in status.values())
    for path in sorted(status, key=lambda path: status[path].st_mtime):
        if total <= _MAX_BYTES:
            break
        path.unlink(missing_ok=True)
        total -= status[path].st_size


def _describe(x: Any) -> Any:
    """Describes a value by a string or a tree of strings, the same in every process.

    Raises:
      TypeError: if there is no such description, as for a closure.
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
    raise TypeError(f"{x!r} has no description that is stable between processes")


def _name(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _device() -> Any:
    return jax.local_devices()[0]


def _environment() -> Any:
    """Everything besides the call that an executable depends on."""
    device = _device()
    versions = (jax.__version__, platform.python_version(), device.client.platform_version)
    config: Any = jax.config
    settings = sorted(config.values.items())
    variables = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    precision = config.jax_default_matmul_precision  # a context manager may set it
    return _code(), versions, device.device_kind, _processor(), settings, precision, variables


@functools.cache
def _code() -> str:
    """Hash of the package's source code."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(_PACKAGE)).encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _processor() -> str:
    """The CPU's instruction sets, for which programs are compiled."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = (line for line in lines if line.startswith(("flags", "Features")))
    return next(flags, platform.platform())
