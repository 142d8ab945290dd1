"""Opens log files and locks them: the kernel frees the locks of processes that die."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from fastapi_observe.logs.file.folder import open_file

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: there a file that someone has open cannot be renamed
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pathlib import Path

LOCKS: Final = fcntl is not None

MAX_TORN_BYTES: Final = 1 << 16
"""Bytes in which the beginning of a line that was not written to its end is looked for."""


def open_append(path: Path, *, create: bool = True) -> int:
    """Open `path` to append to it and to read what others appended; with `create` its folders are made too."""
    return open_file(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0), make=create)


def try_lock(descriptor: int) -> bool | None:
    """Take the lock of an open file; False: another holds it, None: there are no locks on this file system."""
    if not LOCKS:  # pragma: no cover - Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def unlock(descriptor: int) -> None:
    """Give the lock back; a copy of the descriptor in a forked child must not keep it."""
    if LOCKS:  # pragma: no branch - Windows
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def is_same_file(descriptor: int, path: Path) -> bool:
    """Tell whether the open file is the one at `path`: another process may have renamed or removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def truncate_torn_line(descriptor: int, size: int) -> int:
    """Cut off a line that a killed process has not written to its end; return the size. The file must be locked."""
    if not size or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    begin = max(0, size - MAX_TORN_BYTES)
    tail = os.pread(descriptor, size - begin, begin)
    torn = tail[tail.rfind(b"\n") + 1 :]
    if len(torn) < MAX_TORN_BYTES and torn.startswith(b"{"):
        os.ftruncate(descriptor, size - len(torn))
        return size - len(torn)
    os.write(descriptor, b"\n")  # not a line of ours: it is only ended
    return size + 1
