"""Jitted functions, compiled ahead of their first run and apart from it, and kept on disk."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from ltx_jax.runtime import compiled_store


class Programs:
    """Calls jitted functions; compiles each once per shape, and adds up the seconds that takes.

    Attributes:
      seconds: spent on tracing and compiling so far.
      count: programs compiled so far.
      compiler_options: of all programs.
      folder: where all instances keep them (`executables`); None keeps them nowhere.
    """

    folder: Path | None = None

    def __init__(self, compiler_options: Mapping[str, Any] | None = None) -> None:
        self.seconds = 0.0
        self.count = 0
        self.compiler_options = dict(compiler_options or {})
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(
        self,
        function: Any,
        *args: Any,
        compiler_options: Mapping[str, Any] | None = None,
        **static: Any,
    ) -> Any:
        """`function(*args, **static)`, for a function from `jax.jit` whose keywords are static.

        `compiler_options` are further ones for this function, the same in every call of it.

        Raises:
          MemoryError: on a CPU, if the program needs more memory than there is.
        """
        leaves, tree = jax.tree.flatten(args)
        key = (function, tuple(static.items()), tree, tuple(_signature(leaf) for leaf in leaves))
        if key not in self._compiled:
            begin = time.perf_counter()
            options = self.compiler_options | dict(compiler_options or {})
            self._compiled[key] = self._ready(function, args, static, options)
            self.seconds += time.perf_counter() - begin
            self.count += 1
        return self._compiled[key](*args)

    def _ready(
        self, function: Any, args: Any, static: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Callable[..., Any]:
        path = None
        if self.folder is not None:
            path = compiled_store.place(self.folder, function, args, static, options)
        kept = None if path is None else compiled_store.load(path)
        if kept is not None:
            return kept
        with contextlib.nullcontext() if path is None else compiled_store.compiling():
            compiled = function.lower(*args, **static).compile(compiler_options=dict(options))
        _check_memory(compiled)
        if path is not None:
            compiled_store.save(path, compiled)
        return compiled


def _signature(leaf: Any) -> Any:
    return jax.typeof(leaf), getattr(leaf, "sharding", None), getattr(leaf, "committed", None)


def _check_memory(compiled: Any) -> None:
    """Refuses what a CPU cannot hold: it would be killed for it without a word, or fail in a kernel
    that does not say why."""
    analysis = compiled.memory_analysis()
    if analysis is None or jax.default_backend() != "cpu":
        return
    needed = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise MemoryError(f"it needs {needed / 1e9:,.0f} GB of {present / 1e9:,.0f} GB")


# The second is what XLA's CPU kernels say that get no memory for the scores of attention.
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "YNNPACK operation failed")


@contextlib.contextmanager
def explain_memory_errors(advice: str) -> Iterator[None]:
    """Turns "out of memory", of device or host, into a MemoryError that says what to lower."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        known = any(sign in str(error) for sign in _OUT_OF_MEMORY)
        if not isinstance(error, MemoryError) and not known:
            raise
        reason = str(error).splitlines()[0]
        raise MemoryError(f"out of memory ({reason}); {advice}") from error


def use_compilation_cache() -> None:
    """Keeps compiled programs under ~/.cache/ltx_jax, or where JAX_COMPILATION_CACHE_DIR says."""
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None:
        folder = os.path.expanduser("~/.cache/ltx_jax/compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
    if "://" not in folder:  # in a bucket there is jax's cache alone
        Programs.folder = Path(folder) / "executables"
    # Small programs too: the second run of a shape compiles nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
