"""The rotating log file, shared by all processes of an app, or one for each."""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_right
from contextlib import suppress
from itertools import accumulate
from secrets import token_hex
from time import monotonic, time
from typing import TYPE_CHECKING, Final

from fastapi_observe.logs.file.lock import open_append
from fastapi_observe.logs.file.names import LogFileNames, Rotation
from fastapi_observe.logs.file.opening import OpenFile
from fastapi_observe.logs.file.outage import FileErrorLog
from fastapi_observe.logs.file.retention import Retention, RetentionManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FILE_RETRY_INTERVAL: Final = 0.5
"""Seconds until a file that could not be written, or not be rotated, is tried again."""

CLEANUP_INTERVAL: Final = 600.0
"""Seconds until old files are looked for where nothing was rotated."""

MEASURE_INTERVAL: Final = 1.0
"""Seconds until it is looked again how much other processes have written to files of their own."""

KEPT_LINES: Final = 10_000
"""Most lines that wait for the lock; more are dropped and counted."""

DISK_FULL_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

STREAM_PATHS: Final = frozenset(
    {"-", "/dev/stdout", "/dev/stderr", "/dev/fd/1", "/dev/fd/2", "/proc/self/fd/1", "/proc/self/fd/2"}
)


class LogFile:
    """Appends lines to `path`, rotates it, compresses and removes what was rotated.

    Without `{pid}` in `path` all processes write to that one file, batches of whole lines, each under the lock of the
    file; with it each process has a file of its own, and one whose process is dead counts as rotated. Raises
    `ValueError` for a path that cannot be written; later nothing raises. `written` counts lines, `dropped` those that
    were lost, by reason; `on_fault` is told of failures other than the disk's.
    """

    def __init__(
        self,
        path: str,
        rotation: Rotation | None,
        retention: Retention | None,
        compress: bool,  # noqa: FBT001 - named at its one call
        on_fault: Callable[[str, BaseException], None],
    ) -> None:
        names = _make_names(path)
        self.written = 0
        self.dropped = {"queue_full": 0, "disk": 0, "internal": 0}
        self._alone = not names.shared
        self._file = OpenFile(names)
        self._keeper = RetentionManager(names, retention, compress)
        sizes = (rotation.size if rotation else None, self._keeper.largest)
        self._largest = min((size for size in sizes if size is not None), default=None)
        self._oldest = rotation.age if rotation else None
        self._on_fault = on_fault
        self._outage = FileErrorLog(str(names.template))
        self._waiting: list[bytes] = []
        self._pid = os.getpid()
        self._opened = 0
        self._try_again = self._rotate_again = self._look_again = self._measure_again = 0.0
        self._work: Iterator[None] | None = None
        self._more_work = False
        reason = _unwritable_reason(names.template, self.path)
        if reason:
            raise _unwritable_error(path, reason)

    @property
    def path(self) -> Path:
        """The file that this process writes to."""
        return self._file.path

    def __len__(self) -> int:
        """Count the lines that wait for the lock."""
        return len(self._waiting)

    def write(self, lines: list[bytes], patience: float | None = None) -> bool:
        """Append `lines`; tell whether there is more to do: lines that wait, or work for `tend`.

        Where another process has the lock for longer than `patience` (seconds) they wait for the next call; without
        `patience` a process that does not give it back is stepped around.
        """
        waiting = self._waiting
        if self._pid != os.getpid():  # a forked child: the rest is its parent's
            self._pid, self._work = os.getpid(), None
            waiting.clear()
        fits = len(lines) if not waiting else max(0, KEPT_LINES - len(waiting))
        self.dropped["queue_full"] += len(lines) - min(fits, len(lines))
        waiting += lines[:fits]
        try:
            self._write_waiting(patience)
        except OSError as exc:
            self._lose("disk")
            self._try_again = monotonic() + FILE_RETRY_INTERVAL
            with suppress(OSError):
                self._file.close()
            self._outage.lines_lost(exc)
        except Exception as exc:  # noqa: BLE001 - a fault of ours must not end the writer's thread
            self._lose("internal")
            with suppress(OSError):
                self._file.close()
            self._on_fault("logs.file", exc)
        else:
            self._file.release()
            if self._outage.lost and monotonic() >= self._try_again:
                self._outage.recovered()
        return bool(waiting) or self._work is not None

    def run_maintenance(self) -> bool:
        """Do one piece of the work on rotated files; tell whether there is more."""
        work = self._work
        if work is None:
            return False
        try:
            next(work)
        except StopIteration:
            again, self._more_work = self._more_work, False
            self._work = self._keeper.work(self.path) if again else None
            return again
        except OSError as exc:
            self._work = None
            self._outage.maintenance_failed(exc)
            return False
        return True

    def close(self) -> None:
        """Close the file; a later `write` opens it again. Work that is not done is left to who comes next."""
        self._work = None
        self._look_again = 0.0
        self._file.close()

    def _write_waiting(self, patience: float | None) -> None:
        now = monotonic()
        if now < self._try_again:
            self._lose("disk")
        while self._waiting and self._hold(patience):
            if now >= self._look_again:
                self._begin_work()
            size = self._file.size()
            if not (size and self._is_over(size) and self._rotate()):
                self._put(size)

    def _hold(self, patience: float | None) -> bool:
        """Have the file open and locked; where there is no room for it, instead of the oldest that was rotated."""
        while True:
            try:
                held = self._file.acquire(patience)
            except OSError as exc:
                if exc.errno in DISK_FULL_ERRNOS and self._keeper.remove_oldest(self.path.parent):
                    continue
                raise
            if self._file.opened != self._opened:
                self._opened = self._file.opened
                self._keeper.measure(self.path)
            return held

    def _is_over(self, size: int) -> bool:
        """Tell whether the next line belongs into a new file."""
        if self._oldest is not None and time() - self._file.started_at >= self._oldest:
            return True
        return self._largest is not None and size + len(self._waiting[0]) > self._largest

    def _rotate(self) -> bool:
        """Begin a new file; where that cannot be, this one is written on."""
        if monotonic() < self._rotate_again:
            return False
        try:
            if _is_out_of_files(self.path.parent) and not self._keeper.remove_oldest(self.path.parent):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301 - as the call would
            self._file.rename()
        except FileNotFoundError:  # another process has renamed or removed it
            self._file.close()
        except OSError as exc:
            self._rotate_again = monotonic() + FILE_RETRY_INTERVAL
            self._outage.maintenance_failed(exc)
            return False
        self._look_again = 0.0
        return True

    def _put(self, size: int) -> None:
        """Append as many of the waiting lines as belong into this file."""
        data, count = self._next(size)
        if self._alone and monotonic() >= self._measure_again:
            self._measure_again = monotonic() + MEASURE_INTERVAL
            self._keeper.measure(self.path)
        if not self._keeper.make_room(self.path, size + len(data)):
            if size and self._rotate():
                return
            raise OSError(errno.EDQUOT, "log_retention leaves no room")
        taken, failure = self._file.append(data, size)
        if self._file.is_removed():
            self._file.close()
            return
        if failure is not None:
            whole, count = _whole_lines(self._waiting, taken)
            size += whole
            self._file.cut(size)
        del self._waiting[:count]
        self.written += count
        if failure is not None:
            self._recover(failure, size)

    def _next(self, size: int) -> tuple[bytes, int]:
        """Return what is written at once, and the number of its lines: at least one."""
        lines = self._waiting
        data = b"".join(lines)
        if self._largest is None or size + len(data) <= self._largest or monotonic() < self._rotate_again:
            return data, len(lines)
        whole, count = _whole_lines(lines, self._largest - size)
        return (data[:whole], count) if count else (lines[0], 1)

    def _recover(self, failure: OSError, size: int) -> None:
        """Make it possible to try again at once, or raise `failure`."""
        if failure.errno == errno.EFBIG and size and self._largest is not None and self._rotate():
            return
        if failure.errno not in DISK_FULL_ERRNOS or not self._keeper.remove_oldest(self.path.parent):
            raise failure

    def _lose(self, reason: str) -> None:
        self._outage.lost += len(self._waiting)
        self.dropped[reason] += len(self._waiting)
        self._waiting.clear()

    def _begin_work(self) -> None:
        self._look_again = monotonic() + CLEANUP_INTERVAL
        if self._work is None:
            self._work = self._keeper.work(self.path)
        else:
            self._more_work = True


