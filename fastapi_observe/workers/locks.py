"""Locks on files that several processes share, and whether a path still leads to the open file.

`flock` locks belong to the open file and are held for one write. `lockf` locks belong to the process and are held until
it ends, which shows the other processes that it runs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pathlib import Path


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file for one write. Returns False if it is locked elsewhere, None if the file system has no locks.

    The kernel releases the lock when the process dies.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, AttributeError):  # Windows has no such module
        return None
    return True


def unlock(descriptor: int) -> None:
    """Release the lock of `try_lock`. Closing is not enough: a forked child may have inherited the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def lock_file(descriptor: int) -> None:
    """Lock an open file until the process ends. Raises OSError if another process has locked it."""
    # fcntl locks belong to the process, not to the descriptor: a forked child does not have them. But closing any
    # descriptor of the file releases them, so a process must not open its own lock file again.
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(path: Path) -> bool:
    """Return whether another process has locked a file. Must not be called for a file that this process has locked."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        # A shared lock, so that two processes that look at the same time do not take each other for the owner.
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_same_file(descriptor: int, path: Path) -> bool:
    """Return whether the path still leads to the open file, which was not renamed or removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False
