"""A process of Beam that works on a pipeline: python -m ltx_jax.prepare.worker_process

Beam's own worker program logs each of its actions, and every worker prints the traceback of an
error. This program shows only the log of other packages; errors reach the main process, which
reports them in one line.
"""

import contextlib
import logging
import os


def is_not_from_beam(record: logging.LogRecord) -> bool:
    """False for Beam's warnings on the root logger about missing optional packages."""
    return "apache_beam" not in record.pathname


def main() -> None:
    """Serves the main process, whose address is in the environment, until it is done."""
    logging.basicConfig()  # on the stderr that there is before the block below
    logging.getLogger().addFilter(is_not_from_beam)
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    from apache_beam.runners.worker import sdk_worker_main

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        sdk_worker_main.main([])


if __name__ == "__main__":
    main()