def _whole_lines(lines: list[bytes], limit: int) -> tuple[int, int]:
    """Return how many bytes of whole lines are within `limit`, and how many lines that are."""
    ends = list(accumulate(map(len, lines)))
    count = bisect_right(ends, limit)
    return ends[count - 1] if count else 0, count


def _is_out_of_files(folder: Path) -> bool:
    """Tell whether the file system has a number of files, and no new one can be made."""
    if not hasattr(os, "statvfs"):  # pragma: no cover - Windows
        return False
    found = os.statvfs(folder)
    return found.f_files > 0 and found.f_favail == 0


def _make_names(path: str) -> LogFileNames:
    if "\0" in path:
        raise _unwritable_error(path, "no file has a null character in its name")
    if path in STREAM_PATHS:
        raise ValueError(f"log_file: got {path!r}; lines are written to standard output anyway: leave log_file away")
    try:
        return LogFileNames(path)
    except (OSError, RuntimeError) as exc:  # no home, or the folder that the process is in is gone
        raise _unwritable_error(path, str(exc)) from None


def _unwritable_error(path: str, reason: str) -> ValueError:
    return ValueError(
        f"log_file: {path!r} cannot be written: {reason}; "
        "name a file in a folder that exists and that this process may write to"
    )


def _unwritable_reason(template: Path, path: Path) -> str:  # noqa: PLR0911 - one for each reason
    """Tell why the file `path` cannot be written, leaving no trace; empty if it can. Missing folders will be made."""
    try:
        for each in {template, path}:
            if each.is_dir():
                return f"{each} is a folder"
        with suppress(FileNotFoundError, NotADirectoryError):  # another process may rotate it at this moment
            if not stat.S_ISREG(path.lstat().st_mode):
                return f"{path} is not a plain file"
            os.close(open_append(path, create=False))
            return ""
        folder = next(each for each in path.parents if each.exists())
    except OSError as exc:
        if exc.errno == errno.EACCES:
            return f"no permission to read and write {path}"
        return str(exc.strerror if exc.errno == errno.EPERM else exc)
    if not folder.is_dir():
        return f"{folder} is not a folder"
    return (
        _uncreatable_reason(folder) if os.access(folder, os.W_OK | os.X_OK) else f"no permission to write in {folder}"
    )


def _uncreatable_reason(folder: Path) -> str:
    """Tell why no file can be made in a folder that permits it, as in `/proc`; a full disk may have room later."""
    probe = folder / f".{token_hex(8)}.log"
    try:
        os.close(open_append(probe))
        probe.unlink()
    except OSError as exc:
        return "" if exc.errno in DISK_FULL_ERRNOS else f"no file can be made in {folder}: {exc.strerror}"
    return ""
