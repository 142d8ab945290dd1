"""One open log file: at its path and locked, whatever other processes do to it."""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from datetime import datetime
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Final

from fastapi_observe.logs.file.lock import LOCKS, is_same_file, open_append, truncate_torn_line, try_lock, unlock

if TYPE_CHECKING:
    from fastapi_observe.logs.file.names import LogFileNames

HOLDER_PATIENCE: Final = 1.0
"""Seconds after which a process that holds the lock counts as stopped."""

PAUSES: Final = (0.0002, 0.002)
"""Seconds between looks at a lock that another holds: the first and the longest."""

MAX_NAMES: Final = 100
"""Most files of processes with the same id (several containers, one volume), and most attempts to have one open."""

OWN_LINE: Final = re.compile(rb'\{"timestamp":"([0-9TZ:.+-]{20,32})","level":"')


class OpenFile:
    """The file that lines are appended to, by one process or by all.

    `hold` makes sure that it stands at its path and is locked: whoever writes to, cuts or compresses a file has its
    lock. Every method may raise `OSError`.
    """

    def __init__(self, names: LogFileNames) -> None:
        self._names = names
        self.path = names.process_path(os.getpid())
        self.opened = 0
        self.started_at = 0.0
        self._descriptor = -1
        self._locked: bool | None = False
        self._pid = 0
        self._end = -1

    def acquire(self, patience: float | None) -> bool:
        """Have the file open, at its path, and locked; False: another process has the lock for longer than `patience`.

        Without `patience` the file of a process that does not give the lock back is renamed as in a rotation: that
        process, once it goes on, ends what it was about, and nobody else waits for it.
        """
        if self._pid != os.getpid():
            self.close()
            self._pid = os.getpid()
        until = monotonic() + (HOLDER_PATIENCE if patience is None else patience)
        pause, longest = PAUSES
        most = self.opened + MAX_NAMES
        while True:
            if self._descriptor < 0:
                if self.opened == most:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                self._open()
            if self._locked is False:
                self._locked = try_lock(self._descriptor)
            if not is_same_file(self._descriptor, self.path):
                self.close()
            elif self._locked is not False:
                return True
            elif monotonic() < until:
                sleep(pause)
                pause = min(2 * pause, longest)
            elif patience is not None:
                return False
            else:
                with suppress(FileNotFoundError):  # another process was quicker
                    self.rename()
                until = monotonic() + HOLDER_PATIENCE

    def release(self) -> None:
        """Let others write to a shared file; the file of one process stays locked."""
        if self._names.shared and self._locked:
            self._locked = False
            unlock(self._descriptor)

    def close(self) -> None:
        """Close the file, if it is open; the lock goes with it."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._locked = False
            os.close(descriptor)

    def size(self) -> int:
        """Return the size, after a line was cut off that a killed process has not written to its end."""
        size = os.fstat(self._descriptor).st_size
        return truncate_torn_line(self._descriptor, size) if self._locked and size != self._end else size

    def append(self, data: bytes, size: int) -> tuple[int, OSError | None]:
        """Write `data` to the end, which is at `size`; return how much was taken, and why not all of it."""
        taken = 0
        try:
            while taken < len(data):
                taken += os.write(self._descriptor, data[taken:] if taken else data)
        except OSError as exc:
            return taken, exc
        finally:
            self._end = size + taken
        return taken, None

    def cut(self, size: int) -> None:
        """Take back what stands behind `size`."""
        os.ftruncate(self._descriptor, size)
        self._end = size

    def is_removed(self) -> bool:
        """Tell whether the file was removed while it was written to: what was written is gone with it."""
        return os.fstat(self._descriptor).st_nlink == 0 and not is_same_file(self._descriptor, self.path)

    def rename(self) -> None:
        """Give the file the name of a rotated one; the next `hold` begins a new one."""
        if not LOCKS:  # pragma: no cover - Windows renames no file that is open
            self.close()
        self.path.rename(self._names.next_rotated(self.path, time()))
        self.close()

    def _open(self) -> None:
        self._descriptor = self._open_one()
        self.opened += 1
        self._end = -1
        self.started_at = _begun(self._descriptor)

    def _open_one(self) -> int:
        if self._names.shared:
            return open_append(self.path)
        for again in range(MAX_NAMES):
            self.path = self._names.process_path(self._pid, again)
            descriptor = open_append(self.path)
            self._locked = try_lock(descriptor)
            if self._locked is not False and is_same_file(descriptor, self.path):
                return descriptor
            os.close(descriptor)
        raise FileExistsError(errno.EEXIST, f"{MAX_NAMES} processes hold files of the same name")


def _begun(descriptor: int) -> float:
    """Return when the file was begun (seconds since the epoch): as its first line tells, else now."""
    if hasattr(os, "pread"):  # pragma: no branch - Windows
        found = OWN_LINE.match(os.pread(descriptor, 80, 0))
        if found:
            with suppress(ValueError):
                return datetime.fromisoformat(found[1].decode()).timestamp()
    return time()
