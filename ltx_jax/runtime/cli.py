"""How a command is called and how it ends: an error is one line, and so is an interruption.

Command modules import nothing heavy at their top, so that Ctrl-C is handled here from the start,
even while JAX is still being imported.
"""

import argparse
import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Run = Callable[[list[str]], None]


def command(name: str, *, interrupted: str) -> Callable[[Run], Callable[..., int]]:
    """Turns a function of the arguments into a command that returns an exit status.

    Errors that a user can cause (ValueError, OSError, MemoryError, FloatingPointError) become one
    line on stderr and status 2, Ctrl-C becomes one line and status 130. A command that is called
    without arguments takes those of the process (`sys.argv`).

    Args:
      name: `train` for `ltx-train`.
      interrupted: the end of the line after Ctrl-C, which says what is left on disk.
    """

    def decorate(run: Run) -> Callable[..., int]:
        @functools.wraps(run)
        def main(arguments: list[str] | None = None) -> int:
            program = program_name(name)
            farewell = f"{program}: interrupted; {interrupted}"
            try:
                with _ending_imports(farewell):
                    run(sys.argv[1:] if arguments is None else arguments)
            except (ValueError, OSError, MemoryError, FloatingPointError) as error:
                message = " ".join(str(error).split()) or type(error).__name__
                print(f"{program}: error: {message}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print(farewell, file=sys.stderr)
                return 130
            return 0

        return main

    return decorate


@contextlib.contextmanager
def _ending_imports(farewell: str) -> Iterator[None]:
    """Ends the process at once if Ctrl-C comes during an import.

    Extension modules that are being initialised turn a KeyboardInterrupt into other errors, crash,
    or swallow it. Nothing has been begun then that would have to be undone.
    """
    usual = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if usual is not signal.default_int_handler or not in_main_thread:
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        caller = frame
        while caller is not None:
            if caller.f_code.co_filename == "<frozen importlib._bootstrap>":
                print(farewell, file=sys.stderr, flush=True)
                os._exit(130)
            caller = caller.f_back
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def program_name(name: str) -> str:
    """What the user typed to start the command.

    Args:
      name: `train` for `ltx-train`.

    Returns:
      `train.py`, `python -m ltx_jax.train`, or else `ltx-train`.
    """
    spec = sys.modules["__main__"].__spec__  # None, or the module that `python -m` runs
    if spec is not None and spec.name.removesuffix(".__main__") == f"ltx_jax.{name}":
        return f"python -m ltx_jax.{name}"
    script = f"{name}.py"
    return script if Path(sys.argv[0]).name == script else f"ltx-{name}"


def subcommand_parser(
    name: str, subcommand: str, description: str | None
) -> argparse.ArgumentParser:
    """A parser without options yet.

    Args:
      name: `prepare` for `ltx-prepare`.
      subcommand: `emoji` for `ltx-prepare emoji`.
      description: the help's text, shown with its line breaks.
    """
    return argparse.ArgumentParser(
        prog=f"{program_name(name)} {subcommand}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
