"""Compiles jitted functions ahead of their first call, and stores the executables on disk."""

import collections
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from ltx_jax.runtime import compiled_store

# Programs in memory at once. A video needs about six, so that a page on which visitors choose sizes
# keeps those of the last twenty.
_MAX_PROGRAMS = 128


class Programs:
    """Calls jitted functions, compiles each once per shape, and measures the compilation time.

    The least recently called programs are forgotten when there are too many.

    Attributes:
      seconds: time spent on tracing and compiling so far.
      count: number of programs compiled so far.
      compiler_options: XLA's options for all programs.
      folder: where executables are stored (`compiled_store`); None: nowhere. One setting for
        the whole process, like jax's own cache; `use_compilation_cache` sets both.
    """

    folder: Path | None = None

    def __init__(self, compiler_options: Mapping[str, Any] | None = None) -> None:
        self.seconds = 0.0
        self.count = 0
        self.compiler_options = dict(compiler_options or {})
        self._compiled: collections.OrderedDict[Any, Callable[..., Any]] = collections.OrderedDict()

    def __call__(
        self,
        function: Any,
        *args: Any,
        compiler_options: Mapping[str, Any] | None = None,
        **static: Any,
    ) -> Any:
        """Calls `function(*args, **static)`, compiling it first if necessary.

        Args:
          function: result of `jax.jit`.
          *args: its arguments.
          compiler_options: further options for this function; the same in every call of it.
          **static: its keyword arguments, all of them static.

        Raises:
          MemoryError: on a CPU, if the program needs more memory than the machine has.
        """
        leaves, tree = jax.tree.flatten(args)
        key = (function, tuple(static.items()), tree, tuple(_signature(leaf) for leaf in leaves))
        if key not in self._compiled:
            begin = time.perf_counter()
            options = self.compiler_options | dict(compiler_options or {})
            self._compiled[key] = self._load_or_compile(function, args, static, options)
            self.seconds += time.perf_counter() - begin
            self.count += 1
            if len(self._compiled) > _MAX_PROGRAMS:
                self._forget_half()
        self._compiled.move_to_end(key)
        return self._compiled[key](*args)

    def _forget_half(self) -> None:
        """Forgets the programs that were called least recently, and what jax keeps of them.

        jax keeps as much memory of a traced function as the program takes; it can only forget all
        functions, and traces those that are needed again.
        """
        for key in list(self._compiled)[: _MAX_PROGRAMS // 2]:
            del self._compiled[key]
        jax.clear_caches()

    def _load_or_compile(
        self, function: Any, args: Any, static: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Callable[..., Any]:
        """Loads the executable from disk, or compiles and stores it."""
        path = None
        if self.folder is not None:
            path = compiled_store.executable_path(self.folder, function, args, static, options)
        executable = None if path is None else compiled_store.load(path)
        if executable is not None:
            return executable
        with contextlib.nullcontext() if path is None else compiled_store.without_jax_cache():
            compiled = function.lower(*args, **static).compile(compiler_options=dict(options))
        _check_memory(compiled)
        if path is not None:
            compiled_store.save(path, compiled)
        return compiled


def _signature(leaf: Any) -> Any:
    # jax compares types by identity, and the results of an executable that was read from disk have
    # types of their own.
    kind = jax.typeof(leaf)
    layout = getattr(leaf, "sharding", None), getattr(leaf, "committed", None)
    return kind.shape, kind.dtype, kind.weak_type, *layout


def _check_memory(compiled: Any) -> None:
    """Raises MemoryError if a program for the CPU needs more memory than the machine has.

    Otherwise the process would be killed without a message, or fail in a kernel with an unclear
    message.
    """
    analysis = compiled.memory_analysis()
    if analysis is None or jax.default_backend() != "cpu":
        return
    required = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if required > available:
        raise MemoryError(
            f"the program needs {required / 1e9:,.0f} GB of the machine's {available / 1e9:,.0f} GB"
        )


# Parts of XLA's error messages. The second comes from its CPU kernels when the attention scores do
# not fit into memory.
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "YNNPACK operation failed")


@contextlib.contextmanager
def explain_memory_errors(advice: str) -> Iterator[None]:
    """Turns out-of-memory errors of device or host into a MemoryError that ends with `advice`."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        is_out_of_memory = any(part in str(error) for part in _OUT_OF_MEMORY)
        if not isinstance(error, MemoryError) and not is_out_of_memory:
            raise
        reason = str(error).splitlines()[0]
        raise MemoryError(f"out of memory ({reason}); {advice}") from error


def use_compilation_cache() -> None:
    """Stores compiled programs in JAX_COMPILATION_CACHE_DIR, by default ~/.cache/ltx_jax.

    They are not stored where another user may write, who could put other programs there.
    """
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None:
        folder = os.path.expanduser("~/.cache/ltx_jax/compiled")
        if compiled_store.own_folder(Path(folder)) is None:
            return
        jax.config.update("jax_compilation_cache_dir", folder)
    if "://" not in folder:  # in a bucket (gs://), only jax's own cache is stored
        Programs.folder = compiled_store.own_folder(Path(folder) / "executables")
    # Small programs are cached too, so that the second run of a shape compiles nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
