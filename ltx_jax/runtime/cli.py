"""How a command is called and how it ends: an error is one line, and so is an interruption.

Command modules import nothing heavy at their top, so that Ctrl-C is handled here from the start,
even while JAX is still being imported.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

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
            try:
                run(sys.argv[1:] if arguments is None else arguments)
            except (ValueError, OSError, MemoryError, FloatingPointError) as error:
                message = " ".join(str(error).split()) or type(error).__name__
                print(f"{program}: error: {message}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print(f"{program}: interrupted; {interrupted}", file=sys.stderr)
                return 130
            return 0

        return main

    return decorate


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
