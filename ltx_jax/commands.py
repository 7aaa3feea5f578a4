"""The eight commands as programs: Ctrl-C ends them quietly from the first import on."""

import functools
import importlib
import signal
import threading


def _program(module: str, arguments: list[str] | None = None) -> int:
    """Imports a command and runs it, with the arguments of the process if none are given."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    usual = signal.getsignal(signal.SIGINT)
    if in_main_thread and usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the system ends the process, without a word
    try:
        main = importlib.import_module(module).main
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, usual)
    return main(arguments)


train = functools.partial(_program, "ltx_jax.train")
sample = functools.partial(_program, "ltx_jax.sample")
encode = functools.partial(_program, "ltx_jax.encode")
export = functools.partial(_program, "ltx_jax.export")
prepare = functools.partial(_program, "ltx_jax.prepare.__main__")
evaluate = functools.partial(_program, "ltx_jax.evaluate.__main__")
demo = functools.partial(_program, "ltx_jax.demo.__main__")
preview = functools.partial(_program, "ltx_jax.preview")
