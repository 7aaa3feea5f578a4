"""A lock on a run's folder: one process writes it."""

import contextlib
import fcntl
import os
import socket
import uuid

from etils import epath

_NAME = "lock"


class Lock:
    """Holds a run's folder for this process, until it is released or the process ends in any way.

    The operating system locks a local folder, and unlocks it when the process dies; the lock's file
    names the process. Objects in a cloud cannot be locked: there the process that came last holds
    the run, and `check` fails in the one before it.

    Raises:
      ValueError: if another process holds the folder.
    """

    def __init__(self, folder: epath.Path):
        self._file = folder / _NAME
        self._sign = f"{os.getpid()} {socket.gethostname()} {uuid.uuid4()}"
        self._descriptor: int | None = None
        if is_address(folder):
            self._file.write_text(self._sign)
            return
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            process, host, *_ = [*os.read(descriptor, 1000).decode().split(), "?", "?"]
            os.close(descriptor)
            raise ValueError(
                f"{folder} is being written by process {process} on {host}: wait for it, stop it, "
                "or choose another --run.output"
            ) from None
        except OSError:
            pass  # a file system without locks cannot guard anything
        os.truncate(descriptor, 0)
        os.write(descriptor, self._sign.encode())
        self._descriptor = descriptor

    def check(self) -> None:
        """Checks that this process still holds the run.

        Raises:
          ValueError: if another one has taken it.
        """
        if self._descriptor is not None:
            return
        sign = self._file.read_text()
        if sign != self._sign:
            process, host, _ = sign.split()
            raise ValueError(
                f"process {process} on {host} has taken over {self._file.parent}: this run stops"
            )

    def remove(self) -> None:
        """Deletes the lock's file, and the folder if it holds nothing else."""
        self._file.unlink(missing_ok=True)
        with contextlib.suppress(OSError, ValueError):  # it holds other things
            self._file.parent.rmdir()

    def release(self) -> None:
        """Releases the folder; the file stays, empty."""
        if self._descriptor is None:
            return
        os.truncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None


def is_address(path: epath.PathLike) -> bool:
    """Whether a path is the address of objects in a cloud (gs://...) rather than of files."""
    return "://" in os.fspath(path)
