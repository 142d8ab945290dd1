"""Rotated log files: which are kept, and how they are compressed."""

from __future__ import annotations

import os
import threading
import zlib
from contextlib import suppress
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple

from fastapi_observe.internal.clock import monotonic
from fastapi_observe.logs.file.opening import open_log_file, repair_end, try_lock, unlock, unsafe_reason
from fastapi_observe.logs.file.rotation import AGE_UNITS, SIZE_UNITS, parse_amount

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastapi_observe.logs.file.rotation import LogFileNames

GRACE_PERIOD: Final = 5.0
"""Seconds between a rotation and compression: log shippers finish reading, late writers finish writing."""

CLEANUP_INTERVAL: Final = 600.0
"""Seconds between two clean-ups if nothing is rotated."""

COMPRESS_CHUNK_SIZE: Final = 1 << 17
GZIP_FORMAT: Final = 31
"""The `wbits` argument with which zlib writes the header and checksum of gzip."""

THREAD_NAME: Final = "fastapi-observe-log-files"


class Retention(NamedTuple):
    """Keep at most `files` rotated files, none older than `age` seconds, `size` bytes in total."""

    files: int | None = None
    age: float | None = None
    size: int | None = None


def parse_retention(text: str | None) -> Retention | None:
    """Parse `10 files`, `7 days`, `1 GB` or several of them with commas. None keeps all files.

    Raises `ValueError` for anything else.
    """
    if text is None:
        return None
    limits: dict[str, float] = {}
    for part in text.split(","):
        number, unit = parse_amount(part)
        if unit in {"file", "files"} and number == int(number):
            kind, value = "files", number
        elif unit in AGE_UNITS and number > 0:
            kind, value = "age", number * AGE_UNITS[unit]
        elif unit in SIZE_UNITS and number > 0:
            kind, value = "size", number * SIZE_UNITS[unit]
        else:
            kind, value = "", 0.0
        if not kind or kind in limits:
            raise ValueError(
                f"log_retention: invalid value {text!r}; use a number such as '10 files', an age such as '7 days', "
                "a size such as '1 GB', or several with commas, each once"
            )
        limits[kind] = value
    files, size = limits.get("files"), limits.get("size")
    return Retention(None if files is None else int(files), limits.get("age"), None if size is None else int(size))


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
    `max_active_size` is the size at which the file in use is rotated; the total size leaves room for it.
    `on_error` gets each `OSError`.
    """

    def __init__(
        self, names: LogFileNames, retention: Retention | None, *, compress: bool, on_error: Callable[[OSError], None]
    ) -> None:
        self._names = names
        self._retention = retention or Retention()
        self._compress = compress
        self._on_error = on_error
        self._next_cleanup = 0.0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def limit_active_size(self, size: int | None) -> int | None:
        """Return the size at which the file in use is rotated: at the latest at a quarter of the total size.

        The total size leaves room for that much.
        """
        total = self._retention.size
        if total is not None:
            size = max(1, total // 4) if size is None else max(1, min(size, total // 4))
            self._retention = self._retention._replace(size=total - size)
        return size

    def start_cleanup(self, directory: Path, *, rotated: bool) -> None:
        """Start the clean-up thread after a rotation, or if the last clean-up was `CLEANUP_INTERVAL` ago."""
        if not (rotated or monotonic() >= self._next_cleanup) or (self._thread and self._thread.is_alive()):
            return
        self._next_cleanup = monotonic() + CLEANUP_INTERVAL
        if not self._compress and self._retention == Retention():
            return
        self._stop = threading.Event()  # a new one: a forked child must not wait for its parent's
        thread = threading.Thread(target=self._run, args=(directory, self._stop), name=THREAD_NAME, daemon=True)
        with suppress(RuntimeError):  # no thread can be started: the next rotation tries again
            thread.start()
            self._thread = thread

    def stop(self) -> None:
        """End the thread. The next clean-up, of any process, continues its work."""
        self._stop.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(1.0)

    def clean_up(self, directory: Path, stop: threading.Event | None = None) -> None:
        """Remove the files that are not to be kept and compress the others."""
        self._remove_old(directory)
        for file in self._list(directory) if self._compress else ():
            if stop is not None and stop.is_set():
                return
            if not file.is_compressed:
                with suppress(FileNotFoundError):  # another process removed it
                    _compress(file.path, stop or self._stop)
        self._remove_old(directory)

    def _run(self, directory: Path, stop: threading.Event) -> None:
        if not stop.wait(GRACE_PERIOD):
            try:
                self.clean_up(directory, stop)
            except FileNotFoundError:  # the directory was removed
                pass
            except OSError as exc:
                self._on_error(exc)

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
        max_files, max_age, max_size = self._retention
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


def _compress(path: Path, stop: threading.Event) -> None:
    """Replace `path` by `path`.gz with the same modification time, unless another process has it locked.

    At every moment the lines are in one of the two. A process that is killed meanwhile leaves a `.part` file, which is
    written again, or both files: then the compressed one is complete.
    """
    packed, part = path.with_name(f"{path.name}.gz"), _part(path)
    plain = open_log_file(path, os.O_RDWR | os.O_APPEND)
    # Without locks another worker could write the same .part file: leave the file uncompressed.
    locked = try_lock(plain)
    try:
        if not locked:
            return
        if not os.path.lexists(packed):
            info = os.fstat(plain)
            repair_end(plain, info.st_size, locked=True)
            if not _write_part(plain, part, stop):
                part.unlink()
                return
            os.utime(part, ns=(info.st_atime_ns, info.st_mtime_ns))
            part.rename(packed)
        path.unlink()
    except OSError:
        part.unlink(missing_ok=True)
        raise
    finally:
        if locked:
            unlock(plain)
        os.close(plain)


def _write_part(plain: int, part: Path, stop: threading.Event) -> bool:
    """Write the compressed content of `plain` to `part`. Returns False if it was stopped."""
    target = open_log_file(part, os.O_WRONLY | os.O_CREAT)
    try:
        os.ftruncate(target, 0)  # after the check of `open_log_file`, not with O_TRUNC: it may be a hard link
        compressor = zlib.compressobj(1, wbits=GZIP_FORMAT)
        os.lseek(plain, 0, os.SEEK_SET)
        while chunk := os.read(plain, COMPRESS_CHUNK_SIZE):
            _write_all(target, compressor.compress(chunk))
            if stop.is_set():
                return False
        _write_all(target, compressor.flush())
    finally:
        os.close(target)
    return True


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz.part")
