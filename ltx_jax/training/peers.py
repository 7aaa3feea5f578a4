"""Ends this process when another process of its run has died.

A collective waits for all processes. If one of them is gone, the others hang in code that no signal
interrupts, until the runtime aborts them a minute or two later. Here every process holds a
connection to the first one, which the operating system closes when a process dies.
"""

import atexit
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from ltx_jax.config import DistributedConfig

_PATIENCE = 30.0  # seconds within which all connections have to be made
_GRACE = 1.0  # seconds that the report of a death may arrive after the error that it causes
_ENDED = -1  # sent by a process that ends in order; other numbers are those of processes that died


@contextlib.contextmanager
def watched(cfg: DistributedConfig, program: str) -> Iterator[None]:
    """Ends this process, with one line on stderr and status 2, if another one dies in the block.

    Without connections between the processes, as behind a firewall, nothing is watched.

    Args:
      cfg: names the host of process 0; if it does not, the host's own name is used.
      program: the command's name, which begins the message.
    """
    if jax.process_count() == 1:
        yield
        return
    links, reporting, died = _connect(cfg), threading.Lock(), threading.Event()

    def end(process: int) -> None:
        """Reports a death to the processes connected to this one, and ends this process."""
        reporting.acquire()  # for good: only the first death is reported
        died.set()
        if jax.process_index() == 0:
            for link in links.values():
                with contextlib.suppress(OSError):
                    _send(link, process)
        print(
            f"{program}: error: process {process} of {jax.process_count()} has ended before the "
            "others, which stop too: start all of them again to go on from the last saved step",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    for process, link in links.items():
        threading.Thread(target=_watch, args=(process, link, end), daemon=True).start()
    try:
        yield
    except Exception:
        # A collective may fail before it is known here that a process has died.
        # Closing the connections wakes this process's own threads too, which must not report it.
        if died.wait(_GRACE) or not reporting.acquire(blocking=False):
            threading.Event().wait()  # until `end` ends this process
        for link in links.values():  # the others have to end
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        atexit.register(_leave)  # runs before jax's own function, which would wait for the others
        raise
    for link in links.values():
        with contextlib.suppress(OSError):
            _send(link, _ENDED)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def _connect(cfg: DistributedConfig) -> dict[int, socket.socket]:
    """Connections by process number: those of process 0 to all others, or that of another to 0."""
    index, count = jax.process_index(), jax.process_count()
    server = socket.create_server(("", 0), backlog=count) if index == 0 else None
    host = (cfg.coordinator or socket.gethostname()).rpartition(":")[0] or socket.gethostname()
    name = np.zeros(256, np.uint8)
    name[: len(host)] = np.frombuffer(host.encode()[:256], np.uint8)
    port = np.int32(server.getsockname()[1] if server else 0)
    name, port = multihost_utils.broadcast_one_to_all((name, port))
    links: dict[int, socket.socket] = {}
    try:
        if server is None:
            host = np.asarray(name).tobytes().rstrip(b"\0").decode()
            link = socket.create_connection((host, int(port)), timeout=_PATIENCE)
            _send(link, index)
            links[0] = link
        else:
            server.settimeout(_PATIENCE)
            while len(links) < count - 1:
                link, _ = server.accept()
                links[_receive(link)] = link
    except OSError as error:
        print(f"notice: this process will not notice if another one dies: {error}", file=sys.stderr)
    for link in links.values():
        link.settimeout(None)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that lost its power
    if server is not None:
        server.close()
    return links


def _watch(process: int, link: socket.socket, end: Callable[[int], None]) -> None:
    """Waits for the last number that another process sends; calls `end` unless it is `_ENDED`."""
    try:
        last = _receive(link)
    except OSError:
        last = process
    if last != _ENDED:
        end(last)


def _send(link: socket.socket, number: int) -> None:
    link.sendall(number.to_bytes(4, signed=True))


def _receive(link: socket.socket) -> int:
    """The next number that a process sends.

    Raises:
      OSError: if it is gone.
    """
    content = link.recv(4, socket.MSG_WAITALL)
    if len(content) < 4:
        raise ConnectionError("the other process is gone")
    return int.from_bytes(content, signed=True)
