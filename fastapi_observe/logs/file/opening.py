"""Opening a log file so that neither another process nor another user can damage it."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

FILE_MODE: Final = 0o640
DIRECTORY_MODE: Final = 0o750
SAFE_FLAGS: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
APPEND_FLAGS: Final = os.O_RDWR | os.O_APPEND

MAX_TORN_BYTES: Final = 1 << 16
"""Bytes at the end of a file that are searched for the start of an incomplete line."""


def open_log_file(path: Path, flags: int) -> int:
    """Open a log file and return its descriptor.

    Raises `PermissionError` with the reason and a remedy if the file may have been put there by another user, or
    another `OSError` if it cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | SAFE_FLAGS, FILE_MODE)
    except OSError as exc:
        if exc.errno == errno.ELOOP:  # "Too many levels of symbolic links", although one is enough
            raise PermissionError(errno.EPERM, "a symbolic link; remove it", str(path)) from None
        raise
    reason = unsafe_reason(os.fstat(descriptor), path.parent)
    if reason:
        os.close(descriptor)
        raise PermissionError(errno.EPERM, reason, str(path))
    return descriptor


def check_writable(path: Path) -> None:
    """Raise `OSError` if a log file cannot be written. Directories may be missing: they are made later.

    Nothing is created now. A process that starts as root, such as gunicorn's, would leave a file that its workers may
    not write to.
    """
    with suppress(FileNotFoundError):
        os.close(open_log_file(path, APPEND_FLAGS))
        return
    directory = next(each for each in path.parents if each.exists())
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"no permission to write in {directory}", str(path))


def unsafe_reason(file: os.stat_result, directory: Path) -> str:
    """Return why a file could belong to another user of the machine, or an empty string.

    In a directory that everyone may write to, such as `/tmp`, another user can put a file or a hard link in the place
    of ours. A directory that only its owner can write to is trusted.
    """
    if not stat.S_ISREG(file.st_mode):
        return "not a regular file; remove it"
    if not hasattr(os, "geteuid"):  # pragma: no cover - Windows
        return ""
    if file.st_uid not in {os.geteuid(), 0}:
        parent = directory.stat()
        if file.st_uid != parent.st_uid or parent.st_mode & stat.S_IWOTH:
            return f"owned by user {file.st_uid}; remove it, run chown {os.geteuid()}, or choose another directory"
    return "has a second hard link; remove it or choose a directory of your own" if file.st_nlink > 1 else ""


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Read from a file that is open for appending. Writes still go to its end."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


def repair_end(descriptor: int, size: int, *, locked: bool) -> int:
    """Remove an incomplete line that a killed process left at the end of a file. Returns the new size.

    Text that is not the start of one of our lines is kept and terminated; so is any text if the file is not locked,
    because another process may be writing it.
    """
    if not size or read_at(descriptor, 1, size - 1) == b"\n":
        return size
    if locked:
        start = max(0, size - MAX_TORN_BYTES)
        tail = read_at(descriptor, size - start, start)
        torn = tail[tail.rfind(b"\n") + 1 :]
        if len(torn) < MAX_TORN_BYTES and torn.startswith(b"{"):
            os.ftruncate(descriptor, size - len(torn))
            return size - len(torn)
    os.write(descriptor, b"\n")
    return size + 1


def make_directories(directory: Path) -> None:
    """Make a directory and its parents, all with `DIRECTORY_MODE`; `Path.mkdir` would open the parents to everyone."""
    if not directory.is_dir():
        make_directories(directory.parent)
        with suppress(FileExistsError):  # another process was faster, or a file is in the way: opening fails then
            directory.mkdir(DIRECTORY_MODE)
