"""A lock on a folder that only one process may write, such as a run or an unfinished data set."""

import contextlib
import fcntl
import os
import socket
import uuid
from collections.abc import Iterator

from etils import epath

_NAME = "lock"
_DESCRIPTORS = "/proc/self/fd"  # Linux: open folders, under the numbers of their descriptors


class Lock:
    """Holds a folder for this process, until it is released or the process ends in any way.

    The operating system locks a local folder, and unlocks it when the process dies; the lock's file
    names the process. Objects in a cloud cannot be locked: there the process that came last holds
    the run, and `check` fails in the one before it.

    Args:
      folder: an existing folder.
      option: the command's option that names it, for the error.
      name: the file's name; locks of other names do not exclude each other.

    Raises:
      ValueError: if another process holds the folder.
    """

    def __init__(self, folder: epath.Path, option: str = "--run.output", name: str = _NAME):
        self._file = folder / name
        self._owner = f"{os.getpid()} {socket.gethostname()} {uuid.uuid4()}"
        self._descriptor: int | None = None
        self._directory: int | None = None
        if is_address(folder):
            self._file.write_text(self._owner)
            return
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            process, host, *_ = [*os.read(descriptor, 1000).decode().split(), "?", "?"]
            os.close(descriptor)
            raise ValueError(
                f"{folder} is being written by process {process} on {host}: wait for it, stop it, "
                f"or choose another {option}"
            ) from None
        except OSError:
            pass  # a file system without locks cannot guard anything
        os.truncate(descriptor, 0)
        os.write(descriptor, self._owner.encode())
        self._descriptor = descriptor
        if os.path.isdir(_DESCRIPTORS):
            self._directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    @property
    def pinned(self) -> epath.Path:
        """The folder, on Linux by a path that stays right in this process when it is renamed."""
        if self._directory is None:
            return self._file.parent
        return epath.Path(_DESCRIPTORS) / str(self._directory)

    def check(self) -> None:
        """Checks that this process still holds the folder.

        Raises:
          ValueError: if another one has taken it, or the folder has been moved or deleted.
        """
        if self._descriptor is not None:
            held = os.fstat(self._descriptor)
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(self._file), held):
                    return
            raise ValueError(
                f"{self._file.parent} has been moved or deleted: this run stops. To continue "
                "from its last step, name the new place of the folder (--run.output)"
            )
        owner = self._file.read_text()
        if owner != self._owner:
            process, host, _ = owner.split()
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
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None


@contextlib.contextmanager
def locked(folder: str | os.PathLike, option: str, name: str = _NAME) -> Iterator[None]:
    """Holds a folder during a block, as `Lock` does; afterwards the lock's file is gone."""
    lock = Lock(epath.Path(folder), option, name)
    try:
        yield
    finally:
        lock.remove()
        lock.release()


def is_address(path: epath.PathLike) -> bool:
    """Whether a path is the address of objects in a cloud (gs://...) rather than of files."""
    return "://" in os.fspath(path)
