"""The rotating log file that all worker processes append to."""

from __future__ import annotations

import errno
import logging
import os
import re
from contextlib import suppress
from datetime import datetime
from time import sleep, time
from typing import TYPE_CHECKING, Final

from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.throttle import LogThrottle
from fastapi_observe.logs.file.opening import (
    APPEND_FLAGS,
    check_writable,
    make_directories,
    open_log_file,
    read_at,
    repair_end,
)
from fastapi_observe.logs.file.retention import RotatedFiles
from fastapi_observe.logs.file.rotation import LogFileNames, parse_limits
from fastapi_observe.workers.locks import is_same_file, try_lock, unlock

if TYPE_CHECKING:
    from collections.abc import Callable

FILE_RETRY_INTERVAL: Final = 0.5
"""Seconds until a file that could not be written or rotated is tried again."""

LOCK_ATTEMPTS: Final = 500
LOCK_PAUSE: Final = 0.002
"""Seconds between attempts. They are counted, not timed: a test may have stopped the clock."""

STREAM_PATHS: Final = frozenset(
    {"-", "/dev/stdout", "/dev/stderr", "/dev/fd/1", "/dev/fd/2", "/proc/self/fd/1", "/proc/self/fd/2"}
)

OWN_LINE: Final = re.compile(rb'\{"timestamp":"([0-9TZ:.+-]{20,32})","level":"')

DROPPED: Final = "Lines are dropped from the file (not from standard output); retrying twice per second."

LOGGER: Final = logging.getLogger("fastapi_observe")


