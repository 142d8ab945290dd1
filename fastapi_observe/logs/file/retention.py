"""Rotated log files: which are kept, and how they are compressed."""

from __future__ import annotations

import gzip
import os
import shutil
import threading
from contextlib import suppress
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.forks import start_thread
from fastapi_observe.logs.file.opening import APPEND_FLAGS, open_log_file, repair_end, unsafe_reason
from fastapi_observe.logs.file.rotation import Limits
from fastapi_observe.workers.locks import try_lock, unlock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastapi_observe.logs.file.rotation import LogFileNames

GRACE_PERIOD: Final = 5.0
"""Seconds between a rotation and compression: log shippers finish reading, late writers finish writing."""

CLEANUP_INTERVAL: Final = 600.0
"""Seconds between two clean-ups if nothing is rotated."""

RETENTION_THREAD_NAME: Final = "fastapi-observe-log-files"


class RotatedFile(NamedTuple):
    """A rotated file. `timestamp` is the one in its name."""

    timestamp: str
    path: Path
    is_compressed: bool
    size: int
    modified: float


class RotatedFiles:
    """Compresses and removes the rotated files of one log, in a thread that runs only when there is work.

    Several processes may do so at once: a file is compressed under its lock, and removing it twice is harmless.
    `on_error` gets each `OSError`.
    """

    def __init__(
        self, names: LogFileNames, retention: Limits, *, compress: bool, on_error: Callable[[OSError], None]
    ) -> None:
        self._names = names
        self._retention = retention
        self._compress = compress
        self._on_error = on_error
        self._next_cleanup = 0.0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def start_cleanup(self, directory: Path, *, rotated: bool) -> None:
        """Start the clean-up thread after a rotation, or if the last clean-up was `CLEANUP_INTERVAL` ago."""
        if not (rotated or monotonic() >= self._next_cleanup) or (self._thread and self._thread.is_alive()):
            return
        self._next_cleanup = monotonic() + CLEANUP_INTERVAL
        if not self._compress and self._retention == Limits():
            return
        self._stop = threading.Event()  # a new one: a forked child must not wait for its parent's
        consequence = "Rotated log files are not removed or compressed."
        self._thread = start_thread(self._run, RETENTION_THREAD_NAME, consequence, (directory, self._stop))

    def stop(self) -> None:
        """End the thread. The next clean-up, of any process, continues its work."""
        self._stop.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(1.0)

    def _run(self, directory: Path, stop: threading.Event) -> None:
        try:
            if not stop.wait(GRACE_PERIOD):
                self.clean_up(directory, stop)
        except FileNotFoundError:  # the directory was removed
            pass
        except OSError as exc:
            self._on_error(exc)

    def clean_up(self, directory: Path, stop: threading.Event | None = None) -> None:
        """Remove the files that are not to be kept and compress the others, until `stop` is set."""
        self._remove_old(directory)
        for file in self._list(directory) if self._compress else ():
            if stop is not None and stop.is_set():
                return
            if not file.is_compressed:
                with suppress(FileNotFoundError):  # another process removed it
                    _compress(file.path)
        self._remove_old(directory)

    def _list(self, directory: Path) -> list[RotatedFile]:
        """Return the rotated files, oldest first, without files that another user may have put there."""
        files = []
        for path in directory.iterdir():
            match = self._names.match_rotated(path.name)
            if match is not None:
                with suppress(FileNotFoundError):
                    info = path.lstat()
                    if not unsafe_reason(info, directory):
                        files.append(RotatedFile(match[0], path, match[1], info.st_size, info.st_mtime))
        return sorted(files)

    def _remove_old(self, directory: Path) -> None:
        max_size, max_age, max_files = self._retention
        total = 0
        for rank, file in enumerate(reversed(self._list(directory)), 1):
            total += file.size
            if (
                (max_files is not None and rank > max_files)
                or (max_age is not None and time() - file.modified > max_age)
                or (max_size is not None and total > max_size)
            ):
                file.path.unlink(missing_ok=True)
                _part(file.path).unlink(missing_ok=True)


def _compress(path: Path) -> None:
    """Replace `path` by `path`.gz with the same modification time, unless another process has it locked.

    At every moment the lines are in one of the two. A process that is killed meanwhile leaves a `.part` file, which is
    written again, or both files: then the compressed one is complete.
    """
    packed, part = path.with_name(f"{path.name}.gz"), _part(path)
    with os.fdopen(open_log_file(path, APPEND_FLAGS), "rb", 0) as plain:  # unbuffered: `repair_end` reads it, too
        # Without locks another worker could write the same .part file: leave the file uncompressed.
        if not try_lock(plain.fileno()):
            return
        try:
            if not os.path.lexists(packed):
                info = os.fstat(plain.fileno())
                repair_end(plain.fileno(), info.st_size, locked=True)
                plain.seek(0)
                with os.fdopen(open_log_file(part, os.O_WRONLY | os.O_CREAT), "wb") as target:
                    target.truncate()  # after the check of `open_log_file`, not with O_TRUNC: it may be a hard link
                    with gzip.GzipFile("", "wb", 1, target) as writer:
                        shutil.copyfileobj(plain, writer)
                os.utime(part, ns=(info.st_atime_ns, info.st_mtime_ns))
                part.rename(packed)
            path.unlink()
        except OSError:
            part.unlink(missing_ok=True)
            raise
        finally:
            unlock(plain.fileno())


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz.part")