class LogFile:
    """Appends batches of whole lines to `path` and rotates it.

    Each batch is one write under the lock of the file, so a process that is killed in the middle of it leaves at most
    one incomplete line, which the next writer removes before it appends. Rotation renames the file under the same
    lock; a process that waits for the lock notices and opens the new file. `rotation` and `retention` are as in the
    settings; the total size includes the current file, which is rotated at a quarter of it at the latest. Raises
    `ValueError` if `path` cannot be written; later nothing raises. `written` counts lines, `dropped` those that were
    lost, by reason.
    """

    def __init__(
        self,
        path: str,
        rotation: str | None,
        retention: str | None,
        *,
        compress: bool,
        on_internal_error: Callable[[str, BaseException], None],
    ) -> None:
        if path in STREAM_PATHS:
            raise ValueError(f"log_file: invalid value {path!r}; lines always go to standard output, so omit log_file")
        try:
            self._names = LogFileNames(path)
            self.path = self._names.process_path()
            check_writable(self.path)
        except (OSError, RuntimeError, ValueError) as exc:  # without a home directory; with a null character
            reason = getattr(exc, "strerror", None) or exc
            remedy = "choose a file in a directory that this process may write to"
            raise ValueError(f"log_file: cannot write {path!r}: {reason}; {remedy}") from None
        self.written = 0
        self.dropped = {"queue_full": 0, "file_write": 0, "internal_error": 0}
        self._max_size, self._max_age, _ = parse_limits(rotation)
        kept = parse_limits(retention)
        if kept.size is not None:
            self._max_size = min(self._max_size or kept.size, max(1, kept.size // 4))
            kept = kept._replace(size=kept.size - self._max_size)
        self.rotated_files = RotatedFiles(self._names, kept, compress=compress, on_error=self._report_cleanup)
        self._on_internal_error = on_internal_error
        self._throttle = LogThrottle()
        self._descriptor = -1
        self._pid = os.getpid()
        self._locked: bool | None = False  # None: the file system has no locks, so writes rely on O_APPEND alone
        self._end = -1  # where the last write of this process ended; -1 after the file was opened
        self._first_line_time = 0.0
        self._retry_at = self._rotate_at = 0.0
        self._dropped_in_outage = 0

    def write(self, lines: list[bytes]) -> None:
        """Append `lines`. They are dropped and counted if the disk does not take all of them."""
        try:
            if monotonic() < self._retry_at:
                self._drop(lines, "file_write")
                return
            rotated = self._append(b"".join(lines))
        except OSError as exc:
            self._retry_at = monotonic() + FILE_RETRY_INTERVAL
            self._drop(lines, "file_write")
            self._close_descriptor()
            self._report("write", exc, DROPPED)
        except Exception as exc:  # noqa: BLE001 - an internal error must not end the writer's thread
            self._drop(lines, "internal_error")
            self._close_descriptor()
            self._on_internal_error("logs.file", exc)
        else:
            self.written += len(lines)
            if self._dropped_in_outage:
                self._report_recovery()
            self.rotated_files.start_cleanup(self.path.parent, rotated=rotated)

    def close(self) -> None:
        """Close the file. A later `write` opens it again."""
        self.rotated_files.stop()
        self._close_descriptor()

    def _append(self, data: bytes) -> bool:
        """Write `data` to the current file, after a rotation if it is due. Returns whether it was rotated."""
        rotated = False
        while True:
            self._lock_current()
            try:
                size = os.fstat(self._descriptor).st_size
                if size != self._end:  # another process has written since
                    size = repair_end(self._descriptor, size, locked=bool(self._locked))
                if not (size and self._is_rotation_due(size + len(data)) and self._rotate()):
                    self._write_all(data, size)
                    return rotated
                rotated = True
            finally:
                self._unlock()

    def _lock_current(self) -> None:
        """Open and lock the file at `path`.

        A process that is stopped while it holds the lock (SIGSTOP, a debugger) would block the others without end:
        after a second they rename its file, as in a rotation. It finishes its batch there.
        """
        if self._pid != os.getpid():  # a forked child shares the lock with its parent until it opens the file itself
            self._close_descriptor()
            self._pid = os.getpid()
            self.path = self._names.process_path()
        for attempt in range(2 * LOCK_ATTEMPTS):
            if self._descriptor < 0:
                self._open()
            self._locked = try_lock(self._descriptor)
            if not is_same_file(self._descriptor, self.path):
                self._close_descriptor()
            elif self._locked is not False:
                return
            elif attempt == LOCK_ATTEMPTS:
                with suppress(FileNotFoundError):  # another process was faster
                    self.path.rename(self._names.next_rotated(self.path, time()))
            else:
                sleep(LOCK_PAUSE)
        raise OSError(errno.EBUSY, "another process holds its lock; end that process if it is stopped or hangs")

    def _open(self) -> None:
        make_directories(self.path.parent)
        self._descriptor = open_log_file(self.path, APPEND_FLAGS | os.O_CREAT)
        self._end = -1
        self._first_line_time = time()
        match = OWN_LINE.match(read_at(self._descriptor, 80, 0))
        if match:
            with suppress(ValueError):
                self._first_line_time = datetime.fromisoformat(match[1].decode()).timestamp()

    def _unlock(self) -> None:
        if self._locked and self._descriptor >= 0:
            unlock(self._descriptor)
        self._locked = False

    def _close_descriptor(self) -> None:
        """Close the file, which releases its lock."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._locked = False
            with suppress(OSError):
                os.close(descriptor)

    def _is_rotation_due(self, size: int) -> bool:
        if self._max_age is not None and time() - self._first_line_time >= self._max_age:
            return True
        return self._max_size is not None and size > self._max_size

    def _rotate(self) -> bool:
        """Rename the locked file. Returns False if that is not possible: then it grows further."""
        if monotonic() < self._rotate_at:
            return False
        try:
            if self._locked is None and os.name == "nt":  # pragma: no cover - Windows renames no open file
                self._close_descriptor()
            self.path.rename(self._names.next_rotated(self.path, time()))
        except FileNotFoundError:  # another program has renamed or removed it
            pass
        except OSError as exc:
            self._rotate_at = monotonic() + FILE_RETRY_INTERVAL
            self._report_cleanup(exc)
            return False
        self._close_descriptor()
        return True

    def _write_all(self, data: bytes, size: int) -> None:
        """Write the whole batch, or nothing of it, at the end of the file, which is at `size`."""
        taken = 0
        try:
            while taken < len(data):
                taken += os.write(self._descriptor, data[taken:] if taken else data)
        except OSError:
            if taken and self._locked:
                os.ftruncate(self._descriptor, size)
            raise
        self._end = size + taken

    def _drop(self, lines: list[bytes], reason: str) -> None:
        self._dropped_in_outage += len(lines)
        self.dropped[reason] += len(lines)

    def _report_cleanup(self, exc: OSError) -> None:
        self._report("rotate or clean up", exc, "No lines are lost; retrying.")

    def _report(self, action: str, exc: OSError, consequence: str) -> None:
        if self._throttle.allow(action):
            reason = exc.strerror or type(exc).__name__
            LOGGER.error("Cannot %s the log file %s: %s. %s", action, self.path, reason, consequence)

    def _report_recovery(self) -> None:
        """Log the end of an outage; if the last one ended less than a minute ago, when that minute is over."""
        if self._throttle.allow("recovery"):
            dropped, self._dropped_in_outage = self._dropped_in_outage, 0
            LOGGER.warning("Writing the log file %s again; %d lines were dropped.", self.path, dropped)
